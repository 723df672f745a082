//! As much of JSON Schema as docs/schema/v1.json uses; a keyword beyond that fails the test that reads it.
//!
//! Stricter than the schema itself in one point: a field that it does not list is an error, as every field
//! has to be documented.

use std::fs;

use serde_json::{Map, Value};

use super::in_package;

const KEYWORDS: [&str; 16] = [
    "$schema",
    "$defs",
    "$ref",
    "title",
    "description",
    "type",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "oneOf",
    "enum",
    "const",
    "format",
    "minimum",
    "examples",
];

pub(super) struct Schema {
    root: Value,
}

impl Schema {
    pub(super) fn load() -> Self {
        let text = fs::read_to_string(in_package("../docs/schema/v1.json")).unwrap();
        Self { root: serde_json::from_str(&text).unwrap() }
    }

    pub(super) fn check(&self, value: &Value) -> Result<(), String> {
        self.at("", &self.root, value)
    }

    fn at(&self, path: &str, schema: &Value, value: &Value) -> Result<(), String> {
        let schema = schema.as_object().unwrap();
        for keyword in schema.keys() {
            assert!(KEYWORDS.contains(&keyword.as_str()), "keyword {keyword} is not checked");
        }
        let fail = |what: &str| Err(format!("{path}: {value} {what}"));
        if let Some(Value::String(name)) = schema.get("$ref") {
            let pointer = name.strip_prefix('#').unwrap();
            self.at(path, self.root.pointer(pointer).unwrap(), value)?;
        }
        if schema.get("type").is_some_and(|types| !has_type(types, value)) {
            return fail(&format!("is not of type {}", schema["type"]));
        }
        if schema.get("const").is_some_and(|only| only != value) {
            return fail("is not the constant");
        }
        if schema.get("enum").is_some_and(|allowed| !allowed.as_array().unwrap().contains(value)) {
            return fail("is not in the enumeration");
        }
        if schema.get("minimum").is_some() && value.as_i64().is_some_and(|number| number < 0) {
            return fail("is negative");
        }
        if schema.contains_key("format") && value.as_str().is_some_and(|text| !is_time(text)) {
            return fail("is no date and time");
        }
        if let Some(choices) = schema.get("oneOf") {
            let choices = choices.as_array().unwrap().iter();
            let errors: Vec<_> = choices.clone().filter_map(|one| self.at(path, one, value).err()).collect();
            if choices.len() - errors.len() != 1 {
                return fail(&format!("fits not exactly one: {errors:?}"));
            }
        }
        self.members(path, schema, value)
    }

    fn members(&self, path: &str, schema: &Map<String, Value>, value: &Value) -> Result<(), String> {
        for (index, item) in value.as_array().into_iter().flatten().enumerate() {
            if let Some(items) = schema.get("items") {
                self.at(&format!("{path}/{index}"), items, item)?;
            }
        }
        let (Some(object), true) = (value.as_object(), schema.contains_key("type")) else { return Ok(()) };
        for required in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
            if !object.contains_key(required.as_str().unwrap()) {
                return Err(format!("{path}: {required} is missing"));
            }
        }
        let properties = schema.get("properties").and_then(Value::as_object);
        for (name, member) in object {
            let known = properties.and_then(|properties| properties.get(name));
            let known = known.or_else(|| schema.get("additionalProperties"));
            let known = known.ok_or_else(|| format!("{path}/{name} is not in the schema"))?;
            self.at(&format!("{path}/{name}"), known, member)?;
        }
        Ok(())
    }
}

fn has_type(types: &Value, value: &Value) -> bool {
    let is = |name: &str| match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("type {other}"),
    };
    match types.as_str() {
        Some(name) => is(name),
        None => types.as_array().unwrap().iter().any(|name| is(name.as_str().unwrap())),
    }
}

/// `2026-01-01T00:00:00.000000000Z`
fn is_time(text: &str) -> bool {
    let digits: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    digits == "0000-00-00T00:00:00.000000000Z"
}

#[test]
fn what_does_not_fit_is_refused() {
    let schema = Schema::load();
    let line = super::finding_line(&crate::sink::sample::finding());
    let good = super::value(&line);
    schema.check(&good).unwrap();
    type Damage<'a> = &'a dyn Fn(&mut Value);
    let breaks: [(&str, Damage<'_>); 6] = [
        ("a missing field", &|value| drop(value["finding"].as_object_mut().unwrap().remove("count"))),
        ("an unknown field", &|value| value["process"]["colour"] = "red".into()),
        ("a wrong type", &|value| value["finding"]["count"] = "3".into()),
        ("an unknown value", &|value| value["finding"]["rule"]["severity"] = "awful".into()),
        ("a negative number", &|value| value["process"]["pid"] = (-1).into()),
        ("a wrong time", &|value| value["time"] = "yesterday".into()),
    ];
    for (what, damage) in breaks {
        let mut value = good.clone();
        damage(&mut value);
        assert!(schema.check(&value).is_err(), "{what}");
    }
}
