//! What is measured in a guest whose clock counts instructions: each operation, with and without the agent.

use std::{fmt, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    bpftrace::{self, Bpftrace},
    empty::Mechanism,
    node::Node,
    operation::Operation,
    worker::Worker,
};
use crate::{
    lab::{Capabilities, ContainerSpec, Pod, PodSpec},
    process,
};

/// Begins each line for the host.
pub(super) const PREFIX: &str = "bench: ";
/// Each operation is measured so often.
const ROUNDS: u32 = 2;
/// Repetitions that are not measured: the first of a kind may be told.
const WARM_UP: u32 = 50;
/// Names of the files beside this program.
pub(super) const AGENT: &str = "userns-agent";
pub(super) const OBJECT: &str = "empty.o";
pub(super) const PROGRAM: &str = "bench";
const VM: &str = "/vm";
const WORK: &str = "/var/lib/bench";
/// The agent's choice of a mechanism for capability checks, and where it tells which it uses.
const CHOICE: &str = "--probe-mechanism";
const PROBE: &str = "userns_probe_state{hook=\"cap_capable\"";

/// What is attached to the kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Setup {
    /// Nothing.
    Alone,
    /// A program that does nothing, by the mechanism of this name.
    Empty(String),
    /// A script for bpftrace that prints both namespaces.
    Bpftrace,
    /// The agent; its capability checks by the mechanism of this name.
    Agent(String),
}

/// Where the operation happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Place {
    /// Root of the host, in no pod.
    Host,
    /// A container with a user namespace.
    Pod,
    /// A privileged container without one.
    HostUsersPod,
}

impl Operation {
    /// What is measured in a place. A privileged pod is there for the checks that it is granted over the host.
    const fn of(place: Place) -> &'static [Self] {
        match place {
            Place::Host => &[Self::OwnCheck, Self::Getppid, Self::Open, Self::Mmap, Self::Exec],
            Place::Pod => &Self::ALL,
            Place::HostUsersPod => &[Self::OwnCheck],
        }
    }

    /// Capability checks. Only in a pod with a user namespace are there two kinds.
    const fn checks_of(place: Place) -> &'static [Self] {
        match place {
            Place::Host | Place::HostUsersPod => &[Self::OwnCheck],
            Place::Pod => &[Self::OwnCheck, Self::HostCheck],
        }
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alone => f.write_str("no program"),
            Self::Empty(mechanism) => write!(f, "empty, {mechanism}"),
            Self::Bpftrace => f.write_str("bpftrace script, fentry"),
            Self::Agent(mechanism) => write!(f, "agent, {mechanism}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "outside of pods",
            Self::Pod => "pod",
            Self::HostUsersPod => "privileged pod, host's user namespace",
        })
    }
}

/// One measurement, on its way to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sample {
    pub(super) setup: Setup,
    pub(super) place: Place,
    pub(super) operation: Operation,
    pub(super) count: u32,
    pub(super) nanoseconds: u64,
}

/// A line for the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// Measured.
    Sample(Sample),
    /// Why a set-up could not be measured.
    Missing(String),
}

/// Measures every set-up there is in this guest, and says so on standard output.
///
/// # Errors
///
/// When containers or the agent do not work here.
pub(super) fn measure() -> Result<()> {
    let vm = Path::new(VM);
    let work = Path::new(WORK);
    let node = Node::new(&work.join("lab"), work, &vm.join(AGENT), &vm.join(PROGRAM))?;
    let mut workers = Workers::start(&node)?;
    workers.all(&Setup::Alone)?;
    for mechanism in Mechanism::ALL {
        match mechanism.attach(&vm.join(OBJECT)) {
            Ok(_attached) => workers.checks(&Setup::Empty(mechanism.name().to_owned()))?,
            Err(error) => tell(&missing(&format!("empty {}", mechanism.name()), &error))?,
        }
    }
    if let Some(missing) = workers.with_bpftrace(work)? {
        tell(&missing)?;
    }
    let used = with_agent(&node, None, |setup| workers.all(setup))?;
    let help = process::stdout(Command::new(&node.agent).args(["run", "--help"]))?;
    if !help.contains(CHOICE) {
        return tell(&Message::Missing(format!("agent, other than {used}: it has no {CHOICE}")));
    }
    for mechanism in Mechanism::ALL.map(Mechanism::name).into_iter().filter(|name| *name != used) {
        let measured = with_agent(&node, Some(mechanism), |setup| workers.checks(setup));
        if let Err(error) = measured {
            tell(&missing(&format!("agent {mechanism}"), &error))?;
        }
    }
    Ok(())
}

/// Starts the agent, measures, and returns the name of the mechanism that it used. Without the one that is wanted,
/// nothing is measured.
fn with_agent(
    node: &Node,
    wanted: Option<&str>,
    measure: impl FnOnce(&Setup) -> Result<()>,
) -> Result<String> {
    let choice: Vec<&str> = wanted.into_iter().flat_map(|mechanism| [CHOICE, mechanism]).collect();
    let agent = node.agent(&choice)?;
    let metrics = agent.http_get("/metrics")?.body;
    let used = mechanism(&metrics).context("the agent has no program at capability checks")?;
    ensure!(wanted.is_none_or(|wanted| wanted == used), "the agent uses {used} instead");
    measure(&Setup::Agent(used.clone()))?;
    agent.stop()?;
    Ok(used)
}

/// The mechanism that the agent's metrics tell for capability checks, if it is active.
fn mechanism(metrics: &str) -> Option<String> {
    let is_it = |line: &&str| line.starts_with(PROBE) && line.ends_with("state=\"active\"} 1");
    let line = metrics.lines().find(is_it)?;
    Some(line.split_once("mechanism=\"")?.1.split('"').next()?.to_owned())
}

fn missing(what: &str, error: &anyhow::Error) -> Message {
    let why = format!("{error:#}");
    // of an agent that does not start, what it said last
    Message::Missing(format!("{what}: {}", why.lines().last().unwrap_or_default()))
}

#[expect(clippy::print_stdout, reason = "the host reads it")]
fn tell(message: &Message) -> Result<()> {
    println!("{PREFIX}{}", serde_json::to_string(message)?);
    Ok(())
}

/// A worker in each place, the same for all set-ups. In the order in which they go away: pods last.
struct Workers {
    workers: Vec<(Place, Worker)>,
    _pods: Vec<Pod>,
}

impl Workers {
    fn start(node: &Node) -> Result<Self> {
        let (watched, range) = node.watched_pod()?;
        let host_users = node.lab.pod(PodSpec { name: "host-users".into(), ..PodSpec::default() })?;
        let privileged = ContainerSpec { capabilities: Capabilities::All, ..Node::container() };
        let workers = vec![
            (Place::Host, node.host_worker()?),
            (Place::Pod, node.pod_worker(&watched, range)?),
            (Place::HostUsersPod, node.worker_like(&host_users, privileged)?),
        ];
        Ok(Self { workers, _pods: vec![watched, host_users] })
    }

    /// Every operation.
    fn all(&mut self, setup: &Setup) -> Result<()> {
        self.measure(setup, Operation::of)
    }

    /// Those that are capability checks.
    fn checks(&mut self, setup: &Setup) -> Result<()> {
        self.measure(setup, Operation::checks_of)
    }

    /// The checks while bpftrace prints each; what is missing if it cannot.
    fn with_bpftrace(&mut self, work: &Path) -> Result<Option<Message>> {
        if !Path::new("/usr/bin").join(bpftrace::PROGRAM).exists() {
            return Ok(None);
        }
        let Some((_, worker)) = self.workers.first_mut() else { return Ok(None) };
        let provoke = || worker.repeat(Operation::OwnCheck, 1).map(drop);
        match Bpftrace::start(&work.join("bpftrace"), provoke) {
            Ok(_running) => self.checks(&Setup::Bpftrace).map(|()| None),
            Err(error) => Ok(Some(missing(bpftrace::PROGRAM, &error))),
        }
    }

    fn measure(&mut self, setup: &Setup, operations: fn(Place) -> &'static [Operation]) -> Result<()> {
        for (place, worker) in &mut self.workers {
            for operation in operations(*place) {
                let count = operation.count();
                worker.repeat(*operation, WARM_UP.min(count))?;
                for _ in 0..ROUNDS {
                    let spent = worker.repeat(*operation, count)?;
                    let nanoseconds = u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
                    let (setup, place, operation) = (setup.clone(), *place, *operation);
                    tell(&Message::Sample(Sample { setup, place, operation, count, nanoseconds }))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mechanism_in_use_is_the_active_one() {
        let of = |state: &str| {
            format!(
                "userns_probe_state{{hook=\"exec\",mechanism=\"tp_btf\",state=\"active\"}} 1\n\
                 userns_probe_state{{hook=\"cap_capable\",mechanism=\"fexit\",state=\"active\"}} {state}\n"
            )
        };
        assert_eq!(mechanism(&of("1")).as_deref(), Some("fexit"));
        assert_eq!(mechanism(&of("0")), None);
    }
}
