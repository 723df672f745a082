//! Credentials changed by the kernel itself, which no system call shows, are found whatever the thread does next.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use xtask::lab::{Line, RuntimeName};

use crate::setting::{losses, slowdown, told};
use crate::stage::{Actor, Part, Stage};

const THREADS: [&str; 2] = ["main", "worker"];
const NEXT: [&str; 4] = ["exec", "fork", "exit", "idle"];
/// Within which a finding has to be told, on a processor.
const LIMIT: Duration = Duration::from_secs(2);
/// Longer than the time between two sweeps, so that a finding too many has its chance.
const QUIET: Duration = Duration::from_secs(2);

fn parts(word: &'static str) -> impl Iterator<Item = Part> {
    THREADS.into_iter().flat_map(move |thread| NEXT.map(|then| (word, thread, then)))
}

/// Waits for the critical finding of `rule` about what `actor` does, and holds it against what is known.
fn found(stage: &Stage, actor: &Actor, rule: &str) -> Result<()> {
    let about = |line: &Line| {
        line.text("/finding/rule/id") == Some(rule)
            && line.json.pointer("/process/pid").and_then(serde_json::Value::as_u64) == Some(actor.pid.into())
    };
    let start = actor.act()?;
    let line = stage.agent.wait_for(about, LIMIT * slowdown())?;
    let hook = line.text("/hook").unwrap_or("?");
    let (word, thread, then) = actor.part;
    println!("{word} by the {thread} thread, then {then}: {rule} at {hook} after {:.1?}", line.at - start);
    for (pointer, expected) in [
        ("/finding/rule/severity", "critical"),
        ("/finding/status", "opened"),
        ("/pod/uid", stage.pod.uid()),
        ("/container/id", stage.container.id()),
        ("/process/lineage/state", "inside"),
    ] {
        ensure!(line.text(pointer) == Some(expected), "{pointer} is not {expected}: {}", line.json);
    }
    // whoever does nothing is seen by nothing but the sweep
    ensure!(then != "idle" || hook == "task_iter", "found at {hook}, though it did nothing");
    Ok(())
}

/// Holds that each of `actors` has one finding, of `rule`, and that there is nothing else: neither of another rule,
/// which would only repeat what this one says, nor of a child, which is the same escape.
fn nothing_else(stage: &Stage, actors: &[Actor], rule: &str) -> Result<()> {
    stage.agent.settle(QUIET)?;
    let findings = stage.agent.findings();
    let key = |line: &Line| {
        let pid = line.json.pointer("/process/pid").and_then(serde_json::Value::as_u64)?;
        Some((line.text("/finding/rule/id")?.to_owned(), pid))
    };
    let mut said: Vec<_> = findings.iter().map(key).collect();
    let mut expected: Vec<_> = actors.iter().map(|actor| Some((rule.to_owned(), actor.pid.into()))).collect();
    said.sort();
    expected.sort();
    ensure!(said == expected, "expected {expected:?}, and was told{}", told(&stage.agent));
    let metrics = stage.agent.http_get("/metrics")?.body;
    ensure!(losses(&metrics).is_empty(), "{:?}", losses(&metrics));
    Ok(())
}

fn all_are_found(test: &str, runtime: RuntimeName, word: &'static str, rule: &str) -> Result<()> {
    let Some(stage) = Stage::new(test, runtime)? else { return Ok(()) };
    let mut actors = Vec::new();
    for part in parts(word) {
        let actor = stage.actor(part)?;
        found(&stage, &actor, rule).with_context(|| format!("{part:?} is not found"))?;
        actors.push(actor);
    }
    nothing_else(&stage, &actors, rule)
}

#[test]
fn committed_credentials_of_the_kernel_are_found() -> Result<()> {
    all_are_found("committed_credentials", RuntimeName::Runc, "commit", "I1")
}

#[test]
fn ids_overwritten_in_place_are_found() -> Result<()> {
    all_are_found("ids_overwritten_in_place", RuntimeName::Crun, "ids", "I4")
}

#[test]
fn a_user_namespace_swapped_in_place_is_found() -> Result<()> {
    all_are_found("a_user_namespace_swapped_in_place", RuntimeName::Runc, "userns", "I1")
}

/// Where a process is when it is found says nothing about where it comes from.
#[test]
fn the_pod_is_named_though_the_process_has_left_its_cgroup() -> Result<()> {
    let test = "the_pod_is_named";
    let Some(stage) = Stage::new(test, RuntimeName::Crun)? else { return Ok(()) };
    for (word, rule) in [("commit", "I1"), ("ids", "I4"), ("userns", "I1")] {
        let actor = stage.actor((word, "main", "exit"))?;
        stage.move_out(&actor)?;
        found(&stage, &actor, rule).with_context(|| format!("{word} is not found"))?;
    }
    Ok(())
}

#[test]
fn the_same_steps_without_tampering_raise_nothing() -> Result<()> {
    let Some(stage) = Stage::new("the_same_steps", RuntimeName::Runc)? else { return Ok(()) };
    for part in parts("nothing") {
        let actor = stage.actor(part)?;
        actor.act()?;
        if part.2 == "idle" {
            ensure!(actor.is_alive(), "{part:?} has ended");
        } else {
            actor.end().with_context(|| format!("{part:?}"))?;
        }
    }
    let mover = stage.actor(("nothing", "main", "exit"))?;
    stage.move_out(&mover)?;
    mover.act()?;
    mover.end()?;
    nothing_else(&stage, &[], "none")
}
