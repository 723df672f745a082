//! The DaemonSet of deploy/kustomize: its image under its own mounts and security context, next to pods of the node.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use xtask::{
    image,
    lab::{
        CriContainer, CriLog, CriPod, DaemonSet, DaemonSetPod, Handler, IdRange, MemoryVolume, Probe,
        Response, RuntimeName,
    },
    steps::Steps,
};

use super::{Asked, Cluster, container, shell};
use crate::{DEFAULT, foreign::Monitor, leftovers, losses, mechanism, metric, slowdown};

const NODE_NAME: &str = "lab-node";
/// Where a node may have a runtime's monitor, as the manifest's settings have it.
const CONMON: &str = "opt/bin/conmon";
/// Within which a finding has to be in the container's log.
const LIMIT: Duration = Duration::from_secs(2);
/// Inode number of the initial user namespace (PROC_USER_INIT_INO, include/linux/proc_ns.h).
const INITIAL_USERNS: u32 = 0xefff_fffd;
/// Longer than the time after which an entry is late.
const QUIET: Duration = Duration::from_secs(3);

/// The DaemonSet's pod, ready.
struct Deployed {
    daemon_set: DaemonSet,
    pod: DaemonSetPod,
}

/// A pod, and its one container. Fields in the order in which they go away.
struct Running {
    app: CriContainer,
    pod: CriPod,
}

#[test]
fn the_daemon_set_tells_of_an_escape_and_of_nothing_else() -> Result<()> {
    let Some(cluster) = Cluster::new("daemon_set")? else { return Ok(()) };
    let on_node = on_node(&cluster)?;
    let mut agent = Deployed::start(&cluster)?;
    agent.lacks_nothing(&on_node)?;
    let mut pods = honest(&cluster, &agent)?;
    agent.follows_mounts(&cluster)?;
    let mut expected = ignored(&cluster, &agent, &mut pods).context("a runtime that ignores the promise")?;
    expected.push(escaped(&cluster, &agent, &mut pods).context("a process of the host in a sound pod")?);
    thread::sleep(QUIET * slowdown());
    agent.told(expected)?;
    agent.pod.restart()?;
    agent.become_ready()?;
    thread::sleep(QUIET * slowdown());
    agent.told(Vec::new()).context("after a restart of the container")?;
    agent.stop()
}

impl Deployed {
    /// Makes the image, imports it, and does with the pod what kubelet does until it is ready.
    fn start(cluster: &Cluster) -> Result<Self> {
        let lab = &cluster.node.lab;
        let archive = image::archive(&mut Steps::default(), &cluster.node.bin, &lab.dir().join("image"))?;
        let conmon = cluster.containerd.on_host(CONMON);
        fs::create_dir_all(conmon.parent().context("a file in a directory")?)?;
        fs::copy(lab.busybox()?, conmon)?;
        let daemon_set = DaemonSet::base()?;
        cluster.containerd.import(&archive, daemon_set.image())?;
        let mut more = Vec::new();
        if slowdown() > 1 {
            more.push(("USERNS_AGENT_ENTRY_GRACE".to_owned(), format!("{}s", 2 * slowdown())));
        }
        if mechanism() != DEFAULT {
            more.push(("USERNS_AGENT_PROBE_MECHANISM".to_owned(), mechanism()));
        }
        let pod = daemon_set.run(lab, &cluster.containerd, NODE_NAME, &more)?;
        let agent = Self { daemon_set, pod };
        agent.become_ready()?;
        Ok(agent)
    }

    fn become_ready(&self) -> Result<()> {
        let started = Instant::now();
        self.until(&self.daemon_set.startup_probe()?)?;
        let answered = started.elapsed();
        self.until(&self.daemon_set.readiness_probe()?)?;
        println!("it answers {answered:.1?} after its start, and is ready after {:.1?}", started.elapsed());
        Ok(())
    }

    /// Asks as often as the probe may fail.
    fn until(&self, probe: &Probe) -> Result<()> {
        let mut last = String::new();
        for _ in 0..probe.failures * slowdown() {
            match self.ask(probe) {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => last = format!("{} {}", answer.status, answer.body),
                Err(error) => last = format!("{error:#}"),
            }
            if let Some(ended) = self.pod.container().ended()? {
                bail!("it ended with {ended:?}; {:#?}", self.log()?);
            }
            thread::sleep(probe.period);
        }
        bail!("{probe:?} fails too often, at last with {last}; {:#?}", self.log()?)
    }

    fn ask(&self, probe: &Probe) -> Result<Response> {
        let started = Instant::now();
        let answer = self.pod.ask(probe)?;
        ensure!(started.elapsed() < probe.timeout * slowdown(), "no answer within {:?}", probe.timeout);
        Ok(answer)
    }

    /// What it answers at `path`.
    fn get(&self, path: &str) -> Result<String> {
        let probe = self.daemon_set.readiness_probe()?;
        Ok(self.ask(&Probe { path: path.to_owned(), ..probe })?.body)
    }

    fn log(&self) -> Result<CriLog> {
        self.pod.container().log()
    }

    fn findings(&self) -> Result<Vec<Value>> {
        let read =
            |line: &String| serde_json::from_str::<Value>(line).with_context(|| format!("no JSON: {line}"));
        let lines = self.log()?.stdout.iter().map(read).collect::<Result<Vec<_>>>()?;
        Ok(lines.into_iter().filter(|line| line["event"] == "finding").collect())
    }

    /// Waits for a finding of `rule` about `pod`.
    fn finding(&self, rule: &str, pod: &CriPod) -> Result<Value> {
        let started = Instant::now();
        loop {
            let about = |finding: &Value| {
                finding["finding"]["rule"]["id"] == rule && finding["pod"]["uid"] == pod.pod().uid()
            };
            if let Some(finding) = self.findings()?.into_iter().find(about) {
                println!("{rule} is in the log {:.1?} later", started.elapsed());
                return Ok(finding);
            }
            ensure!(started.elapsed() < LIMIT * slowdown(), "no {rule} within {LIMIT:?}; {:#?}", self.log()?);
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Holds that the agent can do in the manifest's container what it can on the node itself, and has its sources.
    fn lacks_nothing(&self, on_node: &Value) -> Result<()> {
        let status: Value = serde_json::from_str(&self.get("/status")?)?;
        ensure!(status["node"] == NODE_NAME, "its node is {}", status["node"]);
        ensure!(status["reference"]["inode"] == INITIAL_USERNS, "the host's is {}", status["reference"]);
        ensure!(
            hooks(&status) == hooks(on_node),
            "hooks are {:#}, and on the node {on_node:#}",
            status["probes"]
        );
        // the runtime is asked while the agent becomes ready
        let started = Instant::now();
        loop {
            let status: Value = serde_json::from_str(&self.get("/status")?)?;
            let sources = status["sources"].as_array().into_iter().flatten();
            let up: Vec<_> = sources.filter(|of| of["up"] == true).map(|of| of["name"].clone()).collect();
            if up == ["kubelet", "cri", "cgroups"] {
                return Ok(());
            }
            ensure!(started.elapsed() < LIMIT * slowdown(), "its sources are {:#}", status["sources"]);
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Holds that `userns-agent ps` in the container tells each of `pods` by name, and what it runs in.
    fn lists(&self, pods: &[Running]) -> Result<()> {
        let program = "/usr/bin/userns-agent";
        let arguments = [program, "ps", "--config", "/etc/userns-agent/agent.yaml", "--output", "json"];
        let listed = self.pod.container().exec(&arguments)?;
        ensure!(listed.code == 0, "{listed:?}");
        let rows: Vec<Value> = serde_json::from_str(&listed.stdout)?;
        for pod in pods.iter().map(|running| &running.pod) {
            let row = rows.iter().find(|row| row["uid"] == pod.pod().uid());
            let row = row.with_context(|| format!("{pod:?} is not listed: {rows:#?}"))?;
            let verdict = if pod.spec().range.is_some() { "honoured" } else { "host user namespace" };
            ensure!(row["name"] == pod.pod().name() && row["verdict"] == verdict, "{row:#}");
        }
        Ok(())
    }

    /// Holds that what kubelet mounts for a pod is not kept mounted by the agent.
    fn follows_mounts(&self, cluster: &Cluster) -> Result<()> {
        let seen = || {
            let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", self.pid()?))?;
            Ok::<_, anyhow::Error>(mounts.contains("kubernetes.io~empty-dir/late "))
        };
        let volume = MemoryVolume::new(&cluster.containerd, self.pod.pod().pod(), "late", 1 << 20)?;
        ensure!(seen()?, "a volume mounted later is not in the agent's mounts");
        drop(volume);
        ensure!(!seen()?, "the agent keeps a volume mounted that the node has unmounted");
        Ok(())
    }

    /// Host pid of the container's one process.
    fn pid(&self) -> Result<u32> {
        let file = self.pod.container().cgroup_dir().join("cgroup.procs");
        let pids = fs::read_to_string(&file).with_context(|| format!("no {}", file.display()))?;
        let pids = pids.lines().collect::<Vec<_>>();
        ensure!(pids.len() == 1, "processes {pids:?} in the agent's container");
        Ok(pids[0].parse()?)
    }

    /// Holds that `expected` was told, each once, and nothing else; rules and containers.
    fn told(&self, mut expected: Vec<(&str, String)>) -> Result<()> {
        let findings = self.findings()?;
        let opened = findings.iter().filter(|line| line["finding"]["status"] == "opened");
        let key = |line: &Value| {
            let text =
                |pointer: &str| line.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
            (text("/finding/rule/id"), text("/container/id"))
        };
        let mut opened: Vec<_> = opened.map(key).collect();
        opened.sort();
        expected.sort();
        let expected: Vec<_> = expected.into_iter().map(|(rule, id)| (rule.to_owned(), id)).collect();
        let metrics = self.get("/metrics")?;
        let why = findings.iter().map(|line| {
            let pid = line["process"]["pid"].as_u64().unwrap_or_default();
            let now = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            format!("\n{} [pid {pid} is now: {now}]", line["finding"]["why"])
        });
        let why: String = why.collect();
        ensure!(
            opened == expected,
            "expected {expected:?}, and was told {opened:?}{why}; losses: {:?}",
            losses(&metrics)
        );
        ensure!(losses(&metrics).is_empty(), "{:?}", losses(&metrics));
        Ok(())
    }

    /// Ends it as kubelet does, and holds that nothing of it stays.
    fn stop(&self) -> Result<()> {
        let liveness = self.daemon_set.liveness_probe()?;
        ensure!(self.ask(&liveness)?.status == 200, "it is not alive");
        let held = leftovers::objects(self.pid()?);
        ensure!(!held.is_empty(), "a running agent holds no eBPF objects");
        let (started, grace) = (Instant::now(), self.daemon_set.grace());
        self.pod.container().stop_within(grace)?;
        let took = started.elapsed();
        let ended = self.pod.container().ended()?;
        ensure!(took < grace, "it was killed after {took:.1?}");
        ensure!(
            ended.as_ref().is_some_and(|ended| ended.0 == 0),
            "it ended with {ended:?}; {:#?}",
            self.log()?
        );
        let freed = leftovers::wait_until_freed(&held)?;
        println!(
            "it ended {took:.1?} after SIGTERM, and its {} objects were gone {freed:.1?} later",
            held.len()
        );
        Ok(())
    }
}

/// What the agent says when it is ready that runs on the node, outside of any container.
fn on_node(cluster: &Cluster) -> Result<Value> {
    let agent = cluster.agent(&[])?;
    let ready = agent.lines().into_iter().find(|line| line.text("/state") == Some("ready"));
    agent.stop()?;
    Ok(ready.context("an agent that is ready does not say so")?.json)
}

/// Each hook, how it is attached, and whether.
fn hooks(said: &Value) -> Vec<[&Value; 3]> {
    let probes = said["probes"].as_array().into_iter().flatten();
    probes.map(|probe| ["hook", "mechanism", "state"].map(|key| &probe[key])).collect()
}

impl Running {
    fn new(cluster: &Cluster, asked: Asked<'_>) -> Result<Self> {
        let pod = cluster.run(asked)?;
        Ok(Self { app: pod.start(&container("app", &[]))?, pod })
    }
}

/// Pods of which there is nothing to say, and that the agent knows by name.
fn honest(cluster: &Cluster, agent: &Deployed) -> Result<Vec<Running>> {
    let mut pods = Vec::new();
    for (runtime, range) in RuntimeName::ALL.into_iter().zip([49_000, 49_001]) {
        for (name, range) in [("tenant", Some(IdRange::nth(range))), ("host-users", None)] {
            let asked = Asked { name, handler: Handler::Oci(runtime), range, host_network: false };
            let running = Running::new(cluster, asked)?;
            for _ in 0..5 {
                shell(&running.app, "true")?;
            }
            pods.push(running);
        }
    }
    // of the node's executables, one that may stay for good: the agent has to find it on the node, not in its image
    let monitor = Monitor::start(&cluster.containerd.on_host(CONMON))?;
    pods[0].app.take_in(monitor.0.id())?;
    thread::sleep(QUIET * slowdown());
    agent.told(Vec::new())?;
    let monitors = metric(&agent.get("/metrics")?, "userns_monitors", &[]);
    ensure!((monitors - 1.0).abs() < f64::EPSILON, "{monitors} monitors are counted");
    agent.lists(&pods)?;
    Ok(pods)
}

/// A pod whose runtime knows nothing of user namespaces; what is to be told.
fn ignored(
    cluster: &Cluster,
    agent: &Deployed,
    pods: &mut Vec<Running>,
) -> Result<Vec<(&'static str, String)>> {
    let range = Some(IdRange::nth(49_010));
    let asked = Asked { name: "ignored", handler: Handler::Ignoring, range, host_network: false };
    let running = Running::new(cluster, asked)?;
    let finding = agent.finding("I3", &running.pod)?;
    ensure!(finding["node"] == NODE_NAME && finding["pod"]["name"] == "ignored", "{finding:#}");
    let expected = [running.pod.id(), running.app.id()].map(|id| ("I3", id.to_owned()));
    pods.push(running);
    Ok(expected.into())
}

/// A process with the host's user namespace in a sound pod; what is to be told.
fn escaped(cluster: &Cluster, agent: &Deployed, pods: &mut Vec<Running>) -> Result<(&'static str, String)> {
    let handler = Handler::Oci(RuntimeName::Runc);
    let range = Some(IdRange::nth(49_020));
    let running = Running::new(cluster, Asked { name: "entered", handler, range, host_network: false })?;
    let process = cluster.node.lab.host_process_named("runc:[2:INIT]")?;
    running.app.take_in(process.pid())?;
    let finding = agent.finding("I2", &running.pod)?;
    ensure!(finding["process"]["pid"] == process.pid(), "{finding:#}");
    ensure!(finding["pod"]["name"] == "entered" && finding["container"]["name"] == "app", "{finding:#}");
    let expected = ("I2", running.app.id().to_owned());
    pods.push(running);
    Ok(expected)
}
