//! Runs the rules over a recording.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{Entry, Reader, RecordingError};
use crate::cli::ExitCode;
use crate::core::Output;
use crate::core::finding::{Finding, Status};
use crate::core::rules::rule;
use crate::event::{Fact, Input, Policy};
use crate::policy::{self, RulesError};
use crate::sink::json::Renderer;
use crate::sink::live;

/// What is replayed, and how.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    /// The recording; `-` for standard input.
    pub recording: PathBuf,
    /// Rules files instead of what was recorded of one: none, one, or two that are compared.
    pub rules: Vec<PathBuf>,
    /// JSON lines; else for people.
    pub json: bool,
}

/// Why there is nothing to tell, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The recording cannot be opened.
    #[error("cannot open the recording {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be read to its end.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// A rules file is of no use.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// Findings cannot be written.
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
}

impl From<&ReplayError> for ExitCode {
    fn from(error: &ReplayError) -> Self {
        match error {
            ReplayError::Open { .. } | ReplayError::Recording(RecordingError::Io(_)) => Self::NoInput,
            ReplayError::Recording(_) => Self::Data,
            ReplayError::Rules(error) => error.into(),
            ReplayError::Write(_) => Self::Io,
        }
    }
}

/// What was read, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    inputs: u64,
    events: u64,
    gaps: u64,
    missing: u64,
    lines: u64,
}

/// Feeds a recording to a core, and hands on what that tells. What was read before an error counts.
fn feed<R: Read>(
    reader: &mut Reader<R>,
    rules: Option<&Policy>,
    tally: &mut Tally,
    mut tell: impl FnMut(&Finding) -> io::Result<()>,
) -> Result<(), ReplayError> {
    let mut engine = reader.header().engine();
    if let Some(rules) = rules {
        engine = engine.with_policy(rules.clone());
    }
    let mut decided = Vec::new();
    let mut act = |decided: &mut Vec<Output>, tally: &mut Tally| -> io::Result<()> {
        for output in decided.drain(..) {
            if let Output::Finding(finding) = output {
                tally.lines += 1;
                tell(&finding)?;
            }
        }
        Ok(())
    };
    let ended = loop {
        match reader.next() {
            Ok(Some(Entry::Input(input))) => {
                tally.inputs += 1;
                tally.events += u64::from(matches!(input, Input::Event(_)));
                if rules.is_none() || !matches!(input, Input::Fact(_, Fact::Policy(_))) {
                    engine.handle(input, &mut decided);
                    act(&mut decided, tally)?;
                }
            }
            Ok(Some(Entry::Gap(missing))) => {
                tally.gaps += 1;
                tally.missing += missing;
            }
            Ok(Some(Entry::End(_)) | None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    engine.flush(&mut decided);
    act(&mut decided, tally)?;
    Ok(ended?)
}

/// Replays a recording and writes what is found to `out`, and a summary to `notes`.
///
/// # Errors
///
/// [`ReplayError`]; of a recording that is cut or damaged, what came before is written all the same.
pub fn replay(arguments: &Arguments, out: &mut dyn Write, notes: &mut dyn Write) -> Result<(), ReplayError> {
    match &arguments.rules[..] {
        [old, new, ..] => compare(arguments, [old, new], out),
        one => print(arguments, one.first(), out, notes),
    }
}

fn open(path: &Path) -> Result<Reader<Box<dyn Read>>, ReplayError> {
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).map_err(|source| ReplayError::Open { path: path.to_owned(), source })?)
    };
    Ok(Reader::new(source)?)
}

fn policy<R: Read>(path: Option<&PathBuf>, reader: &Reader<R>) -> Result<Option<Policy>, ReplayError> {
    let Some(path) = path else { return Ok(None) };
    let set = policy::load(path)?;
    // a recording has no files, so which programs an exception means is not known
    Ok(Some(set.policy(reader.header().clock(), &BTreeMap::new())))
}

fn print(
    arguments: &Arguments,
    rules: Option<&PathBuf>,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<(), ReplayError> {
    let mut reader = open(&arguments.recording)?;
    let rules = policy(rules, &reader)?;
    let (clock, renderer) = (reader.header().clock(), Renderer::new(reader.header().node.clone()));
    let style = live::Style { color: false, clock };
    let (started, mut tally) = (Instant::now(), Tally::default());
    let fed = feed(&mut reader, rules.as_ref(), &mut tally, |finding| {
        let rule = rule(finding.rule);
        if arguments.json {
            out.write_all(&renderer.finding(finding, rule, clock)?)
        } else {
            out.write_all(live::format(finding, rule, &style).as_bytes())
        }
    });
    out.flush()?;
    let seconds = started.elapsed().as_secs_f64();
    let Tally { inputs, events, gaps, missing, lines } = tally;
    writeln!(
        notes,
        "{inputs} inputs ({events} events) in {seconds:.2} s, {:.0} a second; {lines} lines about findings",
        inputs as f64 / seconds.max(1e-9)
    )?;
    if gaps > 0 {
        writeln!(
            notes,
            "{missing} inputs are missing in {gaps} places: they came faster than they could be written"
        )?;
    }
    fed
}

/// What a finding is told with that two sets of rules may differ in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) rule: &'static str,
    pub(super) severity: &'static str,
    pub(super) count: u64,
    pub(super) why: String,
}

/// Findings by their ids, as last told before their end.
pub(super) type Findings = BTreeMap<String, Said>;

/// What became of a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Added(Said),
    Removed(Said),
    Changed(Said, Said),
}

/// What differs, by the findings' ids.
pub(super) fn diff(old: &Findings, new: &Findings) -> BTreeMap<String, Change> {
    let removed = old.iter().filter(|(id, _)| !new.contains_key(*id));
    let removed = removed.map(|(id, said)| (id.clone(), Change::Removed(said.clone())));
    let rest = new.iter().filter_map(|(id, said)| match old.get(id) {
        None => Some((id.clone(), Change::Added(said.clone()))),
        Some(before) if before != said => Some((id.clone(), Change::Changed(before.clone(), said.clone()))),
        Some(_) => None,
    });
    removed.chain(rest).collect()
}

fn compare(arguments: &Arguments, rules: [&PathBuf; 2], out: &mut dyn Write) -> Result<(), ReplayError> {
    let findings = |rules| -> Result<Findings, ReplayError> {
        let mut reader = open(&arguments.recording)?;
        let policy = policy(Some(rules), &reader)?;
        let (mut findings, mut tally) = (Findings::new(), Tally::default());
        feed(&mut reader, policy.as_ref(), &mut tally, |finding| {
            if finding.status != Status::Resolved {
                let Finding { severity, count, why, .. } = finding;
                let rule = rule(finding.rule).id;
                let said = Said { rule, severity: severity.name(), count: *count, why: why.clone() };
                findings.insert(finding.id.to_string(), said);
            }
            Ok(())
        })?;
        Ok(findings)
    };
    let [old, new] = rules;
    let (old, new) = (findings(old)?, findings(new)?);
    let changes = diff(&old, &new);
    for (id, change) in &changes {
        let line = |said: &Said| {
            let Said { rule, severity, count, why } = said;
            format!("{id} {rule} ({severity}, {count} times) {}", why.escape_debug())
        };
        match change {
            Change::Added(said) => writeln!(out, "+ {}", line(said))?,
            Change::Removed(said) => writeln!(out, "- {}", line(said))?,
            Change::Changed(before, after) => {
                writeln!(out, "- {}", line(before))?;
                writeln!(out, "+ {}", line(after))?;
            }
        }
    }
    writeln!(
        out,
        "{} findings with the old rules, {} with the new; {} differ",
        old.len(),
        new.len(),
        changes.len()
    )?;
    Ok(())
}
