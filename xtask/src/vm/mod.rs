//! `cargo xtask vm`: the node tests, with the real agent, on other kernels than the running one.
//!
//! A guest is a Debian kernel in QEMU, an ext4 disk made for it, and one script as its first process. Nothing is
//! installed and nothing needs root: kernels, QEMU and the guest's programs come out of Debian packages, and
//! stay below the build directory. See docs/kernels.md.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::{
    build, process,
    steps::Steps,
    workspace::{Profile, Workspace},
};

mod guest;
mod image;
mod job;
mod kernels;
mod qemu;
mod tamper;
mod verdict;
mod watch;

pub(crate) use job::{Job, count_instructions};
pub use kernels::Line;
pub use qemu::Accel;
pub use verdict::{Outcome, Verdict};
pub use watch::{TestResult, TestRun};

use guest::{End, Limits, Traces};
use kernels::{Kernel, KernelFiles};
use qemu::{Boot, Qemu};

/// The long-term lines there are, and the newest of all.
const LINES: [&str; 4] = ["6.1", "6.12", "6.18", "newest"];
/// The integration tests that run in guests.
const TESTS: [&str; 2] = ["node", "guest"];
/// What a processor takes for the trial; without it, a guest under KVM may hang for ever.
const TRIAL: Duration = Duration::from_secs(20);
const CONSOLE_TAIL: usize = 30;

/// Which kernels, and how.
#[derive(Debug, Args)]
pub struct Options {
    /// Kernel lines, such as 6.12, `newest`, or `all` that Debian has
    #[arg(long, value_delimiter = ',', default_values = LINES)]
    kernel: Vec<String>,
    /// What runs the guest's instructions
    #[arg(long, value_enum, default_value_t)]
    accel: Accel,
    /// Only the tests whose name contains this
    #[arg(long, value_name = "FILTER", default_value = "")]
    test: String,
    /// Seconds a guest may take to come up
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    boot_limit: u64,
    /// Seconds a single test may take
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    test_limit: u64,
    /// Seconds all tests of a kernel may take
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    limit: u64,
    /// This agent instead of building one
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

impl Options {
    /// Everything at its default but the kernels.
    #[must_use]
    pub fn of(kernels: &[&str]) -> Self {
        Self {
            kernel: kernels.iter().map(|name| (*name).to_owned()).collect(),
            accel: Accel::default(),
            test: String::new(),
            boot_limit: 120,
            test_limit: 300,
            limit: 900,
            agent: None,
        }
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("FILTER", self.test.clone()),
            ("SLOWDOWN", self.accel.slowdown().to_string()),
            ("TEST_LIMIT", self.test_limit.to_string()),
        ]
    }

    fn limits(&self) -> Limits {
        let boot = Duration::from_secs(self.boot_limit);
        Limits { boot, total: boot + Duration::from_secs(self.limit) }
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
    let verdicts = matrix(steps, workspace, &agent, options)?;
    steps.print_table();
    print!("{}", verdict::table(&verdicts));
    let all_passed = verdicts.iter().all(Verdict::passed);
    Ok(if all_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the tests with `agent` on every kernel that `options` names.
///
/// # Errors
///
/// When the tests do not build, or something cannot be fetched or started; what happens in a guest is its verdict.
pub fn matrix(
    steps: &mut Steps,
    workspace: &Workspace,
    agent: &Path,
    options: &Options,
) -> Result<Vec<Verdict>> {
    ensure!(std::env::consts::ARCH == "x86_64", "the guests are x86_64, and run programs built here");
    let dir = workspace.target().join("vm");
    let cache = dir.join("apt");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let _lock = crate::debian::lock(&dir)?;
    let tests = steps
        .step("build tests", "the node tests, to run inside of the guests", || build_tests(workspace))?;
    let (qemu, kernels) = steps.step("kernels", "fetches kernels, and QEMU where it is missing", || {
        let kernels = fetch(&cache, &dir, &options.kernel)?;
        let qemu = Qemu::find(&cache, &dir, options.accel)?;
        println!("    {qemu}");
        Ok((qemu, kernels))
    })?;
    let disk = steps.step("disk", "agent, tests and runtimes on a file system for the guests", || {
        let actor = tamper::actor(&dir)?;
        let files = [(agent, "userns-agent"), (&tests[0], "node"), (&tests[1], "guest"), (&actor, "actor")];
        let content = image::Content { files: &files, packages: &[], settings: options.settings() };
        image::make(&cache, &dir, &content, &kernels)
    })?;
    let machine = Machine { qemu, disk, dir };
    if options.accel == Accel::Kvm {
        steps.step("trial", "KVM may be there and not work", || machine.trial(&kernels))?;
    }
    kernels
        .iter()
        .map(|(kernel, files)| {
            let why = format!("the node tests on {}", kernel.release);
            steps.step(&format!("vm {}", kernel.line), &why, || machine.test(kernel, files, options.limits()))
        })
        .collect()
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
        let (watch, end, traces) = self.run(kernel, files, "tests", limits, show_line)?;
        let verdict = Verdict::new(kernel.line, watch, end);
        println!("    {verdict}");
        if !verdict.outcome.is_told_by_tests() {
            println!(
                "    the end of {}:\n{}",
                traces.console.display(),
                guest::tail(&traces.console, CONSOLE_TAIL)
            );
        }
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

fn show_line(line: &str) {
    if !line.is_empty() {
        println!("    {line}");
    }
}

fn fetch(cache: &Path, dir: &Path, wanted: &[String]) -> Result<Vec<(Kernel, KernelFiles)>> {
    let place = dir.join("kernels");
    fs::create_dir_all(&place).with_context(|| format!("cannot create {}", place.display()))?;
    let mut kernels = Vec::new();
    for kernel in kernels::find(cache, wanted)? {
        let mut files = kernel.files(cache, &place)?;
        files.modules.push(tamper::module(cache, dir, &kernel, &files)?);
        kernels.push((kernel, files));
    }
    Ok(kernels)
}

fn build_tests(workspace: &Workspace) -> Result<[PathBuf; 2]> {
    let mut cargo = workspace.cargo("test");
    cargo.args(["--package", "xtask", "--no-run", "--message-format=json-render-diagnostics"]);
    for name in TESTS {
        cargo.args(["--test", name]);
    }
    let messages = process::stdout(cargo.stderr(Stdio::inherit()))?;
    let [node, guest] =
        TESTS.map(|name| executable(&messages, name).with_context(|| format!("cargo built no test {name}")));
    Ok([node?, guest?])
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
}
