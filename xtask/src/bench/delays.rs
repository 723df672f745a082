//! From the act to the JSON line.

use std::{
    fmt::Write as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    node::{BusyPod, Node},
    operation::Operation,
    stats::quantile,
};
use crate::lab::{Agent, ContainerSpec, Line};

/// Of each act.
pub(super) const SAMPLES: u32 = 100;
pub(super) const MOVED: &str = "a host process moved into a container";
const IGNORED: &str = "a container started without its user namespace";
/// What else goes on.
const IDLE: &str = "nothing";
const BUSY: &str = "programs started and capabilities asked for without pause";
pub(super) const FLOOD: &str = "a flood of denied attempts by another pod";
const PATIENCE: Duration = Duration::from_secs(20);

/// How long the act took by itself, and until the line was here.
type Sample = (Duration, Duration);

/// Milliseconds from act to line.
#[derive(Debug, Clone, Default)]
pub(super) struct Delays {
    pub(super) act: &'static str,
    load: &'static str,
    pub(super) milliseconds: Vec<f64>,
    /// Of these, until the act itself was done.
    acting: Vec<f64>,
}

impl Delays {
    /// What else went on, in a word or two.
    pub(super) fn briefly(&self) -> &'static str {
        match self.load {
            IDLE => "idle",
            BUSY => "busy",
            FLOOD => "flood",
            other => other,
        }
    }

    fn new(act: &'static str, load: &'static str, samples: Vec<Sample>) -> Self {
        let milliseconds = |time: &Duration| time.as_secs_f64() * 1e3;
        let (acting, all): (Vec<_>, Vec<_>) =
            samples.iter().map(|(acting, all)| (milliseconds(acting), milliseconds(all))).unzip();
        Self { act, load, milliseconds: all, acting }
    }
}

/// Both acts on a node that does nothing else, then on one that is busy.
///
/// # Errors
///
/// When a finding does not come.
pub(super) fn both(node: &Node) -> Result<Vec<Delays>> {
    let agent = node.agent(&[])?;
    let mut delays = measure(node, &agent, IDLE, SAMPLES)?;
    let busy = BusyPod::start(node, &[Operation::Exec, Operation::Exec, Operation::OwnCheck])?;
    delays.extend(measure(node, &agent, BUSY, SAMPLES)?);
    drop(busy);
    agent.stop()?;
    Ok(delays)
}

/// Both acts, `samples` times each. `load` says what else goes on.
///
/// # Errors
///
/// When a finding does not come.
pub(super) fn measure(node: &Node, agent: &Agent, load: &'static str, samples: u32) -> Result<Vec<Delays>> {
    Ok(vec![
        Delays::new(MOVED, load, moved(node, agent, samples)?),
        Delays::new(IGNORED, load, ignored(node, agent, samples)?),
    ])
}

/// The act is a single write by this process; what is measured is the agent, and who gets the processor.
fn moved(node: &Node, agent: &Agent, samples: u32) -> Result<Vec<Sample>> {
    let (pod, range) = node.watched_pod()?;
    let container = pod.run(ContainerSpec { mapping: Some(range.mapping()), ..Node::container() })?;
    repeat(samples, || {
        let process = node.lab.host_process()?;
        let pid = u64::from(process.pid());
        let act = Instant::now();
        node.lab.move_into_cgroup(process.pid(), &container)?;
        let acted = act.elapsed();
        let is_it = |line: &Line| {
            is_opened(line, "I2")
                && line.json.pointer("/process/pid").and_then(serde_json::Value::as_u64) == Some(pid)
        };
        let line = agent.wait_for(is_it, PATIENCE)?;
        Ok((acted, line.at.saturating_duration_since(act)))
    })
}

/// The act begins with the call of the runtime, whose own work is in the figure.
fn ignored(node: &Node, agent: &Agent, samples: u32) -> Result<Vec<Sample>> {
    repeat(samples, || {
        let (pod, _) = node.watched_pod()?;
        let container = pod.container(Node::container())?;
        container.create()?;
        let act = Instant::now();
        container.start()?;
        let acted = act.elapsed();
        let is_it = |line: &Line| is_opened(line, "I3") && line.text("/pod/uid") == Some(pod.uid());
        let line = agent.wait_for(is_it, PATIENCE).context("no finding of rule I3")?;
        Ok((acted, line.at.saturating_duration_since(act)))
    })
}

fn repeat(samples: u32, mut act: impl FnMut() -> Result<Sample>) -> Result<Vec<Sample>> {
    let mut delays = Vec::new();
    for index in 0..samples {
        // not in step with the agent's own clock
        thread::sleep(Duration::from_millis(u64::from(index * 7 % 23)));
        delays.push(act()?);
    }
    Ok(delays)
}

fn is_opened(line: &Line, rule: &str) -> bool {
    line.is_event("finding")
        && line.text("/finding/rule/id") == Some(rule)
        && line.text("/finding/status") == Some("opened")
}

/// Quantiles of each act under each load.
pub(super) fn table(delays: &[Delays]) -> String {
    let mut text = "| act | meanwhile | samples | p50 | p90 | p99 | most | the act itself, p50 and p99 |\n\
                    | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        .to_owned();
    for Delays { act, load, milliseconds, acting } in delays {
        let of = |share| quantile(milliseconds, share);
        let _ = writeln!(
            text,
            "| {act} | {load} | {} | {:.1} ms | {:.1} ms | {:.1} ms | {:.1} ms | {:.1} ms, {:.1} ms |",
            milliseconds.len(),
            of(0.5),
            of(0.9),
            of(0.99),
            of(1.0),
            quantile(acting, 0.5),
            quantile(acting, 0.99)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_finding_that_opens_ends_the_wait() {
        let line = |status: &str| Line {
            at: Instant::now(),
            json: json!({"event": "finding", "finding": {"status": status, "rule": {"id": "I2"}}}),
        };
        assert!(is_opened(&line("opened"), "I2"));
        assert!(!is_opened(&line("opened"), "I3") && !is_opened(&line("updated"), "I2"));
    }

    #[test]
    fn the_table_shows_quantiles() {
        let samples =
            (1..=60).map(|ms| (Duration::from_millis(ms) / 10, Duration::from_millis(ms))).collect();
        let table = table(&[Delays::new("an act", "nothing", samples)]);
        let row = "| an act | nothing | 60 | 30.0 ms | 54.0 ms | 60.0 ms | 60.0 ms | 3.0 ms, 6.0 ms |\n";
        assert!(table.ends_with(row), "{table}");
    }
}
