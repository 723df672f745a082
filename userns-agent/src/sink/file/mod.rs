//! An append-only file of lines, rotated by size.
//!
//! The file is created with mode 0600 and opened without following a symbolic link in its last component. A
//! line is in one file as a whole: it is never split over two, and what a failed write left of it is cut off
//! again. Rotation renames `name` to `name.1`, `name.1` to `name.2` and so on. When a step of it fails, lines
//! go on to the file that is open.

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;
use thiserror::Error;

/// Which file, and when it is rotated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The file.
    pub path: PathBuf,
    /// Size that it does not exceed, unless a single line does.
    pub max_bytes: u64,
    /// Renamed files kept; 0: a full file is emptied.
    pub keep: u32,
}

/// Why the file cannot be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// It is a symbolic link.
    #[error("output file {} is a symbolic link: name its target instead", path.display())]
    Symlink {
        /// The path.
        path: PathBuf,
    },
    /// It is a directory, device, pipe or socket.
    #[error("output file {} exists and is not a regular file", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be opened or created.
    #[error("cannot open output file {}: {source}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The file.
#[derive(Debug)]
pub struct LogFile {
    options: Options,
    file: File,
    /// A line's remains that could not be cut off end here.
    torn: bool,
    /// The file was renamed, and a new one could not be made: `file` is `name.1`.
    renamed: bool,
    /// Size at which rotation is tried: beyond the maximum after it failed.
    rotate_at: u64,
}

impl LogFile {
    /// Opens the file, or creates it.
    ///
    /// # Errors
    ///
    /// [`FileError`] if it cannot be opened or is not a regular file.
    pub fn open(options: Options) -> Result<Self, FileError> {
        let file = open(&options.path)?;
        let torn = ends_in_a_line(&file).map_err(|source| unopened(&options.path, source))?;
        let rotate_at = options.max_bytes;
        Ok(Self { options, file, torn, renamed: false, rotate_at })
    }

    /// Appends a line, which has to bring its end with it. Rotates before, if the file would grow too large.
    ///
    /// # Errors
    ///
    /// When the line could not be written. Nothing of it is in the file then, and the same line can be tried
    /// again.
    pub fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.renamed {
            self.begin_anew();
        }
        let mut metadata = self.file.metadata()?;
        if metadata.nlink() == 0 {
            // deleted by another program: what is written now would be gone with the process
            self.reopen().map_err(io::Error::other)?;
            metadata = self.file.metadata()?;
        }
        if metadata.len() > 0 && metadata.len().saturating_add(line.len() as u64) > self.rotate_at {
            self.rotate(metadata.len());
        }
        self.append(line)
    }

    /// Opens the path afresh, as after a rotation by another program.
    ///
    /// # Errors
    ///
    /// [`FileError`] if that fails; the open file stays in use.
    pub fn reopen(&mut self) -> Result<(), FileError> {
        *self = Self::open(self.options.clone())?;
        Ok(())
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn {
            // what follows is a line of its own again
            self.file.write_all(b"\n")?;
            self.torn = false;
        }
        let mut sent = 0;
        while let Some(rest) = line.get(sent..).filter(|rest| !rest.is_empty()) {
            let error = match self.file.write(rest) {
                Ok(0) => ErrorKind::WriteZero.into(),
                Ok(written) => {
                    sent += written;
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            if sent > 0 {
                self.torn = self.cut(sent as u64).is_err();
            }
            return Err(error);
        }
        Ok(())
    }

    /// Takes the last `bytes` bytes away again.
    fn cut(&self, bytes: u64) -> io::Result<()> {
        let len = self.file.metadata()?.len();
        self.file.set_len(len.saturating_sub(bytes))
    }

    fn rotate(&mut self, len: u64) {
        let moved = if self.options.keep == 0 { self.file.set_len(0) } else { self.rename() };
        match moved {
            Ok(()) => {
                self.renamed = self.options.keep > 0;
                self.rotate_at = self.options.max_bytes;
                if self.renamed {
                    self.begin_anew();
                }
            }
            Err(error) => {
                // not to be tried again with every line
                self.rotate_at = len.saturating_add(self.options.max_bytes / 8);
                let path = self.options.path.display();
                tracing::warn!(%path, %error, "cannot rotate, the file goes on growing");
            }
        }
    }

    /// Moves the files one further, those before the first gap only.
    fn rename(&self) -> io::Result<()> {
        let Options { path, keep, .. } = &self.options;
        let gap = (1..*keep).find(|number| fs::symlink_metadata(numbered(path, *number)).is_err());
        for number in (1..gap.unwrap_or(*keep)).rev() {
            fs::rename(numbered(path, number), numbered(path, number + 1))?;
        }
        fs::rename(path, numbered(path, 1))
    }

    /// Makes the file that takes the place of the renamed one.
    fn begin_anew(&mut self) {
        match open(&self.options.path) {
            Ok(file) => {
                self.file = file;
                self.torn = false;
                self.renamed = false;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot begin a new file, lines go on to the renamed one");
            }
        }
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

fn unopened(path: &Path, source: io::Error) -> FileError {
    FileError::Open { path: path.to_owned(), source }
}

fn open(path: &Path) -> Result<File, FileError> {
    let not_regular = || FileError::NotRegular { path: path.to_owned() };
    // NONBLOCK: opening a pipe without a reader fails instead of waiting for one
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
    let file = opened.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => FileError::Symlink { path: path.to_owned() },
        Some(Errno::ISDIR | Errno::NXIO) => not_regular(),
        _ => unopened(path, error),
    })?;
    let metadata = file.metadata().map_err(|source| unopened(path, source))?;
    if metadata.is_file() { Ok(file) } else { Err(not_regular()) }
}

/// Whether the file ends in the middle of a line, as after a crash.
fn ends_in_a_line(file: &File) -> io::Result<bool> {
    let Some(last) = file.metadata()?.len().checked_sub(1) else { return Ok(false) };
    let mut byte = [0];
    let read = file.read_at(&mut byte, last)?;
    Ok(read == 1 && byte != *b"\n")
}
