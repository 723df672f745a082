//! Fork, exec and exit: where lineages are inherited and final credentials are seen.
//!
//! Prototypes (include/trace/events/{task,sched}.h):
//! - `task_newtask(struct task_struct *task, u64 clone_flags)`, after `cgroup_post_fork`: the child's cgroup is final
//! - `sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`, after `commit_creds`
//! - `sched_process_exit(struct task_struct *p, ...)`, after `signal->live` was lowered

use core::ffi::c_void;

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use userns_common::kind::{EventKind, Hook, Operation, lineage as flag, origin, reason, state};
use userns_common::record::Lineage;

use crate::emit::{self, Report, Ring};
use crate::lineage;
use crate::probes::namespaces;
use crate::task::Task;

const CLONE_NEWUSER: u64 = 0x1000_0000;

#[btf_tracepoint(function = "task_newtask")]
fn task_newtask(ctx: BtfTracePointContext) -> i32 {
    let child = Task::from_arg(ctx.arg::<*const c_void>(0));
    let flags: u64 = ctx.arg(1);
    let parent = Task::current();
    let Some(of_parent) = parent.lineage() else {
        born(parent, child);
        return 0;
    };
    lineage::inspect(parent, of_parent, Hook::NewTask);
    let mut copy: Lineage = *of_parent;
    let Some(of_child) = child.set_lineage(&mut copy) else { return 0 };
    lineage::inspect(child, of_child, Hook::NewTask);
    if flags & CLONE_NEWUSER != 0 && of_parent.state == state::INSIDE {
        namespaces::record(child, of_child, Operation::CloneNewUser, Hook::NewTask, 0, flags, 0);
    }
    0
}

/// A task whose parent is in no pod: in one itself only if `CLONE_INTO_CGROUP` put it there, or if the parent is in
/// a pod that no hook saw it enter.
#[inline(always)]
fn born(parent: Task, child: Task) {
    let cgroup = child.cgroup();
    let Some(watched) = lineage::watched(cgroup) else { return };
    let (origin, mnt) =
        if parent.cgroup() == cgroup { (origin::ADOPTED, 0) } else { (origin::BORN, parent.mnt_ns()) };
    lineage::enter(child, &watched, origin, mnt, Hook::NewTask);
}

#[btf_tracepoint(function = "sched_process_exec")]
fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    let task = Task::from_arg(ctx.arg::<*const c_void>(0));
    let bprm: *const c_void = ctx.arg(2);
    let lineage = match task.lineage() {
        Some(lineage) => lineage,
        None => {
            let Some(watched) = lineage::watched(task.cgroup()) else { return 0 };
            let Some(lineage) = lineage::enter(task, &watched, origin::ADOPTED, 0, Hook::Exec) else {
                return 0;
            };
            lineage
        }
    };
    lineage::inspect(task, lineage, Hook::Exec);
    executed(task, lineage, bprm);
    0
}

#[inline(always)]
fn executed(task: Task, lineage: &mut Lineage, bprm: *const c_void) {
    let known = lineage.flags & flag::WORKLOAD != 0;
    let (ring, reasons) = if lineage.state == state::INSIDE {
        lineage.flags |= flag::WORKLOAD;
        if known { (Ring::Bulk, 0) } else { (Ring::Evidence, reason::FIRST_WORKLOAD) }
    } else if known {
        // a container that runs in the host's user namespace: told once, its programs are its own business
        return;
    } else if lineage::in_container(task, lineage) {
        lineage.flags |= flag::WORKLOAD;
        (Ring::Evidence, reason::HOST_WORKLOAD)
    } else {
        (Ring::Evidence, 0)
    };
    let mut report = Report::new(EventKind::Exec, Hook::Exec, ring, reasons);
    report.bprm = bprm;
    emit::task(task, lineage, &report);
}

#[btf_tracepoint(function = "sched_process_exit")]
fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    let task = Task::from_arg(ctx.arg::<*const c_void>(0));
    let Some(lineage) = task.lineage() else { return 0 };
    lineage::inspect(task, lineage, Hook::Exit);
    if task.is_last_thread() {
        emit::gone(EventKind::Exit, Hook::Exit, task, lineage.container);
    }
    0
}
