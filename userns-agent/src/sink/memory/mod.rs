//! What was told on this boot, in a file that outlives the agent.
//!
//! A finding is recorded when every output has written it, not when it is decided: what was decided but not
//! written comes again after a restart, so a finding is told at least once. One that was written and not recorded,
//! because the agent was killed in between, is told twice; that is the better of the two.
//!
//! The file is appended to by plain writes, without fsync: what a killed process wrote stays in the page cache,
//! and what a crashed node loses belongs to a boot whose ids mean nothing any more. It is written anew at start
//! and whenever it is more than twice what it needs to be. Nothing that goes wrong here stops the agent or costs a
//! finding: it is counted, and a finding may be told as new once more.

mod directory;
mod line;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use directory::DirectoryError;

use self::directory::Directory;
use self::line::Parsed;
use super::metrics::Metrics;
use crate::core::finding::Finding;
use crate::event::{CgroupId, Told};

/// Findings remembered: as many as the core keeps open.
const MAX_ENTRIES: usize = 8192;
/// Bytes that their lines may have together.
const MAX_LIVE_BYTES: usize = 4 << 20;
/// Bytes that a file may have beyond twice what is remembered.
const SLACK: usize = 64 << 10;
/// Largest file that is read: none that was written here is larger.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// The memory of what was told.
#[derive(Debug)]
pub struct Memory {
    state: Mutex<State>,
    /// Containers that are gone. A lock of its own: the event loop must not wait for a disk.
    gone: Mutex<Vec<CgroupId>>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct State {
    directory: Directory,
    boot: String,
    /// The file, as long as the last write to it went well.
    file: Option<File>,
    file_bytes: usize,
    live: BTreeMap<u64, Entry>,
    live_bytes: usize,
    complained: bool,
}

#[derive(Debug)]
struct Entry {
    told: Told,
    line: String,
}

/// A line on its way to the outputs, to be remembered when all of them have written it.
#[derive(Debug)]
pub struct Receipt {
    memory: Arc<Memory>,
    told: Told,
    line: String,
    resolved: bool,
    missing: AtomicUsize,
}

impl Receipt {
    /// For a finding told to that many outputs; `None` if it is about no container.
    #[must_use]
    pub fn new(memory: &Arc<Memory>, finding: &Finding, outputs: usize) -> Option<Self> {
        let told = line::told(finding)?;
        let line = line::format(&told, finding);
        let (memory, missing) = (Arc::clone(memory), AtomicUsize::new(outputs));
        Some(Self { memory, told, line, resolved: finding.resolved.is_some(), missing })
    }

    /// One of the outputs has written it.
    pub(super) fn written(&self) {
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.memory.record(self.told.clone(), self.line.clone(), self.resolved);
        }
    }
}

impl Memory {
    /// Opens the memory in `path`, made if need be, and says what was told on the boot of this id. What cannot be
    /// used of the file is left out, counted and warned of.
    ///
    /// # Errors
    ///
    /// [`DirectoryError`] if there can be no memory there.
    pub fn open(path: &Path, boot: &str, metrics: Arc<Metrics>) -> Result<(Self, Vec<Told>), DirectoryError> {
        let directory = Directory::open(path)?;
        let (found, refused) = match directory.read(MAX_FILE_BYTES) {
            Ok(bytes) => line::parse(&bytes, boot),
            Err(error) => (Vec::new(), vec![error.to_string()]),
        };
        for _ in &refused {
            metrics.state_error("read");
        }
        if let Some(first) = refused.first() {
            let (path, count) = (path.display(), refused.len());
            tracing::warn!(
                "{count} parts of {path}/{} are of no use, the first because {first}; findings may be told again \
                 as new",
                directory::NAME
            );
        }
        let mut state = State {
            directory,
            boot: boot.to_owned(),
            file: None,
            file_bytes: 0,
            live: BTreeMap::new(),
            live_bytes: 0,
            complained: false,
        };
        for Parsed { told, line, resolved } in found {
            state.take(told, line, resolved, &metrics);
        }
        let told = state.live.values().map(|entry| entry.told.clone()).collect();
        let written = state.rewrite();
        state.outcome(written, &metrics);
        Ok((Self { state: Mutex::new(state), gone: Mutex::default(), metrics }, told))
    }

    /// Forgets what was told of a container.
    pub fn forget(&self, container: CgroupId) {
        lock(&self.gone).push(container);
    }

    fn record(&self, told: Told, line: String, resolved: bool) {
        let gone = std::mem::take(&mut *lock(&self.gone));
        let mut state = lock(&self.state);
        state.forget(&gone);
        let written = state.append(&line);
        state.take(told, line, resolved, &self.metrics);
        state.outcome(written, &self.metrics);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Takes what was told of a finding: its end leaves nothing to remember.
    fn take(&mut self, told: Told, line: String, resolved: bool, metrics: &Metrics) {
        if !resolved {
            self.insert(told, line, metrics);
        } else if let Some(entry) = self.live.remove(&told.id) {
            self.live_bytes -= entry.line.len();
        }
    }

    /// Keeps what says the most: two outputs finish in any order.
    fn insert(&mut self, told: Told, line: String, metrics: &Metrics) {
        let weight = |told: &Told| (told.severity, told.count);
        if self.live.get(&told.id).is_some_and(|entry| weight(&entry.told) > weight(&told)) {
            return;
        }
        self.live_bytes += line.len();
        if let Some(old) = self.live.insert(told.id, Entry { told, line }) {
            self.live_bytes -= old.line.len();
        }
        while self.live.len() > MAX_ENTRIES || self.live_bytes > MAX_LIVE_BYTES {
            let oldest = self.live.iter().min_by_key(|(_, entry)| entry.told.last).map(|(id, _)| *id);
            if let Some(entry) = oldest.and_then(|id| self.live.remove(&id)) {
                self.live_bytes -= entry.line.len();
            }
            metrics.state_error("full");
        }
    }

    fn forget(&mut self, gone: &[CgroupId]) {
        if gone.is_empty() {
            return;
        }
        self.live.retain(|_, entry| !gone.contains(&entry.told.container));
        self.live_bytes = self.live.values().map(|entry| entry.line.len()).sum();
    }

    fn append(&mut self, line: &str) -> io::Result<()> {
        // a file that was deleted would take what is written with it
        let file = self.file.as_ref().and_then(|file| file.metadata().ok());
        let kept = file.is_some_and(|metadata| metadata.nlink() > 0);
        if !kept || self.file_bytes + line.len() > 2 * self.live_bytes + SLACK {
            self.rewrite()?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let written = file.write_all(line.as_bytes());
        self.file_bytes += line.len();
        if written.is_err() {
            // it may end in a part of the line now: the next one begins a new file
            self.file = None;
        }
        written
    }

    /// Begins a file that holds what is remembered and nothing else.
    fn rewrite(&mut self) -> io::Result<()> {
        self.file = None;
        let mut text = line::header(&self.boot);
        text.extend(self.live.values().map(|entry| entry.line.as_str()));
        self.file = Some(self.directory.replace(text.as_bytes())?);
        self.file_bytes = text.len();
        Ok(())
    }

    /// Counts a failure, and warns of the first until it works again.
    fn outcome(&mut self, result: io::Result<()>, metrics: &Metrics) {
        let Err(error) = result else {
            self.complained = false;
            return;
        };
        metrics.state_error("write");
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(
                "cannot write to {}: {error}; findings may be told again as new after a restart",
                self.directory.path().display()
            );
        }
    }
}
