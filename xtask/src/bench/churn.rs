//! Pods that come and go without a pause on a node with many.

use std::{
    fmt::Write as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{herd::Herd, node::Node, scrape::Scrape, usage};
use crate::lab::Agent;

/// What is to come and go.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Pods at any time.
    pub pods: usize,
    /// Pods started each second; as many end.
    pub rate: u32,
    /// For how long.
    pub time: Duration,
}

/// What was measured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Churn {
    /// Pods at any time.
    pub pods: usize,
    /// Pods started.
    pub started: u32,
    /// Seconds that took.
    pub seconds: f64,
    /// Seconds of the agent's CPU time.
    pub cpu: f64,
    /// MiB resident after a quarter of the time, and at the end.
    pub resident: [f64; 2],
    /// Everything that counts as a loss.
    pub lost: f64,
    /// Findings, of which there should be none.
    pub findings: usize,
}

impl Churn {
    /// The agent's CPU time in percent of one processor.
    #[must_use]
    pub fn cpu_percent(&self) -> f64 {
        100.0 * self.cpu / self.seconds
    }
}

/// Runs `plan` in a lab of its own in `place`.
///
/// # Errors
///
/// When the lab, a pod or the agent cannot be had.
pub fn run(place: &Path, cache: &Path, agent: &Path, bench: &Path, plan: Plan) -> Result<Churn> {
    measure(&Node::new(place, cache, agent, bench)?, plan)
}

/// Runs `plan` on `node`.
///
/// # Errors
///
/// When a pod or the agent cannot be had.
pub(super) fn measure(node: &Node, plan: Plan) -> Result<Churn> {
    let mut herd = Herd::default();
    herd.pods(node, plan.pods)?;
    // it is what brings processes into pods here
    let runtime = node.bench().to_string_lossy();
    let agent = node.agent(&["--runtime-paths", &runtime])?;
    let before = Scrape::settled(&agent)?;
    let cpu = usage::cpu_time(agent.pid())?;
    let (start, mut started, mut resident) = (Instant::now(), 0, None);
    while start.elapsed() < plan.time {
        let due = Duration::from_secs(1) * started / plan.rate;
        thread::sleep(due.saturating_sub(start.elapsed()));
        herd.replace_oldest(node)?;
        started += 1;
        if resident.is_none() && start.elapsed() > plan.time / 4 {
            resident = Some(usage::resident(agent.pid())?);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let cpu = usage::cpu_time(agent.pid())?.saturating_sub(cpu).as_secs_f64();
    let after = usage::resident(agent.pid())?;
    let lost = Scrape::settled(&agent)?.since(&before).lost;
    let known = watched(&agent)?;
    ensure!(known == plan.pods, "the agent knows {known} live containers of {} pods", plan.pods);
    let findings = agent.lines().iter().filter(|line| line.is_event("finding")).count();
    agent.stop()?;
    let resident = [resident.unwrap_or(after), after];
    Ok(Churn { pods: plan.pods, started, seconds, cpu, resident, lost, findings })
}

fn watched(agent: &Agent) -> Result<usize> {
    Ok(Scrape::settled(agent)?.sum("userns_containers", "").round() as usize)
}

/// A row.
pub(super) fn table(churn: &Churn) -> String {
    let mut text = "| pods at any time | started | in | starts/s | agent's CPU time | of one processor | resident after a quarter | at \
                    the end | lost | findings |\n\
                    | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        .to_owned();
    let Churn { pods, started, seconds, cpu, resident: [early, late], lost, findings } = churn;
    let _ = writeln!(
        text,
        "| {pods} | {started} | {seconds:.1} s | {:.1} | {cpu:.2} s | {:.1} % | {early:.1} MiB | {late:.1} MiB | {lost} | {findings} |",
        f64::from(*started) / seconds,
        churn.cpu_percent()
    );
    text
}
