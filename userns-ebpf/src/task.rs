//! The only files that follow kernel pointers.
//!
//! Two ways are used. `follow` loads through a pointer whose type the verifier tracks (BTF): no helper call, for
//! the hot path. `read` copies with `bpf_probe_read_kernel` and works on any address: for snapshots, and for the
//! arguments of probes that know no types.

mod mount;
mod userns;

use core::ffi::c_void;

use aya_ebpf::helpers::{
    bpf_probe_read_kernel, generated::bpf_get_current_task_btf, generated::bpf_jiffies64,
    generated::bpf_probe_read_kernel as bpf_probe_read_kernel_raw, generated::bpf_probe_read_kernel_str,
    generated::bpf_probe_read_user, generated::bpf_task_pt_regs, generated::bpf_task_storage_delete,
    generated::bpf_task_storage_get,
};
use userns_common::kind::{Counter, namespace};
use userns_common::limits::{ARGS_LEN, MAX_ANCESTORS, MAX_CGROUP_DEPTH};
use userns_common::record::{
    Ancestor, Ids, Image, Lineage, Namespaces, Task as TaskData, Tracked, UserNs as UserNsData,
};

pub(crate) use self::mount::is_program;
pub(crate) use self::userns::{Map, UserNs};
use crate::maps::{LINEAGES, count, setting};

const GET_OR_CREATE: u64 = aya_ebpf::bindings::BPF_LOCAL_STORAGE_GET_F_CREATE as u64;

/// include/uapi/linux/sched.h
const CLONE_NEWTIME: u64 = 0x80;
/// Inode number of the machine's time namespace (include/linux/proc_ns.h, `PROC_TIME_INIT_INO`).
const TIME_NS: u64 = 0xefff_fffa;

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

/// Many reads, of which it is counted once if any failed: a branch for each would be much of a program.
struct Reader {
    failed: i64,
}

impl Reader {
    #[inline(always)]
    const fn new() -> Self {
        Self { failed: 0 }
    }

    /// Copies a field straight into ring memory, for which there is no room on the stack; zeros if that fails.
    #[inline(always)]
    fn copy<T>(&mut self, to: &mut T, base: *const c_void, offset: u32) {
        // SAFETY: the helper checks the source and writes `size_of::<T>()` bytes; callers pass plain integers' structs.
        self.failed |= unsafe {
            bpf_probe_read_kernel_raw(
                (&raw mut *to).cast(),
                size_of::<T>() as u32,
                base.wrapping_byte_add(offset as usize),
            )
        };
    }

    #[inline(always)]
    fn read<T: Copy + Default>(&mut self, base: *const c_void, offset: u32) -> T {
        let mut value = T::default();
        self.copy(&mut value, base, offset);
        value
    }

    #[inline(always)]
    fn ptr(&mut self, base: *const c_void, offset: u32) -> *const c_void {
        self.read::<u64>(base, offset) as *const c_void
    }

    #[inline(always)]
    fn done(self) {
        if self.failed != 0 {
            count(Counter::ReadFailed);
        }
    }
}

#[inline(always)]
fn read_ptr(base: *const c_void, offset: u32) -> *const c_void {
    read::<u64>(base, offset) as *const c_void
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
        UserNs::from_arg(unsafe { follow(self.real_cred(), setting!(offsets.cred_user_ns)) })
    }

    /// User namespace of the subjective credentials, if these are others than the objective ones.
    #[inline(always)]
    pub(crate) fn subjective_user_ns(self) -> Option<UserNs> {
        // SAFETY: typed pointers, offsets from BTF.
        unsafe {
            let cred: *const c_void = follow(self.0, setting!(offsets.task_cred));
            (cred != self.real_cred()).then(|| UserNs::from_arg(follow(cred, setting!(offsets.cred_user_ns))))
        }
    }

    /// Whether `cred` are its objective credentials, and `userns` the address of their user namespace.
    #[inline(always)]
    pub(crate) fn acts_as(self, cred: *const c_void, userns: u64) -> bool {
        let real = self.real_cred();
        // SAFETY: typed pointer, offset from BTF.
        cred == real && unsafe { follow::<u64>(real, setting!(offsets.cred_user_ns)) } == userns
    }

    /// Ids of the objective credentials.
    #[inline(always)]
    pub(crate) fn ids(self) -> Ids {
        read(self.real_cred(), setting!(offsets.cred_uid))
    }

    /// Its cgroup in the unified hierarchy.
    #[inline(always)]
    pub(crate) fn cgroup(self) -> Cgroup {
        // SAFETY: typed pointers, offsets from BTF.
        unsafe {
            let set: *const c_void = follow(self.0, setting!(offsets.task_cgroups));
            Cgroup(follow(set, setting!(offsets.css_set_dfl_cgrp)))
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

    /// Owners of its namespaces as bits of [`namespace`]: those for which `is_foreign` holds.
    #[inline(always)]
    pub(crate) fn namespaces_where(self, is_foreign: impl Fn(UserNs) -> bool) -> u32 {
        // SAFETY: typed pointer, offset from BTF.
        let proxy: *const c_void = unsafe { follow(self.0, setting!(offsets.task_nsproxy)) };
        if proxy.is_null() {
            return 0;
        }
        let bit = |at: u32, owner: u32, bit: u32| {
            // SAFETY: typed pointers, offsets from BTF.
            let owner = unsafe { follow(follow(proxy, at), owner) };
            if is_foreign(UserNs::from_arg(owner)) { bit } else { 0 }
        };
        bit(setting!(offsets.nsproxy_mnt), setting!(offsets.mnt_user_ns), namespace::MNT)
            | bit(setting!(offsets.nsproxy_pid), setting!(offsets.pidns_user_ns), namespace::PID)
            | bit(setting!(offsets.nsproxy_net), setting!(offsets.net_user_ns), namespace::NET)
            | bit(setting!(offsets.nsproxy_ipc), setting!(offsets.ipc_user_ns), namespace::IPC)
            | bit(setting!(offsets.nsproxy_uts), setting!(offsets.uts_user_ns), namespace::UTS)
    }

    /// Owner of its mount namespace, if its children's PID namespace is owned by the same.
    #[inline(always)]
    pub(crate) fn owner_of_view(self) -> Option<UserNs> {
        // SAFETY: typed pointers, offsets from BTF.
        unsafe {
            let proxy: *const c_void = follow(self.0, setting!(offsets.task_nsproxy));
            if proxy.is_null() {
                return None;
            }
            let mnt: *const c_void =
                follow(follow(proxy, setting!(offsets.nsproxy_mnt)), setting!(offsets.mnt_user_ns));
            let pid: *const c_void =
                follow(follow(proxy, setting!(offsets.nsproxy_pid)), setting!(offsets.pidns_user_ns));
            (mnt == pid).then(|| UserNs::from_arg(mnt))
        }
    }

    /// Its lineage, if it is in a pod.
    #[inline(always)]
    pub(crate) fn lineage(self) -> Option<&'static mut Lineage> {
        self.tracked().map(|tracked| &mut tracked.lineage)
    }

    /// All that is kept with it, if it is in a pod. Nearly no task has task-local storage: to see that it has none is
    /// cheaper than to ask the helper.
    #[inline(always)]
    pub(crate) fn tracked(self) -> Option<&'static mut Tracked> {
        // SAFETY: typed pointer, offset from BTF.
        if unsafe { follow::<*const c_void>(self.0, setting!(offsets.task_storage)) }.is_null() {
            return None;
        }
        // SAFETY: the helper returns null or storage that stays until the program ends.
        unsafe {
            bpf_task_storage_get(LINEAGES.as_ptr(), self.0.cast_mut().cast(), core::ptr::null_mut(), 0)
                .cast::<Tracked>()
                .as_mut()
        }
    }

    /// Gives it a lineage.
    #[inline(always)]
    pub(crate) fn set_lineage(self, lineage: Lineage) -> Option<&'static mut Lineage> {
        let mut value = Tracked {
            lineage,
            pending: 0,
            moved: 0,
            last_userns: 0,
            last_target: 0,
            last_syscall: 0,
            last_capability: 0,
            asked_cred: 0,
            asked_target: 0,
            asked_capability: 0,
        };
        // SAFETY: as above; the initial value is copied.
        let stored = unsafe {
            bpf_task_storage_get(
                LINEAGES.as_ptr(),
                self.0.cast_mut().cast(),
                (&raw mut value).cast(),
                GET_OR_CREATE,
            )
            .cast::<Tracked>()
            .as_mut()
        };
        if stored.is_none() {
            count(Counter::LineageFailed);
        }
        stored.map(|tracked| &mut tracked.lineage)
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
        let mut reader = Reader::new();
        let leader = reader.ptr(self.0, setting!(offsets.task_group_leader));
        reader.copy(&mut to.tgid, self.0, setting!(offsets.task_tgid));
        reader.copy(&mut to.tid, self.0, setting!(offsets.task_pid));
        reader.copy(&mut to.start_ns, leader, setting!(offsets.task_start_boottime));
        to.ns_tgid = ns_pid(&mut reader, leader);
        reader.copy(&mut to.comm, self.0, setting!(offsets.task_comm));
        let real = self.real_cred();
        to.overridden = u32::from(reader.ptr(self.0, setting!(offsets.task_cred)) != real);
        reader.copy(&mut to.ids, real, setting!(offsets.cred_uid));
        reader.copy(&mut to.caps, real, setting!(offsets.cred_cap_inheritable));
        let ns = self.user_ns();
        ns.snapshot(&mut reader, &mut to.userns);
        let pod_level = setting!(host_level) + 1;
        if ns.level() < pod_level {
            to.pod_userns = UserNsData::default();
        } else {
            ns.ancestor_at(pod_level).snapshot(&mut reader, &mut to.pod_userns);
        }
        to.cgroup = self.cgroup().id();
        self.namespaces(&mut reader, &mut to.ns);
        self.image(&mut reader, &mut to.image);
        reader.done();
    }

    #[inline(always)]
    fn namespaces(self, reader: &mut Reader, to: &mut Namespaces) {
        let proxy = reader.ptr(self.0, setting!(offsets.task_nsproxy));
        if proxy.is_null() {
            *to = Namespaces::default();
            return;
        }
        let mut inum = |to: &mut u32, at: u32, inum: u32| {
            let ns = reader.ptr(proxy, at);
            reader.copy(to, ns, inum);
        };
        inum(&mut to.mnt, setting!(offsets.nsproxy_mnt), setting!(offsets.mnt_inum));
        inum(&mut to.pid, setting!(offsets.nsproxy_pid), setting!(offsets.pidns_inum));
        inum(&mut to.net, setting!(offsets.nsproxy_net), setting!(offsets.net_inum));
        inum(&mut to.ipc, setting!(offsets.nsproxy_ipc), setting!(offsets.ipc_inum));
        inum(&mut to.uts, setting!(offsets.nsproxy_uts), setting!(offsets.uts_inum));
        inum(&mut to.cgroup, setting!(offsets.nsproxy_cgroup), setting!(offsets.cgroupns_inum));
    }

    #[inline(always)]
    fn exe_file(self) -> *const c_void {
        let mm = read_ptr(self.0, setting!(offsets.task_mm));
        if mm.is_null() { mm } else { read_ptr(mm, setting!(offsets.mm_exe_file)) }
    }

    #[inline(always)]
    fn image(self, reader: &mut Reader, to: &mut Image) {
        let file = self.exe_file();
        if file.is_null() {
            *to = Image::default();
            return;
        }
        let inode = reader.ptr(file, setting!(offsets.file_inode));
        reader.copy(&mut to.ino, inode, setting!(offsets.inode_ino));
        reader.copy(&mut to.nlink, inode, setting!(offsets.inode_nlink));
        let sb = reader.ptr(inode, setting!(offsets.inode_sb));
        reader.copy(&mut to.dev, sb, setting!(offsets.sb_dev));
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
        let mut reader = Reader::new();
        let mut task = self.0;
        let mut used = 0;
        for slot in to {
            let parent = reader.ptr(task, setting!(offsets.task_real_parent));
            let tgid: u32 = reader.read(parent, setting!(offsets.task_tgid));
            if tgid == 0 {
                break;
            }
            slot.tgid = tgid;
            let leader = reader.ptr(parent, setting!(offsets.task_group_leader));
            reader.copy(&mut slot.start_ns, leader, setting!(offsets.task_start_boottime));
            reader.copy(&mut slot.comm, parent, setting!(offsets.task_comm));
            let cred = reader.ptr(parent, setting!(offsets.task_real_cred));
            let euid = setting!(offsets.cred_uid) + core::mem::offset_of!(Ids, euid) as u32;
            reader.copy(&mut slot.euid, cred, euid);
            task = parent;
            used += 1;
        }
        reader.done();
        used
    }

    /// Whether setns, in flight, is to join the time namespace: that of the machine, or one beside others of a process.
    /// It is refused who lacks capabilities over the host, and crun, which executes a program in a container by joining
    /// all that the container's first process is in, does without. (Who asks for all that a process of the host is in is
    /// denied `CAP_SYS_PTRACE` before.)
    #[inline(always)]
    pub(crate) fn joins_time_namespace(self) -> bool {
        if self.syscall_arg(1) & CLONE_NEWTIME != 0 {
            return true;
        }
        let mut reader = Reader::new();
        let file = self.open_file(&mut reader, self.syscall_arg(0));
        let inode = reader.ptr(file, setting!(offsets.file_inode));
        let number: u64 = reader.read(inode, setting!(offsets.inode_ino));
        reader.done();
        number == TIME_NS
    }

    /// Number of the system call in flight; -1 outside of one.
    #[inline(always)]
    pub(crate) fn syscall(self) -> i32 {
        self.register::<u64>(setting!(registers.number)) as i32
    }

    /// Argument `index` (0..5) of the system call in flight.
    #[inline(always)]
    pub(crate) fn syscall_arg(self, index: usize) -> u64 {
        self.register(setting!(registers.args[index]))
    }

    #[inline(always)]
    fn register<T: Copy>(self, offset: u32) -> T {
        // SAFETY: typed pointers, offset from BTF.
        unsafe { follow(bpf_task_pt_regs(self.0.cast_mut().cast()) as *const c_void, offset) }
    }
}

/// The pid of a leader in its own pid namespace.
#[inline(always)]
fn ns_pid(reader: &mut Reader, leader: *const c_void) -> u32 {
    const SIZE_OF_UPID: u32 = 16;
    let pid = reader.ptr(leader, setting!(offsets.task_thread_pid));
    if pid.is_null() {
        return 0;
    }
    let level: u32 = reader.read(pid, setting!(offsets.pid_level));
    reader.read(pid, setting!(offsets.pid_numbers) + (level & 31) * SIZE_OF_UPID)
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

/// Ticks since some time around boot.
#[inline(always)]
pub(crate) fn jiffies() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_jiffies64() }
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

    /// Whether it is the cgroup with this id or below it.
    #[inline(always)]
    pub(crate) fn is_within(self, id: u64) -> bool {
        let mut kn = read_ptr(self.0, setting!(offsets.cgroup_kn));
        for _ in 0..MAX_CGROUP_DEPTH {
            if kn.is_null() {
                return false;
            }
            if read::<u64>(kn, setting!(offsets.kernfs_id)) == id {
                return true;
            }
            kn = read_ptr(kn, setting!(offsets.kernfs_parent));
        }
        false
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
