//! The table and the JSON array. Pure.

use serde_json::{Value, json};

use super::Row;
use super::verdict::{Look, Recorded, Verdict};
use crate::event::Extent;

/// Columns of the pod's name; longer ones are cut.
const POD: usize = 44;
/// Columns of the container's id, as `docker ps` and `crictl ps` show it, with a little room.
const CONTAINER: usize = 13;
const RANGE: usize = 22;
/// Columns of the whole table.
const WIDTH: usize = 120;
const INDENT: &str = "    ";

/// A line a container, and one below it with the reason unless everything is as promised.
pub(super) fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    line(&mut text, &["POD", "CONTAINER", "PROCS", "HOST IDS", "VERDICT"]);
    for row in rows {
        let id = row.container.id.as_ref().map_or("-", |id| id.id.as_str());
        let cells = [
            cut(&plain(&row.pod.label()), POD),
            cut(&plain(id), CONTAINER - 1),
            row.container.processes.to_string(),
            range(row),
            row.judgement.verdict.name().to_owned(),
        ];
        line(&mut text, &cells.each_ref().map(String::as_str));
        if row.judgement.verdict != Verdict::Honoured {
            for part in wrap(&plain(&row.judgement.reason), WIDTH - INDENT.len()) {
                text.push_str(&format!("{INDENT}{part}\n"));
            }
        }
    }
    text.push_str(&summary(rows));
    text
}

fn line(text: &mut String, [pod, container, processes, range, verdict]: &[&str; 5]) {
    text.push_str(&format!("{pod:POD$} {container:CONTAINER$} {processes:>5}  {range:RANGE$} {verdict}\n"));
}

fn summary(rows: &[Row]) -> String {
    let mut pods: Vec<_> = rows.iter().map(|row| &row.pod.uid).collect();
    pods.dedup();
    let count = |verdict: &Verdict| rows.iter().filter(|row| row.judgement.verdict == *verdict).count();
    let counts = Verdict::ALL.iter().rev().map(|verdict| (count(verdict), verdict.name()));
    let counts: Vec<_> =
        counts.filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}")).collect();
    let counts = if counts.is_empty() { "nothing to judge".to_owned() } else { counts.join(", ") };
    format!("\n{} in {}: {counts}\n", number(rows.len(), "container"), number(pods.len(), "pod"))
}

fn number(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn range(row: &Row) -> String {
    match &row.container.look {
        Look::Process(sample) if sample.userns.inum == row.host => "the host's".to_owned(),
        Look::Process(sample) => match sample.userns.uid_map.as_slice() {
            [] => "none".to_owned(),
            [only] => format!("{}+{}", only.lower_first, only.count),
            [first, rest @ ..] => format!("{}+{} and {} more", first.lower_first, first.count, rest.len()),
        },
        Look::Empty | Look::Unreadable { .. } => "-".to_owned(),
    }
}

/// Names come from workloads: nothing but printable ASCII reaches a terminal, so nothing moves its cursor, changes
/// the direction of writing or takes up other than one column. The arrow is ours.
fn plain(text: &str) -> String {
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

/// An object a container. Keys are stable: new ones may come, none goes or changes its meaning.
pub(super) fn json(rows: &[Row]) -> Value {
    Value::Array(rows.iter().map(object).collect())
}

fn object(row: &Row) -> Value {
    let Row { pod, container, judgement, pod_verdict, .. } = row;
    let (why, sample) = match &container.look {
        Look::Empty => (None, None),
        Look::Unreadable { why } => (Some(why), None),
        Look::Process(sample) => (None, Some(sample)),
    };
    let recorded = match &pod.recorded {
        Recorded::Record(record) => {
            json!({"uid_mappings": extents(&record.uid_mappings), "gid_mappings": extents(&record.gid_mappings)})
        }
        Recorded::Nothing | Recorded::NoPod | Recorded::Unreadable { .. } => Value::Null,
    };
    json!({
        "verdict": judgement.verdict.name(),
        "reason": judgement.reason,
        "pod_verdict": pod_verdict.name(),
        "pod_uid": pod.uid.as_str(),
        "namespace": pod.spec.as_ref().map(|spec| &spec.namespace),
        "pod": pod.spec.as_ref().map(|spec| &spec.name),
        "host_users": pod.spec.as_ref().and_then(|spec| spec.host_users),
        "container": container.id.as_ref().map(|id| &id.id),
        "runtime": container.id.as_ref().and_then(|id| id.runtime),
        "cgroup": container.cgroup,
        "processes": container.processes,
        "processes_in_host_user_namespace": sample.map(|sample| sample.in_host),
        "unreadable": why,
        "pid": sample.map(|sample| sample.pid),
        "comm": sample.map(|sample| sample.comm.as_str()),
        "user_namespace": sample.map(|sample| sample.userns.inum),
        "uid_map": sample.map(|sample| extents(&sample.userns.uid_map)),
        "gid_map": sample.map(|sample| extents(&sample.userns.gid_map)),
        "kubelet_record": recorded,
    })
}

fn extents(list: &[Extent]) -> Vec<Value> {
    let one = |it: &Extent| json!({"container_id": it.first, "host_id": it.lower_first, "length": it.count});
    list.iter().map(one).collect()
}
