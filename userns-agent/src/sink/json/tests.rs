//! The wire format against its golden sample and its schema.

mod schema;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;
use crate::event::{IdMap, TaskEvent, UserNs};
use crate::sink::report::AgentState;
use crate::sink::sample;

fn in_package(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn renderer() -> Renderer {
    Renderer::new("node-1".to_owned())
}

fn finding_line(finding: &Finding) -> String {
    String::from_utf8(renderer().finding(finding, &sample::RULE, sample::CLOCK).unwrap()).unwrap()
}

fn value(line: &str) -> Value {
    let body = line.strip_suffix('\n').unwrap();
    assert!(!body.contains('\n'));
    serde_json::from_str(body).unwrap()
}

/// The text of a JSON document over several lines, its members in their order.
fn pretty(json: &str) -> String {
    let (mut out, mut depth, mut in_string, mut escaped) = (String::new(), 0_usize, false, false);
    let mut characters = json.trim_end().chars().peekable();
    while let Some(c) = characters.next() {
        let closes_next = |next: Option<&char>| matches!(next, Some('}' | ']'));
        match c {
            _ if in_string => {
                out.push(c);
                in_string = c != '"' || escaped;
                escaped = c == '\\' && !escaped;
            }
            '{' | '[' if !closes_next(characters.peek()) => {
                depth += 1;
                out.push_str(&format!("{c}\n{}", "  ".repeat(depth)));
            }
            '}' | ']' if !out.ends_with(['{', '[']) => {
                depth -= 1;
                out.push_str(&format!("\n{}{c}", "  ".repeat(depth)));
            }
            ',' => out.push_str(&format!(",\n{}", "  ".repeat(depth))),
            ':' => out.push_str(": "),
            _ => {
                in_string = c == '"';
                out.push(c);
            }
        }
    }
    out.push('\n');
    out
}

/// Compares with a committed file; `UPDATE=1` writes it instead.
fn check_golden(name: &str, found: &str) {
    let path = in_package("tests/golden").join(name);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, found).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(golden, found, "{name} has changed; if it was meant to, run the test with UPDATE=1");
}

#[test]
fn every_field_stands_where_consumers_expect_it() {
    check_golden("finding.json", &pretty(&finding_line(&sample::finding())));
    let agent = renderer().agent(&sample::agent(AgentState::Degraded), sample::CLOCK).unwrap();
    check_golden("agent.json", &pretty(std::str::from_utf8(&agent).unwrap()));
    let suppressed = renderer().suppressed(&sample::suppressed(), sample::CLOCK).unwrap();
    check_golden("suppressed.json", &pretty(std::str::from_utf8(&suppressed).unwrap()));
    let withheld = renderer().suppressed(&sample::withheld(), sample::CLOCK).unwrap();
    check_golden("withheld.json", &pretty(std::str::from_utf8(&withheld).unwrap()));
}

#[test]
fn what_is_unknown_is_null_and_there() {
    let whole = value(&finding_line(&sample::finding()));
    let bare = value(&finding_line(&sample::bare()));
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&whole), keys(&bare));
    for name in ["pod", "container", "process", "hook", "operation"] {
        assert_eq!(bare[name], Value::Null, "{name}");
        assert_ne!(whole[name], Value::Null, "{name}");
    }
    let mut finding = sample::finding();
    finding.task = Some(Box::new(TaskEvent::default()));
    finding.pod.as_mut().unwrap().name = None;
    let empty = value(&finding_line(&finding));
    assert_eq!(keys(&empty["process"]), keys(&whole["process"]));
    for pointer in [
        "/operation",
        "/process/image",
        "/process/executable",
        "/process/pid_in_container",
        "/process/user_namespace",
        "/process/pod_user_namespace",
        "/process/namespaces/mnt",
        "/process/cgroup",
        "/process/lineage/origin",
        "/process/lineage/entered_at",
        "/process/ids/euid/container",
        "/pod/labels",
    ] {
        assert_eq!(empty.pointer(pointer), Some(&Value::Null), "{pointer}");
    }
}

#[test]
fn ids_are_seen_by_the_pod_or_else_by_their_own_namespace() {
    let view = |change: &dyn Fn(&mut TaskEvent)| {
        let mut finding = sample::finding();
        change(finding.task.as_mut().unwrap());
        let value = value(&finding_line(&finding));
        value["process"]["ids"]["uid"]["container"].clone()
    };
    assert_eq!(view(&|_| {}), 1000);
    assert_eq!(view(&|event| event.task.ids.uid = 5), Value::Null);
    assert_eq!(view(&|event| event.task.pod_userns = None), 1_049_576);
    assert_eq!(view(&|event| event.task.pod_userns = Some(UserNs::default())), 1_049_576);
    let unread = IdMap { nr_extents: 6, ..IdMap::default() };
    assert_eq!(
        view(
            &|event| event.task.pod_userns = event.task.pod_userns.map(|ns| UserNs { uid_map: unread, ..ns })
        ),
        Value::Null
    );
}

#[test]
fn hostile_text_changes_nothing_but_itself() {
    let hostile = "\0\x1b[2J\r\n{\"event\":\"finding\"}\"\\\u{2028}\u{2029}\u{85}\u{202e}\u{7f}𝕏";
    let mut finding = sample::finding();
    let task = finding.task.as_mut().unwrap();
    task.task.comm = hostile.into();
    task.path = hostile.into();
    task.args = vec![hostile.into(), "".into()];
    task.ancestors[0].comm = hostile.into();
    let container = finding.container.as_mut().unwrap();
    container.cgroup_path = hostile.to_owned();
    finding.pod.as_mut().unwrap().labels.insert(hostile.to_owned(), hostile.to_owned());
    let line = finding_line(&finding);
    let separators = ['\u{b}', '\u{c}', '\r', '\u{85}', '\u{2028}', '\u{2029}', '\u{1b}'];
    assert!(!line.contains(separators) && line.lines().count() == 1);
    let value = value(&line);
    for pointer in ["/process/comm", "/process/executable", "/process/args/0", "/container/cgroup/path"] {
        assert_eq!(value.pointer(pointer).unwrap(), hostile, "{pointer}");
    }
    assert_eq!(value["pod"]["labels"][hostile], hostile);
    schema::Schema::load().check(&value).unwrap();
}

#[test]
fn lines_fit_the_schema() {
    let schema = schema::Schema::load();
    let mut lines = vec![finding_line(&sample::finding()), finding_line(&sample::bare())];
    let mut empty = sample::finding();
    empty.task = Some(Box::new(TaskEvent::default()));
    empty.pod = Some(crate::core::finding::PodRef::default());
    empty.container = Some(crate::core::finding::ContainerRef::default());
    lines.push(finding_line(&empty));
    for state in [AgentState::Starting, AgentState::Ready, AgentState::Degraded, AgentState::Stopping] {
        let line = renderer().agent(&sample::agent(state), sample::CLOCK).unwrap();
        lines.push(String::from_utf8(line).unwrap());
    }
    for suppressed in [sample::suppressed(), sample::withheld()] {
        let line = renderer().suppressed(&suppressed, sample::CLOCK).unwrap();
        lines.push(String::from_utf8(line).unwrap());
    }
    for line in lines {
        schema.check(&value(&line)).unwrap_or_else(|error| panic!("{error}\n{line}"));
    }
}

#[test]
fn every_value_of_the_core_is_in_the_schema() {
    use crate::core::finding::{Confidence, Status};
    use crate::event::{Operation, Relation, lineage, origin, state};
    let schema = schema::Schema::load();
    let check = |change: &dyn Fn(&mut Finding)| {
        let mut finding = sample::finding();
        change(&mut finding);
        schema.check(&value(&finding_line(&finding))).unwrap();
    };
    for severity in [Severity::Info, Severity::Low, Severity::Medium, Severity::High, Severity::Critical] {
        check(&|finding| finding.severity = severity);
    }
    for confidence in [Confidence::Medium, Confidence::High, Confidence::Certain] {
        check(&|finding| finding.confidence = confidence);
    }
    for status in [Status::Opened, Status::Updated, Status::Amended, Status::Resolved] {
        check(&|finding| finding.status = status);
    }
    for operation in Operation::ALL {
        check(&|finding| finding.task.as_mut().unwrap().call.as_mut().unwrap().operation = *operation);
    }
    for relation in Relation::ALL {
        check(&|finding| finding.task.as_mut().unwrap().call.as_mut().unwrap().relation = *relation);
    }
    for state in [0, state::ENTERING, state::INSIDE, 99] {
        check(&|finding| finding.task.as_mut().unwrap().task.lineage.state = state);
    }
    for origin in [0, origin::ATTACHED, origin::BORN, origin::ADOPTED, origin::FOREIGN, 99] {
        check(&|finding| finding.task.as_mut().unwrap().task.lineage.origin = origin);
    }
    check(&|finding| finding.task.as_mut().unwrap().task.lineage.flags = !0 ^ lineage::WORKLOAD);
}

#[test]
fn the_local_socket_tells_findings_as_lines_do() {
    let finding = sample::finding();
    let answer = renderer()
        .findings(std::slice::from_ref(&finding), &[finding.id, FindingId(7)], sample::CLOCK)
        .unwrap();
    let answer = value(std::str::from_utf8(&answer).unwrap());
    let line = renderer().finding(&finding, crate::core::rules::rule(finding.rule), sample::CLOCK).unwrap();
    assert_eq!(answer["findings"][0], value(std::str::from_utf8(&line).unwrap()));
    assert_eq!(answer["open"], serde_json::json!(["cbf29ce484222325", "0000000000000007"]));
    let known: crate::ps::known::KnownFindings = serde_json::from_value(answer).unwrap();
    assert_eq!((known.findings.len(), known.open.len()), (1, 2));
}

/// Not a test of speed: a bound that only a blunder would break, and the figure on request (`--nocapture`).
#[test]
fn rendering_is_no_bottleneck() {
    let (renderer, finding) = (renderer(), sample::finding());
    let start = std::time::Instant::now();
    let (mut rounds, mut bytes) = (0_u32, 0);
    while start.elapsed() < std::time::Duration::from_millis(200) {
        bytes = renderer.finding(&finding, &sample::RULE, sample::CLOCK).unwrap().len();
        rounds += 1;
    }
    let each = start.elapsed() / rounds;
    println!("a line of {bytes} bytes takes {each:?}");
    assert!(each < std::time::Duration::from_millis(20));
}

/// What whoever writes the incident report needs, and what peers of this agent tell.
const NEEDED: &[&str] = &[
    "/time",
    "/node",
    "/finding/id",
    "/finding/status",
    "/finding/rule/id",
    "/finding/rule/name",
    "/finding/rule/title",
    "/finding/rule/severity",
    "/finding/rule/confidence",
    "/finding/attack/version",
    "/finding/attack/tactic/id",
    "/finding/attack/technique/id",
    "/finding/why",
    "/finding/count",
    "/finding/first_seen",
    "/finding/last_seen",
    "/finding/resolved/at",
    "/finding/resolved/open_seconds",
    "/pod/uid",
    "/pod/namespace",
    "/pod/name",
    "/pod/labels/app",
    "/pod/owner/kind",
    "/pod/owner/name",
    "/pod/service_account",
    "/pod/runtime_class",
    "/pod/host_users",
    "/pod/recorded_uid_map/0/host",
    "/container/id",
    "/container/name",
    "/container/kind",
    "/container/image",
    "/container/image_digest",
    "/container/runtime",
    "/container/cgroup/path",
    "/from/container/id",
    "/process/id",
    "/process/pid",
    "/process/pid_in_container",
    "/process/tid",
    "/process/ppid",
    "/process/start_time",
    "/process/comm",
    "/process/executable",
    "/process/args/2",
    "/process/image/inode",
    "/process/capabilities/effective/0",
    "/process/capabilities/permitted/0",
    "/process/user_namespace/inode",
    "/process/user_namespace/level",
    "/process/user_namespace/parent_inode",
    "/process/user_namespace/uid_map/0/host",
    "/process/user_namespace/gid_map/0/host",
    "/process/pod_user_namespace/inode",
    "/process/namespaces/mnt",
    "/process/namespaces/pid",
    "/process/namespaces/net",
    "/process/namespaces/ipc",
    "/process/namespaces/uts",
    "/process/namespaces/cgroup",
    "/process/cgroup/id",
    "/process/lineage/state",
    "/process/lineage/entered_at",
    "/process/ancestors/0/pid",
    "/process/ancestors/0/start_time",
    "/hook",
    "/operation/name",
    "/operation/ret",
    "/operation/error",
    "/operation/syscall/name",
    "/operation/flags/0",
    "/operation/target/relation",
    "/operation/target/inode",
    "/capabilities/0/name",
    "/capabilities/0/granted",
    "/calls/0/name",
    "/evidence/0/time",
    "/evidence/0/hook",
    "/evidence/0/kind",
    "/evidence/0/what",
    "/evidence/0/process/id",
    "/evidence/0/process/pid",
    "/evidence/0/process/pid_in_container",
    "/evidence/0/process/user_namespace",
    "/evidence/2/executable",
    "/evidence/2/args/2",
    "/response/summary",
    "/response/steps/0/what",
    "/response/steps/0/command",
];

/// Names of ids, each of which is to be told as the host and as the pod have it.
const IDS: &[&str] = &["uid", "gid", "suid", "sgid", "euid", "egid", "fsuid", "fsgid", "owner"];

/// Every id in a line: where it stands, and what is there.
fn ids(path: &str, value: &Value, found: &mut Vec<(String, Value)>) {
    for (name, member) in value.as_object().into_iter().flatten() {
        let path = format!("{path}/{name}");
        // a pod's own uid and owner are no ids of a process
        if IDS.contains(&name.as_str()) && path.contains("/process/") {
            found.push((path.clone(), member.clone()));
        }
        ids(&path, member, found);
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        ids(&format!("{path}/{index}"), item, found);
    }
}

#[test]
fn an_incident_report_lacks_nothing() {
    let mut finding = sample::finding();
    finding.resolved = Some(crate::core::finding::Resolved { at: Nanos(1), because: "the pod is gone" });
    let task = &mut finding.task.as_mut().unwrap().task;
    (task.ns.ipc, task.ns.uts, task.ns.cgroup) = (1, 2, 3);
    task.userns.parent_inum = 4;
    let line = value(&finding_line(&finding));
    for pointer in NEEDED {
        let found = line.pointer(pointer);
        assert!(found.is_some_and(|found| !found.is_null()), "{pointer} is {found:?}");
    }
    let mut found = Vec::new();
    ids("", &line, &mut found);
    assert!(found.len() > 30, "{found:?}");
    for (path, id) in found {
        // a number from the first days of v1, beside which the same stands in both views
        if path.ends_with("/euid") && path.starts_with("/process/ancestors") && id.is_u64() {
            assert_eq!(line.pointer(&path.replace("/euid", "/ids/euid/host")), Some(&id), "{path}");
            continue;
        }
        assert!(id.get("host").is_some_and(Value::is_u64) && id.get("container").is_some(), "{path}: {id}");
    }
}
