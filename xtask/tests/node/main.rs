//! The real agent on the running kernel, with real containers: what it says, and what it does not.
//!
//! Needs root and an agent with its eBPF programs: `cargo xtask test` sets `USERNS_NODE_TESTS` and
//! `USERNS_AGENT_BIN`. Without them every test here says that it was skipped.
#![expect(clippy::print_stdout, reason = "skips and figures are for who runs the tests")]

mod cell;
mod cli;
mod containerd;
mod core;
mod cost;
mod day;
mod flood;
mod foreign;
mod hiding;
mod leftovers;
mod noise;
mod outage;
mod recording;
mod restart;
mod rounds;
mod setting;
mod simulate;

use prometheus_parse::Sample;
use setting::{DEFAULT, Node, agent, losses, mechanism, samples, slowdown, told, value, work_dir};

/// The sum of a metric's samples with these labels; 0 if there are none.
fn metric(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let has = |sample: &Sample| labels.iter().all(|(key, value)| sample.labels.get(key) == Some(value));
    let samples = samples(text);
    samples.iter().filter(|sample| sample.metric == name && has(sample)).map(value).sum()
}

#[test]
fn metrics_are_read_by_name_and_label() {
    let text =
        "# HELP a b\na{x=\"1\",y=\"2\"} 3\na{x=\"2\"} 4\nab 9\nuserns_sink_errors_total{sink=\"file\"} 1\n";
    assert!((metric(text, "a", &[("x", "1")]) - 3.0).abs() < f64::EPSILON);
    assert!((metric(text, "a", &[]) - 7.0).abs() < f64::EPSILON);
    assert_eq!(losses(text).len(), 1);
}
