//! Programs started as fast as a container can, and what the agent says of them.

use std::{fmt::Write as _, time::Instant};

use anyhow::Result;

use super::{
    node::Node,
    operation::Operation,
    scrape::{Counts, Scrape},
    stats::Spread,
    usage,
    worker::Worker,
};
use crate::lab::Agent;

/// How many containers start programs at once.
const PARALLEL: [usize; 3] = [1, 2, 4];
const ROUNDS: usize = 5;
/// Programs in a round, over all containers.
const PROGRAMS: u32 = 800;

/// A storm from so many containers at once.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Storm {
    parallel: usize,
    /// Programs started each second.
    without: Spread,
    with: Spread,
    /// Records each second.
    records: Spread,
    /// In all rounds.
    held_back: f64,
    lost: f64,
    /// CPU time of the agent for each program started, in microseconds.
    agent: f64,
}

/// Each number of containers, without the agent and with it.
///
/// # Errors
///
/// When containers or the agent do not run.
pub(super) fn measure(node: &Node) -> Result<Vec<Storm>> {
    PARALLEL.into_iter().map(|parallel| one(node, parallel)).collect()
}

fn one(node: &Node, parallel: usize) -> Result<Storm> {
    let (pod, range) = node.watched_pod()?;
    let mut workers = (0..parallel).map(|_| node.pod_worker(&pod, range)).collect::<Result<Vec<_>>>()?;
    let without = rounds(&mut workers)?;
    let agent = node.agent(&[])?;
    let before = Scrape::settled(&agent)?;
    let cpu = usage::cpu_time(agent.pid())?;
    let with = rounds(&mut workers)?;
    let cpu = usage::cpu_time(agent.pid())?.saturating_sub(cpu);
    let Counts { records, held_back, lost, .. } = Scrape::settled(&agent)?.since(&before);
    stop(agent)?;
    let programs = f64::from(PROGRAMS) * to_f64(ROUNDS);
    let rate = |each: f64| with.iter().map(|rate| rate * each).collect::<Vec<_>>();
    Ok(Storm {
        parallel,
        without: Spread::of(&without),
        with: Spread::of(&with),
        records: Spread::of(&rate(records / programs)),
        held_back,
        lost,
        agent: cpu.as_secs_f64() * 1e6 / programs,
    })
}

/// Programs each second, of every round.
fn rounds(workers: &mut [Worker]) -> Result<Vec<f64>> {
    let share = PROGRAMS / u32::try_from(workers.len()).unwrap_or(1);
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        workers.iter_mut().try_for_each(|worker| worker.begin(Operation::Exec, share))?;
        workers.iter_mut().try_for_each(|worker| worker.finish().map(drop))?;
        rates.push(f64::from(share) * to_f64(workers.len()) / start.elapsed().as_secs_f64());
    }
    Ok(rates)
}

fn to_f64(number: usize) -> f64 {
    number as f64
}

fn stop(agent: Agent) -> Result<()> {
    agent.stop().map(drop)
}

/// A row for each number of containers.
pub(super) fn table(storms: &[Storm]) -> String {
    let mut text = "| containers at once | programs/s without the agent | with it | records/s | held back | lost | agent's CPU \
                    time per program |\n| ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        .to_owned();
    for Storm { parallel, without, with, records, held_back, lost, agent } in storms {
        let _ = writeln!(
            text,
            "| {parallel} | {without} | {with} | {records} | {held_back} | {lost} | {agent:.0} µs |"
        );
    }
    text
}
