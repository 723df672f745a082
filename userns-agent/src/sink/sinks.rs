//! The fan-out.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::watch;

use super::SinkKind;
use super::file::{self, FileError, LogFile};
use super::json;
use super::live::{self, Style};
use super::memory::{Memory, Receipt};
use super::metrics::Metrics;
use super::queue::{About, Limits, Line, Pushed, Queue};
use super::report::{AgentEvent, Suppressed, WallClock, boot_now};
use super::writer::{Stream, Target, Writer};
use crate::core::finding::{Finding, Severity, Status};
use crate::core::rules;

/// What an output is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A JSON object a line.
    Json,
    /// The live view.
    Live {
        /// Whether to use colour.
        color: bool,
    },
}

/// Which outputs there are.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the node, for every JSON line.
    pub node: String,
    /// What goes to standard output.
    pub stdout: Option<Form>,
    /// The output file.
    pub file: Option<file::Options>,
    /// Budgets of each queue.
    pub limits: Limits,
}

/// Why the outputs cannot be started.
#[derive(Debug, Error)]
pub enum SinkError {
    /// Standard output is closed.
    #[error("standard output is not usable: {source}")]
    Stdout {
        /// Why.
        source: io::Error,
    },
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// No thread.
    #[error("cannot start the thread that writes to the {sink}: {source}")]
    Thread {
        /// The output.
        sink: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// How draining ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Lines that were not written, of all outputs.
    pub lost: u64,
}

struct Output {
    kind: SinkKind,
    form: Form,
    queue: Arc<Queue>,
}

/// All outputs.
pub struct Sinks {
    renderer: json::Renderer,
    outputs: Vec<Output>,
    metrics: Arc<Metrics>,
    gone: watch::Sender<bool>,
    memory: Option<Arc<Memory>>,
}

/// A line in each form that an output wants.
#[derive(Default)]
struct Rendered {
    json: Option<Bytes>,
    live: Option<Bytes>,
}

impl Sinks {
    /// Opens the outputs and starts their threads.
    ///
    /// # Errors
    ///
    /// [`SinkError`] if one of them cannot be used.
    pub fn start(options: Options, metrics: Arc<Metrics>) -> Result<Self, SinkError> {
        let mut targets: Vec<(SinkKind, Form, Box<dyn Target>)> = Vec::new();
        if let Some(form) = options.stdout {
            let stream = io::stdout().as_fd().try_clone_to_owned();
            let stream = stream.map_err(|source| SinkError::Stdout { source })?;
            targets.push((SinkKind::Stdout, form, Box::new(Stream::new(stream.into()))));
        }
        if let Some(file) = options.file {
            targets.push((SinkKind::File, Form::Json, Box::new(LogFile::open(file)?)));
        }
        Self::with_targets(options.node, options.limits, targets, metrics)
    }

    pub(super) fn with_targets(
        node: String,
        limits: Limits,
        targets: Vec<(SinkKind, Form, Box<dyn Target>)>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SinkError> {
        let mut sinks = Self {
            renderer: json::Renderer::new(node),
            outputs: Vec::new(),
            metrics,
            gone: watch::Sender::new(false),
            memory: None,
        };
        for (kind, form, target) in targets {
            let queue = Arc::new(Queue::new(limits));
            let gone = sinks.gone.clone();
            let writer = Writer {
                kind,
                queue: Arc::clone(&queue),
                metrics: Arc::clone(&sinks.metrics),
                target,
                on_gone: Box::new(move || {
                    gone.send_replace(true);
                }),
                complained: None,
            };
            thread::Builder::new()
                .name(format!("sink-{}", kind.name()))
                .spawn(move || writer.run())
                .map_err(|source| SinkError::Thread { sink: kind.name(), source })?;
            sinks.outputs.push(Output { kind, form, queue });
        }
        Ok(sinks)
    }

    /// Has every finding remembered that all outputs took.
    #[must_use]
    pub fn remembering(mut self, memory: Option<Arc<Memory>>) -> Self {
        self.memory = memory;
        self
    }

    /// What renders lines of JSON.
    #[must_use]
    pub fn renderer(&self) -> &json::Renderer {
        &self.renderer
    }

    /// Tells a finding.
    pub fn finding(&self, finding: &Finding, clock: WallClock) {
        let rule = rules::rule(finding.rule);
        let about = match finding.status {
            Status::Opened => About::Opened(finding.time, finding.severity),
            Status::Updated | Status::Amended | Status::Resolved => {
                About::Updated(finding.id, finding.severity)
            }
        };
        let memory = self.memory.as_ref();
        let receipt = memory.and_then(|memory| Receipt::new(memory, finding, self.outputs.len()));
        let json = || self.renderer.finding(finding, rule, clock);
        let live = |style: &Style| live::format(finding, rule, style);
        self.tell(about, receipt.map(Arc::new), clock, &json, &live);
    }

    /// Tells about the agent itself.
    pub fn agent(&self, event: &AgentEvent, clock: WallClock) {
        self.tell(About::Agent, None, clock, &|| self.renderer.agent(event, clock), &|style| {
            live::format_agent(event, style)
        });
    }

    /// Tells about what was not told one by one.
    pub fn suppressed(&self, suppressed: &Suppressed, clock: WallClock) {
        self.tell(About::Agent, None, clock, &|| self.renderer.suppressed(suppressed, clock), &|style| {
            live::format_suppressed(suppressed, style)
        });
    }

    /// Opens the output file afresh, as after a rotation by another program.
    pub fn reopen(&self) {
        for output in self.outputs.iter().filter(|output| output.kind == SinkKind::File) {
            output.queue.reopen();
        }
    }

    /// Returns when the reader of standard output has gone, which ends the use of that output for good.
    pub async fn stdout_gone(&self) {
        let mut gone = self.gone.subscribe();
        // the sender lives in `self`
        let _ = gone.wait_for(|gone| *gone).await;
    }

    /// Writes what waits, for at most `timeout` in all, and takes nothing any more.
    pub fn drain(&self, timeout: Duration) -> Drained {
        let deadline = Instant::now() + timeout;
        let clock = WallClock::now();
        let mut lost = 0;
        for output in &self.outputs {
            self.tell_lost(output, clock);
            for (severity, count) in output.queue.close(deadline) {
                self.metrics.sink_dropped(output.kind, severity, count);
                lost += count;
            }
        }
        Drained { lost }
    }

    fn tell(
        &self,
        about: About,
        receipt: Option<Arc<Receipt>>,
        clock: WallClock,
        json: &dyn Fn() -> Result<Vec<u8>, serde_json::Error>,
        live: &dyn Fn(&Style) -> String,
    ) {
        let mut rendered = Rendered::default();
        for output in &self.outputs {
            self.tell_lost(output, clock);
            let bytes = match output.form {
                Form::Json => rendered.json.get_or_insert_with(|| match json() {
                    Ok(bytes) => bytes.into(),
                    Err(error) => {
                        tracing::error!(%error, "cannot render a line");
                        self.metrics.sink_error(output.kind);
                        Bytes::new()
                    }
                }),
                Form::Live { color } => {
                    rendered.live.get_or_insert_with(|| live(&Style { color, clock }).into())
                }
            };
            if !bytes.is_empty() {
                self.push(output, Line { bytes: bytes.clone(), about, receipt: receipt.clone() });
            }
        }
    }

    fn push(&self, output: &Output, line: Line) {
        let about = line.about;
        match output.queue.push(line, boot_now()) {
            Pushed::Queued => {}
            Pushed::Superseded => self.metrics.sink_superseded(output.kind),
            Pushed::Dropped => self.metrics.sink_dropped(output.kind, about.severity(), 1),
        }
        self.metrics.sink_queue_bytes(output.kind, output.queue.bytes());
    }

    /// Tells an output what it lacks, once there is room for that.
    fn tell_lost(&self, output: &Output, clock: WallClock) {
        let Some(lost) = output.queue.take_lost() else { return };
        for (severity, count) in lost.count {
            let suppressed = self.lost(output, lost.since, severity, count);
            let bytes = match output.form {
                Form::Json => self.renderer.suppressed(&suppressed, clock).unwrap_or_default(),
                Form::Live { color } => {
                    live::format_suppressed(&suppressed, &Style { color, clock }).into_bytes()
                }
            };
            self.push(output, Line { bytes: bytes.into(), about: About::Agent, receipt: None });
        }
    }

    fn lost(
        &self,
        output: &Output,
        since: crate::event::Nanos,
        severity: Severity,
        count: u64,
    ) -> Suppressed {
        Suppressed {
            time: boot_now(),
            since,
            reason: "queue_full",
            kind: None,
            sink: Some(output.kind.name()),
            severity: Some(severity),
            count,
            container: None,
            pod: None,
        }
    }
}

#[cfg(test)]
mod tests;
