//! I11: denied attempts.

use userns_common::kind::{Operation, Relation, lineage, state, verdict};

use super::i5_host_capability::name;
use super::{Observed, Rule, who};
use crate::core::finding::{CallUse, CapabilityUse, Confidence, Severity};
use crate::core::open::{Detection, Scope};
use crate::event::{AggregateKey, AggregateValue, Call, CgroupId, Nanos};

pub(super) const RULE: Rule = Rule {
    id: "I11",
    name: "denied_attempts",
    title: "Denied attempts to reach the host",
    severity: Severity::Low,
    technique: ("T1611", "Escape to Host"),
    tactic: ("TA0004", "Privilege Escalation"),
    proves: "A program in a pod's user namespace asked for something that only the host may grant, and was denied: the \
             user namespace did its work. One such denial is a probe at most; many different ones are an intruder \
             looking for a way out.",
    evidence: "Denied `cap_capable` over the host's user namespace for capabilities that ordinary software does not ask \
               for, and setns, unshare, mount_setattr and open_tree_attr that were refused. Counted in the kernel: one \
               record tells of the first, the rest are counts.",
    exceptions: "Left out as everyday software: CAP_SYS_ADMIN at memory accounting, at filters for system calls and at \
                 extended attributes (systemd, browsers, ls), CAP_SYS_PTRACE while listing processes (ps, lsof), CAP_BPF \
                 (systemd and container managers), setns to the time namespace (crun), CAP_SYS_NICE, CAP_SYS_RESOURCE, \
                 CAP_NET_ADMIN, CAP_KILL, CAP_MKNOD and others that are asked for and done without. Sandboxes (bubblewrap, \
                 browsers) that try unshare and cope with its refusal do show.",
    respond: "Look at which program asked, and for what. No hurry while nothing else is found; a reason to look closer \
              when the program is a shell or was written to a temporary directory.",
};

const EPERM: i32 = -1;

pub(super) fn on_task(observed: &Observed<'_>) -> Vec<Detection> {
    let task = &observed.event.task;
    let Some(call) = &observed.event.call else { return Vec::new() };
    // what a runtime tries on its way in, before the container's first program, is its own business
    let workload = task.lineage.flags & lineage::WORKLOAD != 0;
    if task.lineage.state != state::INSIDE || !workload || verdict::of(call.ret) != verdict::DENIED {
        return Vec::new();
    }
    let mut detection = Detection {
        scope: Scope::Container(CgroupId(task.lineage.container)),
        severity: Severity::Low,
        confidence: Confidence::High,
        time: observed.time,
        why: String::new(),
        task: Some(Box::new(observed.event.clone())),
        hook: Some(observed.hook),
        capabilities: Vec::new(),
        calls: Vec::new(),
    };
    detection.why = format!("process {} was denied {}", who(observed.event), what(call, &mut detection));
    vec![detection]
}

fn what(call: &Call, detection: &mut Detection) -> String {
    match call.capability {
        Some(capability) => {
            let used = CapabilityUse { capability, granted: false, count: 1, syscall: call.syscall };
            detection.capabilities.push(used);
            format!("{} over the host's user namespace", name(capability))
        }
        None => {
            let call_name = call.operation.name();
            detection.calls.push(CallUse { call: call_name, ret: call.ret, count: 1 });
            format!("the call {call_name}")
        }
    }
}

pub(super) fn on_aggregate(key: &AggregateKey, value: &AggregateValue) -> Vec<Detection> {
    let Ok(operation) = Operation::try_from(u32::from(key.operation)) else { return Vec::new() };
    let attempt = key.verdict == verdict::DENIED && key.workload == 1 && key.everyday == 0;
    if !attempt || u32::from(key.state) != state::INSIDE {
        return Vec::new();
    }
    let mut detection = Detection {
        scope: Scope::Container(CgroupId(key.container)),
        severity: Severity::Low,
        confidence: Confidence::High,
        time: Nanos(value.last_ns),
        why: String::new(),
        task: None,
        hook: None,
        capabilities: Vec::new(),
        calls: Vec::new(),
    };
    if operation == Operation::Capability {
        let attempt = userns_common::caps::holds(userns_common::caps::ATTEMPTS, u32::from(key.code));
        if u32::from(key.relation) != Relation::Host as u32 || !attempt {
            return Vec::new();
        }
        let syscall = u32::try_from(value.last_syscall).ok();
        let capability = u32::from(key.code);
        detection.capabilities.push(CapabilityUse {
            capability,
            granted: false,
            count: value.count,
            syscall,
        });
    } else {
        detection.calls.push(CallUse { call: operation.name(), ret: EPERM, count: value.count });
    }
    vec![detection]
}
