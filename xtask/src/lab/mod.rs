//! A node without a cluster: real containers on the running kernel, laid out as kubelet and containerd do it.
//!
//! [`Lab`] starts containers with real runc and crun, in cgroups with the paths kubelet gives, beside a kubelet
//! root directory with the records the agent reads. [`Containerd`] runs pods of the same lab through the CRI.
//! [`Agent`] runs the agent against it. It needs root, a cgroup v2 hierarchy (the only one or beside v1) and nothing
//! that is installed system-wide.
//!
//! Everything is removed when its value is dropped. What a killed process leaves behind is removed by the next
//! lab on the machine; mounts never outlive the process, because they are in a private mount namespace.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use anyhow::{Result, bail};

mod agent;
pub mod apiserver;
mod cgroup;
mod container;
mod containerd;
mod cri;
mod cri_container;
mod cri_pod;
mod daemon_set;
mod http;
mod idmap;
mod ids;
mod kubelet;
mod namespace;
mod oci;
mod pod;
mod processes;
mod registry;
mod rootfs;
mod runtimes;

pub use agent::{Agent, Line, Stopped};
pub use cgroup::{CgroupDriver, QosClass};
pub use container::{Container, ContainerSpec};
pub use containerd::{CONTAINERD, Containerd};
pub use cri_container::{CriContainer, CriContainerSpec, CriLog, CriMount, CriResources, ExecOutput};
pub use cri_pod::{CriPod, CriPodSpec, Handler};
pub use daemon_set::{DaemonSet, DaemonSetPod, MemoryVolume, Probe};
pub use http::Response;
pub(crate) use http::get as http_get;
pub use ids::{IdMapping, IdRange};
pub use oci::{Capabilities, Mount, ProcessSpec};
pub use pod::{Pod, PodSpec};
pub use processes::HostProcess;
pub use runtimes::{Runtime, RuntimeName, Runtimes};

use kubelet::KubeletRoot;
use namespace::MountNamespace;
use registry::Claim;
use rootfs::RootfsStore;

/// Names a directory with runc, crun and busybox below `usr/bin`, for machines that cannot fetch them.
pub const RUNTIMES: &str = "USERNS_RUNTIMES";

/// A node's worth of pods on this machine.
#[derive(Debug)]
pub struct Lab {
    inner: Arc<Inner>,
}

/// Fields in the order in which they go away: the claim last, with the directory.
#[derive(Debug)]
struct Inner {
    pods: Mutex<Vec<Weak<pod::PodState>>>,
    kubelet: KubeletRoot,
    rootfs: RootfsStore,
    namespace: MountNamespace,
    runtimes: Runtimes,
    claim: Claim,
}

impl Lab {
    /// Fetches the runtimes of the machine's own Debian release below `cache`; see [`Runtimes::provision`].
    ///
    /// Where the environment variable [`RUNTIMES`] names a directory, those in there are taken, and nothing is
    /// fetched.
    ///
    /// # Errors
    ///
    /// As for [`Runtimes::provision`], or when this is no Debian machine.
    pub fn provision(cache: &Path) -> Result<Runtimes> {
        match std::env::var_os(RUNTIMES) {
            Some(tree) => Runtimes::open(Path::new(&tree)),
            None => Runtimes::provision(cache, &crate::debian::own_suite()?),
        }
    }

    /// Makes a lab in `dir`, which must be new, empty, or left behind by a killed lab.
    ///
    /// # Errors
    ///
    /// When not root, without a cgroup v2 hierarchy, or when a file or mount cannot be made.
    pub fn new(runtimes: Runtimes, dir: &Path) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("a lab needs root: it makes namespaces, mounts and cgroups");
        }
        processes::adopt_orphans()?;
        let cgroup_root = cgroup::find_mount()?;
        let claim = Claim::new(dir, &cgroup_root)?;
        let namespace = MountNamespace::new(&runtimes.tree)?;
        namespace.bind_cgroup2(&cgroup_root)?;
        let (image, area) = (claim.dir().join("rootfs"), claim.run_dir());
        let rootfs = RootfsStore::new(namespace.clone(), &runtimes.busybox()?, image, area)?;
        let kubelet = KubeletRoot::new(claim.dir().join("kubelet"))?;
        let pods = Mutex::default();
        Ok(Self { inner: Arc::new(Inner { pods, kubelet, rootfs, namespace, runtimes, claim }) })
    }

    /// Makes a pod: cgroup, kubelet directory, and record if there is to be one.
    ///
    /// # Errors
    ///
    /// When one of them cannot be made, as with a UID that is taken.
    pub fn pod(&self, spec: PodSpec) -> Result<Pod> {
        let pod = Pod::new(Arc::clone(&self.inner), spec)?;
        let mut pods = self.inner.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.retain(|known| known.strong_count() > 0);
        pods.push(Arc::downgrade(&pod.state));
        Ok(pod)
    }

    /// Writes the pods there are at the moment to `path`, as the `PodList` the API server would answer.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write_pods_file(&self, path: &Path) -> Result<()> {
        // Held until the file is there: two who write at a time would do so in the same place.
        let known = self.inner.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let pods: Vec<_> = known.iter().filter_map(Weak::upgrade).collect();
        let objects: Vec<_> = pods.iter().map(|pod| pod.object().to_json()).collect();
        kubelet::write_pod_list(path, &objects)
    }

    /// Moves a process of the host into a container's cgroup.
    ///
    /// # Errors
    ///
    /// When either no longer exists.
    pub fn move_into_cgroup(&self, pid: u32, container: &Container) -> Result<()> {
        cgroup::attach(pid, container.cgroup_dir())
    }

    /// Starts a process of the host that sleeps.
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    pub fn host_process(&self) -> Result<HostProcess> {
        HostProcess::sleep(&self.inner.runtimes.busybox()?)
    }

    /// A static program of many names, for what needs an executable of its own.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn busybox(&self) -> Result<PathBuf> {
        self.inner.runtimes.busybox()
    }

    /// Starts a process of the host that waits under the name `name`.
    ///
    /// # Errors
    ///
    /// When the program cannot be started, or does not take the name.
    pub fn host_process_named(&self, name: &str) -> Result<HostProcess> {
        HostProcess::named(&self.inner.runtimes.busybox()?, name)
    }

    /// The lab's directory; files put there are removed with it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.inner.claim.dir()
    }

    /// What `/var/lib/kubelet` is on a node.
    #[must_use]
    pub fn kubelet_root(&self) -> &Path {
        self.inner.kubelet.path()
    }

    /// Where the cgroup v2 hierarchy is mounted on the host.
    #[must_use]
    pub fn cgroup_root(&self) -> &Path {
        self.inner.claim.cgroup_root()
    }

    /// The runtimes in use.
    #[must_use]
    pub fn runtimes(&self) -> &Runtimes {
        &self.inner.runtimes
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }
}
