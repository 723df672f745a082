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

use crate::emit::{self, Everyday, Report, Ring};
use crate::lineage::{self, Found};
use crate::maps::opaque;
use crate::probes::{capable, namespaces};
use crate::task::{self, Task};

/// include/uapi/linux/sched.h
pub(crate) const CLONE_NEWUSER: u64 = 0x1000_0000;

#[btf_tracepoint(function = "task_newtask")]
fn task_newtask(ctx: BtfTracePointContext) -> i32 {
    let child = Task::from_arg(ctx.arg::<*const c_void>(0));
    let flags: u64 = ctx.arg(1);
    let parent = Task::current();
    match parent.lineage() {
        Some(of_parent) => inherited(parent, of_parent, child, flags),
        None => born(parent, child),
    }
    0
}

#[inline(always)]
fn inherited(parent: Task, of_parent: &mut Lineage, child: Task, flags: u64) {
    let found = lineage::inspect_at_rest(parent, of_parent);
    // what the parent is told for is not told again for the child; what is lost is found again in the parent
    let mut copy = *of_parent;
    lineage::told(&mut copy, found);
    let of_child = child.set_lineage(copy);
    let (task, lineage, found) = match of_child {
        Some(of_child) if found.is_nothing() && of_child.state == state::INSIDE => {
            if flags & CLONE_NEWUSER != 0 {
                let call = namespaces::Call::new(Operation::CloneNewUser, 0, flags, 0);
                namespaces::tell(child, of_child, Found::NOTHING, &call, Hook::NewTask);
            }
            return;
        }
        Some(of_child) if found.is_nothing() => {
            let found = lineage::inspect(child, of_child);
            (child, of_child, found)
        }
        _ => (parent, of_parent, found),
    };
    lineage::tell(task, lineage, found, Hook::NewTask);
}

/// A task whose parent is in no pod: in one itself only if `CLONE_INTO_CGROUP` put it there, or if the parent is in
/// a pod that no hook saw it enter.
#[inline(always)]
fn born(parent: Task, child: Task) {
    let cgroup = child.cgroup().id();
    let Some(watched) = lineage::watched(cgroup) else { return };
    let (origin, mnt) =
        if parent.cgroup().id() == cgroup { (origin::ADOPTED, 0) } else { (origin::BORN, parent.mnt_ns()) };
    lineage::enter(child, &watched, origin, mnt, Hook::NewTask);
}

#[btf_tracepoint(function = "sched_process_exec")]
fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    let task = Task::from_arg(ctx.arg::<*const c_void>(0));
    let bprm: *const c_void = ctx.arg(2);
    let lineage = match task.tracked() {
        Some(tracked) => {
            // what is counted from now on is another program's
            capable::settle(task, tracked);
            lineage::catch_up(task, &mut tracked.lineage);
            &mut tracked.lineage
        }
        None => {
            let Some(watched) = lineage::watched(task.cgroup().id()) else { return 0 };
            let Some(lineage) = lineage::begin(task, &watched, origin::ADOPTED, 0) else { return 0 };
            lineage
        }
    };
    executed(task, lineage, bprm);
    0
}

#[inline(always)]
fn executed(task: Task, lineage: &mut Lineage, bprm: *const c_void) {
    let mut found = lineage::inspect(task, lineage);
    let known = lineage.flags & flag::WORKLOAD != 0;
    let mut news = 0;
    if lineage.state == state::INSIDE {
        if !known {
            lineage::works(task, lineage);
            news = reason::FIRST_WORKLOAD;
        }
        let program = opaque(task::is_program(bprm).into()) != 0;
        found = found.and(lineage::check_places(task, lineage, program));
    } else if known {
        // a container that runs in the host's user namespace: told once, its programs are its own business
        return;
    } else if lineage::in_container(task, lineage) {
        lineage.flags |= flag::WORKLOAD;
        news = reason::HOST_WORKLOAD;
    }
    let everyday = known && found.is_nothing();
    if everyday && !emit::affordable(lineage.container, Everyday::Exec) {
        return;
    }
    let mut report = Report::of(found, EventKind::Exec, Hook::Exec);
    report.ring = if everyday { Ring::Bulk } else { Ring::Evidence };
    report.reasons |= news;
    report.bprm = bprm;
    if emit::task(task, lineage, &report) {
        lineage::told(lineage, found);
    } else if news == reason::HOST_WORKLOAD {
        // lost: the next program tells
        lineage.flags &= !flag::WORKLOAD;
    } else if news == reason::FIRST_WORKLOAD {
        lineage.flags |= flag::OWED;
    }
}

#[btf_tracepoint(function = "sched_process_exit")]
fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    let task = Task::from_arg(ctx.arg::<*const c_void>(0));
    let Some(tracked) = task.tracked() else { return 0 };
    tracked.lineage.flags |= flag::ENDING;
    capable::settle(task, tracked);
    let lineage = &mut tracked.lineage;
    let found = lineage::inspect_at_rest(task, lineage);
    lineage::tell(task, lineage, found, Hook::Exit);
    let everyday = lineage.state == state::INSIDE;
    if task.is_last_thread() && (!everyday || emit::affordable(lineage.container, Everyday::Exit)) {
        emit::gone(EventKind::Exit, Hook::Exit, task, lineage.container);
    }
    0
}
