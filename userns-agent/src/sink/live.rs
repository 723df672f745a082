//! The live view: a finding in a few lines for a person at a terminal.
//!
//! Pure formatting. Whatever a workload could have chosen (names, paths, arguments) is escaped, so that it can
//! neither move the cursor nor colour, hide or reorder what stands around it.

use std::fmt::Write as _;

use super::names::{capability as capability_name, error as error_name};
use super::report::{AgentEvent, AgentState, Suppressed, WallClock};
use super::text::{escape, escape_into};
use crate::core::finding::{ContainerRef, Finding, PodRef, Severity, Status, to_container};
use crate::core::rules::Rule;
use crate::event::{Ids, Nanos, Task, TaskEvent};

/// How to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Whether to use colour.
    pub color: bool,
    /// For the time of day, UTC.
    pub clock: WallClock,
}

/// Whether colour is wanted, given whether the output is a terminal and the value of `NO_COLOR`: any but the empty
/// one speaks against it.
#[must_use]
pub fn wants_color(is_terminal: bool, no_color: Option<&std::ffi::OsStr>) -> bool {
    is_terminal && no_color.is_none_or(std::ffi::OsStr::is_empty)
}

/// Characters of a container's id that are shown, as runtimes' own tools do.
const SHORT_ID: usize = 12;
/// Characters of a command line that are shown.
const COMMAND: usize = 160;

const BOLD: &str = "1";
const DIM: &str = "2";

/// A finding.
#[must_use]
pub fn format(finding: &Finding, rule: &Rule, style: &Style) -> String {
    let mut out = Out { text: String::new(), color: style.color };
    let again = match finding.status {
        Status::Opened => String::new(),
        Status::Updated => format!(" (update, {} in all)", finding.count),
    };
    out.paint(DIM, &time_of_day(style, finding.time));
    out.text.push(' ');
    out.paint(severity_color(finding.severity), &format!("{:<8}", finding.severity.name().to_uppercase()));
    out.text.push(' ');
    out.paint(BOLD, &format!("{} {}{again}", rule.id, rule.title));
    out.text.push('\n');
    let place = place(finding.pod.as_ref(), finding.container.as_ref());
    out.row("in", &place);
    if let Some(event) = finding.task.as_deref() {
        out.row("process", &process(event));
        out.row("ids", &ids(&event.task));
    }
    out.row("why", &escape(&finding.why));
    if let Some(used) = used(finding) {
        out.row("used", &used);
    }
    out.text
}

/// What the agent tells about itself: a line, and one for each hook that does not work.
#[must_use]
pub fn format_agent(event: &AgentEvent, style: &Style) -> String {
    let mut out = Out { text: String::new(), color: style.color };
    let color = match event.state {
        AgentState::Ready => "32",
        AgentState::Degraded => "33",
        AgentState::Starting | AgentState::Stopping => DIM,
    };
    out.paint(DIM, &time_of_day(style, event.time));
    out.text.push(' ');
    out.paint(color, &format!("{:<8}", event.state.name()));
    let _ = write!(out.text, " userns-agent {}", event.version);
    if !event.probes.is_empty() {
        let active = event.probes.iter().filter(|probe| probe.is_active()).count();
        let _ = write!(out.text, ", {active} of {} probes active", event.probes.len());
    }
    if let Some(listen) = event.listen {
        let _ = write!(out.text, ", http://{listen}/");
    }
    if let Some(reason) = &event.reason {
        out.text.push_str(": ");
        escape_into(&mut out.text, reason);
    }
    out.text.push('\n');
    for probe in event.probes.iter().filter(|probe| !probe.is_active()) {
        let reason = escape(probe.reason.as_deref().unwrap_or("no reason given"));
        out.row(probe.state, &format!("{}: {reason}; without it, {}", probe.hook, probe.without));
    }
    out.text
}

/// What was not told one by one.
#[must_use]
pub fn format_suppressed(suppressed: &Suppressed, style: &Style) -> String {
    let mut out = Out { text: String::new(), color: style.color };
    let severity = suppressed.severity.map_or(String::new(), |severity| format!(" of severity {}", severity.name()));
    let since = time_of_day(style, suppressed.since);
    out.paint(DIM, &time_of_day(style, suppressed.time));
    out.text.push(' ');
    out.paint("33", "lost    ");
    let _ = writeln!(
        out.text,
        " {} lines{severity} were not shown since {since}: {}",
        suppressed.count, suppressed.reason
    );
    out.text
}

struct Out {
    text: String,
    color: bool,
}

impl Out {
    fn paint(&mut self, color: &str, text: &str) {
        if self.color {
            let _ = write!(self.text, "\x1b[{color}m{text}\x1b[0m");
        } else {
            self.text.push_str(text);
        }
    }

    /// A line below the first one; `text` is escaped already.
    fn row(&mut self, name: &str, text: &str) {
        let indent = "  ";
        self.text.push_str(indent);
        self.paint(DIM, &format!("{name:<8}"));
        let _ = writeln!(self.text, " {text}");
    }
}

fn severity_color(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "36",
        Severity::Low => "34",
        Severity::Medium => "33",
        Severity::High => "31",
        Severity::Critical => "1;37;41",
    }
}

/// `hh:mm:ss.mmm`
fn time_of_day(style: &Style, time: Nanos) -> String {
    style.clock.rfc3339(time).get(11..23).unwrap_or_default().to_owned()
}

fn place(pod: Option<&PodRef>, container: Option<&ContainerRef>) -> String {
    let pod = match pod {
        Some(PodRef { namespace: Some(namespace), name: Some(name), .. }) => {
            format!("pod {}/{}", escape(namespace), escape(name))
        }
        Some(pod) => format!("pod {}", pod.uid),
        None => "unknown pod".to_owned(),
    };
    let Some(container) = container else { return format!("{pod}, unknown container") };
    let id: String = container.id.chars().take(SHORT_ID).collect();
    let runtime = container.runtime.map(|runtime| format!(" ({runtime})")).unwrap_or_default();
    format!("{pod}, container {}{runtime}", escape(&id))
}

fn process(event: &TaskEvent) -> String {
    let mut text = escape(event.task.comm.as_str());
    let _ = write!(text, "[{}]", event.task.process.pid);
    let path = event.path.as_str();
    if !path.is_empty() {
        let _ = write!(text, " {}", shorten(&escape(path)));
    }
    if event.args.len() > 1 {
        let args: Vec<String> = event.args.iter().skip(1).map(|arg| argument(arg.as_str())).collect();
        let _ = write!(text, " {}", shorten(&args.join(" ")));
    }
    if let Some(parent) = event.ancestors.first() {
        let _ = write!(text, ", child of {}[{}]", escape(parent.comm.as_str()), parent.process.pid);
    }
    text
}

/// An argument, quoted if it would not be read as one.
fn argument(arg: &str) -> String {
    let arg = escape(arg);
    if arg.is_empty() || arg.contains([' ', '\'', '"']) { format!("{arg:?}") } else { arg }
}

fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(COMMAND).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// The ids that decide what the process may do, as the host and as the container see them.
fn ids(task: &Task) -> String {
    let ns = task.pod_userns.as_ref().filter(|ns| ns.inum != 0).unwrap_or(&task.userns);
    let view = |map, id| to_container(map, id).map_or_else(|| "unmapped".to_owned(), |id| id.to_string());
    let Ids { uid, euid, gid, egid, .. } = task.ids;
    let mut parts = Vec::new();
    for (name, map, id) in [("euid", &ns.uid_map, euid), ("egid", &ns.gid_map, egid)] {
        parts.push(format!("{name} {id} on the host = {} in the container", view(map, id)));
    }
    for (name, map, id, effective) in [("uid", &ns.uid_map, uid, euid), ("gid", &ns.gid_map, gid, egid)] {
        if id != effective {
            parts.push(format!("{name} {id} = {}", view(map, id)));
        }
    }
    parts.join(", ")
}

fn used(finding: &Finding) -> Option<String> {
    let capabilities = finding.capabilities.iter().map(|used| {
        let verdict = if used.granted { "granted" } else { "denied" };
        format!("{} {verdict} {}×", capability_name(used.capability), used.count)
    });
    let calls = finding.calls.iter().map(|used| {
        let result = match (used.ret, error_name(used.ret)) {
            (0.., _) => "succeeded".to_owned(),
            (_, Some(error)) => error.to_owned(),
            (ret, None) => format!("error {ret}"),
        };
        format!("{} {result} {}×", used.call, used.count)
    });
    let used: Vec<String> = capabilities.chain(calls).collect();
    (!used.is_empty()).then(|| used.join(", "))
}
