//! `cargo xtask bench`: what the agent costs, measured side by side with its absence.
//!
//! | module | |
//! | --- | --- |
//! | `operation`, `worker` | what is repeated, and the processes that repeat it |
//! | `node`, `herd` | the lab to measure on; pods by the hundred |
//! | `empty`, `bpftrace` | programs that do nothing, and a script, for comparison |
//! | `guest`, `instructions` | instructions per operation: in a guest, and its table |
//! | `programs`, `storm`, `delays`, `flood`, `scale`, [`churn`], `attribution` | what is measured on the running kernel, one part each |
//! | `stats`, `usage`, `scrape`, `machine` | figures, and where they come from |
//! | `page`, `plot` | docs/benchmarks.md and its figures |
//! | [`inside`] | the statically linked program for guests and containers |

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

use crate::{
    build, process, run,
    setup::{self, Purpose},
    steps::Steps,
    workspace::{Profile, Workspace},
};

pub mod attempts;
mod attribution;
mod bpftrace;
pub mod churn;
mod delays;
mod empty;
mod flood;
mod guest;
mod herd;
pub mod inside;
mod instructions;
mod machine;
mod node;
mod operation;
mod page;
mod plot;
mod programs;
mod scale;
mod scrape;
mod stats;
mod storm;
mod usage;
mod worker;

use attribution::Attribution;
use churn::{Churn, Plan};
use delays::Delays;
use flood::Flood;
use instructions::Counted;
use node::Node;
use programs::Program;
use scale::Point;
pub(crate) use stats::quantile;
use storm::Storm;

const KERNELS: [&str; 2] = ["6.1", "newest"];
const CHURN: Duration = Duration::from_secs(60);

/// What to measure, and with what.
#[derive(Debug, Args)]
pub struct Options {
    /// Only these parts; nothing is written to docs/ then
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Kernel lines in whose guests instructions are counted
    #[arg(long, value_delimiter = ',', default_values = KERNELS)]
    kernel: Vec<String>,
    /// Compare with bpftrace too, which makes the guests' disk 200 MB larger; done anyway without `--only`
    #[arg(long)]
    bpftrace: bool,
    /// This agent instead of building one
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

/// A part of the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Instructions per operation, in virtual machines
    Instructions,
    /// Nanoseconds per run of each eBPF program
    Programs,
    /// Programs started as fast as containers can
    Storm,
    /// From the act to the JSON line
    Delays,
    /// A million denied attempts by one pod
    Flood,
    /// Start-up, memory and sweeps on nodes of different sizes
    Scale,
    /// Pods that come and go without a pause
    Churn,
    /// From a container's start to its names, by containerd
    Attribution,
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

/// What was measured; a part that was not is empty.
#[derive(Debug, Default)]
struct Results {
    instructions: Vec<Counted>,
    programs: Vec<Program>,
    storms: Vec<Storm>,
    delays: Vec<Delays>,
    flood: Option<Flood>,
    sizes: Vec<Point>,
    churn: Option<Churn>,
    attribution: Option<Attribution>,
}

/// Measures what `options` ask for.
///
/// # Errors
///
/// When something does not build, cannot be fetched, or does not run.
pub fn bench(steps: &mut Steps, workspace: &Workspace, options: &Options) -> Result<()> {
    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    let native = options.only.is_empty() || options.only.iter().any(|part| *part != Part::Instructions);
    ensure!(
        !native || run::is_root()?,
        "containers and eBPF programs need root: run `sudo -E cargo xtask bench`, or `--only instructions`"
    );
    let programs = build_programs(steps, workspace, options.agent.clone())?;
    let mut results = Results::default();
    if native {
        results.measure(steps, workspace, &programs, wanted)?;
    }
    if wanted(Part::Instructions) {
        let with_bpftrace = options.bpftrace || options.only.is_empty();
        results.instructions =
            instructions::count(steps, workspace, &programs, &options.kernel, with_bpftrace)?;
    }
    let machine = machine::describe();
    if options.only.is_empty() {
        return page::write(&workspace.root().join("docs"), &results, &machine);
    }
    println!("\n{}", page::page(&results, &machine));
    Ok(())
}

impl Results {
    /// The parts that are measured on the running kernel.
    fn measure(
        &mut self,
        steps: &mut Steps,
        workspace: &Workspace,
        programs: &Programs,
        wanted: impl Fn(Part) -> bool,
    ) -> Result<()> {
        let target = workspace.target();
        let (place, cache) = (target.join("bench"), target.join("cache"));
        if wanted(Part::Attribution) {
            // a lab with other runtimes, which is gone before the next is made
            let why = "from a container's start to its names, by containerd";
            let measured =
                steps.step("attribution", why, || attribution::measure(&place, &cache, &programs.agent))?;
            self.attribution = Some(measured);
        }
        let node = &Node::new(&place, &cache, &programs.agent, &programs.bench)?;
        if wanted(Part::Programs) {
            let why = "nanoseconds per run of each eBPF program, under a mixed load";
            self.programs = steps.step("programs", why, || programs::measure(node, &programs.empty))?;
        }
        if wanted(Part::Storm) {
            let why = "programs started as fast as containers can, with the agent and without";
            self.storms = steps.step("storm", why, || storm::measure(node))?;
        }
        if wanted(Part::Delays) {
            self.delays = steps.step("delays", "from the act to the JSON line", || delays::both(node))?;
        }
        if wanted(Part::Flood) {
            let why = "a million denied attempts by one pod, and another pod's findings meanwhile";
            self.flood = Some(steps.step("flood", why, || flood::measure(node))?);
        }
        if wanted(Part::Scale) {
            let why = "start-up, memory and sweeps on nodes of different sizes";
            self.sizes = steps.step("scale", why, || scale::measure(node))?;
        }
        if wanted(Part::Churn) {
            let plan = Plan { pods: 500, rate: 50, time: CHURN };
            self.churn = Some(
                steps.step("churn", "pods that come and go on a full node", || churn::measure(node, plan))?,
            );
        }
        Ok(())
    }
}

fn build_programs(steps: &mut Steps, workspace: &Workspace, agent: Option<PathBuf>) -> Result<Programs> {
    let toolchain = setup::setup(steps, workspace, Purpose::Build)?;
    let object = build::ebpf(steps, workspace, &toolchain, Profile::Release)?;
    let empty = object.with_file_name("empty");
    let agent = match agent {
        Some(agent) => agent,
        None => build::agent(steps, workspace, &object, Profile::Release)?,
    };
    let bench = build_inside(steps, workspace)?;
    Ok(Programs { agent, empty, bench })
}

/// Builds the program for guests and containers, and returns its path.
///
/// # Errors
///
/// When it does not compile.
pub(crate) fn build_inside(steps: &mut Steps, workspace: &Workspace) -> Result<PathBuf> {
    steps.step("build bench", "what runs in guests and containers, linked statically", || {
        let mut cargo = workspace.cargo("rustc");
        cargo.args(["--package", "xtask", "--bin", guest::PROGRAM]);
        process::run(cargo.args(["--", "-C", "target-feature=+crt-static"]))?;
        // where it is built, the next `cargo test` puts one that is linked dynamically
        let (built, kept) = (workspace.target().join("debug"), workspace.target().join("static"));
        fs::create_dir_all(&kept).with_context(|| format!("cannot create {}", kept.display()))?;
        let (built, kept) = (built.join(guest::PROGRAM), kept.join(guest::PROGRAM));
        fs::copy(&built, &kept).with_context(|| format!("cannot copy {}", built.display()))?;
        Ok(kept)
    })
}
