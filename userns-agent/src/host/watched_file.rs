//! A file that is read again when it changes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::OFlags;

/// A file, and whether it has changed since it was read.
#[derive(Debug)]
pub(crate) struct WatchedFile {
    path: PathBuf,
    /// Of the last reading, if it is settled.
    stamp: Option<Stamp>,
}

impl WatchedFile {
    /// Reads nothing yet.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), stamp: None }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds, as far as `most` bytes; `None` if it has not changed since it was read.
    pub(crate) fn read_if_changed(&mut self, most: u64) -> io::Result<Option<Vec<u8>>> {
        // one that cannot be read is tried again
        let before = self.stamp.take();
        let file = open_regular(&self.path)?;
        let stamp = Stamp::of(&file)?;
        let settled = stamp.is_settled(SystemTime::now()).then_some(stamp);
        if before == Some(stamp) {
            self.stamp = settled;
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        self.stamp = settled;
        Ok(Some(bytes))
    }
}

/// A pipe cannot be read twice, and opening one can wait for ever.
fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_a_file_that_has_settled_is_trusted_not_to_have_changed() {
        let file = File::open("/proc/self/exe").unwrap();
        let stamp = Stamp::of(&file).unwrap();
        let at = |seconds: i64| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(stamp.changed.0 + seconds).unwrap())
        };
        assert!(stamp.is_settled(at(3)) && !stamp.is_settled(at(2)) && !stamp.is_settled(at(0)));
        assert!(stamp.is_settled(at(-3)));
    }
}
