//! What led to a finding, what became of it, and what to do about it.

use serde::Serialize;

use super::process::{Id, process_id};
use crate::core::finding::{Finding, Resolved};
use crate::core::flight::{Deed, Ids, Step};
use crate::core::rules::Rule;
use crate::sink::report::WallClock;
use crate::sink::respond;

#[derive(Serialize)]
pub(super) struct StepLine<'a> {
    time: String,
    last_seen: String,
    count: u64,
    hook: &'static str,
    kind: &'static str,
    what: String,
    executable: Option<&'a str>,
    args: Vec<&'a str>,
    process: Doer<'a>,
}

#[derive(Serialize)]
struct Doer<'a> {
    id: String,
    pid: u32,
    pid_in_container: Option<u32>,
    comm: &'a str,
    ids: IdViews,
    user_namespace: Option<u32>,
}

#[derive(Serialize)]
struct IdViews {
    uid: Id,
    gid: Id,
    euid: Id,
    egid: Id,
}

impl From<Ids> for IdViews {
    fn from(ids: Ids) -> Self {
        let id = |(host, container)| Id { host, container };
        Self { uid: id(ids.uid), gid: id(ids.gid), euid: id(ids.euid), egid: id(ids.egid) }
    }
}

impl<'a> StepLine<'a> {
    pub(super) fn new(step: &'a Step, clock: WallClock) -> Self {
        let (kind, executable, args) = match &step.deed {
            Deed::Entered { .. } => ("entered", None, &[][..]),
            Deed::Executed { path, args, .. } => ("executed", Some(path.as_str()), &args[..]),
            Deed::Inside => ("inside", None, &[][..]),
            Deed::Asked(_) => ("asked", None, &[][..]),
            Deed::Contradicted { .. } => ("contradicted", None, &[][..]),
        };
        Self {
            time: clock.rfc3339(step.time),
            last_seen: clock.rfc3339(step.last),
            count: step.count,
            hook: step.hook,
            kind,
            what: step.sentence(),
            executable,
            args: args.iter().map(|arg| arg.as_str()).collect(),
            process: Doer {
                id: process_id(step.process),
                pid: step.process.pid,
                pid_in_container: step.ns_pid,
                comm: step.comm.as_str(),
                ids: step.ids.into(),
                user_namespace: (step.userns != 0).then_some(step.userns),
            },
        }
    }
}

/// How a finding ended.
#[derive(Serialize)]
pub(super) struct End {
    at: String,
    because: &'static str,
    open_seconds: u64,
}

impl End {
    pub(super) fn new(finding: &Finding, clock: WallClock) -> Option<Self> {
        let Resolved { at, because } = finding.resolved?;
        Some(Self { at: clock.rfc3339(at), because, open_seconds: at.since(finding.first).as_secs() })
    }
}

#[derive(Serialize)]
pub(super) struct Response {
    summary: &'static str,
    steps: Vec<Action>,
}

#[derive(Serialize)]
struct Action {
    what: String,
    command: Option<String>,
}

impl Response {
    pub(super) fn new(finding: &Finding, rule: &Rule, node: &str) -> Self {
        let steps = respond::actions(finding, node).into_iter();
        let steps = steps.map(|respond::Action { what, command }| Action { what, command }).collect();
        Self { summary: rule.respond, steps }
    }
}
