//! The state machine of a task's lineage: OUT → ENTERING → INSIDE (ARCHITECTURE.md has the diagram).
//!
//! A task has a lineage from the moment it comes into a pod's cgroup, or into its namespaces from elsewhere. It is inherited at fork and does not end
//! when the task is moved to another cgroup once INSIDE: where a task comes from is what it is judged by.
//!
//! Checks return what they found as one number, so that a program sends one record at one place: the verifier
//! walks through the sending once for each way that leads there.

use userns_common::cgroup::role;
use userns_common::kind::{Counter, EventKind, Hook, lineage as flag, origin, reason, state, told};
use userns_common::limits::MAX_EXTENTS;
use userns_common::record::{Extent, Lineage, WatchedCgroup, WatchedUserNs};

use crate::emit::{self, Report, Ring};
use crate::maps::{CGROUPS, USERNS, count, opaque, setting};
use crate::task::{Cgroup, Map, Task, UserNs};

/// What the checks of a task found: bits of [`reason`], which of its namespaces and places are foreign, and whether it
/// has just become INSIDE. 0: nothing.
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

    /// Whether findings can rest on it: on the arrival of a program of a container without a user namespace, which may
    /// have come into another pod's.
    #[inline(always)]
    pub(crate) fn is_evidence(self, lineage: &Lineage) -> bool {
        self.reasons() != 0 || self.0 & Self::BECAME_INSIDE != 0 && lineage.flags & flag::WORKLOAD != 0
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

    /// Bits of [`userns_common::kind::namespace`] and [`userns_common::kind::place`].
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

/// Moves a lineage to a container's cgroup that its task was moved into from elsewhere: a runtime's, which joined the
/// user namespace before.
#[inline(always)]
pub(crate) fn settle(task: Task, lineage: &mut Lineage, cgroup: &WatchedCgroup, entry_mnt: u64) {
    lineage.flags = 0;
    lineage.origin = origin::ATTACHED;
    lineage.container = cgroup.container;
    lineage.entered_ns = emit::now();
    lineage.entry_mnt = entry_mnt;
    lineage.told_caps = 0;
    lineage.foreign = 0;
    lineage.told = 0;
    let report = Report::new(EventKind::Entry, Hook::CgroupAttach, Ring::Evidence, 0);
    if !emit::task(task, lineage, &report) {
        lineage.flags |= flag::OWED;
    }
}

/// Makes up for a move into a container's cgroup that no hook saw: kernels from 7.0 on leave out a program that is being
/// run on that processor already, by a task that it was taken from.
#[inline(always)]
pub(crate) fn catch_up(task: Task, lineage: &mut Lineage) {
    if lineage.origin == origin::FOREIGN
        && let Some(watched) = watched(task.cgroup().id())
    {
        settle(task, lineage, &watched, 0);
    }
}

/// What tells entries into a pod's namespaces from a pod's own: the user namespace that the task has come into, of a
/// task that is in no pod; `None` if it is none that programs of a pod run in.
struct Joined {
    pod: UserNs,
    container: u64,
}

/// The pod whose user namespace the task has, or whose mount and PID namespaces it has with the host's user namespace.
#[inline(always)]
fn joined(task: Task) -> Option<Joined> {
    let host_level = setting!(host_level);
    let own = task.user_ns();
    let ns = if own.level() > host_level { own } else { task.owner_of_view()? };
    if ns.level() <= host_level {
        return None;
    }
    let pod = ns.ancestor_at(host_level + 1);
    // SAFETY: copied at once; a concurrent update of this small value can at worst mix two valid rows.
    let row = unsafe { USERNS.get(pod.address()) }.copied()?;
    (row.inum == pod.inum()).then_some(Joined { pod, container: row.container })
}

/// Begins and tells the lineage of a task that came into a pod's namespaces while its cgroup is no pod's. Its ids and
/// its cgroup are those of where it comes from, and nothing to tell.
#[inline(always)]
pub(crate) fn enter_foreign(task: Task, hook: Hook) -> bool {
    let Some(Joined { container, .. }) = joined(task) else { return false };
    let mut new = Lineage {
        state: state::ENTERING,
        flags: 0,
        origin: origin::FOREIGN,
        userns_inum: 0,
        userns: 0,
        container,
        entered_ns: emit::now(),
        entry_mnt: 0,
        told_caps: u64::MAX,
        foreign: 0,
        told: reason::ID_OUTSIDE_MAP | reason::LEFT_CGROUP,
    };
    look_inside(task, &mut new);
    let Some(lineage) = task.set_lineage(new) else { return false };
    let report = Report::new(EventKind::Entry, hook, Ring::Evidence, 0);
    if !emit::task(task, lineage, &report) {
        lineage.flags |= flag::OWED;
    }
    true
}

/// Tells once a lineage that a program of a pod, which has the host's user namespace, has joined another pod's mount
/// and PID namespaces.
#[inline(always)]
pub(crate) fn tell_joined(task: Task, lineage: &mut Lineage, report: &mut Report) {
    if lineage.state != state::ENTERING
        || lineage.flags & flag::WORKLOAD == 0
        || lineage.told & reason::FOREIGN_ENTRY != 0
    {
        return;
    }
    let Some(Joined { pod, container }) = joined(task) else { return };
    if container == lineage.container {
        return;
    }
    report.reasons = reason::FOREIGN_ENTRY;
    report.detail.target_inum = pod.inum();
    report.detail.target_level = pod.level();
    if emit::task(task, lineage, report) {
        lineage.told |= reason::FOREIGN_ENTRY;
    }
}

/// Takes note of the user namespace that a container's programs run in, unless it is known.
#[inline(always)]
pub(crate) fn watch_userns(lineage: &Lineage) {
    let own = lineage.state == state::INSIDE
        && lineage.flags & flag::WORKLOAD != 0
        && lineage.origin != origin::FOREIGN;
    // SAFETY: not kept.
    let known = unsafe { USERNS.get(lineage.userns) }.is_some_and(|row| row.inum == lineage.userns_inum);
    if !own || known {
        return;
    }
    let row = WatchedUserNs { container: lineage.container, inum: lineage.userns_inum, reserved: 0 };
    if USERNS.insert(lineage.userns, row, 0).is_err() {
        count(Counter::UsernsFull);
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
        watch_userns(lineage);
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
    // on a node in a user namespace there are others beside it, with namespaces of their own below
    if pod.parent().inum() != setting!(host_userns_inum) {
        return false;
    }
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
        if !look_inside(task, lineage) {
            return Found(opaque(0));
        }
        // a program of a container without a user namespace, with all else that it had there
        if lineage.flags & flag::WORKLOAD != 0 {
            lineage.foreign = foreign(task, lineage);
            lineage.told |= reason::ID_OUTSIDE_MAP;
        }
        return Found(opaque(Found::BECAME_INSIDE));
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

/// Finds a task that has stayed ENTERING, or foreign, past the grace period, once a lineage.
#[inline(always)]
pub(crate) fn check_grace(lineage: &Lineage) -> Found {
    let late = (lineage.state == state::ENTERING || lineage.origin == origin::FOREIGN)
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

/// Finds a program that works in a mount of the host's: by its directories, and by its executable where that is asked
/// about. Once a lineage each. Who came into the pod's namespaces from elsewhere may have kept what it had there.
#[inline(never)]
pub(crate) fn check_places(task: Task, lineage: &Lineage, program: bool) -> Found {
    let own = lineage.state == state::INSIDE
        && lineage.flags & flag::WORKLOAD != 0
        && lineage.origin != origin::FOREIGN;
    if !own || may_be_entering(lineage) {
        return Found(opaque(0));
    }
    let outside = places(task, lineage, program) & !lineage.foreign;
    Found(opaque(if outside == 0 { 0 } else { reason::OUTSIDE_MOUNT | outside << Found::NAMESPACES }))
}

/// What the task works in mounts by that are attached where neither the pod's user namespace nor one below it owns the
/// mount namespace, as bits of [`userns_common::kind::place`].
#[inline(always)]
fn places(task: Task, lineage: &Lineage, program: bool) -> u32 {
    let pod_level = setting!(host_level) + 1;
    opaque(task.places_where(program, |owner| {
        // one above the pod's is its own ancestor
        let pod = owner.ancestor_at(pod_level);
        pod.address() != lineage.userns || pod.inum() != lineage.userns_inum
    }))
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
        let ring = if found.is_evidence(lineage) { Ring::Evidence } else { Ring::Bulk };
        Report::new(EventKind::Inside, hook, ring, 0)
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
