//! I12: a process came into the pod's namespaces from outside.

use userns_common::kind::{Hook, lineage, origin, state};

use super::{Rule, who};
use crate::core::context::Context;
use crate::core::finding::{Confidence, Severity};
use crate::core::open::{Detection, Scope};
use crate::core::state::{Container, Intruder};
use crate::event::ProcessId;

pub(super) const RULE: Rule = Rule {
    id: "I12",
    name: "foreign_entry",
    title: "A process came into the pod from outside",
    severity: Severity::Medium,
    technique: ("T1609", "Container Administration Command"),
    tactic: ("TA0002", "Execution"),
    proves: "A process of the host, or of another pod, joined the pod's user namespace, or its mount and PID namespaces \
             with the host's user namespace, and did not come by way of the pod's cgroup as what a runtime starts does: \
             `nsenter`, a debugger, a privileged pod. It is not subject to the pod's limits, and whoever decides by the \
             cgroup takes it for another's. The pod's user namespace holds it all the same, once it is in there.",
    evidence: "The credentials' user namespace, and the owners of the mount and PID namespaces, when setns returns and in \
               the sweep, against the user namespaces that programs of pods run in; the process's cgroup, executable and \
               ancestors. What the process executes later, and what its children do, is the same entry.",
    exceptions: "Runtimes join the user namespace before they are moved into the cgroup (runc before 1.4, crun with the \
                 systemd manager): an executable that can be a runtime's gets the grace period, and what is then still \
                 outside is told, as `info` if it is the runtime's own executable on the host. Helpers that containerd \
                 and CRI-O make with the pod's map have user namespaces of their own. Joining the network or the mount \
                 namespace alone, as CNI plugins and monitoring agents do, is not told.",
    respond: "Find out who it was: the process's ancestors lead to a login, a node agent or the pod given as `from`. An \
              administrator's session ends the matter; a pod that does it without being a debugger is an intruder.",
};

pub(super) fn on_container(container: &Container, context: &Context<'_>) -> Vec<Detection> {
    if !context.promised() {
        return Vec::new();
    }
    container
        .intruders
        .iter()
        .filter_map(|(first, intruder)| judge(container, *first, intruder, context))
        .collect()
}

fn judge(
    container: &Container,
    first: ProcessId,
    intruder: &Intruder,
    context: &Context<'_>,
) -> Option<Detection> {
    let Intruder { since, hook, event, late } = intruder;
    let lineage = &event.task.lineage;
    let of_the_host = lineage.origin == origin::FOREIGN;
    let inside = lineage.state == state::INSIDE;
    let executed = lineage.flags & lineage::WORKLOAD != 0;
    // a thread that looks at the pod's files and goes back, and who will join the user namespace last
    let passing = !inside && !executed;
    if of_the_host && !late && (passing || context.may_be_runtime(event)) {
        return None;
    }
    let known = of_the_host && context.is_runtime(event);
    let what = if inside {
        format!("the pod's user namespace {}", lineage.userns_inum)
    } else {
        format!(
            "the pod's mount and PID namespaces with user id {} of the host's user namespace {}",
            event.task.ids.euid, event.task.userns.inum
        )
    };
    let whence = match context.other_pod(lineage.container) {
        Some(uid) => format!("it comes from pod {uid}"),
        None => format!("it comes from no pod (cgroup {})", event.task.cgroup.0),
    };
    let how = if *hook == Hook::TaskIter.name() { "was found in" } else { "came into" };
    let kind = match (of_the_host, known, late) {
        (true, true, _) => ", though a runtime's, was not moved into the pod's cgroup in time",
        (true, false, true) => " has stayed longer than a runtime needs",
        _ => " is no container runtime",
    };
    let why = format!(
        "process {} {how} {what}; {whence}, and its executable `{}`{kind}",
        who(event),
        event.path.as_str().escape_debug()
    );
    Some(Detection {
        scope: Scope::Process(container.cgroup, first),
        severity: if known { Severity::Info } else { Severity::Medium },
        confidence: Confidence::High,
        time: *since,
        why,
        task: Some(event.clone()),
        hook: Some(hook),
        capabilities: Vec::new(),
        calls: Vec::new(),
    })
}
