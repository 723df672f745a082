//! `userns-agent ps` and `inspect`: what holds for the pods of this node, by a look at the node and by what the running
//! agent knows; without an agent, by the look alone.

mod inspect;
pub mod known;
mod observe;
mod render;
#[cfg(test)]
mod tests;
mod verdict;

pub use inspect::{InspectError, inspect};
pub use observe::ObserveError;
pub use verdict::{Judgement, Look, Namespace, Pod, Recorded, Sample, Verdict, judge};

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use self::known::AskError;
use self::observe::{Container, Node, Told, declared, observe};
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
    /// The agent cannot be asked.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The answer cannot be written.
    #[error("cannot write the output: {0}")]
    Write(#[from] io::Error),
}

impl From<&PsError> for ExitCode {
    fn from(error: &PsError) -> Self {
        match error {
            PsError::Observe(ObserveError::Cgroups(_)) | PsError::Ask(_) => Self::Unavailable,
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
    container: Container,
    judgement: Judgement,
}

/// A pod with its containers and what holds for all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PodRow {
    pod: Pod,
    rows: Vec<Row>,
    judgement: Judgement,
    host: u32,
}

/// What is asked besides the node: the pods file, and the agent unless `alone`.
fn told(config: &Config, alone: bool, notes: &mut Vec<String>) -> Result<Told, PsError> {
    let mut told = Told { specs: declared(config)?, ..Told::default() };
    let Some(socket) = config.socket.as_deref().filter(|_| !alone) else { return Ok(told) };
    match known::ask(socket) {
        Ok(known) => {
            told.known = known.into_iter().filter_map(|pod| Some((PodUid::parse(&pod.uid)?, pod))).collect();
        }
        Err(error @ AskError::NoAgent { .. }) => {
            notes.push(format!("{error}; this is a look at the node without one"));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(told)
}

/// Looks at the node and writes the answer to `out`; `alone`: without asking the agent.
///
/// # Errors
///
/// [`PsError`]
pub fn run(config: &Config, output: PsOutput, alone: bool, out: &mut dyn Write) -> Result<Outcome, PsError> {
    let mut notes = Vec::new();
    let told = told(config, alone, &mut notes)?;
    let mut node = observe(config, &told)?;
    if judged(&node).iter().any(|row| row.judgement.verdict.is_broken()) {
        std::thread::sleep(SECOND_LOOK);
        node = observe(config, &told)?;
    }
    let pods = judged(&node);
    match output {
        PsOutput::Table => out.write_all(render::table(&pods, false).as_bytes())?,
        PsOutput::Wide => out.write_all(render::table(&pods, true).as_bytes())?,
        PsOutput::Json => writeln!(out, "{:#}", render::json(&pods))?,
    }
    out.flush()?;
    notes.append(&mut node.notes);
    let broken = pods.iter().any(|row| row.judgement.verdict.is_broken());
    let code = if broken { ExitCode::BrokenPromise } else { ExitCode::Ok };
    Ok(Outcome { code, notes })
}

/// Judges every container against its pod and the other pods, and each pod by the worst of its containers.
fn judged(node: &Node) -> Vec<PodRow> {
    let namespaces = own_namespaces(node);
    let mut pods: BTreeMap<&PodUid, Vec<Row>> = BTreeMap::new();
    for container in &node.containers {
        let Some(pod) = node.pods.get(&container.pod) else { continue };
        let others = namespaces.iter().filter(|(uid, _)| **uid != &pod.uid);
        let others: Vec<_> = others.filter_map(|(uid, own)| Some((node.pods.get(*uid)?, *own))).collect();
        let judgement = judge(pod, &container.look, node.host, &node.unobservable, &others);
        pods.entry(&pod.uid).or_default().push(Row { container: container.clone(), judgement });
    }
    let row = |(uid, rows): (&PodUid, Vec<Row>)| {
        let pod = node.pods.get(uid)?.clone();
        let escaped = pod.escape().map(|finding| Judgement {
            verdict: Verdict::Escaped,
            reason: format!("{} ({}): {}", finding.rule, finding.name, finding.why),
        });
        // the first of the worst
        let worst = rows.iter().rev().map(|row| &row.judgement).max_by_key(|judgement| judgement.verdict);
        let judgement = escaped.or_else(|| worst.cloned())?;
        Some(PodRow { pod, rows, judgement, host: node.host })
    };
    let mut pods: Vec<PodRow> = pods.into_iter().filter_map(row).collect();
    pods.sort_by(|a, b| (a.pod.name(), &a.pod.uid).cmp(&(b.pod.name(), &b.pod.uid)));
    pods
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

impl PodRow {
    /// The process that stands for the pod: that of its first container that has one.
    fn sample(&self) -> Option<&Sample> {
        self.rows.iter().find_map(|row| match &row.container.look {
            Look::Process(sample) => Some(sample),
            Look::Empty | Look::Unreadable { .. } => None,
        })
    }

    fn processes(&self) -> usize {
        self.rows.iter().map(|row| row.container.processes).sum()
    }

    /// Containers; a pod's cgroup without any is none.
    fn containers(&self) -> usize {
        self.rows.iter().filter(|row| row.container.id.is_some()).count()
    }

    /// User namespaces that its processes made.
    fn nested(&self) -> usize {
        let nested = self.rows.iter().map(|row| match &row.container.look {
            Look::Process(sample) => sample.nested,
            Look::Empty | Look::Unreadable { .. } => 0,
        });
        nested.sum()
    }
}
