//! Calls that change namespaces, mounts or the working directory: setns, unshare, mount_setattr, open_tree_attr, chdir,
//! fchdir.
//!
//! Prototype: `long __<arch>_sys_<name>(const struct pt_regs *regs)` (include/linux/syscalls.h,
//! arch/*/include/asm/syscall_wrapper.h), at its return; or the event `syscalls/sys_exit_<name>`, which makes every
//! system call of the node slower (about a third of an empty one's time), but also tells of calls that seccomp refused
//! before they began. Either way what the call did to the credentials is done, and its arguments are still in the
//! saved registers.

use aya_ebpf::macros::{fexit, kretprobe, tracepoint};
use aya_ebpf::programs::{FExitContext, RetProbeContext, TracePointContext};
use userns_common::kind::{EventKind, Hook, Operation, Relation, lineage as flag, state, verdict};
use userns_common::record::{AggregateKey, Lineage};

use crate::emit::{self, Report, Ring};
use crate::lineage::{self, Found};
use crate::maps::opaque;
use crate::probes::capable::{self, aggregate};
use crate::probes::lifecycle::CLONE_NEWUSER;
use crate::task::{Task, read_user};

/// Offset of the return value in every `sys_exit_*` record (events/syscalls/*/format in tracefs).
const RETURN_VALUE: usize = 16;
/// include/uapi/linux/mount.h
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
/// include/uapi/linux/fcntl.h
const AT_EMPTY_PATH: u64 = 0x1000;

/// A call that returned.
pub(crate) struct Call {
    /// [`Operation`]
    operation: u32,
    ret: i32,
    /// Clone flags, setns `nstype`, mount `attr_set`.
    flags: u64,
    /// Its file descriptor argument.
    fd: u64,
    /// The user namespace that the file system belongs to whose ids were mapped; `Relation::Pod` where there is none to
    /// tell of: it is the pod's or below it, or not known.
    relation: u32,
    target_inum: u32,
    target_level: u32,
}

impl Call {
    #[inline(always)]
    pub(crate) fn new(operation: Operation, ret: i32, flags: u64, fd: u64) -> Self {
        let (relation, operation) = (opaque(Relation::Pod as u32), operation as u32);
        Self { operation, ret, flags, fd, relation, target_inum: opaque(0), target_level: opaque(0) }
    }
}

macro_rules! returns {
    ($($call:ident: $fexit:ident, $kretprobe:ident, $tracepoint:ident;)+) => {$(
        #[fexit]
        fn $fexit(ctx: FExitContext) -> i32 {
            $call(ctx.arg::<i64>(1) as i32);
            0
        }

        #[kretprobe]
        fn $kretprobe(ctx: RetProbeContext) -> u32 {
            $call(ctx.ret::<i64>() as i32);
            0
        }

        #[tracepoint]
        fn $tracepoint(ctx: TracePointContext) -> u32 {
            $call(return_value(&ctx));
            0
        }
    )+};
}

returns! {
    setns: setns_fexit, setns_kretprobe, setns_tracepoint;
    unshare: unshare_fexit, unshare_kretprobe, unshare_tracepoint;
    mount_setattr: mount_setattr_fexit, mount_setattr_kretprobe, mount_setattr_tracepoint;
    open_tree_attr: open_tree_attr_fexit, open_tree_attr_kretprobe, open_tree_attr_tracepoint;
    chdir: chdir_fexit, chdir_kretprobe, chdir_tracepoint;
    fchdir: fchdir_fexit, fchdir_kretprobe, fchdir_tracepoint;
}

#[inline(always)]
fn return_value(ctx: &TracePointContext) -> i32 {
    // SAFETY: inside the record; a failed read cannot happen and would say "succeeded".
    unsafe { ctx.read_at::<i64>(RETURN_VALUE) }.unwrap_or(0) as i32
}

#[inline(always)]
fn setns(ret: i32) {
    returned(Operation::Setns, Hook::Setns, 1, ret);
}

#[inline(always)]
fn unshare(ret: i32) {
    returned(Operation::Unshare, Hook::Unshare, 0, ret);
}

#[inline(always)]
fn mount_setattr(ret: i32) {
    idmapped(Operation::MountSetattr, Hook::MountSetattr, ret);
}

#[inline(always)]
fn open_tree_attr(ret: i32) {
    idmapped(Operation::OpenTreeAttr, Hook::OpenTreeAttr, ret);
}

#[inline(always)]
fn chdir(ret: i32) {
    went(Hook::Chdir, ret);
}

#[inline(always)]
fn fchdir(ret: i32) {
    went(Hook::Fchdir, ret);
}

#[inline(always)]
fn went(hook: Hook, ret: i32) {
    let task = Task::current();
    let Some(lineage) = task.lineage() else { return };
    if ret >= 0 {
        let found = lineage::check_places(task, lineage, false);
        lineage::tell(task, lineage, found, hook);
    }
}

#[inline(always)]
fn returned(operation: Operation, hook: Hook, flags: usize, ret: i32) {
    let task = Task::current();
    let Some(lineage) = task.lineage() else {
        if joins(operation, ret) {
            lineage::enter_foreign(task, hook);
        }
        return;
    };
    let found = lineage::inspect_at_rest(task, lineage);
    let mut call = Call::new(operation, ret, task.syscall_arg(flags), task.syscall_arg(0));
    if call.operation == Operation::Unshare as u32 {
        let makes = call.flags & CLONE_NEWUSER != 0;
        call.operation = opaque(if makes { Operation::UnshareNewUser } else { Operation::Unshare } as u32);
    }
    if joins(operation, ret) {
        let mut report = Report::new(EventKind::NamespaceCall, hook, Ring::Evidence, 0);
        describe(&mut report, &call);
        lineage::tell_joined(task, lineage, &mut report);
    }
    tell(task, lineage, found, &call, hook);
}

/// Whether a call can have brought the task into existing namespaces.
#[inline(always)]
fn joins(operation: Operation, ret: i32) -> bool {
    operation as u32 == Operation::Setns as u32 && ret >= 0
}

/// Calls that do not ask for an id map say nothing about user namespaces: runtimes make many of them. Those change no
/// credentials either.
#[inline(always)]
fn idmapped(operation: Operation, hook: Hook, ret: i32) {
    let task = Task::current();
    let Some(lineage) = task.lineage() else { return };
    // both calls: (dfd, path, flags, struct mount_attr *, size)
    let attr = task.syscall_arg(3);
    // so programs find out whether the kernel has the call
    if attr == 0 {
        return;
    }
    let Some(attr_set) = read_user::<u64>(attr) else { return };
    if attr_set & MOUNT_ATTR_IDMAP != 0 {
        let mut call = Call::new(operation, ret, attr_set, task.syscall_arg(0));
        judge(task, lineage, &mut call);
        tell(task, lineage, Found::NOTHING, &call, hook);
    }
}

/// Takes note of whose file system it is that ids were mapped of, unless it is the pod's. A path below the descriptor may
/// lead to another mount: then it is not known.
#[inline(never)]
fn judge(task: Task, lineage: &Lineage, call: &mut Call) {
    if call.ret < 0 || lineage.state != state::INSIDE {
        return;
    }
    let returns_mount = call.operation == Operation::OpenTreeAttr as u32;
    let by_descriptor =
        || task.syscall_arg(2) & AT_EMPTY_PATH != 0 && read_user::<u8>(task.syscall_arg(1)) == Some(0);
    if !returns_mount && !by_descriptor() {
        return;
    }
    let number = if returns_mount { call.ret as u64 } else { call.fd };
    let Some(owner) = task.owner_of_file_system(number) else { return };
    let relation = capable::relation(owner, lineage) as u32;
    if relation == Relation::Host as u32 || relation == Relation::Other as u32 {
        call.relation = opaque(relation);
        call.target_inum = opaque(owner.inum());
        call.target_level = opaque(owner.level());
    }
}

/// Counts a call of a task in a pod, and tells of the first of its kind and of what was found.
#[inline(always)]
pub(crate) fn tell(task: Task, lineage: &mut Lineage, found: Found, call: &Call, hook: Hook) {
    let denied = verdict::of(call.ret) == verdict::DENIED;
    let everyday = denied && call.operation == Operation::Setns as u32 && task.joins_time_namespace();
    let key = AggregateKey {
        container: lineage.container,
        operation: call.operation as u8,
        code: 0,
        relation: call.relation as u8,
        verdict: verdict::of(call.ret),
        state: lineage.state as u8,
        workload: u8::from(lineage.flags & flag::WORKLOAD != 0),
        everyday: u8::from(everyday),
        reserved: 0,
    };
    if lineage.state != state::INSIDE || !aggregate(&key, 1, task, -1) || everyday {
        lineage::tell(task, lineage, found, hook);
        return;
    }
    let mut report = Report::of(found, EventKind::NamespaceCall, hook);
    if !found.is_evidence(lineage) {
        report.ring = Ring::Bulk;
    }
    describe(&mut report, call);
    if emit::task(task, lineage, &report) {
        lineage::told(lineage, found);
    }
}

#[inline(always)]
fn describe(report: &mut Report, call: &Call) {
    report.detail.operation = call.operation;
    report.detail.relation = call.relation;
    report.detail.target_inum = call.target_inum;
    report.detail.target_level = call.target_level;
    report.detail.ret = call.ret;
    report.detail.flags = call.flags;
    report.detail.fd = call.fd;
}
