//! The only file that follows kernel pointers.
//!
//! Two ways are used. `follow` loads through a pointer whose type the verifier tracks (BTF): no helper call, for
//! the hot path. `read` copies with `bpf_probe_read_kernel` and works on any address, for snapshots.

use core::ffi::c_void;

use aya_ebpf::helpers::{
    bpf_probe_read_kernel, generated::bpf_get_current_task_btf,
    generated::bpf_probe_read_kernel as bpf_probe_read_kernel_raw, generated::bpf_probe_read_kernel_str,
    generated::bpf_probe_read_user, generated::bpf_task_pt_regs, generated::bpf_task_storage_delete,
    generated::bpf_task_storage_get,
};
use userns_common::kind::Counter;
use userns_common::limits::{ARGS_LEN, MAX_ANCESTORS, MAX_USERNS_DEPTH};
use userns_common::record::{
    Ancestor, Extent, IdMap, Ids, Image, Lineage, Namespaces, Task as TaskData, UserNs as UserNsData,
};

use crate::maps::{LINEAGES, count, setting};

const GET_OR_CREATE: u64 = aya_ebpf::bindings::BPF_LOCAL_STORAGE_GET_F_CREATE as u64;

/// Loads a field through a pointer that the verifier knows the type of.
///
/// # Safety
///
/// `base` must be a BTF-typed pointer and `offset` that of a `T` in it, or the verifier refuses the program.
#[inline(always)]
unsafe fn follow<T: Copy>(base: *const c_void, offset: u32) -> T {
    // SAFETY: upheld by the caller; a fault reads as zero.
    unsafe { core::ptr::read_volatile(base.byte_add(offset as usize).cast::<T>()) }
}

/// Copies a field from any kernel address; zero and a count if that fails.
#[inline(always)]
fn read<T: Copy + Default>(base: *const c_void, offset: u32) -> T {
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_kernel(base.wrapping_byte_add(offset as usize).cast::<T>()) } {
        Ok(value) => value,
        Err(_) => {
            count(Counter::ReadFailed);
            T::default()
        }
    }
}

/// Like [`read`], straight into ring memory: large values have no room on the stack.
#[inline(always)]
fn read_into<T>(to: &mut T, base: *const c_void, offset: u32) {
    // SAFETY: the helper checks the source and writes `size_of::<T>()` bytes; callers pass plain integers' structs.
    let failed = unsafe {
        bpf_probe_read_kernel_raw(
            (&raw mut *to).cast(),
            size_of::<T>() as u32,
            base.wrapping_byte_add(offset as usize),
        )
    };
    if failed != 0 {
        count(Counter::ReadFailed);
    }
}

#[inline(always)]
fn read_ptr(base: *const c_void, offset: u32) -> *const c_void {
    read::<u64>(base, offset) as *const c_void
}

/// A `struct user_namespace`.
#[derive(Clone, Copy)]
pub(crate) struct UserNs(*const c_void);

impl UserNs {
    /// Takes an argument of a typed tracepoint.
    #[inline(always)]
    pub(crate) fn from_arg(pointer: *const c_void) -> Self {
        Self(pointer)
    }

    /// Its address, to compare.
    #[inline(always)]
    pub(crate) fn address(self) -> u64 {
        self.0 as u64
    }

    /// Depth; 0 is the initial one.
    #[inline(always)]
    pub(crate) fn level(self) -> u32 {
        // SAFETY: typed pointer, offset from BTF.
        unsafe { follow::<u32>(self.0, setting!(offsets.userns_level)) }
    }

    /// Inode number.
    #[inline(always)]
    pub(crate) fn inum(self) -> u32 {
        // SAFETY: typed pointer, offset from BTF.
        unsafe { follow::<u32>(self.0, setting!(offsets.userns_inum)) }
    }

    #[inline(always)]
    fn parent(self) -> Self {
        // SAFETY: typed pointer, offset from BTF.
        Self(unsafe { follow::<*const c_void>(self.0, setting!(offsets.userns_parent)) })
    }

    /// The ancestor at `level`, itself if it is not deeper.
    #[inline(always)]
    pub(crate) fn ancestor_at(self, level: u32) -> Self {
        let mut ns = self;
        for _ in 0..MAX_USERNS_DEPTH {
            // the initial namespace's null parent is never reached: its level is 0, and null would read as 0 too
            if ns.level() <= level {
                break;
            }
            ns = ns.parent();
        }
        ns
    }

    /// Its map of user ids.
    #[inline(always)]
    pub(crate) fn uid_map(self) -> Map {
        Map(self.0.wrapping_byte_add(setting!(offsets.userns_uid_map) as usize))
    }

    /// Its map of group ids.
    #[inline(always)]
    pub(crate) fn gid_map(self) -> Map {
        Map(self.0.wrapping_byte_add(setting!(offsets.userns_gid_map) as usize))
    }

    #[inline(always)]
    fn snapshot(self, to: &mut UserNsData) {
        to.inum = read(self.0, setting!(offsets.userns_inum));
        to.level = read(self.0, setting!(offsets.userns_level));
        to.owner = read(self.0, setting!(offsets.userns_owner));
        let parent = read_ptr(self.0, setting!(offsets.userns_parent));
        to.parent_inum = if parent.is_null() { 0 } else { read(parent, setting!(offsets.userns_inum)) };
        self.uid_map().snapshot(&mut to.uid_map);
        self.gid_map().snapshot(&mut to.gid_map);
    }
}

/// A `struct uid_gid_map`.
#[derive(Clone, Copy)]
pub(crate) struct Map(*const c_void);

impl Map {
    /// How many extents it has.
    #[inline(always)]
    pub(crate) fn len(self) -> u32 {
        read(self.0, setting!(offsets.idmap_nr_extents))
    }

    /// Extent `index` of those stored inline.
    #[inline(always)]
    pub(crate) fn extent(self, index: u32) -> Extent {
        read(self.0, setting!(offsets.idmap_extent) + index * size_of::<Extent>() as u32)
    }

    #[inline(always)]
    fn snapshot(self, to: &mut IdMap) {
        to.nr_extents = self.len();
        read_into(&mut to.extents, self.0, setting!(offsets.idmap_extent));
    }
}

/// A `struct task_struct`.
#[derive(Clone, Copy)]
pub(crate) struct Task(*const c_void);

impl Task {
    /// The task that runs the program.
    #[inline(always)]
    pub(crate) fn current() -> Self {
        // SAFETY: no arguments.
        Self(unsafe { bpf_get_current_task_btf() }.cast())
    }

    /// Takes an argument of a typed tracepoint or iterator.
    #[inline(always)]
    pub(crate) fn from_arg(pointer: *const c_void) -> Self {
        Self(pointer)
    }

    #[inline(always)]
    fn field<T: Copy + Default>(self, offset: u32) -> T {
        read(self.0, offset)
    }

    /// Address of the objective credentials.
    #[inline(always)]
    pub(crate) fn real_cred(self) -> *const c_void {
        // SAFETY: typed pointer, offset from BTF.
        unsafe { follow(self.0, setting!(offsets.task_real_cred)) }
    }

    /// User namespace of the objective credentials.
    #[inline(always)]
    pub(crate) fn user_ns(self) -> UserNs {
        // SAFETY: typed pointers, offsets from BTF.
        UserNs(unsafe { follow(self.real_cred(), setting!(offsets.cred_user_ns)) })
    }

    /// Ids of the objective credentials.
    #[inline(always)]
    pub(crate) fn ids(self) -> Ids {
        read(self.real_cred(), setting!(offsets.cred_uid))
    }

    /// Id of its cgroup in the unified hierarchy.
    #[inline(always)]
    pub(crate) fn cgroup(self) -> u64 {
        // SAFETY: typed pointers, offsets from BTF.
        unsafe {
            let set: *const c_void = follow(self.0, setting!(offsets.task_cgroups));
            Cgroup(follow(set, setting!(offsets.css_set_dfl_cgrp))).id()
        }
    }

    /// Its parent.
    #[inline(always)]
    pub(crate) fn parent(self) -> Self {
        // SAFETY: typed pointer, offset from BTF.
        Self(unsafe { follow(self.0, setting!(offsets.task_real_parent)) })
    }

    /// Whether it has a user address space: kernel threads and zombies have none.
    #[inline(always)]
    pub(crate) fn has_memory(self) -> bool {
        // SAFETY: typed pointer, offset from BTF.
        !unsafe { follow::<*const c_void>(self.0, setting!(offsets.task_mm)) }.is_null()
    }

    /// Whether it is the last thread of its process, at exit.
    #[inline(always)]
    pub(crate) fn is_last_thread(self) -> bool {
        let signal = read_ptr(self.0, setting!(offsets.task_signal));
        read::<u32>(signal, setting!(offsets.signal_live)) == 0
    }

    /// Whether it is its process's first thread.
    #[inline(always)]
    pub(crate) fn is_leader(self) -> bool {
        self.field::<u32>(setting!(offsets.task_pid)) == self.field::<u32>(setting!(offsets.task_tgid))
    }

    /// Process id and start time.
    #[inline(always)]
    pub(crate) fn process(self) -> (u32, u64) {
        let leader = read_ptr(self.0, setting!(offsets.task_group_leader));
        (self.field(setting!(offsets.task_tgid)), read(leader, setting!(offsets.task_start_boottime)))
    }

    /// Address of its mount namespace; 0 if it has none any more.
    #[inline(always)]
    pub(crate) fn mnt_ns(self) -> u64 {
        let proxy = read_ptr(self.0, setting!(offsets.task_nsproxy));
        if proxy.is_null() { 0 } else { read(proxy, setting!(offsets.nsproxy_mnt)) }
    }

    /// Inode number of its mount namespace; 0 if it has none any more.
    #[inline(always)]
    pub(crate) fn mnt_inum(self) -> u32 {
        let mnt = self.mnt_ns() as *const c_void;
        if mnt.is_null() { 0 } else { read(mnt, setting!(offsets.mnt_inum)) }
    }

    /// Its lineage, if it is in a pod.
    #[inline(always)]
    pub(crate) fn lineage(self) -> Option<&'static mut Lineage> {
        // SAFETY: the helper returns null or storage that stays until the program ends.
        unsafe {
            bpf_task_storage_get(LINEAGES.as_ptr(), self.0.cast_mut().cast(), core::ptr::null_mut(), 0)
                .cast::<Lineage>()
                .as_mut()
        }
    }

    /// Gives it a lineage.
    #[inline(always)]
    pub(crate) fn set_lineage(self, value: &mut Lineage) -> Option<&'static mut Lineage> {
        // SAFETY: as above; the initial value is copied.
        let stored = unsafe {
            bpf_task_storage_get(
                LINEAGES.as_ptr(),
                self.0.cast_mut().cast(),
                (&raw mut *value).cast(),
                GET_OR_CREATE,
            )
            .cast::<Lineage>()
            .as_mut()
        };
        if stored.is_none() {
            count(Counter::LineageFailed);
        }
        stored
    }

    /// Takes its lineage away.
    #[inline(always)]
    pub(crate) fn forget_lineage(self) {
        // SAFETY: deleting what is not there is an error code that says nothing new.
        let _ = unsafe { bpf_task_storage_delete(LINEAGES.as_ptr(), self.0.cast_mut().cast()) };
    }

    /// Copies everything about it except the lineage.
    #[inline(always)]
    pub(crate) fn snapshot(self, to: &mut TaskData) {
        let leader = read_ptr(self.0, setting!(offsets.task_group_leader));
        to.tgid = self.field(setting!(offsets.task_tgid));
        to.tid = self.field(setting!(offsets.task_pid));
        to.start_ns = read(leader, setting!(offsets.task_start_boottime));
        to.ns_tgid = ns_pid(leader);
        read_into(&mut to.comm, self.0, setting!(offsets.task_comm));
        let real = self.real_cred();
        to.overridden = u32::from(read_ptr(self.0, setting!(offsets.task_cred)) != real);
        read_into(&mut to.ids, real, setting!(offsets.cred_uid));
        read_into(&mut to.caps, real, setting!(offsets.cred_cap_inheritable));
        let ns = self.user_ns();
        ns.snapshot(&mut to.userns);
        let pod_level = setting!(host_level) + 1;
        if ns.level() < pod_level {
            to.pod_userns = UserNsData::default();
        } else {
            ns.ancestor_at(pod_level).snapshot(&mut to.pod_userns);
        }
        to.cgroup = self.cgroup();
        self.namespaces(&mut to.ns);
        self.image(&mut to.image);
    }

    #[inline(always)]
    fn namespaces(self, to: &mut Namespaces) {
        let proxy = read_ptr(self.0, setting!(offsets.task_nsproxy));
        if proxy.is_null() {
            *to = Namespaces::default();
            return;
        }
        to.mnt = read(read_ptr(proxy, setting!(offsets.nsproxy_mnt)), setting!(offsets.mnt_inum));
        to.pid = read(read_ptr(proxy, setting!(offsets.nsproxy_pid)), setting!(offsets.pidns_inum));
        to.net = read(read_ptr(proxy, setting!(offsets.nsproxy_net)), setting!(offsets.net_inum));
        to.ipc = read(read_ptr(proxy, setting!(offsets.nsproxy_ipc)), setting!(offsets.ipc_inum));
        to.uts = read(read_ptr(proxy, setting!(offsets.nsproxy_uts)), setting!(offsets.uts_inum));
        to.cgroup = read(read_ptr(proxy, setting!(offsets.nsproxy_cgroup)), setting!(offsets.cgroupns_inum));
    }

    #[inline(always)]
    fn exe_file(self) -> *const c_void {
        let mm = read_ptr(self.0, setting!(offsets.task_mm));
        if mm.is_null() { mm } else { read_ptr(mm, setting!(offsets.mm_exe_file)) }
    }

    #[inline(always)]
    fn image(self, to: &mut Image) {
        let file = self.exe_file();
        if file.is_null() {
            *to = Image::default();
            return;
        }
        let inode = read_ptr(file, setting!(offsets.file_inode));
        to.ino = read(inode, setting!(offsets.inode_ino));
        to.nlink = read(inode, setting!(offsets.inode_nlink));
        to.dev = read(read_ptr(inode, setting!(offsets.inode_sb)), setting!(offsets.sb_dev));
    }

    /// Copies the executable's file name; returns the bytes used.
    #[inline(always)]
    pub(crate) fn exe_name(self, to: &mut [u8]) -> u32 {
        let file = self.exe_file();
        if file.is_null() {
            return 0;
        }
        let dentry = read_ptr(file, setting!(offsets.file_dentry));
        read_str(read_ptr(dentry, setting!(offsets.dentry_name)), to)
    }

    /// Copies the arguments of the current task; returns (bytes copied, bytes there are).
    #[inline(always)]
    pub(crate) fn arguments(self, to: &mut [u8; ARGS_LEN]) -> (u32, u32) {
        let mm = read_ptr(self.0, setting!(offsets.task_mm));
        if mm.is_null() {
            return (0, 0);
        }
        let start: u64 = read(mm, setting!(offsets.mm_arg_start));
        let total = read::<u64>(mm, setting!(offsets.mm_arg_end)).saturating_sub(start);
        let len = if total > ARGS_LEN as u64 { ARGS_LEN as u32 } else { total as u32 };
        if len == 0 {
            return (0, 0);
        }
        // SAFETY: `len` is at most the buffer's length; the helper checks the source.
        let failed = unsafe { bpf_probe_read_user(to.as_mut_ptr().cast(), len, start as *const c_void) };
        if failed != 0 {
            count(Counter::UserReadFailed);
            return (0, total as u32);
        }
        (len, total as u32)
    }

    /// Copies its ancestors, nearest first; returns how many.
    #[inline(always)]
    pub(crate) fn ancestors(self, to: &mut [Ancestor; MAX_ANCESTORS]) -> u32 {
        let mut task = self.0;
        let mut used = 0;
        for slot in to {
            let parent = read_ptr(task, setting!(offsets.task_real_parent));
            let tgid: u32 = if parent.is_null() { 0 } else { read(parent, setting!(offsets.task_tgid)) };
            if tgid == 0 {
                break;
            }
            slot.tgid = tgid;
            let leader = read_ptr(parent, setting!(offsets.task_group_leader));
            slot.start_ns = read(leader, setting!(offsets.task_start_boottime));
            read_into(&mut slot.comm, parent, setting!(offsets.task_comm));
            let cred = read_ptr(parent, setting!(offsets.task_real_cred));
            slot.euid = read(cred, setting!(offsets.cred_uid) + core::mem::offset_of!(Ids, euid) as u32);
            task = parent;
            used += 1;
        }
        used
    }

    /// Number and argument `index` (0..5) of the system call in flight; number -1 outside of one.
    #[inline(always)]
    pub(crate) fn syscall(self) -> i32 {
        // SAFETY: typed pointer in; the result is read with a checked copy.
        let regs = unsafe { bpf_task_pt_regs(self.0.cast_mut().cast()) } as *const c_void;
        read::<u64>(regs, setting!(registers.number)) as i32
    }

    /// Argument `index` of the system call in flight.
    #[inline(always)]
    pub(crate) fn syscall_arg(self, index: usize) -> u64 {
        // SAFETY: as above.
        let regs = unsafe { bpf_task_pt_regs(self.0.cast_mut().cast()) } as *const c_void;
        read(regs, setting!(registers.args[index]))
    }
}

/// The pid of a leader in its own pid namespace.
#[inline(always)]
fn ns_pid(leader: *const c_void) -> u32 {
    const SIZE_OF_UPID: u32 = 16;
    let pid = read_ptr(leader, setting!(offsets.task_thread_pid));
    if pid.is_null() {
        return 0;
    }
    let level: u32 = read(pid, setting!(offsets.pid_level));
    read(pid, setting!(offsets.pid_numbers) + (level & 31) * SIZE_OF_UPID)
}

/// Copies a kernel string; returns the bytes used without the NUL, the buffer's length if it was cut.
#[inline(always)]
pub(crate) fn read_str(from: *const c_void, to: &mut [u8]) -> u32 {
    // SAFETY: the helper checks the source and writes at most `to.len()` bytes.
    let used = unsafe { bpf_probe_read_kernel_str(to.as_mut_ptr().cast(), to.len() as u32, from) };
    if used <= 0 {
        count(Counter::ReadFailed);
        return 0;
    }
    if used as usize >= to.len() { to.len() as u32 } else { used as u32 - 1 }
}

/// Copies a value from user memory; `None` and a count if that fails.
#[inline(always)]
pub(crate) fn read_user<T: Copy>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address.
    let value = unsafe { aya_ebpf::helpers::bpf_probe_read_user(address as *const T) };
    if value.is_err() {
        count(Counter::UserReadFailed);
    }
    value.ok()
}

/// A `struct cgroup`.
#[derive(Clone, Copy)]
pub(crate) struct Cgroup(*const c_void);

impl Cgroup {
    /// Takes an argument of a typed tracepoint.
    #[inline(always)]
    pub(crate) fn from_arg(pointer: *const c_void) -> Self {
        Self(pointer)
    }

    /// Its id, unique in its hierarchy only.
    #[inline(always)]
    pub(crate) fn id(self) -> u64 {
        // SAFETY: typed pointers, offsets from BTF.
        unsafe {
            let kn: *const c_void = follow(self.0, setting!(offsets.cgroup_kn));
            follow(kn, setting!(offsets.kernfs_id))
        }
    }

    /// Whether it is of the unified hierarchy (version 2).
    #[inline(always)]
    pub(crate) fn is_unified(self) -> bool {
        let root = read_ptr(self.0, setting!(offsets.cgroup_root));
        read::<u32>(root, setting!(offsets.cgroup_root_id)) == 0
    }

    /// Id of its parent directory; 0 at the root.
    #[inline(always)]
    pub(crate) fn parent_id(self) -> u64 {
        let kn = read_ptr(self.0, setting!(offsets.cgroup_kn));
        let parent = read_ptr(kn, setting!(offsets.kernfs_parent));
        if parent.is_null() { 0 } else { read(parent, setting!(offsets.kernfs_id)) }
    }

    /// Copies its name; returns the bytes used.
    #[inline(always)]
    pub(crate) fn name(self, to: &mut [u8]) -> u32 {
        let kn = read_ptr(self.0, setting!(offsets.cgroup_kn));
        read_str(read_ptr(kn, setting!(offsets.kernfs_name)), to)
    }
}

/// The program that a `struct linux_binprm` is about to run: copies the path given to execve.
#[inline(always)]
pub(crate) fn exec_path(bprm: *const c_void, to: &mut [u8]) -> u32 {
    read_str(read_ptr(bprm, setting!(offsets.bprm_filename)), to)
}
