//! Returns of setns, unshare, mount_setattr and open_tree_attr.
//!
//! The return is the only point that sees every call: seccomp refuses before `sys_enter` is traced, and what the
//! call did to the credentials is done. Arguments are still in the saved registers.

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use userns_common::kind::{EventKind, Hook, Operation, Relation, state};
use userns_common::record::{AggregateKey, Lineage};

use crate::emit::{self, Report, Ring};
use crate::lineage;
use crate::probes::capable::aggregate;
use crate::task::{Task, read_user};

/// Offset of the return value in every `sys_exit_*` record (events/syscalls/*/format in tracefs).
const RETURN_VALUE: usize = 16;
/// include/uapi/linux/mount.h
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

#[tracepoint(category = "syscalls", name = "sys_exit_setns")]
fn sys_exit_setns(ctx: TracePointContext) -> u32 {
    returned(&ctx, Operation::Setns, Hook::Setns, 1);
    0
}

#[tracepoint(category = "syscalls", name = "sys_exit_unshare")]
fn sys_exit_unshare(ctx: TracePointContext) -> u32 {
    returned(&ctx, Operation::Unshare, Hook::Unshare, 0);
    0
}

#[tracepoint(category = "syscalls", name = "sys_exit_mount_setattr")]
fn sys_exit_mount_setattr(ctx: TracePointContext) -> u32 {
    idmapped(&ctx, Operation::MountSetattr, Hook::MountSetattr);
    0
}

#[tracepoint(category = "syscalls", name = "sys_exit_open_tree_attr")]
fn sys_exit_open_tree_attr(ctx: TracePointContext) -> u32 {
    idmapped(&ctx, Operation::OpenTreeAttr, Hook::OpenTreeAttr);
    0
}

#[inline(always)]
fn returned(ctx: &TracePointContext, operation: Operation, hook: Hook, flags: usize) {
    let task = Task::current();
    let Some(lineage) = task.lineage() else { return };
    lineage::inspect(task, lineage, hook);
    let flags = task.syscall_arg(flags);
    record(task, lineage, operation, hook, return_value(ctx), flags, task.syscall_arg(0));
}

/// Calls that do not ask for an id map say nothing about user namespaces: runtimes make many of them.
#[inline(always)]
fn idmapped(ctx: &TracePointContext, operation: Operation, hook: Hook) {
    let task = Task::current();
    let Some(lineage) = task.lineage() else { return };
    lineage::inspect(task, lineage, hook);
    // both calls: (dfd, path, flags, struct mount_attr *, size)
    let Some(attr_set) = read_user::<u64>(task.syscall_arg(3)) else { return };
    if attr_set & MOUNT_ATTR_IDMAP != 0 {
        record(task, lineage, operation, hook, return_value(ctx), attr_set, task.syscall_arg(0));
    }
}

#[inline(always)]
fn return_value(ctx: &TracePointContext) -> i32 {
    // SAFETY: inside the record; a failed read cannot happen and would say "succeeded".
    unsafe { ctx.read_at::<i64>(RETURN_VALUE) }.unwrap_or(0) as i32
}

/// Counts an operation of a task in a pod and tells of the first of its kind.
#[inline(always)]
pub(crate) fn record(
    task: Task,
    lineage: &Lineage,
    operation: Operation,
    hook: Hook,
    ret: i32,
    flags: u64,
    fd: u64,
) {
    if lineage.state != state::INSIDE {
        return;
    }
    let key = AggregateKey {
        container: lineage.container,
        operation: operation as u8,
        code: 0,
        relation: Relation::Pod as u8,
        denied: u8::from(ret < 0),
        state: lineage.state as u8,
        reserved: [0; 3],
    };
    if !aggregate(&key, task, -1) {
        return;
    }
    let mut report = Report::new(EventKind::NamespaceCall, hook, Ring::Bulk, 0);
    report.detail.operation = operation as u32;
    report.detail.relation = Relation::Pod as u32;
    report.detail.ret = ret;
    report.detail.flags = flags;
    report.detail.fd = fd;
    emit::task(task, lineage, &report);
}
