//! The state machine of a task's lineage: OUT → ENTERING → INSIDE (ARCHITECTURE.md has the diagram).
//!
//! A task has a lineage from the moment it comes into a pod's cgroup. It is inherited at fork and does not end
//! when the task is moved to another cgroup once INSIDE: where a task comes from is what it is judged by.
//!
//! Checks return what they found as one number, so that a program sends one record at one place: the verifier
//! walks through the sending once for each way that leads there.

use userns_common::cgroup::role;
use userns_common::kind::{EventKind, Hook, lineage as flag, origin, reason, state, told};
use userns_common::limits::MAX_EXTENTS;
use userns_common::record::{Extent, Lineage, WatchedCgroup};

use crate::emit::{self, Report, Ring};
use crate::maps::{CGROUPS, opaque, setting};
use crate::task::{Cgroup, Map, Task, UserNs};

/// What the checks of a task found: bits of [`reason`], which of its namespaces are foreign, and whether it has just
/// become INSIDE. 0: nothing.
#[derive(Clone, Copy)]
pub(crate) struct Found(u32);

impl Found {
    /// Nothing.
    pub(crate) const NOTHING: Self = Self(0);
    const BECAME_INSIDE: u32 = 1 << 31;
    const REASONS: u32 = 0xffff;
    const NAMESPACES: u32 = 16;

    /// Whether there is nothing to tell.
    #[inline(always)]
    pub(crate) fn is_nothing(self) -> bool {
        self.0 == 0
    }

    /// Whether all it says is that the task arrived.
    #[inline(always)]
    fn is_arrival(self) -> bool {
        self.0 == Self::BECAME_INSIDE
    }

    /// Both.
    #[inline(always)]
    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Bits of [`reason`].
    #[inline(always)]
    pub(crate) fn reasons(self) -> u32 {
        self.0 & Self::REASONS
    }

    /// Bits of [`userns_common::kind::namespace`].
    #[inline(always)]
    pub(crate) fn foreign(self) -> u32 {
        self.0 >> Self::NAMESPACES & 0xff
    }
}

/// Credentials that left, whichever: the same escape.
const LEFT: u32 = reason::LEFT_USERNS | reason::ACTS_OUTSIDE;

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
pub(crate) fn begin(
    task: Task,
    cgroup: &WatchedCgroup,
    origin: u32,
    entry_mnt: u64,
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
        foreign: 0,
        told: 0,
    };
    look_inside(task, &mut new);
    task.set_lineage(new)
}

/// Starts a lineage and tells of it.
#[inline(always)]
pub(crate) fn enter(task: Task, cgroup: &WatchedCgroup, origin: u32, entry_mnt: u64, hook: Hook) {
    let Some(lineage) = begin(task, cgroup, origin, entry_mnt) else { return };
    // found at work in a container: whatever brought it in is done
    if origin == origin::ADOPTED && in_container(task, lineage) {
        works(task, lineage);
    }
    if origin == origin::ADOPTED && !worth_telling(task, lineage) {
        return;
    }
    let report = Report::new(EventKind::Entry, hook, Ring::Evidence, entered(lineage));
    if !emit::task(task, lineage, &report) {
        lineage.flags |= flag::OWED;
    }
}

/// What an entry proves: bits of [`reason`].
#[inline(always)]
pub(crate) fn entered(lineage: &Lineage) -> u32 {
    match (lineage.flags & flag::WORKLOAD, lineage.state) {
        (0, _) => 0,
        (_, state::INSIDE) => reason::FIRST_WORKLOAD,
        _ => reason::HOST_WORKLOAD,
    }
}

/// The mount namespace of whoever brought in a task that was found: its parent's, if that is in no pod itself. A
/// runtime's child can be found in the moment between its move and the hook that tells of it.
#[inline(always)]
fn bringer_mnt(task: Task) -> u64 {
    let parent = task.parent();
    if watched(parent.cgroup().id()).is_some() { 0 } else { parent.mnt_ns() }
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

/// Takes note that the lineage is past a runtime's work. Namespaces that are not the pod's by then are so by the
/// container's configuration (`hostNetwork`).
#[inline(always)]
pub(crate) fn works(task: Task, lineage: &mut Lineage) {
    lineage.flags |= flag::WORKLOAD;
    if lineage.state == state::INSIDE {
        lineage.foreign = foreign(task, lineage);
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

/// Brings a lineage up to date and says what contradicts it. Cheap when nothing has changed.
#[inline(always)]
pub(crate) fn inspect(task: Task, lineage: &mut Lineage) -> Found {
    if lineage.state != state::INSIDE {
        return Found(opaque(if look_inside(task, lineage) { Found::BECAME_INSIDE } else { 0 }));
    }
    let mut found = check_userns(task, lineage);
    if lineage.flags & flag::WORKLOAD != 0 {
        if lineage.told & reason::ID_OUTSIDE_MAP == 0 && ids_outside(task) && !may_be_entering(lineage) {
            found = found.and(Found(reason::ID_OUTSIDE_MAP));
        }
        let foreign = foreign(task, lineage) & !lineage.foreign;
        if foreign != 0 {
            found = found.and(Found(reason::FOREIGN_NAMESPACE | foreign << Found::NAMESPACES));
        }
    }
    Found(opaque(found.0))
}

/// Finds credentials that left the pod's user namespace, once a lineage.
#[inline(always)]
pub(crate) fn check_userns(task: Task, lineage: &Lineage) -> Found {
    let ns = task.user_ns();
    if ns.address() == lineage.userns || lineage.told & LEFT != 0 || descends(ns, lineage) {
        Found::NOTHING
    } else {
        Found(reason::LEFT_USERNS)
    }
}

/// Also finds subjective credentials that left, of the running task at a point where no file system has swapped in its
/// own.
#[inline(always)]
pub(crate) fn inspect_at_rest(task: Task, lineage: &mut Lineage) -> Found {
    let found = inspect(task, lineage);
    let acts_outside = lineage.state == state::INSIDE
        && lineage.told & LEFT == 0
        && task.subjective_user_ns().is_some_and(|ns| !descends(ns, lineage));
    found.and(Found(opaque(if acts_outside { reason::ACTS_OUTSIDE } else { 0 })))
}

/// Finds a task that has stayed ENTERING past the grace period, once a lineage.
#[inline(always)]
pub(crate) fn check_grace(lineage: &Lineage) -> Found {
    let late = lineage.state == state::ENTERING
        && lineage.flags & flag::WORKLOAD == 0
        && lineage.told & reason::PAST_GRACE == 0
        && past_grace(lineage);
    Found(opaque(if late { reason::PAST_GRACE } else { 0 }))
}

/// Finds a task in a cgroup that is neither its container's nor below it, once a lineage.
#[inline(always)]
pub(crate) fn check_cgroup(cgroup: Cgroup, lineage: &Lineage) -> Found {
    let settled = lineage.state == state::INSIDE && lineage.told & reason::LEFT_CGROUP == 0;
    let left = settled && !cgroup.is_within(lineage.container);
    Found(opaque(if left { reason::LEFT_CGROUP } else { 0 }))
}

/// Whether a task that was found inside may be a runtime's that has not taken an id of the pod yet. One that was seen to
/// enter is at work from its first program on, which is past that.
#[inline(always)]
fn may_be_entering(lineage: &Lineage) -> bool {
    lineage.origin == origin::ADOPTED && !past_grace(lineage)
}

/// Whether the entry is longer ago than runtimes need.
#[inline(always)]
pub(crate) fn past_grace(lineage: &Lineage) -> bool {
    emit::now().saturating_sub(lineage.entered_ns) > setting!(grace_ns)
}

/// Tells what was found, if anything.
#[inline(always)]
pub(crate) fn tell(task: Task, lineage: &mut Lineage, found: Found, hook: Hook) {
    if found.is_nothing() {
        return;
    }
    let report = if found.is_arrival() {
        Report::new(EventKind::Inside, hook, Ring::Bulk, 0)
    } else {
        Report::of(found, EventKind::Suspect, hook)
    };
    if emit::task(task, lineage, &report) {
        told(lineage, found);
    }
}

/// Takes note that something was told, so that it is not told again. What was lost is found again at the next hook.
#[inline(always)]
pub(crate) fn told(lineage: &mut Lineage, found: Found) {
    lineage.told |= found.reasons();
    lineage.foreign |= found.foreign();
}

/// Namespaces of the task that are owned by a user namespace which is neither the pod's nor below it, as bits of
/// [`userns_common::kind::namespace`].
#[inline(never)]
fn foreign(task: Task, lineage: &Lineage) -> u32 {
    opaque(task.namespaces_where(|owner| owner.address() != lineage.userns && !descends(owner, lineage)))
}

/// Whether an id of the credentials is not in the pod's map. Maps with extents out of line are left alone. A function
/// of its own, for the sake of its callers' stacks.
#[inline(never)]
fn ids_outside(task: Task) -> bool {
    let host_level = setting!(host_level);
    let ns = task.user_ns();
    if ns.level() <= host_level {
        return false;
    }
    let pod = ns.ancestor_at(host_level + 1);
    let ids = task.ids();
    !holds(pod.uid_map(), [ids.uid, ids.suid, ids.euid, ids.fsuid])
        || !holds(pod.gid_map(), [ids.gid, ids.sgid, ids.egid, ids.fsgid])
}

/// Whether the map holds all four ids. A map that is still empty, or kept out of line, is left alone.
#[inline(always)]
fn holds(map: Map, ids: [u32; 4]) -> bool {
    let len = map.len();
    if len == 0 || len > MAX_EXTENTS as u32 {
        return true;
    }
    let extents = map.extents();
    // id by id and out at the first one that is not held: the verifier has no combinations to walk through
    for id in ids {
        if !holds_one(&extents, len, id) {
            return false;
        }
    }
    true
}

#[inline(never)]
fn holds_one(extents: &[Extent; MAX_EXTENTS], len: u32, id: u32) -> bool {
    for (index, extent) in extents.iter().enumerate() {
        if index as u32 >= len {
            break;
        }
        if id.wrapping_sub(extent.lower_first) < extent.count {
            return true;
        }
    }
    false
}
