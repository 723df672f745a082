//! I4: ids outside the pod's range.

use userns_common::kind::{lineage, origin, reason, state};

use super::{Observed, Rule, who};
use crate::core::context::Context;
use crate::core::finding::{Confidence, Severity, extents};
use crate::core::open::{Detection, Scope};
use crate::core::range::{FIRST_POD_ID, show_all};
use crate::event::{CgroupId, Extent, IdMap, Ids, Nanos};

pub(super) const RULE: Rule = Rule {
    id: "I4",
    name: "ids_outside_range",
    title: "Ids outside the pod's range",
    severity: Severity::Critical,
    technique: ("T1068", "Exploitation for Privilege Escalation"),
    tactic: ("TA0004", "Privilege Escalation"),
    proves: "A program in a pod's user namespace has a user or group id that is not in the range the pod was given. \
             Critical if the namespace's own map does not hold the id, whatever its number: no system call gives a \
             program of the pod such an id, so its credentials were overwritten inside the kernel. Critical as well if \
             the id is below 65536, where the host's own users are, root among them. High if the map holds it, which \
             then reaches beyond the promised range.",
    evidence: "The eight ids of `real_cred` at fork, exec, exit, namespace calls and in the sweep, against the map of \
               the pod's user namespace and kubelet's record. Supplementary groups are not looked at.",
    exceptions: "Ids for files alone are I8's matter. Runtimes hold host id 0 in the new namespace for microseconds before they take the container's; ids are \
                 judged from the first program on, those of a process that was found rather than seen to enter after \
                 the grace period. Those of who joined the namespace from elsewhere are I12's matter. An \
                 administrator who moves a process of the host into a pod's user namespace and then its cgroup, and keeps \
                 its ids, is reported.",
    respond: "Critical: treat the node as compromised, as for I1. High: find whose range the id is in; files of that owner \
              are within reach.",
};

/// Which of the ids it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Those that decide over files, and no others: I8.
    FilesAlone,
    /// Others, by themselves or with these.
    Any,
}

pub(super) fn on_task(observed: &Observed<'_>, context: &Context<'_>) -> Vec<Detection> {
    outside_range(observed, context, Kind::Any)
}

/// What is to be said of ids outside of the range, if they are of this kind.
pub(super) fn outside_range(observed: &Observed<'_>, context: &Context<'_>, kind: Kind) -> Vec<Detection> {
    let task = &observed.event.task;
    let workload = task.lineage.flags & lineage::WORKLOAD != 0;
    let left = observed.reasons & reason::LEFT_USERNS != 0;
    // found in the moment between joining the namespace and taking an id of it; told later if it keeps its own
    let found_at = Nanos(task.lineage.entered_ns);
    if task.lineage.origin == origin::ADOPTED && observed.time.since(found_at) <= context.grace {
        return Vec::new();
    }
    // the kernel has told it, or will not: what came in from elsewhere may have kept the ids that it had there (I12)
    let settled = task.lineage.told & !observed.reasons & reason::ID_OUTSIDE_MAP != 0;
    let own = task.lineage.state == state::INSIDE && workload && !settled;
    let Some(ns) = task.pod_userns.filter(|_| own && !left) else {
        return Vec::new();
    };
    let unmapped = outside(&task.ids, extents(&ns.uid_map), extents(&ns.gid_map));
    let record = context.pod.and_then(|(_, pod)| pod.record.as_ref());
    let unpromised = record.map_or_else(Vec::new, |record| {
        let users = context.reference.kernel_users(&record.uid_mappings);
        let groups = context.reference.kernel_groups(&record.gid_mappings);
        outside(&task.ids, promised(&ns.uid_map, &users), promised(&ns.gid_map, &groups))
    });
    let (ids, why) = match (unmapped.is_empty(), unpromised.is_empty()) {
        (true, true) => return Vec::new(),
        (false, _) => (&unmapped, overwritten(&ns.uid_map)),
        (true, false) => (&unpromised, "outside the range that kubelet recorded for the pod".to_owned()),
    };
    let files_alone = ids.iter().all(|(name, _)| name.starts_with("fs"));
    if files_alone != (kind == Kind::FilesAlone) {
        return Vec::new();
    }
    let names = ids.iter().map(|(name, id)| format!("{name} {id}")).collect::<Vec<_>>().join(", ");
    let on_node = |name: &str, id| {
        if name.contains("uid") { context.reference.user(id) } else { context.reference.group(id) }
    };
    let hosts = ids.iter().any(|(name, id)| on_node(name, *id).is_none_or(|id| id < FIRST_POD_ID));
    vec![Detection {
        scope: Scope::Process(CgroupId(task.lineage.container), task.process),
        severity: if hosts || !unmapped.is_empty() { Severity::Critical } else { Severity::High },
        confidence: Confidence::High,
        time: observed.time,
        why: format!("process {} has {names} on the host, {why}", who(observed.event)),
        task: Some(Box::new(observed.event.clone())),
        hook: Some(observed.hook),
        capabilities: Vec::new(),
        calls: Vec::new(),
    }]
}

fn overwritten(map: &IdMap) -> String {
    format!(
        "which its user namespace does not map (user ids {}); no system call gives such an id, so its credentials were \
         overwritten inside the kernel",
        show_all(extents(map))
    )
}

/// The recorded range; none if the runtime used another one altogether, which is rule I7's case.
fn promised<'a>(map: &IdMap, record: &'a [Extent]) -> &'a [Extent] {
    let root = extents(map).first().map(|extent| extent.lower_first);
    if root.is_some_and(|root| holds(record, root)) { record } else { &[] }
}

fn holds(range: &[Extent], id: u32) -> bool {
    range.iter().any(|extent| id.wrapping_sub(extent.lower_first) < extent.count)
}

/// Ids that a range does not hold; an empty range says nothing, such as a map that is unwritten or out of line.
fn outside(ids: &Ids, users: &[Extent], groups: &[Extent]) -> Vec<(&'static str, u32)> {
    let named = [
        ("uid", ids.uid, users),
        ("euid", ids.euid, users),
        ("suid", ids.suid, users),
        ("fsuid", ids.fsuid, users),
        ("gid", ids.gid, groups),
        ("egid", ids.egid, groups),
        ("sgid", ids.sgid, groups),
        ("fsgid", ids.fsgid, groups),
    ];
    let bad = named.into_iter().filter(|(_, id, range)| !range.is_empty() && !holds(range, *id));
    bad.map(|(name, id, _)| (name, id)).collect()
}
