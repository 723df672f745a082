//! `cargo xtask bench`: what the agent costs, measured side by side with its absence.
//!
//! | module | |
//! | --- | --- |
//! | `operation`, `worker` | what is repeated, and the processes that repeat it |
//! | `empty` | programs that do nothing, for comparison |
//! | `guest`, `instructions` | instructions per operation: in a guest, and its table |
//! | [`inside`] | the statically linked program for guests and containers |

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{
    build, process,
    setup::{self, Purpose},
    steps::Steps,
    workspace::{Profile, Workspace},
};

mod empty;
mod guest;
pub mod inside;
mod instructions;
mod operation;
mod worker;

const KERNELS: [&str; 2] = ["6.1", "newest"];

/// What to measure, and with what.
#[derive(Debug, Args)]
pub struct Options {
    /// Only these parts; nothing is written to docs/ then
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Kernel lines in whose guests instructions are counted
    #[arg(long, value_delimiter = ',', default_values = KERNELS)]
    kernel: Vec<String>,
    /// This agent instead of building one
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

/// A part of the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Instructions per operation, in virtual machines
    Instructions,
}

/// What every part needs.
#[derive(Debug)]
struct Programs {
    agent: PathBuf,
    /// eBPF object with programs that do nothing.
    empty: PathBuf,
    /// For guests and containers.
    bench: PathBuf,
}

/// Measures what `options` ask for.
///
/// # Errors
///
/// When something does not build, cannot be fetched, or does not run.
pub fn bench(steps: &mut Steps, workspace: &Workspace, options: &Options) -> Result<()> {
    let programs = build_programs(steps, workspace, options.agent.clone())?;
    let counted = instructions::count(steps, workspace, &programs, &options.kernel)?;
    for kernel in &counted {
        print!("\n{}", kernel.table());
    }
    Ok(())
}

fn build_programs(steps: &mut Steps, workspace: &Workspace, agent: Option<PathBuf>) -> Result<Programs> {
    let toolchain = setup::setup(steps, workspace, Purpose::Build)?;
    let object = build::ebpf(steps, workspace, &toolchain, Profile::Release)?;
    let empty = object.with_file_name("empty");
    let agent = match agent {
        Some(agent) => agent,
        None => build::agent(steps, workspace, &object, Profile::Release)?,
    };
    let bench = steps.step("build bench", "what runs in guests and containers, linked statically", || {
        let mut cargo = workspace.cargo("rustc");
        cargo.args(["--quiet", "--package", "xtask", "--bin", guest::PROGRAM]);
        process::run(cargo.args(["--", "-C", "target-feature=+crt-static"]))?;
        Ok(workspace.target().join("debug").join(guest::PROGRAM))
    })?;
    Ok(Programs { agent, empty, bench })
}
