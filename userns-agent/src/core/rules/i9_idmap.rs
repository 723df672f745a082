//! I9: an id-mapped mount made by a pod.

use userns_common::kind::{Operation, Relation, lineage, state, verdict};

use super::{Observed, Rule, calls_counted, has_host_users, who};
use crate::core::context::Context;
use crate::core::finding::{CallUse, Confidence, Severity};
use crate::core::open::{Detection, Scope};
use crate::event::{AggregateKey, AggregateValue, CgroupId};

pub(super) const RULE: Rule = Rule {
    id: "I9",
    name: "idmap_by_pod",
    title: "An id-mapped mount made by a pod",
    severity: Severity::Info,
    technique: ("T1611", "Escape to Host"),
    tactic: ("TA0004", "Privilege Escalation"),
    proves: "A program in a pod's user namespace made a mount that shows files as another user's. The kernel grants that on \
             file systems that were mounted in the pod's own user namespace or one below it: a fact about the pod, and \
             info. Critical if the file system belongs to the host's user namespace or another pod's: that takes \
             CAP_SYS_ADMIN over its owner, which nothing in the pod can have.",
    evidence: "mount_setattr and open_tree_attr with MOUNT_ATTR_IDMAP that succeeded, and the user namespace that the file \
               system of the mount belongs to (`s_user_ns`), where the call names the mount by its descriptor alone, as \
               container runtimes do. Counted in the kernel: one record tells of the first, the rest are counts. Refused \
               calls are I11's matter.",
    exceptions: "Container engines in a pod (podman, buildkit) and systemd-nspawn map ids for their own containers. A \
                 program that has another thread put another file behind the descriptor during the call can make its own \
                 pod's finding critical.",
    respond: "Info: nothing, if the pod is meant to run containers. Critical: treat the node as compromised, as for I1.",
};

const IDMAPS: [Operation; 2] = [Operation::MountSetattr, Operation::OpenTreeAttr];

pub(super) fn on_task(observed: &Observed<'_>, context: &Context<'_>) -> Vec<Detection> {
    let task = &observed.event.task;
    let Some(call) = observed.event.call.as_ref().filter(|call| IDMAPS.contains(&call.operation)) else {
        return Vec::new();
    };
    let workload = task.lineage.flags & lineage::WORKLOAD != 0;
    if task.lineage.state != state::INSIDE || !workload || verdict::of(call.ret) != verdict::GRANTED {
        return Vec::new();
    }
    let (who, name) = (who(observed.event), call.operation.name());
    if matches!(call.relation, Relation::Host | Relation::Other) {
        let why = format!(
            "process {who} mapped the ids of a file system by {name} that belongs to user namespace {}, which is neither \
             the pod's {} nor below it",
            call.target_inum, task.lineage.userns_inum
        );
        return observed.about_the_process(Severity::Critical, Confidence::High, why);
    }
    if has_host_users(context) {
        return Vec::new();
    }
    vec![Detection {
        scope: Scope::Container(CgroupId(task.lineage.container)),
        severity: Severity::Info,
        confidence: Confidence::Certain,
        time: observed.time,
        why: format!("process {who} made an id-mapped mount by {name}"),
        task: Some(Box::new(observed.event.clone())),
        hook: Some(observed.hook),
        capabilities: Vec::new(),
        calls: vec![CallUse { call: name, ret: 0, count: 1 }],
    }]
}

pub(super) fn on_aggregate(
    key: &AggregateKey,
    value: &AggregateValue,
    context: &Context<'_>,
) -> Vec<Detection> {
    if u32::from(key.relation) == Relation::Pod as u32 {
        calls_counted(&IDMAPS, Severity::Info, key, value, context)
    } else {
        Vec::new()
    }
}
