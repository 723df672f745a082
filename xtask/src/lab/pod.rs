//! Pods: a UID, a cgroup, a directory below the kubelet root, and the record of its user namespace.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};

use super::{
    Inner,
    cgroup::{self, CgroupDriver, QosClass},
    container::{Container, ContainerSpec},
    ids::{self, IdRange},
    kubelet::PodObject,
};

/// What a pod is to be like.
#[derive(Debug, Clone, Default)]
pub struct PodSpec {
    /// `metadata.uid`; `None` for a random one.
    pub uid: Option<String>,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`; empty for `default`.
    pub namespace: String,
    /// `metadata.labels`.
    pub labels: Vec<(String, String)>,
    /// Decides the cgroup above the pod's.
    pub qos: QosClass,
    /// Which driver's cgroup paths to imitate.
    pub driver: CgroupDriver,
    /// The host IDs kubelet set aside, as it records them on disk; `None`: it gave the pod no user namespace.
    pub record: Option<IdRange>,
    /// `spec.hostUsers` at the API server. [`PodSpec::record`] says what kubelet made of it.
    pub host_users: Option<bool>,
}

/// A pod of the lab. Cgroup and kubelet directory go away with it and the last of its containers.
#[derive(Debug, Clone)]
pub struct Pod {
    pub(super) state: Arc<PodState>,
}

#[derive(Debug)]
pub(super) struct PodState {
    pub(super) lab: Arc<Inner>,
    pub(super) spec: PodSpec,
    pub(super) uid: String,
    pub(super) cgroup_components: Vec<String>,
    cgroup: PathBuf,
    /// Names and IDs.
    containers: Mutex<Vec<(String, String)>>,
}

impl Pod {
    /// In kubelet's order: cgroup, directories, record. All are there before the first container.
    pub(super) fn new(lab: Arc<Inner>, mut spec: PodSpec) -> Result<Self> {
        let uid = spec.uid.take().map_or_else(ids::pod_uid, Ok)?;
        if spec.namespace.is_empty() {
            spec.namespace = "default".to_owned();
        }
        let cgroup_components = cgroup::pod_components(spec.driver, spec.qos, &uid);
        let cgroup = cgroup::create_pod(lab.claim.cgroup_root(), &cgroup_components, lab.claim.lab_id())?;
        let record = spec.record;
        let containers = Mutex::default();
        // From here on dropping removes what there is.
        let pod =
            Self { state: Arc::new(PodState { lab, spec, uid, cgroup_components, cgroup, containers }) };
        pod.state.lab.kubelet.add_pod(&pod.state.uid)?;
        if let Some(range) = record {
            pod.record(range)?;
        }
        Ok(pod)
    }

    /// `metadata.uid`.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.state.uid
    }

    /// `metadata.name`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.spec.name
    }

    /// The pod's cgroup, above those of its containers.
    #[must_use]
    pub fn cgroup_dir(&self) -> &std::path::Path {
        &self.state.cgroup
    }

    /// Makes the record say `range`, in place of what it said.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn record(&self, range: IdRange) -> Result<()> {
        self.state.lab.kubelet.record(&self.state.uid, range)
    }

    /// Removes the record, as kubelet does for a pod that ended.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn release_record(&self) -> Result<()> {
        self.state.lab.kubelet.release(&self.state.uid)
    }

    /// Prepares a container: bundle and root file system. Nothing runs yet.
    ///
    /// # Errors
    ///
    /// When the bundle cannot be written or the root file system not be mounted.
    pub fn container(&self, spec: ContainerSpec) -> Result<Container> {
        Container::new(Arc::clone(&self.state), spec)
    }

    /// [`Pod::container`], created and started.
    ///
    /// # Errors
    ///
    /// When one of the steps fails; the message has the runtime's own words.
    pub fn run(&self, spec: ContainerSpec) -> Result<Container> {
        let container = self.container(spec)?;
        container.create()?;
        container.start()?;
        Ok(container)
    }
}

impl PodState {
    pub(super) fn add_container(&self, name: &str, id: &str) {
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        containers.push((name.to_owned(), id.to_owned()));
    }

    pub(super) fn remove_container(&self, id: &str) {
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        containers.retain(|(_, known)| known != id);
    }

    pub(super) fn object(&self) -> PodObject<'_> {
        PodObject {
            uid: &self.uid,
            name: &self.spec.name,
            namespace: &self.spec.namespace,
            labels: &self.spec.labels,
            host_users: self.spec.host_users,
            containers: self.containers.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    fn remove(&self) -> Result<()> {
        cgroup::kill_and_remove(&self.cgroup)?;
        cgroup::remove_empty_ancestors(self.lab.claim.cgroup_root(), &self.cgroup);
        self.lab.kubelet.remove_pod(&self.uid).context("the pod's directory stays")
    }
}

impl Drop for PodState {
    fn drop(&mut self) {
        // What fails here is tried again when the lab ends.
        let _ = self.remove();
    }
}
