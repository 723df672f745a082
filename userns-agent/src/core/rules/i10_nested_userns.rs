//! I10: user namespaces made by a pod.

use userns_common::kind::{Operation, lineage, state, verdict};

use super::{Observed, Rule, calls_counted, has_host_users, who};
use crate::core::context::Context;
use crate::core::finding::{CallUse, Confidence, Severity};
use crate::core::open::{Detection, Scope};
use crate::event::{AggregateKey, AggregateValue, CgroupId};

pub(super) const RULE: Rule = Rule {
    id: "I10",
    name: "nested_userns",
    title: "A user namespace made by a pod",
    severity: Severity::Info,
    technique: ("T1611", "Escape to Host"),
    tactic: ("TA0004", "Privilege Escalation"),
    proves: "A program in a pod's user namespace made another one below it, in which it has all capabilities. That breaks no \
             promise, but brings much of the kernel within reach (mounts, netfilter) that is not otherwise: most exploits of \
             the kernel from containers begin with it.",
    evidence: "unshare, and clone and clone3, with CLONE_NEWUSER, that succeeded; the level of the first one made and the id \
               of who made it. Counted in the kernel: one record tells of the first, the rest are counts.",
    exceptions: "Rootless container engines, bubblewrap, browsers, and systemd for services with `PrivateUsers=` make them. A \
                 runtime that makes the pod's own namespace does so before the container's first program. Containers whose \
                 programs run in the host's user namespace are left out.",
    respond: "Nothing, if the pod is meant to. Else keep it from doing so: without CAP_SYS_ADMIN in the pod, the container \
              runtime's default seccomp profile refuses it.",
};

const MADE: [Operation; 2] = [Operation::CloneNewUser, Operation::UnshareNewUser];

pub(super) fn on_task(observed: &Observed<'_>, context: &Context<'_>) -> Vec<Detection> {
    let task = &observed.event.task;
    let Some(call) = observed.event.call.as_ref().filter(|call| MADE.contains(&call.operation)) else {
        return Vec::new();
    };
    let workload = task.lineage.flags & lineage::WORKLOAD != 0 && !has_host_users(context);
    if task.lineage.state != state::INSIDE || !workload || verdict::of(call.ret) != verdict::GRANTED {
        return Vec::new();
    }
    let below_the_pods = task.userns.level.saturating_sub(context.reference.level + 1);
    let why = format!(
        "process {} came into user namespace {} by {}, {below_the_pods} below the pod's {}, made by id {} of the host",
        who(observed.event),
        task.userns.inum,
        call.operation.name(),
        task.lineage.userns_inum,
        task.userns.owner
    );
    vec![Detection {
        scope: Scope::Container(CgroupId(task.lineage.container)),
        severity: Severity::Info,
        confidence: Confidence::Certain,
        time: observed.time,
        why,
        task: Some(Box::new(observed.event.clone())),
        hook: Some(observed.hook),
        capabilities: Vec::new(),
        calls: vec![CallUse { call: call.operation.name(), ret: 0, count: 1 }],
    }]
}

pub(super) fn on_aggregate(
    key: &AggregateKey,
    value: &AggregateValue,
    context: &Context<'_>,
) -> Vec<Detection> {
    calls_counted(&MADE, Severity::Info, key, value, context)
}
