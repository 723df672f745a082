//! The task iterator: finds tasks that no hook saw enter, and what no hook saw happen.
//!
//! Run once after attaching, to learn the tasks that were there before, and then at an interval. Context:
//! `struct bpf_iter__task { struct bpf_iter_meta *meta; struct task_struct *task; }` (kernel/bpf/task_iter.c); the
//! task is null once, at the end.

use core::ffi::c_void;

use userns_common::kind::{Counter, EventKind, Hook, lineage as flag, origin};

use crate::emit::{self, Report};
use crate::lineage;
use crate::maps::count;
use crate::probes::capable;
use crate::task::Task;

/// Visits one task.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn sweep(ctx: *const *const c_void) -> i32 {
    // SAFETY: the context holds two pointers; the second is the task.
    let pointer = unsafe { *ctx.add(1) };
    if pointer.is_null() {
        return 0;
    }
    let task = Task::from_arg(pointer);
    if !task.has_memory() {
        return 0;
    }
    count(Counter::TasksSwept);
    match task.tracked() {
        Some(tracked) => {
            capable::settle(task, tracked);
            let lineage = &mut tracked.lineage;
            lineage::catch_up(task, lineage);
            lineage::watch_userns(lineage);
            let found = lineage::inspect(task, lineage)
                .and(lineage::check_grace(lineage))
                .and(lineage::check_cgroup(task.cgroup(), lineage))
                .and(lineage::check_places(task, lineage, false));
            if lineage.flags & flag::OWED == 0 {
                lineage::tell(task, lineage, found, Hook::TaskIter);
                return 0;
            }
            let mut report = Report::of(found, EventKind::Entry, Hook::TaskIter);
            report.reasons |= lineage::entered(lineage);
            if emit::task(task, lineage, &report) {
                lineage::told(lineage, found);
                lineage.flags &= !flag::OWED;
            }
        }
        None => match lineage::watched(task.cgroup().id()) {
            Some(watched) => {
                count(Counter::TasksAdopted);
                lineage::enter(task, &watched, origin::ADOPTED, 0, Hook::TaskIter);
            }
            None if lineage::enter_foreign(task, Hook::TaskIter) => count(Counter::TasksAdopted),
            None => {}
        },
    }
    0
}
