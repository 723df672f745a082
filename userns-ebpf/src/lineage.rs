//! The state machine of a task's lineage: OUT → ENTERING → INSIDE (ARCHITECTURE.md has the diagram).
//!
//! A task has a lineage from the moment it comes into a pod's cgroup. It is inherited at fork and does not end
//! when the task is moved to another cgroup once INSIDE: where a task comes from is what it is judged by.

use userns_common::cgroup::role;
use userns_common::kind::{EventKind, Hook, lineage as flag, origin, reason, state, told};
use userns_common::limits::MAX_EXTENTS;
use userns_common::record::{Lineage, WatchedCgroup};

use crate::emit::{self, Report, Ring};
use crate::maps::{CGROUPS, setting};
use crate::task::{Map, Task, UserNs};

/// The watched cgroup with this id, unless it is a runtime's monitor.
#[inline(always)]
pub(crate) fn watched(id: u64) -> Option<WatchedCgroup> {
    // SAFETY: copied at once; a concurrent update of this small value can at worst mix two valid rows.
    let found = unsafe { CGROUPS.get(id) }.copied()?;
    (found.role != role::MONITOR).then_some(found)
}

/// Starts the lineage of a task found in `cgroup`. `entry_mnt` is the mount namespace of whoever brought it in,
/// 0 if that is not known.
#[inline(always)]
pub(crate) fn enter(
    task: Task,
    cgroup: &WatchedCgroup,
    origin: u32,
    entry_mnt: u64,
    hook: Hook,
) -> Option<&'static mut Lineage> {
    let entry_mnt = if origin == origin::ADOPTED { bringer_mnt(task) } else { entry_mnt };
    let mut new = Lineage {
        state: state::ENTERING,
        flags: 0,
        origin,
        userns_inum: 0,
        userns: 0,
        container: cgroup.container,
        entered_ns: emit::now(),
        entry_mnt,
        told_caps: 0,
    };
    look_inside(task, &mut new);
    // found at work in a container: whatever brought it in is done
    if origin == origin::ADOPTED && in_container(task, &new) {
        new.flags |= flag::WORKLOAD;
    }
    let lineage = task.set_lineage(&mut new)?;
    let reasons = if lineage.flags & flag::WORKLOAD == 0 {
        0
    } else if lineage.state == state::INSIDE {
        reason::FIRST_WORKLOAD
    } else {
        reason::HOST_WORKLOAD
    };
    if origin != origin::ADOPTED || worth_telling(task, lineage) {
        emit::task(task, lineage, &Report::new(EventKind::Entry, hook, Ring::Evidence, reasons));
    }
    Some(lineage)
}

/// The mount namespace of whoever brought in a task that was found: its parent's, if that is in no pod itself. A
/// runtime's child can be found in the moment between its move and the hook that tells of it.
#[inline(always)]
fn bringer_mnt(task: Task) -> u64 {
    let parent = task.parent();
    if watched(parent.cgroup()).is_some() { 0 } else { parent.mnt_ns() }
}

/// Whether the task is in another mount namespace than whoever brought it in: past all of a runtime's work.
#[inline(always)]
pub(crate) fn in_container(task: Task, lineage: &Lineage) -> bool {
    if lineage.entry_mnt != 0 {
        task.mnt_ns() != lineage.entry_mnt
    } else {
        task.mnt_inum() != setting!(host_mnt_inum)
    }
}

/// Whether a task that was found rather than seen to enter says anything new. A node has thousands of them at start;
/// one of each kind a container will do, and every process that is not at work there yet.
#[inline(always)]
fn worth_telling(task: Task, lineage: &Lineage) -> bool {
    let bit = match (lineage.state, lineage.flags & flag::WORKLOAD) {
        (state::INSIDE, _) => told::INSIDE,
        (_, 0) => return task.is_leader(),
        _ => told::HOST,
    };
    let Some(row) = CGROUPS.get_ptr_mut(lineage.container) else { return true };
    // SAFETY: a row of the table; two CPUs at once can at worst tell twice
    unsafe {
        let before = (*row).told;
        (*row).told = before | bit;
        before & bit == 0
    }
}

/// ENTERING → INSIDE when the credentials' user namespace is below the host's. Returns whether it changed.
#[inline(always)]
fn look_inside(task: Task, lineage: &mut Lineage) -> bool {
    let ns = task.user_ns();
    let host_level = setting!(host_level);
    if ns.level() <= host_level {
        return false;
    }
    let pod = ns.ancestor_at(host_level + 1);
    lineage.userns = pod.address();
    lineage.userns_inum = pod.inum();
    lineage.state = state::INSIDE;
    true
}

/// Whether `ns` is the pod's namespace of `lineage` or below it.
#[inline(always)]
fn descends(ns: UserNs, lineage: &Lineage) -> bool {
    let host_level = setting!(host_level);
    if ns.level() <= host_level {
        return false;
    }
    let pod = ns.ancestor_at(host_level + 1);
    // the address alone could be that of a new namespace in the old one's memory
    pod.address() == lineage.userns && pod.inum() == lineage.userns_inum
}

/// Brings a lineage up to date and reports what contradicts it. Cheap when nothing has changed. A function of its
/// own, for the sake of its callers' stacks.
#[inline(never)]
pub(crate) fn inspect(task: Task, lineage: &mut Lineage, hook: Hook) {
    if lineage.state != state::INSIDE {
        if look_inside(task, lineage) {
            emit::task(task, lineage, &Report::new(EventKind::Inside, hook, Ring::Bulk, 0));
        }
        return;
    }
    check_userns(task, lineage, hook);
    if lineage.flags & (flag::WORKLOAD | flag::TOLD_IDS) == flag::WORKLOAD {
        check_ids(task, lineage, hook);
    }
}

/// Reports credentials that left the pod's user namespace, once a lineage.
#[inline(always)]
pub(crate) fn check_userns(task: Task, lineage: &mut Lineage, hook: Hook) {
    let ns = task.user_ns();
    if ns.address() == lineage.userns || lineage.flags & flag::TOLD_LEFT != 0 || descends(ns, lineage) {
        return;
    }
    // a record that was lost is tried again at the next hook
    if suspect(task, lineage, hook, reason::LEFT_USERNS) {
        lineage.flags |= flag::TOLD_LEFT;
    }
}

/// Reports ids that the pod's map does not hold, once a lineage. Maps with extents out of line are left alone.
#[inline(always)]
fn check_ids(task: Task, lineage: &mut Lineage, hook: Hook) {
    let host_level = setting!(host_level);
    let ns = task.user_ns();
    if ns.level() <= host_level {
        return;
    }
    let pod = ns.ancestor_at(host_level + 1);
    let ids = task.ids();
    if holds(pod.uid_map(), [ids.uid, ids.suid, ids.euid, ids.fsuid])
        && holds(pod.gid_map(), [ids.gid, ids.sgid, ids.egid, ids.fsgid])
    {
        return;
    }
    if suspect(task, lineage, hook, reason::ID_OUTSIDE_MAP) {
        lineage.flags |= flag::TOLD_IDS;
    }
}

/// Whether the map holds all four ids. A map that is still empty, or kept out of line, is left alone.
#[inline(always)]
fn holds(map: Map, ids: [u32; 4]) -> bool {
    let len = map.len();
    if len == 0 || len > MAX_EXTENTS as u32 {
        return true;
    }
    // id by id and out at the first one that is not held: the verifier has no combinations to walk through
    for id in ids {
        if !holds_one(map, len, id) {
            return false;
        }
    }
    true
}

#[inline(always)]
fn holds_one(map: Map, len: u32, id: u32) -> bool {
    for index in 0..MAX_EXTENTS as u32 {
        if index >= len {
            break;
        }
        let extent = map.extent(index);
        if id.wrapping_sub(extent.lower_first) < extent.count {
            return true;
        }
    }
    false
}

/// Reports a task that has stayed ENTERING past the grace period, once a lineage.
#[inline(always)]
pub(crate) fn check_grace(task: Task, lineage: &mut Lineage, hook: Hook) {
    if lineage.state != state::ENTERING
        || lineage.flags & (flag::WORKLOAD | flag::TOLD_GRACE) != 0
        || !past_grace(lineage)
    {
        return;
    }
    if suspect(task, lineage, hook, reason::PAST_GRACE) {
        lineage.flags |= flag::TOLD_GRACE;
    }
}

/// Whether the entry is longer ago than runtimes need.
#[inline(always)]
pub(crate) fn past_grace(lineage: &Lineage) -> bool {
    emit::now().saturating_sub(lineage.entered_ns) > setting!(grace_ns)
}

#[inline(always)]
fn suspect(task: Task, lineage: &Lineage, hook: Hook, reasons: u32) -> bool {
    emit::task(task, lineage, &Report::new(EventKind::Suspect, hook, Ring::Evidence, reasons))
}
