//! The DaemonSet of deploy/kustomize, run by containerd as kubelet would have it run.
//!
//! What is not understood is an error, so that what runs is the manifest and not something like it. There is no API
//! server: its address and the volume with the service account's token are left out.

use std::{
    ffi::CString,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{
    Lab, Response,
    cgroup::QosClass,
    containerd::Containerd,
    cri_container::{CriContainer, CriContainerSpec, CriMount, CriResources},
    cri_pod::{CriPod, CriPodSpec, Handler},
    namespace::MountNamespace,
    pod::{Pod, PodSpec},
    runtimes::RuntimeName,
};

mod manifest;

use manifest::{ConfigMap, Container, PodTemplateSpec, Propagation, Source, Template, quantity};

/// Where kubelet has its directory on a node.
const KUBELET: &str = "/var/lib/kubelet";
/// kubelet's for pods of the class `system-node-critical` (`guaranteedOOMScoreAdj`).
const CRITICAL_OOM_SCORE: i64 = -997;

/// A DaemonSet with one container, and the ConfigMap that it mounts.
#[derive(Debug, Clone)]
pub struct DaemonSet {
    name: String,
    namespace: String,
    template: Template,
    config: ConfigMap,
}

/// What kubelet asks a container for to know how it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Path and query.
    pub path: String,
    /// The container's port.
    pub port: u16,
    /// Between two questions.
    pub period: Duration,
    /// Within which the answer has to come.
    pub timeout: Duration,
    /// How many may fail one after the other.
    pub failures: u32,
}

/// A pod of a DaemonSet. Dropping it removes it. Fields in the order in which they go away.
#[derive(Debug)]
pub struct DaemonSetPod {
    container: CriContainer,
    spec: CriContainerSpec,
    pod: CriPod,
    _volumes: Vec<MemoryVolume>,
}

/// An `emptyDir` in memory of a pod, which kubelet mounts on the node. Unmounted with its value.
#[derive(Debug)]
pub struct MemoryVolume {
    node: MountNamespace,
    path: String,
}

impl DaemonSet {
    /// That of deploy/kustomize/base.
    ///
    /// # Errors
    ///
    /// When there is something in the manifests that kubelet would act on, and this does not.
    pub fn base() -> Result<Self> {
        Self::parse(
            include_str!("../../../deploy/kustomize/base/daemon-set.yaml"),
            include_str!("../../../deploy/kustomize/base/config-map.yaml"),
        )
    }

    fn parse(daemon_set: &str, config_map: &str) -> Result<Self> {
        let (metadata, template) = manifest::daemon_set(daemon_set).context("the DaemonSet")?;
        let config = manifest::config_map(config_map).context("the ConfigMap")?;
        let parsed = Self { name: metadata.name, namespace: metadata.namespace, template, config };
        // all that can be wrong with it, without a node
        parsed.container_spec("", "")?;
        for probe in [Self::startup_probe, Self::liveness_probe, Self::readiness_probe] {
            probe(&parsed)?;
        }
        Ok(parsed)
    }

    /// The one container of its pods.
    fn container(&self) -> &Container {
        &self.spec().containers[0]
    }

    fn spec(&self) -> &PodTemplateSpec {
        &self.template.spec
    }

    /// The image of its container.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.container().image
    }

    /// How long a pod may take to end.
    #[must_use]
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.spec().termination_grace_period_seconds)
    }

    /// Whether it has started.
    ///
    /// # Errors
    ///
    /// When it asks at a port that the container does not have.
    pub fn startup_probe(&self) -> Result<Probe> {
        self.container().probe(&self.container().startup_probe)
    }

    /// Whether it is to be left alone.
    ///
    /// # Errors
    ///
    /// As for [`Self::startup_probe`].
    pub fn liveness_probe(&self) -> Result<Probe> {
        self.container().probe(&self.container().liveness_probe)
    }

    /// Whether it is ready.
    ///
    /// # Errors
    ///
    /// As for [`Self::startup_probe`].
    pub fn readiness_probe(&self) -> Result<Probe> {
        self.container().probe(&self.container().readiness_probe)
    }

    /// Runs the pod of the node called `node_name`, with the variables `more` beside those of the manifest.
    ///
    /// # Errors
    ///
    /// When a path of the node is not there, or containerd refuses.
    pub fn run(
        &self,
        lab: &Lab,
        containerd: &Containerd,
        node_name: &str,
        more: &[(String, String)],
    ) -> Result<DaemonSetPod> {
        let pod = lab.pod(self.pod_spec())?;
        let volumes = self.provide_volumes(containerd, &pod)?;
        let mut spec = self.container_spec(pod.uid(), node_name)?;
        spec.env.extend_from_slice(more);
        let pod = containerd.run(&pod, self.sandbox())?;
        let container = pod.start(&spec)?;
        Ok(DaemonSetPod { container, spec, pod, _volumes: volumes })
    }

    fn pod_spec(&self) -> PodSpec {
        PodSpec {
            name: format!("{}-lab00", self.name),
            namespace: self.namespace.clone(),
            labels: self.template.metadata.labels.clone().into_iter().collect(),
            // requests that are not the limits
            qos: QosClass::Burstable,
            ..PodSpec::default()
        }
    }

    fn sandbox(&self) -> CriPodSpec {
        CriPodSpec {
            host_pid: self.spec().host_pid,
            privileged: self.container().security_context.privileged,
            ..CriPodSpec::new(Handler::Oci(RuntimeName::Runc), None)
        }
    }

    fn container_spec(&self, uid: &str, node_name: &str) -> Result<CriContainerSpec> {
        let container = self.container();
        let security = &container.security_context;
        let limits = &container.resources.limits;
        ensure!(
            quantity(&container.resources.requests.memory)? < quantity(&limits.memory)?,
            "a pod whose requests are its limits has another place among the cgroups"
        );
        Ok(CriContainerSpec {
            name: container.name.clone(),
            image: Some(container.image.clone()),
            args: container.args.clone(),
            env: container.env.iter().map(|env| (env.name.clone(), env.value(node_name))).collect(),
            privileged: security.privileged,
            read_only_root: security.read_only_root_filesystem,
            user: Some(security.run_as_user),
            group: Some(security.run_as_group),
            mounts: self.mounts(uid)?,
            resources: Some(CriResources {
                cpu_request: quantity(&container.resources.requests.cpu)?,
                cpu_limit: quantity(&limits.cpu)?,
                memory_limit: quantity(&limits.memory)? / 1000,
                oom_score_adj: CRITICAL_OOM_SCORE,
            }),
            logged: true,
            ..CriContainerSpec::default()
        })
    }

    fn mounts(&self, uid: &str) -> Result<Vec<CriMount>> {
        let volumes = &self.spec().volumes;
        let mounts = &self.container().volume_mounts;
        if let Some(unused) =
            volumes.iter().find(|volume| mounts.iter().all(|mount| mount.name != volume.name))
        {
            bail!("the volume {} is mounted nowhere", unused.name);
        }
        let mount = |mount: &manifest::VolumeMount| {
            let volume = volumes.iter().find(|volume| volume.name == mount.name);
            let volume = volume.with_context(|| format!("no volume is called {}", mount.name))?;
            Ok(CriMount {
                host_path: self.host_path(&volume.name, &volume.source()?, uid)?,
                container_path: mount.mount_path.clone(),
                read_only: mount.read_only,
                follows_host: mount.mount_propagation == Propagation::HostToContainer,
            })
        };
        mounts.iter().map(mount).collect()
    }

    /// Where a volume is on the node.
    fn host_path(&self, name: &str, source: &Source<'_>, uid: &str) -> Result<String> {
        Ok(match source {
            Source::HostPath(path) => (*path).to_owned(),
            Source::EmptyDir { .. } => MemoryVolume::path(uid, name),
            Source::ConfigMap(wanted) => {
                ensure!(*wanted == self.config.name(), "no ConfigMap is called {wanted}");
                format!("{KUBELET}/pods/{uid}/volumes/kubernetes.io~configmap/{name}")
            }
        })
    }

    /// Makes the volumes of `pod`, and looks after the node's directories that it wants.
    fn provide_volumes(&self, containerd: &Containerd, pod: &Pod) -> Result<Vec<MemoryVolume>> {
        let mut in_memory = Vec::new();
        for volume in &self.spec().volumes {
            let source = volume.source()?;
            let path = self.host_path(&volume.name, &source, pod.uid())?;
            let on_host = containerd.on_host(&path);
            match source {
                Source::HostPath(_) => ensure!(on_host.is_dir(), "the node has no directory {path}"),
                Source::EmptyDir { size } => {
                    let size = quantity(size)? / 1000;
                    in_memory.push(MemoryVolume::new(containerd, pod, &volume.name, size)?);
                }
                Source::ConfigMap(_) => project(&self.config, &on_host)?,
            }
        }
        Ok(in_memory)
    }
}

/// The files of a ConfigMap, so that all of them change at once (kubelet's `AtomicWriter`).
fn project(config: &ConfigMap, dir: &Path) -> Result<()> {
    const GENERATION: &str = "..2026_01_01_00_00_00.1";
    let write = || {
        fs::create_dir_all(dir.join(GENERATION))?;
        symlink(GENERATION, dir.join("..data"))?;
        for (name, text) in &config.data {
            fs::write(dir.join(GENERATION).join(name), text)?;
            symlink(format!("..data/{name}"), dir.join(name))?;
        }
        Ok::<_, std::io::Error>(())
    };
    write().with_context(|| format!("cannot write the ConfigMap to {}", dir.display()))
}

impl MemoryVolume {
    /// Mounts `size` bytes at most, for everybody to write to, as the volume `name` of `pod`.
    ///
    /// # Errors
    ///
    /// When it cannot be mounted.
    pub fn new(containerd: &Containerd, pod: &Pod, name: &str, size: i64) -> Result<Self> {
        let (node, path) = (containerd.daemon.mounts()?, Self::path(pod.uid(), name));
        let data = CString::new(format!("size={size}")).context("a size")?;
        node.run(|| {
            fs::create_dir_all(&path).with_context(|| format!("cannot create {path}"))?;
            mount("tmpfs", path.as_str(), "tmpfs", MountFlags::empty(), data.as_c_str())
                .with_context(|| format!("cannot mount a tmpfs at {path}"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777))
                .with_context(|| format!("cannot open {path} to all"))
        })?;
        Ok(Self { node, path })
    }

    fn path(uid: &str, name: &str) -> String {
        format!("{KUBELET}/pods/{uid}/volumes/kubernetes.io~empty-dir/{name}")
    }
}

impl Drop for MemoryVolume {
    fn drop(&mut self) {
        // What fails here goes with containerd's namespaces.
        let _ = self.node.run(|| Ok(unmount(self.path.as_str(), UnmountFlags::DETACH)?));
    }
}

impl DaemonSetPod {
    /// Its sandbox.
    #[must_use]
    pub fn pod(&self) -> &CriPod {
        &self.pod
    }

    /// Its container.
    #[must_use]
    pub fn container(&self) -> &CriContainer {
        &self.container
    }

    /// Kills its container and starts another, in the same sandbox and with the same volumes.
    ///
    /// # Errors
    ///
    /// When it cannot be killed, or containerd refuses.
    pub fn restart(&mut self) -> Result<()> {
        self.container.stop()?;
        self.container = self.pod.start(&self.spec)?;
        Ok(())
    }

    /// Asks what `probe` asks, once.
    ///
    /// # Errors
    ///
    /// When nobody answers. A status other than 200 is an answer.
    pub fn ask(&self, probe: &Probe) -> Result<Response> {
        self.pod.http_get(probe.port, &probe.path)
    }
}

#[cfg(test)]
mod tests;
