//! The pods file: Pod objects for names, labels and `spec.hostUsers`, without an API server.

mod parse;
#[cfg(test)]
mod tests;

pub use parse::{MAX_PODS_FILE_BYTES, PodsError, parse_pods};

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

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
    read(path, File::open(path).map_err(|source| unreadable(path, source))?)
}

/// A pipe cannot be read twice, and opening one can wait for ever.
fn open_regular(path: &Path) -> Result<File, PodsFileError> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|source| unreadable(path, source))?;
    match file.metadata() {
        Ok(stat) if stat.is_file() => Ok(file),
        Ok(_) => Err(unreadable(path, io::Error::other("it is not a regular file"))),
        Err(source) => Err(unreadable(path, source)),
    }
}

fn unreadable(path: &Path, source: io::Error) -> PodsFileError {
    if source.kind() == ErrorKind::NotFound {
        PodsFileError::Missing { path: path.to_owned() }
    } else {
        PodsFileError::Read { path: path.to_owned(), source }
    }
}

fn read(path: &Path, file: File) -> Result<Vec<PodSpec>, PodsFileError> {
    let mut bytes = Vec::new();
    file.take(MAX_PODS_FILE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| unreadable(path, source))?;
    parse_pods(&bytes).map_err(|source| PodsFileError::Pods { path: path.to_owned(), source })
}

/// What changes when a file is written or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let stat = file.metadata()?;
        Ok(Self {
            device: stat.dev(),
            inode: stat.ino(),
            size: stat.size(),
            modified: (stat.mtime(), stat.mtime_nsec()),
            changed: (stat.ctime(), stat.ctime_nsec()),
        })
    }

    /// Whether another writing would show: the times of a file are those of the last clock tick, or on some file
    /// systems of the last second or two, so one that was written just now may be written again unseen.
    fn is_settled(&self, now: SystemTime) -> bool {
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        i64::try_from(seconds).is_ok_and(|now| now.abs_diff(self.changed.0) > 2)
    }
}

/// Reads the file and reads it again when it changes.
#[derive(Debug)]
pub struct PodsFileWatcher {
    path: PathBuf,
    /// Of the last reading, if it is settled.
    stamp: Option<Stamp>,
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
        (Self { path: path.to_owned(), stamp: None, pods: None, errors: 0, look, health }, receiver)
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
        let (path, before) = (&self.path, self.stamp.take());
        let file = open_regular(path)?;
        let stamp = Stamp::of(&file).map_err(|source| unreadable(path, source))?;
        let settled = stamp.is_settled(SystemTime::now()).then_some(stamp);
        if before == Some(stamp) {
            self.stamp = settled;
            return Ok(None);
        }
        let pods = read(path, file);
        // a file that cannot be used is not looked at again until it changes; one that cannot be read is
        if !matches!(pods, Err(PodsFileError::Read { .. })) {
            self.stamp = settled;
        }
        pods.map(Some)
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
