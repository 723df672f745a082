//! Pods of every kind, which are known by their UIDs and container ids, and of which nothing is to be said.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, chown},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::{Value, json};
use xtask::lab::{
    Agent, CriContainer, CriContainerSpec, CriPod, CriResources, Handler, IdRange, RuntimeName,
};

use super::{Asked, Cluster, container, end, shell, silence};
use crate::{metric, slowdown};

/// Of each runtime, as exec probes make them in minutes.
const PROBES: u32 = 200;
const BETWEEN_PROBES: Duration = Duration::from_secs(1);
/// What [`restarts`] may use, and what it takes.
const MEMORY: i64 = 32 << 20;
const HOG: [&str; 5] = ["dd", "if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"];

#[test]
fn honest_pods_are_known_and_left_alone() -> Result<()> {
    let Some(cluster) = Cluster::new("honest_pods")? else { return Ok(()) };
    let handlers = cluster.containerd.handlers_with_user_namespaces()?;
    for name in RuntimeName::ALL.map(|name| name.to_string()) {
        ensure!(handlers.contains(&name), "{name} says that it does no user namespaces: {handlers:?}");
    }
    cluster.tell_pods()?;
    // the file says what is declared, as the API server does
    let agent = cluster.agent(&["--pods-file", &cluster.pods_file().display().to_string()])?;
    let started = Instant::now();
    side_by_side(&cluster, &agent)?;
    println!("pods side by side after {:.1?}", started.elapsed());
    // both runtimes at once, as on any node
    let kinds = |(runtime, range)| every_kind(&cluster, runtime, IdRange::nth(range));
    thread::scope(|scope| {
        let workers = RuntimeName::ALL.into_iter().zip([46_010, 46_020]);
        let workers: Vec<_> = workers.map(|each| scope.spawn(move || kinds(each))).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, Result<()>>| {
            worker.join().map_err(|_panic| anyhow!("a runtime's thread panicked"))?
        };
        workers.into_iter().try_for_each(join)
    })?;
    println!("pods of every kind after {:.1?}", started.elapsed());
    silence(&agent)?;
    let stopped = agent.stop()?;
    ensure!(stopped.status.code() == Some(0), "SIGTERM ended it with {}", stopped.status);
    Ok(())
}

/// A pod that runs, and what is to be known of it.
struct Known {
    app: CriContainer,
    pod: CriPod,
    asked: Asked<'static>,
}

/// Pods with and without user namespaces at the same time, each container told right.
fn side_by_side(cluster: &Cluster, agent: &Agent) -> Result<()> {
    let mut pods = Vec::new();
    for (runtime, range) in RuntimeName::ALL.into_iter().zip([46_000, 46_001]) {
        let of =
            |name, range, host_network| Asked { name, handler: Handler::Oci(runtime), range, host_network };
        for asked in [
            of("tenant", Some(IdRange::nth(range)), false),
            of("host-users", None, false),
            of("host-network", None, true),
        ] {
            let pod = cluster.run(asked)?;
            let app = pod.start(&container("app", &[]))?;
            pods.push(Known { app, pod, asked });
        }
    }
    cluster.tell_pods()?;
    let started = Instant::now();
    // what the agent knows follows what there is
    loop {
        let told = pods.iter().try_for_each(|known| told_right(&look(cluster)?, known));
        match told {
            Ok(()) => break,
            Err(error) if started.elapsed() > Duration::from_secs(5) * slowdown() => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
    // nobody sees the pods of the host's own namespaces in a cgroup of their own accord
    let metrics = || Ok::<_, anyhow::Error>(agent.http_get("/metrics")?.body);
    let containers = 2 * pods.len();
    let started = Instant::now();
    loop {
        let text = metrics()?;
        let with = metric(&text, "userns_pods", &[("promise", "user_namespace")]);
        let live = metric(&text, "userns_containers", &[]);
        if (with, live) == (2.0, containers as f64) {
            return Ok(());
        }
        let limit = Duration::from_secs(10) * slowdown();
        ensure!(started.elapsed() < limit, "{with} pods with user namespaces, {live} containers are known");
        thread::sleep(Duration::from_millis(100));
    }
}

/// What the agent knows and sees of each pod at one look.
pub(super) fn look(cluster: &Cluster) -> Result<Vec<Value>> {
    let lab = &cluster.node.lab;
    let output = Command::new(&cluster.node.bin)
        .args(["ps", "--output", "json", "--kubelet-root"])
        .arg(lab.kubelet_root())
        .arg("--cgroup-root")
        .arg(lab.cgroup_root())
        .arg("--socket")
        .arg(lab.dir().join("agent.sock"))
        .output()
        .context("cannot start the agent")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(0), "ended with {}: {text}{errors}", output.status);
    serde_json::from_str(&text).with_context(|| format!("no list of pods: {text}"))
}

fn told_right(pods: &[Value], known: &Known) -> Result<()> {
    let Asked { name, range, .. } = known.asked;
    let map = |range: IdRange| json!([{"container_id": 0, "host_id": range.first, "length": range.length}]);
    let whole = json!([{"container_id": 0, "host_id": 0, "length": u32::MAX}]);
    let own = range.map_or_else(|| whole.clone(), map);
    let verdict = json!(if range.is_some() { "honoured" } else { "host user namespace" });
    let pod = pods.iter().find(|pod| pod["uid"] == known.pod.pod().uid());
    let pod = pod.with_context(|| format!("{:?} is not known: {pods:#?}", known.asked))?;
    for (key, expected) in [
        ("namespace", json!("default")),
        ("name", json!(name)),
        ("host_users", json!(range.map(|_| false))),
        ("verdict", verdict.clone()),
        ("uid_map", own.clone()),
        ("gid_map", own),
        ("sources", json!(["pods_file", "cri"])),
        (
            "asked_of_runtime",
            json!({"mode": if range.is_some() { "pod" } else { "node" }, "uid_map": range.map(map)}),
        ),
        ("findings", json!([])),
    ] {
        ensure!(pod[key] == expected, "{key} is not {expected}: {pod:#}");
    }
    let containers = pod["containers"].as_array().context("no containers")?;
    for (id, kind, name) in [(known.pod.id(), "sandbox", ""), (known.app.id(), "container", "app")] {
        let container = containers.iter().find(|container| container["id"] == id);
        let container = container.with_context(|| format!("container {id} is not known: {pod:#}"))?;
        ensure!(
            container["kind"] == kind && container["name"] == name && container["verdict"] == verdict,
            "{id} is the {kind} {name}: {pod:#}"
        );
    }
    ensure!(containers.len() == 2, "there are two containers: {pod:#}");
    Ok(())
}

/// What pods do in days, in seconds.
fn every_kind(cluster: &Cluster, runtime: RuntimeName, range: IdRange) -> Result<()> {
    let handler = Handler::Oci(runtime);
    let pod = cluster.run(Asked { name: "kinds", handler, range: Some(range), host_network: false })?;
    let init = pod.start(&container("init", &["true"]))?;
    ensure!(end(&init)?.0 == 0, "the init container failed");
    let sidecar = pod.start(&container("sidecar", &[]))?;
    let volumes = vec![("data".to_owned(), "/data".to_owned())];
    let app = pod.start(&CriContainerSpec { volumes, ..container("app", &[]) })?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let prober = scope.spawn(|| probe(&sidecar, &done));
        let work = others(cluster, &pod, &app);
        done.store(true, Ordering::Relaxed);
        let probed = prober.join().map_err(|_panic| anyhow!("the prober panicked"))?;
        work.and(probed).with_context(|| format!("with {runtime}"))
    })
}

/// An exec probe, every second.
fn probe(sidecar: &CriContainer, done: &AtomicBool) -> Result<()> {
    while !done.load(Ordering::Relaxed) {
        shell(sidecar, "true")?;
        thread::sleep(BETWEEN_PROBES);
    }
    Ok(())
}

fn others(cluster: &Cluster, pod: &CriPod, app: &CriContainer) -> Result<()> {
    volume(cluster, pod, app).context("volume")?;
    ephemeral(pod, app).context("ephemeral container")?;
    nested_cgroups(pod).context("nested cgroups")?;
    restarts(cluster, pod).context("restarts")?;
    let started = Instant::now();
    let probes = PROBES / slowdown();
    for _ in 0..probes {
        shell(app, "true")?;
    }
    println!("{probes} probes in {:.1?}", started.elapsed());
    Ok(())
}

/// Files of a volume belong to the pod's root inside, and to the host's root on the host.
fn volume(cluster: &Cluster, pod: &CriPod, app: &CriContainer) -> Result<()> {
    let owner = shell(app, "echo x >/data/file; chown 1000:1000 /data; stat -c %u:%g /data /data/file")?;
    ensure!(owner == "1000:1000\n0:0\n", "inside they are {owner}");
    let data = cluster.containerd.on_host(&format!("run/volumes/{}/data", pod.pod().uid()));
    let owner = |path| fs::metadata(path).map(|of| of.uid()).context("the volume is not on the host");
    ensure!((owner(data.clone())?, owner(data.join("file"))?) == (1000, 0), "the mount is not idmapped");
    Ok(())
}

/// A container that comes later and works in another's PID namespace, as `kubectl debug` makes it.
fn ephemeral(pod: &CriPod, app: &CriContainer) -> Result<()> {
    let target = Some(app.id().to_owned());
    let debugger = pod.start(&CriContainerSpec { target, ..container("debugger", &["sleep", "1234"]) })?;
    // it is started, and on its way to its program
    let started = Instant::now();
    loop {
        let seen = shell(app, "ps")?;
        if seen.contains("sleep 1234") {
            return debugger.stop();
        }
        let limit = Duration::from_secs(5) * slowdown();
        ensure!(started.elapsed() < limit, "the debugger is not in the target's PID namespace: {seen}");
    }
}

/// Gives a container's cgroup to the pod's root, as runtimes do for one that may write to it.
pub(super) fn delegate(pod: &CriPod, container: &CriContainer) -> Result<()> {
    let root = pod.spec().range.map(|range| range.first);
    for file in ["", "cgroup.procs", "cgroup.subtree_control"] {
        let path = container.cgroup_dir().join(file);
        chown(&path, root, root).with_context(|| format!("cannot delegate {}", path.display()))?;
    }
    Ok(())
}

/// A workload with a cgroup of its own, as container managers in containers are given it.
fn nested_cgroups(pod: &CriPod) -> Result<()> {
    let capabilities = vec!["SYS_ADMIN".to_owned()];
    let manager = pod.start(&CriContainerSpec { capabilities, ..container("manager", &[]) })?;
    delegate(pod, &manager)?;
    let script = "mkdir /cgroup && mount -t cgroup2 none /cgroup && mkdir -p /cgroup/a/b && \
                  echo $$ >/cgroup/a/b/cgroup.procs && (true; sed -n s/^0:://p /proc/self/cgroup)";
    let own = shell(&manager, script)?;
    ensure!(own == "/a/b\n", "the shell has moved to {own:?}");
    manager.stop()
}

/// Containers that die, by whatever hand, and are replaced in the same sandbox.
fn restarts(cluster: &Cluster, pod: &CriPod) -> Result<()> {
    for _ in 0..2 {
        let victim = pod.start(&container("victim", &[]))?;
        victim.kill()?;
        ensure!(end(&victim)?.0 == 137, "SIGKILL is not how it ended");
    }
    let controllers = fs::read_to_string(cluster.node.lab.cgroup_root().join("cgroup.controllers"))?;
    if !controllers.split_whitespace().any(|controller| controller == "memory") {
        println!("no memory controller in the unified hierarchy: no container is killed for its memory");
        return Ok(());
    }
    let resources = Some(CriResources { memory_limit: MEMORY, ..CriResources::default() });
    let hog = pod.start(&CriContainerSpec { resources, ..container("victim", &HOG) })?;
    let (code, reason) = end(&hog)?;
    ensure!((code, reason.as_str()) == (137, "OOMKilled"), "it ended with {code}: {reason}");
    Ok(())
}
