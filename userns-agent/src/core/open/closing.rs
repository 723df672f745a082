//! What becomes of open findings when what they are about goes.

use std::sync::Arc;

use super::{Key, Open, OpenFindings, Scope};
use crate::core::finding::Finding;
use crate::core::flight::{Chain, FIRST_STEPS, MAX_TOLD, Step};
use crate::core::rules::RuleId;
use crate::core::windows::LOOK_BACK_NS;
use crate::event::{CgroupId, Lineage, Nanos, PodUid, origin, reason};

/// Steps of evidence that all open findings together keep; the oldest finding's go first.
pub(in crate::core) const MAX_EVIDENCE: usize = 8192;

/// What becomes of a finding when a container goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::core) enum Fate {
    /// It is over, for this reason.
    Over(&'static str),
    /// It is this container's from now on.
    Passes(CgroupId),
    /// Nothing shows that it is over: a process left the container's cgroup.
    Stays,
}

impl OpenFindings {
    /// Findings that a container of this pod, going now, has a part in, and what becomes of each. `sibling`: a
    /// container of the pod that lives.
    #[must_use]
    pub(in crate::core) fn fates(
        &self,
        gone: CgroupId,
        pod: Option<&PodUid>,
        sibling: Option<CgroupId>,
    ) -> Vec<(Key, Fate)> {
        let fate = |(key, open): (&Key, &Open)| {
            let own = open.container == Some(gone);
            let fate = match (&key.1, sibling) {
                _ if open.closed => return None,
                (Scope::Pod(_), Some(sibling)) if own => Fate::Passes(sibling),
                (Scope::Pod(_), None) if own => Fate::Over("the pod is gone"),
                (Scope::Pods(one, other), sibling) if [one, other].iter().any(|uid| Some(*uid) == pod) => {
                    match sibling {
                        None => Fate::Over("one of the two pods is gone"),
                        Some(sibling) if own => Fate::Passes(sibling),
                        Some(_) => return None,
                    }
                }
                (Scope::Process(..), _) if own && self.is_outside(key, open) => Fate::Stays,
                (Scope::Process(..) | Scope::Container(_), _) if own => Fate::Over("the container is gone"),
                _ => return None,
            };
            Some((key.clone(), fate))
        };
        self.open.iter().filter_map(fate).collect()
    }

    /// Whether a finding's process is out of its container's cgroup, so that the end of that proves nothing.
    fn is_outside(&self, key: &Key, open: &Open) -> bool {
        let lineage = open.finding.task.as_ref().map(|event| event.task.lineage);
        let told =
            |lineage: &Lineage| lineage.origin != origin::FOREIGN && lineage.told & reason::LEFT_CGROUP != 0;
        key.0 == RuleId::I13
            || lineage.as_ref().is_some_and(told)
            || self.open.contains_key(&(RuleId::I13, key.1.clone()))
    }

    /// Makes a finding another container's.
    pub(in crate::core) fn pass(&mut self, key: &Key, container: CgroupId) {
        if let Some(open) = self.open.get_mut(key) {
            open.container = Some(container);
        }
    }

    /// Keeps a finding open whatever becomes of its container, with what is known of that.
    pub(in crate::core) fn keep(&mut self, key: &Key, described: Finding) {
        if let Some(open) = self.open.get_mut(key) {
            open.stays = true;
            open.finding.container = described.container;
            open.finding.pod = described.pod;
            open.finding.from = described.from;
            open.finding.unknown = described.unknown;
        }
    }

    /// Closes a finding; true if it was told, so that its end is to be told as well. It stays known until its container
    /// is forgotten, as late records must not open it again.
    pub(in crate::core) fn close(&mut self, key: &Key) -> bool {
        let Some(open) = self.open.get_mut(key) else { return false };
        let evidence = std::mem::take(&mut open.finding.evidence);
        self.evidence -= evidence.len();
        open.closed = true;
        open.dirty = false;
        open.was_told || open.earlier.is_some()
    }

    /// Whether a finding waits to be told.
    #[must_use]
    pub(in crate::core) fn is_held(&self, key: &Key) -> bool {
        self.open.get(key).is_some_and(|open| open.held && open.withheld.is_none())
    }

    /// Gives a finding its evidence; true if there is more about the time until then than it had.
    pub(in crate::core) fn prove(&mut self, key: &Key, chain: Chain, until: Nanos) -> bool {
        let Some(open) = self.open.get_mut(key).filter(|open| !open.closed && !chain.steps.is_empty()) else {
            return false;
        };
        let had = open.finding.evidence.len();
        let news = open.finding.learn(chain, until);
        self.evidence = self.evidence - had + open.finding.evidence.len();
        if had == 0 {
            self.proven.push_back(key.clone());
        }
        while self.evidence > MAX_EVIDENCE
            && let Some(oldest) = self.proven.pop_front()
        {
            let Some(open) = self.open.get_mut(&oldest) else { continue };
            let gone = std::mem::take(&mut open.finding.evidence);
            self.evidence -= gone.len();
            open.finding.evidence_omitted += gone.len() as u64;
            self.evidence_evicted += 1;
        }
        news
    }

    /// Findings that were told so long ago that everyday records of the time before have come, each with that time.
    pub(in crate::core) fn look_back(&mut self, now: Nanos) -> Vec<(Key, Nanos)> {
        let over = |told: Nanos| now.0.saturating_sub(told.0) >= LOOK_BACK_NS;
        let due = self.fresh.iter().take_while(|fresh| over(fresh.told)).count();
        self.fresh.drain(..due).map(|fresh| (fresh.key, fresh.until)).collect()
    }

    /// Removes a finding, with its evidence.
    pub(super) fn drop_finding(&mut self, key: &Key) {
        if let Some(open) = self.open.remove(key) {
            self.evidence -= open.finding.evidence.len();
        }
    }
}

impl Finding {
    /// Adds steps to the evidence. What the recorder has forgotten meanwhile stays. True if there is more about the time
    /// until then than there was.
    pub(in crate::core) fn learn(&mut self, chain: Chain, until: Nanos) -> bool {
        let before = std::mem::take(&mut self.evidence);
        let missing = |from: &[Arc<Step>], step: &Arc<Step>| !from.iter().any(|known| known.is_like(step));
        let news = chain.steps.iter().any(|step| step.time <= until && missing(&before, step));
        let forgotten: Vec<_> = before.into_iter().filter(|step| missing(&chain.steps, step)).collect();
        self.evidence_omitted = self.evidence_omitted.max(chain.omitted);
        self.evidence = chain.steps;
        self.evidence.extend(forgotten);
        self.evidence.sort_by_key(|step| (step.time, step.process));
        let over = self.evidence.len().saturating_sub(MAX_TOLD);
        if over > 0 {
            self.evidence.drain(FIRST_STEPS..FIRST_STEPS + over);
            self.evidence_omitted += over as u64;
        }
        news
    }
}
