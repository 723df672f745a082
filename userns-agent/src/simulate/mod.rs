//! `userns-agent simulate`: tries, from inside a pod, what an intruder would try to reach the host, without harm, and says
//! whether the user namespace held and whether the agent saw it.
//!
//! Before anything else it finds out where it is ([`Readings`]), and refuses on the host. Each attempt is made in a process of
//! its own with a limit of time, by system calls in a form that changes nothing even where it is allowed: nothing is
//! written, what is mounted is mounted where nobody sees it, and what a call would take away or replace is named so that it
//! cannot be found.

mod call;
mod child;
mod files;
mod kernel;
mod mounts;
mod namespaces;
mod place;
mod process;
mod render;
mod technique;
#[cfg(test)]
mod tests;
mod witness;

pub use place::{Ground, Readings, Refusal, Standing};
pub use technique::{Detection, Outcome, Sign, Stopped, Technique, Verdict};
pub use witness::{Seen, Source, Witness, WitnessError};

use std::io::{self, Write};
use std::os::fd::RawFd;
use std::path::Path;
use std::time::Duration;

use crate::cli::{ExitCode, SimulateOutput};

/// How long an attempt may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Every technique, one family after the other.
pub fn techniques() -> impl Iterator<Item = &'static Technique> {
    [process::TECHNIQUES, namespaces::TECHNIQUES, mounts::TECHNIQUES, files::TECHNIQUES, kernel::TECHNIQUES]
        .into_iter()
        .flatten()
}

/// Why nothing was tried, or nothing told.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// It is not safe here.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The agent cannot be asked.
    #[error(transparent)]
    Witness(#[from] WitnessError),
    /// The answer cannot be written.
    #[error("cannot write the output: {0}")]
    Write(#[from] io::Error),
}

impl From<&SimulateError> for ExitCode {
    fn from(error: &SimulateError) -> Self {
        match error {
            SimulateError::Refused(_) => Self::NotPermitted,
            SimulateError::Witness(WitnessError::File { .. }) => Self::NoInput,
            SimulateError::Witness(WitnessError::Nobody) => Self::Usage,
            SimulateError::Witness(WitnessError::Socket(_) | WitnessError::Http { .. }) => Self::Unavailable,
            SimulateError::Write(_) => Self::Io,
        }
    }
}

/// What is to be tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Names of techniques; empty for all.
    pub names: Vec<String>,
    /// The process of the host to reach for; `None` for the first that is in sight.
    pub target: Option<i32>,
    /// A descriptor that was left open.
    pub leaked: Option<RawFd>,
    /// Whom to ask whether it was seen.
    pub source: Option<Source>,
    /// How long to wait for an answer.
    pub wait: Duration,
}

/// A technique and what became of it.
#[derive(Debug)]
struct Row {
    technique: &'static Technique,
    outcome: Outcome,
    verdict: Verdict,
    seen: Seen,
}

/// Writes the table of techniques.
///
/// # Errors
///
/// [`SimulateError::Write`]
pub fn list(output: SimulateOutput, out: &mut dyn Write) -> Result<(), SimulateError> {
    match output {
        SimulateOutput::Table => out.write_all(render::list().as_bytes())?,
        SimulateOutput::Json => writeln!(out, "{:#}", render::list_json())?,
    }
    out.flush()?;
    Ok(())
}

/// Tries what is wanted and writes what became of it. Call it while there is one thread: it forks.
///
/// # Errors
///
/// [`SimulateError`]; [`SimulateError::Refused`] on the host, before anything is done.
pub fn run(wanted: Wanted, output: SimulateOutput, out: &mut dyn Write) -> Result<ExitCode, SimulateError> {
    let proc = Path::new("/proc");
    let readings = Readings::take(proc)?;
    let standing = readings.standing()?;
    let ground = Ground { standing, foreign: place::foreign(proc, wanted.target), leaked: wanted.leaked };
    let mut witness = wanted.source.map(Witness::new).transpose()?;
    let chosen = techniques().filter(|technique| {
        wanted.names.is_empty() || wanted.names.iter().any(|name| name == technique.name)
    });
    let mut rows: Vec<_> = chosen.map(|technique| attempt(technique, &ground)).collect();
    if let Some(witness) = &mut witness {
        ask(witness, &mut rows, wanted.wait)?;
    }
    match output {
        SimulateOutput::Table => out.write_all(render::table(&rows, &readings, standing).as_bytes())?,
        SimulateOutput::Json => writeln!(out, "{:#}", render::json(&rows, &readings, standing))?,
    }
    out.flush()?;
    let broken = rows.iter().any(|row| row.verdict == Verdict::Broken);
    Ok(if broken { ExitCode::BrokenPromise } else { ExitCode::Ok })
}

fn attempt(technique: &'static Technique, ground: &Ground) -> Row {
    let outcome = if ground.standing == Standing::UserNamespace || technique.harmless {
        child::run(technique.name, LIMIT, || (technique.run)(ground))
    } else {
        Outcome::Skipped("not tried where nothing may stop it".to_owned())
    };
    let verdict = Verdict::of(&outcome, technique.stopped, ground.standing.is_promised());
    Row { technique, outcome, verdict, seen: Seen::NotAsked }
}

/// Only what was tried in a user namespace is to be seen.
fn ask(witness: &mut Witness, rows: &mut [Row], wait: Duration) -> Result<(), WitnessError> {
    let nothing = Detection::Nobody("");
    let to_see = |row: &Row| {
        let Row { technique, outcome, verdict, .. } = row;
        let tried = *verdict != Verdict::NoPromise && technique.detection.is_left_by(outcome);
        if tried { &technique.detection } else { &nothing }
    };
    let seen = witness.ask(&rows.iter().map(to_see).collect::<Vec<_>>(), wait)?;
    for (row, seen) in rows.iter_mut().zip(seen) {
        row.seen = seen;
    }
    Ok(())
}
