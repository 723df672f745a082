//! What the core says: findings, with everything a reader needs to judge one.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::flight::Step;
use crate::event::{CgroupId, ContainerKind, Extent, IdMap, Nanos, Owner, PodSource, PodUid, TaskEvent};

/// A finding's identity: the same for all updates of one finding, and the same again when a recording is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FindingId(pub u64);

impl fmt::Display for FindingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// How bad it is, if true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Something was tried and denied.
    Low,
    /// The promise is weaker than it looks.
    Medium,
    /// The promise is broken.
    High,
    /// A process is out of its pod, or nothing holds it in.
    Critical,
}

impl Severity {
    /// Every severity, the lowest first.
    pub const ALL: [Self; 5] = [Self::Info, Self::Low, Self::Medium, Self::High, Self::Critical];

    /// The severity at this place of [`Severity::ALL`].
    #[must_use]
    pub fn of_rank(rank: u8) -> Option<Self> {
        Self::ALL.get(usize::from(rank)).copied()
    }

    /// The name used in metrics and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// How sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// There are legitimate causes that the agent cannot tell apart.
    Medium,
    /// Legitimate causes are rare and documented with the rule.
    High,
    /// The kernel offers no legitimate way to this state.
    Certain,
}

impl Confidence {
    /// The name used in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Medium => "medium",
            Self::High => "high",
            Self::Certain => "certain",
        }
    }
}

/// The pod a finding is about. Everything but the UID is absent while no source has told it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRef {
    /// UID, from the cgroup path.
    pub uid: PodUid,
    /// Who told the rest.
    pub source: Option<PodSource>,
    /// Namespace.
    pub namespace: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The controller that made it.
    pub owner: Option<Owner>,
    /// Service account.
    pub service_account: Option<String>,
    /// Runtime class, or the runtime's handler.
    pub runtime_class: Option<String>,
    /// `spec.hostUsers` as declared: `None` if no Pod object is known or the field is unset.
    pub host_users: Option<bool>,
    /// Other namespaces of the host that it asks for, if a Pod object is known.
    pub host_namespaces: Option<HostNamespaces>,
    /// User id map that kubelet recorded.
    pub recorded_uid_map: Vec<Extent>,
}

/// Namespaces of the host that a pod asks for, besides the user namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostNamespaces {
    /// `spec.hostNetwork`.
    pub network: bool,
    /// `spec.hostPID`.
    pub pid: bool,
    /// `spec.hostIPC`.
    pub ipc: bool,
}

/// The container a finding is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerRef {
    /// Its name in the pod, if a source has told it; a sandbox has none.
    pub name: Option<String>,
    /// What it is in the pod, likewise.
    pub kind: Option<ContainerKind>,
    /// Its image as the pod names it.
    pub image: Option<String>,
    /// The image's digest.
    pub image_digest: Option<String>,
    /// Container id, as in the cgroup path.
    pub id: String,
    /// Runtime or CRI implementation that the cgroup's name shows.
    pub runtime: Option<&'static str>,
    /// Cgroup id.
    pub cgroup: CgroupId,
    /// Cgroup path.
    pub cgroup_path: String,
}

/// The container of another pod that the process of a finding comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CameFrom {
    /// The container.
    pub container: ContainerRef,
    /// Its pod.
    pub pod: Option<PodRef>,
}

/// One capability used or denied, in a finding about capabilities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapabilityUse {
    /// Number.
    pub capability: u32,
    /// Whether it was granted.
    pub granted: bool,
    /// How often so far.
    pub count: u64,
    /// System call in flight at the first or last time.
    pub syscall: Option<u32>,
}

/// One namespace operation, in a finding about attempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallUse {
    /// Name of the system call.
    pub call: &'static str,
    /// Negative errno of the first, 0 if it succeeded.
    pub ret: i32,
    /// How often so far.
    pub count: u64,
}

/// Whether this is news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The first time.
    Opened,
    /// An update: `count` and what was used have grown.
    Updated,
    /// The same again, with something about pod, container or what led to it that was not known before.
    Amended,
    /// What it was about is gone.
    Resolved,
}

impl Status {
    /// The name used in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Updated => "updated",
            Self::Amended => "amended",
            Self::Resolved => "resolved",
        }
    }
}

/// How a finding ended. That nothing of it runs any more undoes nothing that was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// When.
    pub at: Nanos,
    /// What is gone.
    pub because: &'static str,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Identity.
    pub id: FindingId,
    /// Opened, updated, amended or resolved.
    pub status: Status,
    /// The rule, whose metadata ([`super::rules::Rule`]) completes the finding.
    pub rule: super::rules::RuleId,
    /// Severity of this case; some rules have more than one.
    pub severity: Severity,
    /// Confidence of this case.
    pub confidence: Confidence,
    /// When the deciding thing happened.
    pub time: Nanos,
    /// When the first of what is counted happened.
    pub first: Nanos,
    /// How often.
    pub count: u64,
    /// Why, in one sentence.
    pub why: String,
    /// The pod, if the container's cgroup names one.
    pub pod: Option<PodRef>,
    /// The container.
    pub container: Option<ContainerRef>,
    /// Where the process comes from, if that is another pod.
    pub from: Option<Box<CameFrom>>,
    /// The process and the credentials it had.
    pub task: Option<Box<TaskEvent>>,
    /// Name of the hook that saw it.
    pub hook: Option<&'static str>,
    /// Capabilities used or denied.
    pub capabilities: Vec<CapabilityUse>,
    /// Namespace operations.
    pub calls: Vec<CallUse>,
    /// What is not known and why, for example that the pod's name needs a pods file.
    pub unknown: Vec<&'static str>,
    /// What led to it: steps of the process, of its ancestors in the container and of its children, the oldest first.
    pub evidence: Vec<Arc<Step>>,
    /// Steps that were left out of it.
    pub evidence_omitted: u64,
    /// How it ended, once it has.
    pub resolved: Option<Resolved>,
}

impl Finding {
    /// When the latest of what it tells happened.
    #[must_use]
    pub fn told_at(&self) -> Nanos {
        self.resolved.map_or(self.time, |resolved| resolved.at)
    }
}

/// The id inside the namespace that `map` belongs to, for kernel id `kernel`; `None` if it has none there.
#[must_use]
pub fn to_container(map: &IdMap, kernel: u32) -> Option<u32> {
    extents(map).iter().find_map(|extent| {
        let offset = kernel.checked_sub(extent.lower_first)?;
        (offset < extent.count).then(|| extent.first.wrapping_add(offset))
    })
}

/// The extents that count.
#[must_use]
pub fn extents(map: &IdMap) -> &[Extent] {
    map.extents.get(..map.nr_extents as usize).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_translate_through_every_extent() {
        let mut map = IdMap { nr_extents: 2, ..IdMap::default() };
        map.extents[0] = Extent { first: 0, lower_first: 4_294_836_224, count: 65_536 };
        map.extents[1] = Extent { first: 65_536, lower_first: 1000, count: 1 };
        assert_eq!(to_container(&map, 4_294_836_224), Some(0));
        assert_eq!(to_container(&map, 4_294_901_759), Some(65_535));
        assert_eq!(to_container(&map, 4_294_901_760), None);
        assert_eq!(to_container(&map, 1000), Some(65_536));
        assert_eq!(to_container(&map, 0), None);
        map.nr_extents = 6;
        assert_eq!(to_container(&map, 1000), None);
    }
}
