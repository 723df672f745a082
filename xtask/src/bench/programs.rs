//! What each eBPF program takes by the kernel's own statistics, under a mixed load.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};

use super::{
    empty::Mechanism,
    node::Node,
    operation::Operation,
    stats::Spread,
    usage::{self, ProgramUse},
};
use crate::lab::ContainerSpec;

const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(3);
const EMPTY: &str = "(a program that does nothing)";

/// One program.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Program {
    pub(super) name: String,
    pub(super) runs: f64,
    /// Nanoseconds of each run.
    pub(super) each: Spread,
    /// Instructions that the verifier went through.
    verified: f64,
}

/// Nanoseconds and runs of each program while pods and the host are busy.
///
/// # Errors
///
/// When the kernel keeps no statistics, or containers do not run.
pub(super) fn measure(node: &Node, empty: &std::path::Path) -> Result<Vec<Program>> {
    let agent = node.agent(&[])?;
    let attached = Mechanism::ALL.into_iter().find_map(|mechanism| mechanism.attach(empty).ok());
    let _statistics = enable_stats(Stats::RunTime).context("the kernel keeps no statistics of programs")?;
    let (pod, range) = node.watched_pod()?;
    let mut workers = Vec::new();
    for operation in [Operation::OwnCheck, Operation::Exec] {
        workers.push((node.host_worker()?, operation));
        workers.push((node.pod_worker(&pod, range)?, operation));
    }
    for (worker, operation) in &mut workers {
        worker.begin(*operation, u32::MAX)?;
    }
    let names = names(agent.pid())?;
    let mut rounds: BTreeMap<String, Vec<ProgramUse>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        let own = std::process::id();
        let before = [usage::programs(agent.pid())?, usage::programs(own)?];
        come_and_go(node)?;
        let after = [usage::programs(agent.pid())?, usage::programs(own)?];
        for (index, (before, after)) in before.iter().zip(&after).enumerate() {
            for run in difference(before, after) {
                let known = names.get(&run.id).map_or("?", String::as_str);
                let name = if index == 0 { known } else { EMPTY };
                rounds.entry(name.to_owned()).or_default().push(run);
            }
        }
    }
    drop(attached);
    Ok(rounds.into_iter().map(|(name, rounds)| Program::new(name, &rounds)).collect())
}

impl Program {
    fn new(name: String, rounds: &[ProgramUse]) -> Self {
        let each: Vec<f64> = rounds.iter().map(|round| round.nanoseconds / round.runs).collect();
        let verified = rounds.last().map_or(0.0, |round| round.verified);
        Self { name, runs: rounds.iter().map(|round| round.runs).sum(), each: Spread::of(&each), verified }
    }
}

/// Containers that are made and removed.
fn come_and_go(node: &Node) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < ROUND {
        let (pod, range) = node.watched_pod()?;
        let mapping = Some(range.mapping());
        let container = pod.run(ContainerSpec { mapping, ..Node::container() })?;
        container.exec(&["true"])?;
        drop(container);
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// By tracepoint where there is one, else as the kernel keeps them.
fn names(pid: u32) -> Result<BTreeMap<u32, String>> {
    let all = loaded_programs().flatten();
    let mut names: BTreeMap<u32, String> =
        all.map(|program| (program.id(), String::from_utf8_lossy(program.name()).into_owned())).collect();
    names.extend(usage::tracepoints(pid)?);
    Ok(names)
}

/// Programs that ran in between.
fn difference(before: &[ProgramUse], after: &[ProgramUse]) -> Vec<ProgramUse> {
    let run = |now: &ProgramUse| {
        let old = before.iter().find(|old| old.id == now.id)?;
        let (runs, nanoseconds) = (now.runs - old.runs, now.nanoseconds - old.nanoseconds);
        (runs > 0.0).then_some(ProgramUse { runs, nanoseconds, ..*now })
    };
    after.iter().filter_map(run).collect()
}

/// The programs, the dearest first.
pub(super) fn table(programs: &[Program]) -> String {
    let mut programs = programs.to_vec();
    programs.sort_by(|one, other| other.each.mean.total_cmp(&one.each.mean));
    let mut text =
        "| program | runs | ns per run | instructions verified at load |\n| --- | ---: | ---: | ---: |\n"
            .to_owned();
    for Program { name, runs, each, verified } in programs {
        let name = if name == EMPTY { name } else { format!("`{name}`") };
        let _ = writeln!(text, "| {name} | {runs:.0} | {each} | {verified:.0} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ran_in_between_counts() {
        let used = |id, runs, nanoseconds| ProgramUse { id, runs, nanoseconds, verified: 9.0 };
        let before = [used(1, 10.0, 1_000.0), used(2, 5.0, 500.0)];
        let after = [used(1, 30.0, 3_000.0), used(2, 5.0, 500.0), used(3, 1.0, 1.0)];
        assert_eq!(difference(&before, &after), [used(1, 20.0, 2_000.0)]);
        let programs = [
            Program::new("quick".into(), &[used(1, 10.0, 900.0), used(1, 10.0, 1_100.0)]),
            Program::new("slow".into(), &[used(2, 1.0, 500.0)]),
        ];
        let table = table(&programs);
        assert!(
            table.ends_with("| `slow` | 1 | 500 ± 0 | 9 |\n| `quick` | 20 | 100 ± 14 | 9 |\n"),
            "{table}"
        );
    }
}
