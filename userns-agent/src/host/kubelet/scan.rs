//! Reading the records: all of them, or one pod's.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::record::{MAX_RECORD_BYTES, RecordError, parse_record};
use crate::event::{Fact, KubeletRecord, PodUid};
use crate::host::{SourceHealth, SourceState};

/// Why a record is not known.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        source: RecordError,
    },
}

/// What is known of the records below one `pods` directory.
#[derive(Debug)]
pub(super) struct Scanner {
    pods: PathBuf,
    missing: bool,
    known: BTreeMap<PodUid, KubeletRecord>,
    /// What fails now, by pod; `None` stands for the directory itself.
    failing: BTreeMap<Option<PodUid>, KubeletError>,
    errors: u64,
}

impl Scanner {
    pub(super) fn new(kubelet_root: &Path) -> Self {
        Self {
            pods: kubelet_root.join("pods"),
            missing: true,
            known: BTreeMap::new(),
            failing: BTreeMap::new(),
            errors: 0,
        }
    }

    pub(super) fn pods(&self) -> &Path {
        &self.pods
    }

    /// Reads everything. `before` is called with a pod's directory name before its record is read.
    pub(super) fn scan(&mut self, mut before: impl FnMut(&OsStr)) -> Vec<Fact> {
        self.failing.remove(&None);
        let names = match self.names() {
            Ok(names) => names,
            Err(source) => {
                self.failed(None, KubeletError::Read { path: self.pods.clone(), source });
                return Vec::new();
            }
        };
        let mut facts = Vec::new();
        let gone: Vec<_> = self.known.keys().chain(self.failing.keys().flatten()).cloned().collect();
        for uid in gone.iter().filter(|uid| !names.contains_key(uid)) {
            facts.extend(self.learn(uid, None));
        }
        for (uid, name) in &names {
            before(name);
            facts.extend(self.check(uid, name));
        }
        facts
    }

    /// Reads one pod's record: a fact if it has changed.
    pub(super) fn check(&mut self, uid: &PodUid, name: &OsStr) -> Option<Fact> {
        match read(&self.pods.join(name).join("userns")) {
            Ok(record) => self.learn(uid, record),
            Err(error) => {
                self.failed(Some(uid.clone()), error);
                None
            }
        }
    }

    fn names(&mut self) -> io::Result<BTreeMap<PodUid, OsString>> {
        let names = names(&self.pods)?;
        self.missing = names.is_none();
        Ok(names.unwrap_or_default())
    }

    fn learn(&mut self, uid: &PodUid, record: Option<KubeletRecord>) -> Option<Fact> {
        self.failing.remove(&Some(uid.clone()));
        let before = match &record {
            Some(record) => self.known.insert(uid.clone(), record.clone()),
            None => self.known.remove(uid),
        };
        (before != record).then(|| Fact::KubeletRecord { uid: uid.clone(), record })
    }

    fn failed(&mut self, uid: Option<PodUid>, error: KubeletError) {
        self.errors += 1;
        self.failing.insert(uid, error);
    }

    pub(super) fn health(&self) -> SourceHealth {
        let (state, detail) = match self.failing.values().next() {
            Some(error) if self.failing.len() > 1 => {
                (SourceState::Failing, format!("{error} (and {} more)", self.failing.len() - 1))
            }
            Some(error) => (SourceState::Failing, error.to_string()),
            None if self.missing => (SourceState::Missing, format!("{} does not exist", self.pods.display())),
            None => (SourceState::Ok, String::new()),
        };
        SourceHealth { state, detail, records: self.known.len(), errors: self.errors }
    }
}

/// Directories of pods; `None` if there is no directory of them.
fn names(pods: &Path) -> io::Result<Option<BTreeMap<PodUid, OsString>>> {
    let entries = match std::fs::read_dir(pods) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    let mut names = BTreeMap::new();
    for entry in entries {
        let name = entry?.file_name();
        names.extend(uid(&name).map(|uid| (uid, name)));
    }
    Ok(Some(names))
}

/// Reads everything once: for each pod that kubelet has a directory for, its record if there is one. `None` if
/// there is no directory of pods.
///
/// # Errors
///
/// [`KubeletError::Read`] if the directory of pods cannot be read.
pub fn read_records(kubelet_root: &Path) -> Result<Option<Records>, KubeletError> {
    let pods = kubelet_root.join("pods");
    let names = names(&pods).map_err(|source| KubeletError::Read { path: pods.clone(), source })?;
    let record = |(uid, name): (PodUid, OsString)| (uid, read(&pods.join(name).join("userns")));
    Ok(names.map(|names| names.into_iter().map(record).collect()))
}

/// What kubelet has for each pod: a record, none, or one that cannot be used.
pub type Records = BTreeMap<PodUid, Result<Option<KubeletRecord>, KubeletError>>;

/// The pod whose directory has this name.
pub(super) fn uid(name: &OsStr) -> Option<PodUid> {
    PodUid::parse(name.to_str()?)
}

fn read(path: &Path) -> Result<Option<KubeletRecord>, KubeletError> {
    match read_bytes(path) {
        Ok(bytes) => parse_record(&bytes)
            .map(Some)
            .map_err(|source| KubeletError::Record { path: path.to_owned(), source }),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(KubeletError::Read { path: path.to_owned(), source }),
    }
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    // neither a link nor a pipe is what kubelet writes
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file: File = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_RECORD_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
