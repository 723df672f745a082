//! What containers were not allowed to tell, because they had used up their budgets.

use std::collections::BTreeMap;

use super::finding::{ContainerRef, PodRef};
use super::windows::COLLECT_NS;
use crate::event::{Budget, CgroupId, Nanos};

/// Records of one kind that the kernel withheld of one container. No rule rests on them: they explain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withheld {
    /// When this is told.
    pub time: Nanos,
    /// When the last ones were told, or the first of these were seen.
    pub since: Nanos,
    /// What they would have told of: `exec` or `exit`.
    pub kind: &'static str,
    /// How many.
    pub count: u64,
    /// The container, if its cgroup is known.
    pub container: Option<ContainerRef>,
    /// The pod, if the cgroup's path names one.
    pub pod: Option<PodRef>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Told {
    budget: Budget,
    since: Option<Nanos>,
}

/// What has been told of each container.
#[derive(Debug, Default)]
pub(super) struct Budgets {
    told: BTreeMap<CgroupId, Told>,
}

impl Budgets {
    /// Takes the totals; returns what is to be told of them now: at once the first time, then every ten seconds.
    pub(super) fn take(&mut self, rows: &[(CgroupId, Budget)], now: Nanos) -> Vec<(CgroupId, Withheld)> {
        let mut out = Vec::new();
        for (container, budget) in rows {
            let told = self.told.entry(*container).or_default();
            if told.since.is_some_and(|since| now.0.saturating_sub(since.0) < COLLECT_NS) {
                continue;
            }
            let kinds = [
                ("exec", budget.withheld_execs, told.budget.withheld_execs),
                ("exit", budget.withheld_exits, told.budget.withheld_exits),
            ];
            let since = told.since.unwrap_or(now);
            for (kind, total, before) in kinds.into_iter().filter(|(_, total, before)| total > before) {
                let count = total - before;
                let withheld = Withheld { time: now, since, kind, count, container: None, pod: None };
                out.push((*container, withheld));
                told.since = Some(now);
            }
            told.budget = *budget;
        }
        out
    }

    /// Forgets a container that is gone.
    pub(super) fn forget(&mut self, container: CgroupId) {
        self.told.remove(&container);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(execs: u64, exits: u64) -> Vec<(CgroupId, Budget)> {
        vec![(CgroupId(7), Budget { withheld_execs: execs, withheld_exits: exits, ..Budget::default() })]
    }

    #[test]
    fn every_record_withheld_is_told_once() {
        let mut budgets = Budgets::default();
        let second = |second: u64| Nanos(second * 1_000_000_000);
        let mut told = 0;
        let mut lines = 0;
        for now in 0..60u64 {
            let total = now.min(30) * 5;
            for (_, withheld) in budgets.take(&row(total, 0), second(now)) {
                assert_eq!(withheld.kind, "exec");
                told += withheld.count;
                lines += 1;
            }
        }
        assert_eq!(told, 150);
        assert!(lines <= 6, "{lines} lines");
    }

    #[test]
    fn the_first_is_told_at_once() {
        let mut budgets = Budgets::default();
        assert!(budgets.take(&row(0, 0), Nanos(1)).is_empty());
        assert_eq!(budgets.take(&row(0, 3), Nanos(2)).len(), 1);
        assert!(budgets.take(&row(0, 9), Nanos(3)).is_empty());
        budgets.forget(CgroupId(7));
        assert_eq!(budgets.take(&row(2, 1), Nanos(4)).len(), 2);
    }
}
