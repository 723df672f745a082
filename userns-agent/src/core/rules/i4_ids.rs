//! I4: ids outside the pod's range.

use userns_common::kind::{lineage, reason, state};

use super::{Observed, Rule, who};
use crate::core::context::Context;
use crate::core::finding::{Confidence, Severity, extents};
use crate::core::open::{Detection, Scope};
use crate::core::range::{FIRST_POD_ID, show_all};
use crate::event::{CgroupId, Extent, IdMap, Ids};

pub(super) const RULE: Rule = Rule {
    id: "I4",
    name: "ids_outside_range",
    title: "Ids outside the pod's range",
    severity: Severity::High,
    technique: ("T1068", "Exploitation for Privilege Escalation"),
    tactic: ("TA0004", "Privilege Escalation"),
    proves: "A program in a pod's user namespace has a user or group id that is not in the range the pod was given. \
             Within the kernel's rules a process takes ids of its namespace's map only, so either the map reaches \
             beyond the promised range or the ids were overwritten.",
    evidence: "The eight ids of `real_cred` at fork, exec, exit, namespace calls and in the sweep, against kubelet's \
               record, or the namespace's own map where there is no record. Supplementary groups are not looked at.",
    exceptions: "Runtimes hold host id 0 in the new namespace for microseconds before they take the container's; ids are \
                 judged from the first program on.",
    respond: "An id below 65536 belongs to the host's own users: treat the node as compromised. Otherwise find whose \
              range the id is in; files of that owner are within reach.",
};

pub(super) fn on_task(observed: &Observed<'_>, context: &Context<'_>) -> Vec<Detection> {
    let task = &observed.event.task;
    let workload = task.lineage.flags & lineage::WORKLOAD != 0;
    let left = observed.reasons & reason::LEFT_USERNS != 0;
    let Some(ns) = task.pod_userns.filter(|_| task.lineage.state == state::INSIDE && workload && !left)
    else {
        return Vec::new();
    };
    let record = context.pod.and_then(|(_, pod)| pod.record.as_ref());
    let users = range(&ns.uid_map, record.map(|record| &record.uid_mappings));
    let groups = range(&ns.gid_map, record.map(|record| &record.gid_mappings));
    let outside = outside(&task.ids, users, groups);
    let Some(lowest) = outside.iter().map(|(_, id)| *id).min() else { return Vec::new() };
    let names = outside.iter().map(|(name, id)| format!("{name} {id}")).collect::<Vec<_>>().join(", ");
    let why = format!(
        "process {} has {names} on the host, outside the pod's range {}",
        who(observed.event),
        show_all(users)
    );
    vec![Detection {
        scope: Scope::Process(CgroupId(task.lineage.container), task.process),
        severity: if lowest < FIRST_POD_ID { Severity::Critical } else { Severity::High },
        confidence: Confidence::High,
        time: observed.time,
        why,
        task: Some(Box::new(observed.event.clone())),
        hook: Some(observed.hook),
        capabilities: Vec::new(),
        calls: Vec::new(),
    }]
}

/// What the pod was given: the record, unless the runtime used another range altogether, which is rule I7's case.
fn range<'a>(map: &'a IdMap, record: Option<&'a Vec<Extent>>) -> &'a [Extent] {
    let actual = extents(map);
    let root = actual.first().map(|extent| extent.lower_first);
    match record {
        Some(record) if root.is_some_and(|root| holds(record, root)) => record,
        _ => actual,
    }
}

fn holds(range: &[Extent], id: u32) -> bool {
    range.iter().any(|extent| id.wrapping_sub(extent.lower_first) < extent.count)
}

/// Ids that a range does not hold; an empty range is an unwritten or out-of-line map and says nothing.
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
