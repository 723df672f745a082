//! Sizes that both halves agree on, each with its reason.

/// Bytes of a task's command name, with the terminating NUL (`TASK_COMM_LEN`, include/linux/sched.h).
pub const COMM_LEN: usize = 16;
/// Bytes kept of an executable's path. Longer paths are cut and say so; container entrypoints rarely exceed 100.
pub const PATH_LEN: usize = 256;
/// Bytes kept of the argument vector, NUL-separated as in `/proc/PID/cmdline`.
pub const ARGS_LEN: usize = 256;
/// Bytes kept of a cgroup path. A kubelet path under the systemd driver is about 220 bytes; nested nodes add to it.
pub const CGROUP_PATH_LEN: usize = 512;
/// Bytes of a cgroup directory name that the in-kernel classification looks at: one that names both pod and container
/// has some 160.
pub const CGROUP_NAME_LEN: usize = 192;
/// Extents that `uid_gid_map` stores inline (`UID_GID_MAP_MAX_BASE_EXTENTS`, include/linux/user_namespace.h).
/// Maps with more are reported by their extent count alone.
pub const MAX_EXTENTS: usize = 5;
/// Levels of user namespaces the kernel permits below the initial one, plus one (kernel/user_namespace.c, `create_user_ns`).
pub const MAX_USERNS_DEPTH: u32 = 33;
/// Directories between a cgroup and the root that are looked through for a container's: kubelet's are 4 deep, a
/// systemd in a pod adds as many.
pub const MAX_CGROUP_DEPTH: u32 = 16;
/// Ancestors recorded with a task: enough to reach a container's shim from a shell in it.
pub const MAX_ANCESTORS: usize = 8;
/// Bytes of the ring that carries evidence for findings. A record is about 1.6 KiB, so 512 KiB hold some 300 of them
/// while the agent is not scheduled.
pub const EVIDENCE_RING_BYTES: u32 = 512 * 1024;
/// Bytes of the ring that carries bulk records (execs, exits, transitions).
pub const BULK_RING_BYTES: u32 = 2 * 1024 * 1024;
/// Watched cgroups: 500 pods with ten containers, their pod directories and nested groups, with room to spare.
pub const MAX_CGROUPS: u32 = 16_384;
/// User namespaces of pods: one for each.
pub const MAX_USERNS: u32 = 8_192;
/// Rows of the aggregation table: (container, operation, relation, verdict). See [`crate::record::AggregateKey`].
pub const MAX_AGGREGATES: u32 = 16_384;
/// Budgets: one for each container.
pub const MAX_BUDGETS: u32 = 8_192;
/// Capability checks of one kind that a task keeps to itself before it adds them to the aggregation table.
pub const MAX_PENDING_CHECKS: u32 = 1024;
/// How old such may become, in jiffies: a quarter of a second to two and a half, by the kernel's `CONFIG_HZ`. The sweep
/// and the end of the task add them in any case.
pub const PENDING_JIFFIES: u64 = 250;
