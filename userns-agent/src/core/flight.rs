//! The flight recorder: the last things that each process did, for when one of them turns out to matter.
//!
//! A step costs a few look-ups in trees, whatever the number of pods. Everything kept is counted in bytes, and there are
//! at most [`MAX_BYTES`] of it: beyond that, the container that has the most gives up what it can best do without, so
//! a container that floods the recorder loses its own past and nobody else's.

mod step;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub use step::{Deed, Ids, Step};

use super::windows::KEEP_STEPS_NS;
use crate::event::{Body, CgroupId, Event, Nanos, ProcessId, TaskEvent};

/// Memory for all steps.
pub const MAX_BYTES: usize = 4 << 20;
/// Steps kept of a process.
pub const MAX_STEPS: usize = 12;
/// Of these, the first ones, which stay when there are more: how it came into the container.
pub const FIRST_STEPS: usize = 3;
/// Steps told with a finding: all of its process, then those of its ancestors in the container, then its children's.
pub const MAX_TOLD: usize = 24;
/// Of these, those that its children may take.
const MAX_OF_CHILDREN: usize = 4;
/// The latest children of a process that are remembered with it.
const MAX_CHILDREN: usize = 4;
/// Ancestors looked through.
const MAX_DEPTH: usize = 16;
/// Memory of a process besides its steps: the rows of the trees that name it.
const ROW: usize = size_of::<Flight>() + 3 * size_of::<(Rank, ProcessId)>() + 64;

/// What goes first when a container has to give something up: the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// It ended, and no process that it made is known to live.
    Ended,
    /// It lives.
    Lives,
    /// It made others that live, or was the first of its container.
    HasOthers,
}

/// Worth, then age: what was changed last goes last.
type Rank = (Worth, u64);

/// What a process did.
#[derive(Debug)]
struct Flight {
    steps: VecDeque<Arc<Step>>,
    /// Steps between the first and the last that were left out.
    omitted: u64,
    /// The nearest ancestor that was known when it was first met.
    parent: Option<ProcessId>,
    /// Those that it made last.
    children: VecDeque<ProcessId>,
    /// How many that it made are known to live.
    living: usize,
    is_first: bool,
    ended: Option<Nanos>,
    /// Since when it could go.
    spare: Nanos,
    rank: Rank,
}

impl Flight {
    fn worth(&self) -> Worth {
        match (self.is_first || self.living > 0, self.ended) {
            (true, _) => Worth::HasOthers,
            (false, None) => Worth::Lives,
            (false, Some(_)) => Worth::Ended,
        }
    }

    /// Takes a step; returns by how much memory it has grown.
    fn take(&mut self, step: Step) -> isize {
        if let Some(same) = self.steps.iter_mut().find(|known| known.is_like(&step)) {
            Arc::make_mut(same).again(step.time);
            return 0;
        }
        let mut grown = signed(step.bytes());
        // records of the two rings come out of order
        let later = self.steps.iter().rev().take_while(|known| known.time > step.time).count();
        self.steps.insert(self.steps.len() - later, Arc::new(step));
        if self.steps.len() > MAX_STEPS
            && let Some(gone) = self.steps.remove(FIRST_STEPS)
        {
            grown -= signed(gone.bytes());
            self.omitted += 1;
        }
        grown
    }
}

fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

/// The processes of a container.
#[derive(Debug, Default)]
struct Recorded {
    flights: BTreeMap<ProcessId, Flight>,
    order: BTreeSet<(Rank, ProcessId)>,
    bytes: usize,
}

impl Recorded {
    fn reorder(&mut self, process: ProcessId, change: u64) {
        let Some(flight) = self.flights.get_mut(&process) else { return };
        self.order.remove(&(flight.rank, process));
        flight.rank = (flight.worth(), change);
        self.order.insert((flight.rank, process));
    }

    /// The process that can best be done without.
    fn least(&self) -> Option<(Rank, ProcessId)> {
        self.order.first().copied()
    }

    fn remove(&mut self, process: ProcessId) {
        let Some(flight) = self.flights.remove(&process) else { return };
        self.order.remove(&(flight.rank, process));
        let steps: usize = flight.steps.iter().map(|step| step.bytes()).sum();
        self.bytes = self.bytes.saturating_sub(steps + ROW);
    }

    /// One that `process` made does not live any more.
    fn bereave(&mut self, process: Option<ProcessId>, now: Nanos, change: u64) {
        let Some(process) = process else { return };
        let Some(flight) = self.flights.get_mut(&process) else { return };
        flight.living = flight.living.saturating_sub(1);
        flight.spare = now;
        self.reorder(process, change);
    }
}

/// What was told of a finding's past.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    /// The steps, the oldest first.
    pub(super) steps: Vec<Arc<Step>>,
    /// Steps that were left out for want of room.
    pub(super) omitted: u64,
}

/// The recorder.
#[derive(Debug)]
pub(super) struct Recorder {
    limit: usize,
    containers: BTreeMap<CgroupId, Recorded>,
    /// Containers by what they use.
    sizes: BTreeSet<(usize, CgroupId)>,
    bytes: usize,
    changes: u64,
    /// Processes whose steps fell out because there were too many.
    pub(super) evicted: u64,
}

impl Recorder {
    /// Empty, with room for so many bytes.
    #[must_use]
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, containers: BTreeMap::new(), sizes: BTreeSet::new(), bytes: 0, changes: 0, evicted: 0 }
    }

    /// Memory in use.
    #[must_use]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Containers of which something is kept.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.containers.len()
    }

    /// Takes a record.
    pub(super) fn saw(&mut self, event: &Event) {
        match &event.body {
            Body::Exit { process, container } => self.ended(*container, *process, event.time),
            // a monitor or a runtime that was moved out again has no part in what follows
            Body::Left { process, container } => self.ended(*container, *process, event.time),
            Body::Entry(_)
            | Body::Exec(_)
            | Body::Inside(_)
            | Body::Suspect(_)
            | Body::Capability(_)
            | Body::NamespaceCall(_) => {
                if let (Some(task), Some(step)) = (event.body.task(), Step::of(event)) {
                    self.record(task, step);
                }
            }
            Body::CgroupMkdir(_) | Body::CgroupRmdir(_) => {}
        }
    }

    fn record(&mut self, task: &TaskEvent, step: Step) {
        let (id, process) = (CgroupId(task.task.lineage.container), task.task.process);
        self.changes += 1;
        let change = self.changes;
        self.change(id, |recorded| {
            if !recorded.flights.contains_key(&process) {
                recorded.meet(task, step.time, change);
            }
            let Some(flight) = recorded.flights.get_mut(&process) else { return };
            let grown = flight.take(step);
            recorded.bytes = recorded.bytes.saturating_add_signed(grown);
            recorded.reorder(process, change);
        });
        self.make_room();
    }

    /// Changes what is kept of a container, and keeps the accounts.
    fn change(&mut self, id: CgroupId, change: impl FnOnce(&mut Recorded)) {
        let recorded = self.containers.entry(id).or_default();
        let before = recorded.bytes;
        change(recorded);
        let (after, is_empty) = (recorded.bytes, recorded.flights.is_empty());
        self.sizes.remove(&(before, id));
        if is_empty {
            self.containers.remove(&id);
        } else {
            self.sizes.insert((after, id));
        }
        self.bytes = self.bytes.saturating_sub(before).saturating_add(after);
    }

    fn make_room(&mut self) {
        while self.bytes > self.limit {
            let Some((_, id)) = self.sizes.last().copied() else { return };
            let Some((_, process)) = self.containers.get(&id).and_then(Recorded::least) else { return };
            self.change(id, |recorded| recorded.remove(process));
            self.evicted += 1;
        }
    }

    /// Takes note that a process ended. Its steps stay for a while, and as long as one that it made lives.
    fn ended(&mut self, container: CgroupId, process: ProcessId, now: Nanos) {
        self.changes += 1;
        let change = self.changes;
        let Some(recorded) = self.containers.get_mut(&container) else { return };
        let Some(flight) = recorded.flights.get_mut(&process) else { return };
        if flight.ended.replace(now).is_some() {
            return;
        }
        flight.spare = now;
        let parent = flight.parent;
        recorded.reorder(process, change);
        recorded.bereave(parent, now, change);
    }

    /// Forgets what ended long ago.
    pub(super) fn tick(&mut self, now: Nanos) {
        let over = |recorded: &Recorded| {
            let ((worth, _), process) = recorded.least()?;
            let since = recorded.flights.get(&process)?.spare;
            (worth == Worth::Ended && now.0.saturating_sub(since.0) > KEEP_STEPS_NS).then_some(process)
        };
        let due: Vec<CgroupId> =
            self.containers.iter().filter(|(_, it)| over(it).is_some()).map(|(id, _)| *id).collect();
        for id in due {
            self.change(id, |recorded| {
                while let Some(process) = over(recorded) {
                    recorded.remove(process);
                }
            });
        }
    }

    /// Forgets a container.
    pub(super) fn forget(&mut self, container: CgroupId) {
        if let Some(gone) = self.containers.remove(&container) {
            self.sizes.remove(&(gone.bytes, container));
            self.bytes = self.bytes.saturating_sub(gone.bytes);
        }
    }

    /// Forgets containers that nobody else knows.
    pub(super) fn retain(&mut self, known: impl Fn(CgroupId) -> bool) {
        let unknown: Vec<CgroupId> = self.containers.keys().copied().filter(|id| !known(*id)).collect();
        unknown.into_iter().for_each(|id| self.forget(id));
    }

    /// What led to the state of a task: what it did, what its ancestors in the container did, and what it had others
    /// do, the oldest first.
    #[must_use]
    pub(super) fn chain(&self, task: &TaskEvent) -> Chain {
        let process = task.task.process;
        let mut chain = Chain::default();
        let Some(recorded) = self.containers.get(&CgroupId(task.task.lineage.container)) else {
            return chain;
        };
        let own = recorded.flights.get(&process);
        chain.add(own, MAX_TOLD);
        for ancestor in recorded.ancestors(process, task) {
            chain.add(recorded.flights.get(&ancestor), MAX_TOLD - MAX_OF_CHILDREN);
        }
        for child in own.iter().flat_map(|flight| flight.children.iter().rev()) {
            chain.add(recorded.flights.get(child), MAX_TOLD);
        }
        chain.steps.sort_by_key(|step| (step.time, step.process));
        chain
    }
}

impl Recorded {
    /// Meets a process for the first time.
    fn meet(&mut self, task: &TaskEvent, now: Nanos, change: u64) {
        let process = task.task.process;
        let ancestors = task.ancestors.iter().map(|ancestor| ancestor.process);
        let parent = ancestors.into_iter().find(|id| self.flights.contains_key(id));
        if let Some((id, flight)) = parent.and_then(|id| Some((id, self.flights.get_mut(&id)?))) {
            flight.living += 1;
            if flight.children.len() >= MAX_CHILDREN {
                flight.children.pop_front();
            }
            flight.children.push_back(process);
            self.reorder(id, change);
        }
        let flight = Flight {
            steps: VecDeque::new(),
            omitted: 0,
            parent,
            children: VecDeque::new(),
            living: 0,
            is_first: self.flights.is_empty(),
            ended: None,
            spare: now,
            rank: (Worth::Lives, change),
        };
        self.order.insert((flight.rank, process));
        self.flights.insert(process, flight);
        self.bytes += ROW;
    }

    /// Ancestors, the nearest first: as they were when each was first met, which outlives them, then as the task has
    /// them now.
    fn ancestors(&self, process: ProcessId, task: &TaskEvent) -> Vec<ProcessId> {
        let up = |process: &ProcessId| self.flights.get(process)?.parent;
        let mut found: Vec<ProcessId> = std::iter::successors(up(&process), up).take(MAX_DEPTH).collect();
        for ancestor in task.ancestors.iter().map(|ancestor| ancestor.process) {
            if ancestor != process && !found.contains(&ancestor) {
                found.push(ancestor);
            }
        }
        found
    }
}

impl Chain {
    /// Adds what there is room for: the first steps and the last.
    fn add(&mut self, flight: Option<&Flight>, room: usize) {
        let Some(flight) = flight else { return };
        let free = room.saturating_sub(self.steps.len());
        let left_out = flight.steps.len().saturating_sub(free);
        let first = FIRST_STEPS.min(free);
        let kept = flight.steps.iter().enumerate().filter(|(at, _)| *at < first || *at >= first + left_out);
        self.steps.extend(kept.map(|(_, step)| Arc::clone(step)));
        self.omitted += flight.omitted + left_out as u64;
    }
}

#[cfg(test)]
mod tests;
