//! The table of metrics: what the registry holds and docs/metrics.md tells.

use prometheus::core::Collector;
use prometheus::{
    Counter, Error, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

/// A label and the values it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Its values, for people.
    pub values: &'static str,
}

/// What Prometheus calls the type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Grows only.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

impl Kind {
    /// The name in the text format.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric as declared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Declared {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// What it says.
    pub help: &'static str,
    /// Its labels.
    pub labels: &'static [Label],
    /// Upper bounds of a histogram's buckets.
    pub buckets: &'static [f64],
    /// Whether any growth means that something is missing, so that `/status` lists it.
    pub is_loss: bool,
}

const fn declared(name: &'static str, kind: Kind, help: &'static str) -> Declared {
    Declared { name, kind, help, labels: &[], buckets: &[], is_loss: false }
}

const fn counter(name: &'static str, help: &'static str) -> Declared {
    declared(name, Kind::Counter, help)
}

const fn loss(name: &'static str, help: &'static str) -> Declared {
    Declared { is_loss: true, ..counter(name, help) }
}

const fn gauge(name: &'static str, help: &'static str) -> Declared {
    declared(name, Kind::Gauge, help)
}

const fn histogram(name: &'static str, buckets: &'static [f64], help: &'static str) -> Declared {
    Declared { buckets, ..declared(name, Kind::Histogram, help) }
}

impl Declared {
    const fn by(self, labels: &'static [Label]) -> Self {
        Self { labels, ..self }
    }

    fn opts(&self) -> Opts {
        Opts::new(self.name, self.help)
    }

    fn histogram_opts(&self) -> HistogramOpts {
        HistogramOpts { common_opts: self.opts(), buckets: self.buckets.to_vec() }
    }

    fn label_names(&self) -> Vec<&'static str> {
        self.labels.iter().map(|label| label.name).collect()
    }
}

/// A type of the library that a declaration can become.
trait Family: Collector + Clone + Sized + 'static {
    fn make(declared: &Declared) -> Result<Self, Error>;
}

macro_rules! family {
    ($($ty:ty => |$declared:ident| $make:expr;)+) => {
        $(impl Family for $ty {
            fn make($declared: &Declared) -> Result<Self, Error> {
                $make
            }
        })+
    };
}

family! {
    Counter => |declared| Self::with_opts(declared.opts());
    IntCounter => |declared| Self::with_opts(declared.opts());
    IntCounterVec => |declared| Self::new(declared.opts(), &declared.label_names());
    Gauge => |declared| Self::with_opts(declared.opts());
    IntGauge => |declared| Self::with_opts(declared.opts());
    IntGaugeVec => |declared| Self::new(declared.opts(), &declared.label_names());
    Histogram => |declared| Self::with_opts(declared.histogram_opts());
    HistogramVec => |declared| Self::new(declared.histogram_opts(), &declared.label_names());
}

fn register<F: Family>(registry: &Registry, declared: &Declared) -> Result<F, Error> {
    let family = F::make(declared)?;
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

macro_rules! table {
    ($($field:ident: $ty:ty = $declared:expr;)+) => {
        /// Every metric, in the order of docs/metrics.md.
        pub static TABLE: &[Declared] = &[$($declared,)+];

        /// The fields that hold them, in the same order.
        #[cfg(test)]
        pub(super) const FIELDS: &[&str] = &[$(stringify!($field),)+];

        /// Every metric, ready for use.
        #[derive(Debug)]
        pub(super) struct Families {
            $(pub(super) $field: $ty,)+
        }

        impl Families {
            pub(super) fn register(registry: &Registry) -> Result<Self, Error> {
                Ok(Self { $($field: register(registry, &$declared)?,)+ })
            }
        }
    };
}

const fn label(name: &'static str, values: &'static str) -> Label {
    Label { name, values }
}

const RULE: Label = label("rule", "id of a rule, see rules.md");
const SEVERITY: Label = label("severity", "`info`, `low`, `medium`, `high`, `critical`");
const SUPPRESSED: Label =
    label("reason", "`repeated`: folded into an open finding, or told by an earlier run");
const EXCEPTION: Label = label("exception", "name of an exception of the rules file");
const BY_RULE: Label =
    label("reason", "`disabled`: the rule is turned off; `threshold`: fewer uses than are wanted");
const EXCEPTION_STATE: Label = label(
    "state",
    "`matched`: has withheld something since the start; `unmatched`: nothing yet; `expired`: withholds nothing any more",
);
const STATE_OPERATION: Label = label(
    "operation",
    "`read`: a memory of earlier runs, or a part of it, of no use; `write`; `full`: the oldest of too many was given up",
);
const PROMISE: Label = label("promise", "`user_namespace`, `host_users`, `unknown`");
const RELATION: Label = label(
    "relation",
    "user namespace asked over: `host`, `pod`, `nested`, `other`; `call`: no check but a namespace call",
);
const VERDICT: Label = label("verdict", "`granted`, `denied`");
const EVENT: Label = label("kind", "kind of record, as `exec` or `suspect`");
const DECODE: Label = label("reason", "what is wrong, as `truncated` or `unknown_kind`");
const LOSS: Label = label("counter", "name of a counter, as `evidence_ring_full`");
const WORK: Label = label("counter", "name of a counter, as `evidence_sent`");
const TABLE_NAME: Label = label("table", "name of a table");
const HOOK: Label = label("hook", "name of a hook");
const MECHANISM: Label = label("mechanism", "`tp_btf`, `tracepoint`, `iter`, `none`");
const PROGRAM: Label = label("program", "name of an eBPF program");
const STATE: Label = label("state", "`active`, `degraded`, `failed`");
const SOURCE: Label = label("source", "name of a source, as in `/status`");
const CONTAINER_KIND: Label = label("kind", "`container`, `init`, `sidecar`, `ephemeral`, `sandbox`");
const SWEPT: Label = label(
    "outcome",
    "`visited`: each one; `adopted`: of these, in a pod and not known before; `error`: could not be looked at",
);
const SINK: Label = label("sink", "`stdout`, `file`");
const PATH: Label = label("path", "a path of the index, or `other`");
const CODE: Label = label("code", "status code");
const REJECTED: Label = label(
    "reason",
    "`limit`: the oldest of too many; `timeout`; `malformed`: no HTTP/1 request; `peer`: another user at the local socket",
);
const VERSION: Label = label("version", "version of the agent");

/// Seconds, from the time that a sweep over a small node takes upwards.
/// Fine where quantiles are of interest: names may be known before the container is (0), or some seconds later.
const ATTRIBUTION: &[f64] = &[
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
    0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
];
const SWEEP: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];
/// Seconds, up to the delay of an output that is stuck.
const DELAY: &[f64] = &[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0];

table! {
    findings: IntCounterVec =
        counter("userns_findings_total", "Findings opened; updates of an open one are not counted")
            .by(&[RULE, SEVERITY]);
    findings_open: IntGaugeVec = gauge("userns_findings_open", "Findings open now").by(&[RULE, SEVERITY]);
    findings_resolved: IntCounterVec = counter(
        "userns_findings_resolved_total",
        "Findings that ended because what they were about is gone",
    )
    .by(&[RULE, SEVERITY]);
    findings_suppressed: IntCounterVec =
        counter("userns_findings_suppressed_total", "Detections not told as findings of their own")
            .by(&[SUPPRESSED]);
    findings_excepted: IntCounterVec = counter(
        "userns_findings_excepted_total",
        "Detections that an exception of the rules file withheld, repetitions without anything new left out",
    )
    .by(&[RULE, EXCEPTION]);
    findings_withheld: IntCounterVec = counter(
        "userns_findings_withheld_total",
        "Detections that a rule's setting in the rules file withheld, likewise",
    )
    .by(&[RULE, BY_RULE]);
    exceptions: IntGaugeVec =
        gauge("userns_exceptions", "Exceptions of the rules file").by(&[EXCEPTION_STATE]);
    findings_recognised: IntCounter =
        counter("userns_findings_recognised_total", "Findings found again that an earlier run had told");
    state_errors: IntCounterVec =
        counter("userns_state_errors_total", "Failures of the state directory; findings may be told again as new")
            .by(&[STATE_OPERATION]);
    recorded: IntCounter =
        counter("userns_recording_inputs_total", "Inputs written to the recording that `record` makes");
    recording_dropped: IntCounter = counter(
        "userns_recording_dropped_total",
        "Inputs missing in that recording, because they came faster than they could be written",
    );
    recording_errors: IntCounter =
        counter("userns_recording_errors_total", "Recordings that ended early because they could not be written");
    pods: IntGaugeVec = gauge("userns_pods", "Pods known, by what they were promised").by(&[PROMISE]);
    containers: IntGauge = gauge("userns_containers", "Live containers known");
    unobservable: IntGauge = gauge(
        "userns_pods_unobservable",
        "Pods known that run where this kernel does not see them, by their runtime class",
    );
    unobservable_withheld: IntGauge = gauge(
        "userns_unobservable_withheld",
        "Verdicts about such pods that were not told, since the start",
    );
    monitors: IntGauge =
        gauge("userns_monitors", "Runtimes' monitors in containers' cgroups with the host's user namespace");
    processes: IntGauge = gauge("userns_processes_tracked", "Processes known");
    checks: IntCounterVec =
        counter("userns_capability_checks_total", "Checks and calls in the kernel's aggregation table")
            .by(&[RELATION, VERDICT]);
    events: IntCounterVec = counter("userns_events_total", "Records received from the kernel").by(&[EVENT]);
    decode_errors: IntCounterVec =
        loss("userns_decode_errors_total", "Records refused: broken, or of another version").by(&[DECODE]);
    kernel_loss: IntCounterVec =
        loss("userns_kernel_loss_total", "What the programs in the kernel lost or could not do").by(&[LOSS]);
    kernel_work: IntCounterVec =
        counter("userns_kernel_counter_total", "What the programs in the kernel did").by(&[WORK]);
    unattributed: IntCounter =
        loss("userns_records_unattributed_total", "Records judged without knowing their container");
    evictions: IntCounterVec =
        loss("userns_core_evictions_total", "Rows that fell out of full tables").by(&[TABLE_NAME]);
    probe_state: IntGaugeVec =
        gauge("userns_probe_state", "1 for the state that a hook is in, 0 for the others")
            .by(&[HOOK, MECHANISM, STATE]);
    program_verified: IntGaugeVec = gauge(
        "userns_program_verified_instructions",
        "Instructions that the kernel's verifier went through for a program; kernels before 5.16 do not tell",
    )
    .by(&[PROGRAM]);
    program_missed: IntCounterVec = counter(
        "userns_program_missed_total",
        "Runs of a program that the kernel left out, because it was at work for another task on the same CPU",
    )
    .by(&[PROGRAM]);
    source_up: IntGaugeVec =
        gauge("userns_source_up", "1 if the last reading of a source went well, else 0").by(&[SOURCE]);
    source_errors: IntCounterVec =
        counter("userns_source_errors_total", "Readings of a source that failed").by(&[SOURCE]);
    attribution: HistogramVec = histogram(
        "userns_attribution_seconds",
        ATTRIBUTION,
        "Time from the making of a container's cgroup until pod and container are known by name",
    )
    .by(&[CONTAINER_KIND]);
    sweeps: IntCounter = counter("userns_sweeps_total", "Sweeps over all processes");
    sweep_seconds: Histogram = histogram("userns_sweep_seconds", SWEEP, "Duration of a sweep");
    proc_sweep: IntCounterVec = counter(
        "userns_proc_sweep_processes_total",
        "Processes in sweeps by way of /proc, which kernels without a task iterator get",
    )
    .by(&[SWEPT]);
    delay: HistogramVec = histogram(
        "userns_event_delay_seconds",
        DELAY,
        "Time from the moment in the kernel that opened a finding until its line was written",
    )
    .by(&[SINK]);
    sink_written: IntCounterVec = counter("userns_sink_written_total", "Lines written").by(&[SINK]);
    sink_dropped: IntCounterVec =
        loss("userns_sink_dropped_total", "Lines dropped because an output was stuck or gone")
            .by(&[SINK, SEVERITY]);
    sink_superseded: IntCounterVec =
        counter("userns_sink_superseded_total", "Updates that a later one replaced before they were written")
            .by(&[SINK]);
    sink_errors: IntCounterVec =
        counter("userns_sink_errors_total", "Attempts to write or open an output that failed")
            .by(&[SINK]);
    sink_queue: IntGaugeVec = gauge("userns_sink_queue_bytes", "Bytes that wait to be written").by(&[SINK]);
    http_requests: IntCounterVec =
        counter("userns_http_requests_total", "HTTP requests answered").by(&[PATH, CODE]);
    http_rejected: IntCounterVec =
        counter("userns_http_rejected_total", "HTTP connections that got no endpoint's answer")
            .by(&[REJECTED]);
    build_info: IntGaugeVec = gauge("userns_build_info", "Always 1").by(&[VERSION]);
    reference_level: IntGauge = gauge(
        "userns_reference_level",
        "Level of the user namespace that counts as the host's; 0: the initial one",
    );
    start_time: Gauge = gauge("process_start_time_seconds", "Unix time at which the agent started");
    cpu: Counter = counter("process_cpu_seconds_total", "Processor time that the agent used");
    resident: IntGauge = gauge("process_resident_memory_bytes", "Memory of the agent that is resident");
}
