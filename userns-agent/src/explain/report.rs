//! A finding's line as an incident report.

use serde_json::Value;

use super::page::Page;
use crate::sink::text::escape;

/// The report, from a line of JSON. What the line does not have, as one by an older agent, is left out. Everything
/// that comes from it is escaped.
pub(super) fn report(line: &Value, width: usize) -> String {
    let line = Line(line);
    let mut page = Page::new(width);
    head(&line, &mut page);
    page.section("What happened");
    page.paragraph(&line.text("/finding/why").unwrap_or_default());
    if let Some(used) = used(&line) {
        page.paragraph(&format!("In all: {used}."));
    }
    place(&line, &mut page);
    process(&line, &mut page);
    evidence(&line, &mut page);
    response(&line, &mut page);
    let unknown = line.list("/finding/unknown");
    if !unknown.is_empty() {
        page.section("What is not known");
        for what in unknown {
            page.item("-", &plain(what));
        }
    }
    page.end()
}

/// Characters of `2026-01-01T00:00:00.000`.
const TO_MILLISECONDS: usize = 23;

/// A line with access by JSON pointers.
struct Line<'a>(&'a Value);

impl<'a> Line<'a> {
    fn at(&self, pointer: &str) -> Option<&'a Value> {
        self.0.pointer(pointer).filter(|value| !value.is_null())
    }

    /// A string or number as text for a terminal.
    fn text(&self, pointer: &str) -> Option<String> {
        self.at(pointer).map(plain)
    }

    fn or(&self, pointer: &str, other: &str) -> String {
        self.text(pointer).unwrap_or_else(|| other.to_owned())
    }

    /// A time to the millisecond.
    fn time(&self, pointer: &str) -> String {
        let time = self.or(pointer, "?");
        match time.get(..TO_MILLISECONDS) {
            Some(short) if time.ends_with('Z') => format!("{short}Z"),
            _ => time,
        }
    }

    fn list(&self, pointer: &str) -> &'a [Value] {
        self.at(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| escape(&value.to_string()), escape)
}

fn head(line: &Line<'_>, page: &mut Page) {
    let (id, rule, title) = ("/finding/id", "/finding/rule/id", "/finding/rule/title");
    page.title(&format!("Finding {}: {} {}", line.or(id, "?"), line.or(rule, "?"), line.or(title, "")));
    page.line(&format!(
        "{}, confidence {}, {} on node {}",
        line.or("/finding/rule/severity", "?").to_uppercase(),
        line.or("/finding/rule/confidence", "?"),
        line.or("/finding/status", "?"),
        line.or("/node", "?"),
    ));
    page.line(&format!(
        "seen {}×, from {} to {}",
        line.or("/finding/count", "?"),
        line.time("/finding/first_seen"),
        line.time("/finding/last_seen")
    ));
    if line.at("/finding/resolved").is_some() {
        let at = line.time("/finding/resolved/at");
        let (because, open) = ("/finding/resolved/because", "/finding/resolved/open_seconds");
        page.line(&format!("resolved {at}, as {}, after {} s", line.or(because, "?"), line.or(open, "?")));
    }
    if let Some(technique) = line.text("/finding/attack/technique/id") {
        page.line(&format!(
            "ATT&CK {}: {technique} {}, of tactic {} {}",
            line.or("/finding/attack/version", ""),
            line.or("/finding/attack/technique/name", ""),
            line.or("/finding/attack/tactic/id", ""),
            line.or("/finding/attack/tactic/name", "")
        ));
    }
}

fn used(line: &Line<'_>) -> Option<String> {
    let capability = |it: &Value| {
        let it = Line(it);
        let granted = it.at("/granted").and_then(Value::as_bool) == Some(true);
        let verdict = if granted { "granted" } else { "denied" };
        format!("{} {verdict} {}×", it.or("/name", "?"), it.or("/count", "?"))
    };
    let call = |it: &Value| {
        let it = Line(it);
        let ret = it.or("/ret", "?");
        let result =
            if ret == "0" { "succeeded".to_owned() } else { it.or("/error", &format!("error {ret}")) };
        format!("{} {result} {}×", it.or("/name", "?"), it.or("/count", "?"))
    };
    let capabilities = line.list("/capabilities").iter().map(capability);
    let used: Vec<String> = capabilities.chain(line.list("/calls").iter().map(call)).collect();
    (!used.is_empty()).then(|| used.join(", "))
}

fn place(line: &Line<'_>, page: &mut Page) {
    page.section("Where");
    pod(line, "", page);
    container(line, "", page);
    if line.at("/from").is_some() {
        page.section("Where the process comes from");
        pod(line, "/from", page);
        container(line, "/from", page);
    }
}

fn pod(line: &Line<'_>, of: &str, page: &mut Page) {
    let at = |field: &str| line.text(&format!("{of}/pod/{field}"));
    let Some(uid) = at("uid") else {
        page.field("pod", "not known");
        return;
    };
    match (at("namespace"), at("name")) {
        (Some(namespace), Some(name)) => page.field("pod", &format!("{namespace}/{name} ({uid})")),
        _ => page.field("pod", &uid),
    }
    if let (Some(kind), Some(name)) = (at("owner/kind"), at("owner/name")) {
        page.field("owner", &format!("{kind} {name}"));
    }
    let labels = line.at(&format!("{of}/pod/labels")).and_then(Value::as_object);
    let labels: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{}={}", escape(name), plain(value)))
        .collect();
    for (name, text) in [
        ("labels", (!labels.is_empty()).then(|| labels.join(", "))),
        ("account", at("service_account")),
        ("runtime", at("runtime_class")),
        ("hostUsers", at("host_users")),
        (
            "range",
            map(line, &format!("{of}/pod/recorded_uid_map")).map(|map| format!("{map} (kubelet's record)")),
        ),
    ] {
        if let Some(text) = text {
            page.field(name, &text);
        }
    }
}

fn container(line: &Line<'_>, of: &str, page: &mut Page) {
    let at = |field: &str| line.text(&format!("{of}/container/{field}"));
    let Some(id) = at("id") else {
        page.field("container", "not known");
        return;
    };
    let kind = at("kind").map(|kind| format!(" ({kind})")).unwrap_or_default();
    let name = at("name").map(|name| format!("{name}{kind} ")).unwrap_or_default();
    page.field("container", &format!("{name}{id}"));
    if let Some(image) = at("image") {
        page.field("image", &image);
    }
    if let Some(digest) = at("image_digest") {
        page.field("", &digest);
    }
    if let Some(path) = at("cgroup/path") {
        page.field("cgroup", &path);
    }
}

/// A map of ids: `inside→host+count`.
fn map(line: &Line<'_>, pointer: &str) -> Option<String> {
    let extent = |it: &Value| {
        let it = Line(it);
        format!("{}→{}+{}", it.or("/inside", "?"), it.or("/host", "?"), it.or("/count", "?"))
    };
    let extents: Vec<String> = line.list(pointer).iter().map(extent).collect();
    (!extents.is_empty()).then(|| extents.join(", "))
}

/// Ids as the host and the pod have them.
fn ids(of: &Line<'_>, base: &str, names: &[&str]) -> String {
    let both = |name: &&str| {
        let host = of.text(&format!("{base}/{name}/host"))?;
        let inside = of.or(&format!("{base}/{name}/container"), "unmapped");
        Some(format!("{name} {host} → {inside}"))
    };
    names.iter().filter_map(both).collect::<Vec<_>>().join(", ")
}

fn process(line: &Line<'_>, page: &mut Page) {
    if line.at("/process").is_none() {
        return;
    }
    let at = |field: &str| line.text(&format!("/process/{field}"));
    page.section("Process");
    let inside = at("pid_in_container").map(|pid| format!(", {pid} in the container")).unwrap_or_default();
    let (comm, pid) = (at("comm").unwrap_or_default(), at("pid").unwrap_or_default());
    page.field("name", &format!("{comm}, pid {pid}{inside}"));
    page.field("started", &line.time("/process/start_time"));
    if let Some(program) = at("executable") {
        page.field("program", &program);
    }
    let args: Vec<String> = line.list("/process/args").iter().map(|arg| quoted(&plain(arg))).collect();
    if !args.is_empty() {
        page.field("arguments", &args.join(" "));
    }
    page.field("ids", "host → pod");
    page.field("", &ids(line, "/process/ids", &["uid", "euid", "suid", "fsuid"]));
    page.field("", &ids(line, "/process/ids", &["gid", "egid", "sgid", "fsgid"]));
    for set in ["effective", "permitted"] {
        let names: Vec<String> =
            line.list(&format!("/process/capabilities/{set}")).iter().map(plain).collect();
        let names = if names.is_empty() { "no capability".to_owned() } else { names.join(" ") };
        page.field(set, &names);
    }
    for (name, pointer) in [("own userns", "user_namespace"), ("pod's userns", "pod_user_namespace")] {
        let Some(inode) = at(&format!("{pointer}/inode")) else { continue };
        let map = map(line, &format!("/process/{pointer}/uid_map")).unwrap_or_else(|| "no map".to_owned());
        page.field(
            name,
            &format!("{inode}, level {}, {map}", at(&format!("{pointer}/level")).unwrap_or_default()),
        );
    }
    let ancestor = |it: &Value| {
        let it = Line(it);
        format!("{}[{}]", it.or("/comm", "?"), it.or("/pid", "?"))
    };
    let ancestors: Vec<String> = line.list("/process/ancestors").iter().map(ancestor).collect();
    if !ancestors.is_empty() {
        page.field("ancestors", &ancestors.join(" ← "));
    }
}

fn quoted(arg: &str) -> String {
    let plain = !arg.is_empty() && !arg.contains([' ', '\'', '"', '\\', '$', '`']);
    if plain { arg.to_owned() } else { format!("'{}'", arg.replace('\'', "'\\''")) }
}

fn evidence(line: &Line<'_>, page: &mut Page) {
    let steps = line.list("/evidence");
    if steps.is_empty() {
        return;
    }
    page.section("How it came about (UTC)");
    for step in steps {
        let step = Line(step);
        let time = step.or("/time", "?");
        let time = time.get(11..26).unwrap_or(&time).to_owned();
        let again = match step.text("/count").as_deref() {
            None | Some("1") => String::new(),
            Some(count) => format!(" ({count}×)"),
        };
        let (comm, pid) = (step.or("/process/comm", "?"), step.or("/process/pid", "?"));
        page.item(&time, &format!("{comm}[{pid}] {}{again}", step.or("/what", "?")));
        let ids = ids(&step, "/process/ids", &["euid", "egid"]);
        page.item(&" ".repeat(time.chars().count()), &format!("{ids}, by {}", step.or("/hook", "?")));
    }
    if let Some(omitted) = line.text("/evidence_omitted").filter(|omitted| omitted != "0") {
        page.paragraph(&format!("Left out: {omitted} steps in between."));
    }
}

fn response(line: &Line<'_>, page: &mut Page) {
    let Some(summary) = line.text("/response/summary") else { return };
    page.section("What to do");
    page.paragraph(&summary);
    for (number, step) in (1..).zip(line.list("/response/steps")) {
        let step = Line(step);
        page.item(&format!("{number:>2}."), &step.or("/what", ""));
        if let Some(command) = step.text("/command") {
            page.command(&command);
        }
    }
}
