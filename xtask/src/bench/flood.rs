//! A pod that tries to drown the agent: a million denied attempts.

use std::{fmt::Write as _, time::Instant};

use anyhow::Result;

use super::{
    delays::{self, Delays},
    node::{BusyPod, Node},
    operation::Operation,
    scrape::{Counts, Scrape},
    usage::{self, Peak},
};

/// Attempts of each kind.
const ATTEMPTS: u32 = 500_000;
const KINDS: [Operation; 2] = [Operation::HostCheck, Operation::DeniedUnshare];

/// What became of a flood.
#[derive(Debug, Clone, Default)]
pub(super) struct Flood {
    /// Seconds that the attempts took without the agent, and with it.
    without: f64,
    with: f64,
    /// CPU seconds of the agent meanwhile.
    agent: f64,
    /// MiB resident before, and at most meanwhile.
    resident: (f64, f64),
    counts: Counts,
    /// Of findings about another pod, while the attempts go on.
    pub(super) others: Vec<Delays>,
}

/// The flood without the agent, with it, and then without end while something happens in another pod.
///
/// # Errors
///
/// When containers or the agent do not run, or the other pod's finding does not come.
pub(super) fn measure(node: &Node) -> Result<Flood> {
    let (pod, range) = node.watched_pod()?;
    let mut worker = node.pod_worker(&pod, range)?;
    let mut attempts = || {
        let start = Instant::now();
        KINDS.into_iter().try_for_each(|kind| worker.repeat(kind, ATTEMPTS).map(drop))?;
        Ok::<_, anyhow::Error>(start.elapsed().as_secs_f64())
    };
    let without = attempts()?;
    let agent = node.agent(&[])?;
    let before = Scrape::settled(&agent)?;
    let (cpu, resident) = (usage::cpu_time(agent.pid())?, usage::resident(agent.pid())?);
    let peak = Peak::of(agent.pid());
    let with = attempts()?;
    let cpu = usage::cpu_time(agent.pid())?.saturating_sub(cpu);
    let peak = peak.end()?;
    let counts = Scrape::settled(&agent)?.since(&before);
    let endless = BusyPod::start(node, &KINDS)?;
    let others = delays::measure(node, &agent, delays::FLOOD, delays::SAMPLES)?;
    drop(endless);
    agent.stop()?;
    Ok(Flood { without, with, agent: cpu.as_secs_f64(), resident: (resident, peak), counts, others })
}

/// The figures, one a row.
pub(super) fn table(flood: &Flood) -> String {
    let mut text = "| a million denied attempts by one pod | |\n| --- | ---: |\n".to_owned();
    let Flood { without, with, agent, resident, counts, .. } = flood;
    for (what, figure) in [
        ("without the agent", format!("{without:.2} s")),
        ("with it", format!("{with:.2} s")),
        ("the agent's CPU time meanwhile", format!("{:.0} ms", agent * 1e3)),
        ("its resident memory before, and at most", format!("{:.1} MiB, {:.1} MiB", resident.0, resident.1)),
        ("records sent", format!("{}", counts.records)),
        ("records held back by the programs", format!("{}", counts.held_back)),
        ("records lost", format!("{}", counts.lost)),
        ("detections folded into an open finding", format!("{}", counts.suppressed)),
    ] {
        let _ = writeln!(text, "| {what} | {figure} |");
    }
    text
}
