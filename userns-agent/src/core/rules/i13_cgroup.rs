//! I13: a process outside of its container's cgroup.

use userns_common::kind::{reason, state};

use super::{Observed, Rule, who};
use crate::core::finding::{Confidence, Severity};
use crate::core::open::Detection;

pub(super) const RULE: Rule = Rule {
    id: "I13",
    name: "cgroup_flight",
    title: "A process outside of its container's cgroup",
    severity: Severity::High,
    technique: ("T1611", "Escape to Host"),
    tactic: ("TA0004", "Privilege Escalation"),
    proves: "A process that comes from a container is in a cgroup that is neither the container's nor below it: it has \
             shed the pod's limits, and whoever decides by the current cgroup takes it for a host process. A move \
             takes write access to the host's cgroup hierarchy.",
    evidence: "The destination of each move (`cgroup_attach_task`), and the cgroup of each task in the sweep, against the \
               container that its lineage entered.",
    exceptions: "Cgroups that a workload makes below its container's are its own (systemd in a pod). Runtimes that are \
                 moved out again before they join the user namespace are not processes of the container.",
    respond: "Find out who wrote to cgroup.procs: an administrator or tool on the host, or a process that already broke \
              out. Whatever else the process does is still reported for the pod it comes from.",
};

pub(super) fn on_task(observed: &Observed<'_>) -> Vec<Detection> {
    let task = &observed.event.task;
    if observed.reasons & reason::LEFT_CGROUP == 0 || task.lineage.state != state::INSIDE {
        return Vec::new();
    }
    let why = format!(
        "process {} of the container was moved to cgroup {}, outside of the container's",
        who(observed.event),
        task.cgroup.0
    );
    observed.about_the_process(Severity::High, Confidence::Certain, why)
}
