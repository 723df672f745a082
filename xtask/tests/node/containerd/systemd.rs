//! systemd as process 1 of a container, which makes cgroups below the container's own.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use xtask::lab::{Agent, CriContainer, CriContainerSpec, CriPod, Handler, IdRange, RuntimeName};

use super::{Asked, Cluster, attributed, container, honest::delegate, only_made, shell};
use crate::slowdown;

const START: &str = include_str!("systemd.sh");
const START_LIMIT: Duration = Duration::from_secs(20);
/// Within which a finding has to be told.
const LIMIT: Duration = Duration::from_secs(5);
const ACTIVE: &str = "systemctl is-active lab.target basic.target lab-stays.service";
/// Below the container's cgroup.
const STAYS: &str = "lab.slice/lab-stays.service";
const RESTARTS: u32 = 10;

/// A pod that runs systemd. Fields in the order in which they go away.
struct Init {
    container: CriContainer,
    pod: CriPod,
}

#[test]
fn systemd_in_a_pod_is_left_alone_and_its_processes_are_the_pods() -> Result<()> {
    let Some(cluster) = Cluster::new("systemd_in_a_pod")? else { return Ok(()) };
    let agent = cluster.agent(&[])?;
    let mut inits = Vec::new();
    for (runtime, range) in RuntimeName::ALL.into_iter().zip([48_000, 48_001]) {
        let started = Instant::now();
        let init = boot(&cluster, runtime, IdRange::nth(range)).with_context(|| format!("with {runtime}"))?;
        println!("with {runtime}, systemd has started its units after {:.1?}", started.elapsed());
        inits.push(init);
    }
    for Init { container, pod } in &inits {
        work(container)?;
        attributed(&cluster, pod, 0)?;
    }
    // services get user namespaces, and credentials by id-mapped mounts
    only_made(&agent, inits.len())?;
    for init in &inits {
        escape(&cluster, &agent, init)?;
    }
    Ok(())
}

fn boot(cluster: &Cluster, runtime: RuntimeName, range: IdRange) -> Result<Init> {
    let handler = Handler::Oci(runtime);
    let pod = cluster.run(Asked { name: "init", handler, range: Some(range), host_network: false })?;
    let spec = CriContainerSpec {
        capabilities: vec!["SYS_ADMIN".to_owned()],
        volumes: vec![("log".to_owned(), "/log".to_owned())],
        packages: true,
        ..container("init", &["sh", "-c", START])
    };
    let container = pod.start(&spec)?;
    delegate(&pod, &container)?;
    wait_for_units(&container).with_context(|| {
        let log = cluster.containerd.on_host(&format!("run/volumes/{}/log/start", pod.pod().uid()));
        format!("process 1 wrote:\n{}", fs::read_to_string(log).unwrap_or_default())
    })?;
    Ok(Init { container, pod })
}

fn wait_for_units(container: &CriContainer) -> Result<()> {
    let started = Instant::now();
    loop {
        let state = container.exec(&["sh", "-c", ACTIVE])?;
        if state.code == 0 {
            return Ok(());
        }
        if started.elapsed() > START_LIMIT * slowdown() {
            let units =
                container.exec(&["sh", "-c", "systemctl --no-pager list-units; systemctl list-jobs"])?;
            bail!("systemd does not start its units: {state:?}\n{}{}", units.stdout, units.stderr);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Services in cgroups of their own, some of which come and go.
fn work(container: &CriContainer) -> Result<()> {
    let once = shell(container, "cat /run/once")?;
    ensure!(once == "/system.slice/lab-once.service\n", "the service ran in {once:?}");
    for _ in 0..RESTARTS / slowdown() {
        shell(container, "systemctl restart lab-once.service lab-stays.service")?;
    }
    let first = shell(container, "readlink /proc/1/exe")?;
    ensure!(first == "/usr/lib/systemd/systemd\n", "process 1 is {first:?}");
    Ok(())
}

/// The host moves a process of a service out of the container's cgroup: what it is said to come from.
fn escape(cluster: &Cluster, agent: &Agent, Init { container, pod }: &Init) -> Result<()> {
    let service = container.cgroup_dir().join(STAYS);
    let processes = fs::read_to_string(service.join("cgroup.procs"))
        .with_context(|| format!("no service in {}", service.display()))?;
    let process = processes.lines().next().context("the service has no process")?;
    fs::write(cluster.node.lab.cgroup_root().join("cgroup.procs"), process)
        .context("cannot move the process of a service")?;
    agent.wait_for(
        |line| {
            line.text("/finding/rule/id") == Some("I13")
                && line.text("/pod/uid") == Some(pod.pod().uid())
                && line.text("/container/id") == Some(container.id())
        },
        LIMIT * slowdown(),
    )?;
    Ok(())
}
