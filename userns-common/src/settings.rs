//! Read-only globals: written by the loader before the programs are verified, read by the programs.
//!
//! Field offsets come from the running kernel's BTF. Being constants to the verifier, they let a program follow
//! typed pointers directly; a wrong one is refused at load instead of read.

/// Name of the global in the object.
pub const SETTINGS: &str = "SETTINGS";

macro_rules! offsets {
    ($($(#[$meta:meta])* $field:ident: $ty:literal . $member:literal),+ $(,)?) => {
        /// Byte offsets of kernel struct members.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Offsets {
            $($(#[$meta])* pub $field: u32,)+
        }

        impl Offsets {
            /// Where each offset comes from, in field order: kernel struct and member. A member with `|` has had
            /// several names; the first one the kernel has counts. A dot goes into an embedded struct.
            pub const SOURCES: &'static [(&'static str, &'static str)] = &[$(($ty, $member),)+];

            /// Fills the fields in the order of [`Self::SOURCES`] from `resolve`.
            ///
            /// # Errors
            ///
            /// The first error of `resolve`.
            pub fn resolve<E>(mut resolve: impl FnMut(&'static str, &'static str) -> Result<u32, E>) -> Result<Self, E> {
                Ok(Self { $($field: resolve($ty, $member)?,)+ })
            }
        }
    };
}

offsets! {
    /// Objective credentials.
    task_real_cred: "task_struct"."real_cred",
    /// Subjective credentials.
    task_cred: "task_struct"."cred",
    /// Namespaces.
    task_nsproxy: "task_struct"."nsproxy",
    /// Control group set.
    task_cgroups: "task_struct"."cgroups",
    /// Parent.
    task_real_parent: "task_struct"."real_parent",
    /// Leader.
    task_group_leader: "task_struct"."group_leader",
    /// Struct pid.
    task_thread_pid: "task_struct"."thread_pid",
    /// Memory descriptor.
    task_mm: "task_struct"."mm",
    /// Signal struct.
    task_signal: "task_struct"."signal",
    /// Process id.
    task_tgid: "task_struct"."tgid",
    /// Thread id.
    task_pid: "task_struct"."pid",
    /// Command name.
    task_comm: "task_struct"."comm",
    /// Start time.
    task_start_boottime: "task_struct"."start_boottime",
    /// Task-local storage of all programs.
    task_storage: "task_struct"."bpf_storage",
    /// Live threads.
    signal_live: "signal_struct"."live.counter",
    /// First of the eight ids.
    cred_uid: "cred"."uid",
    /// First of the five capability sets.
    cred_cap_inheritable: "cred"."cap_inheritable",
    /// User namespace.
    cred_user_ns: "cred"."user_ns",
    /// Map of user ids.
    userns_uid_map: "user_namespace"."uid_map",
    /// Map of group ids.
    userns_gid_map: "user_namespace"."gid_map",
    /// Parent namespace.
    userns_parent: "user_namespace"."parent",
    /// Depth.
    userns_level: "user_namespace"."level",
    /// Creator.
    userns_owner: "user_namespace"."owner",
    /// Inode number.
    userns_inum: "user_namespace"."ns.inum",
    /// Extent count.
    idmap_nr_extents: "uid_gid_map"."nr_extents",
    /// Inline extents.
    idmap_extent: "uid_gid_map"."extent",
    /// UTS namespace.
    nsproxy_uts: "nsproxy"."uts_ns",
    /// IPC namespace.
    nsproxy_ipc: "nsproxy"."ipc_ns",
    /// Mount namespace.
    nsproxy_mnt: "nsproxy"."mnt_ns",
    /// PID namespace of children.
    nsproxy_pid: "nsproxy"."pid_ns_for_children",
    /// Network namespace.
    nsproxy_net: "nsproxy"."net_ns",
    /// Cgroup namespace.
    nsproxy_cgroup: "nsproxy"."cgroup_ns",
    /// Owner of a UTS namespace.
    uts_user_ns: "uts_namespace"."user_ns",
    /// Owner of an IPC namespace.
    ipc_user_ns: "ipc_namespace"."user_ns",
    /// Owner of a mount namespace.
    mnt_user_ns: "mnt_namespace"."user_ns",
    /// Owner of a PID namespace.
    pidns_user_ns: "pid_namespace"."user_ns",
    /// Owner of a network namespace.
    net_user_ns: "net"."user_ns",
    /// Inode number of a UTS namespace.
    uts_inum: "uts_namespace"."ns.inum",
    /// Inode number of an IPC namespace.
    ipc_inum: "ipc_namespace"."ns.inum",
    /// Inode number of a mount namespace.
    mnt_inum: "mnt_namespace"."ns.inum",
    /// Inode number of a PID namespace.
    pidns_inum: "pid_namespace"."ns.inum",
    /// Inode number of a network namespace.
    net_inum: "net"."ns.inum",
    /// Inode number of a cgroup namespace.
    cgroupns_inum: "cgroup_namespace"."ns.inum",
    /// Depth of a struct pid.
    pid_level: "pid"."level",
    /// Numbers of a struct pid, one `struct upid` a level.
    pid_numbers: "pid"."numbers",
    /// Cgroup of the unified hierarchy.
    css_set_dfl_cgrp: "css_set"."dfl_cgrp",
    /// Directory of a cgroup.
    cgroup_kn: "cgroup"."kn",
    /// Hierarchy of a cgroup.
    cgroup_root: "cgroup"."root",
    /// Number of the hierarchy; 0 is the unified one.
    cgroup_root_id: "cgroup_root"."hierarchy_id",
    /// Cgroup id.
    kernfs_id: "kernfs_node"."id",
    /// Name.
    kernfs_name: "kernfs_node"."name",
    /// Parent directory.
    kernfs_parent: "kernfs_node"."__parent|parent",
    /// Executable.
    mm_exe_file: "mm_struct"."exe_file",
    /// Arguments' begin.
    mm_arg_start: "mm_struct"."arg_start",
    /// Arguments' end.
    mm_arg_end: "mm_struct"."arg_end",
    /// Inode of an open file.
    file_inode: "file"."f_inode",
    /// Its directory entry.
    file_dentry: "file"."f_path.dentry",
    /// Name of a directory entry.
    dentry_name: "dentry"."d_name.name|__d_name.name",
    /// Inode number.
    inode_ino: "inode"."i_ino",
    /// Links.
    inode_nlink: "inode"."i_nlink|__i_nlink",
    /// Super block.
    inode_sb: "inode"."i_sb",
    /// Device.
    sb_dev: "super_block"."s_dev",
    /// User namespace that it was mounted in.
    sb_user_ns: "super_block"."s_user_ns",
    /// Open files.
    task_files: "task_struct"."files",
    /// Table of open files.
    files_fdt: "files_struct"."fdt",
    /// Open files by their numbers.
    fdtable_fd: "fdtable"."fd",
    /// Path given to execve.
    bprm_filename: "linux_binprm"."filename",
    /// Path of what is executed in its place.
    bprm_interp: "linux_binprm"."interp",
    /// Root and working directory.
    task_fs: "task_struct"."fs",
    /// Mount of the working directory.
    fs_pwd_mnt: "fs_struct"."pwd.mnt",
    /// Mount of the root directory.
    fs_root_mnt: "fs_struct"."root.mnt",
    /// Mount of an open file.
    file_mnt: "file"."f_path.mnt",
    /// What the kernel at large knows of a mount.
    mount_mnt: "mount"."mnt",
    /// Mount namespace that it is attached in.
    mount_mnt_ns: "mount"."mnt_ns",
}

/// Where a system call's number and arguments stand in `struct pt_regs`, by architecture.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// Number of the system call.
    pub number: u32,
    /// First five arguments.
    pub args: [u32; 5],
}

/// A set of system-call numbers below 512: a bit each.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyscallSet {
    /// Bit `n % 64` of word `n / 64` stands for number `n`.
    pub words: [u64; SyscallSet::WORDS],
}

impl SyscallSet {
    /// Words of the set.
    pub const WORDS: usize = 8;

    /// The set of these numbers; those of 512 and above are left out.
    #[must_use]
    pub fn new(numbers: &[u32]) -> Self {
        let mut set = Self::default();
        for number in numbers {
            if let Some(word) = set.words.get_mut((number / 64) as usize) {
                *word |= 1 << (number % 64);
            }
        }
        set
    }
}

/// Everything the programs read.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Struct offsets.
    pub offsets: Offsets,
    /// System-call registers.
    pub registers: Registers,
    /// Level of the user namespace that counts as the host's: 0, or that of a kubelet in a user namespace.
    pub host_level: u32,
    /// Inode number of that namespace.
    pub host_userns_inum: u32,
    /// Inode number of the host's mount namespace.
    pub host_mnt_inum: u32,
    /// Number of the system call setns.
    pub setns: u32,
    /// How long a task may stay ENTERING.
    pub grace_ns: u64,
    /// Bulk records that a container may send in a second.
    pub container_budget: u64,
    /// Capabilities whose denial over the host is told, see [`crate::caps::ATTEMPTS`].
    pub attempt_caps: u64,
    /// System calls during which a `CAP_SYS_ADMIN` check is memory accounting (`cap_vm_enough_memory`,
    /// security/commoncap.c), as it is outside of any: they map, fork, execute, or grow a file in memory.
    pub accounting: SyscallSet,
    /// System calls during which a `CAP_SYS_PTRACE` check is a process listing (`ps`, `lsof`): readlink, stat, and read,
    /// by which `/proc/<pid>/stat` asks whether it may tell addresses.
    pub listing: SyscallSet,
    /// System calls during which a `CAP_SYS_ADMIN` check is everyday software's, which does without: those that make
    /// filters for system calls, sockets and cgroups, whose code needs more barriers then, and those on extended
    /// attributes, of which the trusted ones are not shown then.
    pub everyday: SyscallSet,
    /// System calls during which a `CAP_SYSLOG` check decides whether a file will show addresses (`/proc/modules`,
    /// kernel/ksyms_common.c): those that open files.
    pub opening: SyscallSet,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_hold_what_they_were_given() {
        let set = SyscallSet::new(&[9, 435, 511, 512]);
        assert_eq!((set.words[0], set.words[6], set.words[7]), (1 << 9, 1 << (435 - 384), 1 << 63));
    }

    #[test]
    fn offsets_are_filled_in_order() {
        let mut next = 0;
        let offsets = Offsets::resolve(|_, _| {
            next += 1;
            Ok::<u32, ()>(next)
        });
        assert_eq!(offsets.map(|offsets| (offsets.task_real_cred, offsets.task_cred)), Ok((1, 2)));
        assert_eq!(next as usize, Offsets::SOURCES.len());
        assert_eq!(next as usize * 4, size_of::<Offsets>());
    }
}
