//! Stable numbers: kinds of records, hooks, reasons, counters.

macro_rules! stable_numbers {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $value:literal => $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum $name {
            $($(#[$vmeta])* $variant = $value,)+
        }

        impl $name {
            /// Every value, in numeric order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name used in metrics and JSON.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl TryFrom<u32> for $name {
            type Error = u32;

            /// # Errors
            ///
            /// Returns the number itself when it names nothing.
            fn try_from(number: u32) -> Result<Self, u32> {
                match number {
                    $($value => Ok(Self::$variant),)+
                    unknown => Err(unknown),
                }
            }
        }
    };
}

stable_numbers! {
    /// What a record in a ring is. 1–15 process life, 16–31 cgroups, 32–47 evidence.
    EventKind {
        /// A task came into a pod's cgroup, or its namespaces, from outside ([`crate::record::TaskRecord`]).
        Entry = 1 => "entry",
        /// A task in a pod executed a program.
        Exec = 2 => "exec",
        /// The last thread of a process in a pod ended ([`crate::record::ExitRecord`]).
        Exit = 3 => "exit",
        /// A task in a pod's cgroup was first seen in the pod's user namespace.
        Inside = 5 => "inside",
        /// A task on its way in was moved out again ([`crate::record::ExitRecord`]).
        Left = 6 => "left",
        /// A cgroup of a pod or container was made ([`crate::record::CgroupRecord`]).
        CgroupMkdir = 16 => "cgroup_mkdir",
        /// A cgroup of a pod or container was removed.
        CgroupRmdir = 17 => "cgroup_rmdir",
        /// A task's state contradicts its lineage; bits of [`reason`] say how.
        Suspect = 32 => "suspect",
        /// A capability check worth telling, the first of its kind for the container or lineage.
        Capability = 33 => "capability",
        /// A namespace or mount operation, the first of its kind for the container.
        NamespaceCall = 34 => "namespace_call",
    }
}

stable_numbers! {
    /// The kernel hook a record was taken at.
    Hook {
        /// `task_newtask`: fork, clone, clone3.
        NewTask = 1 => "task_newtask",
        /// `sched_process_exec`.
        Exec = 2 => "sched_process_exec",
        /// `sched_process_exit`.
        Exit = 3 => "sched_process_exit",
        /// `cgroup_attach_task`.
        CgroupAttach = 4 => "cgroup_attach_task",
        /// `cgroup_mkdir`.
        CgroupMkdir = 5 => "cgroup_mkdir",
        /// `cgroup_rmdir`.
        CgroupRmdir = 6 => "cgroup_rmdir",
        /// `cap_capable`.
        Capable = 7 => "cap_capable",
        /// Return of setns(2).
        Setns = 8 => "setns",
        /// Return of unshare(2).
        Unshare = 9 => "unshare",
        /// Return of mount_setattr(2).
        MountSetattr = 10 => "mount_setattr",
        /// Return of open_tree_attr(2).
        OpenTreeAttr = 11 => "open_tree_attr",
        /// The task iterator: adoption at start and the periodic sweep.
        TaskIter = 12 => "task_iter",
        /// `commit_creds`: credentials are replaced.
        CommitCreds = 13 => "commit_creds",
        /// `switch_task_namespaces`: namespaces are replaced.
        SwitchNamespaces = 14 => "switch_task_namespaces",
        /// Return of chdir(2).
        Chdir = 15 => "chdir",
        /// Return of fchdir(2).
        Fchdir = 16 => "fchdir",
    }
}

stable_numbers! {
    /// Counters kept in the kernel, one per-CPU slot each. Every loss and every failure has its own.
    Counter {
        /// Evidence lost because its ring was full.
        EvidenceLost = 0 => "evidence_ring_full",
        /// Bulk records lost because their ring was full.
        BulkLost = 1 => "bulk_ring_full",
        /// Task storage could not be allocated, most often because a task that was using it was preempted on this CPU
        /// (kernel/bpf/bpf_task_storage.c, `bpf_task_storage_trylock`). The lineage is made up for when the task
        /// executes or forks, or by the sweep that the agent begins when it sees this counter rise.
        LineageFailed = 2 => "lineage_alloc",
        /// The table of watched cgroups was full.
        CgroupsFull = 3 => "cgroup_table_full",
        /// Operations not counted because the aggregation table was full.
        AggregatesFull = 4 => "aggregate_table_full",
        /// Reading a field of a task, credential or namespace failed.
        ReadFailed = 5 => "kernel_read",
        /// Reading arguments from user memory failed: the record carries none.
        UserReadFailed = 6 => "user_read",
        /// The table of budgets was full: the container's records were sent without one.
        BudgetsFull = 7 => "budget_table_full",
        /// The table of pods' user namespaces was full: entries into this one from outside are not told.
        UsernsFull = 8 => "userns_table_full",
        /// Evidence records submitted.
        EvidenceSent = 16 => "evidence_sent",
        /// Bulk records submitted.
        BulkSent = 17 => "bulk_sent",
        /// Capability checks by tasks in pods with credentials other than the task's own (overlayfs and the like): not
        /// the pod's doing.
        ChecksOverridden = 19 => "checks_overridden",
        /// Capability checks by tasks in pods for CAP_SYS_ADMIN by memory accounting (cap_vm_enough_memory).
        ChecksAccounting = 20 => "checks_accounting",
        /// All other capability checks by tasks in pods, as counted in the aggregation table.
        ChecksAggregated = 21 => "checks_aggregated",
        /// Tasks visited by the iterator.
        TasksSwept = 22 => "tasks_swept",
        /// Of these, given a lineage because no hook had seen them enter.
        TasksAdopted = 23 => "tasks_adopted",
        /// Evidence records that there were: sent and lost ones add up to these.
        EvidenceMade = 24 => "evidence_generated",
        /// Bulk records that there were: sent, withheld and lost ones add up to these.
        BulkMade = 25 => "bulk_generated",
        /// Bulk records withheld because their container had used up its budget.
        BulkSuppressed = 26 => "bulk_suppressed",
    }
}

/// Slots of the counter array: one more than the largest [`Counter`].
pub const COUNTERS: u32 = 27;

impl Counter {
    /// Whether the counter tells of something lost or failed, rather than of work done.
    #[must_use]
    pub const fn is_loss(self) -> bool {
        (self as u32) < 16
    }
}

/// Bits that say why a [`EventKind::Suspect`] or [`EventKind::Exec`] record is evidence.
pub mod reason {
    /// The credentials' user namespace is neither the pod's nor below it.
    pub const LEFT_USERNS: u32 = 1 << 0;
    /// An id of the credentials is not in the map of the pod's user namespace.
    pub const ID_OUTSIDE_MAP: u32 = 1 << 1;
    /// A program was executed in the container's mount namespace with the host's user namespace.
    pub const HOST_WORKLOAD: u32 = 1 << 2;
    /// A capability over the host's user namespace was granted on the task's own credentials.
    pub const HOST_CAPABILITY: u32 = 1 << 3;
    /// The first program executed by a lineage inside the pod's user namespace: the map is complete by then.
    pub const FIRST_WORKLOAD: u32 = 1 << 4;
    /// A task entered and is still in the host's user namespace after the grace period.
    pub const PAST_GRACE: u32 = 1 << 5;
    /// A namespace of the task is owned by a user namespace that is neither the pod's nor below it, though it was the
    /// pod's when the container's first program ran. [`super::namespace`] bits in the detail say which.
    pub const FOREIGN_NAMESPACE: u32 = 1 << 6;
    /// The task is in a cgroup outside of its container's.
    pub const LEFT_CGROUP: u32 = 1 << 7;
    /// The subjective credentials' user namespace (`task->cred`) is neither the pod's nor below it, at a point where
    /// nothing in the kernel has swapped them: at fork, at exit, and when a namespace call returns.
    pub const ACTS_OUTSIDE: u32 = 1 << 8;
    /// The task joined the mount and PID namespaces of a pod and kept the host's user namespace, though it comes from
    /// another pod. The detail's target is that pod's user namespace.
    pub const FOREIGN_ENTRY: u32 = 1 << 9;
    /// The task works in a mount that is attached in another mount namespace than its own, owned by a user namespace
    /// that is neither the pod's nor below it. [`super::place`] bits in the detail say by what.
    pub const OUTSIDE_MOUNT: u32 = 1 << 10;
}

/// Bits for kinds of namespaces, as [`crate::record::Lineage::foreign`] holds them. Time namespaces are always the
/// initial one's, and cgroup namespaces may be the host's.
pub mod namespace {
    /// Mount namespace.
    pub const MNT: u32 = 1 << 0;
    /// PID namespace of children.
    pub const PID: u32 = 1 << 1;
    /// Network namespace.
    pub const NET: u32 = 1 << 2;
    /// IPC namespace.
    pub const IPC: u32 = 1 << 3;
    /// UTS namespace.
    pub const UTS: u32 = 1 << 4;
}

/// Bits for what a task works in a mount by, beside those of [`namespace`] in the same word.
pub mod place {
    /// Working directory.
    pub const DIRECTORY: u32 = 1 << 5;
    /// Root directory.
    pub const ROOT: u32 = 1 << 6;
    /// Executable.
    pub const EXECUTABLE: u32 = 1 << 7;
}

/// States of a lineage, see ARCHITECTURE.md. A task without a lineage is OUT.
pub mod state {
    /// In a pod's cgroup, still with the host's user namespace, as runtimes are for milliseconds; or foreign
    /// ([`super::origin::FOREIGN`]).
    pub const ENTERING: u32 = 1;
    /// Seen in the pod's user namespace or below it. Never left again, whatever the cgroup.
    pub const INSIDE: u32 = 2;
}

/// How a lineage began.
pub mod origin {
    /// Moved by a write to `cgroup.procs`.
    pub const ATTACHED: u32 = 1;
    /// Born there by `CLONE_INTO_CGROUP`.
    pub const BORN: u32 = 2;
    /// Found there by the task iterator.
    pub const ADOPTED: u32 = 3;
    /// Came into the pod's namespaces from a cgroup that is no pod's. While it keeps the host's user namespace it is
    /// ENTERING, by the mount and PID namespaces that it joined.
    pub const FOREIGN: u32 = 4;
}

/// Flags of a lineage.
pub mod lineage {
    /// Executed a program in a mount namespace other than the one it was brought in from: no longer a runtime.
    pub const WORKLOAD: u32 = 1 << 0;
    /// The task is about to end: nothing is put off any more.
    pub const ENDING: u32 = 1 << 1;
    /// The record of its entry or of its first program was lost: the sweep makes up for it.
    pub const OWED: u32 = 1 << 2;
}

/// What has been told of a container whose tasks were found there rather than seen to enter: one record is enough.
pub mod told {
    /// A program in the pod's user namespace.
    pub const INSIDE: u32 = 1 << 0;
    /// A program in the host's.
    pub const HOST: u32 = 1 << 1;
}

stable_numbers! {
    /// Which user namespace a capability was asked over, as seen from the task.
    Relation {
        /// The host's, or an ancestor of it.
        Host = 0 => "host",
        /// The pod's own.
        Pod = 1 => "pod",
        /// One below a pod's.
        Nested = 2 => "nested",
        /// Another namespace at the pod's level.
        Other = 3 => "other",
    }
}

/// What became of an operation.
pub mod verdict {
    /// It was done.
    pub const GRANTED: u8 = 0;
    /// It was refused for lack of permission (`EPERM`, `EACCES`).
    pub const DENIED: u8 = 1;
    /// It failed for another reason, such as a bad descriptor.
    pub const FAILED: u8 = 2;

    const EPERM: i32 = -1;
    const EACCES: i32 = -13;

    /// Of a return value: 0 or more, or a negative errno.
    #[must_use]
    pub const fn of(ret: i32) -> u8 {
        match ret {
            EPERM | EACCES => DENIED,
            ..0 => FAILED,
            0.. => GRANTED,
        }
    }
}

stable_numbers! {
    /// The kind of operation a row of the aggregation table counts.
    Operation {
        /// A capability check; the code is the capability's number.
        Capability = 0 => "capability",
        /// setns(2).
        Setns = 1 => "setns",
        /// unshare(2) without `CLONE_NEWUSER`.
        Unshare = 2 => "unshare",
        /// mount_setattr(2) with `MOUNT_ATTR_IDMAP`.
        MountSetattr = 3 => "mount_setattr",
        /// open_tree_attr(2) with `MOUNT_ATTR_IDMAP`.
        OpenTreeAttr = 4 => "open_tree_attr",
        /// clone(2) or clone3(2) with `CLONE_NEWUSER`.
        CloneNewUser = 5 => "clone_newuser",
        /// unshare(2) with `CLONE_NEWUSER`, counted apart from others.
        UnshareNewUser = 6 => "unshare_newuser",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_the_round_trip() {
        for kind in EventKind::ALL {
            assert_eq!(EventKind::try_from(*kind as u32), Ok(*kind));
        }
        assert_eq!(EventKind::try_from(4), Err(4));
        assert_eq!(Hook::try_from(0), Err(0));
    }

    #[test]
    fn every_counter_has_a_slot() {
        assert!(Counter::ALL.iter().all(|counter| (*counter as u32) < COUNTERS));
        assert!(Counter::EvidenceLost.is_loss() && !Counter::BulkSuppressed.is_loss());
    }
}
