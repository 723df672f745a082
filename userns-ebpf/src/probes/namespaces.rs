//! Calls that change namespaces or mounts: setns, unshare, mount_setattr, open_tree_attr.
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
use crate::probes::capable::aggregate;
use crate::task::{Task, read_user};

/// Offset of the return value in every `sys_exit_*` record (events/syscalls/*/format in tracefs).
const RETURN_VALUE: usize = 16;
/// include/uapi/linux/mount.h
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// A call that returned.
pub(crate) struct Call {
    pub(crate) operation: Operation,
    pub(crate) ret: i32,
    /// Clone flags, setns `nstype`, mount `attr_set`.
    pub(crate) flags: u64,
    /// Its file descriptor argument.
    pub(crate) fd: u64,
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
fn returned(operation: Operation, hook: Hook, flags: usize, ret: i32) {
    let task = Task::current();
    let Some(lineage) = task.lineage() else {
        if joins(operation, ret) {
            lineage::enter_foreign(task, hook);
        }
        return;
    };
    let found = lineage::inspect_at_rest(task, lineage);
    let call = Call { operation, ret, flags: task.syscall_arg(flags), fd: task.syscall_arg(0) };
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
        let call = Call { operation, ret, flags: attr_set, fd: task.syscall_arg(0) };
        tell(task, lineage, Found::NOTHING, &call, hook);
    }
}

/// Counts a call of a task in a pod, and tells of the first of its kind and of what was found.
#[inline(always)]
pub(crate) fn tell(task: Task, lineage: &mut Lineage, found: Found, call: &Call, hook: Hook) {
    let denied = verdict::of(call.ret) == verdict::DENIED;
    let everyday = denied && call.operation as u32 == Operation::Setns as u32 && task.joins_time_namespace();
    let key = AggregateKey {
        container: lineage.container,
        operation: call.operation as u8,
        code: 0,
        relation: Relation::Pod as u8,
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
    report.detail.operation = call.operation as u32;
    report.detail.relation = Relation::Pod as u32;
    report.detail.ret = call.ret;
    report.detail.flags = call.flags;
    report.detail.fd = call.fd;
}
