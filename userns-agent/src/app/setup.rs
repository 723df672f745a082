//! From a configuration to a running pipeline.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::io::Outputs;
use super::proc_sweep::ProcSweep;
use super::walk::Walker;
use super::{App, RunError, os};
use crate::config::Config;
use crate::core::{Engine, Limits};
use crate::event::{Fact, Hook, Nanos};
use crate::host::SourceHealth;
use crate::host::cgroupfs::CgroupFs;
use crate::host::kubelet::KubeletWatcher;
use crate::host::pods_file::{LOOK_INTERVAL, PodsFileWatcher};
use crate::host::proc::{INITIAL_USERNS, ProcFs};
use crate::host::reference;
use crate::kernel::sizes::{Machine, Sizes};
use crate::kernel::{features, load, object, plan, ring::Ring, status::Probe, status::State};
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

/// The node's name as the kernel has it; `NODE_NAME` wins, which a DaemonSet sets.
pub(super) fn hostname() -> String {
    let given = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
    given.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}

/// Sources of facts that tell by themselves, each on a task of its own.
pub(super) struct Sources {
    facts: mpsc::Receiver<Vec<Fact>>,
    health: Vec<(&'static str, watch::Receiver<SourceHealth>)>,
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
        if let Some(path) = &config.pods_file {
            let (mut file, of_file) = PodsFileWatcher::new(path, LOOK_INTERVAL);
            known.extend(file.initial());
            health.push(("pods_file", of_file));
            tokio::spawn(async move { while sender.send(vec![file.next().await]).await.is_ok() {} });
        }
        (Self { facts, health }, known)
    }

    /// The next facts.
    pub(super) async fn next(&mut self) -> Vec<Fact> {
        match self.facts.recv().await {
            Some(facts) => facts,
            None => std::future::pending().await,
        }
    }

    /// How each is doing.
    pub(super) fn health(&self) -> Vec<(&'static str, SourceHealth)> {
        self.health.iter().map(|(name, health)| (*name, health.borrow().clone())).collect()
    }
}

/// Checks what can be checked, then does the start-up in its order.
pub(super) async fn start(config: &Config) -> Result<App, RunError> {
    if !rustix::process::geteuid().is_root() {
        return Err(RunError::NotRoot);
    }
    let proc = ProcFs::new(&config.proc_root);
    check_user_namespace(&proc)?;
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
    start_debug_log(&mut loaded)?;

    let by_proc = sweep_by_proc(&loaded)
        .then(|| loaded.lineages().map_err(os("cannot sweep by way of /proc")))
        .transpose()?
        .map(|lineages| ProcSweep::new(proc, cgroups.clone(), lineages, host_mnt, config.entry_grace));
    let (sources, known) = Sources::start(config);
    let mut app = App {
        engine: Engine::new(limits(config)).under(reference).without(config.unobservable_runtimes.clone()),
        loaded,
        evidence: Ring::new(rings.evidence).map_err(os("cannot watch a ring"))?,
        bulk: Ring::new(rings.bulk).map_err(os("cannot watch a ring"))?,
        walker: Walker::new(cgroups, config),
        sources,
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

/// Whether any source could tell the names of pods.
fn tells_names(config: &Config) -> bool {
    config.pods_file.is_some()
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
