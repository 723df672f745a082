//! docs/events.md, from the JSON schema.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::core::{flight, windows};

const SCHEMA: &str = include_str!("../../../docs/schema/v1.json");

/// As much of a JSON schema as ours uses.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Schema {
    description: String,
    #[serde(rename = "type")]
    types: Option<Types>,
    #[serde(rename = "$ref")]
    reference: Option<String>,
    #[serde(rename = "$defs")]
    definitions: Members,
    properties: Members,
    items: Option<Box<Schema>>,
    #[serde(rename = "oneOf")]
    one_of: Vec<Schema>,
    #[serde(rename = "enum")]
    values: Vec<Option<String>>,
    #[serde(rename = "const")]
    constant: Option<String>,
    format: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Types {
    One(String),
    Several(Vec<String>),
}

/// Members in the order of the file.
#[derive(Debug, Default)]
struct Members(Vec<(String, Schema)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

/// The page's text.
pub(super) fn page() -> Result<String, serde_json::Error> {
    let schema: Schema = serde_json::from_str(SCHEMA)?;
    let mut page = format!(
        "# Events\n\n\
        Standard output with `--output json` and the output file carry one JSON object a line, in UTF-8. \
        Control characters, line separators and invisible formatting in texts are escaped, so a line is a \
        line for every reader. Times are RFC 3339 in UTC with nanoseconds.\n\n\
        {}\n\n\
        The same as a JSON Schema: [v1.json](schema/v1.json). Whole examples: \
        [finding](../userns-agent/tests/golden/finding.json), \
        [agent](../userns-agent/tests/golden/agent.json), \
        [suppressed](../userns-agent/tests/golden/suppressed.json).\n",
        schema.description
    );
    page.push_str(&life());
    let is_event = |name: &str| schema.one_of.iter().any(|event| event.referent() == Some(name));
    let (events, shared): (Vec<_>, Vec<_>) =
        schema.definitions.0.iter().partition(|(name, _)| is_event(name));
    for (name, definition) in events {
        section(&mut page, &format!("Event `{name}`"), name, definition);
    }
    for (name, definition) in shared {
        section(&mut page, &format!("Type `{name}`"), name, definition);
    }
    Ok(page)
}

/// How findings come and go. Every number is the one that the code uses.
fn life() -> String {
    let seconds = |nanos: u64| {
        let text = format!("{:.1}", nanos as f64 / 1e9);
        format!("{} s", text.strip_suffix(".0").unwrap_or(&text))
    };
    let (update, resolve, keep) =
        (seconds(windows::UPDATE_NS), seconds(windows::RESOLVE_NS), seconds(windows::KEEP_NS));
    let (look_back, steps) = (seconds(windows::LOOK_BACK_NS), seconds(windows::KEEP_STEPS_NS));
    let withheld = seconds(windows::COLLECT_NS);
    let (each, told, mib) = (flight::MAX_STEPS, flight::MAX_TOLD, flight::MAX_BYTES >> 20);
    format!(
        "\n## The life of a finding\n\n\
        A finding is what one rule says of one process, container, pod or pair of pods: whatever repeats itself about \
        the same is the same finding, with one `finding.id`, also after a restart of the agent on the same boot.\n\n\
        | Status | Told |\n|---|---|\n\
        | `opened` | At once; one that is not critical waits up to `enrich_wait` for names. |\n\
        | `updated` | When it happened again or more: what comes within {update} of the last line is put together. \
        `count`, `first_seen` and `last_seen`, and the counts of `capabilities` and `calls`, are of all there was. |\n\
        | `amended` | When pod or container have become known, and once, {look_back} after the first line, if records that \
        came by another way add to the evidence. |\n\
        | `resolved` | Once, {resolve} after the container is gone (of a pod: its last container; of two pods: either), \
        with how long it was open and the final counts. Only of findings that were told. |\n\n\
        That a finding is resolved means that nothing of it runs any more. It undoes nothing that was done. A finding about \
        a process that left its container's cgroup is not resolved with the container: nothing shows that the process, \
        and what it made, have ended. Neither are those whose container went while no agent ran. What is gone stays \
        known for {keep}, so that late records find their pod.\n\n\
        `evidence` tells how it came about. The agent remembers the first {} and the last {} steps of each process, for \
        {steps} after its end, and longer as long as one that it made lives. A finding gets those of its process, then of \
        its ancestors in the container, then of its latest children: {told} at most, and `evidence_omitted` says how many \
        there were in between. All steps together take {mib} MiB at most; beyond that the container that has the most \
        loses some, which `userns_core_evictions_total{{table=\"flight\"}}` counts.\n\n\
        Records that the kernel withheld of a container are told as `suppressed` at once the first time, then every \
        {withheld}.\n",
        flight::FIRST_STEPS,
        each - flight::FIRST_STEPS,
    )
}

fn section(page: &mut String, title: &str, name: &str, definition: &Schema) {
    let about = &definition.description;
    page.push_str(&format!("\n<a id=\"{name}\"></a>\n\n## {title}\n\n{about}\n\n"));
    page.push_str("| Field | Type | Meaning |\n|---|---|---|\n");
    rows(page, "", definition);
}

fn rows(page: &mut String, prefix: &str, object: &Schema) {
    for (name, member) in &object.properties.0 {
        let path = format!("{prefix}{name}");
        let (kind, about) = (member.kind(), super::cell(&member.description));
        page.push_str(&format!("| `{path}` | {kind} | {about} |\n"));
        rows(page, &format!("{path}."), member);
        if let Some(items) = &member.items {
            rows(page, &format!("{path}[]."), items);
        }
    }
}

impl Schema {
    /// The name of the definition that it refers to.
    fn referent(&self) -> Option<&str> {
        self.reference.as_deref()?.rsplit('/').next()
    }

    /// Its type, for people.
    fn kind(&self) -> String {
        if let Some(name) = self.referent() {
            return format!("[{name}](#{name})");
        }
        if let Some(constant) = &self.constant {
            return format!("`\"{constant}\"`");
        }
        if !self.values.is_empty() {
            let value = |value: &Option<String>| match value {
                Some(value) => format!("`\"{value}\"`"),
                None => "`null`".to_owned(),
            };
            return self.values.iter().map(value).collect::<Vec<_>>().join(", ");
        }
        if !self.one_of.is_empty() {
            return self.one_of.iter().map(Self::kind).collect::<Vec<_>>().join(" or ");
        }
        let types = match &self.types {
            None => Vec::new(),
            Some(Types::One(one)) => vec![one.as_str()],
            Some(Types::Several(types)) => types.iter().map(String::as_str).collect(),
        };
        types.iter().map(|name| self.named(name)).collect::<Vec<_>>().join(" or ")
    }

    fn named(&self, name: &str) -> String {
        match name {
            "null" => "`null`".to_owned(),
            "string" if self.format.is_some() => "time".to_owned(),
            "array" => match &self.items {
                Some(items) => format!("array of {}", items.kind()),
                None => "array".to_owned(),
            },
            other => other.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_in_the_order_of_the_line() {
        let page = page().unwrap();
        let at = |text: &str| page.find(text).unwrap_or_else(|| panic!("no {text} in {page}"));
        let rows = [
            "## Event `finding`",
            "| `schema` | `\"userns-agent/v1\"` |",
            "| `finding.rule.severity` | `\"info\"`, `\"low\"`,",
            "| `pod` | [pod](#pod) or `null` |",
            "| `process` | [process](#process) or `null` |",
            "| `capabilities[].granted` | boolean |",
            "## Event `agent`",
            "| `probes` | array of [probe](#probe) |",
            "## Event `suppressed`",
            "| `severity` | `\"info\"`, `\"low\"`, `\"medium\"`, `\"high\"`, `\"critical\"`, `null` |",
            "## Type `pod`",
            "| `namespace` | string or `null` |",
            "## Type `process`",
            "| `start_time` | time |",
        ];
        assert!(rows.iter().map(|row| at(row)).is_sorted());
    }
}
