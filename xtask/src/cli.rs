//! The commands and their flags.

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::{
    bench, build, demo, docs, fuzz, image, quality, run,
    setup::{self, Purpose},
    steps::Steps,
    test, vm,
    workspace::{Profile, Workspace},
};

/// Builds, tests and runs userns-agent.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find or fetch the tools that a build needs, below the build directory
    Setup {
        /// What the tools are for
        #[arg(long = "for", value_enum, default_value = "build")]
        purpose: Purpose,
    },
    /// Build the eBPF object
    BuildEbpf(BuildArgs),
    /// Build the agent with the eBPF object inside
    Build(BuildArgs),
    /// Build and start the agent (as root)
    Run {
        /// Arguments for `userns-agent run`
        #[arg(last = true, value_name = "AGENT ARGS")]
        args: Vec<OsString>,
    },
    /// Make an OCI image of the agent, without a container engine
    Image(image::Options),
    /// Plant problems on this node, in real containers, and show what the agent says of them (as root)
    Demo {
        /// Print each finding's JSON line too
        #[arg(long)]
        json: bool,
    },
    /// Run every check; the last line is the total
    Test {
        /// Only what needs neither root nor BPF tools
        #[arg(long)]
        quick: bool,
    },
    /// Run the node tests on other kernels, in virtual machines
    Vm(vm::Options),
    /// Measure what the agent costs, and write docs/benchmarks.md (as root)
    Bench(bench::Options),
    /// Measure what is found of escapes and of ordinary software, and write docs/detection.md (as root)
    Quality(quality::Options),
    /// Fuzz the decoders with libFuzzer, on the pinned compiler
    Fuzz(fuzz::Options),
    /// Regenerate the reference pages in docs/
    Docs {
        /// Fail if a page is out of date, and change nothing
        #[arg(long)]
        check: bool,
    },
}

#[derive(Debug, Clone, Copy, Args)]
struct BuildArgs {
    /// Optimised (the default)
    #[arg(long, conflicts_with = "debug")]
    release: bool,
    /// Unoptimised, and with the debug logs of the eBPF programs
    #[arg(long)]
    debug: bool,
}

impl BuildArgs {
    fn profile(self) -> Profile {
        if self.debug { Profile::Debug } else { Profile::Release }
    }
}

/// Runs the command that the arguments name.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut steps = Steps::default();
    let result = Workspace::locate().and_then(|workspace| dispatch(cli.command, &mut steps, &workspace));
    result.unwrap_or_else(|error| {
        steps.print_table();
        eprintln!("\nerror: {error:#}");
        ExitCode::FAILURE
    })
}

fn dispatch(command: Command, steps: &mut Steps, workspace: &Workspace) -> Result<ExitCode> {
    match command {
        Command::Setup { purpose } => drop(setup::setup(steps, workspace, purpose)?),
        Command::BuildEbpf(args) => {
            let toolchain = setup::setup(steps, workspace, Purpose::Build)?;
            build::ebpf(steps, workspace, &toolchain, args.profile())?;
        }
        Command::Build(args) => drop(build::all(steps, workspace, args.profile())?),
        Command::Run { args } => match run::run(steps, workspace, &args)? {},
        Command::Image(options) => image::image(steps, workspace, &options)?,
        Command::Demo { json } => return demo::demo(steps, workspace, json),
        Command::Test { quick } => return test::test(steps, workspace, quick),
        Command::Vm(options) => return vm::vm(steps, workspace, &options),
        Command::Bench(options) => bench::bench(steps, workspace, &options)?,
        Command::Quality(options) => return quality::quality(steps, workspace, &options),
        Command::Fuzz(options) => fuzz::fuzz(steps, workspace, &options)?,
        Command::Docs { check } => docs::docs(steps, workspace, check)?,
    }
    steps.print_table();
    Ok(ExitCode::SUCCESS)
}
