//! `cargo xtask fuzz`: libFuzzer on a stable compiler.
//!
//! The directory `fuzz/` has the layout of cargo-fuzz and works with it; cargo-fuzz itself, which wants a
//! nightly compiler for its sanitizers, is not needed: safe Rust is fuzzed for panics and hangs, not for memory
//! errors.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;

use crate::{process, setup::rustc::Rustc, steps::Steps, workspace::Workspace};

/// The flags cargo-fuzz passes when told to use no sanitizer.
const FLAGS: [&str; 10] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "--cfg=fuzzing",
    "-Clink-dead-code",
    "-Cdebug-assertions",
    "-Ccodegen-units=1",
];

/// Runs per target unless told otherwise, and the time they may take.
const RUNS: u64 = 200_000;
const SECONDS: u64 = 60;

/// How long, and what.
#[derive(Debug, Default, Args)]
pub struct Options {
    /// Stop each target after this time, however many runs it made
    #[arg(long, conflicts_with = "runs")]
    seconds: Option<u64>,
    /// Stop each target after this many runs, however long it takes
    #[arg(long)]
    runs: Option<u64>,
    /// Seed of the random generator; libFuzzer prints the one it chose
    #[arg(long)]
    seed: Option<u32>,
    /// Only this target
    target: Option<String>,
}

impl Options {
    /// A short run that gives the same result every time.
    #[must_use]
    pub fn brief() -> Self {
        Self { seed: Some(1), ..Self::default() }
    }

    /// Number of runs and seconds, -1 and 0 being libFuzzer's "unlimited".
    fn limits(&self) -> (i64, u64) {
        match (self.runs, self.seconds) {
            (None, None) => (RUNS.cast_signed(), SECONDS),
            (runs, seconds) => (runs.map_or(-1, u64::cast_signed), seconds.unwrap_or(0)),
        }
    }
}

/// Builds and runs the fuzz targets.
///
/// # Errors
///
/// When a target does not build, crashes, hangs or is not instrumented.
pub fn fuzz(steps: &mut Steps, workspace: &Workspace, options: &Options) -> Result<()> {
    let targets = select(workspace, options.target.as_deref())?;
    let rustc = Rustc::detect()?;
    steps.step("build fuzz targets", "with coverage instrumentation, which steers the fuzzer", || {
        process::run(&mut build_command(workspace, &rustc, &targets))
    })?;
    for target in &targets {
        steps.step(&format!("fuzz {target}"), "no input may panic or hang the code", || {
            fuzz_target(workspace, &rustc, target, options)
        })?;
    }
    Ok(())
}

fn select(workspace: &Workspace, only: Option<&str>) -> Result<Vec<String>> {
    let manifest = workspace.root().join("fuzz/Cargo.toml");
    let text =
        fs::read_to_string(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
    let targets = bin_names(&text).with_context(|| format!("cannot understand {}", manifest.display()))?;
    match only {
        None if targets.is_empty() => bail!("{} has no [[bin]]", manifest.display()),
        None => Ok(targets),
        Some(name) if targets.iter().any(|target| target == name) => Ok(vec![name.to_owned()]),
        Some(name) => bail!("there is no fuzz target {name}; there are: {}", targets.join(", ")),
    }
}

fn bin_names(manifest: &str) -> Result<Vec<String>> {
    let manifest: toml::Table = manifest.parse()?;
    let Some(bins) = manifest.get("bin") else { return Ok(Vec::new()) };
    let bins = bins.as_array().context("`bin` is no array")?;
    bins.iter()
        .map(|bin| {
            Ok(bin.get("name").and_then(toml::Value::as_str).context("a [[bin]] has no name")?.to_owned())
        })
        .collect()
}

fn target_dir(workspace: &Workspace) -> PathBuf {
    workspace.target().join("fuzz")
}

fn build_command(workspace: &Workspace, rustc: &Rustc, targets: &[String]) -> Command {
    let mut cargo = workspace.cargo("build");
    cargo.args(["--release", "--manifest-path", "fuzz/Cargo.toml"]);
    // Naming a target, even the host's, keeps these flags away from build scripts and macros.
    cargo.args(["--target", &rustc.host]).arg("--target-dir").arg(target_dir(workspace));
    for target in targets {
        cargo.args(["--bin", target]);
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    cargo
}

fn fuzz_target(workspace: &Workspace, rustc: &Rustc, target: &str, options: &Options) -> Result<()> {
    let (runs, seconds) = options.limits();
    let scratch = target_dir(workspace).join(format!("corpus-{target}"));
    copy_corpus(&workspace.root().join("fuzz/corpus").join(target), &scratch)?;
    let artifacts = workspace.root().join("fuzz/artifacts").join(target);
    fs::create_dir_all(&artifacts).with_context(|| format!("cannot create {}", artifacts.display()))?;
    let executable = target_dir(workspace).join(&rustc.host).join("release").join(target);
    let mut command = Command::new(&executable);
    command.args([format!("-runs={runs}"), format!("-max_total_time={seconds}")]);
    command.args(["-timeout=5", "-rss_limit_mb=2048", "-use_value_profile=1"]);
    command.args(options.seed.map(|seed| format!("-seed={seed}")));
    command.arg(format!("-artifact_prefix={}/", artifacts.display())).arg(&scratch);
    let mut report = Report::default();
    let status = process::lines(&mut command, |line| {
        report.read(line);
        if worth_showing(line) {
            println!("    {line}");
        }
    })?;
    if !status.success() {
        bail!("{target} failed ({status}): replay with {} <the file named above>", executable.display());
    }
    let (Some(made), Some((first, last))) = (report.runs, report.coverage) else {
        bail!("{target} printed no summary: {report:?}");
    };
    let asked = if runs < 0 { String::new() } else { format!(" of {runs} asked for") };
    println!("    {target}: {made} runs{asked}, coverage {first} at first, {last} at last");
    if last == 0 { Err(anyhow!("{target} is not instrumented: coverage is 0")) } else { Ok(()) }
}

/// What libFuzzer's closing lines say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    runs: Option<u64>,
    /// The first and the last number of covered branches.
    coverage: Option<(u64, u64)>,
}

impl Report {
    fn read(&mut self, line: &str) {
        let number_after = |key: &str| {
            let mut words = line.split_whitespace().skip_while(|word| *word != key);
            words.nth(1)?.parse().ok()
        };
        if line.starts_with('#') {
            if let Some(now) = number_after("cov:") {
                self.coverage = Some((self.coverage.map_or(now, |(first, _)| first), now));
            }
        } else if line.starts_with("Done ") {
            self.runs = number_after("Done");
        }
    }
}

/// libFuzzer tells of every input and byte string it keeps: thousands of lines.
fn worth_showing(line: &str) -> bool {
    if line.starts_with("###") || line.contains("\" # Uses: ") {
        return false;
    }
    let kept = line.starts_with('#') && !["INITED", "pulse", "DONE"].iter().any(|event| line.contains(event));
    let expected = line.starts_with("WARNING: Failed to find function \"__sanitizer_");
    !kept && !expected && (!line.starts_with("INFO: ") || line.starts_with("INFO: Seed"))
}

fn copy_corpus(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    if !from.exists() {
        println!("    {} does not exist: starting from nothing", from.display());
        return Ok(());
    }
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let seed = entry.with_context(|| format!("cannot list {}", from.display()))?;
        fs::copy(seed.path(), to.join(seed.file_name()))
            .with_context(|| format!("cannot copy {}", seed.path().display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libfuzzer_reports_are_read() {
        let mut report = Report::default();
        report.read("#2\tINITED cov: 10 ft: 10 corp: 1/1b exec/s: 0 rss: 27Mb");
        report.read("INFO: Loaded 1 modules (493 inline 8-bit counters)");
        report.read("#200000\tDONE   cov: 13 ft: 13 corp: 4/13b lim: 1980 exec/s: 0 rss: 27Mb");
        report.read("Done 200000 runs in 3 second(s)");
        assert_eq!(report, Report { runs: Some(200_000), coverage: Some((10, 13)) });
    }

    #[test]
    fn targets_are_the_bins() {
        let manifest = "[package]\nname = \"f\"\n[[bin]]\nname = \"decode\"\n[[bin]]\nname = \"btf\"\n";
        assert_eq!(bin_names(manifest).expect("valid"), ["decode", "btf"]);
        assert!(bin_names("[package]\nname = \"f\"\n").expect("valid").is_empty());
        assert!(bin_names("[[bin]]\npath = \"x.rs\"\n").is_err());
    }

    #[test]
    fn limits_default_to_a_brief_run() {
        assert_eq!(Options::brief().limits(), (200_000, 60));
        assert_eq!(Options { seconds: Some(5), ..Options::default() }.limits(), (-1, 5));
        assert_eq!(Options { runs: Some(7), ..Options::default() }.limits(), (7, 0));
    }
}
