//! `cargo xtask vm`: the tests of a node, with the real agent, on other kernels than the running one, and with every
//! mechanism by which a kernel lets hooks be attached.
//!
//! A guest is a Debian kernel in QEMU, an ext4 disk made for it, and one script as its first process. Nothing is
//! installed and nothing needs root: kernels, QEMU and the guest's programs come out of Debian packages, and
//! stay below the build directory. See docs/kernels.md.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, builder::PossibleValuesParser};

use crate::{
    build,
    lab::Containerd,
    process,
    steps::Steps,
    workspace::{Profile, Workspace},
};

mod guest;
mod image;
mod job;
mod kernels;
mod plan;
mod pool;
mod qemu;
mod tamper;
mod verdict;
mod verifier;
mod watch;

pub(crate) use job::{Job, count_instructions};
pub use kernels::Line;
pub use qemu::Accel;
pub use verdict::{Outcome, Verdict};
pub use watch::{TestResult, TestRun};

use guest::{End, Limits, Traces};
use kernels::{Kernel, KernelFiles};
use plan::{BINARIES, DEFAULT, LINES, MECHANISMS};
use qemu::{Boot, Qemu};

/// What a processor takes for the trial; without it, a guest under KVM may hang for ever.
const TRIAL: Duration = Duration::from_secs(20);
const CONSOLE_TAIL: usize = 30;

/// Which kernels, and how.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Kernel lines, such as 6.12, `newest`, or `all` that Debian has
    #[arg(long, value_delimiter = ',', default_values = LINES)]
    kernel: Vec<String>,
    /// How the agent attaches to hooks [default: all; with --test, `default`]
    #[arg(long, value_delimiter = ',', value_parser = mechanisms())]
    mechanism: Vec<String>,
    /// What runs the guest's instructions
    #[arg(long, value_enum, default_value_t)]
    accel: Accel,
    /// The tests whose name contains this, instead of those that belong to a mechanism
    #[arg(long, value_name = "FILTER", default_value = "")]
    test: String,
    /// Guests at a time
    #[arg(long, value_name = "NUMBER", default_value_t = pool::default_jobs())]
    jobs: usize,
    /// Seconds a guest may take to come up
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    boot_limit: u64,
    /// Seconds a single test may take
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    test_limit: u64,
    /// Seconds all tests of a kernel may take
    #[arg(long, value_name = "SECONDS", default_value_t = 2400)]
    limit: u64,
    /// This agent instead of building one
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// The script's tests, instead of those that belong to a mechanism
    #[arg(skip)]
    suite: Option<&'static str>,
    /// Agree to what the programs are for each kernel's verifier now, in docs/verifier.json
    #[arg(long, conflicts_with = "test")]
    bless: bool,
}

fn mechanisms() -> PossibleValuesParser {
    [&[DEFAULT], &MECHANISMS[..]].concat().into()
}

impl Default for Options {
    /// Every kernel with every mechanism.
    fn default() -> Self {
        Self {
            kernel: LINES.map(str::to_owned).into(),
            mechanism: Vec::new(),
            accel: Accel::default(),
            test: String::new(),
            jobs: pool::default_jobs(),
            boot_limit: 120,
            test_limit: 600,
            limit: 2400,
            agent: None,
            suite: None,
            bless: false,
        }
    }
}

impl Options {
    /// These tests, each a binary and a part of its name, with every mechanism; on every kernel if none is named.
    pub(crate) fn of_suite(kernel: Vec<String>, suite: &'static str) -> Self {
        let all = Self::default();
        Self { kernel: if kernel.is_empty() { all.kernel } else { kernel }, suite: Some(suite), ..all }
    }

    fn cells(&self) -> Vec<&str> {
        match (self.mechanism.is_empty(), self.test.is_empty()) {
            (false, _) => self.mechanism.iter().map(String::as_str).collect(),
            (true, true) => [&[DEFAULT], &MECHANISMS[..]].concat(),
            (true, false) => vec![DEFAULT],
        }
    }

    fn settings(&self, kernels: &[(Kernel, KernelFiles)]) -> Vec<(&'static str, String)> {
        let filters = BINARIES.map(|binary| format!("{binary}:{}", self.test));
        let filter = match self.suite {
            Some(suite) => suite.to_owned(),
            None if self.test.is_empty() => String::new(),
            None => filters.join(" "),
        };
        let with_containerd = kernels.iter().filter(|(kernel, _)| plan::runs_containerd(kernel.line));
        let with_containerd: Vec<&str> = with_containerd.map(|(kernel, _)| kernel.release.as_str()).collect();
        vec![
            ("CELLS", self.cells().join(" ")),
            ("SUITE_DEFAULT", plan::suite(DEFAULT)),
            ("SUITE", plan::suite(MECHANISMS[0])),
            ("SUITE_CONTAINERD", plan::CONTAINERD.to_owned()),
            ("WITH_CONTAINERD", with_containerd.join(" ")),
            ("FILTER", filter),
            ("SLOWDOWN", self.accel.slowdown().to_string()),
            ("TEST_LIMIT", self.test_limit.to_string()),
        ]
    }

    fn limits(&self) -> Limits {
        let boot = Duration::from_secs(self.boot_limit);
        Limits { boot, total: boot + Duration::from_secs(self.limit) }
    }
}

/// What came of all kernels.
#[derive(Debug)]
pub struct Report {
    /// Of each kernel.
    pub verdicts: Vec<Verdict>,
    /// Programs that became much more work for a kernel's verifier.
    pub grown: Vec<String>,
}

impl Report {
    /// Whether all is well.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.grown.is_empty() && self.verdicts.iter().all(Verdict::passed)
    }

    /// Prints the tables, and what is wrong.
    pub fn print(&self) {
        print!("{}", verdict::table(&self.verdicts));
        self.grown.iter().for_each(|line| println!("{line}"));
    }
}

/// Builds the agent, runs the tests on every kernel that `options` names, and prints the verdicts.
///
/// # Errors
///
/// When something does not build or cannot be fetched; a kernel that fails is told by the exit code.
pub fn vm(steps: &mut Steps, workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let agent = match &options.agent {
        Some(agent) => agent.clone(),
        None => build::all(steps, workspace, Profile::Release)?,
    };
    let report = matrix(steps, workspace, &agent, options)?;
    steps.print_table();
    report.print();
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the tests with `agent` on every kernel that `options` names, several at a time.
///
/// # Errors
///
/// When the tests do not build, or something cannot be fetched or started; what happens in a guest is its verdict.
pub fn matrix(steps: &mut Steps, workspace: &Workspace, agent: &Path, options: &Options) -> Result<Report> {
    ensure!(std::env::consts::ARCH == "x86_64", "the guests are x86_64, and run programs built here");
    let dir = workspace.target().join("vm");
    let cache = dir.join("apt");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let _lock = crate::debian::lock(&dir)?;
    let tests =
        steps.step("build tests", "what is to run inside of the guests", || build_tests(workspace))?;
    let (qemu, kernels) = steps.step("kernels", "fetches kernels, and QEMU where it is missing", || {
        let kernels = fetch(&cache, &dir, &options.kernel)?;
        let qemu = Qemu::find(&cache, &dir, options.accel)?;
        println!("    {qemu}");
        Ok((qemu, kernels))
    })?;
    let disk = steps.step("disk", "agent, tests and runtimes on a file system for the guests", || {
        let actor = tamper::actor(&dir)?;
        let containerd = dir.join("containerd");
        Containerd::fetch(&cache, &containerd)?;
        let tests = tests.iter().zip(BINARIES).map(|(file, name)| (file.as_path(), name));
        let mut files = vec![(agent, "userns-agent"), (&actor, "actor")];
        files.extend(tests);
        let content = image::Content {
            files: &files,
            packages: &[],
            trees: &[(&containerd, "opt/containerd")],
            settings: options.settings(&kernels),
        };
        image::make(&cache, &dir, &content, &kernels)
    })?;
    let machine = Machine { qemu, disk, dir };
    if options.accel == Accel::Kvm {
        steps.step("trial", "KVM may be there and not work", || machine.trial(&kernels))?;
    }
    let why = format!("every kernel with every mechanism, {} at a time", options.jobs);
    let verdicts = steps.step("virtual machines", &why, || {
        let tested = pool::run(kernels.iter().collect(), options.jobs, |(kernel, files)| {
            machine.test(kernel, files, options.limits())
        });
        tested.into_iter().collect::<Result<Vec<_>>>()
    })?;
    let figures = verdicts.iter().filter(|verdict| !verdict.verified.is_empty());
    let figures = figures.map(|verdict| (verdict.line.to_string(), verdict.verified.clone())).collect();
    let grown = verifier::check(workspace.root(), &figures, options.bless)?;
    Ok(Report { verdicts, grown })
}

/// What all guests have in common.
#[derive(Debug)]
struct Machine {
    qemu: Qemu,
    disk: PathBuf,
    dir: PathBuf,
}

impl Machine {
    fn test(&self, kernel: &Kernel, files: &KernelFiles, limits: Limits) -> Result<Verdict> {
        let line = kernel.line;
        // several guests talk at a time
        let say = |text: &str| println!("{:>5}| {text}", line.to_string());
        say(&format!("begins: {}", kernel.release));
        let start = Instant::now();
        let show = |text: &str| {
            if !text.is_empty() {
                say(text);
            }
        };
        let (watch, end, traces) = self.run(kernel, files, plan::job(line), limits, show)?;
        let verdict = Verdict::new(line, watch, end, start.elapsed());
        if !verdict.outcome.is_told_by_tests() {
            say(&format!("the end of {}:", traces.console.display()));
            guest::tail(&traces.console, CONSOLE_TAIL).lines().for_each(say);
        }
        say(&verdict.to_string());
        Ok(verdict)
    }

    fn trial(&self, kernels: &[(Kernel, KernelFiles)]) -> Result<()> {
        let (kernel, files) = kernels.last().context("no kernel to try")?;
        let limits = Limits { boot: TRIAL, total: TRIAL };
        let (watch, end, _) = self.run(kernel, files, "trial", limits, |_| {})?;
        match end {
            End::Finished if watch.booted.is_some() => Ok(()),
            End::Vanished(why) => bail!("QEMU cannot use KVM here: {why}"),
            End::Finished | End::NoBoot | End::NotDone | End::Crashed(_) => {
                bail!("under KVM no guest comes up within {} s here: use --accel tcg", TRIAL.as_secs())
            }
        }
    }

    fn run(
        &self,
        kernel: &Kernel,
        files: &KernelFiles,
        job: &str,
        limits: Limits,
        show: impl FnMut(&str),
    ) -> Result<(watch::Watch, End, Traces)> {
        let log = |kind| self.dir.join(format!("{job}-{}.{kind}", kernel.line));
        let traces = Traces { console: log("console"), qemu: log("qemu") };
        let scratch = qemu::scratch(&self.dir)?;
        let boot =
            Boot { kernel: &files.image, disk: &self.disk, console: &traces.console, scratch: &scratch, job };
        let (watch, end) = guest::run(self.qemu.command(boot)?, &traces, limits, show)?;
        Ok((watch, end, traces))
    }
}

fn fetch(cache: &Path, dir: &Path, wanted: &[String]) -> Result<Vec<(Kernel, KernelFiles)>> {
    let place = dir.join("kernels");
    fs::create_dir_all(&place).with_context(|| format!("cannot create {}", place.display()))?;
    let mut kernels = Vec::new();
    for kernel in kernels::find(cache, wanted)? {
        let mut files = kernel.files(cache, &place)?;
        // below the floor there is nothing to tamper before
        if plan::is_supported(kernel.line) {
            files.modules.push(tamper::module(cache, dir, &kernel, &files)?);
        }
        kernels.push((kernel, files));
    }
    Ok(kernels)
}

/// The files of the tests, in the order of [`BINARIES`].
fn build_tests(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let mut cargo = workspace.cargo("test");
    cargo.args(["--package", "xtask", "--no-run", "--message-format=json-render-diagnostics"]);
    for name in BINARIES {
        cargo.args(["--test", name]);
    }
    let messages = process::stdout(cargo.stderr(Stdio::inherit()))?;
    let file = |name| executable(&messages, name).with_context(|| format!("cargo built no test {name}"));
    BINARIES.into_iter().map(file).collect()
}

/// The file of the test `name`, among what cargo reports to have built.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_test = message.pointer("/target/name")?.as_str() == Some(name);
        Some(PathBuf::from(message.get("executable")?.as_str().filter(|_| is_test)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_names_the_test() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"xtask\"},\"executable\":null}\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"xtask\"},\"executable\":\"/t/xtask\"}\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"node\"},\"executable\":\"/t/node-1\"}\n\
            {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages, "node"), Some(PathBuf::from("/t/node-1")));
        assert_eq!(executable(messages, "guest"), None);
    }

    #[test]
    fn the_flags_default_to_what_every_test_run_does() {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            options: Options,
        }
        let parse = |words: &[&str]| <Cli as clap::Parser>::parse_from(words).options;
        assert_eq!(format!("{:?}", parse(&["vm"])), format!("{:?}", Options::default()));
        assert_eq!(parse(&["vm"]).cells(), ["default", "tp_btf", "fexit", "kprobe", "tracepoint"]);
        assert_eq!(parse(&["vm", "--test", "day"]).cells(), ["default"]);
        assert_eq!(
            parse(&["vm", "--test", "day", "--mechanism", "fexit,kprobe"]).cells(),
            ["fexit", "kprobe"]
        );
    }
}
