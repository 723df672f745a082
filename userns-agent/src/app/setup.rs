//! From a configuration to a running pipeline.

use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use tokio::sync::{mpsc, watch};

use super::io::Outputs;
use super::proc_sweep::ProcSweep;
use super::walk::Walker;
use super::{App, RunError, os};
use crate::cgroup;
use crate::config::{ApiServer, Config, Socket};
use crate::core::Limits;
use crate::event::{Body, Event, Fact, Hook, Nanos, PodSource, role};
use crate::host::api::{Access, ApiWatcher, NoAccess, Timing};
use crate::host::cgroupfs::CgroupFs;
use crate::host::cri::{self, CriNudge, CriWatcher};
use crate::host::kubelet::KubeletWatcher;
use crate::host::kubelet_api::{self, KubeletApi};
use crate::host::pods_file::{LOOK_INTERVAL, PodsFileWatcher};
use crate::host::proc::{INITIAL_USERNS, ProcFs};
use crate::host::{Patience, SourceHealth, reference};
use crate::kernel::sizes::{Machine, Sizes};
use crate::kernel::{features, load, object, plan, ring::Ring, status::Probe, status::State};
use crate::policy::{self, RulesWatcher, Surroundings};
use crate::recording;
use crate::sink::{WallClock, boot_now};

/// Facts on their way from the sources to the loop.
const FACTS: usize = 64;

/// The agent's clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock;

impl Clock {
    /// The clock of the kernel's records.
    pub(super) fn now(self) -> Nanos {
        boot_now()
    }

    /// Where boot lies in civil time, which may be corrected at any moment.
    pub(super) fn wall(self) -> WallClock {
        WallClock::now()
    }
}

/// A variable of the environment that is not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The node's name: as configured, of `NODE_NAME`, which a DaemonSet sets, or as the kernel has it.
pub(super) fn node_name(config: &Config) -> String {
    let given = config.node_name.clone().or_else(|| variable("NODE_NAME"));
    given.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}

/// Sources of facts that tell by themselves, each on a task of its own.
pub(super) struct Sources {
    facts: mpsc::Receiver<Vec<Fact>>,
    health: Vec<(&'static str, watch::Receiver<SourceHealth>)>,
    cri: Option<CriNudge>,
}

impl Sources {
    /// Starts them; returns what they know already.
    fn start(config: &Config) -> (Self, Vec<Fact>) {
        let (sender, facts) = mpsc::channel(FACTS);
        let (mut kubelet, health) = KubeletWatcher::new(&config.kubelet_root, config.sweep_interval);
        let mut known = kubelet.initial();
        let mut health = vec![("kubelet", health)];
        let to_loop = sender.clone();
        tokio::spawn(async move { while to_loop.send(kubelet.next().await).await.is_ok() {} });
        let sockets = cri_sockets(config);
        let cri = (!sockets.is_empty()).then(|| {
            let (watcher, nudge, of_cri) = CriWatcher::new(sockets, cri::Times::default(), sender.clone());
            health.push(("cri", of_cri));
            tokio::spawn(watcher.run());
            nudge
        });
        if let Some(path) = &config.rules_file {
            let (mut rules, of_rules) = RulesWatcher::new(path, LOOK_INTERVAL, Surroundings::of(config));
            known.extend(rules.initial());
            health.push(("rules_file", of_rules));
            let to_loop = sender.clone();
            tokio::spawn(async move { while to_loop.send(vec![rules.next().await]).await.is_ok() {} });
        }
        if let Some(path) = &config.pods_file {
            let (mut file, of_file) = PodsFileWatcher::new(path, LOOK_INTERVAL);
            known.extend(file.initial());
            health.push((PodSource::PodsFile.name(), of_file));
            let to_loop = sender.clone();
            tokio::spawn(async move { while to_loop.send(vec![file.next().await]).await.is_ok() {} });
        }
        if config.api_server != ApiServer::Off {
            health.push((PodSource::Api.name(), watch_api(config, sender.clone())));
        }
        if let Some(url) = &config.kubelet_api {
            let (mut kubelet, of_kubelet) = KubeletApi::new(kubelet_api(config, url));
            health.push((PodSource::KubeletApi.name(), of_kubelet));
            tokio::spawn(async move { while sender.send(vec![kubelet.next().await]).await.is_ok() {} });
        }
        (Self { facts, health, cri }, known)
    }

    /// The next facts.
    pub(super) async fn next(&mut self) -> Vec<Fact> {
        match self.facts.recv().await {
            Some(facts) => facts,
            None => std::future::pending().await,
        }
    }

    /// A record came: sources that could know more of its container are told.
    pub(super) fn saw(&self, event: &Event) {
        if let Some(cri) = &self.cri
            && let Some(id) = new_container(event)
        {
            cri.appeared(&id);
        }
    }

    /// How each is doing.
    pub(super) fn health(&self) -> Vec<(&'static str, SourceHealth)> {
        self.health.iter().map(|(name, health)| (*name, health.borrow().clone())).collect()
    }
}

/// The id of a container whose cgroup was made.
fn new_container(event: &Event) -> Option<String> {
    let Body::CgroupMkdir(cgroup) = &event.body else { return None };
    let parsed = cgroup::parse(cgroup.path.as_str()).filter(|_| cgroup.role == role::CONTAINER)?;
    parsed.container.map(|name| name.id)
}

/// Where the API server is, if there is one to ask.
fn api_access(config: &Config) -> Result<Access, NoAccess> {
    match &config.kubeconfig {
        Some(path) => Ok(Access::Kubeconfig(path.clone())),
        None => {
            let (host, port) = (variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT"));
            Access::in_cluster(&config.credentials_dir, host.as_deref(), port.as_deref())
        }
    }
}

/// Begins to watch the API server; without one, the health says why. Names of nodes are in lower case, hosts' need
/// not be.
fn watch_api(config: &Config, sender: mpsc::Sender<Vec<Fact>>) -> watch::Receiver<SourceHealth> {
    match api_access(config) {
        Ok(access) => {
            let (mut api, health) =
                ApiWatcher::new(access, &node_name(config).to_lowercase(), Timing::default());
            tokio::spawn(async move { while sender.send(api.next().await).await.is_ok() {} });
            health
        }
        Err(why) => {
            let health = SourceHealth { detail: why.to_string(), ..SourceHealth::default() };
            watch::channel(health).1
        }
    }
}

fn kubelet_api(config: &Config, url: &Uri) -> kubelet_api::Settings {
    kubelet_api::Settings {
        url: url.clone(),
        node: node_name(config).to_lowercase(),
        ca: config.kubelet_ca.clone().unwrap_or_else(|| config.credentials_dir.join("ca.crt")),
        token: config.credentials_dir.join("token"),
        interval: config.kubelet_api_interval,
        patience: Patience::default(),
    }
}

/// Checks what can be checked, then does the start-up in its order.
pub(super) async fn start(config: &Config, recording: Option<&recording::Options>) -> Result<App, RunError> {
    if !rustix::process::geteuid().is_root() {
        return Err(RunError::NotRoot);
    }
    let proc = ProcFs::new(&config.proc_root);
    check_user_namespace(&proc)?;
    if let Some(path) = &config.rules_file {
        policy::load(path)?;
    }
    let object = object::bytes().ok_or(load::LoadError::Stub)?;
    let (mut outputs, told) = Outputs::open(config, Clock)?;
    let cgroups = CgroupFs::find(config.cgroup_root.as_deref())?;
    let kernel = features::probe()?;
    let found = reference::find(&proc, config.reference_userns, &config.kubelet_root)?;
    let proc = proc.with_host_level(found.reference.level);
    let host_mnt = host_mnt_ns(&proc, found.pid.filter(|_| !found.reference.is_initial()));
    outputs.reference(&found);
    let reference = found.reference;
    let host = features::Host { userns: reference.inum, level: reference.level, mnt: host_mnt };
    let settings = features::settings(&kernel, host, config.entry_grace, config.container_budget);
    let plan = plan::plan(&kernel.features, config.probe_mechanism);
    let sizes = Sizes::new(Machine::this(), config.max_containers);
    let (mut loaded, rings) = load::load(Some(object), &settings, &sizes, &plan)?;
    check_probes(&loaded)?;
    outputs.probes(&loaded.probes);
    outputs.programs(&loaded.programs());
    outputs.serve();
    let queries = outputs.serve_locally(config.socket.as_deref());
    start_debug_log(&mut loaded)?;

    let by_proc = sweep_by_proc(&loaded)
        .then(|| loaded.lineages().map_err(os("cannot sweep by way of /proc")))
        .transpose()?
        .map(|lineages| ProcSweep::new(proc, cgroups.clone(), lineages, host_mnt, config.entry_grace));
    let header = recording::Header {
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        node: node_name(config),
        boot: Clock.wall().boot,
        limits: limits(config),
        unobservable: config.unobservable_runtimes.clone(),
        reference,
    };
    let recorder = recording.map(|options| outputs.record(options, &header)).transpose()?;
    let (sources, known) = Sources::start(config);
    let mut app = App {
        engine: header.engine(),
        recorder,
        loaded,
        evidence: Ring::new(rings.evidence).map_err(os("cannot watch a ring"))?,
        bulk: Ring::new(rings.bulk).map_err(os("cannot watch a ring"))?,
        walker: Walker::new(cgroups, config),
        sources,
        queries,
        outputs,
        clock: Clock,
        made_up_for: 0,
        by_proc,
        sweeping: None,
        decided: Vec::new(),
    };
    app.learn(vec![Fact::Told(told)]);
    app.learn(known);
    app.sweep_now().await;
    app.sweep_now().await;
    app.count();
    return_memory();
    app.outputs.ready();
    Ok(app)
}

/// Gives back what reading the kernel's types took: tens of megabytes, which glibc would keep for later.
fn return_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no argument but a number; the allocator's own locks make it safe at any time (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}

fn limits(config: &Config) -> Limits {
    let table = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    Limits {
        grace: config.entry_grace,
        enrich_wait: if tells_names(config) { config.enrich_wait } else { Duration::ZERO },
        containers: table(config.max_containers),
        processes: table(config.max_processes),
    }
}

/// Where a container runtime may answer.
fn cri_sockets(config: &Config) -> Vec<PathBuf> {
    match &config.cri_socket {
        Socket::Auto => cri::sockets(&config.host_root),
        Socket::Off => Vec::new(),
        Socket::Path(path) => vec![path.clone()],
    }
}

/// Whether any source could tell the names of pods.
fn tells_names(config: &Config) -> bool {
    let api = config.api_server != ApiServer::Off && api_access(config).is_ok();
    let cri = || cri_sockets(config).iter().any(|path| path.exists());
    api || config.kubelet_api.is_some() || config.pods_file.is_some() || cri()
}

fn check_user_namespace(proc: &ProcFs) -> Result<(), RunError> {
    match proc.user_namespace(std::process::id()) {
        Ok(INITIAL_USERNS) => Ok(()),
        Ok(inum) => Err(RunError::OwnUserNamespace { inum }),
        Err(error) => {
            tracing::warn!("cannot tell the agent's own user namespace: {error}");
            Ok(())
        }
    }
}

/// The mount namespace that host processes have: that of kubelet where it is in a user namespace, else of process 1. It
/// matters only for tasks that were in a pod
/// before the agent came.
fn host_mnt_ns(proc: &ProcFs, kubelet: Option<u32>) -> u32 {
    let of = |pid| proc.namespaces(pid).map(|namespaces| namespaces.mnt);
    let pid = kubelet.unwrap_or(1);
    of(pid)
        .or_else(|error| {
            tracing::warn!(
                "cannot read the mount namespace of process {pid}: {error}; taking the agent's own for the host's"
            );
            of(std::process::id())
        })
        .unwrap_or(0)
}

fn check_probes(loaded: &load::Loaded) -> Result<(), RunError> {
    if loaded.probes.iter().any(|probe| probe.state == State::Active) {
        return Ok(());
    }
    let reasons = loaded.probes.iter().filter_map(|probe| probe.state.reason());
    Err(RunError::NoProbe(
        reasons.map(|reason| reason.lines().last().unwrap_or(reason)).collect::<Vec<_>>().join("; "),
    ))
}

/// Whether sweeps have to read procfs, because the kernel has no task iterator.
fn sweep_by_proc(loaded: &load::Loaded) -> bool {
    let iterates = |probe: &Probe| probe.hook == Hook::TaskIter && probe.state == State::Active;
    !loaded.probes.iter().any(iterates)
}

/// Objects of debug builds carry logs; others have none, which is no error.
fn start_debug_log(loaded: &mut load::Loaded) -> Result<(), RunError> {
    let Ok(logger) = loaded.debug_logger() else { return Ok(()) };
    // SAFETY: the logger owns its ring's descriptor until the task ends and drops both.
    let mut logger = unsafe { tokio::io::unix::AsyncFd::register(logger) }
        .map_err(std::io::Error::from)
        .map_err(os("cannot watch the programs' log"))?;
    tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Cgroup;

    #[test]
    fn the_runtime_is_asked_for_containers_whose_cgroup_is_made() {
        let pod = "/kubepods/burstable/pod0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11";
        let id = "5".repeat(64);
        let cgroup = |role, path: &str| Cgroup { role, path: path.into(), ..Cgroup::default() };
        let container = cgroup(role::CONTAINER, &format!("{pod}/cri-containerd-{id}.scope"));
        let of = |body| new_container(&Event { time: Nanos(0), hook: Hook::CgroupMkdir, reasons: 0, body });
        assert_eq!(of(Body::CgroupMkdir(container.clone())), Some(id));
        assert_eq!(of(Body::CgroupMkdir(cgroup(role::POD, pod))), None);
        assert_eq!(of(Body::CgroupRmdir(container)), None);
    }

    #[test]
    fn names_are_waited_for_where_a_runtime_may_answer() {
        let host = tempfile::tempdir().unwrap();
        let with = |cri_socket| Config { host_root: host.path().into(), cri_socket, ..Config::default() };
        assert!(!tells_names(&with(Socket::Auto)) && !tells_names(&with(Socket::Path("/none.sock".into()))));
        let socket = host.path().join("run/crio/crio.sock");
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        std::fs::write(&socket, "").unwrap();
        assert!(tells_names(&with(Socket::Auto)) && tells_names(&with(Socket::Path(socket.clone()))));
        assert!(!tells_names(&with(Socket::Off)) && cri_sockets(&with(Socket::Off)).is_empty());
        assert!(cri_sockets(&with(Socket::Auto)).contains(&socket));
    }
}
