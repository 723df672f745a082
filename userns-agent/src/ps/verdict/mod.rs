//! Whether what was promised for a container's pod holds. Pure.

#[cfg(test)]
mod tests;

use super::known::{Known, KnownContainer, KnownFinding};
use crate::core::Unobservable;
use crate::core::range::{self, Problem, show_all};
use crate::event::{Extent, KubeletRecord, PodSpec, PodUid, Text};
use crate::host::proc::to_id_map;
use userns_common::limits::MAX_EXTENTS;

/// What holds, in a word; the worst of a pod's containers is the pod's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// What was promised, or what holds, cannot be told.
    Unknown,
    /// Its processes run on another kernel than the node's.
    NotObservable,
    /// A user namespace of its own, with a range of its own.
    Honoured,
    /// The host's user namespace, as nothing else was promised.
    HostUserNamespace,
    /// A user namespace whose range is not the pod's alone.
    UnsafeRange,
    /// The host's user namespace, although another was promised.
    Ignored,
    /// The agent found that a process left what holds it.
    Escaped,
}

impl Verdict {
    /// Every verdict, worst last.
    pub const ALL: &'static [Self] = &[
        Self::Unknown,
        Self::NotObservable,
        Self::Honoured,
        Self::HostUserNamespace,
        Self::UnsafeRange,
        Self::Ignored,
        Self::Escaped,
    ];

    /// The name printed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::NotObservable => "not observable",
            Self::Honoured => "honoured",
            Self::HostUserNamespace => "host user namespace",
            Self::UnsafeRange => "unsafe range",
            Self::Ignored => "ignored",
            Self::Escaped => "escaped",
        }
    }

    /// Whether a promise is broken.
    #[must_use]
    pub fn is_broken(self) -> bool {
        matches!(self, Self::UnsafeRange | Self::Ignored | Self::Escaped)
    }
}

/// A verdict and why, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
}

/// A user namespace with its maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Inode number.
    pub inum: u32,
    /// Map of user ids.
    pub uid_map: Vec<Extent>,
    /// Map of group ids.
    pub gid_map: Vec<Extent>,
}

impl Namespace {
    /// How many ids it maps.
    #[must_use]
    pub fn width(&self) -> u64 {
        self.uid_map.iter().map(|extent| u64::from(extent.count)).sum()
    }
}

/// What a look at a container's processes gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// No process is there.
    Empty,
    /// There are some, but none could be inspected.
    Unreadable {
        /// Why.
        why: String,
    },
    /// One was inspected that stands for all.
    Process(Sample),
}

/// The process that stands for a container: its first one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Its id.
    pub pid: u32,
    /// Its command name.
    pub comm: Text,
    /// Its user namespace.
    pub userns: Namespace,
    /// How many of the container's processes are in the host's user namespace.
    pub in_host: usize,
    /// How many user namespaces its processes have besides this one and the host's.
    pub nested: usize,
}

/// What kubelet says of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It gave it this.
    Record(KubeletRecord),
    /// It knows the pod and gave it nothing.
    Nothing,
    /// It does not know the pod.
    NoPod,
    /// It is not known.
    Unreadable {
        /// Why.
        why: String,
    },
}

/// What is known of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its UID.
    pub uid: PodUid,
    /// What it declares, if the pods file or the agent has it.
    pub spec: Option<PodSpec>,
    /// What kubelet gave it.
    pub recorded: Recorded,
    /// What the agent knows of it.
    pub known: Option<Known>,
}

/// Rules whose findings mean that a process is out.
const ESCAPES: [&str; 6] = ["I1", "I4", "I6", "I8", "I13", "I14"];

impl Pod {
    /// Namespace and name, if known.
    #[must_use]
    pub fn name(&self) -> Option<(&str, &str)> {
        let known = || {
            self.known.as_ref().and_then(|known| Some((known.namespace.as_deref()?, known.name.as_deref()?)))
        };
        self.spec.as_ref().map(|spec| (spec.namespace.as_str(), spec.name.as_str())).or_else(known)
    }

    /// Its name if known, else its UID.
    #[must_use]
    pub fn label(&self) -> String {
        self.name().map_or_else(|| self.uid.to_string(), |(namespace, name)| format!("{namespace}/{name}"))
    }

    /// Runtime class, or the runtime's handler.
    #[must_use]
    pub fn runtime_class(&self) -> Option<&str> {
        self.runtime_classes().next()
    }

    /// What is declared, and what the agent knows, which may be another name for it.
    fn runtime_classes(&self) -> impl Iterator<Item = &str> {
        let declared = self.spec.as_ref().and_then(|spec| spec.runtime_class.as_deref());
        let known = self.known.as_ref().and_then(|known| known.runtime_class.as_deref());
        declared.into_iter().chain(known)
    }

    /// What the agent knows of the container with this id.
    #[must_use]
    pub fn container(&self, id: Option<&str>) -> Option<&KnownContainer> {
        self.known.as_ref()?.containers.iter().find(|container| id.is_some() && container.id.as_deref() == id)
    }

    /// The worst that the agent found of a process that left what holds it.
    #[must_use]
    pub fn escape(&self) -> Option<&KnownFinding> {
        self.known.as_ref()?.findings.iter().find(|finding| ESCAPES.contains(&finding.rule.as_str()))
    }

    fn record(&self) -> Option<&KubeletRecord> {
        match &self.recorded {
            Recorded::Record(record) => Some(record),
            Recorded::Nothing | Recorded::NoPod | Recorded::Unreadable { .. } => None,
        }
    }
}

/// Judges a container of `pod`. `host` is the number of the host's user namespace; `others` are the user namespaces
/// of other pods; of `unobservable` ones nothing can be said.
#[must_use]
pub fn judge(
    pod: &Pod,
    look: &Look,
    host: u32,
    unobservable: &Unobservable,
    others: &[(&Pod, &Namespace)],
) -> Judgement {
    if let Some(class) = pod.runtime_classes().find(|class| unobservable.has(class)) {
        let reason = format!("its runtime class {class} runs it on a kernel of its own");
        return Judgement { verdict: Verdict::NotObservable, reason };
    }
    match look {
        Look::Empty => unknown("no process is in its cgroup, so there is nothing to compare"),
        Look::Unreadable { why } => unknown(format!("its processes cannot be inspected: {why}")),
        Look::Process(sample) if sample.userns.inum == host => in_host(pod),
        Look::Process(sample) => in_own(pod, sample, others),
    }
}

fn unknown(reason: impl Into<String>) -> Judgement {
    Judgement { verdict: Verdict::Unknown, reason: reason.into() }
}

fn in_host(pod: &Pod) -> Judgement {
    const WHERE: &str = "it runs in the host's user namespace";
    let say = |verdict, why: String| Judgement { verdict, reason: format!("{WHERE}{why}") };
    if let Some(record) = pod.record() {
        let range = show_all(&record.uid_mappings);
        return say(Verdict::Ignored, format!(", although kubelet recorded {range} for its pod"));
    }
    let declared = pod.spec.as_ref().map(|spec| spec.host_users);
    match (declared, &pod.recorded) {
        (Some(Some(false)), _) => say(Verdict::Ignored, ", although its pod declares hostUsers: false".into()),
        (Some(Some(true)), _) => say(Verdict::HostUserNamespace, ", as its pod declares: hostUsers: true".into()),
        (Some(None), _) => say(Verdict::HostUserNamespace, ": its pod does not declare hostUsers: false".into()),
        (None, Recorded::Unreadable { why }) => {
            say(Verdict::Unknown, format!("; what was promised is not known: {why}"))
        }
        (None, Recorded::NoPod) => say(
            Verdict::Unknown,
            "; what was promised is not known: kubelet has no directory for its pod, and no pods file names it".into(),
        ),
        (None, Recorded::Nothing | Recorded::Record(_)) => {
            say(Verdict::HostUserNamespace, ", and kubelet recorded no other for its pod".into())
        }
    }
}

fn in_own(pod: &Pod, sample: &Sample, others: &[(&Pod, &Namespace)]) -> Judgement {
    let Namespace { uid_map, gid_map, .. } = &sample.userns;
    if uid_map.is_empty() && gid_map.is_empty() {
        return unknown("its user namespace has no id map yet");
    }
    let unsafe_range = |reason| Judgement { verdict: Verdict::UnsafeRange, reason };
    if let Some(problem) = problem(pod, &sample.userns) {
        return unsafe_range(say(&problem));
    }
    let shared = others.iter().find_map(|(other, namespace)| {
        let ids = overlap(uid_map, &namespace.uid_map).or_else(|| overlap(gid_map, &namespace.gid_map))?;
        Some((other, ids))
    });
    if let Some((other, (first, last))) = shared {
        return unsafe_range(format!(
            "its pod shares the host ids {first} to {last} with pod {}",
            other.label()
        ));
    }
    let range = show_all(uid_map);
    let record = match pod.record() {
        Some(record) if record.uid_mappings == *uid_map => ", as kubelet recorded",
        Some(_) => ", nested in what kubelet recorded",
        None => "",
    };
    let visitors = match sample.in_host {
        0 => String::new(),
        count => format!("; {count} of its processes run in the host's user namespace at this moment"),
    };
    let reason = format!("it runs in a user namespace of its own, {range}{record}{visitors}");
    Judgement { verdict: Verdict::Honoured, reason }
}

/// The worst problem of a namespace.
fn problem(pod: &Pod, namespace: &Namespace) -> Option<Problem> {
    // a long map is looked at in parts, as the kernel's inline form holds five extents only
    let maps = [&namespace.uid_map, &namespace.gid_map];
    let mut parts = maps.iter().flat_map(|map| map.chunks(MAX_EXTENTS));
    if let Some(problem) = parts.find_map(|part| range::check_map(&to_id_map(part))) {
        return Some(problem);
    }
    let (uid_map, gid_map) = (to_id_map(&namespace.uid_map), to_id_map(&namespace.gid_map));
    let record = pod.record()?;
    // a workload may itself make a user namespace, which can only hold ids of the one it was given
    let nested =
        within(&namespace.uid_map, &record.uid_mappings) && within(&namespace.gid_map, &record.gid_mappings);
    let differs = |problem: &Problem| matches!(problem, Problem::DiffersFromRecord { .. });
    range::problems(&uid_map, &gid_map, Some(record), None)
        .into_iter()
        .find(|problem| !(nested && differs(problem)))
}

/// Whether every host id of `inner` is one of `outer`.
fn within(inner: &[Extent], outer: &[Extent]) -> bool {
    let end = |extent: &Extent| u64::from(extent.lower_first) + u64::from(extent.count);
    inner.iter().all(|inner| {
        outer.iter().any(|outer| inner.lower_first >= outer.lower_first && end(inner) <= end(outer))
    })
}

fn overlap(a: &[Extent], b: &[Extent]) -> Option<(u32, u32)> {
    a.chunks(MAX_EXTENTS)
        .find_map(|a| b.chunks(MAX_EXTENTS).find_map(|b| range::overlap(&to_id_map(a), &to_id_map(b))))
}

fn say(problem: &Problem) -> String {
    match problem {
        Problem::HostRoot { inside } => format!("id {inside} in its user namespace is the host's root"),
        Problem::HostIds { extent } => {
            format!("its user namespace holds ids of the host's own users: {}", range::show(extent))
        }
        Problem::DiffersFromRecord { kind, recorded, actual } => format!(
            "its map of {kind} ids is {}, but kubelet recorded {}",
            show_all(actual),
            show_all(recorded)
        ),
        Problem::DiffersFromRequest { kind, requested, actual } => format!(
            "its map of {kind} ids is {}, but kubelet asked the runtime for {}",
            show_all(actual),
            show_all(requested)
        ),
        Problem::UnsafeRecord { extent } => {
            format!("kubelet recorded {} for its pod, which is no pod's range", range::show(extent))
        }
    }
}
