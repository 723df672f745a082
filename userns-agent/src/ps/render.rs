//! The tables and the JSON array. Pure.

use serde_json::{Value, json};

use super::known::Known;
use super::verdict::{Look, Pod, Recorded, Verdict};
use super::{PodRow, Row};
use crate::event::Extent;

/// Columns of the pod's name; longer ones are cut.
const POD: usize = 44;
const RANGE: usize = 22;
/// Columns of the whole table.
const WIDTH: usize = 120;
const INDENT: &str = "    ";

/// A line a pod, and one below it with the reason unless everything is as promised. `wide` adds a line with what is
/// known besides, and gives every reason.
pub(super) fn table(pods: &[PodRow], wide: bool) -> String {
    let mut text = String::new();
    line(&mut text, &["POD", "HOSTUSERS", "USERNS", "HOST IDS", "CTRS", "PROCS", "NESTED", "VERDICT"]);
    for row in pods {
        let cells = [
            cut(&plain(&row.pod.label()), POD),
            host_users(&row.pod).to_owned(),
            row.sample().map_or("-".to_owned(), |sample| sample.userns.inum.to_string()),
            range(row),
            row.containers().to_string(),
            row.processes().to_string(),
            row.nested().to_string(),
            row.judgement.verdict.name().to_owned(),
        ];
        line(&mut text, &cells.each_ref().map(String::as_str));
        if wide {
            below(&mut text, &besides(&row.pod));
        }
        if wide || row.judgement.verdict != Verdict::Honoured {
            below(&mut text, &row.judgement.reason);
        }
    }
    text.push_str(&summary(pods));
    text
}

fn line(
    text: &mut String,
    [pod, host_users, userns, range, containers, processes, nested, verdict]: &[&str; 8],
) {
    text.push_str(&format!(
        "{pod:POD$} {host_users:9} {userns:10} {range:RANGE$} {containers:>4} {processes:>5} {nested:>6}  {verdict}\n"
    ));
}

fn below(text: &mut String, sentence: &str) {
    for part in wrap(&plain(sentence), WIDTH - INDENT.len()) {
        text.push_str(&format!("{INDENT}{part}\n"));
    }
}

/// What a pod declares for `spec.hostUsers`.
pub(super) fn host_users(pod: &Pod) -> &'static str {
    match pod.spec.as_ref().map(|spec| spec.host_users) {
        Some(Some(true)) => "true",
        Some(Some(false)) => "false",
        Some(None) => "unset",
        None => "-",
    }
}

fn besides(pod: &Pod) -> String {
    let sources = pod.known.as_ref().map_or(String::new(), |known| known.sources.join(", "));
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    format!(
        "uid {}; runtime class {}; told by {}; kubelet's record {}",
        pod.uid,
        pod.runtime_class().unwrap_or("-"),
        or_dash(sources),
        record(pod)
    )
}

/// Kubelet's record in a word.
pub(super) fn record(pod: &Pod) -> String {
    match &pod.recorded {
        Recorded::Record(record) => crate::core::range::show_all(&record.uid_mappings),
        Recorded::Nothing | Recorded::NoPod => "none".to_owned(),
        Recorded::Unreadable { why } => format!("unknown: {why}"),
    }
}

fn summary(pods: &[PodRow]) -> String {
    let count = |verdict: &Verdict| pods.iter().filter(|row| row.judgement.verdict == *verdict).count();
    let counts = Verdict::ALL.iter().rev().map(|verdict| (count(verdict), verdict.name()));
    let counts: Vec<_> =
        counts.filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}")).collect();
    let counts = if counts.is_empty() { "nothing to judge".to_owned() } else { counts.join(", ") };
    let containers = pods.iter().map(PodRow::containers).sum();
    format!("\n{} with {}: {counts}\n", number(pods.len(), "pod"), number(containers, "container"))
}

fn number(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn range(row: &PodRow) -> String {
    match row.sample() {
        Some(sample) if sample.userns.inum == row.host => "the host's".to_owned(),
        Some(sample) => match sample.userns.uid_map.as_slice() {
            [] => "none".to_owned(),
            [only] => format!("{}+{}", only.lower_first, only.count),
            [first, rest @ ..] => format!("{}+{} and {} more", first.lower_first, first.count, rest.len()),
        },
        None => "-".to_owned(),
    }
}

/// Names come from workloads: nothing but printable ASCII reaches a terminal, so nothing moves its cursor, changes
/// the direction of writing or takes up other than one column. The arrow is ours.
pub(super) fn plain(text: &str) -> String {
    let escape = |character: char| match character {
        ' '..='~' | '→' => character.to_string(),
        _ => character.escape_default().to_string(),
    };
    text.chars().map(escape).collect()
}

/// Breaks a sentence between words; a word that is too long stays whole.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['~']).collect()
}

/// An object a pod. Keys are stable: new ones may come, none goes or changes its meaning.
pub(super) fn json(pods: &[PodRow]) -> Value {
    Value::Array(pods.iter().map(object).collect())
}

/// One pod.
pub(super) fn object(row: &PodRow) -> Value {
    let PodRow { pod, rows, judgement, .. } = row;
    let name = pod.name();
    let known = pod.known.as_ref();
    let text = |of: fn(&Known) -> Option<&String>| known.and_then(of);
    let recorded = match &pod.recorded {
        Recorded::Record(record) => {
            json!({"uid_map": extents(&record.uid_mappings), "gid_map": extents(&record.gid_mappings)})
        }
        Recorded::Nothing | Recorded::NoPod | Recorded::Unreadable { .. } => Value::Null,
    };
    let sample = row.sample();
    json!({
        "uid": pod.uid.as_str(),
        "namespace": name.map(|name| name.0),
        "name": name.map(|name| name.1),
        "verdict": judgement.verdict.name(),
        "reason": judgement.reason,
        "host_users": pod.spec.as_ref().and_then(|spec| spec.host_users),
        "runtime_class": pod.runtime_class(),
        "owner": known.and_then(|known| known.owner.as_ref()).map(|owner| json!({"kind": owner.kind, "name": owner.name})),
        "service_account": text(|known| known.service_account.as_ref()),
        "labels": known.and_then(|known| known.labels.as_ref()),
        "sources": known.map(|known| &known.sources),
        "user_namespace": sample.map(|sample| sample.userns.inum),
        "uid_map": sample.map(|sample| extents(&sample.userns.uid_map)),
        "gid_map": sample.map(|sample| extents(&sample.userns.gid_map)),
        "kubelet_record": recorded,
        "asked_of_runtime": known.and_then(|known| known.asked.as_ref()).map(|asked| json!({"mode": asked.mode, "uid_map": asked.extents().map(|map| extents(&map))})),
        "processes": row.processes(),
        "nested_user_namespaces": row.nested(),
        "findings": known.map(|known| known.findings.iter().map(|finding| json!({
            "id": finding.id,
            "rule": finding.rule,
            "name": finding.name,
            "severity": finding.severity,
            "container": finding.container,
            "count": finding.count,
            "first_seen": finding.first_seen,
            "last_seen": finding.last_seen,
            "why": finding.why,
        })).collect::<Vec<_>>()),
        "containers": rows.iter().map(|row| container(pod, row)).collect::<Vec<_>>(),
    })
}

fn container(pod: &Pod, row: &Row) -> Value {
    let Row { container, judgement } = row;
    let (why, sample) = match &container.look {
        Look::Empty => (None, None),
        Look::Unreadable { why } => (Some(why), None),
        Look::Process(sample) => (None, Some(sample)),
    };
    let id = container.id.as_ref().map(|id| id.id.as_str());
    let known = pod.container(id);
    json!({
        "id": id,
        "name": known.map(|known| &known.name),
        "kind": known.map(|known| &known.kind),
        "image": known.map(|known| &known.image),
        "image_digest": known.and_then(|known| known.image_digest.as_ref()),
        "security_context": known.map(|known| &known.security_context),
        "runtime": container.id.as_ref().and_then(|id| id.runtime),
        "cgroup": container.cgroup,
        "verdict": judgement.verdict.name(),
        "reason": judgement.reason,
        "processes": container.processes,
        "processes_in_host_user_namespace": sample.map(|sample| sample.in_host),
        "nested_user_namespaces": sample.map(|sample| sample.nested),
        "unreadable": why,
        "pid": sample.map(|sample| sample.pid),
        "comm": sample.map(|sample| sample.comm.as_str()),
        "user_namespace": sample.map(|sample| sample.userns.inum),
        "uid_map": sample.map(|sample| extents(&sample.userns.uid_map)),
        "gid_map": sample.map(|sample| extents(&sample.userns.gid_map)),
    })
}

fn extents(list: &[Extent]) -> Vec<Value> {
    let one = |it: &Extent| json!({"container_id": it.first, "host_id": it.lower_first, "length": it.count});
    list.iter().map(one).collect()
}
