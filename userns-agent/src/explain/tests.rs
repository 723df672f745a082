//! Rules and findings as they are told, and what is said when there is nothing to tell.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::sink::text::is_deceptive;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Compares with a committed file; `UPDATE=1` writes it instead.
fn check_golden(name: &str, found: &str) {
    if std::env::var_os("UPDATE").is_some() {
        fs::write(golden(name), found).unwrap();
    }
    let expected = fs::read_to_string(golden(name)).unwrap_or_default();
    assert_eq!(expected, found, "{name} has changed; if it was meant to, run the test with UPDATE=1");
}

fn text(name: Option<&str>, file: Option<&Path>, socket: Option<&Path>) -> Result<String, ExplainError> {
    let mut out = Vec::new();
    explain(name, file, socket, 100, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

fn refusal(name: &str) -> String {
    text(Some(name), None, None).unwrap_err().to_string()
}

/// A finding's line with these members changed.
fn line(id: &str, change: impl FnOnce(&mut Value)) -> String {
    let sample = fs::read(golden("finding.json")).unwrap();
    let mut value: Value = serde_json::from_slice(&sample).unwrap();
    value["finding"]["id"] = id.into();
    change(&mut value);
    format!("{value}\n")
}

struct File(tempfile::TempDir);

impl File {
    fn new(lines: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), lines).unwrap();
        Self(dir)
    }

    fn explain(&self, name: Option<&str>) -> Result<String, ExplainError> {
        text(name, Some(&self.0.path().join("f")), None)
    }
}

#[test]
fn a_rule_is_explained_by_id_and_by_name() {
    check_golden("explain-rule.txt", &text(Some("I13"), None, None).unwrap());
    let by_name = text(Some("CGROUP_FLIGHT"), None, None).unwrap();
    assert_eq!(by_name, text(Some("i13"), None, None).unwrap());
    let all = text(None, None, None).unwrap();
    for id in RuleId::ALL {
        let rule = rules::rule(*id);
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
        assert!(words(&all).contains(&words(rule.exceptions)), "{}", rule.id);
    }
    assert!(all.lines().all(|line| line.chars().count() <= 100));
}

#[test]
fn a_finding_is_an_incident_report() {
    let report = text(None, Some(&golden("finding.json")), None).unwrap();
    check_golden("explain-finding.txt", &report);
    let resolved = line("1", |value| {
        value["finding"]["status"] = "resolved".into();
        value["finding"]["resolved"] =
            serde_json::json!({"at": "T", "because": "the pod is gone", "open_seconds": 7});
    });
    let report = File::new(&resolved).explain(None).unwrap();
    assert!(report.contains("resolved T, as the pod is gone, after 7 s\n"), "{report}");
}

#[test]
fn lines_of_older_agents_and_of_other_events_do_no_harm() {
    let old = r#"{"event":"finding","finding":{"id":"ab12","why":"it broke"},"pod":null,"process":null}"#;
    let report =
        File::new(&format!("no json\n{{\"event\":\"agent\"}}\n{old}\n")).explain(Some("ab")).unwrap();
    assert!(report.contains("it broke") && report.contains("not known"), "{report}");
}

#[test]
fn the_last_line_about_a_finding_counts() {
    let status = |id, status: &str| line(id, |value| value["finding"]["status"] = status.into());
    let lines = [status("aa01", "opened"), status("bb02", "opened"), status("aa01", "amended")].concat();
    let file = File::new(&lines);
    let all = file.explain(None).unwrap();
    assert_eq!(all.matches("\nWhat happened\n").count(), 2);
    assert!(all.starts_with("Finding aa01") && all.contains("amended on node"), "{all}");
    assert!(file.explain(Some("bb")).unwrap().starts_with("Finding bb02"));
    assert_eq!(file.explain(Some("i0")).unwrap_err().to_string().matches("I0").count(), 0);
}

#[test]
fn what_is_not_there_is_said_with_what_may_be_meant() {
    assert_eq!(
        refusal("cred_escap"),
        "there is no rule, and no open finding, of the name \"cred_escap\"; did you mean cred_escape?"
    );
    assert!(refusal("I33").contains("I3"), "{}", refusal("I33"));
    assert!(refusal("\u{1b}[31mzzzzzz").contains("\\u{1b}[31m"), "{}", refusal("\u{1b}[31mzzzzzz"));
    assert!(refusal("qqqqqqqqqqqqqqqqq").contains("`userns-agent inspect POD`"));
    assert!(matches!(text(Some("cbf2"), None, None), Err(ExplainError::NoSocket)));
    let file = File::new(&[line("aa01", |_| {}), line("aa02", |_| {})].concat());
    let unknown = file.explain(Some("ab01")).unwrap_err();
    assert!(unknown.to_string().contains("did you mean aa01"), "{unknown}");
    assert_eq!(ExitCode::from(&unknown), ExitCode::NoInput);
    let ambiguous = file.explain(Some("aa")).unwrap_err();
    assert_eq!(
        ambiguous.to_string(),
        "the ids of several findings begin with aa: aa01, aa02; say more of it"
    );
    assert_eq!(ExitCode::from(&ambiguous), ExitCode::Usage);
    assert!(matches!(File::new("").explain(None), Err(ExplainError::NoFinding { .. })));
    let missing = text(None, Some(Path::new("/nonexistent/x")), None).unwrap_err();
    assert_eq!(ExitCode::from(&missing), ExitCode::NoInput);
    let dir = tempfile::tempdir().unwrap();
    let alone = text(Some("cbf2"), None, Some(&dir.path().join("s"))).unwrap_err();
    assert_eq!(ExitCode::from(&alone), ExitCode::Unavailable);
}

#[test]
fn a_workload_cannot_write_on_the_terminal() {
    let hostile = "\u{1b}]0;owned\u{7}\r\n\u{202e}x";
    let hostile_everywhere = line("1", |value| {
        fn spoil(value: &mut Value, text: &str) {
            match value {
                Value::String(old) if !["finding", "1"].contains(&old.as_str()) => text.clone_into(old),
                Value::Array(items) => items.iter_mut().for_each(|item| spoil(item, text)),
                Value::Object(members) => members.values_mut().for_each(|member| spoil(member, text)),
                Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
            }
        }
        spoil(value, hostile);
    });
    let report = File::new(&hostile_everywhere).explain(None).unwrap();
    assert!(report.contains("owned") && !report.chars().any(|c| c != '\n' && is_deceptive(c)), "{report:?}");
}

#[test]
fn the_agent_is_asked_for_the_finding() {
    use std::io::{BufRead as _, Write as _};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let finding = line("aa01", |_| {});
    let agent = std::thread::spawn(move || {
        for answer in [
            format!("{{\"findings\":[{finding}],\"open\":[\"aa01\"]}}"),
            format!("{{\"findings\":[{finding},{finding}],\"open\":[\"aa01\",\"aa02\",\"bb01\"]}}"),
            "{\"findings\":[],\"open\":[\"aa01\"]}".to_owned(),
        ] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            std::io::BufReader::new(&stream).read_line(&mut request).unwrap();
            assert!(request.starts_with("GET /v1/findings/aa"), "{request:?}");
            write!(stream, "HTTP/1.1 200 OK\r\n\r\n{answer}").unwrap();
        }
    });
    let ask = |name| text(Some(name), None, Some(&path));
    assert!(ask("AA").unwrap().starts_with("Finding aa01"));
    assert!(ask("aa").unwrap_err().to_string().contains("aa01, aa02;"));
    assert!(ask("aa11").unwrap_err().to_string().contains("did you mean aa01"));
    agent.join().unwrap();
}
