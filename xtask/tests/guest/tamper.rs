//! Credentials changed by the kernel itself, which no system call shows, are found whatever the thread does next.
//!
//! One test for all of it, because under emulation the agent's start takes longer than the rest: what it says names
//! the cases that failed.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use xtask::lab::Line;
use xtask::quality::Sample;

use crate::setting::{losses, slowdown, told};
use crate::stage::{Actor, Cast, Part, Stage};

/// Ways of tampering, see `xtask/src/vm/tamper/tamper.c`, and the rules they break.
const WAYS: [(&str, &str); 4] = [("commit", "I1"), ("ids", "I4"), ("userns", "I1"), ("acts", "I1")];
const THREADS: [&str; 2] = ["main", "worker"];
const NEXT: [&str; 4] = ["exec", "fork", "exit", "idle"];
/// Within which a finding has to be told, on a processor.
const LIMIT: Duration = Duration::from_secs(2);
/// Longer than the time between two sweeps, so that a finding too many has its chance.
const QUIET: Duration = Duration::from_secs(2);
/// Failures after which the others are not waited for.
const ENOUGH: usize = 4;

/// Every case of a way: each thread, each next step, and once from outside of the pod's cgroup, for where a process
/// is when it is found says nothing about where it comes from.
fn parts(word: &'static str) -> Vec<Part> {
    let cases = THREADS.into_iter().flat_map(|thread| NEXT.map(|next| (thread, next, false)));
    // subjective credentials are not looked at of a task at rest, and the kernel itself stops one that executes
    let cases = cases.filter(move |(_, next, _)| word != "acts" || matches!(*next, "fork" | "exit"));
    let cases = cases.chain([("main", "exit", true)]);
    cases.map(|(thread, next, moved)| Part { word, thread, next, moved }).collect()
}

#[test]
fn tampering_is_found_and_the_same_steps_without_it_are_not() -> Result<()> {
    let Some(stage) = Stage::new("tampering_is_found")? else { return Ok(()) };
    let (mut expected, mut wrong) = (without(&stage)?, Vec::new());
    let cases =
        WAYS.into_iter().flat_map(|(word, rule)| parts(word).into_iter().map(move |part| (part, rule)));
    for ((part, rule), cast) in cases.zip(stage.casts.iter().cycle()) {
        let found = found(&stage, cast, part, rule);
        let (rule_id, runtime) = (rule.to_owned(), cast.runtime.to_string());
        let seen = found.is_ok();
        Sample::Technique { name: format!("kernel: {part}"), rule: rule_id, runtime, seen }.tell();
        match found {
            Ok(actor) => expected.extend(rules(part, Some(rule), &actor)),
            Err(error) => wrong.push(format!("{part}: {error:#}")),
        }
        if wrong.len() >= ENOUGH {
            break;
        }
    }
    if !wrong.is_empty() {
        bail!("not found, or not as it should be:\n{}", wrong.join("\n"));
    }
    Sample::tell_delays(&stage.agent);
    nothing_but(&stage, expected)
}

/// What is to be told of an actor: its tampering, and that it is not where its container is.
fn rules(part: Part, rule: Option<&str>, actor: &Actor) -> Vec<(String, u64)> {
    let moved = part.moved.then_some("I13");
    rule.into_iter().chain(moved).map(|rule| (rule.to_owned(), actor.pid.into())).collect()
}

/// The control: every step but the tampering.
fn without(stage: &Stage) -> Result<Vec<(String, u64)>> {
    let mut expected = Vec::new();
    for (part, cast) in parts("nothing").into_iter().zip(stage.casts.iter().cycle()) {
        let actor = stage.actor(cast, part)?;
        actor.act()?;
        expected.extend(rules(part, None, &actor));
        if part.next != "idle" {
            actor.end()?;
        }
    }
    nothing_but(stage, expected.clone())?;
    Ok(expected)
}

/// Has `part` played, waits for the critical finding about it, and holds it against what is known.
fn found(stage: &Stage, cast: &Cast, part: Part, rule: &str) -> Result<Actor> {
    let actor = stage.actor(cast, part)?;
    let about =
        |line: &Line| line.text("/finding/rule/id") == Some(rule) && pid(line) == Some(actor.pid.into());
    let start = actor.act()?;
    let line = stage.agent.wait_for(about, LIMIT * slowdown()).with_context(|| missed(stage, &actor))?;
    let hook = line.text("/hook").unwrap_or("?");
    println!("{part}: {rule} at {hook} after {:.1?}", line.at - start);
    for (pointer, expected) in [
        ("/finding/rule/severity", "critical"),
        ("/finding/status", "opened"),
        ("/pod/uid", cast.pod.uid()),
        ("/container/id", cast.container.id()),
        ("/process/lineage/state", "inside"),
    ] {
        ensure!(line.text(pointer) == Some(expected), "{pointer} is not {expected}: {}", line.json);
    }
    // whoever does nothing is seen by nothing but the sweep, unless the function itself is hooked that it calls
    let at_once = part.word == "commit" && hook == "commit_creds";
    ensure!(part.next != "idle" || at_once || hook == "task_iter", "found at {hook}, though it did nothing");
    Ok(actor)
}

/// What became of an actor of whom nothing was told, and what the agent lost.
fn missed(stage: &Stage, actor: &Actor) -> String {
    let proc = |file: &str| format!("/proc/{}/{file}", actor.pid);
    let userns = fs::read_link(proc("ns/user")).map_or_else(|e| e.to_string(), |ns| ns.display().to_string());
    let status = fs::read_to_string(proc("status")).unwrap_or_else(|error| error.to_string());
    let metrics = stage.agent.http_get("/metrics").map(|answer| answer.body).unwrap_or_default();
    let kernel = metrics.lines().filter(|line| line.starts_with("userns_kernel") || line.contains("missed"));
    let kernel: Vec<_> = kernel.filter(|line| !line.ends_with(" 0")).collect();
    format!("actor {} in {userns}, {status}\n{}", actor.pid, kernel.join("\n"))
}

/// Holds that there is one finding for each rule and process `expected`, and nothing else: neither of another rule,
/// which would only repeat what this one says, nor about a child, which is the same escape.
fn nothing_but(stage: &Stage, mut expected: Vec<(String, u64)>) -> Result<()> {
    stage.agent.settle(QUIET)?;
    let key = |line: &Line| (line.text("/finding/rule/id").unwrap_or("?").to_owned(), pid(line).unwrap_or(0));
    // what is known of a finding a moment later, and its end, are told under the same id
    let news = |line: &&Line| matches!(line.text("/finding/status"), Some("opened" | "updated"));
    let mut said: Vec<_> = stage.agent.findings().iter().filter(news).map(key).collect();
    said.sort();
    expected.sort();
    ensure!(said == expected, "expected {expected:?}, and was told{}", told(&stage.agent));
    let metrics = stage.agent.http_get("/metrics")?.body;
    ensure!(losses(&metrics).is_empty(), "{:?}", losses(&metrics));
    Ok(())
}

fn pid(line: &Line) -> Option<u64> {
    line.json.pointer("/process/pid")?.as_u64()
}
