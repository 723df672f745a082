//! What led to findings, and what becomes of them.

use super::{Engine, Output};
use crate::core::finding::{Finding, FindingId, Resolved, Status};
use crate::core::open::{Fate, Key};
use crate::event::{CgroupId, Nanos};

impl Engine {
    /// Ids of all open findings.
    #[must_use]
    pub fn finding_ids(&self) -> Vec<FindingId> {
        self.open.all().map(|(finding, _)| finding.id).collect()
    }

    /// Open findings whose id begins like this, at most so many, with all that is known of each.
    #[must_use]
    pub fn findings(&self, beginning: &str, most: usize) -> Vec<Finding> {
        let open = self.open.all().filter(|(finding, _)| finding.id.to_string().starts_with(beginning));
        let describe = |(finding, container): (&Finding, Option<CgroupId>)| {
            let mut finding = finding.clone();
            self.describe(&mut finding, container);
            let chain = finding.task.as_deref().map(|task| self.flight.chain(task));
            if let Some(chain) = chain.filter(|chain| !chain.steps.is_empty()) {
                finding.learn(chain, self.now);
            }
            finding
        };
        open.take(most).map(describe).collect()
    }

    /// Gives an open finding the steps that led to it, as far as they are known now; true if there are more about the
    /// time until then.
    pub(super) fn prove(&mut self, key: &Key, until: Nanos) -> bool {
        let chain = self.open.get(key).and_then(|(finding, _)| finding.task.as_deref());
        let chain = chain.map(|task| self.flight.chain(task));
        chain.is_some_and(|chain| self.open.prove(key, chain, until))
    }

    /// Tells what has become known of the time before findings, and which of them have ended.
    pub(super) fn lifecycle(&mut self, out: &mut Vec<Output>) {
        for (key, until) in self.open.look_back(self.now) {
            if self.open.withheld(&key).is_none()
                && self.prove(&key, until)
                && let Some(mut finding) = self.described(&key)
            {
                finding.status = Status::Amended;
                self.say(&key, finding, out);
            }
        }
        for (container, at) in self.state.closing(self.now) {
            self.close(container, at, out);
        }
    }

    fn close(&mut self, id: CgroupId, at: Nanos, out: &mut Vec<Output>) {
        let pod = self.state.container(id).and_then(|container| container.pod.clone());
        let sibling = pod.as_ref().and_then(|pod| self.state.living(pod));
        for (key, fate) in self.open.fates(id, pod.as_ref(), sibling) {
            let Some(mut finding) = self.described(&key) else { continue };
            match fate {
                Fate::Over(because) => {
                    // its names will not come any more
                    if self.open.is_held(&key) {
                        self.say(&key, finding.clone(), out);
                    }
                    if self.open.close(&key) {
                        finding.status = Status::Resolved;
                        finding.resolved = Some(Resolved { at, because });
                        out.push(Output::Finding(Box::new(finding)));
                    }
                }
                Fate::Passes(sibling) => {
                    self.open.pass(&key, sibling);
                }
                Fate::Stays => self.open.keep(&key, finding),
            }
        }
    }

    /// Forgets the steps of containers that are gone, or that nobody knows.
    pub(super) fn forget_steps(&mut self, dead: &[CgroupId]) {
        dead.iter().for_each(|container| self.flight.forget(*container));
        if self.flight.len() > self.state.nr_containers() {
            self.flight.retain(|id| self.state.container(id).is_some());
        }
        self.flight.tick(self.now);
    }
}
