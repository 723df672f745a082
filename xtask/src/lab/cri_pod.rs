//! Pods and containers run through the CRI, asked for in the way kubelet does.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};

use super::{
    Response,
    containerd::{Containerd, Daemon, IMAGE},
    cri::messages::{
        Capability, ContainerConfig, ContainerMetadata, CreateContainerRequest, Empty, Id, IdMapping,
        ImageSpec, LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
        LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig,
        PodSandboxMetadata, RunPodSandboxRequest, UserNamespace,
    },
    cri_container::{CriContainer, CriContainerSpec},
    http,
    ids::IdRange,
    namespace,
    pod::Pod,
    runtimes::RuntimeName,
};

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
    /// `spec.hostPID`: the processes of containerd's PID namespace.
    pub host_pid: bool,
    /// Whether one of its containers is privileged.
    pub privileged: bool,
}

impl CriPodSpec {
    /// A pod with a namespace of each kind of its own, but for that of users without a `range`.
    #[must_use]
    pub const fn new(handler: Handler, range: Option<IdRange>) -> Self {
        Self { handler, range, host_network: false, host_pid: false, privileged: false }
    }
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
        let config = self.container_config(spec);
        let log_path = spec.logged.then(|| format!("{}/{}", self.log_directory(), config.log_path));
        if let Some(dir) = log_path.as_deref().and_then(|path| path.rsplit_once('/')) {
            let dir = self.daemon.on_host(dir.0);
            fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config()),
        };
        let created: Id = self.daemon.call("RuntimeService/CreateContainer", request)?;
        let (pod, daemon) = (self.pod.clone(), Arc::clone(&self.daemon));
        let log = log_path.map(|path| self.daemon.on_host(&path));
        let container = CriContainer { id: created.id, pod, daemon, log };
        self.pod.state.add_container(&spec.name, &container.id);
        let id = Id { id: container.id.clone() };
        self.daemon.call::<_, Empty>("RuntimeService/StartContainer", id)?;
        Ok(container)
    }

    /// Requests `path` from `port` on the pod's loopback interface, which is all the network that it has.
    ///
    /// # Errors
    ///
    /// When nobody answers. A status other than 200 is an answer.
    pub fn http_get(&self, port: u16, path: &str) -> Result<Response> {
        let processes = self.pod.cgroup_dir().join(&self.id).join("cgroup.procs");
        let pids = fs::read_to_string(&processes)
            .with_context(|| format!("the sandbox has no {}", processes.display()))?;
        let pid = pids.lines().next().context("the sandbox has no process")?;
        namespace::in_network_of(pid, || http::get(&format!("127.0.0.1:{port}"), path))
    }

    /// Where kubelet has runtimes keep the logs of the pod's containers.
    fn log_directory(&self) -> String {
        let state = &self.pod.state;
        format!("/var/log/pods/{}_{}_{}", state.spec.namespace, state.spec.name, state.uid)
    }

    fn config(&self) -> PodSandboxConfig {
        let state = &self.pod.state;
        let context = LinuxSandboxSecurityContext {
            namespace_options: Some(self.namespaces(None)),
            privileged: self.spec.privileged,
        };
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
            log_directory: self.log_directory(),
            labels: self.labels(),
            linux: Some(linux),
        }
    }

    fn container_config(&self, spec: &CriContainerSpec) -> ContainerConfig {
        let mut labels = self.labels();
        labels.insert("io.kubernetes.container.name".to_owned(), spec.name.clone());
        let context = LinuxContainerSecurityContext {
            capabilities: Some(Capability { add_capabilities: spec.capabilities.clone() }),
            privileged: spec.privileged,
            namespace_options: Some(self.namespaces(spec.target.as_deref())),
            run_as_user: spec.user.map(Into::into),
            readonly_rootfs: spec.read_only_root,
            run_as_group: spec.group.map(Into::into),
        };
        let attempt = self.attempt(&spec.name);
        let log_path = if spec.logged { format!("{}/{attempt}.log", spec.name) } else { String::new() };
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: spec.name.clone(), attempt }),
            image: Some(ImageSpec { image: spec.image.clone().unwrap_or_else(|| IMAGE.to_owned()) }),
            command: spec.command.clone(),
            args: spec.args.clone(),
            envs: spec.env.iter().cloned().map(Into::into).collect(),
            mounts: self.mounts(spec),
            labels,
            log_path,
            linux: Some(LinuxContainerConfig {
                resources: spec.resources.map(Into::into),
                security_context: Some(context),
            }),
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
        volumes.chain(packages).chain(spec.mounts.iter().map(Into::into)).collect()
    }

    fn mount(&self, host_path: String, path: &str) -> Mount {
        Mount {
            container_path: path.to_owned(),
            host_path,
            uid_mappings: self.mapping(),
            gid_mappings: self.mapping(),
            ..Mount::default()
        }
    }

    fn mapping(&self) -> Vec<IdMapping> {
        self.spec.range.map(IdRange::mapping).unwrap_or_default().into_iter().map(IdMapping::from).collect()
    }

    fn namespaces(&self, target: Option<&str>) -> NamespaceOption {
        let of_node = |is_of_node| if is_of_node { NamespaceMode::Node } else { NamespaceMode::Pod };
        let pid = match target {
            Some(_) => NamespaceMode::Target,
            None if self.spec.host_pid => NamespaceMode::Node,
            None => NamespaceMode::Container,
        };
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
