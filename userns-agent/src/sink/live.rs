//! The live view: a finding in a few lines for a person at a terminal.
//!
//! Pure formatting. Whatever a workload could have chosen (names, paths, arguments) is escaped, so that it
//! can neither move the cursor nor colour, hide or reorder what stands around it.

use std::fmt::Write as _;
use std::time::Duration;

use super::names::{capability as capability_name, error as error_name};
use super::report::{AgentEvent, AgentState, Suppressed, WallClock};
use super::text::{escape, escape_into};
use crate::core::finding::{ContainerRef, Finding, PodRef, Resolved, Severity, Status, to_container};
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

/// Whether colour is wanted, given whether the output is a terminal and the value of `NO_COLOR`: any but the
/// empty one speaks against it.
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
        Status::Amended => " (more is known of it)".to_owned(),
        Status::Resolved => format!(" (resolved, {} in all)", finding.count),
    };
    out.paint(DIM, &time_of_day(style, finding.told_at()));
    out.text.push(' ');
    out.paint(severity_color(finding.severity), &format!("{:<8}", finding.severity.name().to_uppercase()));
    out.text.push(' ');
    out.paint(BOLD, &format!("{} {}{again}", rule.id, rule.title));
    out.text.push('\n');
    let place = place(finding.pod.as_ref(), finding.container.as_ref());
    out.row("in", &place);
    if let Some(from) = finding.from.as_deref() {
        out.row("from", &self::place(from.pod.as_ref(), Some(&from.container)));
    }
    if let Some(event) = finding.task.as_deref() {
        out.row("process", &process(event));
        out.row("ids", &ids(&event.task));
    }
    out.row("why", &escape(&finding.why));
    if let Some(used) = used(finding) {
        out.row("used", &used);
    }
    if let Some(Resolved { at, because }) = finding.resolved {
        let open = Duration::from_secs(at.since(finding.first).as_secs());
        out.row("resolved", &format!("{because}, after {}", humantime::format_duration(open)));
    }
    out.row("more", &format!("userns-agent explain {}", finding.id));
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
    let since = time_of_day(style, suppressed.since);
    out.paint(DIM, &time_of_day(style, suppressed.time));
    out.text.push(' ');
    let Suppressed { count, reason, .. } = suppressed;
    if let Some(kind) = suppressed.kind {
        out.paint("33", "withheld");
        let uid = suppressed.pod.as_ref().map_or("?", |pod| pod.uid.as_str());
        let _ = writeln!(out.text, " {count} {kind} records of pod {} since {since}: {reason}", escape(uid));
    } else {
        let severity =
            suppressed.severity.map_or(String::new(), |severity| format!(" of severity {}", severity.name()));
        out.paint("33", "lost    ");
        let _ = writeln!(out.text, " {count} lines{severity} were not shown since {since}: {reason}");
    }
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
    if arg.is_empty() || arg.contains([' ', '\'', '"']) {
        format!("'{}'", arg.replace('\'', "'\\''"))
    } else {
        arg
    }
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
    let Ids { uid, euid, gid, egid, .. } = task.ids;
    let shown = [
        ("euid", &ns.uid_map, Some(euid)),
        ("egid", &ns.gid_map, Some(egid)),
        ("uid", &ns.uid_map, Some(uid).filter(|uid| *uid != euid)),
        ("gid", &ns.gid_map, Some(gid).filter(|gid| *gid != egid)),
    ];
    let shown = shown.iter().filter_map(|(name, map, id)| {
        let id = (*id)?;
        let inside = to_container(map, id).map_or_else(|| "unmapped".to_owned(), |id| id.to_string());
        Some(format!("{name} {id} → {inside}"))
    });
    format!("{} (host → container)", shown.collect::<Vec<_>>().join(", "))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::sample;

    const STYLE: Style = Style { color: false, clock: sample::CLOCK };

    #[test]
    fn a_finding_is_a_few_short_lines() {
        let text = format(&sample::finding(), &sample::RULE, &STYLE);
        let expected = "\
00:02:03.456 CRITICAL I0 A rule for tests
  in       pod default/web-0, container 3f2a9c81d04e (containerd)
  from     pod 1a2b3c4d-0000-4000-8000-000000000001, container debug
  process  sh[4242] /bin/busybox -c 'echo \"a\\tb\"', child of containerd-shim[4200]
  ids      euid 0 → unmapped, egid 0 → unmapped, uid 1049576 → 1000, gid 1048576 → 0 (host → container)
  why      `sh` (pid 4242) of the pod works with credentials of the host's user namespace
  used     CAP_SYS_ADMIN granted 2×, CAP_63 denied 1×, setns EPERM 4×, setns succeeded 1×, setns error -999 1×
  more     userns-agent explain cbf29ce484222325
";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_end_of_a_finding_says_how_long_it_was_open() {
        let resolved = Some(Resolved { at: Nanos(245_000_000_000), because: "the pod is gone" });
        let text = format(
            &Finding { status: Status::Resolved, resolved, ..sample::finding() },
            &sample::RULE,
            &STYLE,
        );
        assert!(
            text.starts_with("00:04:05.000 CRITICAL I0 A rule for tests (resolved, 3 in all)\n"),
            "{text}"
        );
        assert!(text.contains("\n  resolved the pod is gone, after 2m 5s\n"), "{text}");
    }

    #[test]
    fn what_is_unknown_is_said() {
        let mut finding = sample::bare();
        finding.status = Status::Updated;
        let text = format(&finding, &sample::RULE, &STYLE);
        assert!(text.starts_with("00:02:03.456 CRITICAL I0 A rule for tests (update, 3 in all)\n"), "{text}");
        assert!(text.contains("  in       unknown pod, unknown container\n"), "{text}");
        assert_eq!(text.lines().count(), 4);
    }

    #[test]
    fn a_workload_cannot_write_on_the_terminal() {
        let hostile = "\x1b]0;owned\x07\x1b[2J\r\n\u{9b}31m\u{202e}\u{2066}\u{200b}x";
        let mut finding = sample::finding();
        let task = finding.task.as_mut().unwrap();
        task.task.comm = hostile.into();
        task.path = hostile.into();
        task.args = vec!["sh".into(), hostile.into()];
        task.ancestors[0].comm = hostile.into();
        finding.why = format!("because of {hostile}");
        finding.container.as_mut().unwrap().id = hostile.to_owned();
        finding.from.as_mut().unwrap().container.id = hostile.to_owned();
        let pod = finding.pod.as_mut().unwrap();
        (pod.namespace, pod.name) = (Some(hostile.to_owned()), Some(hostile.to_owned()));
        let text = format(&finding, &sample::RULE, &STYLE);
        assert_eq!(text.lines().count(), 8, "{text}");
        assert!(!text.chars().any(|c| c != '\n' && super::super::text::is_deceptive(c)), "{text:?}");
        assert!(text.contains("process  \\u{1b}]0;owned\\u{7}\\u{1b}[2J\\r\\n\\u{9b}31m"), "{text}");
        let painted = format(&finding, &sample::RULE, &Style { color: true, ..STYLE });
        let without_colour = ["1", "2", "1;37;41", "0"]
            .iter()
            .fold(painted, |text, color| text.replace(&format!("\x1b[{color}m"), ""));
        assert_eq!(without_colour, text);
    }

    #[test]
    fn long_commands_are_cut() {
        let mut finding = sample::finding();
        finding.task.as_mut().unwrap().args = vec!["sh".into(), "ä".repeat(5000).as_str().into()];
        let text = format(&finding, &sample::RULE, &STYLE);
        assert!(text.contains("ä…, child of") && text.chars().count() < 800, "{text}");
    }

    #[test]
    fn the_agent_tells_its_state() {
        let ready = AgentEvent { reason: None, ..sample::agent(AgentState::Ready) };
        let expected = "\
00:00:01.000 ready    userns-agent 0.1.0, 1 of 2 probes active, http://127.0.0.1:9477/
  degraded open_tree_attr: this kernel has no event syscalls/sys_exit_open_tree_attr; without it, nothing on \
kernels before 6.15, which lack the call
";
        assert_eq!(format_agent(&ready, &STYLE), expected);
        let stopping = AgentEvent {
            reason: Some("SIGTERM".to_owned()),
            listen: None,
            probes: Vec::new(),
            ..sample::agent(AgentState::Stopping)
        };
        assert_eq!(format_agent(&stopping, &STYLE), "00:00:01.000 stopping userns-agent 0.1.0: SIGTERM\n");
        let suppressed = format_suppressed(&sample::suppressed(), &STYLE);
        let expected =
            "00:00:09.000 lost     12 lines of severity low were not shown since 00:00:07.000: queue_full\n";
        assert_eq!(suppressed, expected);
    }

    #[test]
    fn colour_is_for_terminals_that_want_it() {
        assert!(wants_color(true, None) && wants_color(true, Some("".as_ref())));
        assert!(!wants_color(false, None) && !wants_color(true, Some("1".as_ref())));
    }
}
