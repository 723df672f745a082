//! Pods as their sources describe them: Pod objects (API server, kubelet, pods file) and CRI sandboxes.
//!
//! Field names follow the Pod API (core/v1) and the CRI (runtime.v1). What a source does not say is absent; no
//! source's silence is taken for a default here.

use std::collections::BTreeMap;

use super::{Extent, PodUid};

/// Where a description of a pod comes from. The order is that of precedence, the first wins: the API server's
/// object is the newest and fullest, kubelet's is of this node, a file may be old, and the CRI knows identity, images
/// and what was asked of the runtime, but not what the pod declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodSource {
    /// Watch of the API server.
    Api,
    /// Kubelet's `/pods`.
    KubeletApi,
    /// The pods file.
    PodsFile,
    /// The container runtime's CRI socket.
    Cri,
}

impl PodSource {
    /// Every source, by precedence.
    pub const ALL: [Self; 4] = [Self::Api, Self::KubeletApi, Self::PodsFile, Self::Cri];

    /// The name used in `/status`, metrics and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::KubeletApi => "kubelet_api",
            Self::PodsFile => "pods_file",
            Self::Cri => "cri",
        }
    }
}

/// A pod, from a Pod object or a CRI sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSpec {
    /// UID under which kubelet knows it: the configuration hash of a static pod, else `metadata.uid`.
    pub uid: PodUid,
    /// `metadata.uid` of a static pod's mirror, which is another.
    pub mirror_uid: Option<PodUid>,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The controller among `metadata.ownerReferences`.
    pub owner: Option<Owner>,
    /// `spec.serviceAccountName`.
    pub service_account: Option<String>,
    /// `spec.runtimeClassName`; the runtime handler in the CRI.
    pub runtime_class: Option<String>,
    /// `spec.hostUsers`, absent when unset (which means true) and in the CRI, which does not know it.
    pub host_users: Option<bool>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `spec.hostPID`.
    pub host_pid: bool,
    /// `spec.hostIPC`.
    pub host_ipc: bool,
    /// `spec.securityContext`.
    pub security: SecurityContext,
    /// Containers of all kinds.
    pub containers: Vec<ContainerSpec>,
    /// `spec.volumes`.
    pub volumes: Vec<Volume>,
}

impl PodSpec {
    /// The container with this id, as cgroup paths have it.
    #[must_use]
    pub fn container(&self, id: &str) -> Option<&ContainerSpec> {
        self.containers.iter().find(|container| container.id.as_deref() == Some(id))
    }
}

/// A reference to the controller that made a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Its kind, such as `ReplicaSet`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// What a container is in its pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContainerKind {
    /// One of `spec.containers`; also where the source does not tell kinds apart, as the CRI.
    #[default]
    Container,
    /// One of `spec.initContainers`.
    Init,
    /// One of `spec.initContainers` with `restartPolicy: Always`.
    Sidecar,
    /// One of `spec.ephemeralContainers`.
    Ephemeral,
    /// The sandbox's own (pause).
    Sandbox,
}

impl ContainerKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Container, Self::Init, Self::Sidecar, Self::Ephemeral, Self::Sandbox];

    /// The name used in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Init => "init",
            Self::Sidecar => "sidecar",
            Self::Ephemeral => "ephemeral",
            Self::Sandbox => "sandbox",
        }
    }
}

/// A container of a pod: specification and status in one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Name within the pod.
    pub name: String,
    /// What it is.
    pub kind: ContainerKind,
    /// Image as the specification names it.
    pub image: String,
    /// Digest of the image, `sha256:…`, once it is known.
    pub image_digest: Option<String>,
    /// The running (or last) container's id without the runtime's scheme, once it is known.
    pub id: Option<String>,
    /// `securityContext`.
    pub security: SecurityContext,
}

/// `securityContext` of a pod or container, as far as it bears on user namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecurityContext {
    /// `privileged`.
    pub privileged: Option<bool>,
    /// `runAsUser`.
    pub run_as_user: Option<i64>,
    /// `runAsGroup`.
    pub run_as_group: Option<i64>,
    /// `runAsNonRoot`.
    pub run_as_non_root: Option<bool>,
    /// `allowPrivilegeEscalation`.
    pub allow_privilege_escalation: Option<bool>,
    /// `readOnlyRootFilesystem`.
    pub read_only_root_filesystem: Option<bool>,
    /// `procMount`.
    pub proc_mount: Option<String>,
    /// `capabilities.add`.
    pub capabilities_add: Vec<String>,
    /// `capabilities.drop`.
    pub capabilities_drop: Vec<String>,
    /// `seccompProfile.type`.
    pub seccomp_profile: Option<String>,
    /// `appArmorProfile.type`.
    pub app_armor_profile: Option<String>,
}

/// A volume of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// The key of its source in the Pod object, such as `hostPath`, `secret` or `persistentVolumeClaim`.
    pub source: String,
    /// `hostPath.path`.
    pub host_path: Option<String>,
}

/// The user namespace that kubelet asked the runtime for: `NamespaceOption.userns_options`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UsernsMode {
    /// The runtime does not say.
    #[default]
    Unknown,
    /// The host's.
    Node,
    /// One of the pod's own.
    Pod,
}

/// A pod sandbox of the container runtime with its containers: `PodSandboxStatus`, `Container` (runtime.v1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// The sandbox's id; its own container's id as well.
    pub id: String,
    /// Identity, runtime handler (`runtime_class`) and containers. The sandbox's container is not among them.
    pub pod: PodSpec,
    /// Which user namespace was asked for.
    pub userns_mode: UsernsMode,
    /// The map of user ids that was asked for.
    pub uid_mappings: Vec<Extent>,
    /// The map of group ids.
    pub gid_mappings: Vec<Extent>,
    /// When it was made, in nanoseconds of the civil clock: a pod whose sandbox died has a newer one.
    pub created_at: i64,
}
