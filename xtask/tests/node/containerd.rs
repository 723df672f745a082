//! Pods run by containerd, by runc and by crun, through the CRI: what a node is like but for the kubelet.

mod broken;
mod deploy;
mod honest;
mod leftovers;
mod nested;
mod podman;
mod systemd;

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::{
    Agent, Containerd, CriContainer, CriContainerSpec, CriPod, CriPodSpec, Handler, IdRange, Line, PodSpec,
};

use crate::{Node, losses, slowdown, told};

/// A node with containerd. Fields in the order in which they go away.
struct Cluster {
    containerd: Containerd,
    node: Node,
}

/// A pod as its author wrote it.
#[derive(Debug, Clone, Copy)]
struct Asked<'a> {
    name: &'a str,
    handler: Handler,
    /// With `hostUsers: false`: what kubelet records.
    range: Option<IdRange>,
    host_network: bool,
}

impl Cluster {
    /// `None`, with a loud word, where the node tests are not to run.
    fn new(test: &str) -> Result<Option<Self>> {
        let Some(node) = Node::with(test, Containerd::provision)? else { return Ok(None) };
        let started = Instant::now();
        let containerd = Containerd::start(&node.lab)?;
        println!("{} is up after {:.1?}", containerd.version()?, started.elapsed());
        Ok(Some(Self { containerd, node }))
    }

    fn pods_file(&self) -> PathBuf {
        self.node.lab.dir().join("pods.json")
    }

    /// An agent that asks containerd of pods.
    fn agent(&self, arguments: &[&str]) -> Result<Agent> {
        let socket = self.containerd.socket().display().to_string();
        self.node.agent(&[&["--cri-socket", &socket], arguments].concat())
    }

    /// Brings the pods file up to date.
    fn tell_pods(&self) -> Result<()> {
        self.node.lab.write_pods_file(&self.pods_file())
    }

    /// Runs a pod's sandbox as it was asked for.
    fn run(&self, asked: Asked<'_>) -> Result<CriPod> {
        self.run_with(asked, asked.range)
    }

    /// Runs a pod's sandbox with `given` in place of the range recorded.
    fn run_with(&self, asked: Asked<'_>, given: Option<IdRange>) -> Result<CriPod> {
        let Asked { name, handler, range, host_network } = asked;
        let host_users = range.map(|_| false);
        let spec = PodSpec { name: name.to_owned(), record: range, host_users, ..PodSpec::default() };
        let pod = self.node.lab.pod(spec)?;
        self.tell_pods()?;
        self.containerd.run(&pod, CriPodSpec { host_network, ..CriPodSpec::new(handler, given) })
    }
}

/// A container called `name` that runs `args`, or sleeps if there are none.
fn container(name: &str, args: &[&str]) -> CriContainerSpec {
    let command = args.iter().copied().map(str::to_owned).collect();
    CriContainerSpec { name: name.to_owned(), command, ..CriContainerSpec::default() }
}

/// Waits until a container has ended; its exit code and why.
fn end(container: &CriContainer) -> Result<(i32, String)> {
    let started = Instant::now();
    loop {
        if let Some(ended) = container.ended()? {
            return Ok(ended);
        }
        ensure!(started.elapsed() < Duration::from_secs(10) * slowdown(), "a container does not end");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a shell script in a container, which must go well; what it wrote.
fn shell(container: &CriContainer, script: &str) -> Result<String> {
    let output = container.exec(&["sh", "-c", script])?;
    ensure!(output.code == 0, "`{script}` failed: {output:?}");
    Ok(output.stdout)
}

/// Holds that an agent that looks finds all processes of the pod, in however deep a cgroup, and that at least
/// `nested` user namespaces below the pod's are in use.
fn attributed(cluster: &Cluster, pod: &CriPod, nested: u64) -> Result<()> {
    let started = Instant::now();
    loop {
        let pods = honest::look(cluster)?;
        let told = pods.iter().find(|told| told["uid"] == pod.pod().uid()).context("the pod is not known")?;
        let count = processes(pod.pod().cgroup_dir())?;
        let enough = told["nested_user_namespaces"].as_u64().is_some_and(|found| found >= nested);
        if told["processes"] == count && enough && told["verdict"] == "honoured" {
            return Ok(());
        }
        // processes come and go between two looks
        let limit = Duration::from_secs(5) * slowdown();
        ensure!(started.elapsed() < limit, "with {count} processes, the pod is told as {told:#}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// How many processes there are in a cgroup and below.
fn processes(cgroup: &Path) -> Result<usize> {
    let own = fs::read_to_string(cgroup.join("cgroup.procs"));
    let mut count = own.with_context(|| format!("no cgroup {}", cgroup.display()))?.lines().count();
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            count += processes(&entry.path())?;
        }
    }
    Ok(count)
}

/// Holds that the agent lost nothing and told of nothing.
fn silence(agent: &Agent) -> Result<()> {
    nothing_lost(agent)?;
    ensure!(agent.findings().is_empty(), "{}", told(agent));
    Ok(())
}

/// Holds that the agent lost nothing, and told of nothing but of user namespaces and id-mapped mounts that programs made, as
/// facts: of each of so many containers that there were some.
fn only_made(agent: &Agent, containers: usize) -> Result<()> {
    nothing_lost(agent)?;
    let findings = agent.findings();
    let rule = |line: &Line| line.text("/finding/rule/id").unwrap_or_default().to_owned();
    let fact = |line: &Line| {
        matches!(rule(line).as_str(), "I9" | "I10") && line.text("/finding/rule/severity") == Some("info")
    };
    let opened = |line: &&Line| rule(line) == "I10" && line.text("/finding/status") == Some("opened");
    let as_it_should_be = findings.iter().all(fact) && findings.iter().filter(opened).count() == containers;
    ensure!(as_it_should_be, "{}", told(agent));
    Ok(())
}

/// Holds that the agent lost nothing, once all is told.
fn nothing_lost(agent: &Agent) -> Result<()> {
    thread::sleep(Duration::from_millis(2500));
    let metrics = agent.http_get("/metrics")?.body;
    ensure!(losses(&metrics).is_empty(), "{:?}", losses(&metrics));
    Ok(())
}
