//! The side of `cargo xtask bench` that runs in guests and in containers, linked statically.

use std::process::ExitCode;

fn main() -> ExitCode {
    xtask::bench::inside::main()
}
