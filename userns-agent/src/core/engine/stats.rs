//! The engine in numbers.

use std::collections::BTreeMap;

use userns_common::kind::{Operation, Relation, verdict};

use super::Engine;
use crate::core::finding::Severity;
use crate::core::pods::Promise;
use crate::core::policy::{ExceptionView, Tally};
use crate::core::rules::RuleId;
use crate::event::AggregateKey;

/// Numbers for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Pods known.
    pub pods: usize,
    /// Of these, promised a user namespace, and promised the host's.
    pub promised: (usize, usize),
    /// Live containers known.
    pub containers: usize,
    /// Of the pods known, those that run where this kernel does not see them, by their runtime class.
    pub unobservable: usize,
    /// Verdicts about these that were not told.
    pub withheld_unobservable: u64,
    /// Runtimes' monitors at work in containers' cgroups.
    pub monitors: usize,
    /// Processes known.
    pub processes: usize,
    /// Findings open.
    pub open: usize,
    /// Of these, by rule and severity.
    pub open_by: BTreeMap<(RuleId, Severity), usize>,
    /// Bytes of steps in the flight recorder.
    pub flight_bytes: usize,
    /// Detections folded into open findings.
    pub repeated: u64,
    /// Findings of earlier runs that were found again.
    pub recognised: u64,
    /// Rows that fell out of full tables, by table.
    pub evicted: BTreeMap<&'static str, u64>,
    /// Records judged without their container, because it did not become known in time.
    pub unattributed: u64,
    /// Checks by (relation, denied), from the aggregation table.
    pub checks: BTreeMap<(&'static str, bool), u64>,
    /// What the rules file withheld.
    pub policy: Tally,
    /// Its exceptions.
    pub exceptions: Vec<ExceptionView>,
}

impl Stats {
    /// Pods that were promised this.
    #[must_use]
    pub fn pods_promised(&self, promise: Promise) -> usize {
        match promise {
            Promise::UserNamespace => self.promised.0,
            Promise::HostUsers => self.promised.1,
            Promise::Unknown => self.pods - self.promised.0 - self.promised.1,
        }
    }
}

impl Engine {
    /// The numbers as they stand.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut checks = self.past_checks.clone();
        for (key, value) in &self.checks {
            *checks.entry(check_label(key)).or_default() += value.count;
        }
        let mut evicted = self.state.evicted.clone();
        evicted.insert("findings", self.open.evicted);
        evicted.insert("flight", self.flight.evicted);
        evicted.insert("evidence", self.open.evidence_evicted);
        let mut open_by = BTreeMap::new();
        for (finding, _) in self.open.all() {
            *open_by.entry((finding.rule, finding.severity)).or_default() += 1;
        }
        let promised = |what| self.state.pods().filter(|(_, pod)| pod.promise() == what).count();
        Stats {
            pods: self.state.pods().count(),
            promised: (promised(Promise::UserNamespace), promised(Promise::HostUsers)),
            containers: self.state.containers().filter(|container| !container.id.is_empty()).count(),
            unobservable: self.state.pods().filter(|(_, pod)| self.unobservable.covers(pod)).count(),
            withheld_unobservable: self.withheld_unobservable,
            monitors: self
                .state
                .containers()
                .flat_map(|container| container.entering.values())
                .filter(|entering| self.runtimes.is_monitor(&entering.event))
                .count(),
            processes: self.state.nr_processes(),
            open: self.open.len(),
            open_by,
            flight_bytes: self.flight.bytes(),
            repeated: self.open.repeated,
            recognised: self.open.earlier.recognised,
            evicted,
            unattributed: self.unattributed,
            checks,
            policy: self.policy.tally().clone(),
            exceptions: self.policy.exceptions(self.now),
        }
    }
}

/// Labels of a row of the aggregation table.
pub(super) fn check_label(key: &AggregateKey) -> (&'static str, bool) {
    if u32::from(key.operation) != Operation::Capability as u32 {
        return ("call", key.verdict != verdict::GRANTED);
    }
    let relation = Relation::try_from(u32::from(key.relation)).map_or("unknown", Relation::name);
    (relation, key.verdict != verdict::GRANTED)
}
