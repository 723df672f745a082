//! What the rules file withholds, and what is told of it after all.

use super::{Engine, Output, refs};
use crate::core::finding::Finding;
use crate::core::open::{Detection, Key};
use crate::core::policy::{About, Reason, Ruling, Why};
use crate::core::rules::{self, RuleId};
use crate::event::{CgroupId, Policy, TaskEvent};

impl Engine {
    /// The same, where this policy holds.
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy.set(policy, self.now);
        self
    }

    /// Goes by another policy from now on.
    pub(super) fn follow(&mut self, policy: Policy, out: &mut Vec<Output>) {
        self.policy.set(policy, self.now);
        for key in self.open.keys() {
            if let Some(severity) = self.open.get(&key).map(|(finding, _)| finding.severity) {
                self.open.rank(&key, self.policy.rank(key.0, severity));
            }
        }
        self.reconsider(self.open.keys(), out);
    }

    /// Takes what a rule says. Returns the finding's key if it is to be told now, if need be after a wait for names.
    pub(super) fn admit(
        &mut self,
        rule: RuleId,
        mut detection: Detection,
        container: Option<CgroupId>,
    ) -> Option<Key> {
        let key = (rule, detection.scope.clone());
        if self.policy.is_default() && self.open.withheld(&key).is_none() {
            return self.open.take(rule, detection, container);
        }
        detection.severity = self.policy.rank(rule, detection.severity);
        if let Ruling::Withhold(why) = self.ruling(rule, detection.task.as_deref(), container) {
            // a finding that rests on something else stays what it is
            let stays = self.open.withheld(&key).is_none() && self.stands(&key);
            if !stays && self.open.withhold(rule, detection, container, why.clone()) {
                self.policy.count(rule, why, self.now);
            }
            return None;
        }
        let counted = self.open.withheld(&key).is_some() || self.open.get(&key).is_none();
        if counted && self.policy.threshold(rule) > 1 && !self.open.was_told(&key) {
            let why = Why::Rule(Reason::Threshold);
            let news = self.open.withhold(rule, detection, container, why.clone());
            if self.has_too_few(&key) {
                if news {
                    self.policy.count(rule, why, self.now);
                }
                return None;
            }
            return self.open.admit(&key, None).then_some(key);
        }
        if self.open.withheld(&key).is_some() {
            return self.open.admit(&key, Some((detection, container))).then_some(key);
        }
        self.open.take(rule, detection, container)
    }

    /// Takes what only adds to a finding.
    pub(super) fn add(&mut self, rule: RuleId, mut detection: Detection, out: &mut Vec<Output>) {
        detection.severity = self.policy.rank(rule, detection.severity);
        let key = (rule, detection.scope.clone());
        let Some(why) = self.open.withheld(&key).cloned() else {
            let _ = self.open.repeat(rule, &detection);
            return;
        };
        if self.open.fold(&key, &detection) {
            let waits_for_more = why == Why::Rule(Reason::Threshold);
            if waits_for_more && !self.has_too_few(&key) {
                self.reconsider(vec![key], out);
            } else {
                self.policy.count(rule, why, self.now);
            }
        }
    }

    /// Asks again what becomes of these findings.
    pub(super) fn reconsider(&mut self, keys: Vec<Key>, out: &mut Vec<Output>) {
        for key in keys {
            if self.rule_out(&key) || self.open.withheld(&key).is_none() {
                continue;
            }
            if !self.is_still_true(&key) {
                self.open.discard(&key);
            } else if self.open.admit(&key, None) {
                self.announce(&key, out);
            }
        }
    }

    /// Withholds a finding if that is what becomes of it now; true if it is withheld.
    pub(super) fn rule_out(&mut self, key: &Key) -> bool {
        let Some((finding, container)) = self.open.get(key) else { return false };
        let mut ruling = self.ruling(key.0, finding.task.as_deref(), container);
        if !matches!(ruling, Ruling::Withhold(_)) && !self.open.was_told(key) && self.has_too_few(key) {
            ruling = Ruling::Withhold(Why::Rule(Reason::Threshold));
        }
        let Ruling::Withhold(why) = ruling else { return false };
        if self.open.silence(key, why.clone()) {
            self.policy.count(key.0, why, self.now);
        }
        true
    }

    /// Whether an exception may match once more is known.
    pub(super) fn is_undecided(&self, finding: &Finding) -> bool {
        let Finding { rule, container, pod, task, .. } = finding;
        let about = About { container: container.as_ref(), pod: pod.as_ref(), task: task.as_deref() };
        self.policy.ruling(*rule, about, self.now) == Ruling::Wait
    }

    fn ruling(&self, rule: RuleId, task: Option<&TaskEvent>, container: Option<CgroupId>) -> Ruling {
        if self.policy.is_default() {
            return Ruling::Tell;
        }
        let (container, pod) = refs(&self.context(container));
        self.policy.ruling(rule, About { container: container.as_ref(), pod: pod.as_ref(), task }, self.now)
    }

    /// Whether there is such a finding, and what it rests on is to be told.
    fn stands(&self, key: &Key) -> bool {
        let Some((finding, container)) = self.open.get(key) else { return false };
        !matches!(self.ruling(key.0, finding.task.as_deref(), container), Ruling::Withhold(_))
    }

    fn has_too_few(&self, key: &Key) -> bool {
        self.open.uses(key) < self.policy.threshold(key.0)
    }

    /// Whether a withheld finding still holds. What is in a state is judged anew; what was done stays done for as long
    /// as the container is there.
    fn is_still_true(&self, key: &Key) -> bool {
        let Some((_, container)) = self.open.get(key) else { return false };
        if !container.is_some_and(|id| self.state.is_live(id)) {
            return false;
        }
        let found = rules::on_container(key.0, &self.context(container));
        !rules::judges_containers(key.0) || found.iter().any(|detection| detection.scope == key.1)
    }
}
