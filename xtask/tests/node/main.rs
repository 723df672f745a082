//! The real agent on the running kernel, with real containers: what it says, and what it does not.
//!
//! Needs root and an agent with its eBPF programs: `cargo xtask test` sets `USERNS_NODE_TESTS` and
//! `USERNS_AGENT_BIN`. Without them every test here says that it was skipped.
#![expect(clippy::print_stdout, reason = "skips and figures are for who runs the tests")]

mod cli;
mod cost;
mod day;
mod rounds;

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::{Agent, Lab};

/// What a test works with. One at a time: agents would see each other's containers.
struct Node {
    lab: Lab,
    bin: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Node {
    /// `None`, with a loud word, where the node tests are not to run.
    fn new(test: &str) -> Result<Option<Self>> {
        static TURN: Mutex<()> = Mutex::new(());
        let Some(bin) = agent(test)? else { return Ok(None) };
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let lab = Lab::new(Lab::provision(&tmp.join("cache"))?, &tmp.join("node"))?;
        Ok(Some(Self { lab, bin, _turn: turn }))
    }

    fn agent(&self, arguments: &[&str]) -> Result<Agent> {
        Agent::start(&self.bin, &self.lab, arguments)
    }
}

/// The agent under test; `None`, with a loud word, where there is none.
fn agent(test: &str) -> Result<Option<PathBuf>> {
    if std::env::var_os("USERNS_NODE_TESTS").is_none() {
        println!("SKIPPED: {test}: USERNS_NODE_TESTS is not set; `cargo xtask test` runs it");
        return Ok(None);
    }
    let bin = std::env::var_os("USERNS_AGENT_BIN").context("USERNS_AGENT_BIN is not set: which agent?")?;
    let bin = PathBuf::from(bin);
    ensure!(bin.is_file(), "{} is no file", bin.display());
    Ok(Some(bin))
}

/// The value of a metric with these labels, in any order; 0 if it is not there.
fn metric(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let wanted: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
    let matching = text.lines().filter(|line| {
        let head = line.split([' ', '{']).next().unwrap_or_default();
        head == name && wanted.iter().all(|label| line.contains(label.as_str()))
    });
    matching.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Everything the agent counts as lost, by metric line; empty if nothing was.
fn losses(metrics: &str) -> Vec<String> {
    // a lineage that could not be allocated is no loss by itself: the next sweep makes up for it
    const LOSSES: [&str; 8] = [
        "evidence_ring_full",
        "bulk_ring_full",
        "cgroup_table_full",
        "aggregate_table_full",
        "kernel_read",
        "userns_decode_errors_total",
        "userns_sink_dropped_total",
        "userns_sink_errors_total",
    ];
    let lost = |line: &&str| {
        !line.starts_with('#') && LOSSES.iter().any(|name| line.contains(name)) && !line.ends_with(" 0")
    };
    metrics.lines().filter(lost).map(str::to_owned).collect()
}

#[test]
fn metrics_are_read_by_name_and_label() {
    let text =
        "# HELP a b\na{x=\"1\",y=\"2\"} 3\na{x=\"2\"} 4\nab 9\nuserns_sink_errors_total{sink=\"file\"} 1\n";
    assert!((metric(text, "a", &[("x", "1")]) - 3.0).abs() < f64::EPSILON);
    assert!((metric(text, "a", &[]) - 7.0).abs() < f64::EPSILON);
    assert_eq!(losses(text).len(), 1);
}
