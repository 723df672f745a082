//! `cargo xtask quality`: what is found of what an intruder tries, what is found of ordinary software, and how soon.
//! Writes docs/detection.md from one run on the running kernel and on those of `cargo xtask vm`.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    build, process,
    setup::{self, Purpose},
    steps::Steps,
    vm,
    workspace::{Profile, Workspace},
};

mod page;
mod sample;

pub use page::Cell;
pub use sample::{Sample, since};

/// What is run on the running kernel.
const NATIVE: [&str; 2] = ["simulate::each_escape", "noise::ordinary"];
/// What is run with each mechanism on each kernel: the first test says whether the kernel offers it.
const IN_GUESTS: &str = "node:core:: node:simulate::each_escape guest:tamper::";

/// What is measured.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Without the software that takes long to fetch or to run
    #[arg(long)]
    quick: bool,
    /// Kernel lines in virtual machines, as for `cargo xtask vm` [default: all of its own]
    #[arg(long, value_delimiter = ',')]
    kernel: Vec<String>,
    /// This agent instead of building one
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

/// Measures everything and writes the page.
///
/// # Errors
///
/// When a test fails, or something does not build or cannot be fetched.
pub fn quality(steps: &mut Steps, workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let agent = match &options.agent {
        Some(agent) => agent.clone(),
        None => build::all(steps, workspace, Profile::Release)?,
    };
    setup::setup(steps, workspace, Purpose::Test)?;
    let why = "simulated escapes, and ordinary software, in containers on the running kernel";
    let native = steps.step("running kernel", why, || native(workspace, &agent, options.quick))?;
    let vms = vm::Options::of_suite(options.kernel.clone(), IN_GUESTS);
    let report = vm::matrix(steps, workspace, &agent, &vms)?;
    steps.print_table();
    report.print();
    ensure!(report.passed(), "not every kernel passed: the table above tells which");
    let mut cells = vec![native];
    cells.extend(report.verdicts.iter().flat_map(vm::Verdict::quality));
    page::write(workspace, &cells, options.quick)?;
    println!("wrote docs/{}", page::PAGE);
    Ok(ExitCode::SUCCESS)
}

fn native(workspace: &Workspace, agent: &Path, quick: bool) -> Result<Cell> {
    let mut cargo = workspace.cargo("test");
    cargo.args(["--package", "xtask", "--test", "node", "--", "--test-threads=1", "--nocapture"]);
    cargo.args(NATIVE).env("USERNS_NODE_TESTS", "1").env("USERNS_AGENT_BIN", agent);
    if !quick {
        cargo.env("USERNS_NOISE", "all");
    }
    let output = process::stdout(&mut cargo)?;
    print!("{output}");
    let kernel = process::stdout(Command::new("uname").arg("-r"))?;
    let samples: Vec<Sample> = output.lines().filter_map(Sample::read).collect();
    ensure!(!samples.is_empty(), "the tests told of nothing: were they skipped?");
    Ok(Cell { kernel: kernel.trim().to_owned(), mechanism: "default".to_owned(), native: true, samples })
}

impl Cell {
    /// What a guest's tests told with one mechanism.
    #[must_use]
    pub fn of_guest(kernel: String, mechanism: String, samples: Vec<Sample>) -> Self {
        Self { kernel, mechanism, native: false, samples }
    }

    /// Whether nothing was told.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }
}

/// Where the page goes.
fn docs(workspace: &Workspace) -> PathBuf {
    workspace.root().join("docs")
}

/// The processor's model, of the first one.
fn processor() -> Result<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(model.map_or_else(|| "unknown processor".to_owned(), |(_, model)| model.trim().to_owned()))
}
