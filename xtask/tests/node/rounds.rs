//! Hundreds of honest rounds raise nothing and lose nothing.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::{
    Agent, Container, ContainerSpec, IdRange, PodSpec, ProcessSpec, RUNTIMES, RuntimeName, Runtimes,
};

use crate::{Node, losses, metric, slowdown, told};

const ROUNDS: u32 = 500;
/// Of each runtime of [`SUITES`].
const ROUNDS_OF_OTHERS: u32 = 30;
/// Oldest first. A suite may have the same runtime as the one before.
const SUITES: [&str; 4] = ["bookworm", "trixie", "forky", "sid"];

/// crun's start returns before the container's program has been executed, and until then its exec is refused.
pub(crate) fn exec(container: &Container, process: &ProcessSpec) -> Result<()> {
    let started = Instant::now();
    loop {
        let output = container.exec_process(process)?;
        if output.status.success() {
            return Ok(());
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(started.elapsed() < Duration::from_secs(2) * slowdown(), "exec failed: {errors}");
    }
}

/// Goes through a container's life again and again; returns the time that took.
pub(crate) fn live(node: &Node, runtime: RuntimeName, rounds: u32, range: u16) -> Result<Duration> {
    let range = IdRange::nth(range);
    let pod = node.lab.pod(PodSpec { name: "p".into(), record: Some(range), ..PodSpec::default() })?;
    let spec = ContainerSpec { runtime, mapping: Some(range.mapping()), ..ContainerSpec::default() };
    let container = pod.container(spec)?;
    let started = Instant::now();
    for round in 0..rounds {
        container.create()?;
        container.start()?;
        exec(&container, &ProcessSpec::new(&["true"])).with_context(|| format!("round {round}"))?;
        container.kill()?;
        container.delete()?;
    }
    Ok(started.elapsed())
}

/// Holds that `rounds` of [`live`] raised nothing, lost nothing and were all seen.
pub(crate) fn nothing_but_seen(agent: &Agent, rounds: u32) -> Result<()> {
    std::thread::sleep(Duration::from_millis(2500));
    ensure!(agent.findings().is_empty(), "{}", told(agent));
    let metrics = agent.http_get("/metrics")?.body;
    ensure!(losses(&metrics).is_empty(), "{:?}", losses(&metrics));
    let entries = metric(&metrics, "userns_events_total", &[("kind", "entry")]);
    let late = metric(&metrics, "userns_kernel_loss_total", &[("counter", "lineage_alloc")]);
    println!("{rounds} rounds, {entries} entries seen, {late} lineages made up for");
    ensure!(late <= f64::from(rounds.div_ceil(50)), "{late} lineages could not be allocated");
    ensure!(entries >= f64::from(rounds), "only {entries} entries were seen");
    Ok(())
}

fn rounds(runtime: RuntimeName, test: &str) -> Result<()> {
    let Some(node) = Node::new(test)? else { return Ok(()) };
    let agent = node.agent(&[])?;
    let rounds = ROUNDS / slowdown();
    let took = live(&node, runtime, rounds, 44_000)?;
    println!("{test}: {rounds} rounds in {took:.1?}");
    nothing_but_seen(&agent, rounds)
}

#[test]
fn five_hundred_rounds_of_runc() -> Result<()> {
    rounds(RuntimeName::Runc, "five_hundred_rounds_of_runc")
}

#[test]
fn five_hundred_rounds_of_crun() -> Result<()> {
    rounds(RuntimeName::Crun, "five_hundred_rounds_of_crun")
}

#[test]
fn thirty_rounds_of_every_generation() -> Result<()> {
    const TEST: &str = "thirty_rounds_of_every_generation";
    if std::env::var_os(RUNTIMES).is_some() {
        println!("SKIPPED: {TEST}: {RUNTIMES} names the only runtimes there are");
        return Ok(());
    }
    let mut seen = BTreeSet::new();
    for suite in SUITES {
        let provision = |cache: &Path| Runtimes::provision(cache, suite);
        let Some(node) = Node::with(TEST, provision)? else { return Ok(()) };
        let version = |name| node.lab.runtimes().get(name).version.clone();
        let others = RuntimeName::ALL.into_iter().filter(|name| seen.insert((*name, version(*name))));
        let others: Vec<_> = others.collect();
        if others.is_empty() {
            continue;
        }
        let agent = node.agent(&[])?;
        for (runtime, range) in others.iter().zip(44_000..) {
            let took = live(&node, *runtime, ROUNDS_OF_OTHERS, range)
                .with_context(|| format!("{runtime} {} of {suite}", version(*runtime)))?;
            println!("{ROUNDS_OF_OTHERS} rounds of {runtime} {} in {took:.1?}", version(*runtime));
        }
        let rounds = ROUNDS_OF_OTHERS * u32::try_from(others.len())?;
        nothing_but_seen(&agent, rounds).with_context(|| format!("with the runtimes of {suite}"))?;
    }
    Ok(())
}
