//! The queue between the engine's loop and one output's writer thread.
//!
//! Pushing never blocks and never fails for want of a reader. What waits is bounded in bytes, in two budgets:
//!
//! - lines of severity info, low and medium share [`Limits::ordinary`];
//! - lines of severity high and critical, and what the agent tells about itself, have [`Limits::urgent`] to
//!   themselves, so that a flood of the former never costs one of the latter.
//!
//! A line that does not fit its budget is dropped and counted: what waits is older and nearer to the cause.
//! An update of a finding takes the place of an update of the same finding that still waits, as it says all
//! that the other did; so the queue grows with the number of findings, not with the time that an output is
//! stuck.
//!
//! What was dropped is told in the output itself as soon as there is room, see [`Queue::take_lost`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::memory::Receipt;
use crate::core::finding::{FindingId, Severity};
use crate::event::Nanos;

/// Budgets of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes for lines of severity info, low and medium.
    pub ordinary: usize,
    /// Bytes for lines of severity high and critical and for the agent's own.
    pub urgent: usize,
}

impl Default for Limits {
    /// A finding is about 8 KiB of JSON: room for 250 and 2000 of them.
    fn default() -> Self {
        Self { ordinary: 2 << 20, urgent: 16 << 20 }
    }
}

/// Memory of a queued line besides its text.
const OVERHEAD: usize = size_of::<Line>() + 64;

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// The agent itself.
    Agent,
    /// A finding that was opened at this time.
    Opened(Nanos, Severity),
    /// An update of a finding.
    Updated(FindingId, Severity),
}

impl About {
    /// The severity that the line is counted under.
    #[must_use]
    pub fn severity(self) -> Severity {
        match self {
            Self::Agent => Severity::Info,
            Self::Opened(_, severity) | Self::Updated(_, severity) => severity,
        }
    }

    fn is_urgent(self) -> bool {
        matches!(self, Self::Agent) || self.severity() >= Severity::High
    }
}

/// A line to write.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its text with the line's end.
    pub bytes: Bytes,
    /// What it is about.
    pub about: About,
    /// What to remember once it is written.
    pub receipt: Option<Arc<Receipt>>,
}

/// What became of a pushed line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It waits.
    Queued,
    /// It waits in the place of an older update of its finding.
    Superseded,
    /// It was dropped.
    Dropped,
}

/// What a writer does next.
#[derive(Debug)]
pub enum Next {
    /// Write this; then say [`Queue::done`].
    Write(Line),
    /// Open the output afresh.
    Reopen,
    /// End: the queue is closed, and empty or out of time.
    End,
}

/// Lines dropped, by severity, since `since`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// When the first was dropped.
    pub since: Nanos,
    /// How many.
    pub count: BTreeMap<Severity, u64>,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Line>,
    /// Sequence number of the front line.
    front: u64,
    /// Sequence number of the update that waits, by finding.
    updates: BTreeMap<FindingId, u64>,
    /// Bytes waiting: ordinary, urgent.
    bytes: [usize; 2],
    /// Severity of the line in the writer's hands.
    writing: Option<Severity>,
    reopen: bool,
    /// Set by closing: when the writer has to be done.
    deadline: Option<Instant>,
    dead: bool,
    lost: Lost,
}

/// See the module.
#[derive(Debug)]
pub struct Queue {
    limits: Limits,
    state: Mutex<State>,
    changed: Condvar,
}

impl Queue {
    /// An empty queue.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Takes a line; `now` is remembered if it is the first of several to be dropped.
    pub fn push(&self, line: Line, now: Nanos) -> Pushed {
        let mut state = self.lock();
        let pushed = state.push(line, self.limits, now);
        drop(state);
        if pushed == Pushed::Queued {
            self.changed.notify_all();
        }
        pushed
    }

    /// What was dropped and not told yet, if there is room again to tell it.
    pub fn take_lost(&self) -> Option<Lost> {
        let mut state = self.lock();
        let room = state.bytes[0] <= self.limits.ordinary / 2 && state.bytes[1] <= self.limits.urgent / 2;
        (room && !state.lost.count.is_empty()).then(|| std::mem::take(&mut state.lost))
    }

    /// Waits for something to do.
    pub fn next(&self) -> Next {
        let mut state = self.lock();
        loop {
            if std::mem::take(&mut state.reopen) {
                return Next::Reopen;
            }
            if state.dead || state.is_out_of_time() {
                return Next::End;
            }
            if let Some(line) = state.pop() {
                return Next::Write(line);
            }
            if state.deadline.is_some() {
                return Next::End;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The line from [`Queue::next`] is written or given up.
    pub fn done(&self) {
        self.lock().writing = None;
        self.changed.notify_all();
    }

    /// Waits before a failed write is tried again; false if there is no time left for that.
    pub fn wait_to_retry(&self, pause: Duration) -> bool {
        let state = self.lock();
        // closing ends the pause: the last attempt is made at once
        let closing = state.deadline.is_some();
        let pause = state
            .deadline
            .map_or(pause, |deadline| pause.min(deadline.saturating_duration_since(Instant::now())));
        let waits = |state: &mut State| state.deadline.is_some() == closing && !state.reopen;
        let (state, _) =
            self.changed.wait_timeout_while(state, pause, waits).unwrap_or_else(PoisonError::into_inner);
        !state.is_out_of_time()
    }

    /// Has the writer open its output afresh.
    pub fn reopen(&self) {
        self.lock().reopen = true;
        self.changed.notify_all();
    }

    /// Whether [`Queue::reopen`] was called and not acted on yet; it counts as acted on.
    pub fn take_reopen(&self) -> bool {
        std::mem::take(&mut self.lock().reopen)
    }

    /// Takes no more lines, and drops those that wait: nobody will ever read them.
    pub fn kill(&self) -> BTreeMap<Severity, u64> {
        let mut state = self.lock();
        state.dead = true;
        state.drop_all()
    }

    /// Gives the writer until `deadline` to write what waits, and waits for that. Returns what it did not
    /// write, by severity; nothing is taken any more.
    pub fn close(&self, deadline: Instant) -> BTreeMap<Severity, u64> {
        let mut state = self.lock();
        state.deadline = Some(deadline);
        self.changed.notify_all();
        let left = deadline.saturating_duration_since(Instant::now());
        let busy = |state: &mut State| state.writing.is_some() || !(state.lines.is_empty() || state.dead);
        let (mut state, _) =
            self.changed.wait_timeout_while(state, left, busy).unwrap_or_else(PoisonError::into_inner);
        state.dead = true;
        let mut left = state.drop_all();
        if let Some(severity) = state.writing {
            *left.entry(severity).or_default() += 1;
        }
        left
    }

    /// Bytes waiting.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.lock().bytes.iter().sum()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, line: Line, limits: Limits, now: Nanos) -> Pushed {
        if self.dead {
            return self.lose(line.about, now);
        }
        let urgent = usize::from(line.about.is_urgent());
        let limit = if urgent == 1 { limits.urgent } else { limits.ordinary };
        if let Some(at) = self.waiting_update(line.about)
            && let Some(old) = self.lines.get_mut(at)
        {
            self.bytes[usize::from(old.about.is_urgent())] -= cost(old);
            self.bytes[urgent] += cost(&line);
            *old = line;
            return Pushed::Superseded;
        }
        if self.bytes[urgent] + cost(&line) > limit {
            return self.lose(line.about, now);
        }
        self.bytes[urgent] += cost(&line);
        if let About::Updated(id, _) = line.about {
            self.updates.insert(id, self.front + self.lines.len() as u64);
        }
        self.lines.push_back(line);
        Pushed::Queued
    }

    fn waiting_update(&self, about: About) -> Option<usize> {
        let About::Updated(id, _) = about else { return None };
        usize::try_from(self.updates.get(&id)?.checked_sub(self.front)?).ok()
    }

    fn lose(&mut self, about: About, now: Nanos) -> Pushed {
        if self.lost.count.is_empty() {
            self.lost.since = now;
        }
        *self.lost.count.entry(about.severity()).or_default() += 1;
        Pushed::Dropped
    }

    fn pop(&mut self) -> Option<Line> {
        let line = self.lines.pop_front()?;
        if let About::Updated(id, _) = line.about {
            self.updates.remove(&id);
        }
        self.front += 1;
        self.bytes[usize::from(line.about.is_urgent())] -= cost(&line);
        self.writing = Some(line.about.severity());
        Some(line)
    }

    fn drop_all(&mut self) -> BTreeMap<Severity, u64> {
        let mut dropped = BTreeMap::new();
        for line in self.lines.drain(..) {
            *dropped.entry(line.about.severity()).or_default() += 1;
        }
        self.updates.clear();
        self.bytes = [0, 0];
        dropped
    }

    fn is_out_of_time(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }
}

fn cost(line: &Line) -> usize {
    line.bytes.len() + OVERHEAD
}

#[cfg(test)]
mod tests;
