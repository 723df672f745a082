//! From the tree of a rules file to what it says, with every mistake on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;
use serde_saphyr::Spanned;

use super::tree::Node;
use super::{API_VERSION, Exception, KIND, RuleSet, Setting};
use crate::config::value::{Raw, SHOWN, cut, name as kubernetes_name};
use crate::config::{Mistake, Origin, nearest};
use crate::core::finding::Severity;
use crate::core::rules::{self, RuleId};
use crate::core::{has_threshold, names_a_program};

/// Most entries of a list; the name of each exception is a value of a metric's label.
const MAX_LIST: usize = 256;
/// Most characters of a text.
const MAX_TEXT: usize = 512;
/// Most uses that a threshold may want.
const MAX_COUNT: u64 = 1_000_000;

/// What a text has to be, in words, and the test of it.
type Form = (&'static str, fn(&str) -> bool);

const EXCEPTION_NAME: Form = ("a name of at most 63 lower case letters, digits and `-`", |text| {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(allowed)
});
const OBJECT_NAME: Form = ("a name, perhaps with `*` at its end", |text| kubernetes_name(text).is_some());
const IMAGE: Form = ("an image, with `*` for any characters, or a digest such as `sha256:…`", |text| {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/:@*".contains(&byte);
    let says_something = text.bytes().any(|byte| byte.is_ascii_alphanumeric());
    text.len() <= MAX_TEXT && says_something && text.bytes().all(allowed)
});
const EXECUTABLE: Form = ("an absolute path on the host, without `..`", |text| {
    let path = Path::new(text);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    path.is_absolute() && plain && text.len() <= MAX_TEXT && !text.contains('\0') && text.len() > 1
});
const REASON: Form = ("a text of at most 512 characters that says why this is expected", |text| {
    !text.trim().is_empty() && text.chars().count() <= MAX_TEXT
});
const LABEL: Form = ("a label's value: at most 63 letters, digits, `-`, `_` and `.`", |text| {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    text.len() <= 63 && text.bytes().all(allowed)
});

/// Reads the document.
pub(super) fn read(path: &Path, document: &Spanned<Node>) -> Result<RuleSet, Vec<Mistake>> {
    let mut reader = Reader { path, mistakes: Vec::new() };
    let rule_set = reader.rule_set(document);
    let mut mistakes = reader.mistakes;
    mistakes.sort_by_key(|mistake| if let Origin::File { line, .. } = mistake.origin { line } else { 0 });
    if mistakes.is_empty() { Ok(rule_set) } else { Err(mistakes) }
}

struct Reader<'a> {
    path: &'a Path,
    mistakes: Vec<Mistake>,
}

/// A mapping's entries, by key.
struct Fields<'a> {
    /// What stands before its keys in messages.
    at: String,
    line: u64,
    entries: BTreeMap<&'a str, &'a Spanned<Node>>,
}

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Spanned<Node>> {
        self.entries.get(key).copied()
    }

    fn key(&self, key: &str) -> String {
        if self.at.is_empty() { key.to_owned() } else { format!("{}.{key}", self.at) }
    }

    fn line_of(&self, key: &str) -> u64 {
        self.get(key).map_or(self.line, line)
    }
}

fn line(node: &Spanned<Node>) -> u64 {
    node.referenced.line()
}

fn describe(node: &Node) -> String {
    match node {
        Node::Scalar(value) => Raw::Tree(value).describe(),
        Node::List(list) => format!("a list of {}", list.len()),
        Node::Map(_) => "a mapping".to_owned(),
    }
}

fn text(node: &Node) -> Option<&str> {
    if let Node::Scalar(value) = node { value.as_str() } else { None }
}

fn find_rule(text: &str) -> Option<RuleId> {
    RuleId::ALL.iter().copied().find(|id| {
        let rule = rules::rule(*id);
        rule.id == text || rule.name == text
    })
}

impl Reader<'_> {
    fn wrong(&mut self, line: u64, key: String, found: impl Into<String>, allowed: impl Into<String>) {
        let origin = Origin::File { path: self.path.to_owned(), line };
        self.mistakes.push(Mistake { origin, key, found: found.into(), allowed: allowed.into() });
    }

    fn rule_set(&mut self, document: &Spanned<Node>) -> RuleSet {
        let mut rule_set = RuleSet::default();
        let keys = ["apiVersion", "kind", "metadata", "rules", "exceptions"];
        let Some(fields) = self.fields(document, String::new(), &keys) else { return rule_set };
        for (key, wanted) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            self.required(&fields, key, wanted, |node| text(node).filter(|text| *text == wanted).map(drop));
        }
        let mut seen = BTreeSet::new();
        for (at, item) in self.items(&fields, "rules", "a list of rules") {
            let before = self.mistakes.len();
            let setting = self.setting(item, &at);
            if let Some(setting) = setting.filter(|_| self.mistakes.len() == before) {
                if seen.insert(setting.rule) {
                    rule_set.rules.push(setting);
                } else {
                    let id = rules::rule(setting.rule).id;
                    self.wrong(line(item), at, format!("{id} a second time"), "one entry for each rule");
                }
            }
        }
        let mut names = BTreeSet::new();
        for (at, item) in self.items(&fields, "exceptions", "a list of exceptions") {
            let Some(exception) = self.exception(item, &at) else { continue };
            if !exception.name.is_empty() && !names.insert(exception.name.clone()) {
                let found = format!("the name {} a second time", exception.name);
                self.wrong(line(item), at, found, "a name of its own for each exception");
            }
            rule_set.exceptions.push(exception);
        }
        rule_set
    }

    fn setting(&mut self, item: &Spanned<Node>, at: &str) -> Option<Setting> {
        let fields = self.fields(item, at.to_owned(), &["id", "enabled", "severity", "threshold"])?;
        let id = self.required(&fields, "id", &rule_ids(), |node| text(node).and_then(find_rule));
        let enabled = self.truth(&fields, "enabled").unwrap_or(true);
        let named =
            |node: &Node| Severity::ALL.into_iter().find(|severity| text(node) == Some(severity.name()));
        let severity = self.optional(&fields, "severity", &severities(), named);
        let threshold = fields.get("threshold").and_then(|node| {
            let fields = self.fields(node, fields.key("threshold"), &["count"])?;
            let allowed = format!("a whole number from 1 to {MAX_COUNT}");
            self.required(&fields, "count", &allowed, |node| match node {
                Node::Scalar(value) => value.as_u64().filter(|count| (1..=MAX_COUNT).contains(count)),
                Node::List(_) | Node::Map(_) => None,
            })
        });
        let rule = id?;
        if rule == RuleId::I1 && !enabled {
            let allowed = "true: I1 proves that credentials were replaced inside the kernel. Leave out a known case by \
                           an exception with silencesCredentialEscape: true";
            self.wrong(fields.line_of("enabled"), fields.key("enabled"), "false", allowed);
        }
        if rule == RuleId::I1 && severity.is_some_and(|severity| severity != Severity::Critical) {
            let found = severity.map_or("", Severity::name);
            self.wrong(fields.line_of("severity"), fields.key("severity"), found, "critical for I1");
        }
        if threshold.is_some() && !has_threshold(rule) {
            let found = format!("a threshold of {}", rules::rule(rule).id);
            let allowed = format!("one of {} only, which count uses", ids(has_threshold));
            self.wrong(fields.line_of("threshold"), fields.key("threshold"), found, allowed);
        }
        Some(Setting { rule, enabled, severity, threshold })
    }

    fn exception(&mut self, item: &Spanned<Node>, at: &str) -> Option<Exception> {
        const KEYS: [&str; 10] = [
            "name",
            "rules",
            "namespaces",
            "matchLabels",
            "images",
            "executables",
            "serviceAccounts",
            "reason",
            "expires",
            "silencesCredentialEscape",
        ];
        let fields = self.fields(item, at.to_owned(), &KEYS)?;
        let name = self.text(&fields, "name", EXCEPTION_NAME);
        let reason = self.text(&fields, "reason", REASON);
        let expires = self.optional(
            &fields,
            "expires",
            "a date, or a time in UTC, such as 2030-01-31 or 2030-01-31T12:00:00Z",
            |node| text(node).and_then(time),
        );
        let silences_credential_escape = self.truth(&fields, "silencesCredentialEscape").unwrap_or(false);
        let exception = Exception {
            name,
            rules: self.rules_of(&fields),
            namespaces: self.texts(&fields, "namespaces", OBJECT_NAME),
            match_labels: self.match_labels(&fields),
            images: self.texts(&fields, "images", IMAGE),
            executables: self
                .texts(&fields, "executables", EXECUTABLE)
                .into_iter()
                .map(PathBuf::from)
                .collect(),
            service_accounts: self.texts(&fields, "serviceAccounts", OBJECT_NAME),
            silences_credential_escape,
            reason,
            expires,
        };
        self.consistent(&fields, &exception);
        Some(exception)
    }

    /// What holds between the parts of an exception.
    fn consistent(&mut self, fields: &Fields<'_>, exception: &Exception) {
        const SELECTORS: [&str; 5] =
            ["namespaces", "matchLabels", "images", "executables", "serviceAccounts"];
        if !SELECTORS.iter().any(|key| fields.get(key).is_some()) {
            let allowed =
                format!("at least one of {}; `enabled: false` turns a rule off", SELECTORS.join(", "));
            self.wrong(fields.line, fields.at.clone(), "an exception for everything", allowed);
        }
        let escape = exception.rules.contains(&RuleId::I1);
        let flag = "silencesCredentialEscape";
        if escape && !exception.silences_credential_escape {
            let allowed = format!(
                "I1 only with {flag}: true, as it proves that credentials were replaced inside the kernel"
            );
            self.wrong(fields.line_of("rules"), fields.key("rules"), "I1", allowed);
        }
        if !escape && exception.silences_credential_escape && !exception.rules.is_empty() {
            self.wrong(fields.line_of(flag), fields.key(flag), "true", "true only where rules has I1");
        }
        let others: Vec<_> = exception
            .rules
            .iter()
            .filter(|rule| !names_a_program(**rule))
            .map(|rule| rules::rule(*rule).id)
            .collect();
        if fields.get("executables").is_some() && !others.is_empty() {
            let allowed = format!(
                "executables only with {}: the findings of others are about a container, or about a process and all \
                 that it makes",
                ids(names_a_program)
            );
            let found = format!("executables with {}", others.join(", "));
            self.wrong(fields.line_of("executables"), fields.key("executables"), found, allowed);
        }
    }

    fn rules_of(&mut self, fields: &Fields<'_>) -> Vec<RuleId> {
        if fields.get("rules").is_none() {
            self.wrong(fields.line, fields.key("rules"), "nothing", rule_ids());
        }
        let mut found = BTreeSet::new();
        for (at, item) in self.listed(fields, "rules", "a list of rules, at least one") {
            match text(&item.value).and_then(find_rule) {
                Some(rule) => {
                    found.insert(rule);
                }
                None => self.wrong(line(item), at, describe(&item.value), rule_ids()),
            }
        }
        found.into_iter().collect()
    }

    /// A text that has to be there; empty if it is a mistake.
    fn text(&mut self, fields: &Fields<'_>, key: &str, (what, is): Form) -> String {
        let found =
            self.required(fields, key, what, |node| text(node).filter(|text| is(text)).map(str::to_owned));
        found.unwrap_or_default()
    }

    fn texts(&mut self, fields: &Fields<'_>, key: &str, (what, is): Form) -> Vec<String> {
        let mut found = Vec::new();
        for (at, item) in self.listed(fields, key, "a list of at least one") {
            match text(&item.value).filter(|text| is(text)) {
                Some(text) => found.push(text.to_owned()),
                None => self.wrong(line(item), at, describe(&item.value), what),
            }
        }
        found
    }

    fn match_labels(&mut self, fields: &Fields<'_>) -> BTreeMap<String, String> {
        let Some(node) = fields.get("matchLabels") else { return BTreeMap::new() };
        let key = fields.key("matchLabels");
        let (what, is) = LABEL;
        let allowed = "a mapping of labels to values, at least one";
        let mut labels = BTreeMap::new();
        let Node::Map(entries) = &node.value else {
            self.wrong(line(node), key, describe(&node.value), allowed);
            return labels;
        };
        if entries.is_empty() {
            self.wrong(line(node), key.clone(), "an empty mapping", allowed);
        }
        for (label, value) in entries {
            match text(&value.value).filter(|text| is(text)) {
                Some(text) => drop(labels.insert(label.value.clone(), text.to_owned())),
                None => {
                    let at = format!("{key}.{}", cut(&label.value, SHOWN));
                    self.wrong(line(value), at, describe(&value.value), what);
                }
            }
        }
        labels
    }

    fn truth(&mut self, fields: &Fields<'_>, key: &str) -> Option<bool> {
        self.optional(fields, key, "true or false", |node| match node {
            Node::Scalar(Value::Bool(value)) => Some(*value),
            Node::Scalar(_) | Node::List(_) | Node::Map(_) => None,
        })
    }

    fn optional<T>(
        &mut self,
        fields: &Fields<'_>,
        key: &str,
        allowed: &str,
        read: impl Fn(&Node) -> Option<T>,
    ) -> Option<T> {
        let node = fields.get(key)?;
        let value = read(&node.value);
        if value.is_none() {
            self.wrong(line(node), fields.key(key), describe(&node.value), allowed);
        }
        value
    }

    fn required<T>(
        &mut self,
        fields: &Fields<'_>,
        key: &str,
        allowed: &str,
        read: impl Fn(&Node) -> Option<T>,
    ) -> Option<T> {
        if fields.get(key).is_none() {
            self.wrong(fields.line, fields.key(key), "nothing", allowed);
        }
        self.optional(fields, key, allowed, read)
    }

    /// A list's items with what messages call them; absent is as good as empty.
    fn items<'a>(
        &mut self,
        fields: &Fields<'a>,
        key: &str,
        allowed: &str,
    ) -> Vec<(String, &'a Spanned<Node>)> {
        match fields.get(key).map(|node| &node.value) {
            None | Some(Node::Scalar(Value::Null)) => Vec::new(),
            Some(Node::List(list)) if list.is_empty() => Vec::new(),
            Some(_) => self.listed(fields, key, allowed),
        }
    }

    fn listed<'a>(
        &mut self,
        fields: &Fields<'a>,
        key: &str,
        allowed: &str,
    ) -> Vec<(String, &'a Spanned<Node>)> {
        let Some(node) = fields.get(key) else { return Vec::new() };
        let at = fields.key(key);
        let Node::List(list) = &node.value else {
            self.wrong(line(node), at, describe(&node.value), allowed);
            return Vec::new();
        };
        if !(1..=MAX_LIST).contains(&list.len()) {
            let allowed =
                if list.is_empty() { allowed.to_owned() } else { format!("a list of at most {MAX_LIST}") };
            self.wrong(line(node), at, describe(&node.value), allowed);
            return Vec::new();
        }
        list.iter().enumerate().map(|(index, item)| (format!("{at}[{index}]"), item)).collect()
    }

    /// A mapping's entries; keys that do not exist are mistakes.
    fn fields<'a>(&mut self, node: &'a Spanned<Node>, at: String, keys: &[&str]) -> Option<Fields<'a>> {
        let mut fields = Fields { at, line: line(node), entries: BTreeMap::new() };
        let Node::Map(entries) = &node.value else {
            let at = if fields.at.is_empty() { "the file".to_owned() } else { fields.at };
            self.wrong(fields.line, at, describe(&node.value), format!("a mapping of {}", keys.join(", ")));
            return None;
        };
        for (key, value) in entries {
            if keys.contains(&key.value.as_str()) {
                fields.entries.insert(&key.value, value);
                continue;
            }
            let allowed = match nearest(&key.value, keys.iter().copied()) {
                Some(near) => format!("{near}, if that was meant"),
                None => format!("one of {}", keys.join(", ")),
            };
            let at = fields.key(&cut(&key.value, SHOWN));
            self.wrong(key.referenced.line(), at, "a key that does not exist", allowed);
        }
        Some(fields)
    }
}

/// A time of RFC 3339 in UTC, or the beginning of a day.
fn time(text: &str) -> Option<SystemTime> {
    let whole = if text.len() == "2030-01-31".len() { format!("{text}T00:00:00Z") } else { text.to_owned() };
    humantime::parse_rfc3339(&whole).ok()
}

fn ids(which: fn(RuleId) -> bool) -> String {
    let ids: Vec<_> =
        RuleId::ALL.iter().filter(|rule| which(**rule)).map(|rule| rules::rule(*rule).id).collect();
    ids.join(", ")
}

fn rule_ids() -> String {
    format!("the id or name of a rule: one of {}", ids(|_| true))
}

fn severities() -> String {
    let names: Vec<_> = Severity::ALL.iter().map(|severity| severity.name()).collect();
    format!("one of {}", names.join(", "))
}
