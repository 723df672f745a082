//! `userns-agent ps`: a look at the node without an agent.

mod observe;
mod render;
#[cfg(test)]
mod tests;
mod verdict;

pub use observe::ObserveError;
pub use verdict::{Judgement, Look, Namespace, Pod, Recorded, Sample, Verdict, judge};

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use self::observe::{Container, Node, declared, observe};
use crate::cli::{ExitCode, PsOutput};
use crate::config::Config;
use crate::event::PodUid;

/// Time after which a broken promise is looked at again: a container that is just being made has, for some
/// milliseconds, no process but its runtime's.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PsError {
    /// The node cannot be looked at.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// The answer cannot be written.
    #[error("cannot write the output: {0}")]
    Write(#[from] io::Error),
}

impl From<&PsError> for ExitCode {
    fn from(error: &PsError) -> Self {
        match error {
            PsError::Observe(ObserveError::Cgroups(_)) => Self::Unavailable,
            PsError::Observe(ObserveError::Pods(_)) => Self::NoInput,
            PsError::Observe(ObserveError::Host(_)) => Self::NotPermitted,
            PsError::Write(_) => Self::Io,
        }
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// [`ExitCode::Ok`], or [`ExitCode::BrokenPromise`].
    pub code: ExitCode,
    /// What a reader should know about what was not seen; for standard error.
    pub notes: Vec<String>,
}

/// A container with its judgement.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    pod: Pod,
    container: Container,
    judgement: Judgement,
    pod_verdict: Verdict,
    host: u32,
}

/// Looks at the node and writes the answer to `out`.
///
/// # Errors
///
/// [`PsError`]
pub fn run(config: &Config, output: PsOutput, out: &mut dyn Write) -> Result<Outcome, PsError> {
    let specs = declared(config)?;
    let mut node = observe(config, &specs)?;
    if judged(&node).iter().any(|row| row.judgement.verdict.is_broken()) {
        std::thread::sleep(SECOND_LOOK);
        node = observe(config, &specs)?;
    }
    let rows = judged(&node);
    match output {
        PsOutput::Table => out.write_all(render::table(&rows).as_bytes())?,
        PsOutput::Json => writeln!(out, "{:#}", render::json(&rows))?,
    }
    out.flush()?;
    let broken = rows.iter().any(|row| row.judgement.verdict.is_broken());
    let code = if broken { ExitCode::BrokenPromise } else { ExitCode::Ok };
    Ok(Outcome { code, notes: node.notes })
}

/// Judges every container against its pod and the other pods.
fn judged(node: &Node) -> Vec<Row> {
    let namespaces = own_namespaces(node);
    let rows = node.containers.iter().filter_map(|container| {
        let pod = node.pods.get(&container.pod)?;
        let others = namespaces.iter().filter(|(uid, _)| **uid != &pod.uid);
        let others: Vec<_> = others.filter_map(|(uid, own)| Some((node.pods.get(*uid)?, *own))).collect();
        let judgement = judge(pod, &container.look, node.host, &others);
        let pod_verdict = judgement.verdict;
        Some(Row { pod: pod.clone(), container: container.clone(), judgement, pod_verdict, host: node.host })
    });
    let mut rows: Vec<_> = rows.collect();
    let mut worst: BTreeMap<PodUid, Verdict> = BTreeMap::new();
    for row in &rows {
        let verdict = worst.entry(row.pod.uid.clone()).or_insert(row.judgement.verdict);
        *verdict = (*verdict).max(row.judgement.verdict);
    }
    for row in &mut rows {
        row.pod_verdict = worst.get(&row.pod.uid).copied().unwrap_or(row.pod_verdict);
    }
    rows
}

/// The widest user namespace of each pod that has one of its own.
fn own_namespaces(node: &Node) -> BTreeMap<&PodUid, &Namespace> {
    let mut widest: BTreeMap<&PodUid, &Namespace> = BTreeMap::new();
    for container in &node.containers {
        let Look::Process(sample) = &container.look else { continue };
        if sample.userns.inum != node.host {
            let known = widest.entry(&container.pod).or_insert(&sample.userns);
            if known.width() < sample.userns.width() {
                *known = &sample.userns;
            }
        }
    }
    widest
}
