//! The wire format: schema `userns-agent/v1`, one JSON object a line.
//!
//! The only module that derives `Serialize`: a serialisable type is a promise to consumers, so the core's
//! types stay free to change. docs/schema/v1.json is the schema; every field it lists is always there, `null`
//! where nothing is known.

mod evidence;
mod finding;
mod format;
mod pods;
mod process;
mod rules;
mod status;
#[cfg(test)]
mod tests;

pub use pods::pods;
pub use rules::rules;

use serde::Serialize;

use super::metrics::Loss;
use super::report::{AgentEvent, ProbeReport, Status, Suppressed, WallClock};
use crate::core::finding::{Finding, FindingId, Severity};
use crate::core::rules::{Rule, rule};
use crate::event::Nanos;

/// Name and version of the schema of lines.
pub const SCHEMA: &str = "userns-agent/v1";
/// Name and version of the schema of `/status`.
pub const STATUS_SCHEMA: &str = "userns-agent/status/v1";

/// Name and version of the schema of the local socket's answer about findings.
const FINDINGS_SCHEMA: &str = "userns-agent/findings/v1";

/// Renders lines for one node.
#[derive(Clone, Debug)]
pub struct Renderer {
    node: String,
}

/// What every line begins with.
#[derive(Serialize)]
struct Envelope<'a> {
    schema: &'static str,
    event: &'static str,
    time: String,
    node: &'a str,
}

#[derive(Serialize)]
struct AgentLine<'a> {
    #[serde(flatten)]
    envelope: Envelope<'a>,
    state: &'static str,
    reason: Option<&'a str>,
    version: &'static str,
    listen: Option<String>,
    probes: Vec<Probe<'a>>,
}

#[derive(Serialize)]
struct Probe<'a> {
    hook: &'static str,
    mechanism: Option<&'static str>,
    state: &'static str,
    reason: Option<&'a str>,
    without: Option<&'static str>,
}

impl<'a> Probe<'a> {
    fn new(report: &'a ProbeReport) -> Self {
        Self {
            hook: report.hook,
            mechanism: report.mechanism,
            state: report.state,
            reason: report.reason.as_deref(),
            without: (!report.is_active()).then_some(report.without),
        }
    }
}

#[derive(Serialize)]
struct SuppressedLine<'a> {
    #[serde(flatten)]
    envelope: Envelope<'a>,
    reason: &'static str,
    kind: Option<&'static str>,
    sink: Option<&'static str>,
    severity: Option<&'static str>,
    count: u64,
    since: String,
    pod: Option<finding::Pod<'a>>,
    container: Option<finding::Container<'a>>,
}

#[derive(Serialize)]
struct FindingsBody<'a> {
    schema: &'static str,
    version: &'static str,
    findings: Vec<finding::FindingLine<'a>>,
    open: Vec<String>,
}

impl Renderer {
    /// Renders lines for the node of this name.
    #[must_use]
    pub fn new(node: String) -> Self {
        Self { node }
    }

    /// A finding, with its end of line.
    ///
    /// # Errors
    ///
    /// The serialiser's; none of the types has a form that JSON lacks.
    pub fn finding(
        &self,
        finding: &Finding,
        rule: &Rule,
        clock: WallClock,
    ) -> Result<Vec<u8>, serde_json::Error> {
        let envelope = self.envelope("finding", finding.told_at(), clock);
        format::line(&finding::FindingLine::new(envelope, finding, rule, clock))
    }

    /// What the local socket answers about findings: some of them whole, and the ids of all that are open.
    ///
    /// # Errors
    ///
    /// As [`Renderer::finding`].
    pub fn findings(
        &self,
        findings: &[Finding],
        open: &[FindingId],
        clock: WallClock,
    ) -> Result<Vec<u8>, serde_json::Error> {
        let line = |finding| {
            let envelope = self.envelope("finding", Finding::told_at(finding), clock);
            finding::FindingLine::new(envelope, finding, rule(finding.rule), clock)
        };
        format::line(&FindingsBody {
            schema: FINDINGS_SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            findings: findings.iter().map(line).collect(),
            open: open.iter().map(ToString::to_string).collect(),
        })
    }

    /// What the agent tells about itself, with its end of line.
    ///
    /// # Errors
    ///
    /// As [`Renderer::finding`].
    pub fn agent(&self, event: &AgentEvent, clock: WallClock) -> Result<Vec<u8>, serde_json::Error> {
        format::line(&AgentLine {
            envelope: self.envelope("agent", event.time, clock),
            state: event.state.name(),
            reason: event.reason.as_deref(),
            version: event.version,
            listen: event.listen.map(|address| address.to_string()),
            probes: event.probes.iter().map(Probe::new).collect(),
        })
    }

    /// What was not told one by one, with its end of line.
    ///
    /// # Errors
    ///
    /// As [`Renderer::finding`].
    pub fn suppressed(
        &self,
        suppressed: &Suppressed,
        clock: WallClock,
    ) -> Result<Vec<u8>, serde_json::Error> {
        format::line(&SuppressedLine {
            envelope: self.envelope("suppressed", suppressed.time, clock),
            reason: suppressed.reason,
            kind: suppressed.kind,
            sink: suppressed.sink,
            severity: suppressed.severity.map(Severity::name),
            count: suppressed.count,
            since: clock.rfc3339(suppressed.since),
            pod: suppressed.pod.as_ref().map(finding::Pod::new),
            container: suppressed.container.as_ref().map(finding::Container::new),
        })
    }

    fn envelope(&self, event: &'static str, time: Nanos, clock: WallClock) -> Envelope<'_> {
        Envelope { schema: SCHEMA, event, time: clock.rfc3339(time), node: &self.node }
    }
}

/// What `/status` answers, with its end of line.
///
/// # Errors
///
/// As [`Renderer::finding`].
pub fn status(
    status: &Status,
    losses: &[Loss],
    health: Health,
    clock: WallClock,
) -> Result<Vec<u8>, serde_json::Error> {
    format::line(&status::StatusBody::new(status, losses, health, clock))
}

/// What the HTTP server itself adds to the status.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Health {
    /// Seconds since the agent started.
    pub uptime: f64,
    /// Seconds since the event loop was last heard of.
    pub heartbeat_age: f64,
    /// Whether that is recent enough.
    pub alive: bool,
}
