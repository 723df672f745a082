//! The lab with what every measurement needs: pods with ranges of their own, workers, and the agent.

use std::{
    cell::Cell,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{operation::Operation, worker::Worker};
use crate::lab::{Agent, ContainerSpec, IdRange, Lab, Pod, PodSpec, RuntimeName};

/// The first of kubelet's ranges that is used here; few real nodes come so far.
const FIRST_RANGE: u16 = 50_000;

/// A node to measure on.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) lab: Lab,
    pub(super) agent: PathBuf,
    bench: PathBuf,
    /// Open to every user, for containers to mount.
    dir: PathBuf,
    next: Cell<u16>,
}

impl Node {
    /// A lab in `place`, with the agent `agent` and the statically linked program `bench`.
    ///
    /// # Errors
    ///
    /// When the runtimes cannot be had or the lab not be made.
    pub(super) fn new(place: &Path, cache: &Path, agent: &Path, bench: &Path) -> Result<Self> {
        let lab = Lab::new(Lab::provision(cache)?, place)?;
        let dir = std::env::temp_dir().join(format!("userns-bench-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot open {} to all", dir.display()))?;
        let next = Cell::new(FIRST_RANGE);
        Ok(Self { lab, agent: agent.to_owned(), bench: bench.to_owned(), dir, next })
    }

    /// The agent, ready.
    ///
    /// # Errors
    ///
    /// When it does not become ready.
    pub(super) fn agent(&self, extra: &[&str]) -> Result<Agent> {
        Agent::start(&self.agent, &self.lab, extra)
    }

    /// A pod that was promised a user namespace, and its range.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub(super) fn watched_pod(&self) -> Result<(Pod, IdRange)> {
        let range = IdRange::nth(self.number());
        let pod =
            self.lab.pod(PodSpec { name: "watched".into(), record: Some(range), ..PodSpec::default() })?;
        Ok((pod, range))
    }

    /// A worker outside of pods.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub(super) fn host_worker(&self) -> Result<Worker> {
        Worker::on_host(&self.bench, &self.worker_dir())
    }

    /// A worker in a container of `pod` with the user namespace it was promised.
    ///
    /// # Errors
    ///
    /// When the container cannot be run.
    pub(super) fn pod_worker(&self, pod: &Pod, range: IdRange) -> Result<Worker> {
        let mapping = Some(range.mapping());
        self.worker_like(pod, ContainerSpec { mapping, ..Self::container() })
    }

    /// A worker in a container of `pod` that is like `spec`.
    ///
    /// # Errors
    ///
    /// When the container cannot be run.
    pub(super) fn worker_like(&self, pod: &Pod, spec: ContainerSpec) -> Result<Worker> {
        Worker::in_pod(&self.bench, &self.worker_dir(), pod, spec)
    }

    /// A container under the quicker of the runtimes.
    pub(super) fn container() -> ContainerSpec {
        ContainerSpec { runtime: RuntimeName::Crun, ..ContainerSpec::default() }
    }

    /// The statically linked program.
    pub(super) fn bench(&self) -> &Path {
        &self.bench
    }

    /// A number not used before.
    pub(super) fn number(&self) -> u16 {
        let number = self.next.get();
        self.next.set(number.saturating_add(1));
        number
    }

    fn worker_dir(&self) -> PathBuf {
        self.dir.join(format!("worker-{}", self.number()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Keeps a pod busy from its making to its end: programs started one after another, and attempts that are denied.
#[derive(Debug)]
pub(super) struct BusyPod {
    // in this order: containers end before their pod
    _workers: Vec<Worker>,
    _pod: Pod,
}

impl BusyPod {
    /// A pod with a worker for each of `operations`.
    ///
    /// # Errors
    ///
    /// When a container cannot be run.
    pub(super) fn start(node: &Node, operations: &[Operation]) -> Result<Self> {
        let (pod, range) = node.watched_pod()?;
        let mut workers = Vec::new();
        for operation in operations {
            let mut worker = node.pod_worker(&pod, range)?;
            worker.begin(*operation, u32::MAX)?;
            workers.push(worker);
        }
        Ok(Self { _workers: workers, _pod: pod })
    }
}
