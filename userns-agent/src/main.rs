//! The binary: reads the command line, runs the library, turns errors into exit codes.
fn main() {}
