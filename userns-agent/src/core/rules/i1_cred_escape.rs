//! I1: credentials left the pod's user namespace.

use userns_common::kind::{reason, state};

use super::{Observed, Rule, who};
use crate::core::finding::{Confidence, Severity};
use crate::core::open::Detection;

pub(super) const RULE: Rule = Rule {
    id: "I1",
    name: "cred_escape",
    title: "Credentials left the pod's user namespace",
    severity: Severity::Critical,
    technique: ("T1068", "Exploitation for Privilege Escalation"),
    tactic: ("TA0004", "Privilege Escalation"),
    proves: "A process that was in its pod's user namespace, or descends from one that was, has objective credentials \
             (`real_cred`) of a namespace that is neither the pod's nor below it. The kernel has no way back up: \
             setns needs CAP_SYS_ADMIN in the target, and unshare and clone only go down. Its credentials were \
             overwritten inside the kernel.",
    evidence: "`real_cred->user_ns` compared with the namespace the process's lineage was first seen in, at fork, exec, \
               exit, capability checks, namespace calls, and by the periodic sweep of all tasks. Subjective credentials \
               (`cred`) are compared too where nothing can have swapped them: at fork, exit and the return of \
               namespace calls.",
    exceptions: "None. Overlayfs and others swap `cred` for the mounter's; `real_cred`, which this rule reads, stays.",
    respond: "Treat the node as compromised: cordon it, keep it for forensics, move its workloads, rotate every secret \
              that was on it. Killing the process does not undo what it did.",
};

pub(super) fn on_task(observed: &Observed<'_>) -> Vec<Detection> {
    let task = &observed.event.task;
    if task.lineage.state != state::INSIDE {
        return Vec::new();
    }
    let was = task.lineage.userns_inum;
    let now_in = task.pod_userns.map_or(0, |ns| ns.inum);
    let who = who(observed.event);
    // the kernel tells once a lineage: what the process and its children do next is the same escape
    let (confidence, why) = if observed.reasons & reason::LEFT_USERNS != 0 && now_in != was {
        let place = if task.pod_userns.is_none() { "the host's" } else { "another" };
        let is = task.userns.inum;
        let why = format!(
            "process {who} comes from the pod's user namespace {was} and now has credentials of {place} user namespace \
             {is}; no system call leads there, so its credentials were replaced inside the kernel"
        );
        (Confidence::Certain, why)
    } else if observed.reasons & reason::ACTS_OUTSIDE != 0 {
        let why = format!(
            "process {who} comes from the pod's user namespace {was} and acts with credentials that are neither its own \
             nor of that namespace, though nothing in the kernel is at work on its behalf: its subjective credentials \
             were replaced inside the kernel"
        );
        (Confidence::High, why)
    } else {
        return Vec::new();
    };
    observed.about_the_process(Severity::Critical, confidence, why)
}
