//! What the agent knows after decoding: owned, checked values that the pure core works on.
//!
//! Names follow the kernel. Times are nanoseconds of `CLOCK_BOOTTIME`; ids are kernel ids as the initial user
//! namespace sees them; pids are those of the initial pid namespace.

mod pod;
mod policy;
mod reference;
mod told;

use std::fmt;

pub use pod::{
    ContainerKind, ContainerSpec, Owner, PodSource, PodSpec, Sandbox, SecurityContext, UsernsMode, Volume,
};
pub use policy::{Exception, Policy, RuleSetting};
pub use reference::{INITIAL_USERNS, Reference};
pub use told::{Told, ToldCall, ToldCapability};
pub use userns_common::cgroup::role;
pub use userns_common::kind::{
    Counter, Hook, Operation, Relation, lineage, namespace, origin, place, reason, state,
};
pub use userns_common::record::{
    AggregateKey, AggregateValue, Budget, CapSets, Extent, IdMap, Ids, Image, Lineage, Namespaces, UserNs,
};

/// Nanoseconds of `CLOCK_BOOTTIME`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanos(pub u64);

impl Nanos {
    /// The time `self` is after `earlier`, zero if it is not.
    #[must_use]
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Id of a cgroup in the unified hierarchy: the inode number of its directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CgroupId(pub u64);

/// A process for as long as the node runs: pids are reused, the pair with the start time is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// When its leader started.
    pub start: Nanos,
}

/// A pod's UID in canonical form: lower case, dashes. For static pods the kubelet's configuration hash.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodUid(String);

impl PodUid {
    /// Reads a UUID (with `-` or, as systemd slices have it, `_`) or a static pod's 32 hex digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (name, len) = userns_common::cgroup::to_name(format!("pod{text}").as_bytes())?;
        let (start, uid_len) = userns_common::cgroup::pod_uid(&name, len)?;
        (start == 3 && uid_len == text.len()).then(|| Self(text.replace('_', "-").to_ascii_lowercase()))
    }

    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text that came from a workload. Bytes that are not UTF-8 are kept as `\xNN`; nothing else is changed, so
/// control characters are still in it and every output has to escape them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text(String);

impl Text {
    /// Takes bytes as they are.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        use fmt::Write as _;
        let mut text = String::with_capacity(bytes.len());
        for chunk in bytes.utf8_chunks() {
            text.push_str(chunk.valid());
            for byte in chunk.invalid() {
                // writing to a String cannot fail
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
        Self(text)
    }

    /// Takes the bytes before the first NUL.
    #[must_use]
    pub fn from_c_bytes(bytes: &[u8]) -> Self {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        Self::from_bytes(bytes.get(..end).unwrap_or_default())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// A task as the kernel held it when the record was taken; credentials are the objective ones (`real_cred`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Task {
    /// The process.
    pub process: ProcessId,
    /// Thread id.
    pub tid: u32,
    /// Process id in its own pid namespace, if known.
    pub ns_pid: Option<u32>,
    /// Whether it was working with other credentials than its own at that moment.
    pub overridden: bool,
    /// Ids.
    pub ids: Ids,
    /// Capability sets.
    pub caps: CapSets,
    /// The credentials' user namespace.
    pub userns: UserNs,
    /// Its ancestor one level below the host's: the pod's.
    pub pod_userns: Option<UserNs>,
    /// Other namespaces.
    pub ns: Namespaces,
    /// Executable.
    pub image: Image,
    /// Current cgroup.
    pub cgroup: CgroupId,
    /// How it came into the pod.
    pub lineage: Lineage,
    /// Command name.
    pub comm: Text,
}

/// A process up the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ancestor {
    /// The process.
    pub process: ProcessId,
    /// Effective user id.
    pub euid: u32,
    /// Command name.
    pub comm: Text,
}

/// An operation that a record tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What it was.
    pub operation: Operation,
    /// Capability number, for a check.
    pub capability: Option<u32>,
    /// Which user namespace it was asked over.
    pub relation: Relation,
    /// Return value: 0 or a negative errno.
    pub ret: i32,
    /// Inode number of that namespace; 0 if unknown.
    pub target_inum: u32,
    /// Its level.
    pub target_level: u32,
    /// Number of the system call in flight.
    pub syscall: Option<u32>,
    /// Clone flags, setns `nstype`, or mount `attr_set`.
    pub flags: u64,
}

/// A task with everything recorded about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskEvent {
    /// The task.
    pub task: Task,
    /// The operation, where the record tells of one.
    pub call: Option<Call>,
    /// Bits of [`userns_common::kind::namespace`]: namespaces that have become another's than the pod's. Bits of
    /// [`userns_common::kind::place`]: what it works in mounts of another's by.
    pub foreign: u32,
    /// Ancestors, nearest first.
    pub ancestors: Vec<Ancestor>,
    /// Path given to execve, or the executable's file name.
    pub path: Text,
    /// Arguments; the last one may be cut.
    pub args: Vec<Text>,
    /// Whether path or arguments were cut.
    pub cut: bool,
}

/// A record from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it was taken.
    pub time: Nanos,
    /// Where.
    pub hook: Hook,
    /// Bits of [`reason`].
    pub reasons: u32,
    /// What happened.
    pub body: Body,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A task came into a pod's cgroup from outside.
    Entry(Box<TaskEvent>),
    /// A task in a pod executed a program.
    Exec(Box<TaskEvent>),
    /// A task was first seen in its pod's user namespace.
    Inside(Box<TaskEvent>),
    /// A task's state contradicts its lineage.
    Suspect(Box<TaskEvent>),
    /// A capability check worth telling.
    Capability(Box<TaskEvent>),
    /// A namespace or mount operation.
    NamespaceCall(Box<TaskEvent>),
    /// A process ended.
    Exit {
        /// The process.
        process: ProcessId,
        /// Its container's cgroup.
        container: CgroupId,
    },
    /// A process on its way in was moved out again.
    Left {
        /// The process.
        process: ProcessId,
        /// The container's cgroup.
        container: CgroupId,
    },
    /// A pod's or container's cgroup was made.
    CgroupMkdir(Cgroup),
    /// A pod's or container's cgroup was removed.
    CgroupRmdir(Cgroup),
}

impl Body {
    /// The task, where there is one.
    #[must_use]
    pub fn task(&self) -> Option<&TaskEvent> {
        match self {
            Self::Entry(task)
            | Self::Exec(task)
            | Self::Inside(task)
            | Self::Suspect(task)
            | Self::Capability(task)
            | Self::NamespaceCall(task) => Some(task),
            Self::Exit { .. } | Self::Left { .. } | Self::CgroupMkdir(_) | Self::CgroupRmdir(_) => None,
        }
    }

    /// The name used in metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Entry(_) => "entry",
            Self::Exec(_) => "exec",
            Self::Inside(_) => "inside",
            Self::Suspect(_) => "suspect",
            Self::Capability(_) => "capability",
            Self::NamespaceCall(_) => "namespace_call",
            Self::Exit { .. } => "exit",
            Self::Left { .. } => "left",
            Self::CgroupMkdir(_) => "cgroup_mkdir",
            Self::CgroupRmdir(_) => "cgroup_rmdir",
        }
    }
}

/// A cgroup directory of a pod or container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Its id.
    pub id: CgroupId,
    /// One of [`role`].
    pub role: u32,
    /// Path from the root of the unified hierarchy.
    pub path: Text,
}

/// What kubelet recorded for a pod with a user namespace: `<root>/pods/<uid>/userns`
/// (pkg/kubelet/userns/userns_manager.go).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubeletRecord {
    /// Map of user ids, in file order.
    pub uid_mappings: Vec<Extent>,
    /// Map of group ids.
    pub gid_mappings: Vec<Extent>,
}

/// Something learnt from outside the kernel's hooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A walk of cgroupfs met this directory.
    CgroupSeen(Cgroup),
    /// A walk of cgroupfs ended; what it did not meet and no hook reported since `started` is gone.
    CgroupWalkDone {
        /// When the walk began.
        started: Nanos,
    },
    /// Kubelet's record of a pod: `None` when it is gone.
    KubeletRecord {
        /// The pod.
        uid: PodUid,
        /// The record.
        record: Option<KubeletRecord>,
    },
    /// All pods that a source has, replacing what it told before.
    Pods(PodSource, Vec<PodSpec>),
    /// A source has this pod, new or changed.
    Pod(PodSource, Box<PodSpec>),
    /// A source has it no longer.
    PodGone(PodSource, PodUid),
    /// All sandboxes of the container runtime, replacing what it told before.
    Sandboxes(Vec<Sandbox>),
    /// The container runtime has this sandbox, new or changed.
    Sandbox(Box<Sandbox>),
    /// It has the sandbox of this id no longer.
    SandboxGone(String),
    /// Executables of container runtimes on this node.
    RuntimeImages(Vec<Image>),
    /// Those of them that watch over a container as long as it, or a program executed into it, lives.
    MonitorImages(Vec<Image>),
    /// The aggregation table as it stands.
    Aggregates(Vec<(AggregateKey, AggregateValue)>),
    /// What containers were not allowed to send, as totals.
    Budgets(Vec<(CgroupId, Budget)>),
    /// What earlier runs of the agent told on this boot.
    Told(Vec<Told>),
    /// What to tell of each rule, and what to leave out, replacing what was said before.
    Policy(Box<Policy>),
}

/// Everything the core takes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A record from the kernel.
    Event(Event),
    /// A fact, and when it was learnt.
    Fact(Nanos, Fact),
    /// Time passes.
    Tick(Nanos),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_uids_have_one_form() {
        let canonical = "0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11";
        for text in
            [canonical, "0f4b5b7e_6f1d_4f3e_9d5c_2f1f4f1a7c11", "0F4B5B7E-6F1D-4F3E-9D5C-2F1F4F1A7C11"]
        {
            assert_eq!(PodUid::parse(text).unwrap().as_str(), canonical);
        }
        assert!(PodUid::parse("51bd78aa51bd78aa51bd78aa51bd78aa").is_some());
        for text in
            ["", "x", "51bd78aa51bd78aa51bd78aa51bd78a", "../../etc", "0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11/"]
        {
            assert_eq!(PodUid::parse(text), None, "{text}");
        }
    }

    #[test]
    fn text_keeps_every_byte_recognisable() {
        assert_eq!(Text::from_bytes(b"a\xffb\n").as_str(), "a\\xffb\n");
        assert_eq!(Text::from_c_bytes(b"sh\0junk").as_str(), "sh");
        assert_eq!(Text::from_bytes("π".as_bytes()).as_str(), "π");
    }
}
