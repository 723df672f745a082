//! I3: user namespace not applied though declared.

use super::{Rule, who};
use crate::core::context::Context;
use crate::core::finding::{Confidence, Severity};
use crate::core::open::{Detection, Scope};
use crate::core::pods::PromisedBy;
use crate::core::state::Container;
use crate::event::PodSource;

pub(super) const RULE: Rule = Rule {
    id: "I3",
    name: "userns_not_applied",
    title: "User namespace promised but not applied",
    severity: Severity::High,
    technique: ("T1610", "Deploy Container"),
    tactic: ("TA0002", "Execution"),
    proves: "The first program of a container ran with the host's user namespace, though kubelet recorded a range for \
             the pod, its spec says `hostUsers: false`, or kubelet asked the container runtime for one: root in the container is root on the host.",
    evidence: "The final credentials at exec, in a mount namespace other than that of whoever started the container; \
               kubelet's record, the Pod object, or the sandbox in the CRI.",
    exceptions: "Runtimes that run pods in virtual machines (Kata) keep helpers of their own on the host. They do not \
                 advertise user namespaces, so kubelet refuses such pods before they start; those of \
                 `unobservable_runtimes` are not judged in any case.",
    respond: "Stop the pod. Upgrade the component that ignores the field: containerd before 2.0 and kubelet before 1.30 \
              do so silently; `userns-agent ps` shows which other pods of the node are concerned.",
};

pub(super) fn on_container(container: &Container, context: &Context<'_>) -> Vec<Detection> {
    let Some((time, event)) = &container.host_workload else { return Vec::new() };
    let promised_by = context.pod.and_then(|(_, pod)| pod.promised_by());
    let Some(promised_by) = promised_by.filter(|_| container.userns.is_none()) else { return Vec::new() };
    let why = format!(
        "{}, but process {} of the container runs in the host's user namespace {}",
        says(promised_by),
        who(event),
        event.task.userns.inum
    );
    vec![Detection {
        scope: Scope::Container(container.cgroup),
        severity: Severity::High,
        confidence: Confidence::High,
        time: *time,
        why,
        task: Some(event.clone()),
        hook: None,
        capabilities: Vec::new(),
        calls: Vec::new(),
    }]
}

fn says(promised_by: PromisedBy) -> &'static str {
    match promised_by {
        PromisedBy::Record => "kubelet recorded a user namespace for the pod",
        PromisedBy::Spec(PodSource::Api) => "the pod's spec, by the API server, says hostUsers: false",
        PromisedBy::Spec(PodSource::KubeletApi) => "the pod's spec, by kubelet, says hostUsers: false",
        PromisedBy::Spec(PodSource::PodsFile) => "the pod's spec, by the pods file, says hostUsers: false",
        // the CRI has no specs: what it has is the request
        PromisedBy::Spec(PodSource::Cri) | PromisedBy::Request => {
            "kubelet asked the runtime for a user namespace for the pod"
        }
    }
}
