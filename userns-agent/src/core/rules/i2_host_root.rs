//! I2: host root in the pod past the entry grace.

use userns_common::kind::origin;

use super::{Rule, who};
use crate::core::context::Context;
use crate::core::finding::{Confidence, Severity};
use crate::core::open::{Detection, Scope};
use crate::core::state::{Container, Entering};
use crate::event::{Nanos, TaskEvent};

pub(super) const RULE: Rule = Rule {
    id: "I2",
    name: "host_root_in_pod",
    title: "Process with the host's user namespace in a pod",
    severity: Severity::High,
    technique: ("T1611", "Escape to Host"),
    tactic: ("TA0004", "Privilege Escalation"),
    proves: "A process is in the cgroup of a pod that was promised a user namespace, has the host's, and is no container \
             runtime on its way in: its executable is none, or it has stayed longer than a runtime needs.",
    evidence: "The move into the cgroup or the birth there, `real_cred->user_ns`, the executable's device and inode, and \
               the sweep that finds it there after the grace period.",
    exceptions: "Runtimes enter with the host's credentials for milliseconds (runc, crun; the grace period covers them). \
                 Monitors that CRI-O and podman keep in a pod's slice are known by their own cgroups; one in a container's \
                 (`monitor_exec_cgroup`, exec affinity) by its executable, which must be the host's own, and by the host's \
                 mount namespace: it may stay, and is counted (`userns_monitors`). Pods of `unobservable_runtimes` (Kata, \
                 gVisor) have helpers of the host's and programs that this kernel does not see: not judged. An administrator \
                 who moves a process into a pod's cgroup is reported: that is what the rule sees.",
    respond: "Find out who put the process there: its ancestors are in the finding. If nobody did, treat it as an escape \
              in the making and isolate the node.",
};

pub(super) fn on_container(container: &Container, context: &Context<'_>) -> Vec<Detection> {
    if !context.promised() {
        return Vec::new();
    }
    let mut found: Vec<Detection> =
        container.entering.values().filter_map(|entering| judge(container, entering, context)).collect();
    // a program of the host's in a container that has a user namespace of its own: not the runtime's omission
    if let (Some((time, event)), Some(_)) = (&container.host_workload, &container.userns) {
        let why = format!(
            "process {} runs a program in the container with the host's user namespace, though the container has one",
            who(event)
        );
        found.push(detection(container, *time, event, why));
    }
    found
}

fn judge(container: &Container, entering: &Entering, context: &Context<'_>) -> Option<Detection> {
    let Entering { since, event, late } = entering;
    if event.task.userns.level > context.reference.level || context.is_monitor(event) {
        return None;
    }
    // found there by the kernel, rather than reckoned: word of its end may be late, or lost
    if *late {
        let why = format!(
            "process {} has been in the pod's cgroup with the host's user namespace for longer than the {:?} that a \
             runtime may need to enter",
            who(event),
            context.grace
        );
        return Some(detection(container, context.now, event, why));
    }
    if context.may_be_runtime(event) {
        return None;
    }
    let how = if event.task.lineage.origin == origin::ATTACHED { "was moved into" } else { "is in" };
    let why = format!(
        "process {} {how} the pod's cgroup with the host's user namespace, and its executable `{}` is no container runtime",
        who(event),
        event.path.as_str().escape_debug()
    );
    Some(detection(container, *since, event, why))
}

fn detection(container: &Container, time: Nanos, event: &TaskEvent, why: String) -> Detection {
    Detection {
        scope: Scope::Process(container.cgroup, event.task.process),
        severity: Severity::High,
        confidence: Confidence::High,
        time,
        why,
        task: Some(Box::new(event.clone())),
        hook: None,
        capabilities: Vec::new(),
        calls: Vec::new(),
    }
}
