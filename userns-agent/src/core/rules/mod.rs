//! The rules: one file each, one explicit list.

mod i10_nested_userns;
mod i11_attempts;
mod i12_foreign_entry;
mod i13_cgroup;
mod i14_outside_mount;
mod i1_cred_escape;
mod i2_host_root;
mod i3_not_applied;
mod i4_ids;
mod i5_host_capability;
mod i6_namespaces;
mod i7_range;
mod i8_file_ids;
mod i9_idmap;

use userns_common::kind::{Operation, state, verdict};

use super::context::Context;
use super::finding::{CallUse, Confidence, Severity};
use super::open::{Detection, Scope};
use crate::event::{AggregateKey, AggregateValue, CgroupId, Nanos, TaskEvent};

/// A rule's stable id, the invariant it guards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleId {
    /// Credentials left the pod's user namespace.
    I1,
    /// Host root in the pod past the entry grace.
    I2,
    /// User namespace not applied though declared.
    I3,
    /// Ids outside the pod's range.
    I4,
    /// Host capability used.
    I5,
    /// A namespace that is not the pod's.
    I6,
    /// The range is unsafe.
    I7,
    /// Ids for files alone outside the pod's range.
    I8,
    /// An id-mapped mount made by a pod.
    I9,
    /// A user namespace made by a pod.
    I10,
    /// Denied attempts.
    I11,
    /// A process came into the pod's namespaces from outside.
    I12,
    /// A process outside of its container's cgroup.
    I13,
    /// A program works in a mount of the host's.
    I14,
}

impl RuleId {
    /// Every rule, in order.
    pub const ALL: &'static [Self] = &[
        Self::I1,
        Self::I2,
        Self::I3,
        Self::I4,
        Self::I5,
        Self::I6,
        Self::I7,
        Self::I8,
        Self::I9,
        Self::I10,
        Self::I11,
        Self::I12,
        Self::I13,
        Self::I14,
    ];
}

/// What is said of a rule, in output and in docs/rules.md.
#[derive(Debug)]
pub struct Rule {
    /// Id as printed.
    pub id: &'static str,
    /// Name for machines.
    pub name: &'static str,
    /// Name for people.
    pub title: &'static str,
    /// Usual severity.
    pub severity: Severity,
    /// ATT&CK technique and its name; the version is [`ATTACK_VERSION`].
    pub technique: (&'static str, &'static str),
    /// ATT&CK tactic and its name.
    pub tactic: (&'static str, &'static str),
    /// What a finding proves.
    pub proves: &'static str,
    /// What it rests on.
    pub evidence: &'static str,
    /// Legitimate causes, and how they are told apart.
    pub exceptions: &'static str,
    /// What to do.
    pub respond: &'static str,
}

/// Version of MITRE ATT&CK that technique ids are taken from.
pub const ATTACK_VERSION: &str = "19.1";

/// A record, as a rule sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observed<'a> {
    /// The task and what it did.
    pub(super) event: &'a TaskEvent,
    /// When.
    pub(super) time: Nanos,
    /// Name of the hook.
    pub(super) hook: &'static str,
    /// Bits of [`crate::event::reason`].
    pub(super) reasons: u32,
}

impl Observed<'_> {
    /// What a rule says of the process that the record is about.
    fn about_the_process(&self, severity: Severity, confidence: Confidence, why: String) -> Vec<Detection> {
        let task = &self.event.task;
        vec![Detection {
            scope: Scope::Process(CgroupId(task.lineage.container), task.process),
            severity,
            confidence,
            time: self.time,
            why,
            task: Some(Box::new(self.event.clone())),
            hook: Some(self.hook),
            capabilities: Vec::new(),
            calls: Vec::new(),
        }]
    }
}

/// What is said of a rule.
#[must_use]
pub fn rule(id: RuleId) -> &'static Rule {
    match id {
        RuleId::I1 => &i1_cred_escape::RULE,
        RuleId::I2 => &i2_host_root::RULE,
        RuleId::I3 => &i3_not_applied::RULE,
        RuleId::I4 => &i4_ids::RULE,
        RuleId::I5 => &i5_host_capability::RULE,
        RuleId::I6 => &i6_namespaces::RULE,
        RuleId::I7 => &i7_range::RULE,
        RuleId::I8 => &i8_file_ids::RULE,
        RuleId::I9 => &i9_idmap::RULE,
        RuleId::I10 => &i10_nested_userns::RULE,
        RuleId::I11 => &i11_attempts::RULE,
        RuleId::I12 => &i12_foreign_entry::RULE,
        RuleId::I13 => &i13_cgroup::RULE,
        RuleId::I14 => &i14_outside_mount::RULE,
    }
}

/// Asks a rule about a record.
#[must_use]
pub(super) fn on_task(id: RuleId, observed: &Observed<'_>, context: &Context<'_>) -> Vec<Detection> {
    match id {
        RuleId::I1 => i1_cred_escape::on_task(observed),
        RuleId::I4 => i4_ids::on_task(observed, context),
        RuleId::I6 => i6_namespaces::on_task(observed),
        RuleId::I8 => i8_file_ids::on_task(observed, context),
        RuleId::I9 => i9_idmap::on_task(observed, context),
        RuleId::I10 => i10_nested_userns::on_task(observed, context),
        RuleId::I11 => i11_attempts::on_task(observed),
        RuleId::I13 => i13_cgroup::on_task(observed),
        RuleId::I14 => i14_outside_mount::on_task(observed),
        RuleId::I2 | RuleId::I3 | RuleId::I5 | RuleId::I7 | RuleId::I12 => Vec::new(),
    }
}

/// Whether a rule judges the state that a container is in; the others judge what was done.
#[must_use]
pub(super) fn judges_containers(id: RuleId) -> bool {
    matches!(id, RuleId::I2 | RuleId::I3 | RuleId::I5 | RuleId::I7 | RuleId::I12)
}

/// Asks a rule about a container, after something about it or its pod has changed.
#[must_use]
pub(super) fn on_container(id: RuleId, context: &Context<'_>) -> Vec<Detection> {
    let Some(container) = context.container else { return Vec::new() };
    match id {
        RuleId::I2 => i2_host_root::on_container(container, context),
        RuleId::I3 => i3_not_applied::on_container(container, context),
        RuleId::I5 => i5_host_capability::on_container(container, context),
        RuleId::I7 => i7_range::on_container(container, context),
        RuleId::I12 => i12_foreign_entry::on_container(container, context),
        RuleId::I1
        | RuleId::I4
        | RuleId::I6
        | RuleId::I8
        | RuleId::I9
        | RuleId::I10
        | RuleId::I11
        | RuleId::I13
        | RuleId::I14 => Vec::new(),
    }
}

/// Asks a rule about a row of the aggregation table.
#[must_use]
pub(super) fn on_aggregate(
    id: RuleId,
    key: &AggregateKey,
    value: &AggregateValue,
    context: &Context<'_>,
) -> Vec<Detection> {
    match id {
        RuleId::I5 => i5_host_capability::on_aggregate(key, value, context),
        RuleId::I9 => i9_idmap::on_aggregate(key, value, context),
        RuleId::I10 => i10_nested_userns::on_aggregate(key, value, context),
        RuleId::I11 => i11_attempts::on_aggregate(key, value),
        RuleId::I1
        | RuleId::I2
        | RuleId::I3
        | RuleId::I4
        | RuleId::I6
        | RuleId::I7
        | RuleId::I8
        | RuleId::I12
        | RuleId::I13
        | RuleId::I14 => Vec::new(),
    }
}

/// Whether programs of a container run in the host's user namespace, so that what they make below it is not made by a
/// pod that has one of its own.
fn has_host_users(context: &Context<'_>) -> bool {
    context.container.is_some_and(|container| container.host_workload.is_some())
}

/// How often programs of a container made such a call, where the row is of one that succeeded.
fn calls_counted(
    operations: &[Operation],
    severity: Severity,
    key: &AggregateKey,
    value: &AggregateValue,
    context: &Context<'_>,
) -> Vec<Detection> {
    let operation = Operation::try_from(u32::from(key.operation)).ok();
    let Some(operation) = operation.filter(|operation| operations.contains(operation)) else {
        return Vec::new();
    };
    let inside = key.workload == 1 && u32::from(key.state) == state::INSIDE;
    if key.verdict != verdict::GRANTED || !inside || has_host_users(context) {
        return Vec::new();
    }
    vec![Detection {
        scope: Scope::Container(CgroupId(key.container)),
        severity,
        confidence: Confidence::Certain,
        time: Nanos(value.last_ns),
        why: String::new(),
        task: None,
        hook: None,
        capabilities: Vec::new(),
        calls: vec![CallUse { call: operation.name(), ret: 0, count: value.count }],
    }]
}

/// `name` (pid N), for a sentence.
fn who(event: &TaskEvent) -> String {
    format!("`{}` (pid {})", event.task.comm.as_str().escape_debug(), event.task.process.pid)
}
