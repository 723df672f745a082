//! Tables and JSON of techniques and of what became of them. Pure.

use serde_json::{Value, json};

use super::place::{Readings, Standing};
use super::technique::{Detection, Technique, Verdict};
use super::witness::Seen;
use super::{Row, techniques};
use crate::core::rules::ATTACK_VERSION;

/// Name and version of the form of the JSON output.
const SCHEMA: &str = "userns-agent/simulate/v1";
const INDENT: &str = "    ";

/// A line a technique, and one below it with what it attempts.
pub(super) fn list() -> String {
    let mut text = format!("{:22} {:10} {:8} {:9} TITLE\n", "NAME", "ATT&CK", "STOPPED", "SEEN BY");
    for technique in techniques() {
        let Technique { name, title, attack, stopped, detection, attempts, .. } = technique;
        let rule = detection.rule_id().unwrap_or("-");
        text.push_str(&format!("{name:22} {:10} {:8} {rule:9} {title}\n", attack.0, stopped.name()));
        text.push_str(&format!("{INDENT}{attempts}\n"));
    }
    text
}

/// What is known of every technique.
pub(super) fn list_json() -> Value {
    let techniques: Vec<_> = techniques().map(about).collect();
    json!({ "schema": SCHEMA, "techniques": techniques })
}

fn about(technique: &Technique) -> Value {
    let (id, name) = technique.attack;
    json!({
        "name": technique.name,
        "title": technique.title,
        "known_as": technique.known,
        "attack": { "version": ATTACK_VERSION, "id": id, "name": name },
        "attempts": technique.attempts,
        "stopped_by_user_namespace": technique.stopped.name(),
        "expected": {
            "with_user_namespace": technique.with_userns,
            "without_user_namespace": technique.without_userns,
        },
        "harmless": technique.harmless,
        "detection": detection(&technique.detection),
    })
}

fn detection(detection: &Detection) -> Value {
    let signs: Vec<_> = detection.signs().iter().map(|sign| sign.name()).collect();
    json!({ "rule": detection.rule_id(), "signs": signs, "reservation": detection.reservation() })
}

/// A line a technique; below it why, where that is not plain.
pub(super) fn table(rows: &[Row], readings: &Readings, standing: Standing) -> String {
    let mut text = format!("{:22} {:18} {:16} {:15} DETAIL\n", "TECHNIQUE", "OUTCOME", "VERDICT", "AGENT");
    for Row { technique, outcome, verdict, seen } in rows {
        let agent = agent(technique, *seen);
        let (brief, verdict_name) = (outcome.brief(), verdict.name());
        let line =
            format!("{:22} {brief:18} {verdict_name:16} {agent:15} {}", technique.name, outcome.detail());
        text.push_str(line.trim_end());
        text.push('\n');
        if *verdict == Verdict::Broken {
            text.push_str(&format!("{INDENT}{}\n", technique.attempts));
            text.push_str(&format!("{INDENT}should be: {}\n", technique.with_userns));
        }
    }
    let counts = Verdict::ALL.iter().map(|verdict| (count(rows, *verdict), verdict.name()));
    let counts: Vec<_> =
        counts.filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}")).collect();
    text.push_str(&format!("\n{} ({}): {}\n", standing.about(), readings.user, counts.join(", ")));
    text
}

fn agent(technique: &Technique, seen: Seen) -> String {
    let rule = technique.detection.rule_id().unwrap_or_default();
    match seen {
        Seen::NotAsked => "not asked".to_owned(),
        Seen::Nothing => "-".to_owned(),
        Seen::NotSeen if technique.detection.reservation().is_some() => "-".to_owned(),
        Seen::Seen => format!("{rule} seen"),
        Seen::Rule => rule.to_owned(),
        Seen::NotSeen => format!("{rule} NOT seen"),
    }
}

fn count(rows: &[Row], verdict: Verdict) -> usize {
    rows.iter().filter(|row| row.verdict == verdict).count()
}

/// An object. Keys are stable: new ones may come, none goes or changes its meaning.
pub(super) fn json(rows: &[Row], readings: &Readings, standing: Standing) -> Value {
    let map = readings.uid_map.iter();
    let map: Vec<_> = map
        .map(|(inside, parent, count)| json!({ "inside": inside, "parent": parent, "count": count }))
        .collect();
    let techniques: Vec<_> = rows.iter().map(row).collect();
    json!({
        "schema": SCHEMA,
        "version": env!("CARGO_PKG_VERSION"),
        "place": { "standing": standing.name(), "user_namespace": readings.user, "uid_map": map },
        "broken": count(rows, Verdict::Broken) > 0,
        "techniques": techniques,
    })
}

fn row(row: &Row) -> Value {
    let mut value = about(row.technique);
    value["attempted"] = json!(!matches!(row.outcome, super::Outcome::Skipped(_)));
    value["outcome"] = row.outcome.to_json();
    value["verdict"] = json!(row.verdict.name());
    value["agent"] = json!(row.seen.name());
    value
}
