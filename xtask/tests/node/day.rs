//! A day on a node: planted problems are found, once each and in time; honest containers are left alone.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};
use xtask::demo::{median, play};
use xtask::lab::{
    Agent, Capabilities, CgroupDriver, ContainerSpec, IdRange, Lab, PodSpec, ProcessSpec, RuntimeName,
};

use crate::{Node, losses, metric, slowdown, told};

fn a_day(runtime: RuntimeName, driver: CgroupDriver, test: &str) -> Result<()> {
    let Some(node) = Node::new(test)? else { return Ok(()) };
    let agent = node.agent(&[])?;
    day(&node, &agent, runtime, driver)?;
    let stopped = agent.stop()?;
    ensure!(stopped.status.code() == Some(0), "SIGTERM ended it with {}", stopped.status);
    Ok(())
}

/// Plays the day, and holds that everything planted was found in time and counted, and nothing lost.
pub(crate) fn day(node: &Node, agent: &Agent, runtime: RuntimeName, driver: CgroupDriver) -> Result<()> {
    let planted = play(&node.lab, agent, runtime, driver)?;
    let delays: Vec<Duration> = planted.iter().map(|planted| planted.delay).collect();
    println!("{runtime}: {} planted, delays {delays:.1?}", planted.len());
    let limit = Duration::from_millis(100) * slowdown();
    ensure!(median(delays) < limit, "the median delay is above {limit:?}");
    let metrics = agent.http_get("/metrics")?.body;
    ensure!(losses(&metrics).is_empty(), "{:?}", losses(&metrics));
    for planted in &planted {
        let count = metric(&metrics, "userns_findings_total", &[("rule", planted.rule)]);
        ensure!(count >= 1.0, "the metric does not count {}", planted.rule);
    }
    ensure!(agent.http_get("/readyz")?.status == 200 && agent.http_get("/healthz")?.status == 200);
    Ok(())
}

#[test]
fn a_day_with_runc() -> Result<()> {
    a_day(RuntimeName::Runc, CgroupDriver::Cgroupfs, "a_day_with_runc")
}

#[test]
fn a_day_with_crun() -> Result<()> {
    a_day(RuntimeName::Crun, CgroupDriver::Cgroupfs, "a_day_with_crun")
}

#[test]
fn a_day_with_paths_of_the_systemd_driver() -> Result<()> {
    a_day(RuntimeName::Runc, CgroupDriver::Systemd, "a_day_with_paths_of_the_systemd_driver")
}

/// Rule and pod of every finding that was opened.
fn opened(agent: &Agent) -> BTreeSet<(String, String)> {
    let key = |line: &xtask::lab::Line| {
        let rule = line.text("/finding/rule/id")?.to_owned();
        Some((rule, line.text("/pod/uid")?.to_owned()))
    };
    agent.findings().iter().filter_map(key).collect()
}

#[test]
fn an_agent_that_starts_late_finds_what_one_that_started_early_does() -> Result<()> {
    let Some(node) = Node::new("an_agent_that_starts_late")? else { return Ok(()) };
    let lab: &Lab = &node.lab;
    let early = node.agent(&[])?;
    let mut containers = Vec::new();
    let mut uids = Vec::new();
    let zero = IdRange { first: 0, length: 65_536 };
    let (one, two) = (IdRange::nth(41_000), IdRange::nth(41_001));
    for (record, mapping) in [
        (one, Some(one)),
        (one, Some(one)),
        (two, None),
        (zero, Some(zero)),
        (IdRange::nth(41_002), Some(two)),
    ] {
        for runtime in [RuntimeName::Runc, RuntimeName::Crun] {
            let pod = lab.pod(PodSpec { name: "p".into(), record: Some(record), ..PodSpec::default() })?;
            let mapping = mapping.map(IdRange::mapping);
            containers.push(pod.run(ContainerSpec { runtime, mapping, ..ContainerSpec::default() })?);
            uids.push(pod.uid().to_owned());
        }
    }
    let intruder = lab.host_process()?;
    if let Some(container) = containers.first() {
        lab.move_into_cgroup(intruder.pid(), container)?;
    }
    early.settle(Duration::from_secs(3))?;
    let (expected, early_told) = (opened(&early), told(&early));
    early.stop()?;
    let late = node.agent(&[])?;
    late.settle(Duration::from_secs(3))?;
    let found = opened(&late);
    let rules: BTreeSet<&str> = expected.iter().map(|(rule, _)| rule.as_str()).collect();
    ensure!(rules == BTreeSet::from(["I2", "I3", "I7"]), "{rules:?}{early_told}");
    // overlaps are told of the pod seen second, which depends on the order of arrival
    let of = |all: &BTreeSet<(String, String)>, skip: &str| -> BTreeSet<(String, String)> {
        all.iter().filter(|(rule, _)| rule != skip).cloned().collect()
    };
    ensure!(of(&found, "I7") == of(&expected, "I7"), "early {expected:?}\nlate {found:?}");
    let count = |agent: &Agent| {
        agent.findings().iter().filter(|line| line.text("/finding/rule/id") == Some("I7")).count()
    };
    ensure!(count(&late) >= 1, "no unsafe range found late");
    let ids = |lines: Vec<xtask::lab::Line>| -> BTreeSet<String> {
        lines.iter().filter_map(|line| line.text("/finding/id").map(str::to_owned)).collect()
    };
    let late_ids = ids(late.stop()?.lines);
    println!("late agent: {} findings, {} ids", found.len(), late_ids.len());
    drop(uids);
    Ok(())
}

#[test]
fn names_and_arguments_of_any_bytes_come_out_as_one_line_of_json() -> Result<()> {
    let Some(node) = Node::new("names_and_arguments_of_any_bytes")? else { return Ok(()) };
    let agent = node.agent(&[])?;
    let pod = node.lab.pod(PodSpec {
        name: "p".into(),
        record: Some(IdRange::nth(42_000)),
        ..PodSpec::default()
    })?;
    // busybox, which must stay the name's beginning, under one with a newline, a quote, an escape and no UTF-8
    let script =
        "n=$(printf '/tmp/busybox\\n\"\\033[31m\\377'); cp /bin/busybox \"$n\"; exec \"$n\" sleep 3600";
    let spec =
        ContainerSpec { args: ["sh", "-c", script].map(str::to_owned).to_vec(), ..ContainerSpec::default() };
    let container = pod.run(spec)?;
    let mut shell =
        ProcessSpec::new(&["sh", "-c", "true 'a\nb' \"c\\\"d\" '\u{1b}[2J\u{202e}'; nsenter -t 1 -u true"]);
    shell.capabilities = Capabilities::All;
    container.exec_process(&shell)?;
    agent.wait_for(|line| line.text("/finding/rule/id") == Some("I5"), Duration::from_secs(5))?;
    let stopped = agent.stop()?;
    for line in &stopped.lines {
        ensure!(line.json.is_object(), "not one JSON object a line: {}", line.json);
    }
    Ok(())
}

#[test]
fn file_operations_on_an_overlay_raise_nothing() -> Result<()> {
    let Some(node) = Node::new("file_operations_on_an_overlay")? else { return Ok(()) };
    work_on_an_overlay(&node, &node.agent(&[])?)
}

/// A container's own overlay raises checks with the mounter's credentials; the pod has not used them.
pub(crate) fn work_on_an_overlay(node: &Node, agent: &Agent) -> Result<()> {
    let range = IdRange::nth(43_000);
    let pod = node.lab.pod(PodSpec { name: "p".into(), record: Some(range), ..PodSpec::default() })?;
    let container = pod.run(ContainerSpec { mapping: Some(range.mapping()), ..ContainerSpec::default() })?;
    let script = "cd /root; for i in $(seq 200); do echo x >f$i; chmod 600 f$i; chown 1000:1000 f$i; mv f$i g$i; done; \
                  rm -f g*; cp /bin/busybox b; cp -p b c; ln -s b d; mkdir e; rmdir e; touch /bin/busybox; ps; ls -lR / >/dev/null 2>&1";
    let output = container.exec(&["sh", "-c", script])?;
    ensure!(!output.stdout.is_empty(), "{output:?}");
    std::thread::sleep(Duration::from_millis(1500));
    let metrics = agent.http_get("/metrics")?.body;
    let overridden = metric(&metrics, "userns_kernel_counter_total", &[("counter", "checks_overridden")]);
    println!("checks with swapped credentials: {overridden}");
    ensure!(overridden > 500.0, "the overlay made no such checks: {overridden}");
    ensure!(agent.findings().is_empty(), "{}", told(agent));
    Ok(())
}
