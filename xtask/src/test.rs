//! `cargo xtask test`: every check of the repository, from formatting to real containers.
//!
//! Stops at the first failure. The last line is the total, `N passed, N failed`, possibly with `, N skipped`.

use std::{
    env, fs,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    bench, build, fuzz, process, run,
    setup::{self, Purpose},
    steps::Steps,
    vm::{self, TestResult},
    workspace::{EBPF_OBJECT, Profile, Workspace},
};

mod cross;
pub mod tally;

use tally::Tally;

/// The one integration test of this package that starts no containers.
const TIDY: &str = "tidy";
/// The one that needs kernels that may be tampered with.
const GUEST: &str = "guest";
/// Tells tests that need root and the running kernel: `1`, to run; `later`, that they are run elsewhere.
const NODE_TESTS: &str = "USERNS_NODE_TESTS";

/// Runs the checks; `quick` leaves out what needs root or BPF tools.
///
/// # Errors
///
/// Never: a failure is printed before the total and told by the exit code.
pub fn test(steps: &mut Steps, workspace: &Workspace, quick: bool) -> Result<ExitCode> {
    let mut tally = Tally::default();
    let checks = if quick {
        quick_checks(steps, workspace, &mut tally)
    } else {
        all_checks(steps, workspace, &mut tally)
    };
    if let Err(error) = checks {
        println!("\nerror: {error:#}");
        if tally.failed() == 0 {
            tally.add_failure();
        }
    }
    steps.print_table();
    println!("\n{tally}");
    Ok(if tally.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn quick_checks(steps: &mut Steps, workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    if in_ci() {
        bail!("CI is set: no check may be left out there, so no --quick");
    }
    source_checks(steps, workspace, tally)?;
    for step in ["aarch64", "build-ebpf", "build agent", "fuzz", "node tests", "virtual machines"] {
        steps.skip(step, "--quick");
    }
    tally.add_skipped();
    Ok(())
}

fn all_checks(steps: &mut Steps, workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    let toolchain = setup::setup(steps, workspace, Purpose::Test)?;
    source_checks(steps, workspace, tally)?;
    cross::check(steps, workspace, &toolchain)?;
    let object = build::ebpf(steps, workspace, &toolchain, Profile::Release)?;
    let agent = build::agent(steps, workspace, &object, Profile::Release)?;
    fuzz::fuzz(steps, workspace, &fuzz::Options::brief())?;
    node_tests(steps, workspace, &object, &agent, tally)?;
    virtual_machines(steps, workspace, &agent, tally)
}

/// The tests of a node on every other kernel; no root is needed for that.
fn virtual_machines(steps: &mut Steps, workspace: &Workspace, agent: &Path, tally: &mut Tally) -> Result<()> {
    let report = vm::matrix(steps, workspace, agent, &vm::Options::default())?;
    report.print();
    let count = |results: &[TestResult]| -> u64 {
        report.verdicts.iter().map(|verdict| verdict.count(results) as u64).sum()
    };
    let failed = count(&[TestResult::Failed, TestResult::TimedOut, TestResult::Cut]);
    let (passed, skipped) = (count(&[TestResult::Passed]), count(&[TestResult::Skipped]));
    tally.add_counts(passed, failed, skipped);
    if !report.passed() {
        bail!(
            "not every kernel passed: the table above tells which; docs/kernels.md says how to run one again"
        );
    }
    if in_ci() && skipped > 0 {
        bail!("CI is set, and {skipped} tests in virtual machines were skipped");
    }
    Ok(())
}

/// What needs a stock toolchain only: the agent is compiled around an empty object.
fn source_checks(steps: &mut Steps, workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    steps.step("fmt", "one layout for all code", || {
        process::run(workspace.cargo("fmt").args(["--all", "--check"])).context("run `cargo fmt --all`")?;
        let fuzz = ["--manifest-path", "fuzz/Cargo.toml"];
        process::run(workspace.cargo("fmt").args(fuzz).arg("--check"))
            .context("run `cargo fmt --manifest-path fuzz/Cargo.toml`")
    })?;
    steps.step("clippy", "the lints of the workspace, warnings being errors", || {
        let flags = ["--workspace", "--all-targets", "--", "--deny", "warnings"];
        process::run(workspace.cargo("clippy").args(flags))
    })?;
    steps.step("doc", "links in the documentation lead somewhere", || {
        let mut cargo = workspace.cargo("doc");
        process::run(cargo.args(["--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "--deny warnings"))
    })?;
    steps.step("cargo test", "unit and scenario tests of the crates", || {
        let mut cargo = workspace.cargo("test");
        // the tests on the running kernel have a step of their own
        cargo.env(NODE_TESTS, "later");
        count_tests(cargo.args(["--workspace", "--exclude", "xtask", "--", "--show-output"]), tally)
    })?;
    steps.step("cargo test xtask", "the repository's own rules, and this tool", || {
        let mut cargo = workspace.cargo("test");
        cargo.args(["--package", "xtask", "--lib", "--bins", "--test", TIDY, "--", "--show-output"]);
        count_tests(&mut cargo, tally)
    })?;
    let deny = process::stdout(workspace.cargo("deny").arg("--version"));
    if deny.is_err() {
        steps.skip("cargo deny", "cargo-deny is not installed");
        return Ok(());
    }
    steps.step("cargo deny", "licences and advisories of the dependencies", || {
        process::run(workspace.cargo("deny").arg("check"))
    })
}

fn node_tests(
    steps: &mut Steps,
    workspace: &Workspace,
    object: &Path,
    agent: &Path,
    tally: &mut Tally,
) -> Result<()> {
    if !run::is_root()? {
        if in_ci() {
            bail!("CI is set, and the node tests cannot run without root");
        }
        steps.skip("node tests", "they need root");
        tally.add_skipped();
        return Ok(());
    }
    let mut node = Tally::default();
    let result = steps.step("kernel tests", "the programs' own checks on this kernel", || {
        let mut cargo = workspace.cargo("test");
        cargo.args(["--package", "userns-agent", "--test", "kernel", "--", "--nocapture"]);
        cargo.env(EBPF_OBJECT, object).env(NODE_TESTS, "1");
        count_tests(&mut cargo, &mut node)
    });
    let result = result.and_then(|()| container_tests(steps, workspace, agent, &mut node));
    tally.add(node);
    result?;
    if in_ci() && (node.passed() == 0 || node.skipped() > 0) {
        bail!("CI is set, and not every test on the running kernel ran: {node}");
    }
    Ok(())
}

fn container_tests(steps: &mut Steps, workspace: &Workspace, agent: &Path, node: &mut Tally) -> Result<()> {
    let inside = bench::build_inside(steps, workspace)?;
    steps.step("node tests", "the agent against real containers on this kernel", || {
        let mut cargo = workspace.cargo("test");
        cargo.args(["--package", "xtask"]);
        for name in node_test_names(workspace)? {
            cargo.args(["--test", &name]);
        }
        cargo.args(["--", "--test-threads=1", "--nocapture"]);
        cargo.env("USERNS_AGENT_BIN", agent).env("USERNS_BENCH_BIN", &inside).env(NODE_TESTS, "1");
        count_tests(&mut cargo, node)
    })
}

fn node_test_names(workspace: &Workspace) -> Result<Vec<String>> {
    let dir = workspace.root().join("xtask/tests");
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").exists() {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.retain(|name| name != TIDY && name != GUEST);
    names.sort();
    Ok(names)
}

fn count_tests(cargo: &mut Command, tally: &mut Tally) -> Result<()> {
    let status = process::lines(cargo, |line| {
        println!("{line}");
        tally.read(line);
    })?;
    if !status.success() {
        bail!("{} failed: {status}", process::line(cargo));
    }
    Ok(())
}

fn in_ci() -> bool {
    env::var("CI").is_ok_and(|value| value == "true")
}
