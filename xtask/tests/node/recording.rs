//! What the agent recorded of a node is replayed to the same findings, as fast as they can be read.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::lab::{Agent, ContainerSpec, IdRange, Line, PodSpec, ProcessSpec, RuntimeName};

use crate::{Node, rounds, slowdown};

/// Programs that the container starts, one after another.
const PROGRAMS: u32 = 20_000;
/// Inputs a second, of a processor that does other things as well.
const LEAST_RATE: f64 = 200_000.0;

fn replay(bin: &Path, recording: &Path, more: &[&str]) -> Result<Output> {
    let output = Command::new(bin).arg("replay").arg(recording).args(more).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

/// Ids of findings, with the number of lines about each and the last reason given.
fn said(lines: impl Iterator<Item = Value>) -> BTreeMap<String, (usize, String)> {
    let mut said: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for line in lines {
        let text = |pointer| line.pointer(pointer).and_then(Value::as_str).unwrap_or("?").to_owned();
        let entry = said.entry(text("/finding/id")).or_default();
        *entry = (entry.0 + 1, text("/finding/why"));
    }
    said
}

#[test]
fn a_recorded_node_is_replayed_to_the_same_findings() -> Result<()> {
    let Some(node) = Node::new("a_recorded_node")? else { return Ok(()) };
    let file = node.lab.dir().join("node.rec");
    let _ = fs::remove_file(&file);
    let agent = Agent::record(&node.bin, &node.lab, &file, &["--container-budget", "1000000"])?;
    let range = IdRange::nth(47_000);
    let pod = node.lab.pod(PodSpec { name: "p".into(), record: Some(range), ..PodSpec::default() })?;
    for runtime in RuntimeName::ALL {
        let spec = ContainerSpec { runtime, mapping: Some(range.mapping()), ..ContainerSpec::default() };
        let container = pod.run(spec)?;
        let programs = PROGRAMS / 2 / slowdown().pow(2);
        let storm = format!(
            "i=0; while [ $i -lt {programs} ]; do /bin/true; i=$((i+1)); done; unshare -U true; dmesg"
        );
        // the last one is denied, and says so
        let _ = container.exec_process(&ProcessSpec::new(&["sh", "-c", &storm]))?;
        rounds::exec(&container, &ProcessSpec::new(&["true"]))?;
    }
    let denied = |line: &Line| line.text("/finding/rule/id") == Some("I11");
    agent.wait_for(denied, std::time::Duration::from_secs(5) * slowdown())?;
    let live = agent.stop()?;
    let live = live.lines.into_iter().filter(|line| line.is_event("finding")).map(|line| line.json);
    let live = said(live);

    let first = replay(&node.bin, &file, &["--output", "json"])?;
    let again = replay(&node.bin, &file, &["--output", "json"])?;
    ensure!(first.stdout == again.stdout, "two replays differ");
    let lines = String::from_utf8(first.stdout)?;
    let replayed = lines.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let replayed = said(replayed.into_iter());
    ensure!(live == replayed && live.len() >= 2, "live {live:#?}, replayed {replayed:#?}");

    let summary = String::from_utf8(again.stderr)?;
    let size = fs::metadata(&file)?.len();
    println!("{} in {size} bytes", summary.trim());
    let words: Vec<&str> = summary.split(' ').collect();
    let number = |index: usize| words.get(index).and_then(|word| word.parse::<f64>().ok());
    let inputs = number(0).context("no number of inputs")?;
    let rate = summary.split(" s, ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
    ensure!(inputs > f64::from(PROGRAMS / slowdown().pow(2)), "{summary}");
    ensure!(rate.is_some_and(|rate| rate > LEAST_RATE / f64::from(slowdown().pow(2))), "{summary}");
    let text = replay(&node.bin, &file, &[])?;
    ensure!(String::from_utf8_lossy(&text.stdout).contains("I11"), "{text:?}");
    Ok(())
}
