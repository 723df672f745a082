//! Cgroups of pods come and go, and tasks are moved into them.
//!
//! Prototypes (include/trace/events/cgroup.h):
//! - `cgroup_mkdir(struct cgroup *cgrp, const char *path)`, likewise `cgroup_rmdir`
//! - `cgroup_attach_task(struct cgroup *dst_cgrp, const char *path, struct task_struct *task, bool threadgroup)`

use core::ffi::c_void;

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use userns_common::cgroup::{classify, role};
use userns_common::kind::{Counter, EventKind, Hook, lineage as flag, origin, state};
use userns_common::limits::CGROUP_NAME_LEN;
use userns_common::record::WatchedCgroup;

use crate::emit;
use crate::lineage;
use crate::maps::{CGROUPS, count};
use crate::task::{Cgroup, Task};

#[btf_tracepoint(function = "cgroup_mkdir")]
fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    let cgroup = Cgroup::from_arg(ctx.arg::<*const c_void>(0));
    if !cgroup.is_unified() {
        return 0;
    }
    // SAFETY: copied at once.
    let parent = unsafe { CGROUPS.get(cgroup.parent_id()) }.copied().unwrap_or_default();
    let mut name = [0; CGROUP_NAME_LEN];
    let len = cgroup.name(&mut name);
    let role = classify(parent.role, &name, len as usize);
    if role == role::NONE {
        return 0;
    }
    let id = cgroup.id();
    let container = if role == role::NESTED { parent.container } else { id };
    if CGROUPS.insert(id, WatchedCgroup { role, told: 0, container }, 0).is_err() {
        count(Counter::CgroupsFull);
    }
    // what a workload makes below its own container is its business
    if role != role::NESTED {
        emit::cgroup(EventKind::CgroupMkdir, Hook::CgroupMkdir, id, role, ctx.arg(1));
    }
    0
}

#[btf_tracepoint(function = "cgroup_rmdir")]
fn cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    let cgroup = Cgroup::from_arg(ctx.arg::<*const c_void>(0));
    if !cgroup.is_unified() {
        return 0;
    }
    let id = cgroup.id();
    // SAFETY: copied at once.
    let Some(watched) = unsafe { CGROUPS.get(id) }.copied() else { return 0 };
    // not found any more: someone else removed the row
    let _ = CGROUPS.remove(id);
    if watched.role != role::NESTED {
        emit::cgroup(EventKind::CgroupRmdir, Hook::CgroupRmdir, id, watched.role, ctx.arg(1));
    }
    0
}

#[btf_tracepoint(function = "cgroup_attach_task")]
fn cgroup_attach_task(ctx: BtfTracePointContext) -> i32 {
    let cgroup = Cgroup::from_arg(ctx.arg::<*const c_void>(0));
    if !cgroup.is_unified() {
        return 0;
    }
    let task = Task::from_arg(ctx.arg::<*const c_void>(2));
    match (lineage::watched(cgroup.id()), task.lineage()) {
        (Some(watched), None) => {
            lineage::enter(task, &watched, origin::ATTACHED, Task::current().mnt_ns(), Hook::CgroupAttach);
        }
        (Some(watched), Some(lineage)) if lineage.origin == origin::FOREIGN => {
            lineage::settle(task, lineage, &watched, Task::current().mnt_ns());
        }
        (Some(watched), Some(lineage)) if lineage.state == state::ENTERING => {
            lineage.container = watched.container;
        }
        (None, Some(lineage)) if lineage.origin == origin::FOREIGN => {}
        (None, Some(lineage)) if lineage.state == state::ENTERING && lineage.flags & flag::WORKLOAD == 0 => {
            emit::gone(EventKind::Left, Hook::CgroupAttach, task, lineage.container);
            task.forget_lineage();
        }
        (watched, Some(lineage)) if watched.is_none_or(|watched| watched.container != lineage.container) => {
            let found = lineage::check_cgroup(cgroup, lineage);
            lineage::tell(task, lineage, found, Hook::CgroupAttach);
        }
        _ => {}
    }
    0
}
