//! The agent's outputs: what the event loop says, as the sinks want it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::proc_sweep::Found;
use super::setup::{Clock, node_name};
use crate::cli::ExitCode;
use crate::config::{Config, Output};
use crate::core::finding::{Finding, Status as FindingStatus};
use crate::core::{Engine, ExceptionView, Promise, Stats, Withheld};
use crate::decode::DecodeError;
use crate::event::{CgroupId, ContainerKind, Counter, Event, Told};
use crate::host::proc::ProcFs;
use crate::host::reference;
use crate::host::{SourceHealth, SourceState};
use crate::kernel::programs::Program;
use crate::kernel::status::{Probe, State};
use crate::recording::{self, RecordError, Recorder};
use crate::sink::http::{self, StatusSource};
use crate::sink::local::Wanted;
use crate::sink::memory::Memory;
use crate::sink::metrics::MetricsError;
use crate::sink::{
    AgentEvent, AgentState, ExceptionState, Form, Metrics, Options, ProbeReport, Readiness, SinkError, Sinks,
    SourceReport, Status, Suppressed, TableReport, file, json, local, queue,
};

/// How long the outputs may take to write what is left at the end.
const DRAIN: Duration = Duration::from_secs(5);
/// Findings that an answer on the local socket has in whole: who asks for more says more of the id.
const MAX_FINDINGS: usize = 16;
/// Capacities of the kernel's tables that `/status` shows.
const CGROUPS: u64 = userns_common::limits::MAX_CGROUPS as u64;

/// Why an output cannot be opened.
#[derive(Debug, Error)]
pub enum OutputError {
    /// Standard output or the file.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The address.
    #[error(transparent)]
    Bind(#[from] http::BindError),
    /// The metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

impl OutputError {
    /// The exit code that tells of it.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Sink(SinkError::File(_)) => ExitCode::CannotCreate,
            Self::Sink(SinkError::Stdout { .. }) => ExitCode::Io,
            Self::Sink(SinkError::Thread { .. }) | Self::Bind(_) => ExitCode::OsError,
            Self::Metrics(_) => ExitCode::Software,
        }
    }
}

/// Everything the agent says.
pub(super) struct Outputs {
    sinks: Sinks,
    memory: Option<Arc<Memory>>,
    metrics: Arc<Metrics>,
    status: Arc<StatusSource>,
    listen: std::net::SocketAddr,
    server: Option<http::Server>,
    serving: Option<JoinHandle<()>>,
    clock: Clock,
    probes: Vec<ProbeReport>,
    /// Errors of each source already counted.
    source_errors: std::collections::BTreeMap<&'static str, u64>,
    limits: (u64, u64),
    sweep_failed: bool,
    proc_sweep_failed: bool,
}

fn form(output: Output) -> Form {
    use std::io::IsTerminal as _;
    let terminal = std::io::stdout().is_terminal();
    let color = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    match output {
        Output::Json => Form::Json,
        Output::Auto if !terminal => Form::Json,
        Output::Live | Output::Auto => Form::Live { color },
    }
}

fn file_options(config: &Config) -> Option<file::Options> {
    let path: PathBuf = config.output_file.clone()?;
    let keep = u32::try_from(config.output_file_keep).unwrap_or(u32::MAX);
    Some(file::Options { path, max_bytes: config.output_file_max_bytes, keep })
}

/// The memory of what earlier runs told, and what they told. Without one, known findings are told as new.
fn remember(config: &Config, metrics: &Arc<Metrics>) -> (Option<Arc<Memory>>, Vec<Told>) {
    let Some(path) = &config.state_dir else { return (None, Vec::new()) };
    let boot = ProcFs::new(&config.proc_root).boot_id().map_err(|error| error.to_string());
    let opened = boot
        .and_then(|boot| Memory::open(path, &boot, Arc::clone(metrics)).map_err(|error| error.to_string()));
    match opened {
        Ok((memory, told)) => (Some(Arc::new(memory)), told),
        Err(error) => {
            metrics.state_error("read");
            tracing::warn!("{error}; findings of earlier runs are told again as new");
            (None, Vec::new())
        }
    }
}

impl Outputs {
    /// Opens them all, and says what earlier runs told. Nothing is answered before [`Self::serve`].
    pub(super) fn open(config: &Config, clock: Clock) -> Result<(Self, Vec<Told>), OutputError> {
        let server = http::bind(config.listen)?;
        let metrics = Arc::new(Metrics::new()?);
        let options = Options {
            node: node_name(config),
            stdout: Some(form(config.output)),
            file: file_options(config),
            limits: queue::Limits::default(),
        };
        let (memory, told) = remember(config, &metrics);
        let sinks = Sinks::start(options, Arc::clone(&metrics))?.remembering(memory.clone());
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let status = Status { kernel, node: node_name(config), ..Status::default() };
        let outputs = Self {
            sinks,
            memory,
            status: Arc::new(StatusSource::new(Arc::clone(&metrics), status)),
            metrics,
            listen: server.address(),
            server: Some(server),
            serving: None,
            clock,
            probes: Vec::new(),
            source_errors: std::collections::BTreeMap::new(),
            limits: (config.max_containers, config.max_processes),
            sweep_failed: false,
            proc_sweep_failed: false,
        };
        Ok((outputs, told))
    }

    /// Takes note of the user namespace that counts as the host's.
    pub(super) fn reference(&mut self, found: &reference::Found) {
        let reference::Found { reference, pid } = found;
        if !reference.is_initial() {
            tracing::info!(
                "the host's user namespace is {} at level {}, that of process {}",
                reference.inum,
                reference.level,
                pid.unwrap_or_default()
            );
        }
        self.metrics.reference(reference);
        self.status.update(|status| status.reference = (reference.clone(), *pid));
    }

    /// Begins a recording.
    pub(super) fn record(
        &self,
        options: &recording::Options,
        header: &recording::Header,
    ) -> Result<Recorder, RecordError> {
        Recorder::start(options, header, Arc::clone(&self.metrics))
    }

    /// Begins to answer over HTTP.
    pub(super) fn serve(&mut self) {
        let Some(server) = self.server.take() else { return };
        let status = Arc::clone(&self.status);
        self.serving = Some(tokio::spawn(async move {
            if let Err(error) = http::serve(server, status).await {
                tracing::error!("the HTTP endpoint ended: {error}");
            }
        }));
    }

    /// Begins to answer on the local socket; what it is asked for comes by the channel.
    pub(super) fn serve_locally(&self, socket: Option<&Path>) -> mpsc::Receiver<local::Query> {
        let (sender, queries) = mpsc::channel(1);
        match socket.map(local::bind) {
            Some(Ok(server)) => {
                let (metrics, user) = (Arc::clone(&self.metrics), rustix::process::geteuid().as_raw());
                tokio::spawn(local::serve(server, sender, metrics, user));
            }
            Some(Err(error)) => tracing::warn!("{error}; `userns-agent ps` does without the agent"),
            None => {}
        }
        queries
    }

    /// Answers what the local socket was asked.
    pub(super) fn answer(&self, query: local::Query, engine: &Engine) {
        let clock = self.clock.wall();
        let rendered = match &query.wanted {
            Wanted::Pods => json::pods(&engine.pods(), clock),
            Wanted::Rules => json::rules(&engine.stats().exceptions, clock),
            Wanted::Findings(beginning) => {
                let findings = engine.findings(beginning, MAX_FINDINGS);
                self.sinks.renderer().findings(&findings, &engine.finding_ids(), clock)
            }
        };
        match rendered {
            // whoever asked may be gone
            Ok(json) => drop(query.reply.send(json)),
            Err(error) => tracing::error!("cannot render an answer: {error}"),
        }
    }

    /// Takes note of the hooks, with a line of log for each that is missing.
    pub(super) fn probes(&mut self, probes: &[Probe]) {
        self.probes = probes.iter().map(report).collect();
        for probe in probes.iter().filter(|probe| probe.state == State::Active) {
            if let (Some(mechanism), false) = (probe.mechanism, probe.passed_over.is_empty()) {
                let (hook, better) = (probe.hook.name(), probe.passed_over.join("; "));
                tracing::debug!(
                    "hook {hook} is attached by {}, as better ones are not to be had: {better}",
                    mechanism.name()
                );
            }
        }
        for probe in &self.probes {
            self.metrics.probe(probe);
            if let Some(reason) = &probe.reason {
                tracing::warn!(
                    "hook {} is {}: {reason}; without it {}",
                    probe.hook,
                    probe.state,
                    probe.without
                );
            }
        }
        let probes = self.probes.clone();
        self.status.update(|status| status.probes = probes);
    }

    /// Takes note of what the kernel tells of the programs.
    pub(super) fn programs(&self, programs: &[Program]) {
        for program in programs {
            if let Some(instructions) = program.verified {
                self.metrics.program_verified(&program.name, instructions);
            }
            self.metrics.program_missed(&program.name, program.missed);
        }
    }

    /// Says that the agent watches. What is missing is told first, as a line of its own.
    pub(super) fn ready(&self) {
        let missing: Vec<&str> =
            self.probes.iter().filter(|probe| !probe.is_active()).map(|probe| probe.hook).collect();
        if !missing.is_empty() {
            self.agent(AgentState::Degraded, Some(format!("hooks not attached: {}", missing.join(", "))));
        }
        self.status.update(|status| status.readiness = Readiness::Ready);
        self.agent(AgentState::Ready, None);
    }

    fn agent(&self, state: AgentState, reason: Option<String>) {
        let event = AgentEvent {
            time: self.clock.now(),
            state,
            reason,
            version: env!("CARGO_PKG_VERSION"),
            listen: Some(self.listen),
            probes: self.probes.clone(),
        };
        self.sinks.agent(&event, self.clock.wall());
    }

    /// A record was decoded.
    pub(super) fn saw(&self, event: &Event) {
        self.metrics.event(event.body.name());
    }

    /// A record was refused.
    pub(super) fn undecodable(&self, error: DecodeError) {
        tracing::warn!("record refused: {error}; are agent and eBPF object of the same build?");
        self.metrics.decode_error(error.name());
    }

    /// Says a finding.
    pub(super) fn finding(&self, finding: &Finding) {
        match finding.status {
            FindingStatus::Opened => self.metrics.finding(finding.rule, finding.severity),
            FindingStatus::Resolved => self.metrics.finding_resolved(finding.rule, finding.severity),
            FindingStatus::Updated | FindingStatus::Amended => {}
        }
        self.sinks.finding(finding, self.clock.wall());
    }

    /// Says what the kernel withheld.
    pub(super) fn withheld(&self, withheld: Withheld) {
        let Withheld { time, since, kind, count, container, pod } = withheld;
        let suppressed = Suppressed {
            time,
            since,
            reason: "container_budget",
            kind: Some(kind),
            sink: None,
            severity: None,
            count,
            container,
            pod,
        };
        self.sinks.suppressed(&suppressed, self.clock.wall());
    }

    /// A container is long gone.
    pub(super) fn forget(&self, container: CgroupId) {
        if let Some(memory) = &self.memory {
            memory.forget(container);
        }
    }

    /// The loop turns.
    pub(super) fn alive(&self) {
        self.status.beat();
    }

    /// A container is known by name.
    pub(super) fn attributed(&self, kind: ContainerKind, took: Duration) {
        self.metrics.attributed(kind, took);
    }

    /// A sweep ended. Its failure is told once, until it works again.
    pub(super) fn swept(&mut self, took: Duration, error: Option<String>) {
        match error {
            None => {
                self.metrics.sweep(took);
                self.sweep_failed = false;
            }
            Some(error) if !self.sweep_failed => {
                tracing::warn!("sweep failed: {error}");
                self.sweep_failed = true;
            }
            Some(_) => {}
        }
    }

    /// A sweep by way of procfs ended. The first process that cannot be looked at is told of.
    pub(super) fn swept_proc(&mut self, found: &Found) {
        self.metrics.proc_sweep(found.visited, found.adopted, found.errors);
        if let Some(error) = found.first_error.as_ref().filter(|_| !self.proc_sweep_failed) {
            tracing::warn!("sweep: {error}; further processes that cannot be looked at are counted only");
            self.proc_sweep_failed = true;
        }
    }

    /// Something that should not fail failed; the loop goes on.
    pub(super) fn trouble(&self, what: &str, error: &std::io::Error) {
        tracing::error!("{what}: {error}");
    }

    /// Sets the metrics and `/status` from the numbers as they stand.
    pub(super) fn count(
        &mut self,
        stats: &Stats,
        counters: &[(Counter, u64)],
        watched: u64,
        health: &[(&'static str, SourceHealth)],
    ) {
        let metrics = &self.metrics;
        for (counter, total) in counters {
            metrics.kernel_counter(*counter, *total);
        }
        for promise in [Promise::UserNamespace, Promise::HostUsers, Promise::Unknown] {
            metrics.pods(promise, stats.pods_promised(promise));
        }
        metrics.containers(stats.containers);
        metrics.tolerated(stats.unobservable, stats.withheld_unobservable, stats.monitors);
        metrics.processes(stats.processes);
        metrics.findings_open(&stats.open_by);
        metrics.findings_suppressed("repeated", stats.repeated);
        self.policy(stats);
        metrics.findings_recognised(stats.recognised);
        metrics.unattributed(stats.unattributed);
        for (table, total) in &stats.evicted {
            metrics.core_evictions(table, *total);
        }
        for ((relation, denied), total) in &stats.checks {
            metrics.capability_checks(relation, *denied, *total);
        }
        let sources: Vec<SourceReport> =
            health.iter().map(|(name, health)| self.source(name, health)).collect();
        let tables = vec![
            TableReport { name: "containers", used: stats.containers as u64, capacity: self.limits.0 },
            TableReport { name: "processes", used: stats.processes as u64, capacity: self.limits.1 },
            TableReport { name: "watched_cgroups", used: watched, capacity: CGROUPS },
            TableReport {
                name: "flight_bytes",
                used: stats.flight_bytes as u64,
                capacity: crate::core::flight::MAX_BYTES as u64,
            },
        ];
        self.status.update(|status| {
            (status.sources, status.tables) = (sources, tables);
            status.exceptions.clone_from(&stats.exceptions);
        });
    }

    /// Sets the metrics of what the rules file withholds.
    fn policy(&self, stats: &Stats) {
        let metrics = &self.metrics;
        for ((rule, exception), total) in &stats.policy.excepted {
            metrics.findings_excepted(*rule, exception, *total);
        }
        for ((rule, reason), total) in &stats.policy.withheld {
            metrics.findings_withheld(*rule, *reason, *total);
        }
        for state in ExceptionState::ALL {
            let is = |exception: &&ExceptionView| ExceptionState::of(exception) == state;
            metrics.exceptions(state, stats.exceptions.iter().filter(is).count());
        }
    }

    fn source(&mut self, name: &'static str, health: &SourceHealth) -> SourceReport {
        let counted = self.source_errors.entry(name).or_default();
        for _ in *counted..health.errors {
            self.metrics.source_error(name);
        }
        *counted = health.errors;
        let up = health.state == SourceState::Ok;
        let detail = if health.detail.is_empty() { health.state.name() } else { health.detail.as_str() };
        let report = SourceReport {
            name,
            up,
            error: (!up).then(|| detail.to_owned()),
            detail: (up && !health.detail.is_empty()).then(|| detail.to_owned()),
            last_success: up.then(|| self.clock.now()),
        };
        self.metrics.source(&report);
        report
    }

    /// Opens the file again, after someone has moved it away.
    pub(super) fn reopen(&self) {
        self.sinks.reopen();
    }

    /// Completes when nobody reads standard output any more.
    pub(super) async fn stdout_gone(&self) {
        self.sinks.stdout_gone().await;
    }

    /// Writes what is left.
    pub(super) async fn stop(self) {
        self.agent(AgentState::Stopping, None);
        let started = Instant::now();
        let sinks = self.sinks;
        let drained = tokio::task::spawn_blocking(move || sinks.drain(DRAIN)).await;
        if let Some(serving) = self.serving {
            serving.abort();
        }
        match drained {
            Ok(drained) if drained.lost > 0 => {
                tracing::error!("{} lines were not written within {:?}", drained.lost, started.elapsed());
            }
            Ok(_) => {}
            Err(error) => tracing::error!("the outputs did not end well: {error}"),
        }
    }
}

fn report(probe: &Probe) -> ProbeReport {
    ProbeReport {
        hook: probe.hook.name(),
        mechanism: probe.mechanism.map(crate::kernel::plan::Mechanism::name),
        state: probe.state.name(),
        reason: probe.state.reason().map(str::to_owned),
        without: probe.without,
    }
}
