//! docs/events.md, from the JSON schema.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

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
