//! Pods whose promises are broken: each is told of once, and at once.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::{Agent, CriContainer, CriPod, Handler, IdRange, Line, RuntimeName};

use super::{Asked, Cluster, container};
use crate::slowdown;

/// Within which a finding has to be told, on a processor.
const LIMIT: Duration = Duration::from_secs(1);
/// Longer than the time after which an entry is late, so that a finding too many has its chance.
const QUIET: Duration = Duration::from_secs(3);
/// What the runtimes call their own processes; anyone can.
const RUNTIMES_NAMES: [&str; 2] = ["runc:[2:INIT]", "conmon"];

/// A pod, and what is to be told: rules and containers. Fields in the order in which they go away.
struct Case {
    app: CriContainer,
    _pod: CriPod,
    expected: Vec<(String, String)>,
}

#[test]
fn broken_promises_are_told_once_and_at_once() -> Result<()> {
    let Some(cluster) = Cluster::new("broken_promises")? else { return Ok(()) };
    // names come from containerd alone, the ranges promised from kubelet's records
    let agent = cluster.agent(&[])?;
    let mut cases = vec![ignored(&cluster, &agent).context("a runtime that ignores the promise")?];
    for (runtime, range) in RuntimeName::ALL.into_iter().zip([47_010, 47_020]) {
        let handler = Handler::Oci(runtime);
        let range = |more: u16| Some(IdRange::nth(range + more));
        let of = |name, range| Asked { name, handler, range, host_network: false };
        let differs = || told(&cluster, &agent, of("differs", range(0)), range(1), "I7");
        cases.push(differs().with_context(|| format!("{runtime} gives another range than recorded"))?);
        cases.push(run(&cluster, of("first", range(2)))?);
        let second = || told(&cluster, &agent, of("second", range(2)), range(2), "I7");
        cases.push(second().with_context(|| format!("{runtime} gives the same range twice"))?);
    }
    for (name, range) in RUNTIMES_NAMES.into_iter().zip(47_030..) {
        cases.push(intruder(&cluster, &agent, name, IdRange::nth(range)).with_context(|| name)?);
    }
    agent.settle(QUIET * slowdown())?;
    let mut expected: Vec<_> = cases.iter().flat_map(|case| case.expected.clone()).collect();
    expected.sort();
    let opened = agent.findings().into_iter().filter(|line| line.text("/finding/status") == Some("opened"));
    let key = |line: Line| {
        Some((line.text("/finding/rule/id")?.to_owned(), line.text("/container/id")?.to_owned()))
    };
    let mut opened: Vec<_> = opened.filter_map(key).collect();
    opened.sort();
    ensure!(opened == expected, "expected {expected:?}, and was told{}", crate::told(&agent));
    let stopped = agent.stop()?;
    ensure!(stopped.status.code() == Some(0), "SIGTERM ended it with {}", stopped.status);
    Ok(())
}

fn ignored(cluster: &Cluster, agent: &Agent) -> Result<Case> {
    let range = Some(IdRange::nth(47_000));
    let asked = Asked { name: "ignored", handler: Handler::Ignoring, range, host_network: false };
    told(cluster, agent, asked, range, "I3")
}

/// A pod of which there is nothing to say.
fn run(cluster: &Cluster, asked: Asked<'_>) -> Result<Case> {
    let pod = cluster.run(asked)?;
    let app = pod.start(&container("app", &[]))?;
    Ok(Case { app, _pod: pod, expected: Vec::new() })
}

/// A pod that `rule` is to tell of while its first container starts.
fn told(
    cluster: &Cluster,
    agent: &Agent,
    asked: Asked<'_>,
    given: Option<IdRange>,
    rule: &'static str,
) -> Result<Case> {
    let pod = cluster.run_with(asked, given)?;
    let returned = Instant::now();
    let about = |line: &Line| {
        line.text("/finding/rule/id") == Some(rule) && line.text("/pod/uid") == Some(pod.pod().uid())
    };
    let finding = agent.wait_for(about, LIMIT * slowdown())?;
    ensure!(finding.text("/container/id") == Some(pod.id()), "the sandbox was first: {}", finding.json);
    println!(
        "{}: {rule} {:.1?} after the sandbox",
        asked.name,
        finding.at.saturating_duration_since(returned)
    );
    named(agent, &finding, asked.name, None)?;
    let app = pod.start(&container("app", &[]))?;
    // a promise is broken by each container that does not keep it; a range is the pod's
    let containers = if rule == "I3" { vec![pod.id(), app.id()] } else { vec![pod.id()] };
    let expected = containers.into_iter().map(|id| (rule.to_owned(), id.to_owned())).collect();
    Ok(Case { app, _pod: pod, expected })
}

/// A host process in a sound pod, under the name of a runtime's own.
fn intruder(cluster: &Cluster, agent: &Agent, name: &str, range: IdRange) -> Result<Case> {
    let handler = Handler::Oci(RuntimeName::Runc);
    let asked = Asked { name: "entered", handler, range: Some(range), host_network: false };
    let mut case = run(cluster, asked)?;
    case.expected.push(("I2".to_owned(), case.app.id().to_owned()));
    let process = cluster.node.lab.host_process_named(name)?;
    let pid = u64::from(process.pid());
    case.app.take_in(process.pid())?;
    let about = |line: &Line| {
        line.text("/finding/rule/id") == Some("I2") && line.json["process"]["pid"].as_u64() == Some(pid)
    };
    let finding = agent.wait_for(about, LIMIT * slowdown())?;
    ensure!(finding.text("/process/comm") == Some(name), "{}", finding.json);
    named(agent, &finding, asked.name, Some("app"))?;
    Ok(case)
}

/// Holds that a finding says whose it is, or is completed soon. A sandbox is no container of the pod's, and has no name.
fn named(agent: &Agent, finding: &Line, pod: &str, container: Option<&str>) -> Result<()> {
    let whole = |line: &Line| {
        line.text("/finding/id") == finding.text("/finding/id")
            && line.text("/pod/name") == Some(pod)
            && line.text("/pod/namespace") == Some("default")
            && line.text("/container/name") == container
    };
    agent.wait_for(whole, LIMIT * slowdown()).map(drop).context("a finding without names")
}
