//! Runs the rules over a recording.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{Entry, Reader, RecordingError};
use crate::cli::ExitCode;
use crate::core::finding::{Finding, Status};
use crate::core::rules::rule;
use crate::core::{Engine, Output};
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

impl Tally {
    fn note(self, started: Instant, notes: &mut dyn Write) -> io::Result<()> {
        let seconds = started.elapsed().as_secs_f64();
        let Self { inputs, events, gaps, missing, lines } = self;
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
        Ok(())
    }
}

/// A core that goes by what was recorded of a rules file, or by another one.
struct Judge {
    engine: Engine,
    keeps_rules: bool,
    decided: Vec<Output>,
}

impl Judge {
    fn new<R: Read>(reader: &Reader<R>, rules: Option<Policy>) -> Self {
        let (engine, keeps_rules) = (reader.header().engine(), rules.is_some());
        let engine = if let Some(rules) = rules { engine.with_policy(rules) } else { engine };
        Self { engine, keeps_rules, decided: Vec::new() }
    }

    fn take(&mut self, input: Input) {
        if !self.keeps_rules || !matches!(input, Input::Fact(_, Fact::Policy(_))) {
            self.engine.handle(input, &mut self.decided);
        }
    }

    fn tell(&mut self, tell: &mut impl FnMut(&Finding) -> io::Result<()>) -> io::Result<u64> {
        let mut lines = 0;
        for output in self.decided.drain(..) {
            if let Output::Finding(finding) = output {
                lines += 1;
                tell(&finding)?;
            }
        }
        Ok(lines)
    }
}

/// Feeds a recording to one core or several, in one pass, as it may be a pipe. Hands on what each tells, with its number.
/// What was read before an error counts.
fn feed<R: Read, const N: usize>(
    reader: &mut Reader<R>,
    mut judges: [Judge; N],
    tally: &mut Tally,
    mut tell: impl FnMut(usize, &Finding) -> io::Result<()>,
) -> Result<(), ReplayError> {
    let mut act = |judges: &mut [Judge; N], tally: &mut Tally| -> io::Result<()> {
        for (index, judge) in judges.iter_mut().enumerate() {
            tally.lines += judge.tell(&mut |finding| tell(index, finding))?;
        }
        Ok(())
    };
    let ended = loop {
        match reader.next() {
            Ok(Some(Entry::Input(input))) => {
                tally.inputs += 1;
                tally.events += u64::from(matches!(input, Input::Event(_)));
                if let [others @ .., last] = &mut judges[..] {
                    others.iter_mut().for_each(|judge| judge.take(input.clone()));
                    last.take(input);
                }
                act(&mut judges, tally)?;
            }
            Ok(Some(Entry::Gap(missing))) => {
                tally.gaps += 1;
                tally.missing += missing;
            }
            Ok(Some(Entry::End(_)) | None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    judges.iter_mut().for_each(|judge| judge.engine.flush(&mut judge.decided));
    act(&mut judges, tally)?;
    Ok(ended?)
}

/// Replays a recording and writes what is found to `out`, and a summary to `notes`.
///
/// # Errors
///
/// [`ReplayError`]; of a recording that is cut or damaged, what came before is written all the same.
pub fn replay(arguments: &Arguments, out: &mut dyn Write, notes: &mut dyn Write) -> Result<(), ReplayError> {
    match &arguments.rules[..] {
        [old, new, ..] => compare(arguments, [old, new], out, notes),
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
    let judge = Judge::new(&reader, policy(rules, &reader)?);
    let (clock, renderer) = (reader.header().clock(), Renderer::new(reader.header().node.clone()));
    let style = live::Style { color: false, clock };
    let (started, mut tally) = (Instant::now(), Tally::default());
    let fed = feed(&mut reader, [judge], &mut tally, |_, finding| {
        let rule = rule(finding.rule);
        if arguments.json {
            out.write_all(&renderer.finding(finding, rule, clock)?)
        } else {
            out.write_all(live::format(finding, rule, &style).as_bytes())
        }
    });
    out.flush()?;
    tally.note(started, notes)?;
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

fn compare(
    arguments: &Arguments,
    [old, new]: [&PathBuf; 2],
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<(), ReplayError> {
    let mut reader = open(&arguments.recording)?;
    let judges =
        [Judge::new(&reader, policy(Some(old), &reader)?), Judge::new(&reader, policy(Some(new), &reader)?)];
    let (started, mut tally) = (Instant::now(), Tally::default());
    let (mut old, mut new) = (Findings::new(), Findings::new());
    let fed = feed(&mut reader, judges, &mut tally, |index, finding| {
        if finding.status != Status::Resolved {
            let Finding { severity, count, why, .. } = finding;
            let rule = rule(finding.rule).id;
            let said = Said { rule, severity: severity.name(), count: *count, why: why.clone() };
            let findings = if index == 0 { &mut old } else { &mut new };
            findings.insert(finding.id.to_string(), said);
        }
        Ok(())
    });
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
    out.flush()?;
    tally.note(started, notes)?;
    fed
}
