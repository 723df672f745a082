//! Records sent through the rings, and keys and values of the maps.
//!
//! Times are nanoseconds of `CLOCK_BOOTTIME`. Ids are kernel ids as the initial user namespace sees them
//! (`kuid_t`), pids those of the initial pid namespace, unless a field says otherwise. `dev` is the kernel's
//! internal encoding (`MKDEV`, 20 minor bits).

use crate::limits::{ARGS_LEN, CGROUP_PATH_LEN, COMM_LEN, MAX_ANCESTORS, MAX_EXTENTS, PATH_LEN};

/// First field of every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Header {
    /// [`crate::kind::EventKind`].
    pub kind: u32,
    /// Bytes of the whole record, header included.
    pub len: u32,
    /// When it was taken.
    pub time_ns: u64,
    /// [`crate::kind::Hook`].
    pub hook: u32,
    /// Bits of [`crate::kind::reason`].
    pub reasons: u32,
}

/// One extent of an id map (`struct uid_gid_extent`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// First id inside the namespace.
    pub first: u32,
    /// First kernel id it stands for.
    pub lower_first: u32,
    /// How many.
    pub count: u32,
}

/// An id map (`struct uid_gid_map`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// Extents the kernel holds. Above [`MAX_EXTENTS`] they are out of line and `extents` is all zero.
    pub nr_extents: u32,
    /// The inline extents; only the first `nr_extents` count.
    pub extents: [Extent; MAX_EXTENTS],
}

/// A user namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserNs {
    /// Inode number, as in `/proc/PID/ns/user`. 0: there is none.
    pub inum: u32,
    /// Depth; the initial namespace is 0.
    pub level: u32,
    /// Its creator's effective kernel uid.
    pub owner: u32,
    /// Inode number of its parent; 0 for the initial one.
    pub parent_inum: u32,
    /// Map of user ids.
    pub uid_map: IdMap,
    /// Map of group ids.
    pub gid_map: IdMap,
}

/// Ids of a `struct cred`, in the kernel's order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// Real user id.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
    /// Saved user id.
    pub suid: u32,
    /// Saved group id.
    pub sgid: u32,
    /// Effective user id.
    pub euid: u32,
    /// Effective group id.
    pub egid: u32,
    /// User id for file access.
    pub fsuid: u32,
    /// Group id for file access.
    pub fsgid: u32,
}

/// Capability sets of a `struct cred`, in the kernel's order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapSets {
    /// Kept across exec.
    pub inheritable: u64,
    /// May be raised.
    pub permitted: u64,
    /// In force.
    pub effective: u64,
    /// Upper bound.
    pub bounding: u64,
    /// Ambient.
    pub ambient: u64,
}

/// What is known of how a task came into a pod; the value of the task storage.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// One of [`crate::kind::state`].
    pub state: u32,
    /// Bits of [`crate::kind::lineage`].
    pub flags: u32,
    /// One of [`crate::kind::origin`].
    pub origin: u32,
    /// Inode number of the pod's user namespace; 0 while ENTERING, unless the agent adopted the task from procfs.
    pub userns_inum: u32,
    /// Address of that namespace: compared, never followed.
    pub userns: u64,
    /// Id of the container's cgroup that was entered; of a foreign task, of a container of the pod.
    pub container: u64,
    /// When it was entered.
    pub entered_ns: u64,
    /// Address of the mount namespace of whoever brought the task in: compared, never followed.
    pub entry_mnt: u64,
    /// Capabilities whose use over the host has been reported for this lineage.
    pub told_caps: u64,
    /// Bits of [`crate::kind::namespace`]: namespaces that belong to another user namespace than the pod's, as found
    /// when the first program ran or reported since. Bits of [`crate::kind::place`]: those reported.
    pub foreign: u32,
    /// Bits of [`crate::kind::reason`] that were reported for this lineage: each is told once.
    pub told: u32,
}

/// Value of the task storage.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tracked {
    /// Where the task comes from.
    pub lineage: Lineage,
    /// Capability checks of one kind that are not in the aggregation table yet: the kind in the upper half, how many in
    /// the lower one. Checks come in rows of the same kind, and this is cheaper than a lookup for each.
    pub pending: u64,
    /// When these were last moved to the table, in jiffies.
    pub moved: u64,
    /// User namespace of the credentials then: its address, compared and never followed.
    pub last_userns: u64,
    /// The user namespace that they were asked over, likewise.
    pub last_target: u64,
    /// The system call in flight where it matters, else -1.
    pub last_syscall: i32,
    /// The capability, and the verdict in the ninth bit.
    pub last_capability: u32,
    /// Between entry and return of `cap_capable`, where these are hooked apart: the credentials asked with.
    pub asked_cred: u64,
    /// The user namespace asked over.
    pub asked_target: u64,
    /// The capability.
    pub asked_capability: u64,
}

/// Value of the table of budgets; the key is the container's cgroup id (`u64`). What a container may say of everyday
/// life is limited, so that no pod can spend another's share of the bulk ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// When the current second began.
    pub since_ns: u64,
    /// Records sent in it.
    pub used: u64,
    /// Executed programs not told of, ever.
    pub withheld_execs: u64,
    /// Ended processes not told of, ever.
    pub withheld_exits: u64,
}

/// An executable's identity.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Inode number; 0: none (kernel thread) or unknown.
    pub ino: u64,
    /// Device.
    pub dev: u32,
    /// Links; 0 for a memfd or a deleted file.
    pub nlink: u32,
}

/// Inode numbers of a task's other namespaces; 0: unknown or gone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Mount namespace.
    pub mnt: u32,
    /// PID namespace of its children.
    pub pid: u32,
    /// Network namespace.
    pub net: u32,
    /// IPC namespace.
    pub ipc: u32,
    /// UTS namespace.
    pub uts: u32,
    /// Cgroup namespace.
    pub cgroup: u32,
}

/// A task as the kernel held it when the record was taken. Credentials are the objective ones (`real_cred`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Task {
    /// Process id.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
    /// Start of the process (`group_leader->start_boottime`): with `tgid` its identity.
    pub start_ns: u64,
    /// Process id in its own pid namespace; 0: unknown.
    pub ns_tgid: u32,
    /// 1 if `cred` and `real_cred` differed.
    pub overridden: u32,
    /// Ids.
    pub ids: Ids,
    /// Capability sets.
    pub caps: CapSets,
    /// The credentials' user namespace.
    pub userns: UserNs,
    /// Its ancestor one level below the host's: the pod's. All zero while there is none.
    pub pod_userns: UserNs,
    /// Other namespaces.
    pub ns: Namespaces,
    /// Executable.
    pub image: Image,
    /// Current cgroup (version 2).
    pub cgroup: u64,
    /// Lineage after this record's own transition.
    pub lineage: Lineage,
    /// Command name.
    pub comm: [u8; COMM_LEN],
}

/// A process up the tree (`real_parent`), nearest first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Ancestor {
    /// Process id.
    pub tgid: u32,
    /// Effective user id of the objective credentials.
    pub euid: u32,
    /// Start of the process.
    pub start_ns: u64,
    /// Command name.
    pub comm: [u8; COMM_LEN],
}

/// What the operation was, where the record tells of one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Detail {
    /// [`crate::kind::Operation`].
    pub operation: u32,
    /// Capability number for a check, else 0.
    pub code: u32,
    /// [`crate::kind::Relation`].
    pub relation: u32,
    /// Return value: 0 or a negative errno.
    pub ret: i32,
    /// Inode number of the user namespace asked over.
    pub target_inum: u32,
    /// Its level.
    pub target_level: u32,
    /// System call in flight; -1: none.
    pub syscall: i32,
    /// Bits of [`crate::kind::namespace`] for [`crate::kind::reason::FOREIGN_NAMESPACE`], and of [`crate::kind::place`]
    /// for [`crate::kind::reason::OUTSIDE_MOUNT`].
    pub foreign: u32,
    /// Flags of the call: clone flags, setns `nstype`, mount `attr_set`.
    pub flags: u64,
    /// Its file descriptor argument.
    pub fd: u64,
}

/// [`crate::kind::EventKind`] `Entry`, `Exec`, `Inside`, `Suspect`, `Capability`, `NamespaceCall`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TaskRecord {
    /// Kind, hook, reasons.
    pub header: Header,
    /// The task.
    pub task: Task,
    /// The operation.
    pub detail: Detail,
    /// Ancestors used.
    pub nr_ancestors: u32,
    /// Bytes used of `path`. `PATH_LEN` means that it was cut.
    pub path_len: u32,
    /// Bytes used of `args`.
    pub args_len: u32,
    /// Bytes the arguments had.
    pub args_total: u32,
    /// Ancestors.
    pub ancestors: [Ancestor; MAX_ANCESTORS],
    /// Path given to execve, or the last component of the executable's path.
    pub path: [u8; PATH_LEN],
    /// Arguments, NUL-separated.
    pub args: [u8; ARGS_LEN],
}

/// [`crate::kind::EventKind`] `Exit` and `Left`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ExitRecord {
    /// Kind and hook.
    pub header: Header,
    /// Process id.
    pub tgid: u32,
    /// Keeps the struct free of padding.
    pub reserved: u32,
    /// Start of the process.
    pub start_ns: u64,
    /// Container's cgroup.
    pub container: u64,
}

/// `CgroupMkdir` and `CgroupRmdir`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CgroupRecord {
    /// Kind and hook.
    pub header: Header,
    /// Cgroup id.
    pub id: u64,
    /// [`crate::cgroup::role`].
    pub role: u32,
    /// Bytes used of `path`. `CGROUP_PATH_LEN` means that it was cut.
    pub path_len: u32,
    /// Path from the hierarchy's root.
    pub path: [u8; CGROUP_PATH_LEN],
}

/// Value of the watched-cgroup table; the key is the cgroup id (`u64`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchedCgroup {
    /// [`crate::cgroup::role`].
    pub role: u32,
    /// Bits of [`crate::kind::told`]; the kernel's own.
    pub told: u32,
    /// Id of the container's cgroup this one is or lies below; for a pod's own directory, itself.
    pub container: u64,
}

/// Value of the table of pods' user namespaces; the key is the namespace's address (`u64`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchedUserNs {
    /// Id of the cgroup of a container whose programs run in it.
    pub container: u64,
    /// Inode number: the address alone could be that of a new namespace in the old one's memory.
    pub inum: u32,
    /// Keeps the struct free of padding.
    pub reserved: u32,
}

/// Key of the aggregation table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct AggregateKey {
    /// Container's cgroup.
    pub container: u64,
    /// [`crate::kind::Operation`].
    pub operation: u8,
    /// Capability number, else 0.
    pub code: u8,
    /// [`crate::kind::Relation`].
    pub relation: u8,
    /// One of [`crate::kind::verdict`].
    pub verdict: u8,
    /// One of [`crate::kind::state`].
    pub state: u8,
    /// 1 from the first program of the container on. What a runtime tries before is counted apart, so that it does not
    /// take the place of the workload's first.
    pub workload: u8,
    /// 1 for what everyday software asks for and does without (`ps`, systemd): counted apart for the same reason.
    pub everyday: u8,
    /// Keeps the struct free of padding.
    pub reserved: u8,
}

/// Value of the aggregation table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AggregateValue {
    /// How often.
    pub count: u64,
    /// First time.
    pub first_ns: u64,
    /// Last time.
    pub last_ns: u64,
    /// Last process.
    pub last_tgid: u32,
    /// Its system call in flight; -1: none.
    pub last_syscall: i32,
}
