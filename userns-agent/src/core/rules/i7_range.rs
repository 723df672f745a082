//! I7: the range is unsafe.

use super::Rule;
use crate::core::context::Context;
use crate::core::finding::{Confidence, Severity, extents};
use crate::core::open::{Detection, Scope};
use crate::core::range::{self, Problem, show, show_all};
use crate::core::state::Container;
use crate::event::{PodUid, UserNs, UsernsMode};

pub(super) const RULE: Rule = Rule {
    id: "I7",
    name: "unsafe_range",
    title: "Unsafe id range of a pod",
    severity: Severity::Critical,
    technique: ("T1611", "Escape to Host"),
    tactic: ("TA0004", "Privilege Escalation"),
    proves: "The ids that a pod's user namespace maps are not a range of its own: they include host id 0 or other ids \
             below 65536, overlap another pod's, or differ from what kubelet recorded, or asked the container runtime for.",
    evidence: "`uid_map` and `gid_map` of the pod's user namespace as the kernel holds them when the first program runs, \
               kubelet's record, the mappings of the pod's sandbox in the CRI, and the maps of all other pods on the \
               node.",
    exceptions: "CRI-O can give pods maps of its own by annotation or node-wide setting: no record exists then and \
                 nothing is compared with it. Changing `idsPerPod` leaves running pods with their old, still disjoint \
                 ranges.",
    respond: "Host id 0 in the map means that root in the pod is root on the host: stop the pod at once, and look at the \
              range that `getsubids kubelet` prints; a range that ends past 2^32 makes kubelet wrap around. Overlapping \
              pods can reach each other's files and processes: restart one of them.",
};

pub(super) fn on_container(container: &Container, context: &Context<'_>) -> Vec<Detection> {
    let (Some((uid, pod)), Some(ns)) = (context.pod, &container.userns) else { return Vec::new() };
    // kubelet's ids, and which ones are the host's, are those of its own user namespace
    let (users, groups) = (context.reference.users(&ns.uid_map), context.reference.groups(&ns.gid_map));
    let request = pod.sandbox_of(&container.id).filter(|sandbox| sandbox.userns_mode == UsernsMode::Pod);
    let problems = range::problems(&users, &groups, pod.record.as_ref(), request);
    let own = unsafe_range(uid, container, &problems, context);
    own.into_iter().chain(overlaps(uid, ns, container, context)).collect()
}

/// One finding for all that is wrong with one pod's range: the worst is said first.
fn unsafe_range(
    uid: &PodUid,
    container: &Container,
    problems: &[Problem],
    context: &Context<'_>,
) -> Option<Detection> {
    let worst = problems.first()?;
    let mut why = problems.iter().map(sentence).collect::<Vec<_>>().join("; ");
    if !context.reference.is_initial() {
        let own: Vec<String> = container.userns.iter().map(|ns| show_all(extents(&ns.uid_map))).collect();
        why.push_str(&format!(
            " (ids as the node's own user namespace {} has them; as the initial one has them, the pod's user ids are {})",
            context.reference.inum,
            own.join(", ")
        ));
    }
    Some(detection(Scope::Pod(uid.clone()), severity(worst), why, container, context))
}

fn severity(problem: &Problem) -> Severity {
    match problem {
        Problem::HostRoot { .. } | Problem::HostIds { .. } => Severity::Critical,
        Problem::DiffersFromRecord { .. }
        | Problem::DiffersFromRequest { .. }
        | Problem::UnsafeRecord { .. } => Severity::High,
    }
}

fn sentence(problem: &Problem) -> String {
    match problem {
        Problem::HostRoot { inside } => {
            format!(
                "host id 0 is mapped into the pod as id {inside}: that user of the pod is root on the host"
            )
        }
        Problem::HostIds { extent } => {
            format!("host ids below 65536 are mapped into the pod: {}", show(extent))
        }
        Problem::DiffersFromRecord { kind, recorded, actual } => format!(
            "the kernel's {kind} id map {} is not kubelet's record {}",
            show_all(actual),
            show_all(recorded)
        ),
        Problem::DiffersFromRequest { kind, requested, actual } => format!(
            "the kernel's {kind} id map {} is not the {} that kubelet asked the runtime for",
            show_all(actual),
            show_all(requested)
        ),
        Problem::UnsafeRecord { extent } => {
            format!("kubelet recorded ids that are no pod's: {}", show(extent))
        }
    }
}

fn overlaps(uid: &PodUid, ns: &UserNs, container: &Container, context: &Context<'_>) -> Vec<Detection> {
    let pair = |other: &PodUid| {
        let (first, second) = if uid < other { (uid, other) } else { (other, uid) };
        Scope::Pods(first.clone(), second.clone())
    };
    let shared = context.sharing(&ns.uid_map).into_iter().filter_map(|(other, theirs)| {
        let (first, last) = range::overlap(&ns.uid_map, &theirs.uid_map)?;
        let why =
            format!("host user ids {first} to {last} are mapped into this pod and into pod {other} as well");
        Some(detection(pair(other), Severity::High, why, container, context))
    });
    shared.collect()
}

fn detection(
    scope: Scope,
    severity: Severity,
    why: String,
    container: &Container,
    context: &Context<'_>,
) -> Detection {
    Detection {
        scope,
        severity,
        confidence: Confidence::Certain,
        time: context.now,
        why,
        task: container.first_workload.clone(),
        hook: None,
        capabilities: Vec::new(),
        calls: Vec::new(),
    }
}
