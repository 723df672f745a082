//! `cargo xtask demo`: a node in small, with problems planted in it.
//!
//! Real containers under kubelet-shaped cgroups, the real agent beside them. [`play`] is what the demonstration
//! shows and what the node tests hold: each planted problem gives one finding, the honest pod none.

use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use crate::{
    build,
    lab::{
        Agent, Capabilities, CgroupDriver, Container, ContainerSpec, HostProcess, IdRange, Lab, Line, Pod,
        PodSpec, ProcessSpec, RuntimeName,
    },
    run,
    steps::Steps,
    workspace::{Profile, Workspace},
};

/// How long a finding may take. The figures printed are what it really took.
const PATIENCE: Duration = Duration::from_secs(5);
/// What an intruder tries first, each step whatever became of the one before.
const INTRUSION: &str =
    "nsenter -t 1 -m true; mount -t tmpfs none /mnt; cat /proc/1/environ >/dev/null; unshare -m true; true";
/// What a container does on an ordinary day, on its overlay root file system among others.
const ROUTINE: &str = "ls -l / >/dev/null; echo x > /tmp/x; chmod 600 /tmp/x; chown 1000 /tmp/x; cp /bin/busybox /tmp/y; \
     mv /tmp/y /tmp/z; ln -s /tmp/z /tmp/l; rm -f /tmp/x /tmp/z /tmp/l; ps >/dev/null; id >/dev/null";

/// One planted problem and what came of it.
#[derive(Debug)]
pub struct Planted {
    /// What was done.
    pub what: String,
    /// The rule that must tell.
    pub rule: &'static str,
    /// UID of the pod concerned.
    pub pod: String,
    /// The finding.
    pub finding: Line,
    /// From just before the act to the line's arrival. An act by exec includes the runtime's own work.
    pub delay: Duration,
}

/// Where the day is played.
struct On<'a> {
    lab: &'a Lab,
    agent: &'a Agent,
    runtime: RuntimeName,
    driver: CgroupDriver,
}

impl On<'_> {
    fn container(&self, mapping: Option<IdRange>) -> ContainerSpec {
        let mapping = mapping.map(IdRange::mapping);
        ContainerSpec { runtime: self.runtime, mapping, ..ContainerSpec::default() }
    }
}

/// Everything that has to stay alive until the end.
#[derive(Debug, Default)]
pub struct Stage {
    containers: Vec<Container>,
    processes: Vec<HostProcess>,
    pods: Vec<Pod>,
    next_range: u16,
}

/// Plays the whole day with one runtime.
///
/// # Errors
///
/// When a container cannot be run, a finding does not come, or it names the wrong pod or container.
pub fn play(lab: &Lab, agent: &Agent, runtime: RuntimeName, driver: CgroupDriver) -> Result<Vec<Planted>> {
    // apart, because a range is only free again when the agent has noticed that its pod is gone
    let next_range = match runtime {
        RuntimeName::Runc => 40_000,
        RuntimeName::Crun => 40_500,
    };
    let mut stage = Stage { next_range, ..Stage::default() };
    let mut planted = Vec::new();
    let on = &On { lab, agent, runtime, driver };
    let honest = stage.honest(on)?;
    planted.push(stage.ignored(on)?);
    planted.push(stage.intruder(agent, "its capabilities over the host used by a shell", "I5")?);
    planted.push(stage.host_root(on)?);
    stage.tame(on)?;
    planted.push(stage.intruder(agent, "a way out tried by a shell in a sound container", "I11")?);
    stage.tame(on)?;
    planted.push(stage.moved(lab, agent)?);
    planted.push(stage.overlap(on)?);
    agent.settle(Duration::from_millis(300))?;
    let expected: Vec<(&str, &str)> =
        planted.iter().map(|planted| (planted.pod.as_str(), planted.rule)).collect();
    check(&agent.findings(), &expected, &stage.uids())?;
    ensure!(findings_of(agent, honest.uid()).is_empty(), "the honest pod has findings");
    Ok(planted)
}

/// Holds that among the findings about these pods each expected one was opened once, and nothing else.
///
/// # Errors
///
/// When one is missing, repeated or unexpected.
pub fn check(findings: &[Line], expected: &[(&str, &str)], pods: &[String]) -> Result<()> {
    let about = |line: &&Line| line.text("/pod/uid").is_some_and(|uid| pods.iter().any(|pod| pod == uid));
    let opened: Vec<&Line> =
        findings.iter().filter(about).filter(|line| line.text("/finding/status") == Some("opened")).collect();
    for (pod, rule) in expected {
        let is = |line: &&&Line| line.text("/pod/uid") == Some(pod) && rule_of(line) == Some(rule);
        let count = opened.iter().filter(is).count();
        ensure!(count == 1, "{count} findings of rule {rule} for pod {pod}, one was planted");
    }
    for line in opened {
        let key = (line.text("/pod/uid").unwrap_or_default(), rule_of(line).unwrap_or_default());
        ensure!(expected.contains(&key), "nobody planted this: {}", line.json);
    }
    Ok(())
}

fn rule_of(line: &Line) -> Option<&str> {
    line.text("/finding/rule/id")
}

fn findings_of(agent: &Agent, uid: &str) -> Vec<Line> {
    agent.findings().into_iter().filter(|line| line.text("/pod/uid") == Some(uid)).collect()
}

impl Stage {
    fn uids(&self) -> Vec<String> {
        self.pods.iter().map(|pod| pod.uid().to_owned()).collect()
    }

    fn range(&mut self) -> IdRange {
        self.next_range += 1;
        IdRange::nth(self.next_range)
    }

    fn pod(&mut self, lab: &Lab, name: &str, driver: CgroupDriver, record: IdRange) -> Result<Pod> {
        let spec = PodSpec {
            name: name.to_owned(),
            driver,
            record: Some(record),
            host_users: Some(false),
            ..PodSpec::default()
        };
        let pod = lab.pod(spec)?;
        self.pods.push(pod.clone());
        Ok(pod)
    }

    /// Starts a container as its pod was promised; nothing may be said of it.
    fn tame(&mut self, on: &On<'_>) -> Result<Pod> {
        let range = self.range();
        let pod = self.pod(on.lab, "sound", on.driver, range)?;
        self.containers.push(pod.run(on.container(Some(range)))?);
        Ok(pod)
    }

    fn honest(&mut self, on: &On<'_>) -> Result<Pod> {
        let pod = self.tame(on)?;
        if let Some(container) = self.containers.last() {
            for _ in 0..5 {
                let output = container.exec(&["sh", "-c", ROUTINE])?;
                ensure!(
                    output.status.success(),
                    "routine failed: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
        }
        Ok(pod)
    }

    fn ignored(&mut self, on: &On<'_>) -> Result<Planted> {
        let record = self.range();
        self.broken(on, "a runtime that ignores the promise", "I3", record, None)
    }

    fn host_root(&mut self, on: &On<'_>) -> Result<Planted> {
        let record = IdRange { first: 0, length: 65_536 };
        self.broken(on, "a range that begins at host id 0", "I7", record, Some(record))
    }

    fn overlap(&mut self, on: &On<'_>) -> Result<Planted> {
        self.tame(on)?;
        let record = IdRange::nth(self.next_range);
        self.broken(on, "two pods with the same range", "I7", record, Some(record))
    }

    /// A container that is wrong from its first program on.
    fn broken(
        &mut self,
        on: &On<'_>,
        what: &str,
        rule: &'static str,
        record: IdRange,
        mapping: Option<IdRange>,
    ) -> Result<Planted> {
        let pod = self.pod(on.lab, "broken", on.driver, record)?;
        let container = pod.container(on.container(mapping))?;
        container.create()?;
        let act = Instant::now();
        container.start()?;
        let planted = await_finding(on.agent, what, rule, pod.uid(), container.id(), act);
        self.containers.push(container);
        planted
    }

    /// A shell in the container started last.
    fn intruder(&mut self, agent: &Agent, what: &str, rule: &'static str) -> Result<Planted> {
        let (Some(container), Some(pod)) = (self.containers.last(), self.pods.last()) else {
            bail!("no container yet");
        };
        let mut shell = ProcessSpec::new(&["sh", "-c", INTRUSION]);
        if rule == "I5" {
            shell.capabilities = Capabilities::All;
        }
        let act = Instant::now();
        container.exec_process(&shell)?;
        await_finding(agent, what, rule, pod.uid(), container.id(), act)
    }

    fn moved(&mut self, lab: &Lab, agent: &Agent) -> Result<Planted> {
        let (Some(container), Some(pod)) = (self.containers.last(), self.pods.last()) else {
            bail!("no container yet");
        };
        let process = lab.host_process()?;
        let act = Instant::now();
        lab.move_into_cgroup(process.pid(), container)?;
        let what = "a host process moved into a pod's cgroup";
        let planted = await_finding(agent, what, "I2", pod.uid(), container.id(), act)?;
        ensure!(
            planted.finding.json.pointer("/process/pid").and_then(serde_json::Value::as_u64)
                == Some(u64::from(process.pid())),
            "the finding names another process: {}",
            planted.finding.json
        );
        self.processes.push(process);
        Ok(planted)
    }
}

fn await_finding(
    agent: &Agent,
    what: &str,
    rule: &'static str,
    uid: &str,
    container: &str,
    act: Instant,
) -> Result<Planted> {
    let wanted = |line: &Line| {
        line.is_event("finding") && rule_of(line) == Some(rule) && line.text("/pod/uid") == Some(uid)
    };
    let finding = agent.wait_for(wanted, PATIENCE)?;
    let named = finding.text("/container/id");
    ensure!(named == Some(container), "the finding names container {named:?}, not {container}");
    for pointer in ["/process/pid", "/process/ids/uid/host", "/process/user_namespace/inode"] {
        ensure!(
            finding.json.pointer(pointer).is_some_and(serde_json::Value::is_u64),
            "the finding has no {pointer}: {}",
            finding.json
        );
    }
    let delay = finding.at.saturating_duration_since(act);
    Ok(Planted { what: what.to_owned(), rule, pod: uid.to_owned(), finding, delay })
}

/// Whom a finding names, with its user id in both views.
fn subject(finding: &Line) -> String {
    let text = |pointer| finding.text(pointer).unwrap_or("?");
    let number = |pointer| {
        let value = finding.json.pointer(pointer).and_then(serde_json::Value::as_u64);
        value.map_or_else(|| "none".to_owned(), |value| value.to_string())
    };
    format!(
        "pod {}, container {:.12}, process {}[{}], uid {} on the host and {} in the pod",
        text("/pod/uid"),
        text("/container/id"),
        text("/process/comm"),
        number("/process/pid"),
        number("/process/ids/uid/host"),
        number("/process/ids/uid/container"),
    )
}

/// The middle of some durations; of an even number the upper of the two.
#[must_use]
pub fn median(mut delays: Vec<Duration>) -> Duration {
    delays.sort_unstable();
    delays.get(delays.len() / 2).copied().unwrap_or_default()
}

/// Sets up, builds, plays the demonstration with every runtime and prints what the agent said.
///
/// # Errors
///
/// When the user is not root, or anything is not as planted.
pub fn demo(steps: &mut Steps, workspace: &Workspace, json: bool) -> Result<ExitCode> {
    ensure!(run::is_root()?, "containers and eBPF programs need root: run `sudo -E cargo xtask demo`");
    let agent = build::all(steps, workspace, Profile::Release)?;
    let runtimes =
        steps.step("runtimes", "runc and crun of this distribution, in a directory of their own", || {
            Lab::provision(&workspace.target().join("cache"))
        })?;
    let mut all = Vec::new();
    for runtime in [RuntimeName::Runc, RuntimeName::Crun] {
        let dir = workspace.target().join("demo");
        let planted =
            steps.step(&format!("demo {runtime}"), "a day on a node, with problems planted", || {
                let lab = Lab::new(runtimes.clone(), &dir)?;
                one(&agent, &lab, runtime, json)
            })?;
        all.extend(planted);
    }
    let delays: Vec<Duration> = all.iter().map(|planted| planted.delay).collect();
    let worst = delays.iter().max().copied().unwrap_or_default();
    println!("\n{} problems planted, each found once; the honest pods are silent.", all.len());
    println!("From the act to the JSON line: median {:.1?}, worst {worst:.1?}.", median(delays));
    steps.print_table();
    Ok(ExitCode::SUCCESS)
}

fn one(bin: &Path, lab: &Lab, runtime: RuntimeName, json: bool) -> Result<Vec<Planted>> {
    let agent = Agent::start(bin, lab, &[])?;
    let planted = play(lab, &agent, runtime, CgroupDriver::default())?;
    println!();
    for planted in &planted {
        println!("{} with {runtime}", planted.what);
        println!("  → {} after {:.1?}", planted.rule, planted.delay);
        println!("    {}", planted.finding.text("/finding/why").unwrap_or_default());
        println!("    {}", subject(&planted.finding));
        if json {
            println!("    {}", planted.finding.json);
        }
    }
    let stopped = agent.stop()?;
    ensure!(stopped.status.success(), "the agent ended with {}", stopped.status);
    println!();
    Ok(planted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(uid: &str, rule: &str, status: &str) -> Line {
        let json = json!({"event": "finding", "pod": {"uid": uid}, "finding": {"status": status, "rule": {"id": rule}}});
        Line { at: Instant::now(), json }
    }

    #[test]
    fn each_planted_problem_is_wanted_once_and_nothing_else() {
        let pods = ["a".to_owned(), "b".to_owned()];
        let good = [line("a", "I3", "opened"), line("a", "I3", "updated"), line("x", "I1", "opened")];
        assert!(check(&good, &[("a", "I3")], &pods).is_ok());
        assert!(check(&good, &[], &pods).is_err(), "unexpected");
        assert!(check(&good, &[("b", "I3")], &pods).is_err(), "missing");
        assert!(check(&[good[0].clone(), good[0].clone()], &[("a", "I3")], &pods).is_err(), "repeated");
    }

    #[test]
    fn the_median_is_the_middle() {
        let ms = Duration::from_millis;
        assert_eq!(median(vec![ms(9), ms(1), ms(5)]), ms(5));
        assert_eq!(median(Vec::new()), Duration::ZERO);
    }
}
