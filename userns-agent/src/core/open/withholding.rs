//! Findings that are open and withheld: as the rules file wants it, not because names are missing.

use super::{Detection, Key, Open, OpenFindings};
use crate::core::finding::{Finding, Severity, Status};
use crate::core::policy::Why;
use crate::core::rules::RuleId;
use crate::event::CgroupId;

impl OpenFindings {
    /// Those that are not withheld.
    pub(super) fn told(&self) -> impl Iterator<Item = &Open> {
        self.open.values().filter(|open| open.is_told_of())
    }

    /// Every finding that has not ended, in order.
    pub(in crate::core) fn keys(&self) -> Vec<Key> {
        self.open.iter().filter(|(_, open)| !open.closed).map(|(key, _)| key.clone()).collect()
    }

    /// Those about this container.
    pub(in crate::core) fn about(&self, container: CgroupId) -> Vec<Key> {
        let of = self.open.iter().filter(|(_, open)| !open.closed && open.container == Some(container));
        of.map(|(key, _)| key.clone()).collect()
    }

    /// Whether a finding is known and withheld, and why.
    pub(in crate::core) fn withheld(&self, key: &Key) -> Option<&Why> {
        self.open.get(key)?.withheld.as_ref()
    }

    /// Whether a finding was told, by this run or an earlier one.
    pub(in crate::core) fn was_told(&self, key: &Key) -> bool {
        match self.open.get(key) {
            Some(open) => !open.held,
            None => self.earlier.knows(super::identify(key.0, &key.1)),
        }
    }

    /// Uses that a finding counts so far.
    pub(in crate::core) fn uses(&self, key: &Key) -> u64 {
        self.open.get(key).map_or(0, |open| {
            let Finding { capabilities, calls, .. } = &open.finding;
            let counts =
                capabilities.iter().map(|used| used.count).chain(calls.iter().map(|used| used.count));
            counts.fold(0, u64::saturating_add)
        })
    }

    /// Takes what a rule says and is not to be told; true if there is anything new to it.
    pub(in crate::core) fn withhold(
        &mut self,
        rule: RuleId,
        detection: Detection,
        container: Option<CgroupId>,
        why: Why,
    ) -> bool {
        let key = (rule, detection.scope.clone());
        if let Some(open) = self.open.get_mut(&key) {
            let grew = open.merge(&detection);
            let silenced = self.silence(&key, why);
            return grew || silenced;
        }
        let news = self.take(rule, detection, container).is_some();
        let Some(open) = self.open.get_mut(&key) else { return false };
        open.withheld = Some(why);
        // an earlier run may have told it
        open.held = open.earlier.is_none();
        open.dirty = !open.held && news;
        news
    }

    /// Folds what adds to a withheld finding in; true if there is anything new to it.
    pub(in crate::core) fn fold(&mut self, key: &Key, detection: &Detection) -> bool {
        self.open.get_mut(key).is_some_and(|open| open.merge(detection))
    }

    /// Withholds a finding from now on; true if it waited to be told.
    pub(in crate::core) fn silence(&mut self, key: &Key, why: Why) -> bool {
        let Some(open) = self.open.get_mut(key) else { return false };
        let waited = open.withheld.replace(why).is_none() && open.held;
        if waited {
            self.held.retain(|(_, held)| held != key);
        }
        waited
    }

    /// Withholds a finding no longer. What there is anew for it to rest on replaces what it rested on. True if it is to
    /// be told now; updates of one that was told come by themselves.
    pub(in crate::core) fn admit(&mut self, key: &Key, anew: Option<(Detection, Option<CgroupId>)>) -> bool {
        let Some(open) = self.open.get_mut(key) else { return false };
        open.withheld = None;
        let untold = std::mem::take(&mut open.held);
        if !untold {
            open.finding.status = Status::Updated;
        }
        let Some((detection, container)) = anew else { return untold };
        open.merge(&detection);
        let Detection { severity, confidence, time, why, task, hook, .. } = detection;
        let finding = &mut open.finding;
        (finding.severity, finding.confidence, finding.time) = (severity, confidence, time);
        (finding.why, finding.task, finding.hook) = (why, task, hook);
        open.container = container;
        true
    }

    /// Gives a finding that was not told yet another severity.
    pub(in crate::core) fn rank(&mut self, key: &Key, severity: Severity) {
        if let Some(open) = self.open.get_mut(key).filter(|open| open.held) {
            open.finding.severity = severity;
        }
    }

    /// Forgets a finding that is not true any more.
    pub(in crate::core) fn discard(&mut self, key: &Key) {
        self.drop_finding(key);
        self.held.retain(|(_, held)| held != key);
    }
}
