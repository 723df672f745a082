//! Wires the stages together: the only module that sees both ends.
//!
//! Start-up order is what makes an agent that starts late as good as one that started early. Programs are attached
//! first, so nothing is missed from then on; then every pod's cgroup is registered, parents before children, so
//! that the kernel registers what appears meanwhile; then the task iterator adopts every task in them, twice, so
//! that children born during the first pass are met by the second.

mod io;
pub mod proc_sweep;
mod setup;
mod walk;

use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::cli::ExitCode;
use crate::config::Config;
use crate::core::{Engine, Output};
use crate::decode::decode;
use crate::event::{Cgroup, Counter, Fact, Input};
use crate::host::cgroupfs::CgroupFsError;
use crate::kernel::features::FeatureError;
use crate::kernel::load::{LoadError, Loaded, Sweep};
use crate::kernel::ring::Ring;
use crate::recording::{self, Recorder};
use crate::sink::local::Query;
use io::Outputs;
use proc_sweep::{Found, ProcSweep};

/// How often time is told to the core.
const TICK: Duration = Duration::from_millis(100);
/// How often counts are fetched from the kernel.
const COUNTS: Duration = Duration::from_secs(1);
/// Records taken from a ring before looking at the others again.
const BATCH: usize = 256;

/// What a sweep makes up for.
const MADE_UP_FOR: [Counter; 2] = [Counter::LineageFailed, Counter::EvidenceLost];

/// Why the agent cannot run.
#[derive(Debug, Error)]
pub enum RunError {
    /// Not root.
    #[error("needs root, to load eBPF programs and to see other users' processes: run it with sudo")]
    NotRoot,
    /// In a user namespace of its own.
    #[error(
        "runs in a user namespace of its own ({inum}), so every id it sees is relative to that: run it in the host's, \
         in a pod with hostUsers unset"
    )]
    OwnUserNamespace {
        /// The agent's user namespace.
        inum: u32,
    },
    /// The kernel cannot be looked at.
    #[error(transparent)]
    Features(#[from] FeatureError),
    /// Programs cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// None of the programs could be attached.
    #[error("no eBPF program could be attached: {0}")]
    NoProbe(String),
    /// No cgroup hierarchy.
    #[error(transparent)]
    Cgroups(#[from] CgroupFsError),
    /// What counts as the host's is not known.
    #[error(transparent)]
    Reference(#[from] crate::host::reference::ReferenceError),
    /// The rules file is of no use.
    #[error(transparent)]
    Rules(#[from] crate::policy::RulesError),
    /// The recording cannot be made.
    #[error(transparent)]
    Record(#[from] recording::RecordError),
    /// An output cannot be opened.
    #[error(transparent)]
    Output(#[from] io::OutputError),
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Os {
        /// What was wanted.
        what: &'static str,
        /// The error.
        source: std::io::Error,
    },
}

impl From<&RunError> for ExitCode {
    fn from(error: &RunError) -> Self {
        match error {
            RunError::NotRoot => Self::NotPermitted,
            RunError::OwnUserNamespace { .. }
            | RunError::Reference(_)
            | RunError::Features(_)
            | RunError::Load(_)
            | RunError::NoProbe(_)
            | RunError::Cgroups(_) => Self::Unavailable,
            RunError::Rules(error) => error.into(),
            RunError::Record(_) => Self::CannotCreate,
            RunError::Output(error) => error.exit_code(),
            RunError::Os { .. } => Self::OsError,
        }
    }
}

fn os(what: &'static str) -> impl FnOnce(std::io::Error) -> RunError {
    move |source| RunError::Os { what, source }
}

/// Everything that lives as long as the agent runs.
struct App {
    engine: Engine,
    recorder: Option<Recorder>,
    loaded: Loaded,
    evidence: Ring,
    bulk: Ring,
    walker: walk::Walker,
    sources: setup::Sources,
    queries: mpsc::Receiver<Query>,
    outputs: Outputs,
    clock: setup::Clock,
    /// [`MADE_UP_FOR`], as far as a sweep has looked after them.
    made_up_for: u64,
    /// The sweep of kernels without a task iterator, unless it is under way.
    by_proc: Option<ProcSweep>,
    /// A sweep under way.
    sweeping: Option<JoinHandle<Swept>>,
    /// Reused between inputs.
    decided: Vec<Output>,
}

/// How a sweep went.
#[derive(Default)]
struct Swept {
    took: Duration,
    /// Why it did not happen or stopped.
    error: Option<String>,
    /// What it found by way of procfs, and what it goes on with.
    by_proc: Option<(ProcSweep, Found)>,
}

/// The end of the sweep under way; never, without one.
async fn finished(sweeping: &mut Option<JoinHandle<Swept>>) -> Swept {
    let Some(handle) = sweeping else { return std::future::pending().await };
    let swept = handle.await;
    *sweeping = None;
    swept.unwrap_or_else(|error| Swept { error: Some(error.to_string()), ..Swept::default() })
}

/// The pods' and containers' cgroups that a walk met.
fn containers(facts: &[Fact]) -> Vec<Cgroup> {
    let cgroup = |fact: &Fact| if let Fact::CgroupSeen(cgroup) = fact { Some(cgroup.clone()) } else { None };
    facts.iter().filter_map(cgroup).collect()
}

fn sweep_proc(mut by_proc: ProcSweep, containers: &[Cgroup]) -> Swept {
    let started = Instant::now();
    let (found, error) = match by_proc.run(containers) {
        Ok(found) => (found, None),
        Err(error) => (Found::default(), Some(error.to_string())),
    };
    Swept { took: started.elapsed(), error, by_proc: Some((by_proc, found)) }
}

/// What makes the agent stop or change.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, RunError> {
        let register = |kind| signal(kind).map_err(os("cannot handle signals"));
        Ok(Self {
            terminate: register(SignalKind::terminate())?,
            interrupt: register(SignalKind::interrupt())?,
            hangup: register(SignalKind::hangup())?,
        })
    }
}

/// What is recorded of a run.
#[derive(Clone, Debug)]
pub struct Recording {
    /// Where.
    pub options: recording::Options,
    /// When the run ends, if not by a signal.
    pub duration: Option<Duration>,
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
///
/// [`RunError`] if the agent cannot start. Once it runs it keeps running: what fails later is counted and shown.
pub async fn run(config: Config, recording: Option<Recording>) -> Result<(), RunError> {
    let mut signals = Signals::new()?;
    let mut app = setup::start(&config, recording.as_ref().map(|it| &it.options)).await?;
    match recording.and_then(|it| it.duration) {
        Some(duration) => drop(tokio::time::timeout(duration, app.run(&config, &mut signals)).await),
        None => app.run(&config, &mut signals).await,
    }
    app.stop().await;
    Ok(())
}

/// The one way to the core, so that a recording has all that it took in.
fn take(engine: &mut Engine, recorder: &mut Option<Recorder>, input: Input, decided: &mut Vec<Output>) {
    if let Some(recorder) = recorder {
        recorder.take(&input, engine.now());
    }
    engine.handle(input, decided);
}

impl App {
    async fn run(&mut self, config: &Config, signals: &mut Signals) {
        let mut tick = every(TICK);
        let mut counts = every(COUNTS);
        let mut sweep = every(config.sweep_interval);
        sweep.reset();
        loop {
            // evidence first: everything else can wait for a moment
            tokio::select! {
                biased;
                _ = signals.terminate.recv() => return,
                _ = signals.interrupt.recv() => return,
                ready = self.evidence.ready() => self.drain_rings(ready),
                _ = tick.tick() => self.tick(),
                facts = self.sources.next() => self.learn(facts),
                ready = self.bulk.ready() => self.drain_rings(ready),
                _ = counts.tick() => self.count(),
                swept = finished(&mut self.sweeping) => self.swept(swept),
                Some(query) = self.queries.recv() => self.outputs.answer(query, &self.engine),
                _ = sweep.tick(), if self.sweeping.is_none() => self.sweep(),
                _ = signals.hangup.recv() => self.outputs.reopen(),
                () = self.outputs.stdout_gone() => return tracing::error!("nobody reads standard output any more"),
            }
        }
    }

    fn drain_rings(&mut self, ready: std::io::Result<()>) {
        if let Err(error) = ready {
            self.outputs.trouble("ring", &error);
        }
        loop {
            let more_evidence = self.drain(true);
            let more_bulk = self.drain(false);
            if !more_evidence && !more_bulk {
                return;
            }
        }
    }

    /// Takes one batch from a ring; returns whether there may be more.
    fn drain(&mut self, evidence: bool) -> bool {
        let Self { engine, recorder, evidence: first, bulk: second, outputs, sources, decided, .. } = self;
        let ring = if evidence { first } else { second };
        let more = ring.drain(BATCH, |bytes| match decode(bytes) {
            Ok(event) => {
                outputs.saw(&event);
                sources.saw(&event);
                take(engine, recorder, Input::Event(event), decided);
            }
            Err(error) => outputs.undecodable(error),
        });
        self.act();
        more
    }

    fn take(&mut self, input: Input) {
        take(&mut self.engine, &mut self.recorder, input, &mut self.decided);
    }

    fn learn(&mut self, facts: Vec<Fact>) {
        let now = self.clock.now();
        for fact in facts {
            self.take(Input::Fact(now, fact));
        }
        self.act();
    }

    fn tick(&mut self) {
        self.take(Input::Tick(self.clock.now()));
        self.act();
        self.outputs.alive();
    }

    /// Does what the core wants done.
    fn act(&mut self) {
        for output in self.decided.drain(..) {
            match output {
                Output::Finding(finding) => self.outputs.finding(&finding),
                Output::Withheld(withheld) => self.outputs.withheld(*withheld),
                Output::Attributed(kind, took) => self.outputs.attributed(kind, took),
                Output::Forget(container) => {
                    self.loaded.forget(container);
                    self.outputs.forget(container);
                }
            }
        }
    }

    fn count(&mut self) {
        self.learn(vec![Fact::Aggregates(self.loaded.aggregates()), Fact::Budgets(self.loaded.budgets())]);
        let health = self.health();
        let counters = self.loaded.counters();
        self.outputs.count(&self.engine.stats(), &counters, self.loaded.nr_watched(), &health);
        let without: u64 = counters.iter().filter(|row| MADE_UP_FOR.contains(&row.0)).map(|row| row.1).sum();
        if without > self.made_up_for && self.sweeping.is_none() {
            self.made_up_for = without;
            self.sweep();
        }
    }

    fn health(&self) -> Vec<(&'static str, crate::host::SourceHealth)> {
        let mut health = self.sources.health();
        health.push(("cgroups", self.walker.health.clone()));
        health
    }

    /// Walks cgroupfs, looks runtimes up again, and begins to visit every task.
    fn sweep(&mut self) {
        self.outputs.programs(&self.loaded.programs());
        // some milliseconds of reading directories
        let facts = tokio::task::block_in_place(|| self.walker.walk(&mut self.loaded, self.clock));
        if let Some(by_proc) = self.by_proc.take() {
            let containers = containers(&facts);
            self.learn(facts);
            self.sweeping = Some(tokio::task::spawn_blocking(move || sweep_proc(by_proc, &containers)));
            return;
        }
        self.learn(facts);
        let sweep = self.loaded.sweep();
        self.sweeping = Some(tokio::task::spawn_blocking(|| {
            let started = Instant::now();
            let error = sweep.and_then(Sweep::run).err().map(|error| error.to_string());
            Swept { took: started.elapsed(), error, by_proc: None }
        }));
    }

    /// Takes in what a sweep found otherwise than through the rings.
    fn swept(&mut self, mut swept: Swept) {
        if let Some((by_proc, found)) = swept.by_proc.take() {
            self.by_proc = Some(by_proc);
            self.outputs.swept_proc(&found);
            for event in found.events {
                self.take(Input::Event(event));
            }
            self.act();
        }
        self.outputs.swept(swept.took, swept.error);
    }

    /// Sweeps, reading what it says, and comes back when it is done.
    async fn sweep_now(&mut self) {
        self.sweep();
        while self.sweeping.is_some() {
            tokio::select! {
                biased;
                ready = self.evidence.ready() => self.drain_rings(ready),
                swept = finished(&mut self.sweeping) => self.swept(swept),
            }
        }
        self.drain_rings(Ok(()));
    }

    /// Says what is still in the rings, then ends the outputs.
    async fn stop(mut self) {
        self.drain_rings(Ok(()));
        self.count();
        self.tick();
        self.engine.flush(&mut self.decided);
        self.act();
        self.outputs.stop().await;
        // last, as it waits for the disk for as long as that takes
        if let Some(recorder) = self.recorder.take() {
            tokio::task::block_in_place(|| recorder.finish());
        }
    }
}
