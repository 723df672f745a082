//! Takes inputs in order, keeps the tables, asks the rules.

mod attribution;
mod describe;
mod intrusion;
mod lifecycle;
mod policy;
mod stats;

pub use stats::Stats;
use stats::check_label;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use userns_common::kind::{Hook, lineage, origin, state};

use self::describe::{pod_ref, refs};
use super::context::{Context, Runtimes, Unobservable};
use super::finding::{CapabilityUse, ContainerRef, Finding, PodRef, Severity, Status};
use super::flight::{self, Recorder};
use super::open::{Key, OpenFindings};
use super::policy::Rulings;
use super::rules::{self, RuleId};
use super::state::{Sizes, State};
use super::view::{PodView, view};
use super::withheld::{Budgets, Withheld};
use crate::event::{
    AggregateKey, AggregateValue, Body, CgroupId, ContainerKind, Event, Fact, Input, Nanos, PodUid,
    Reference, TaskEvent, reason,
};

/// Bounds and delays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a runtime may need to enter.
    pub grace: Duration,
    /// How long a finding that is not critical may wait for the names of its pod and container; zero where no source
    /// could tell them.
    pub enrich_wait: Duration,
    /// Containers kept.
    pub containers: usize,
    /// Processes kept.
    pub processes: usize,
}

/// Findings kept open at once.
const MAX_OPEN: usize = 8192;
/// Records that wait for their container's cgroup to become known.
const MAX_PENDING: usize = 256;
/// How long they wait.
const PENDING_NS: u64 = 300_000_000;

/// What the core wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Tell.
    Finding(Box<Finding>),
    /// Tell what was withheld.
    Withheld(Box<Withheld>),
    /// A container that was seen being made is known by name now, so long after.
    Attributed(ContainerKind, Duration),
    /// This container is long gone: what the kernel counted for it can go as well, and what is remembered of it.
    Forget(CgroupId),
}

/// The engine.
#[derive(Debug)]
pub struct Engine {
    grace: Duration,
    enrich_wait: Duration,
    state: State,
    runtimes: Runtimes,
    reference: Reference,
    unobservable: Unobservable,
    withheld_unobservable: u64,
    open: OpenFindings,
    pending: VecDeque<(Nanos, Event)>,
    unattributed: u64,
    /// Checks counted for containers that are gone.
    past_checks: BTreeMap<(&'static str, bool), u64>,
    checks: BTreeMap<AggregateKey, AggregateValue>,
    budgets: Budgets,
    flight: Recorder,
    policy: Rulings,
    now: Nanos,
}

impl Engine {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            grace: limits.grace,
            enrich_wait: limits.enrich_wait,
            state: State::new(Sizes { containers: limits.containers, processes: limits.processes }),
            runtimes: Runtimes::default(),
            reference: Reference::default(),
            unobservable: Unobservable::default(),
            withheld_unobservable: 0,
            open: OpenFindings::new(MAX_OPEN),
            pending: VecDeque::new(),
            unattributed: 0,
            past_checks: BTreeMap::new(),
            checks: BTreeMap::new(),
            budgets: Budgets::default(),
            flight: Recorder::new(flight::MAX_BYTES),
            policy: Rulings::default(),
            now: Nanos(0),
        }
    }

    /// The same, where this user namespace counts as the host's.
    #[must_use]
    pub fn under(self, reference: Reference) -> Self {
        Self { reference, ..self }
    }

    /// The same, where pods of these runtime classes are not observable: names, or beginnings that end in `*`.
    #[must_use]
    pub fn without(self, classes: Vec<String>) -> Self {
        Self { unobservable: Unobservable::new(classes), ..self }
    }

    /// The time of the latest input.
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// Takes one input and appends what follows from it to `out`.
    pub fn handle(&mut self, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Event(event) => {
                self.now = self.now.max(event.time);
                self.event(event, out);
            }
            Input::Fact(time, fact) => {
                self.now = self.now.max(time);
                self.fact(fact, out);
            }
            Input::Tick(time) => {
                self.now = self.now.max(time);
                self.tick(out);
            }
        }
    }

    /// What is known of each pod, with what is open about it.
    #[must_use]
    pub fn pods(&self) -> Vec<PodView> {
        let mut findings: BTreeMap<PodUid, Vec<Finding>> = BTreeMap::new();
        for (finding, container) in self.open.all() {
            let pod = container.and_then(|id| self.state.container(id)?.pod.clone());
            if let Some(uid) = pod {
                let mut finding = finding.clone();
                self.describe(&mut finding, container);
                findings.entry(uid).or_default().push(finding);
            }
        }
        view(self.state.pods(), findings, pod_ref)
    }

    fn event(&mut self, event: Event, out: &mut Vec<Output>) {
        let Some(task) = event.body.task() else {
            self.happened(event, out);
            return;
        };
        let container = CgroupId(task.task.lineage.container);
        // credentials that left are told at once, whatever else is known
        let left = event.reasons & (reason::LEFT_USERNS | reason::ACTS_OUTSIDE) != 0;
        let waits = !left && self.state.container(container).is_none();
        if !waits {
            self.happened(event, out);
            return;
        }
        if self.pending.len() >= MAX_PENDING
            && let Some((_, oldest)) = self.pending.pop_front()
        {
            self.unattributed += 1;
            self.happened(oldest, out);
        }
        self.pending.push_back((self.now, event));
    }

    fn happened(&mut self, event: Event, out: &mut Vec<Output>) {
        self.flight.saw(&event);
        let Event { time, hook, reasons, body } = event;
        match body {
            Body::CgroupMkdir(cgroup) => {
                if self.state.saw_cgroup(&cgroup, time) {
                    self.was_made(cgroup.id, time);
                    self.container_known(cgroup.id, out);
                }
            }
            Body::CgroupRmdir(cgroup) => self.state.removed_cgroup(cgroup.id, time),
            Body::Exit { process, container } => self.state.exited(process, container, time),
            Body::Left { process, container } => self.state.settled(container, process),
            Body::Entry(task) => {
                let reasons =
                    if self.found_runtime(&task) { reasons & !reason::HOST_WORKLOAD } else { reasons };
                self.task(*task, time, hook.name(), reasons, out);
            }
            Body::Exec(task)
            | Body::Inside(task)
            | Body::Suspect(task)
            | Body::Capability(task)
            | Body::NamespaceCall(task) => self.task(*task, time, hook.name(), reasons, out),
        }
    }

    fn task(
        &mut self,
        mut event: TaskEvent,
        time: Nanos,
        hook: &'static str,
        reasons: u32,
        out: &mut Vec<Output>,
    ) {
        self.state.complete(&mut event);
        if hook == Hook::Exec.name() && !event.args.is_empty() {
            self.state.executed(&event);
        }
        let container = CgroupId(event.task.lineage.container);
        let intruded = self.intrusion(&event, time, hook, reasons);
        let changed = self.learn(&event, time, hook, reasons);
        let observed = rules::Observed { event: &event, time, hook, reasons };
        for rule in RuleId::ALL {
            let context = self.context(Some(container));
            let found = rules::on_task(*rule, &observed, &context);
            self.tell(*rule, found, Some(container), out);
        }
        for concerned in [changed.then_some(container), intruded].into_iter().flatten() {
            self.judge(concerned, out);
        }
    }

    /// Whether a task that was found in a container, rather than seen to enter, may be a runtime that has a mount
    /// namespace of its own and is on its way in.
    fn found_runtime(&self, event: &TaskEvent) -> bool {
        event.task.lineage.origin == origin::ADOPTED && self.runtimes.possible(event)
    }

    /// Whether a container is known to run in the host's user namespace, as nobody says that it should not: a namespace
    /// that its programs make is theirs, and not the pod's.
    fn has_host_users(&self, id: CgroupId) -> bool {
        let context = self.context(Some(id));
        context.container.is_some_and(|container| container.host_workload.is_some()) && !context.promised()
    }

    /// Keeps what an event says of its container; true if a rule about containers could judge it differently now.
    fn learn(&mut self, event: &TaskEvent, time: Nanos, hook: &'static str, reasons: u32) -> bool {
        let task = &event.task;
        let id = CgroupId(task.lineage.container);
        if task.lineage.origin == origin::FOREIGN {
            return false;
        }
        let workload = task.lineage.flags & lineage::WORKLOAD != 0;
        let entering = task.lineage.state == state::ENTERING
            && (!workload || hook != Hook::Exec.name() && self.found_runtime(event));
        if entering {
            self.state.entering(event, time, reasons & reason::PAST_GRACE != 0);
        } else {
            self.state.settled(id, task.process);
        }
        let anothers = task.pod_userns.and_then(|ns| self.state.owner_of(ns.inum, id)).is_some();
        let mut changed = entering;
        let inside = task.lineage.state == state::INSIDE && workload && reasons & reason::LEFT_USERNS == 0;
        // the map is written once, before the first program runs
        let userns = task.pod_userns.filter(|ns| inside && ns.uid_map.nr_extents != 0 && !anothers);
        let userns = userns.filter(|_| !self.has_host_users(id));
        changed |= userns.is_some_and(|ns| self.state.has_userns(id, ns));
        let Some(container) = self.state.container_mut(id) else { return false };
        if userns.is_some() {
            container.first_workload.get_or_insert_with(|| Box::new(event.clone()));
        }
        if reasons & reason::HOST_WORKLOAD != 0 && container.host_workload.is_none() {
            container.host_workload = Some((time, Box::new(event.clone())));
            changed = true;
        }
        let monitor = self.runtimes.is_monitor(event);
        if reasons & reason::HOST_CAPABILITY != 0 && task.lineage.state == state::ENTERING && !monitor {
            let call = event.call.as_ref();
            if let Some(capability) = call.and_then(|call| call.capability) {
                let syscall = call.and_then(|call| call.syscall);
                let new = CapabilityUse { capability, granted: true, count: 0, syscall };
                container.host_capabilities.entry(capability).or_insert(new).count += 1;
                container.host_capability_user.get_or_insert_with(|| (time, Box::new(event.clone())));
                changed = true;
            }
        }
        changed
    }

    fn fact(&mut self, fact: Fact, out: &mut Vec<Output>) {
        match fact {
            Fact::CgroupSeen(cgroup) => {
                if self.state.saw_cgroup(&cgroup, self.now) {
                    self.container_known(cgroup.id, out);
                }
            }
            Fact::CgroupWalkDone { started } => {
                self.state.walked(started);
                let gone = self.open.earlier.walked(started, |id| self.state.container(id).is_some());
                out.extend(gone.into_iter().map(Output::Forget));
            }
            Fact::KubeletRecord { uid, record } => {
                let concerned = self.state.recorded(&uid, record, self.now);
                self.known_better(&concerned, out);
            }
            Fact::Pods(source, specs) => {
                let concerned = self.state.listed(source, specs, self.now);
                self.known_better(&concerned, out);
            }
            Fact::Pod(source, spec) => {
                let concerned = self.state.described(source, *spec);
                self.known_better(&concerned, out);
            }
            Fact::PodGone(source, uid) => self.state.undescribed(source, &uid, self.now),
            Fact::Sandboxes(sandboxes) => {
                let concerned = self.state.sandboxes(sandboxes, self.now);
                self.known_better(&concerned, out);
            }
            Fact::Sandbox(sandbox) => {
                let concerned = self.state.sandbox(*sandbox);
                self.known_better(&concerned, out);
            }
            Fact::SandboxGone(id) => self.state.sandbox_gone(&id, self.now),
            Fact::RuntimeImages(images) => self.runtimes.set(&images),
            Fact::MonitorImages(images) => self.runtimes.set_monitors(&images),
            Fact::Aggregates(rows) => self.aggregates(rows, out),
            Fact::Budgets(rows) => {
                for (container, mut withheld) in self.budgets.take(&rows, self.now) {
                    (withheld.container, withheld.pod) = refs(&self.context(Some(container)));
                    out.push(Output::Withheld(Box::new(withheld)));
                }
            }
            Fact::Told(told) => self.open.earlier.remember(told, self.now),
            Fact::Policy(policy) => self.follow(*policy, out),
        }
    }

    /// Something about these containers' pods has become known: tells findings that lacked it again, and judges anew.
    fn known_better(&mut self, containers: &[CgroupId], out: &mut Vec<Output>) {
        for container in containers {
            self.reconsider(self.open.about(*container), out);
            for key in self.open.incomplete(*container) {
                let Some(mut finding) = self.described(&key) else { continue };
                match self.open.missing(&key) {
                    Some(missing) if finding.unknown.len() < missing => finding.status = Status::Amended,
                    None if !self.may_wait(&finding) => {}
                    _ => continue,
                }
                self.say(&key, finding, out);
            }
            self.attribute(*container, out);
            self.judge(*container, out);
        }
    }

    /// A container has become known: judges what waited for it.
    fn container_known(&mut self, id: CgroupId, out: &mut Vec<Output>) {
        let waiting = std::mem::take(&mut self.pending);
        for (since, event) in waiting {
            let concerned = event.body.task().is_some_and(|task| task.task.lineage.container == id.0);
            if concerned {
                self.happened(event, out);
            } else {
                self.pending.push_back((since, event));
            }
        }
        self.attribute(id, out);
        self.judge(id, out);
    }

    /// Asks the rules about a container as it is known now.
    fn judge(&mut self, id: CgroupId, out: &mut Vec<Output>) {
        if self.state.container(id).is_none() {
            return;
        }
        for rule in RuleId::ALL {
            let context = self.context(Some(id));
            let found = rules::on_container(*rule, &context);
            self.tell(*rule, found, Some(id), out);
        }
    }

    fn aggregates(&mut self, rows: Vec<(AggregateKey, AggregateValue)>, out: &mut Vec<Output>) {
        let rows: BTreeMap<_, _> = rows.into_iter().collect();
        for (key, value) in &self.checks {
            if !rows.contains_key(key) {
                *self.past_checks.entry(check_label(key)).or_default() += value.count;
            }
        }
        let grown: Vec<_> = rows.iter().filter(|(key, value)| self.checks.get(key) != Some(value)).collect();
        for (key, value) in grown {
            let container = CgroupId(key.container);
            for rule in RuleId::ALL {
                let context = self.context(Some(container));
                let found = rules::on_aggregate(*rule, key, value, &context);
                // counts only add to what a record has opened: a row alone names no credentials
                for detection in found {
                    self.add(*rule, detection, out);
                }
            }
        }
        self.checks = rows;
    }

    fn tick(&mut self, out: &mut Vec<Output>) {
        while let Some((since, _)) = self.pending.front()
            && self.now.0.saturating_sub(since.0) > PENDING_NS
        {
            if let Some((_, event)) = self.pending.pop_front() {
                self.unattributed += 1;
                self.happened(event, out);
            }
        }
        let waiting: Vec<CgroupId> = self
            .state
            .containers()
            .filter(|container| !container.entering.is_empty())
            .map(|container| container.cgroup)
            .collect();
        for container in waiting {
            self.judge(container, out);
        }
        if self.policy.has_expired(self.now) {
            self.reconsider(self.open.keys(), out);
        }
        self.release(Some(self.now), out);
        for key in self.open.due(self.now) {
            self.prove(&key, self.now);
            out.extend(self.described(&key).map(|finding| Output::Finding(Box::new(finding))));
        }
        self.lifecycle(out);
        let dead = self.state.tick(self.now);
        self.forget_steps(&dead);
        self.open.forget(&dead);
        dead.iter().for_each(|container| self.budgets.forget(*container));
        out.extend(dead.into_iter().map(Output::Forget));
    }

    fn context(&self, container: Option<CgroupId>) -> Context<'_> {
        let container = container.and_then(|id| self.state.container(id));
        let pod = container
            .and_then(|container| container.pod.as_ref())
            .and_then(|uid| self.state.pod(uid).map(|pod| (uid, pod)));
        Context {
            now: self.now,
            grace: self.grace,
            reference: &self.reference,
            unobservable: &self.unobservable,
            container,
            pod,
            runtimes: &self.runtimes,
            state: &self.state,
        }
    }

    fn tell(
        &mut self,
        rule: RuleId,
        found: Vec<super::open::Detection>,
        container: Option<CgroupId>,
        out: &mut Vec<Output>,
    ) {
        // what proves tampering with the kernel is told of any pod
        if rule != RuleId::I1 && !found.is_empty() && self.context(container).is_unobservable() {
            self.withheld_unobservable += found.len() as u64;
            return;
        }
        for detection in found {
            if let Some(key) = self.admit(rule, detection, container) {
                self.announce(&key, out);
            }
        }
    }

    /// Tells a finding now, or keeps it back until more is known.
    fn announce(&mut self, key: &Key, out: &mut Vec<Output>) {
        self.prove(key, self.now);
        let Some(finding) = self.described(key) else { return };
        let until = Nanos(self.now.0.saturating_add(nanos(self.enrich_wait)));
        if !(self.may_wait(&finding) && self.open.hold(key, until)) {
            self.say(key, finding, out);
        }
    }

    /// Tells findings that were kept back, now that it is this late, or all of them.
    fn release(&mut self, now: Option<Nanos>, out: &mut Vec<Output>) {
        for key in self.open.overdue(now) {
            if self.rule_out(&key) {
                continue;
            }
            if let Some(finding) = self.described(&key) {
                self.say(&key, finding, out);
            }
        }
    }

    fn say(&mut self, key: &Key, finding: Finding, out: &mut Vec<Output>) {
        self.open.telling(key, finding.unknown.len(), self.now);
        out.push(Output::Finding(Box::new(finding)));
    }

    /// Whether a finding may wait for the names of its pod and container, or for what an exception asks for.
    fn may_wait(&self, finding: &Finding) -> bool {
        let nameless = |pod: &PodRef| pod.name.is_none();
        let unnamed = |container: &ContainerRef| container.kind.is_none() && !container.id.is_empty();
        finding.severity < Severity::Critical
            && !self.enrich_wait.is_zero()
            && (finding.pod.as_ref().is_some_and(nameless)
                || finding.container.as_ref().is_some_and(unnamed)
                || self.is_undecided(finding))
    }

    /// Tells what is kept back, because the agent stops.
    pub fn flush(&mut self, out: &mut Vec<Output>) {
        self.release(None, out);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
