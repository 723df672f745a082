//! Figures out of the agent's metrics.

use std::{thread, time::Duration};

use anyhow::Result;

use crate::lab::Agent;

/// The agent fetches the kernel's counters once a second.
const FRESH: Duration = Duration::from_millis(1_500);
/// A lineage that could not be allocated at once is made up for by the next sweep.
const MADE_UP_FOR: &str = "lineage_alloc";
const LOSSES: [&str; 5] = [
    "userns_kernel_loss_total",
    "userns_decode_errors_total",
    "userns_core_evictions_total",
    "userns_sink_dropped_total",
    "userns_sink_errors_total",
];

/// What the agent counts, at one moment.
#[derive(Debug)]
pub(super) struct Scrape(String);

/// Counts between two moments.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    /// Records that the programs sent.
    pub(super) records: f64,
    /// Records that the programs held back, of containers that had used up their budget.
    pub(super) held_back: f64,
    /// Everything that counts as a loss.
    pub(super) lost: f64,
    /// Detections folded into an open finding.
    pub(super) suppressed: f64,
}

impl Scrape {
    /// The body of `/metrics`.
    pub(super) const fn new(text: String) -> Self {
        Self(text)
    }

    /// Waits until everything until now is counted.
    ///
    /// # Errors
    ///
    /// When the agent does not answer.
    pub(super) fn settled(agent: &Agent) -> Result<Self> {
        thread::sleep(FRESH);
        Ok(Self::new(agent.http_get("/metrics")?.body))
    }

    /// The sum of a metric's samples that have `label` in their labels; an empty one is in all.
    pub(super) fn sum(&self, name: &str, label: &str) -> f64 {
        let sample = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let is_it = (labels.is_empty() || labels.starts_with('{')) && labels.contains(label);
            value.parse::<f64>().ok().filter(|_| is_it)
        };
        self.0.lines().filter_map(sample).sum()
    }

    /// The ends of a histogram's buckets, and how many samples are up to each, where `label` is in their labels.
    pub(super) fn buckets(&self, name: &str, label: &str) -> Vec<(f64, f64)> {
        let prefix = format!("{name}_bucket{{");
        let row = |line: &str| {
            let (labels, count) = line.strip_prefix(&prefix)?.rsplit_once(' ')?;
            let end = labels.split("le=\"").nth(1)?.split('"').next()?;
            let row = (end.parse().ok()?, count.parse().ok()?);
            labels.contains(label).then_some(row)
        };
        self.0.lines().filter_map(row).collect()
    }

    /// What was counted since `before`.
    pub(super) fn since(&self, before: &Self) -> Counts {
        let sent = |scrape: &Self| {
            let of = |counter| scrape.sum("userns_kernel_counter_total", counter);
            of("\"evidence_sent\"") + of("\"bulk_sent\"")
        };
        let lost = |scrape: &Self| {
            let all: f64 = LOSSES.iter().map(|name| scrape.sum(name, "")).sum();
            all - scrape.sum("userns_kernel_loss_total", MADE_UP_FOR)
        };
        let held_back = |scrape: &Self| scrape.sum("userns_kernel_counter_total", "\"bulk_suppressed\"");
        let suppressed = |scrape: &Self| scrape.sum("userns_findings_suppressed_total", "");
        Counts {
            records: sent(self) - sent(before),
            held_back: held_back(self) - held_back(before),
            lost: lost(self) - lost(before),
            suppressed: suppressed(self) - suppressed(before),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_differences_of_sums() {
        let scrape = |sent: u32, lost: u32| {
            Scrape(format!(
                "# HELP userns_kernel_loss_total x\nuserns_kernel_loss_total{{counter=\"evidence_ring_full\"}} {lost}\n\
                 userns_kernel_loss_total{{counter=\"lineage_alloc\"}} {sent}\n\
                 userns_kernel_counter_total{{counter=\"evidence_sent\"}} {sent}\n\
                 userns_kernel_counter_total{{counter=\"bulk_sent\"}} {sent}\n\
                 userns_kernel_counter_total{{counter=\"bulk_suppressed\"}} {lost}\n\
                 userns_kernel_counter_total{{counter=\"checks_watched\"}} 1000\nuserns_pods_x 5\nuserns_pods 3\n"
            ))
        };
        let counts = scrape(7, 4).since(&scrape(2, 1));
        assert_eq!((counts.records, counts.held_back, counts.lost, counts.suppressed), (10.0, 3.0, 3.0, 0.0));
        assert_eq!(scrape(1, 1).sum("userns_pods", ""), 3.0);
    }

    #[test]
    fn buckets_are_those_with_the_label() {
        let text = "x_bucket{kind=\"a\",le=\"0.5\"} 1\nx_bucket{kind=\"b\",le=\"0.5\"} 7\n\
                    x_bucket{kind=\"a\",le=\"+Inf\"} 2\nx_sum{kind=\"a\"} 9\nx_count{kind=\"a\"} 2\n";
        let buckets = Scrape(text.to_owned()).buckets("x", "kind=\"a\"");
        assert_eq!(buckets, [(0.5, 1.0), (f64::INFINITY, 2.0)]);
    }
}
