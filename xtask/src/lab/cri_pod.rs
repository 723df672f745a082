//! Pods and containers run through the CRI, asked for in the way kubelet does.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};

use super::{
    cgroup,
    containerd::{Containerd, Daemon, IMAGE},
    cri::messages::{
        Capability, ContainerConfig, ContainerMetadata, ContainerState, ContainerStatusResponse,
        CreateContainerRequest, Empty, ExecSyncRequest, ExecSyncResponse, Id, IdMapping, ImageSpec,
        LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
        LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig,
        PodSandboxMetadata, RunPodSandboxRequest, StopContainerRequest, UserNamespace,
    },
    ids::IdRange,
    pod::Pod,
    runtimes::RuntimeName,
};

/// In seconds; an emulated processor needs some.
const EXEC_TIMEOUT: i64 = 60;

/// A runtime handler, which a `RuntimeClass` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handler {
    /// That OCI runtime.
    Oci(RuntimeName),
    /// runc, kept from hearing of user namespaces: a runtime that ignores what it does not know.
    Ignoring,
}

impl Handler {
    fn name(self) -> String {
        match self {
            Self::Oci(runtime) => runtime.to_string(),
            Self::Ignoring => "ignoring".to_owned(),
        }
    }
}

/// How a pod is to be run.
#[derive(Debug, Clone, Copy)]
pub struct CriPodSpec {
    /// By what.
    pub handler: Handler,
    /// The host IDs of the user namespace asked for; `None`: the pod is to run in the host's.
    pub range: Option<IdRange>,
    /// `spec.hostNetwork`: the network of containerd itself, which is not the machine's.
    pub host_network: bool,
}

/// What a container of a [`CriPod`] is to be like.
#[derive(Debug, Clone, Default)]
pub struct CriContainerSpec {
    /// Its name in the pod.
    pub name: String,
    /// Program and arguments; those of the image, which sleeps, if empty.
    pub args: Vec<String>,
    /// Capabilities beside containerd's default set, such as `SYS_ADMIN`; `ALL` for all.
    pub capabilities: Vec<String>,
    /// Volumes below `/run/volumes` by their names, and where they are mounted, with the pod's ids.
    pub volumes: Vec<(String, String)>,
    /// Whether it has the node's packages at `/usr`, read-only, as files of the pod's root.
    pub packages: bool,
    /// Which container's PID namespace it joins, as an ephemeral container does.
    pub target: Option<String>,
    /// In bytes, where the machine can limit memory.
    pub memory_limit: Option<i64>,
}

/// A sandbox, with the pod's containers. Dropping it stops and removes them all.
#[derive(Debug)]
pub struct CriPod {
    id: String,
    pod: Pod,
    spec: CriPodSpec,
    /// How many containers of a name there were.
    attempts: Mutex<BTreeMap<String, u32>>,
    daemon: Arc<Daemon>,
}

/// A container of a [`CriPod`]. Dropping it stops and removes it.
#[derive(Debug)]
pub struct CriContainer {
    id: String,
    pod: Pod,
    daemon: Arc<Daemon>,
}

/// What a program run by [`CriContainer::exec`] came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

impl Containerd {
    /// Runs the sandbox of `pod`, whose cgroup and record are there by now: kubelet's order.
    ///
    /// # Errors
    ///
    /// When containerd refuses; the message has its words and its log.
    pub fn run(&self, pod: &Pod, spec: CriPodSpec) -> Result<CriPod> {
        let daemon = Arc::clone(&self.daemon);
        let mut made =
            CriPod { id: String::new(), pod: pod.clone(), spec, attempts: Mutex::default(), daemon };
        let request =
            RunPodSandboxRequest { config: Some(made.config()), runtime_handler: spec.handler.name() };
        let sandbox: Id = self.daemon.call("RuntimeService/RunPodSandbox", request)?;
        made.id = sandbox.id;
        Ok(made)
    }
}

impl CriPod {
    /// The sandbox's ID, which is its own container's too.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The pod.
    #[must_use]
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// What was asked for.
    #[must_use]
    pub fn spec(&self) -> CriPodSpec {
        self.spec
    }

    /// Creates and starts a container.
    ///
    /// # Errors
    ///
    /// When containerd refuses; the message has its words and its log.
    pub fn start(&self, spec: &CriContainerSpec) -> Result<CriContainer> {
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(self.container_config(spec)),
            sandbox_config: Some(self.config()),
        };
        let created: Id = self.daemon.call("RuntimeService/CreateContainer", request)?;
        let (pod, daemon) = (self.pod.clone(), Arc::clone(&self.daemon));
        let container = CriContainer { id: created.id, pod, daemon };
        self.pod.state.add_container(&spec.name, &container.id);
        let id = Id { id: container.id.clone() };
        self.daemon.call::<_, Empty>("RuntimeService/StartContainer", id)?;
        Ok(container)
    }

    fn config(&self) -> PodSandboxConfig {
        let state = &self.pod.state;
        let context = LinuxSandboxSecurityContext { namespace_options: Some(self.namespaces(None)) };
        let linux = LinuxPodSandboxConfig {
            cgroup_parent: format!("/{}", state.cgroup_components.join("/")),
            security_context: Some(context),
        };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: state.spec.name.clone(),
                uid: state.uid.clone(),
                namespace: state.spec.namespace.clone(),
            }),
            // A pod in the host's network has the host's name too.
            hostname: if self.spec.host_network { String::new() } else { state.spec.name.clone() },
            labels: self.labels(),
            linux: Some(linux),
        }
    }

    fn container_config(&self, spec: &CriContainerSpec) -> ContainerConfig {
        let mut labels = self.labels();
        labels.insert("io.kubernetes.container.name".to_owned(), spec.name.clone());
        let context = LinuxContainerSecurityContext {
            capabilities: Some(Capability { add_capabilities: spec.capabilities.clone() }),
            namespace_options: Some(self.namespaces(spec.target.as_deref())),
        };
        let limit = spec.memory_limit.map(|limit| LinuxContainerResources { memory_limit_in_bytes: limit });
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: spec.name.clone(), attempt: self.attempt(&spec.name) }),
            image: Some(ImageSpec { image: IMAGE.to_owned() }),
            command: spec.args.clone(),
            mounts: self.mounts(spec),
            labels,
            linux: Some(LinuxContainerConfig { resources: limit, security_context: Some(context) }),
        }
    }

    /// The labels that kubelet gives to everything.
    fn labels(&self) -> HashMap<String, String> {
        let state = &self.pod.state;
        let own = [("name", &state.spec.name), ("namespace", &state.spec.namespace), ("uid", &state.uid)];
        let own = own.map(|(key, value)| (format!("io.kubernetes.pod.{key}"), value.clone()));
        own.into_iter().chain(state.spec.labels.iter().cloned()).collect()
    }

    fn mounts(&self, spec: &CriContainerSpec) -> Vec<Mount> {
        let place = |volume: &str| format!("/run/volumes/{}/{volume}", self.pod.uid());
        let volumes = spec.volumes.iter().map(|(volume, path)| self.mount(place(volume), path));
        let packages =
            spec.packages.then(|| Mount { readonly: true, ..self.mount("/usr".to_owned(), "/usr") });
        volumes.chain(packages).collect()
    }

    fn mount(&self, host_path: String, path: &str) -> Mount {
        Mount {
            container_path: path.to_owned(),
            host_path,
            readonly: false,
            uid_mappings: self.mapping(),
            gid_mappings: self.mapping(),
        }
    }

    fn mapping(&self) -> Vec<IdMapping> {
        self.spec.range.map(IdRange::mapping).unwrap_or_default().into_iter().map(IdMapping::from).collect()
    }

    fn namespaces(&self, target: Option<&str>) -> NamespaceOption {
        let of_node = |is_of_node| if is_of_node { NamespaceMode::Node } else { NamespaceMode::Pod };
        let pid = if target.is_some() { NamespaceMode::Target } else { NamespaceMode::Container };
        NamespaceOption {
            network: of_node(self.spec.host_network).into(),
            pid: pid.into(),
            ipc: NamespaceMode::Pod.into(),
            target_id: target.unwrap_or_default().to_owned(),
            userns_options: Some(UserNamespace {
                mode: of_node(self.spec.range.is_none()).into(),
                uids: self.mapping(),
                gids: self.mapping(),
            }),
        }
    }

    fn attempt(&self, name: &str) -> u32 {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let next = attempts.entry(name.to_owned()).or_default();
        *next += 1;
        *next - 1
    }
}

impl Drop for CriPod {
    fn drop(&mut self) {
        // What fails here goes with containerd's namespaces, and the pod's cgroup.
        for method in ["RuntimeService/StopPodSandbox", "RuntimeService/RemovePodSandbox"] {
            let _ = self.daemon.call::<_, Empty>(method, Id { id: self.id.clone() });
        }
    }
}

impl CriContainer {
    /// The container ID: 64 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The container's cgroup.
    #[must_use]
    pub fn cgroup_dir(&self) -> PathBuf {
        self.pod.cgroup_dir().join(&self.id)
    }

    /// Runs `args` in the container and waits for it: what an exec probe does.
    ///
    /// # Errors
    ///
    /// When containerd refuses, or the program takes longer than a minute. A failure of the program shows in the code.
    pub fn exec(&self, args: &[&str]) -> Result<ExecOutput> {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: args.iter().copied().map(str::to_owned).collect(),
            timeout: EXEC_TIMEOUT,
        };
        let ended: ExecSyncResponse = self.daemon.call("RuntimeService/ExecSync", request)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(ExecOutput { code: ended.exit_code, stdout: text(&ended.stdout), stderr: text(&ended.stderr) })
    }

    /// Kills it, as kubelet does with a container without a grace period.
    ///
    /// # Errors
    ///
    /// When containerd refuses.
    pub fn stop(&self) -> Result<()> {
        let request = StopContainerRequest { container_id: self.id.clone(), timeout: 0 };
        self.daemon.call::<_, Empty>("RuntimeService/StopContainer", request).map(drop)
    }

    /// Kills its first process behind containerd's back.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn kill(&self) -> Result<()> {
        cgroup::kill(&self.cgroup_dir())
    }

    /// How it ended: exit code and reason, such as `OOMKilled`. `None` while it has not.
    ///
    /// # Errors
    ///
    /// When containerd knows nothing of it.
    pub fn ended(&self) -> Result<Option<(i32, String)>> {
        let id = Id { id: self.id.clone() };
        let answer: ContainerStatusResponse = self.daemon.call("RuntimeService/ContainerStatus", id)?;
        let status = answer.status.context("a container without a status")?;
        let has_ended = status.state == i32::from(ContainerState::Exited);
        Ok(has_ended.then_some((status.exit_code, status.reason)))
    }

    /// Moves the host's process `pid` into the container's cgroup.
    ///
    /// # Errors
    ///
    /// When either does not exist.
    pub fn take_in(&self, pid: u32) -> Result<()> {
        cgroup::attach(pid, &self.cgroup_dir())
    }
}

impl Drop for CriContainer {
    fn drop(&mut self) {
        self.pod.state.remove_container(&self.id);
        // As for the pod.
        let _ = self.daemon.call::<_, Empty>("RuntimeService/RemoveContainer", Id { id: self.id.clone() });
    }
}
