//! A finding's line.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Envelope;
use super::evidence::{End, Response, StepLine};
use super::process::{Extents, Process, SystemCall, recorded};
use crate::core::finding::{CallUse, CameFrom, CapabilityUse, ContainerRef, Finding, PodRef};
use crate::core::rules::{ATTACK_VERSION, Rule};
use crate::event::{Call, ContainerKind, PodSource};
use crate::sink::names;
use crate::sink::report::WallClock;

/// The line.
#[derive(Serialize)]
pub(super) struct FindingLine<'a> {
    #[serde(flatten)]
    envelope: Envelope<'a>,
    finding: Head<'a>,
    pod: Option<Pod<'a>>,
    container: Option<Container<'a>>,
    from: Option<Origin<'a>>,
    process: Option<Process<'a>>,
    hook: Option<&'static str>,
    operation: Option<Operation>,
    capabilities: Vec<Capability>,
    calls: Vec<UsedCall>,
    evidence: Vec<StepLine<'a>>,
    evidence_omitted: u64,
    response: Response,
}

#[derive(Serialize)]
struct Head<'a> {
    id: String,
    status: &'static str,
    rule: RuleHead,
    attack: Attack,
    why: &'a str,
    count: u64,
    first_seen: String,
    last_seen: String,
    unknown: &'a [&'static str],
    resolved: Option<End>,
}

#[derive(Serialize)]
struct RuleHead {
    id: &'static str,
    name: &'static str,
    title: &'static str,
    severity: &'static str,
    confidence: &'static str,
}

#[derive(Serialize)]
struct Attack {
    version: &'static str,
    tactic: Named,
    technique: Named,
}

#[derive(Serialize)]
struct Named {
    id: &'static str,
    name: &'static str,
}

impl From<(&'static str, &'static str)> for Named {
    fn from((id, name): (&'static str, &'static str)) -> Self {
        Self { id, name }
    }
}

#[derive(Serialize)]
pub(super) struct Pod<'a> {
    uid: &'a str,
    source: Option<&'static str>,
    namespace: Option<&'a str>,
    name: Option<&'a str>,
    labels: Option<&'a BTreeMap<String, String>>,
    owner: Option<Owner<'a>>,
    service_account: Option<&'a str>,
    runtime_class: Option<&'a str>,
    host_users: Option<bool>,
    host_network: Option<bool>,
    host_pid: Option<bool>,
    host_ipc: Option<bool>,
    recorded_uid_map: Option<Extents>,
}

#[derive(Serialize)]
struct Owner<'a> {
    kind: &'a str,
    name: &'a str,
}

impl<'a> Pod<'a> {
    pub(super) fn new(pod: &'a PodRef) -> Self {
        Self {
            uid: pod.uid.as_str(),
            source: pod.source.map(PodSource::name),
            namespace: pod.namespace.as_deref(),
            name: pod.name.as_deref(),
            // without a Pod object there are no labels to know of
            labels: pod.name.is_some().then_some(&pod.labels),
            owner: pod.owner.as_ref().map(|owner| Owner { kind: &owner.kind, name: &owner.name }),
            service_account: pod.service_account.as_deref(),
            runtime_class: pod.runtime_class.as_deref(),
            host_users: pod.host_users,
            host_network: pod.host_namespaces.map(|host| host.network),
            host_pid: pod.host_namespaces.map(|host| host.pid),
            host_ipc: pod.host_namespaces.map(|host| host.ipc),
            recorded_uid_map: recorded(&pod.recorded_uid_map),
        }
    }
}

#[derive(Serialize)]
pub(super) struct Container<'a> {
    id: &'a str,
    name: Option<&'a str>,
    kind: Option<&'static str>,
    image: Option<&'a str>,
    image_digest: Option<&'a str>,
    runtime: Option<&'static str>,
    cgroup: ContainerCgroup<'a>,
}

#[derive(Serialize)]
struct ContainerCgroup<'a> {
    id: u64,
    path: &'a str,
}

impl<'a> Container<'a> {
    pub(super) fn new(container: &'a ContainerRef) -> Self {
        let cgroup = ContainerCgroup { id: container.cgroup.0, path: &container.cgroup_path };
        Self {
            id: &container.id,
            name: container.name.as_deref(),
            kind: container.kind.map(ContainerKind::name),
            image: container.image.as_deref(),
            image_digest: container.image_digest.as_deref(),
            runtime: container.runtime,
            cgroup,
        }
    }
}

/// Where the process comes from.
#[derive(Serialize)]
struct Origin<'a> {
    pod: Option<Pod<'a>>,
    container: Container<'a>,
}

impl<'a> Origin<'a> {
    fn new(from: &'a CameFrom) -> Self {
        Self { pod: from.pod.as_ref().map(Pod::new), container: Container::new(&from.container) }
    }
}

#[derive(Serialize)]
struct Operation {
    name: &'static str,
    capability: Option<String>,
    ret: i32,
    error: Option<&'static str>,
    syscall: Option<SystemCall>,
    flags: Vec<String>,
    target: Target,
}

/// The user namespace that the operation was asked over.
#[derive(Serialize)]
struct Target {
    relation: &'static str,
    inode: Option<u32>,
    level: Option<u32>,
}

impl Operation {
    fn new(call: &Call) -> Self {
        let known = call.target_inum != 0;
        Self {
            name: call.operation.name(),
            capability: call.capability.map(names::capability),
            ret: call.ret,
            error: names::error(call.ret),
            syscall: call.syscall.map(SystemCall::new),
            flags: names::operation_flags(call.operation, call.flags),
            target: Target {
                relation: call.relation.name(),
                inode: known.then_some(call.target_inum),
                level: known.then_some(call.target_level),
            },
        }
    }
}

#[derive(Serialize)]
struct Capability {
    name: String,
    granted: bool,
    count: u64,
    syscall: Option<SystemCall>,
}

impl Capability {
    fn new(used: &CapabilityUse) -> Self {
        Self {
            name: names::capability(used.capability),
            granted: used.granted,
            count: used.count,
            syscall: used.syscall.map(SystemCall::new),
        }
    }
}

#[derive(Serialize)]
struct UsedCall {
    name: &'static str,
    ret: i32,
    error: Option<&'static str>,
    count: u64,
}

impl UsedCall {
    fn new(used: &CallUse) -> Self {
        Self { name: used.call, ret: used.ret, error: names::error(used.ret), count: used.count }
    }
}

impl<'a> FindingLine<'a> {
    pub(super) fn new(envelope: Envelope<'a>, finding: &'a Finding, rule: &Rule, clock: WallClock) -> Self {
        let task = finding.task.as_deref();
        let response = Response::new(finding, rule, envelope.node);
        Self {
            envelope,
            finding: Head {
                id: finding.id.to_string(),
                status: finding.status.name(),
                rule: RuleHead {
                    id: rule.id,
                    name: rule.name,
                    title: rule.title,
                    severity: finding.severity.name(),
                    confidence: finding.confidence.name(),
                },
                attack: Attack {
                    version: ATTACK_VERSION,
                    tactic: rule.tactic.into(),
                    technique: rule.technique.into(),
                },
                why: &finding.why,
                count: finding.count,
                first_seen: clock.rfc3339(finding.first),
                last_seen: clock.rfc3339(finding.time),
                unknown: &finding.unknown,
                resolved: End::new(finding, clock),
            },
            pod: finding.pod.as_ref().map(Pod::new),
            container: finding.container.as_ref().map(Container::new),
            from: finding.from.as_deref().map(Origin::new),
            process: task.map(|event| Process::new(event, clock)),
            hook: finding.hook,
            operation: task.and_then(|event| event.call.as_ref()).map(Operation::new),
            capabilities: finding.capabilities.iter().map(Capability::new).collect(),
            calls: finding.calls.iter().map(UsedCall::new).collect(),
            evidence: finding.evidence.iter().map(|step| StepLine::new(step, clock)).collect(),
            evidence_omitted: finding.evidence_omitted,
            response,
        }
    }
}
