//! What is known of pods, containers and processes. Bounded tables; what falls out is counted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use super::finding::CapabilityUse;
use super::pods::Pod;
use super::spans::Spans;
use super::windows::{KEEP_NS, RESOLVE_NS};
use crate::cgroup;
use crate::event::{
    Cgroup, CgroupId, IdMap, KubeletRecord, Nanos, PodSource, PodSpec, PodUid, ProcessId, Sandbox, TaskEvent,
    Text, UserNs, role,
};

/// A container: one cgroup directly below a pod's.
#[derive(Clone, Debug, Default)]
pub struct Container {
    /// Its cgroup.
    pub cgroup: CgroupId,
    /// The cgroup's path.
    pub path: Text,
    /// The pod its path names.
    pub pod: Option<PodUid>,
    /// Id, from the path.
    pub id: String,
    /// Runtime, as far as the path shows.
    pub runtime: Option<&'static str>,
    /// The pod's user namespace, once a program ran in it.
    pub userns: Option<UserNs>,
    /// The first program that ran in the pod's user namespace.
    pub first_workload: Option<Box<TaskEvent>>,
    /// The first program that ran in the container with the host's user namespace, and when.
    pub host_workload: Option<(Nanos, Box<TaskEvent>)>,
    /// Processes on their way in.
    pub entering: BTreeMap<ProcessId, Entering>,
    /// Processes that came into its namespaces from outside of the pod, by the first of each family.
    pub intruders: BTreeMap<ProcessId, Intruder>,
    /// Capabilities used over the host, by number, with the first user.
    pub host_capabilities: BTreeMap<u32, CapabilityUse>,
    /// The first process that used one.
    pub host_capability_user: Option<(Nanos, Box<TaskEvent>)>,
    /// When it was made, as the kernel told, until names are known.
    pub(super) unnamed_since: Option<Nanos>,
    /// When it was last seen by a walk or hook.
    seen: Nanos,
    /// When its cgroup was removed.
    gone: Option<Nanos>,
    /// That it is gone has been told.
    closed: bool,
}

impl Container {
    fn leave(&mut self, now: Nanos, spans: &mut Spans) {
        self.gone = Some(now);
        if let Some(ns) = &self.userns {
            spans.remove(self.cgroup, ns);
        }
    }
}

/// A process on its way into a container.
#[derive(Clone, Debug)]
pub struct Entering {
    /// When it came.
    pub since: Nanos,
    /// What was last seen of it.
    pub event: Box<TaskEvent>,
    /// Whether it was found to be there still after the time that a runtime may need.
    pub late: bool,
}

/// A process that came into a container's namespaces without coming into its cgroup.
#[derive(Clone, Debug)]
pub struct Intruder {
    /// When it came.
    pub since: Nanos,
    /// The hook that saw it last.
    pub hook: &'static str,
    /// What was last seen of it, or of one that it made.
    pub event: Box<TaskEvent>,
    /// Whether it is still there after the time that a runtime may need.
    pub late: bool,
}

/// How long an ended process stays resolvable: evidence and exits come by different rings.
const KEEP_PROCESS_NS: u64 = 5_000_000_000;
/// Processes on their way into one container that are followed at once.
const MAX_ENTERING: usize = 64;
/// Ended processes that records about their entry may still come of, at most.
const MAX_GONE: usize = 1024;

/// Intruders of one container that are kept at once.
const MAX_INTRUDERS: usize = 64;

/// What is known of a process besides the record at hand.
#[derive(Clone, Debug, Default)]
struct Process {
    path: Text,
    args: Vec<Text>,
}

/// Sizes of the tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Containers, and pods.
    pub(super) containers: usize,
    /// Processes.
    pub(super) processes: usize,
}

/// All tables.
#[derive(Debug)]
pub(super) struct State {
    sizes: Sizes,
    pods: BTreeMap<PodUid, Pod>,
    /// The last pod that made room: the search for the next goes on behind it.
    made_room: Option<PodUid>,
    /// Pods by their sandboxes' ids.
    sandboxes: BTreeMap<String, PodUid>,
    containers: BTreeMap<CgroupId, Container>,
    /// Host ids of those that are not gone.
    spans: Spans,
    processes: BTreeMap<ProcessId, Process>,
    ended: VecDeque<(Nanos, ProcessId)>,
    /// Ended processes, the oldest first.
    gone: VecDeque<ProcessId>,
    /// Rows that fell out because a table was full.
    pub(super) evicted: BTreeMap<&'static str, u64>,
}

impl State {
    /// Empty tables.
    #[must_use]
    pub(super) fn new(sizes: Sizes) -> Self {
        Self {
            sizes,
            pods: BTreeMap::new(),
            made_room: None,
            sandboxes: BTreeMap::new(),
            containers: BTreeMap::new(),
            spans: Spans::default(),
            processes: BTreeMap::new(),
            ended: VecDeque::new(),
            gone: VecDeque::new(),
            evicted: BTreeMap::new(),
        }
    }

    /// The pod.
    #[must_use]
    pub(super) fn pod(&self, uid: &PodUid) -> Option<&Pod> {
        self.pods.get(uid)
    }

    /// All pods.
    pub(super) fn pods(&self) -> impl Iterator<Item = (&PodUid, &Pod)> {
        self.pods.iter()
    }

    /// The container.
    #[must_use]
    pub(super) fn container(&self, id: CgroupId) -> Option<&Container> {
        self.containers.get(&id)
    }

    /// Whether the container is there and its cgroup was not removed.
    #[must_use]
    pub(super) fn is_live(&self, id: CgroupId) -> bool {
        self.containers.get(&id).is_some_and(|container| container.gone.is_none())
    }

    /// The container, to change.
    pub(super) fn container_mut(&mut self, id: CgroupId) -> Option<&mut Container> {
        self.containers.get_mut(&id)
    }

    /// All containers that are not gone.
    pub(super) fn containers(&self) -> impl Iterator<Item = &Container> {
        self.containers.values().filter(|container| container.gone.is_none())
    }

    /// Live containers whose user namespace maps one of these host user ids.
    pub(super) fn sharing(&self, map: &IdMap) -> impl Iterator<Item = &Container> {
        self.spans.sharing(map).filter_map(|id| self.containers.get(&id))
    }

    /// Takes the user namespace of a container's workload; true if it is another than was known.
    pub(super) fn has_userns(&mut self, id: CgroupId, ns: UserNs) -> bool {
        let Some(container) = self.containers.get_mut(&id) else { return false };
        let before = container.userns.replace(ns);
        if before == Some(ns) {
            return false;
        }
        if let Some(before) = before {
            self.spans.remove(id, &before);
        }
        if container.gone.is_none() {
            self.spans.insert(id, &ns);
        }
        true
    }

    /// Processes known.
    #[must_use]
    pub(super) fn nr_processes(&self) -> usize {
        self.processes.len()
    }

    /// Takes note of a cgroup; true if it is a container's that was not known.
    pub(super) fn saw_cgroup(&mut self, seen: &Cgroup, now: Nanos) -> bool {
        // monitors and what lies below containers are no containers; a pod's own directory can hold processes too
        if !matches!(seen.role, role::POD | role::CONTAINER) {
            return false;
        }
        if let Some(known) = self.containers.get_mut(&seen.id) {
            known.seen = now;
            return false;
        }
        let parsed = cgroup::parse(seen.path.as_str());
        let pod = parsed.as_ref().map(|parsed| parsed.uid.clone());
        let name = parsed.and_then(|parsed| parsed.container).unwrap_or_default();
        self.make_room_for_container();
        if let Some(pod) = pod.as_ref().and_then(|uid| self.pod_mut(uid)) {
            pod.containers.insert(seen.id);
        }
        let container = Container {
            cgroup: seen.id,
            path: seen.path.clone(),
            pod,
            id: name.id,
            runtime: name.runtime,
            seen: now,
            ..Container::default()
        };
        self.containers.insert(seen.id, container);
        true
    }

    fn make_room_for_container(&mut self) {
        if self.containers.len() < self.sizes.containers {
            return;
        }
        let oldest =
            self.containers.values().min_by_key(|container| (container.gone.is_none(), container.seen));
        if let Some(id) = oldest.map(|container| container.cgroup) {
            self.drop_container(id);
            *self.evicted.entry("containers").or_default() += 1;
        }
    }

    fn drop_container(&mut self, id: CgroupId) {
        let Some(container) = self.containers.remove(&id) else { return };
        if let Some(ns) = &container.userns {
            self.spans.remove(id, ns);
        }
        if let Some(pod) = container.pod.and_then(|uid| self.pods.get_mut(&uid)) {
            pod.containers.remove(&id);
        }
    }

    /// The pod, known from now on; `None` if there are too many pods on the node.
    fn pod_mut(&mut self, uid: &PodUid) -> Option<&mut Pod> {
        if self.pods.len() >= self.sizes.containers && !self.pods.contains_key(uid) {
            *self.evicted.entry("pods").or_default() += 1;
            let behind = match &self.made_room {
                Some(last) => self.pods.range((Bound::Excluded(last), Bound::Unbounded)),
                None => self.pods.range(..),
            };
            let mut all = behind.chain(self.pods.iter());
            let spare = all.find(|(_, pod)| pod.is_spare()).map(|(uid, _)| uid.clone())?;
            self.pods.remove(&spare);
            self.made_room = Some(spare);
        }
        Some(self.pods.entry(uid.clone()).or_default())
    }

    /// Takes note that a cgroup was removed.
    pub(super) fn removed_cgroup(&mut self, id: CgroupId, now: Nanos) {
        if let Some(container) = self.containers.get_mut(&id) {
            container.leave(now, &mut self.spans);
        }
    }

    /// Takes note that a walk which began at `started` met no others: those not seen since are gone.
    pub(super) fn walked(&mut self, started: Nanos) {
        for container in self.containers.values_mut() {
            if container.seen < started && container.gone.is_none() {
                container.leave(started, &mut self.spans);
            }
        }
    }

    /// Takes kubelet's record; returns the containers concerned if it says something new.
    pub(super) fn recorded(
        &mut self,
        uid: &PodUid,
        record: Option<KubeletRecord>,
        now: Nanos,
    ) -> Vec<CgroupId> {
        self.tell_pod(uid, |pod| pod.recorded(record, now))
    }

    /// Takes all pods of a source; returns the containers of pods of which it says something new.
    pub(super) fn listed(&mut self, source: PodSource, specs: Vec<PodSpec>, now: Nanos) -> Vec<CgroupId> {
        let listed: BTreeSet<PodUid> = specs.iter().map(|spec| spec.uid.clone()).collect();
        for (_, pod) in self.pods.iter_mut().filter(|(uid, _)| !listed.contains(*uid)) {
            pod.unsay(source, now);
        }
        specs.into_iter().flat_map(|spec| self.described(source, spec)).collect()
    }

    /// Takes one pod of a source.
    pub(super) fn described(&mut self, source: PodSource, spec: PodSpec) -> Vec<CgroupId> {
        let uid = spec.uid.clone();
        self.tell_pod(&uid, |pod| pod.say(source, spec))
    }

    /// A source has a pod no longer.
    pub(super) fn undescribed(&mut self, source: PodSource, uid: &PodUid, now: Nanos) {
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.unsay(source, now);
        }
    }

    /// Takes all sandboxes of the runtime; returns the containers of pods of which they say something new.
    pub(super) fn sandboxes(&mut self, sandboxes: Vec<Sandbox>, now: Nanos) -> Vec<CgroupId> {
        let listed: BTreeSet<&str> = sandboxes.iter().map(|sandbox| sandbox.id.as_str()).collect();
        let gone: Vec<String> =
            self.sandboxes.keys().filter(|id| !listed.contains(id.as_str())).cloned().collect();
        gone.iter().for_each(|id| self.sandbox_gone(id, now));
        sandboxes.into_iter().flat_map(|sandbox| self.sandbox(sandbox)).collect()
    }

    /// Takes one sandbox.
    pub(super) fn sandbox(&mut self, sandbox: Sandbox) -> Vec<CgroupId> {
        let uid = sandbox.pod.uid.clone();
        let id = sandbox.id.clone();
        let concerned = self.tell_pod(&uid, |pod| pod.add_sandbox(sandbox));
        if self.pods.contains_key(&uid) {
            self.sandboxes.insert(id, uid);
        }
        concerned
    }

    /// The runtime has a sandbox no longer.
    pub(super) fn sandbox_gone(&mut self, id: &str, now: Nanos) {
        let uid = self.sandboxes.remove(id);
        if let Some(pod) = uid.and_then(|uid| self.pods.get_mut(&uid)) {
            pod.remove_sandbox(id, now);
        }
    }

    /// Tells a pod something; returns its containers if that was news.
    fn tell_pod(&mut self, uid: &PodUid, tell: impl FnOnce(&mut Pod) -> bool) -> Vec<CgroupId> {
        let Some(pod) = self.pod_mut(uid) else { return Vec::new() };
        if tell(pod) { pod.containers.iter().copied().collect() } else { Vec::new() }
    }

    /// Takes note of a process on its way into a container. What it does and its end come by rings of their own, so the
    /// end may be known first.
    pub(super) fn entering(&mut self, event: &TaskEvent, time: Nanos, late: bool) {
        let Some(container) = self.containers.get_mut(&CgroupId(event.task.lineage.container)) else {
            return;
        };
        let process = event.task.process;
        if self.gone.contains(&process) {
            return;
        }
        let late = late || container.entering.get(&process).is_some_and(|known| known.late);
        if container.entering.len() >= MAX_ENTERING && !container.entering.contains_key(&process) {
            // one that is there still is found again by the sweep
            let oldest =
                container.entering.iter().filter(|(_, known)| !known.late).min_by_key(|(_, it)| it.since);
            let oldest = oldest.map(|(process, _)| *process);
            *self.evicted.entry("entering").or_default() += 1;
            if oldest.and_then(|process| container.entering.remove(&process)).is_none() {
                return;
            }
        }
        let entered = Nanos(event.task.lineage.entered_ns);
        let since = if entered.0 == 0 { time } else { entered };
        container.entering.insert(process, Entering { since, event: Box::new(event.clone()), late });
    }

    /// A live container of another pod than this container's whose programs run in the user namespace.
    #[must_use]
    pub(super) fn owner_of(&self, inum: u32, not_of: CgroupId) -> Option<CgroupId> {
        let own = self.containers.get(&not_of).and_then(|container| container.pod.as_ref());
        let pod = |id: &CgroupId| self.containers.get(id).and_then(|container| container.pod.as_ref());
        self.spans.within(inum).find(|id| pod(id) != own)
    }

    /// Takes note of a process that came into a container's namespaces from elsewhere. What it makes is the same entry.
    pub(super) fn intruding(
        &mut self,
        container: CgroupId,
        event: &TaskEvent,
        time: Nanos,
        hook: &'static str,
        late: bool,
    ) {
        let Some(container) = self.containers.get_mut(&container) else { return };
        let intruders = &mut container.intruders;
        let family = std::iter::once(event.task.process)
            .chain(event.ancestors.iter().map(|ancestor| ancestor.process))
            .find(|process| intruders.contains_key(process));
        let first = family.unwrap_or(event.task.process);
        let known = intruders.remove(&first);
        if intruders.len() >= MAX_INTRUDERS {
            let oldest = intruders.iter().min_by_key(|(_, intruder)| intruder.since).map(|(id, _)| *id);
            oldest.and_then(|id| intruders.remove(&id));
            *self.evicted.entry("intruders").or_default() += 1;
        }
        let late = late || known.as_ref().is_some_and(|known| known.late);
        let since = known.map_or(time, |known| known.since);
        intruders.insert(first, Intruder { since, hook, event: Box::new(event.clone()), late });
    }

    /// Takes the user namespace away from a container that turned out not to be its owner; returns the program that it
    /// was learnt from.
    pub(super) fn disown(&mut self, container: CgroupId) -> Option<Box<TaskEvent>> {
        let container = self.containers.get_mut(&container)?;
        container.userns = None;
        container.first_workload.take()
    }

    /// Takes note that a process is no longer on its way in.
    pub(super) fn settled(&mut self, container: CgroupId, process: ProcessId) {
        if let Some(container) = self.containers.get_mut(&container) {
            container.entering.remove(&process);
            container.intruders.remove(&process);
        }
    }

    /// Remembers what a process executed.
    pub(super) fn executed(&mut self, event: &TaskEvent) {
        if self.processes.len() >= self.sizes.processes && !self.processes.contains_key(&event.task.process) {
            // pids grow until they wrap: the lowest is the oldest but for that
            self.processes.pop_first();
            *self.evicted.entry("processes").or_default() += 1;
        }
        let process = Process { path: event.path.clone(), args: event.args.clone() };
        self.processes.insert(event.task.process, process);
    }

    /// Remembers that a process ended.
    pub(super) fn exited(&mut self, process: ProcessId, container: CgroupId, now: Nanos) {
        if let Some(container) = self.containers.get_mut(&container) {
            container.entering.remove(&process);
        }
        if self.gone.len() >= MAX_GONE {
            self.gone.pop_front();
        }
        self.gone.push_back(process);
        if self.processes.contains_key(&process) {
            self.ended.push_back((now, process));
        }
    }

    /// Fills in what the record at hand does not say of its process.
    pub(super) fn complete(&self, event: &mut TaskEvent) {
        if !event.args.is_empty() {
            return;
        }
        if let Some(process) = self.processes.get(&event.task.process) {
            event.args.clone_from(&process.args);
            event.path.clone_from(&process.path);
        }
    }

    /// Containers whose end is to be told now, once each, and when that was.
    pub(super) fn closing(&mut self, now: Nanos) -> Vec<(CgroupId, Nanos)> {
        let over = |since: Nanos| now.0.saturating_sub(since.0) >= RESOLVE_NS;
        let due = |container: &mut Container| {
            let gone = container.gone.filter(|since| !container.closed && over(*since))?;
            container.closed = true;
            Some((container.cgroup, gone))
        };
        self.containers.values_mut().filter_map(due).collect()
    }

    /// A live container of a pod, one that is more than the pod's own directory if there is one.
    #[must_use]
    pub(super) fn living(&self, pod: &PodUid) -> Option<CgroupId> {
        let all = self.pods.get(pod)?.containers.iter().filter_map(|id| self.containers.get(id));
        let live = all.filter(|container| container.gone.is_none());
        live.min_by_key(|container| container.id.is_empty()).map(|container| container.cgroup)
    }

    /// Containers known, gone ones too.
    #[must_use]
    pub(super) fn nr_containers(&self) -> usize {
        self.containers.len()
    }

    /// Forgets what has been gone for long; returns containers whose kernel rows can go as well.
    pub(super) fn tick(&mut self, now: Nanos) -> Vec<CgroupId> {
        let over = |since: Nanos, keep: u64| now.0.saturating_sub(since.0) > keep;
        while let Some((since, process)) =
            self.ended.front().copied().filter(|(since, _)| over(*since, KEEP_PROCESS_NS))
        {
            let _ = since;
            self.processes.remove(&process);
            self.ended.pop_front();
        }
        let dead: Vec<CgroupId> = self
            .containers
            .values()
            .filter(|container| container.gone.is_some_and(|since| over(since, KEEP_NS)))
            .map(|container| container.cgroup)
            .collect();
        for id in &dead {
            self.drop_container(*id);
        }
        self.pods.retain(|_, pod| !pod.is_forgotten(now));
        dead
    }
}
