//! I5: host capability used.

use userns_common::kind::{Operation, Relation, state, verdict};

use super::{Rule, who};
use crate::core::context::Context;
use crate::core::finding::{CapabilityUse, Confidence, Severity};
use crate::core::open::{Detection, Scope};
use crate::core::state::Container;
use crate::event::{AggregateKey, AggregateValue, CgroupId};

pub(super) const RULE: Rule = Rule {
    id: "I5",
    name: "host_capability_used",
    title: "Capability over the host used in a pod",
    severity: Severity::High,
    technique: ("T1611", "Escape to Host"),
    tactic: ("TA0004", "Privilege Escalation"),
    proves: "A process of a pod that was promised a user namespace was granted a capability over the host's user \
             namespace, on its own credentials: the promise is not only broken, it is being made use of.",
    evidence: "`cap_capable` with the target namespace the host's, verdict granted, and the checked credentials the \
               task's own `real_cred`.",
    exceptions: "Checks on swapped credentials (overlayfs, file-system back ends) are left out: they are the kernel's \
                 own. So is CAP_SYS_ADMIN asked by memory accounting at every allocation, and all a runtime does \
                 within the grace period.",
    respond: "The names of the capabilities say what was done: CAP_SYS_ADMIN with setns or mount is an escape, \
              CAP_SYS_PTRACE a look at other processes. Stop the pod and examine the node.",
};

pub(super) fn on_container(container: &Container, context: &Context<'_>) -> Vec<Detection> {
    let Some((time, event)) = &container.host_capability_user else { return Vec::new() };
    if !context.promised() {
        return Vec::new();
    }
    let capabilities: Vec<CapabilityUse> = container.host_capabilities.values().cloned().collect();
    let names: Vec<&str> = capabilities.iter().map(|used| name(used.capability)).collect();
    let why = format!(
        "process {} was granted {} over the host's user namespace, though the pod was promised one of its own",
        who(event),
        names.join(", ")
    );
    vec![Detection {
        scope: Scope::Container(container.cgroup),
        severity: Severity::High,
        confidence: Confidence::High,
        time: *time,
        why,
        task: Some(event.clone()),
        hook: Some("cap_capable"),
        capabilities,
        calls: Vec::new(),
    }]
}

pub(super) fn on_aggregate(
    key: &AggregateKey,
    value: &AggregateValue,
    context: &Context<'_>,
) -> Vec<Detection> {
    let over_host = u32::from(key.relation) == Relation::Host as u32 && key.verdict == verdict::GRANTED;
    let capability = u32::from(key.operation) == Operation::Capability as u32;
    if !over_host || !capability || u32::from(key.state) != state::ENTERING {
        return Vec::new();
    }
    let code = u32::from(key.code);
    // the row counts what runtimes did as well: it only adds to what a record has told
    let Some(known) = context.container.and_then(|container| container.host_capabilities.get(&code)) else {
        return Vec::new();
    };
    let mut found: Vec<Detection> =
        context.container.map(|container| on_container(container, context)).unwrap_or_default();
    for detection in &mut found {
        detection.time = crate::event::Nanos(value.last_ns);
        detection.scope = Scope::Container(CgroupId(key.container));
        detection.capabilities = vec![CapabilityUse { count: value.count.max(known.count), ..known.clone() }];
    }
    found
}

pub(super) fn name(capability: u32) -> &'static str {
    userns_common::caps::name(capability).unwrap_or("an unknown capability")
}
