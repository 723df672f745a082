//! The state directory: whose it must be, and how its one file is replaced.
//!
//! Who can write to the file can have findings taken for known, so neither it nor the directory may be
//! anybody else's.

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, Stat, flock, fstat, open, openat, renameat};
use rustix::io::Errno;
use rustix::process::geteuid;
use thiserror::Error;

/// Name of the file.
pub(super) const NAME: &str = "told.jsonl";
/// Name of the file that is about to take its place.
const NEW: &str = "told.jsonl.new";

/// Why a directory cannot hold the memory.
#[derive(Debug, Error)]
pub enum DirectoryError {
    /// It cannot be made or opened.
    #[error("cannot use the state directory {}: {source}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Someone else's, or one that others may write to.
    #[error(
        "the state directory {} must belong to the agent's user and be writable by nobody else: chown and chmod 0700 \
         it, or name another with state_dir",
        path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// Another agent uses it.
    #[error("the state directory {} is in use by another agent: give each its own state_dir", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

/// The directory, locked as long as this lives: the kernel unlocks it however the agent ends.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    fd: OwnedFd,
}

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self, DirectoryError> {
        let failed = |source| DirectoryError::Open { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        if !is_own(&fstat(&fd).map_err(|error| failed(error.into()))?) {
            return Err(DirectoryError::Foreign { path: path.to_owned() });
        }
        match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), fd }),
            Err(Errno::WOULDBLOCK) => Err(DirectoryError::InUse { path: path.to_owned() }),
            Err(error) => Err(failed(error.into())),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file's content; empty if there is none.
    pub(super) fn read(&self, most: u64) -> io::Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&self.fd, NAME, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let stat = fstat(&file)?;
        if !is_own(&stat) || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it is no regular file that the agent's user alone may write to"));
        }
        let mut bytes = Vec::new();
        File::from(file).take(most + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > most {
            return Err(io::Error::other(format!("it is larger than {most} bytes")));
        }
        Ok(bytes)
    }

    /// Puts a file with this content in the place of the one there is.
    pub(super) fn replace(&self, content: &[u8]) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
        let file = openat(&self.fd, NEW, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?;
        let mut file = File::from(file);
        file.write_all(content)?;
        renameat(&self.fd, NEW, &self.fd, NAME)?;
        Ok(file)
    }
}

fn is_own(stat: &Stat) -> bool {
    stat.st_uid == geteuid().as_raw()
        && !Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH)
}
