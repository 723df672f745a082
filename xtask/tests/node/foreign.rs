//! Who comes into a pod's namespaces without coming into its cgroup, from the host and from another pod; and runtimes,
//! which do so for a moment.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use xtask::lab::{
    Agent, Capabilities, Container, ContainerSpec, IdRange, Line, Pod, PodSpec, ProcessSpec, RuntimeName,
};

use crate::{Node, losses, metric, rounds, slowdown, told};

/// A pod with a user namespace, and a container that sleeps in it.
fn honest(node: &Node, runtime: RuntimeName, range: u16) -> Result<(Pod, Container)> {
    let range = IdRange::nth(range);
    let pod = node.lab.pod(PodSpec { name: "p".into(), record: Some(range), ..PodSpec::default() })?;
    let spec = ContainerSpec { runtime, mapping: Some(range.mapping()), ..ContainerSpec::default() };
    let container = pod.run(spec)?;
    // its program runs
    rounds::exec(&container, &ProcessSpec::new(&["true"]))?;
    Ok((pod, container))
}

fn entered<'a>(pod: &'a Pod, by: &'a str) -> impl Fn(&Line) -> bool + 'a {
    move |line| {
        line.text("/finding/rule/id") == Some("I12")
            && line.text("/pod/uid") == Some(pod.uid())
            && line.text("/finding/why").is_some_and(|why| why.contains(by))
    }
}

/// Runs nsenter of the host with `flags`, and a program that ends at once.
fn from_the_host(container: &Container, flags: &[&str]) -> Result<()> {
    let target = container.pid()?.to_string();
    let mut command = Command::new("nsenter");
    command.args(["-t", &target]).args(flags).arg("/bin/true").stdin(Stdio::null());
    let status = command.status().context("cannot run nsenter")?;
    ensure!(status.success(), "nsenter {flags:?}: {status}");
    Ok(())
}

fn wait(agent: &Agent, wanted: impl Fn(&Line) -> bool) -> Result<Line> {
    agent.wait_for(wanted, Duration::from_secs(5) * slowdown())
}

#[test]
fn who_enters_a_pod_from_elsewhere_is_told_and_from_where() -> Result<()> {
    let Some(node) = Node::new("who_enters_a_pod_from_elsewhere")? else { return Ok(()) };
    let agent = node.agent(&[])?;
    let (pod, container) = honest(&node, RuntimeName::Runc, 45_000)?;
    from_the_host(&container, &["-U"])?;
    let line = wait(&agent, entered(&pod, "user namespace"))?;
    ensure!(line.json["from"].is_null(), "{}", line.json);
    ensure!(line.text("/finding/rule/severity") == Some("medium"), "{}", line.json);
    ensure!(line.text("/process/lineage/origin") == Some("foreign"), "{}", line.json);

    // a second pod, so that this is not the same container's finding
    let (pod, container) = honest(&node, RuntimeName::Crun, 45_001)?;
    from_the_host(&container, &["-m", "-p"])?;
    wait(&agent, entered(&pod, "mount and PID namespaces with user id 0"))?;

    let (pod, container) = honest(&node, RuntimeName::Runc, 45_002)?;
    let other = node.lab.pod(PodSpec { name: "debug".into(), ..PodSpec::default() })?;
    let spec = ContainerSpec {
        capabilities: Capabilities::All,
        host_pid_namespace: true,
        ..ContainerSpec::default()
    };
    let debugger = other.run(spec)?;
    let target = container.pid()?.to_string();
    let mut nsenter = ProcessSpec::new(&["nsenter", "-t", &target, "-U", "true"]);
    nsenter.capabilities = Capabilities::All;
    rounds::exec(&debugger, &nsenter)?;
    let line = wait(&agent, entered(&pod, other.uid()))?;
    ensure!(line.text("/from/pod/uid") == Some(other.uid()), "{}", line.json);

    agent.settle(Duration::from_secs(3))?;
    let rules: Vec<String> = agent
        .findings()
        .iter()
        .filter(|line| line.text("/finding/status") == Some("opened"))
        .filter_map(|line| line.text("/finding/rule/id").map(str::to_owned))
        .collect();
    ensure!(rules.len() == 3 && rules.iter().all(|rule| rule == "I12"), "{rules:?}{}", told(&agent));
    let metrics = agent.http_get("/metrics")?.body;
    ensure!(losses(&metrics).is_empty(), "{:?}", losses(&metrics));
    Ok(())
}

#[test]
fn runtimes_that_execute_into_a_pod_and_join_its_sandbox_are_not_told() -> Result<()> {
    let Some(node) = Node::new("runtimes_that_execute_into_a_pod")? else { return Ok(()) };
    let agent = node.agent(&[])?;
    for (runtime, nth) in RuntimeName::ALL.into_iter().zip(45_010..) {
        let (pod, sandbox) = honest(&node, runtime, nth)?;
        // a container that joins the sandbox's user namespace, as every one but the first does
        let range = IdRange::nth(nth);
        let spec = ContainerSpec {
            runtime,
            mapping: Some(range.mapping()),
            sandbox: Some(sandbox.pid()?),
            ..ContainerSpec::default()
        };
        let second = pod.run(spec)?;
        for _ in 0..20 {
            rounds::exec(&sandbox, &ProcessSpec::new(&["true"]))?;
            rounds::exec(&second, &ProcessSpec::new(&["true"]))?;
        }
    }
    // longer than the grace period and a sweep
    agent.settle(Duration::from_secs(9))?;
    ensure!(agent.findings().is_empty(), "{}", told(&agent));
    Ok(())
}

/// A program called `conmon` that sleeps, and ends with the value.
pub(crate) struct Monitor(pub(crate) Child);

impl Monitor {
    pub(crate) fn start(at: &Path) -> Result<Self> {
        // any static program will do for the executable: its identity is what counts
        let child = Command::new(at).arg0("sleep").arg("600").stdin(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| format!("cannot start {}", at.display()))?))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_monitor_may_stay_in_a_containers_cgroup_and_an_impostor_may_not() -> Result<()> {
    let Some(node) = Node::new("a_monitor_may_stay_in_a_containers_cgroup")? else { return Ok(()) };
    let [own, other] = ["own", "other"].map(|name| node.lab.dir().join(name).join("conmon"));
    for path in [&own, &other] {
        std::fs::create_dir_all(path.parent().context("a file in a directory")?)?;
        std::fs::copy(node.lab.busybox()?, path)?;
    }
    let runtimes = node.lab.runtimes();
    let paths =
        [&runtimes.runc.path, &runtimes.crun.path, &own].map(|path| path.display().to_string()).join(",");
    let agent = node.agent(&["--runtime-paths", &paths, "--sweep-interval", "1s"])?;
    let (_pod, container) = honest(&node, RuntimeName::Runc, 45_020)?;
    let monitor = Monitor::start(&own)?;
    node.lab.move_into_cgroup(monitor.0.id(), &container)?;
    // longer than the grace period and a sweep
    std::thread::sleep(Duration::from_secs(9) * slowdown());
    ensure!(agent.findings().is_empty(), "{}", told(&agent));
    let monitors = metric(&agent.http_get("/metrics")?.body, "userns_monitors", &[]);
    ensure!((monitors - 1.0).abs() < f64::EPSILON, "{monitors} monitors are counted");

    let impostor = Monitor::start(&other)?;
    node.lab.move_into_cgroup(impostor.0.id(), &container)?;
    let pid = format!("(pid {})", impostor.0.id());
    wait(&agent, |line| {
        line.text("/finding/rule/id") == Some("I2")
            && line.text("/finding/why").is_some_and(|why| why.contains(&pid))
    })?;
    Ok(())
}
