//! The command line of the statically linked program that runs in guests and in containers.

use std::{path::Path, process::ExitCode};

use anyhow::{Result, bail};

use super::{guest, herd, worker};

/// Runs what the arguments name.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    match words {
        ["worker", dir] => worker::obey(Path::new(dir)),
        ["member", cgroup] => herd::become_member(Path::new(cgroup)),
        ["crowd"] => herd::be_crowd(),
        ["guest"] => guest::measure(),
        _ => bail!("`cargo xtask bench` starts this program; it is of no use by itself"),
    }
}
