//! I6: a namespace that is not the pod's.

use userns_common::kind::{lineage, namespace, reason, state};

use super::{Observed, Rule, who};
use crate::core::finding::{Confidence, Severity};
use crate::core::open::Detection;

pub(super) const RULE: Rule = Rule {
    id: "I6",
    name: "foreign_namespace",
    title: "A namespace that is not the pod's",
    severity: Severity::Critical,
    technique: ("T1611", "Escape to Host"),
    tactic: ("TA0004", "Privilege Escalation"),
    proves: "A program in a pod's user namespace is in a mount, PID, network, IPC or UTS namespace that is owned by a \
             user namespace which is neither the pod's nor below it, and was not when the program started. Joining \
             such a namespace takes CAP_SYS_ADMIN over its owner, which nothing in the pod can have: the task's \
             namespaces were replaced inside the kernel.",
    evidence: "Owners of the task's namespaces (`nsproxy`) when its namespaces or credentials are changed, at fork, exec \
               and exit, and in the sweep, against those it had when the container's first program ran.",
    exceptions: "Namespaces that were the host's from the start are the container's configuration (`hostNetwork`). \
                 Cgroup and time namespaces are not looked at: the former may be the host's, the latter always are.",
    respond: "A host mount namespace is the host's file system, a host PID namespace its processes: treat the node as \
              compromised, as for I1.",
};

const NAMES: [(u32, &str); 5] = [
    (namespace::MNT, "mount"),
    (namespace::PID, "PID"),
    (namespace::NET, "network"),
    (namespace::IPC, "IPC"),
    (namespace::UTS, "UTS"),
];

pub(super) fn on_task(observed: &Observed<'_>) -> Vec<Detection> {
    let task = &observed.event.task;
    let workload = task.lineage.flags & lineage::WORKLOAD != 0 && task.lineage.state == state::INSIDE;
    if observed.reasons & reason::FOREIGN_NAMESPACE == 0 || !workload {
        return Vec::new();
    }
    let foreign: Vec<&str> =
        NAMES.iter().filter(|(bit, _)| observed.event.foreign & bit != 0).map(|(_, name)| *name).collect();
    if foreign.is_empty() {
        return Vec::new();
    }
    let why = format!(
        "process {} has come into a foreign {} namespace, which is not owned by the pod's user namespace {}",
        who(observed.event),
        foreign.join(", "),
        task.lineage.userns_inum
    );
    observed.about_the_process(Severity::Critical, Confidence::Certain, why)
}
