//! Metrics: [`TABLE`] declares them, [`Metrics`] has a typed method for each use.
//!
//! Labels take few values: no pod, no container, nothing that a workload can choose. Series whose labels are
//! known beforehand exist from the start with the value zero, as the first increase of a series that appears
//! with the value one is invisible to `rate` and `increase`.

mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{Encoder as _, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder};
use thiserror::Error;

pub use table::{Declared, Kind, Label, TABLE};

use self::table::Families;
use super::report::{ExceptionState, ProbeReport, SourceReport};
use super::{SinkKind, process};
use crate::core::finding::Severity;
use crate::core::rules::{self, RuleId};
use crate::core::{Promise, Reason};
use crate::event::{ContainerKind, Counter, Reference, Relation};

const SEVERITIES: [Severity; 5] =
    [Severity::Info, Severity::Low, Severity::Medium, Severity::High, Severity::Critical];

/// Content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Why there are no metrics.
#[derive(Debug, Error)]
pub enum MetricsError {
    /// The table is inconsistent.
    #[error("cannot register the metrics: {0}")]
    Register(prometheus::Error),
    /// The library cannot write them.
    #[error("cannot write the metrics: {0}")]
    Render(prometheus::Error),
}

/// A loss, as `/status` tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// Name of the metric.
    pub metric: String,
    /// Its labels.
    pub labels: Vec<(String, String)>,
    /// How much.
    pub count: u64,
}

/// Every metric of the agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    families: Families,
}

impl Metrics {
    /// All at zero.
    ///
    /// # Errors
    ///
    /// [`MetricsError::Register`] if the table contradicts itself.
    pub fn new() -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let families = Families::register(&registry).map_err(MetricsError::Register)?;
        let metrics = Self { registry, families };
        metrics.begin_at_zero();
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        metrics.families.start_time.set(started.as_secs_f64());
        metrics.families.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(metrics)
    }

    /// Takes note of the user namespace that counts as the host's.
    pub fn reference(&self, reference: &Reference) {
        self.families.reference_level.set(i64::from(reference.level));
    }

    /// What is known and deliberately not told: pods and verdicts about them, and monitors.
    pub fn tolerated(&self, pods: usize, withheld: u64, monitors: usize) {
        set(&self.families.unobservable, pods);
        set(&self.families.unobservable_withheld, usize::try_from(withheld).unwrap_or(usize::MAX));
        set(&self.families.monitors, monitors);
    }

    fn begin_at_zero(&self) {
        for severity in SEVERITIES {
            for rule in RuleId::ALL {
                let labels = [rules::rule(*rule).id, severity.name()];
                self.opened(*rule, severity);
                self.families.findings_resolved.with_label_values(&labels);
                self.families.findings_open.with_label_values(&labels);
            }
            for sink in SinkKind::ALL {
                self.sink_dropped(*sink, severity, 0);
            }
        }
        for rule in RuleId::ALL {
            for reason in Reason::ALL {
                self.findings_withheld(*rule, reason, 0);
            }
        }
        for state in ExceptionState::ALL {
            self.exceptions(state, 0);
        }
        for counter in Counter::ALL {
            self.kernel_counter(*counter, 0);
        }
        for relation in Relation::ALL {
            for denied in [false, true] {
                self.capability_checks(relation.name(), denied, 0);
            }
        }
        for sink in SinkKind::ALL.iter().map(|sink| sink.name()) {
            for family in
                [&self.families.sink_written, &self.families.sink_superseded, &self.families.sink_errors]
            {
                family.with_label_values(&[sink]);
            }
        }
        for reason in ["limit", "timeout", "malformed", "peer"] {
            self.families.http_rejected.with_label_values(&[reason]);
        }
        for kind in ContainerKind::ALL {
            self.families.attribution.with_label_values(&[kind.name()]);
        }
        self.findings_suppressed("repeated", 0);
        self.proc_sweep(0, 0, 0);
        for operation in ["read", "write", "full"] {
            self.families.state_errors.with_label_values(&[operation]);
        }
    }

    fn opened(&self, rule: RuleId, severity: Severity) -> IntCounter {
        self.families.findings.with_label_values(&[rules::rule(rule).id, severity.name()])
    }

    /// A finding was opened.
    pub fn finding(&self, rule: RuleId, severity: Severity) {
        self.opened(rule, severity).inc();
    }

    /// A finding has ended.
    pub fn finding_resolved(&self, rule: RuleId, severity: Severity) {
        self.families.findings_resolved.with_label_values(&[rules::rule(rule).id, severity.name()]).inc();
    }

    /// Findings open now.
    pub fn findings_open(&self, open: &BTreeMap<(RuleId, Severity), usize>) {
        for (rule, severity) in RuleId::ALL.iter().flat_map(|rule| SEVERITIES.map(|it| (*rule, it))) {
            let count = open.get(&(rule, severity)).copied().unwrap_or_default();
            set_of(&self.families.findings_open, &[rules::rule(rule).id, severity.name()], count);
        }
    }

    /// Detections not told, so far, by reason.
    pub fn findings_suppressed(&self, reason: &'static str, total: u64) {
        raise(&self.families.findings_suppressed, &[reason], total);
    }

    /// What an exception withheld so far of a rule.
    pub fn findings_excepted(&self, rule: RuleId, exception: &str, total: u64) {
        raise(&self.families.findings_excepted, &[rules::rule(rule).id, exception], total);
    }

    /// What a rule's setting withheld so far.
    pub fn findings_withheld(&self, rule: RuleId, reason: Reason, total: u64) {
        raise(&self.families.findings_withheld, &[rules::rule(rule).id, reason.name()], total);
    }

    /// Exceptions in this state.
    pub fn exceptions(&self, state: ExceptionState, count: usize) {
        set_of(&self.families.exceptions, &[state.name()], count);
    }

    /// Findings of earlier runs found again so far.
    pub fn findings_recognised(&self, total: u64) {
        raise_to(&self.families.findings_recognised, total);
    }

    /// The memory of what was told could not be read, written, or kept whole.
    pub fn state_error(&self, operation: &'static str) {
        self.families.state_errors.with_label_values(&[operation]).inc();
    }

    /// Inputs were written to the recording.
    pub fn recorded(&self, inputs: u64) {
        self.families.recorded.inc_by(inputs);
    }

    /// Inputs are missing in the recording.
    pub fn recording_dropped(&self, inputs: u64) {
        self.families.recording_dropped.inc_by(inputs);
    }

    /// The recording could not be written any further.
    pub fn recording_error(&self) {
        self.families.recording_errors.inc();
    }

    /// Pods known that were promised this.
    pub fn pods(&self, promise: Promise, count: usize) {
        let promise = match promise {
            Promise::UserNamespace => "user_namespace",
            Promise::HostUsers => "host_users",
            Promise::Unknown => "unknown",
        };
        set(&self.families.pods.with_label_values(&[promise]), count);
    }

    /// A container is known by name, so long after it was made.
    pub fn attributed(&self, kind: ContainerKind, took: Duration) {
        self.families.attribution.with_label_values(&[kind.name()]).observe(took.as_secs_f64());
    }

    /// Live containers known.
    pub fn containers(&self, count: usize) {
        set(&self.families.containers, count);
    }

    /// Processes known.
    pub fn processes(&self, count: usize) {
        set(&self.families.processes, count);
    }

    /// Checks of the aggregation table so far.
    pub fn capability_checks(&self, relation: &'static str, denied: bool, total: u64) {
        let verdict = if denied { "denied" } else { "granted" };
        raise(&self.families.checks, &[relation, verdict], total);
    }

    /// A record was received.
    pub fn event(&self, kind: &'static str) {
        self.families.events.with_label_values(&[kind]).inc();
    }

    /// A record was refused.
    pub fn decode_error(&self, reason: &'static str) {
        self.families.decode_errors.with_label_values(&[reason]).inc();
    }

    /// A counter of the kernel, as read.
    pub fn kernel_counter(&self, counter: Counter, total: u64) {
        let family = if counter.is_loss() { &self.families.kernel_loss } else { &self.families.kernel_work };
        raise(family, &[counter.name()], total);
    }

    /// Records judged without their container so far.
    pub fn unattributed(&self, total: u64) {
        raise_to(&self.families.unattributed, total);
    }

    /// Rows that fell out of a table so far.
    pub fn core_evictions(&self, table: &'static str, total: u64) {
        raise(&self.families.evictions, &[table], total);
    }

    /// A hook's state.
    pub fn probe(&self, probe: &ProbeReport) {
        for state in ProbeReport::STATES {
            let labels = [probe.hook, probe.mechanism.unwrap_or("none"), state];
            self.families.probe_state.with_label_values(&labels).set((probe.state == *state).into());
        }
    }

    /// What the verifier went through for a program.
    pub fn program_verified(&self, program: &str, instructions: u64) {
        let instructions = i64::try_from(instructions).unwrap_or(i64::MAX);
        self.families.program_verified.with_label_values(&[program]).set(instructions);
    }

    /// Runs of a program that the kernel left out so far.
    pub fn program_missed(&self, program: &str, total: u64) {
        raise(&self.families.program_missed, &[program], total);
    }

    /// A source's last reading.
    pub fn source(&self, source: &SourceReport) {
        self.families.source_up.with_label_values(&[source.name]).set(source.up.into());
        self.families.source_errors.with_label_values(&[source.name]);
    }

    /// A reading of a source failed.
    pub fn source_error(&self, source: &'static str) {
        self.families.source_errors.with_label_values(&[source]).inc();
    }

    /// A sweep ended.
    pub fn sweep(&self, duration: Duration) {
        self.families.sweeps.inc();
        self.families.sweep_seconds.observe(duration.as_secs_f64());
    }

    /// What a sweep by way of procfs visited, adopted, and could not look at.
    pub fn proc_sweep(&self, visited: u64, adopted: u64, errors: u64) {
        for (outcome, count) in [("visited", visited), ("adopted", adopted), ("error", errors)] {
            self.families.proc_sweep.with_label_values(&[outcome]).inc_by(count);
        }
    }

    pub(super) fn sink_written(&self, sink: SinkKind, delay: Option<Duration>) {
        self.families.sink_written.with_label_values(&[sink.name()]).inc();
        if let Some(delay) = delay {
            self.families.delay.with_label_values(&[sink.name()]).observe(delay.as_secs_f64());
        }
    }

    pub(super) fn sink_dropped(&self, sink: SinkKind, severity: Severity, count: u64) {
        self.families.sink_dropped.with_label_values(&[sink.name(), severity.name()]).inc_by(count);
    }

    pub(super) fn sink_superseded(&self, sink: SinkKind) {
        self.families.sink_superseded.with_label_values(&[sink.name()]).inc();
    }

    pub(super) fn sink_error(&self, sink: SinkKind) {
        self.families.sink_errors.with_label_values(&[sink.name()]).inc();
    }

    pub(super) fn sink_queue_bytes(&self, sink: SinkKind, bytes: usize) {
        set_of(&self.families.sink_queue, &[sink.name()], bytes);
    }

    pub(super) fn http_request(&self, path: &'static str, code: u16) {
        self.families.http_requests.with_label_values(&[path, code.to_string().as_str()]).inc();
    }

    pub(super) fn http_rejected(&self, reason: &'static str) {
        self.families.http_rejected.with_label_values(&[reason]).inc();
    }

    /// Everything in Prometheus' text format.
    ///
    /// # Errors
    ///
    /// [`MetricsError::Render`] if the library refuses.
    pub fn render(&self) -> Result<Vec<u8>, MetricsError> {
        let usage = process::usage();
        let cpu = &self.families.cpu;
        cpu.inc_by((usage.cpu_seconds - cpu.get()).max(0.0));
        self.families.resident.set(i64::try_from(usage.resident_bytes).unwrap_or(i64::MAX));
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).map_err(MetricsError::Render)?;
        Ok(text)
    }

    /// Everything lost so far; what is at zero is left out.
    #[must_use]
    pub fn losses(&self) -> Vec<Loss> {
        let mut losses = Vec::new();
        let is_loss = |name: &str| TABLE.iter().any(|declared| declared.is_loss && declared.name == name);
        for family in self.registry.gather().iter().filter(|family| is_loss(family.name())) {
            for metric in family.get_metric() {
                let count = metric.get_counter().get_value() as u64;
                let labels = metric.get_label().iter();
                let labels =
                    labels.map(|label| (label.name().to_owned(), label.value().to_owned())).collect();
                if count > 0 {
                    losses.push(Loss { metric: family.name().to_owned(), labels, count });
                }
            }
        }
        losses
    }
}

/// Raises a counter to a total kept elsewhere. A smaller total than before changes nothing: counters only
/// grow.
fn raise_to(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

fn raise(family: &IntCounterVec, labels: &[&str], total: u64) {
    raise_to(&family.with_label_values(labels), total);
}

fn set(gauge: &IntGauge, value: usize) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

fn set_of(family: &IntGaugeVec, labels: &[&str], value: usize) {
    set(&family.with_label_values(labels), value);
}
