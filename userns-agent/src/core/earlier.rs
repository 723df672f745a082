//! Findings of earlier runs: what was told before the agent was restarted, until it is found again.

use std::collections::BTreeMap;

use super::finding::{CallUse, CapabilityUse, Finding, FindingId, Severity, Status};
use super::windows::KEEP_NS;
use crate::event::{CgroupId, Nanos, Told};

/// Findings told by earlier runs and not found again yet.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    told: BTreeMap<FindingId, Told>,
    since: Nanos,
    /// Findings that were found again.
    pub(super) recognised: u64,
}

impl Earlier {
    /// Takes what earlier runs told.
    pub(super) fn remember(&mut self, told: Vec<Told>, now: Nanos) {
        self.since = now;
        self.told.extend(told.into_iter().map(|told| (FindingId(told.id), told)));
    }

    /// What was told of this finding, if it was. It is this run's finding from now on.
    pub(super) fn recognise(&mut self, id: FindingId) -> Option<Told> {
        let told = self.told.remove(&id)?;
        self.recognised += 1;
        Some(told)
    }

    /// Whether an earlier run told this finding, and this one has not found it again yet.
    pub(super) fn knows(&self, id: FindingId) -> bool {
        self.told.contains_key(&id)
    }

    /// Forgets what was told of containers that are gone.
    pub(super) fn forget(&mut self, containers: &[CgroupId]) {
        self.told.retain(|_, told| !containers.contains(&told.container));
    }

    /// A walk that began at `started` knows every container there is: what was told of others is forgotten, once
    /// they have had as long to come back under a known finding as any container that goes. Returns those others.
    pub(super) fn walked(&mut self, started: Nanos, known: impl Fn(CgroupId) -> bool) -> Vec<CgroupId> {
        if self.told.is_empty() || started.0.saturating_sub(self.since.0) < KEEP_NS {
            return Vec::new();
        }
        let mut gone: Vec<CgroupId> =
            self.told.values().map(|told| told.container).filter(|container| !known(*container)).collect();
        gone.sort_unstable();
        gone.dedup();
        self.forget(&gone);
        gone
    }
}

/// Makes a finding the continuation of what was told of it.
pub(super) fn resume(finding: &mut Finding, told: &Told) {
    finding.status = Status::Updated;
    finding.time = told.last;
    finding.first = told.first;
    finding.count = told.count;
    finding.severity = Severity::of_rank(told.severity).unwrap_or(finding.severity);
    finding.capabilities = told
        .capabilities
        .iter()
        .map(|used| CapabilityUse {
            capability: used.capability,
            granted: used.granted,
            count: used.count,
            syscall: used.syscall,
        })
        .collect();
    finding.calls = told
        .calls
        .iter()
        .map(|used| CallUse { call: used.operation.name(), ret: used.ret, count: used.count })
        .collect();
}

/// How often a capability was used in earlier runs: what is counted now begins at zero.
pub(super) fn capability_count(told: Option<&Told>, used: &CapabilityUse) -> u64 {
    let mut told = told.into_iter().flat_map(|told| &told.capabilities);
    told.find(|old| (old.capability, old.granted) == (used.capability, used.granted))
        .map_or(0, |old| old.count)
}

/// As [`capability_count`], of a namespace operation.
pub(super) fn call_count(told: Option<&Told>, used: &CallUse) -> u64 {
    let mut told = told.into_iter().flat_map(|told| &told.calls);
    told.find(|old| (old.operation.name(), old.ret) == (used.call, used.ret)).map_or(0, |old| old.count)
}
