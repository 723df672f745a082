//! `userns-agent explain`: what a rule proves, and what a finding says, for whoever has to act on it.
//!
//! A rule is explained from the table that docs/rules.md is made of. A finding is asked of the running agent, or
//! read from JSON lines that an agent wrote, so that the report is the same on the node and anywhere else.

mod page;
mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Read as _, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;

use self::page::Page;
use crate::cli::ExitCode;
use crate::core::rules::{self, ATTACK_VERSION, Rule, RuleId};
use crate::ps::known::{self, AskError};

/// Findings that may be meant and are named in an error.
const MAX_NAMED: usize = 8;
/// How alike a name has to be to be suggested, from 0 to 1.
const ALIKE: f64 = 0.6;
/// How much less alike than the best a name may be to be suggested beside it.
const CLOSE: f64 = 0.1;
/// Columns where nothing says how many there are.
const WIDTH: usize = 100;

/// Why nothing is explained.
#[derive(Debug, Error)]
pub enum ExplainError {
    /// Nothing has that name.
    #[error("there is no rule, and no {place}, of the name {name:?}{}", suggestion(.nearest))]
    Unknown {
        /// What was asked for.
        name: String,
        /// Where findings were looked for.
        place: String,
        /// What may have been meant.
        nearest: Vec<String>,
    },
    /// Several findings have an id that begins so.
    #[error("the ids of several findings begin with {beginning}: {}; say more of it", .ids.join(", "))]
    Ambiguous {
        /// What was asked for.
        beginning: String,
        /// The first of them.
        ids: Vec<String>,
    },
    /// A file has no findings.
    #[error("{} holds no finding: it is to be JSON lines as `userns-agent run --output json` writes them", path.display())]
    NoFinding {
        /// The file.
        path: PathBuf,
    },
    /// The agent cannot be asked.
    #[error("{0}; findings that an agent wrote are read with --file")]
    Ask(#[from] AskError),
    /// There is no socket to ask.
    #[error("there is no agent to ask, as `socket` is `none`: read findings that it wrote with --file")]
    NoSocket,
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The answer cannot be written.
    #[error("cannot write the output: {0}")]
    Write(#[from] io::Error),
}

fn suggestion(nearest: &[String]) -> String {
    match nearest {
        [] => "; `userns-agent explain` tells of all rules, and `userns-agent inspect POD` has the ids of a pod's findings"
            .to_owned(),
        some => format!("; did you mean {}?", some.join(" or ")),
    }
}

impl From<&ExplainError> for ExitCode {
    fn from(error: &ExplainError) -> Self {
        match error {
            ExplainError::Ambiguous { .. } => Self::Usage,
            ExplainError::Unknown { .. } | ExplainError::NoFinding { .. } | ExplainError::Read { .. } => {
                Self::NoInput
            }
            ExplainError::Ask(_) | ExplainError::NoSocket => Self::Unavailable,
            ExplainError::Write(_) => Self::Io,
        }
    }
}

/// Columns of standard output: those of the terminal, or as many as text in a file reads well with.
#[must_use]
pub fn width() -> usize {
    let stdout = io::stdout();
    let columns = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok()).flatten();
    columns.map_or(WIDTH, |size| usize::from(size.ws_col).clamp(60, 120))
}

/// Explains a rule, by id or name, or a finding, by the beginning of its id, to `out`. Findings are those of `file`
/// (`-`: standard input) if there is one, else the open ones of the agent on `socket`. Without a name, every finding
/// of the file is reported, each as its last line has it.
///
/// # Errors
///
/// [`ExplainError`], which says what to do.
pub fn explain(
    name: Option<&str>,
    file: Option<&Path>,
    socket: Option<&Path>,
    width: usize,
    out: &mut dyn Write,
) -> Result<(), ExplainError> {
    let text = match (file, name) {
        (Some(file), _) => from_file(file, name.unwrap_or_default(), width)?,
        (None, Some(name)) => match rule_of(name) {
            Some(rule) => rule_page(rule, width),
            None => from_agent(name, socket, width)?,
        },
        (None, None) => RuleId::ALL.iter().map(|id| rule_page(rules::rule(*id), width)).collect(),
    };
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn rule_of(name: &str) -> Option<&'static Rule> {
    let all = RuleId::ALL.iter().map(|id| rules::rule(*id));
    let same = |rule: &&Rule| rule.id.eq_ignore_ascii_case(name) || rule.name.eq_ignore_ascii_case(name);
    all.into_iter().find(same)
}

/// What is to be known of a rule.
fn rule_page(rule: &Rule, width: usize) -> String {
    let mut page = Page::new(width);
    page.title(&format!("{}: {}", rule.id, rule.title));
    page.line(&format!("{}, usually of severity {}", rule.name, rule.severity.name()));
    let (technique, tactic) = (rule.technique, rule.tactic);
    page.line(&format!(
        "ATT&CK {ATTACK_VERSION}: {} {}, of tactic {} {}",
        technique.0, technique.1, tactic.0, tactic.1
    ));
    for (title, text) in [
        ("What it proves", rule.proves),
        ("What it rests on", rule.evidence),
        ("Legitimate causes", rule.exceptions),
        ("What to do", rule.respond),
    ] {
        page.section(title);
        page.paragraph(text);
    }
    page.end()
}

/// The names most like `name`, the most alike first.
fn nearest(name: &str, ids: &[String]) -> Vec<String> {
    let name = name.to_ascii_lowercase();
    let rules = RuleId::ALL.iter().map(|id| rules::rule(*id)).flat_map(|rule| [rule.id, rule.name]);
    let all = rules.chain(ids.iter().map(String::as_str));
    let mut alike: Vec<(f64, &str)> = all
        .map(|known| {
            // the beginning of an id is compared with as much of it
            let beginning: String = known.to_ascii_lowercase().chars().take(name.len().max(4)).collect();
            (
                strsim::jaro_winkler(&name, &known.to_ascii_lowercase())
                    .max(strsim::normalized_levenshtein(&name, &beginning)),
                known,
            )
        })
        .filter(|(alike, _)| *alike >= ALIKE)
        .collect();
    alike.sort_by(|a, b| b.0.total_cmp(&a.0));
    let best = alike.first().map_or(0.0, |(alike, _)| *alike);
    alike.retain(|(alike, _)| *alike > best - CLOSE);
    alike.iter().take(3).map(|(_, known)| (*known).to_owned()).collect()
}

fn from_agent(name: &str, socket: Option<&Path>, width: usize) -> Result<String, ExplainError> {
    let hex = name.len() <= 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let unknown = |ids: &[String]| ExplainError::Unknown {
        name: name.to_owned(),
        place: "open finding".to_owned(),
        nearest: nearest(name, ids),
    };
    let Some(socket) = socket else { return Err(if hex { ExplainError::NoSocket } else { unknown(&[]) }) };
    let beginning = if hex { name.to_ascii_lowercase() } else { "none".to_owned() };
    let told = match known::findings(socket, &beginning) {
        Ok(told) => told,
        // a name that no finding can have needs no agent to be refused
        Err(_) if !hex => return Err(unknown(&[])),
        Err(error) => return Err(error.into()),
    };
    match &told.findings[..] {
        [] => Err(unknown(&told.open)),
        [one] => Ok(report::report(one, width)),
        [..] => Err(ambiguous(name, told.open.iter().filter(|id| id.starts_with(&beginning)))),
    }
}

fn ambiguous<'a>(beginning: &str, ids: impl Iterator<Item = &'a String>) -> ExplainError {
    let mut ids: Vec<String> = ids.take(MAX_NAMED + 1).cloned().collect();
    if ids.len() > MAX_NAMED {
        ids[MAX_NAMED] = "…".to_owned();
    }
    ExplainError::Ambiguous { beginning: beginning.to_owned(), ids }
}

fn from_file(path: &Path, name: &str, width: usize) -> Result<String, ExplainError> {
    let read = |source| ExplainError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        io::stdin().lock().read_to_end(&mut bytes).map_err(read)?;
    } else {
        bytes = std::fs::read(path).map_err(read)?;
    }
    let findings = parse(&bytes);
    if findings.is_empty() {
        return Err(ExplainError::NoFinding { path: path.to_owned() });
    }
    let rule = rule_of(name).map(|rule| rule.id);
    let beginning = name.to_ascii_lowercase();
    let meant: Vec<&(String, Value)> = findings
        .iter()
        .filter(|(id, finding)| match rule {
            Some(rule) => finding.pointer("/finding/rule/id").and_then(Value::as_str) == Some(rule),
            None => id.starts_with(&beginning),
        })
        .collect();
    if meant.is_empty() {
        let ids: Vec<String> = findings.iter().map(|(id, _)| id.clone()).collect();
        let place = format!("finding in {}", path.display());
        return Err(ExplainError::Unknown { name: name.to_owned(), place, nearest: nearest(name, &ids) });
    }
    if rule.is_none() && !name.is_empty() && meant.len() > 1 {
        return Err(ambiguous(name, meant.iter().map(|(id, _)| id)));
    }
    Ok(meant.iter().map(|(_, finding)| report::report(finding, width)).collect::<Vec<_>>().join("\n"))
}

/// The findings of JSON lines, or of JSON over several lines, in the order of their first lines, each as its last line
/// has it. What is none is passed over.
fn parse(bytes: &[u8]) -> Vec<(String, Value)> {
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let mut values: Vec<Value> = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
    if !values.iter().any(is_finding) {
        values =
            serde_json::Deserializer::from_slice(bytes).into_iter::<Value>().map_while(Result::ok).collect();
    }
    let mut order = BTreeMap::new();
    let mut findings: Vec<(String, Value)> = Vec::new();
    for value in values.into_iter().filter(is_finding) {
        let Some(id) = value.pointer("/finding/id").and_then(Value::as_str).map(str::to_owned) else {
            continue;
        };
        let at = *order.entry(id.clone()).or_insert(findings.len());
        match findings.get_mut(at) {
            Some(known) => known.1 = value,
            None => findings.push((id, value)),
        }
    }
    findings
}

fn is_finding(value: &Value) -> bool {
    value.get("event").and_then(Value::as_str) == Some("finding")
}
