//! The process of a finding: everything the kernel said of it.

use serde::Serialize;
use userns_common::limits::MAX_EXTENTS;

use crate::core::finding::{extents, to_container};
use crate::event::{
    Ancestor, CapSets, Extent, IdMap, Ids, Image, Lineage, Namespaces, Nanos, ProcessId, Task, TaskEvent,
    UserNs,
};
use crate::sink::names;
use crate::sink::report::WallClock;

#[derive(Serialize)]
pub(super) struct Process<'a> {
    id: String,
    pid: u32,
    tid: u32,
    pid_in_container: Option<u32>,
    ppid: Option<u32>,
    start_time: String,
    comm: &'a str,
    executable: Option<&'a str>,
    args: Vec<&'a str>,
    truncated: bool,
    image: Option<Executable>,
    ids: IdViews,
    capabilities: CapabilitySets,
    credentials_overridden: bool,
    user_namespace: Option<UserNamespace>,
    pod_user_namespace: Option<UserNamespace>,
    namespaces: OtherNamespaces,
    cgroup: Option<CgroupRef>,
    lineage: LineageView,
    ancestors: Vec<AncestorView<'a>>,
}

#[derive(Serialize)]
struct CgroupRef {
    id: u64,
}

impl<'a> Process<'a> {
    pub(super) fn new(event: &'a TaskEvent, clock: WallClock) -> Self {
        let task = &event.task;
        let pod = task.pod_userns.as_ref().filter(|ns| ns.inum != 0);
        let view =
            View { uid: &pod.unwrap_or(&task.userns).uid_map, gid: &pod.unwrap_or(&task.userns).gid_map };
        let path = event.path.as_str();
        Self {
            id: process_id(task.process),
            pid: task.process.pid,
            tid: task.tid,
            pid_in_container: task.ns_pid,
            ppid: event.ancestors.first().map(|parent| parent.process.pid),
            start_time: clock.rfc3339(task.process.start),
            comm: task.comm.as_str(),
            executable: (!path.is_empty()).then_some(path),
            args: event.args.iter().map(|arg| arg.as_str()).collect(),
            truncated: event.cut,
            image: Executable::new(task.image),
            ids: IdViews::new(&task.ids, &view),
            capabilities: CapabilitySets::new(&task.caps),
            credentials_overridden: task.overridden,
            user_namespace: UserNamespace::new(&task.userns, &view),
            pod_user_namespace: pod.and_then(|ns| UserNamespace::new(ns, &view)),
            namespaces: OtherNamespaces::new(&task.ns),
            cgroup: cgroup(task),
            lineage: LineageView::new(&task.lineage, clock),
            ancestors: event.ancestors.iter().map(|it| AncestorView::new(it, &view, clock)).collect(),
        }
    }
}

fn cgroup(task: &Task) -> Option<CgroupRef> {
    (task.cgroup.0 != 0).then_some(CgroupRef { id: task.cgroup.0 })
}

/// The same for all lines about a process, and for no other process until the node boots again.
pub(super) fn process_id(process: ProcessId) -> String {
    format!("{}-{}", process.pid, process.start.0)
}

#[derive(Serialize)]
pub(super) struct SystemCall {
    number: u32,
    name: Option<&'static str>,
}

impl SystemCall {
    pub(super) fn new(number: u32) -> Self {
        Self { number, name: names::syscall(number) }
    }
}

#[derive(Serialize)]
struct Executable {
    dev: String,
    inode: u64,
    links: u32,
}

impl Executable {
    fn new(image: Image) -> Option<Self> {
        const MINOR_BITS: u32 = 20;
        let (major, minor) = (image.dev >> MINOR_BITS, image.dev & ((1 << MINOR_BITS) - 1));
        let dev = format!("{major}:{minor}");
        (image.ino != 0).then_some(Self { dev, inode: image.ino, links: image.nlink })
    }
}

/// The maps that translate ids for the container.
struct View<'a> {
    uid: &'a IdMap,
    gid: &'a IdMap,
}

#[derive(Serialize)]
pub(super) struct Id {
    pub(super) host: u32,
    pub(super) container: Option<u32>,
}

impl Id {
    fn new(map: &IdMap, host: u32) -> Self {
        Self { host, container: to_container(map, host) }
    }
}

#[derive(Serialize)]
struct IdViews {
    uid: Id,
    gid: Id,
    suid: Id,
    sgid: Id,
    euid: Id,
    egid: Id,
    fsuid: Id,
    fsgid: Id,
}

impl IdViews {
    fn new(ids: &Ids, view: &View<'_>) -> Self {
        Self {
            uid: Id::new(view.uid, ids.uid),
            gid: Id::new(view.gid, ids.gid),
            suid: Id::new(view.uid, ids.suid),
            sgid: Id::new(view.gid, ids.sgid),
            euid: Id::new(view.uid, ids.euid),
            egid: Id::new(view.gid, ids.egid),
            fsuid: Id::new(view.uid, ids.fsuid),
            fsgid: Id::new(view.gid, ids.fsgid),
        }
    }
}

#[derive(Serialize)]
struct CapabilitySets {
    effective: Vec<String>,
    permitted: Vec<String>,
    inheritable: Vec<String>,
    bounding: Vec<String>,
    ambient: Vec<String>,
}

impl CapabilitySets {
    fn new(sets: &CapSets) -> Self {
        Self {
            effective: names::capabilities(sets.effective),
            permitted: names::capabilities(sets.permitted),
            inheritable: names::capabilities(sets.inheritable),
            bounding: names::capabilities(sets.bounding),
            ambient: names::capabilities(sets.ambient),
        }
    }
}

/// Extents of a map.
pub(super) type Extents = Vec<Range>;

#[derive(Serialize)]
pub(super) struct Range {
    inside: u32,
    host: u32,
    count: u32,
}

impl From<&Extent> for Range {
    fn from(extent: &Extent) -> Self {
        Self { inside: extent.first, host: extent.lower_first, count: extent.count }
    }
}

/// A map recorded elsewhere; an empty one is none.
pub(super) fn recorded(map: &[Extent]) -> Option<Extents> {
    (!map.is_empty()).then(|| map.iter().map(Range::from).collect())
}

/// The extents of a map; `None` if it has more than the kernel's programs read.
fn map(map: &IdMap) -> Option<Extents> {
    (map.nr_extents as usize <= MAX_EXTENTS).then(|| extents(map).iter().map(Range::from).collect())
}

#[derive(Serialize)]
struct UserNamespace {
    inode: u32,
    level: u32,
    owner: Id,
    parent_inode: Option<u32>,
    uid_map: Option<Extents>,
    gid_map: Option<Extents>,
}

impl UserNamespace {
    fn new(ns: &UserNs, view: &View<'_>) -> Option<Self> {
        (ns.inum != 0).then(|| Self {
            inode: ns.inum,
            level: ns.level,
            owner: Id::new(view.uid, ns.owner),
            parent_inode: non_zero(ns.parent_inum),
            uid_map: map(&ns.uid_map),
            gid_map: map(&ns.gid_map),
        })
    }
}

#[derive(Serialize)]
struct OtherNamespaces {
    mnt: Option<u32>,
    pid: Option<u32>,
    net: Option<u32>,
    ipc: Option<u32>,
    uts: Option<u32>,
    cgroup: Option<u32>,
}

impl OtherNamespaces {
    fn new(ns: &Namespaces) -> Self {
        Self {
            mnt: non_zero(ns.mnt),
            pid: non_zero(ns.pid),
            net: non_zero(ns.net),
            ipc: non_zero(ns.ipc),
            uts: non_zero(ns.uts),
            cgroup: non_zero(ns.cgroup),
        }
    }
}

fn non_zero(number: u32) -> Option<u32> {
    (number != 0).then_some(number)
}

#[derive(Serialize)]
struct LineageView {
    state: &'static str,
    origin: Option<&'static str>,
    flags: Vec<String>,
    entered_at: Option<String>,
}

impl LineageView {
    fn new(lineage: &Lineage, clock: WallClock) -> Self {
        let entered = Nanos(lineage.entered_ns);
        Self {
            state: names::lineage_state(lineage.state),
            origin: names::lineage_origin(lineage.origin),
            flags: names::lineage_flags(lineage),
            entered_at: (entered.0 != 0).then(|| clock.rfc3339(entered)),
        }
    }
}

#[derive(Serialize)]
struct AncestorIds {
    euid: Id,
}

#[derive(Serialize)]
struct AncestorView<'a> {
    id: String,
    pid: u32,
    comm: &'a str,
    euid: u32,
    ids: AncestorIds,
    start_time: String,
}

impl<'a> AncestorView<'a> {
    fn new(ancestor: &'a Ancestor, view: &View<'_>, clock: WallClock) -> Self {
        Self {
            id: process_id(ancestor.process),
            pid: ancestor.process.pid,
            comm: ancestor.comm.as_str(),
            euid: ancestor.euid,
            ids: AncestorIds { euid: Id::new(view.uid, ancestor.euid) },
            start_time: clock.rfc3339(ancestor.process.start),
        }
    }
}
