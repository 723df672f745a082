//! `cargo xtask`: see `cargo xtask help`.

#![expect(unused_crate_dependencies, reason = "the package's dependencies serve its library")]

use std::process::ExitCode;

fn main() -> ExitCode {
    xtask::cli::main()
}
