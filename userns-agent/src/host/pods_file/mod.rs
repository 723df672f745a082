//! The pods file: Pod objects for names, labels and `spec.hostUsers`, without an API server.

mod parse;
#[cfg(test)]
mod tests;

pub use parse::{MAX_PODS_FILE_BYTES, PodsError, parse_pods};

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use super::watched_file::WatchedFile;
use super::{SourceHealth, SourceState};
use crate::event::{Fact, PodSource, PodSpec};

/// Time between two looks at the file.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Why the file gives no pods.
#[derive(Debug, thiserror::Error)]
pub enum PodsFileError {
    /// It does not exist.
    #[error("{} does not exist", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    Pods {
        /// The file.
        path: PathBuf,
        /// Why.
        source: PodsError,
    },
}

/// Reads the file once. It may be a pipe, such as /dev/stdin.
///
/// # Errors
///
/// [`PodsFileError`]
pub fn read_pods(path: &Path) -> Result<Vec<PodSpec>, PodsFileError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MOST).read_to_end(&mut bytes));
    read.map_err(|source| unreadable(path, source))?;
    parse(path, &bytes)
}

/// Bytes read: one more than may be used.
const MOST: u64 = MAX_PODS_FILE_BYTES as u64 + 1;

fn unreadable(path: &Path, source: io::Error) -> PodsFileError {
    if source.kind() == ErrorKind::NotFound {
        PodsFileError::Missing { path: path.to_owned() }
    } else {
        PodsFileError::Read { path: path.to_owned(), source }
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<PodSpec>, PodsFileError> {
    parse_pods(bytes).map_err(|source| PodsFileError::Pods { path: path.to_owned(), source })
}

/// Reads the file and reads it again when it changes.
#[derive(Debug)]
pub struct PodsFileWatcher {
    file: WatchedFile,
    /// What is in force.
    pods: Option<Vec<PodSpec>>,
    errors: u64,
    look: Interval,
    health: watch::Sender<SourceHealth>,
}

impl PodsFileWatcher {
    /// Watches `path`, looking at it every `interval` ([`LOOK_INTERVAL`]). Call it within a Tokio runtime.
    #[must_use]
    pub fn new(path: &Path, interval: Duration) -> (Self, watch::Receiver<SourceHealth>) {
        let (health, receiver) = watch::channel(SourceHealth::default());
        let mut look = interval_at(tokio::time::Instant::now() + interval, interval);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        (Self { file: WatchedFile::new(path), pods: None, errors: 0, look, health }, receiver)
    }

    /// The pods there are now; none if the file cannot be used. Call it once, before [`Self::next`].
    pub fn initial(&mut self) -> Vec<Fact> {
        self.look_at_it().into_iter().collect()
    }

    /// Waits until the file gives other pods. While it cannot be used, what it gave before stays in force.
    /// Nothing is lost if the future is dropped before it is ready. The file is read meanwhile, which takes a
    /// moment if it is large: give it a task of its own.
    pub async fn next(&mut self) -> Fact {
        loop {
            self.look.tick().await;
            if let Some(fact) = self.look_at_it() {
                return fact;
            }
        }
    }

    fn look_at_it(&mut self) -> Option<Fact> {
        match self.read_if_changed() {
            Ok(None) => None,
            Ok(Some(pods)) => {
                self.publish(SourceState::Ok, String::new(), pods.len());
                let fact = (self.pods.as_ref() != Some(&pods))
                    .then(|| Fact::Pods(PodSource::PodsFile, pods.clone()));
                self.pods = Some(pods);
                fact
            }
            Err(error) => {
                let missing = matches!(error, PodsFileError::Missing { .. }) && self.pods.is_none();
                let state = if missing { SourceState::Missing } else { SourceState::Failing };
                self.errors += u64::from(!missing);
                let records = self.pods.as_ref().map_or(0, Vec::len);
                let kept = if records > 0 {
                    format!("; {records} pods of an earlier reading stay in force")
                } else {
                    String::new()
                };
                self.publish(state, format!("{error}{kept}"), records);
                None
            }
        }
    }

    /// `None` if it has not changed since it was read.
    fn read_if_changed(&mut self) -> Result<Option<Vec<PodSpec>>, PodsFileError> {
        let read = self.file.read_if_changed(MOST);
        let path = self.file.path();
        read.map_err(|source| unreadable(path, source))?.map(|bytes| parse(path, &bytes)).transpose()
    }

    fn publish(&self, state: SourceState, detail: String, records: usize) {
        let health = SourceHealth { state, detail, records, errors: self.errors };
        self.health.send_if_modified(|current| {
            let changed = *current != health;
            *current = health;
            changed
        });
    }
}
