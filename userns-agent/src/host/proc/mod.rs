//! Processes, as procfs shows them.
//!
//! Own parsing rather than the `procfs` crate: half a dozen small formats are needed, each of them hostile input
//! here (names are the workload's), so each has a pure, fuzzed parser that keeps bytes recognisable; and the root
//! is injected for everything, which that crate does for parts of its interface only.

mod nsfs;
mod parse;
mod standing;
#[cfg(test)]
mod tests;

pub use nsfs::Ancestry;
pub use parse::{
    Device, ParseError, Status, parse_cgroup, parse_cmdline, parse_id_map, parse_mount_devices,
    parse_namespace, parse_start, parse_status, to_id_map,
};
pub use standing::Standing;

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::time::{ClockId, clock_gettime};

use crate::event::{Extent, Image, Namespaces, Nanos, ProcessId, Text, UserNs};

pub use crate::event::INITIAL_USERNS;

/// Most that is read of one file. The longest is `status` with 65536 supplementary groups; it is not needed whole.
const MAX_BYTES: u64 = 256 * 1024;
/// Most that is read of `cmdline`.
const MAX_CMDLINE_BYTES: u64 = 4096;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Why something about a process is not known.
#[derive(Debug, thiserror::Error)]
pub enum ProcError {
    /// It has ended.
    #[error("process {pid} has ended")]
    Gone {
        /// The process.
        pid: u32,
    },
    /// Reading failed.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or link.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not as the kernel writes it.
    #[error("cannot make sense of {}: {source}", path.display())]
    Parse {
        /// The file or link.
        path: PathBuf,
        /// Where.
        source: ParseError,
    },
}

/// An executable in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Executable {
    /// Its path in its own mount namespace.
    pub path: Text,
    /// Its identity. The device is that of stat(2), which on btrfs is not the super block's.
    pub image: Image,
}

/// A procfs.
#[derive(Clone, Debug)]
pub struct ProcFs {
    root: PathBuf,
    host_level: u32,
}

impl ProcFs {
    /// The one mounted at `root`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), host_level: 0 }
    }

    /// The same, where the host's user namespace is at this level and those of pods lie one below.
    #[must_use]
    pub fn with_host_level(self, host_level: u32) -> Self {
        Self { host_level, ..self }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Ids of all processes, in ascending order.
    ///
    /// # Errors
    ///
    /// [`ProcError::Read`]
    pub fn pids(&self) -> Result<Vec<u32>, ProcError> {
        numbers(&self.root).map_err(|source| ProcError::Read { path: self.root.clone(), source })
    }

    /// Ids of all threads of a process, in ascending order.
    ///
    /// # Errors
    ///
    /// [`ProcError`]
    pub fn threads(&self, pid: u32) -> Result<Vec<u32>, ProcError> {
        let path = self.path(pid, "task");
        numbers(&path).map_err(|source| error(pid, path, source))
    }

    /// Its cgroup in the unified hierarchy; `None` if there is no such hierarchy. See [`parse_cgroup`].
    ///
    /// # Errors
    ///
    /// [`ProcError`]
    pub fn cgroup(&self, pid: u32) -> Result<Option<Text>, ProcError> {
        Ok(parse_cgroup(&self.read(pid, "cgroup", MAX_BYTES)?))
    }

    /// Its user namespace's map of user ids. See [`parse_id_map`] for whose ids these are.
    ///
    /// # Errors
    ///
    /// [`ProcError`]
    pub fn uid_map(&self, pid: u32) -> Result<Vec<Extent>, ProcError> {
        self.parse(pid, "uid_map", parse_id_map)
    }

    /// Its user namespace's map of group ids.
    ///
    /// # Errors
    ///
    /// [`ProcError`]
    pub fn gid_map(&self, pid: u32) -> Result<Vec<Extent>, ProcError> {
        self.parse(pid, "gid_map", parse_id_map)
    }

    /// What `status` says.
    ///
    /// # Errors
    ///
    /// [`ProcError`]
    pub fn status(&self, pid: u32) -> Result<Status, ProcError> {
        self.parse(pid, "status", parse_status)
    }

    /// Inode number of its user namespace.
    ///
    /// # Errors
    ///
    /// [`ProcError`], in particular if the reader may not inspect the process.
    pub fn user_namespace(&self, pid: u32) -> Result<u32, ProcError> {
        self.namespace(pid, "user")
    }

    /// Inode numbers of its other namespaces.
    ///
    /// # Errors
    ///
    /// [`ProcError`], in particular if the reader may not inspect the process.
    pub fn namespaces(&self, pid: u32) -> Result<Namespaces, ProcError> {
        Ok(Namespaces {
            mnt: self.namespace(pid, "mnt")?,
            pid: self.namespace(pid, "pid_for_children")?,
            net: self.namespace(pid, "net")?,
            ipc: self.namespace(pid, "ipc")?,
            uts: self.namespace(pid, "uts")?,
            cgroup: self.namespace(pid, "cgroup")?,
        })
    }

    /// Its user namespace as far as procfs shows it: number and maps. Level, owner and parent stay 0.
    ///
    /// # Errors
    ///
    /// [`ProcError`]
    pub fn userns(&self, pid: u32) -> Result<UserNs, ProcError> {
        let inum = self.user_namespace(pid)?;
        let (uid_map, gid_map) = (to_id_map(&self.uid_map(pid)?), to_id_map(&self.gid_map(pid)?));
        Ok(UserNs { inum, uid_map, gid_map, ..UserNs::default() })
    }

    /// Its command name.
    ///
    /// # Errors
    ///
    /// [`ProcError`]
    pub fn comm(&self, pid: u32) -> Result<Text, ProcError> {
        let bytes = self.read(pid, "comm", MAX_BYTES)?;
        Ok(Text::from_bytes(bytes.strip_suffix(b"\n").unwrap_or(&bytes)))
    }

    /// Its label of the security module (`attr/current`); `None` where no module gives one.
    ///
    /// # Errors
    ///
    /// [`ProcError`], other than where no module is there.
    pub fn security_label(&self, pid: u32) -> Result<Option<Text>, ProcError> {
        match self.read(pid, "attr/current", MAX_CMDLINE_BYTES) {
            Ok(bytes) => {
                let label = Text::from_c_bytes(bytes.strip_suffix(b"\n").unwrap_or(&bytes));
                Ok(Some(label).filter(|label| !label.as_str().is_empty()))
            }
            Err(ProcError::Read { source, .. }) if source.kind() == ErrorKind::InvalidInput => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The first 4 KiB of its arguments; none for a kernel thread or zombie.
    ///
    /// # Errors
    ///
    /// [`ProcError`]
    pub fn cmdline(&self, pid: u32) -> Result<Vec<Text>, ProcError> {
        Ok(parse_cmdline(&self.read(pid, "cmdline", MAX_CMDLINE_BYTES)?))
    }

    /// Its executable; `None` for a kernel thread or a zombie.
    ///
    /// # Errors
    ///
    /// [`ProcError`], in particular if the reader may not inspect the process.
    pub fn executable(&self, pid: u32) -> Result<Option<Executable>, ProcError> {
        let path = self.path(pid, "exe");
        let link = match std::fs::read_link(&path) {
            Ok(link) => link,
            // the directory is there, the link leads nowhere: no memory of its own
            Err(error) if error.kind() == ErrorKind::NotFound && self.path(pid, "").exists() => {
                return Ok(None);
            }
            Err(source) => return Err(error(pid, path, source)),
        };
        let stat = std::fs::metadata(&path).map_err(|source| error(pid, path, source))?;
        let dev = Device::from_st_dev(stat.dev()).unwrap_or_default().0;
        let image = Image { ino: stat.ino(), dev, nlink: u32::try_from(stat.nlink()).unwrap_or(u32::MAX) };
        Ok(Some(Executable { path: Text::from_bytes(link.as_os_str().as_bytes()), image }))
    }

    /// Its identity, *approximately*: procfs gives the start in clock ticks, so the time is cut to 10 ms and is not
    /// equal to the one that the kernel's records carry. Compare with [`Self::is`].
    ///
    /// # Errors
    ///
    /// [`ProcError`]
    pub fn process(&self, pid: u32) -> Result<ProcessId, ProcError> {
        let ticks = parse_start(&self.read(pid, "stat", MAX_BYTES)?).ok_or_else(|| ProcError::Parse {
            path: self.path(pid, "stat"),
            source: ParseError { line: 1, expected: "a start time as 22nd field" },
        })?;
        Ok(ProcessId { pid, start: Nanos(ticks.saturating_mul(NANOS_PER_SECOND / ticks_per_second())) })
    }

    /// Whether `process` is the one that has its pid now.
    ///
    /// # Errors
    ///
    /// [`ProcError`], other than for a process that has ended.
    pub fn is(&self, process: ProcessId) -> Result<bool, ProcError> {
        match self.process(process.pid) {
            Ok(found) => {
                let tick = NANOS_PER_SECOND / ticks_per_second();
                Ok(found.start.0 / tick == process.start.0 / tick)
            }
            Err(ProcError::Gone { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The super block's device of each mount that process `pid` sees, by mount id.
    ///
    /// # Errors
    ///
    /// [`ProcError`]
    pub fn mount_devices(&self, pid: u32) -> Result<Vec<(u64, Device)>, ProcError> {
        const MAX_MOUNTINFO_BYTES: u64 = 16 * 1024 * 1024;
        Ok(parse_mount_devices(&self.read(pid, "mountinfo", MAX_MOUNTINFO_BYTES)?))
    }

    /// What a process has at an absolute path; `None` if it has nothing there, or cannot be looked at.
    #[must_use]
    pub fn stat_as_seen_by(&self, pid: u32, path: &Path) -> Option<std::fs::Metadata> {
        std::fs::metadata(self.path(pid, "root").join(path.strip_prefix("/").ok()?)).ok()
    }

    fn namespace(&self, pid: u32, kind: &'static str) -> Result<u32, ProcError> {
        let path = self.path(pid, "ns").join(kind);
        let link = std::fs::read_link(&path).map_err(|source| error(pid, path.clone(), source))?;
        let source = ParseError { line: 1, expected: "a link such as user:[4026531837]" };
        link.to_str().and_then(parse_namespace).ok_or(ProcError::Parse { path, source })
    }

    /// The kernel's id of this boot, a UUID (drivers/char/random.c, `boot_id`).
    ///
    /// # Errors
    ///
    /// [`ProcError::Read`]
    pub fn boot_id(&self) -> Result<String, ProcError> {
        let path = self.root.join("sys/kernel/random/boot_id");
        let text = std::fs::read_to_string(&path).map_err(|source| ProcError::Read { path, source })?;
        Ok(text.trim_end().to_owned())
    }

    fn path(&self, pid: u32, name: &str) -> PathBuf {
        self.root.join(pid.to_string()).join(name)
    }

    fn read(&self, pid: u32, name: &str, most: u64) -> Result<Vec<u8>, ProcError> {
        let path = self.path(pid, name);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(most).read_to_end(&mut bytes)) {
            Ok(_) => Ok(bytes),
            Err(source) => Err(error(pid, path, source)),
        }
    }

    fn parse<T>(
        &self,
        pid: u32,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, ParseError>,
    ) -> Result<T, ProcError> {
        let bytes = self.read(pid, name, MAX_BYTES)?;
        parse(&String::from_utf8_lossy(&bytes))
            .map_err(|source| ProcError::Parse { path: self.path(pid, name), source })
    }
}

/// The entries of a directory that are numbers, in ascending order.
fn numbers(path: &Path) -> std::io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(path)? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn error(pid: u32, path: PathBuf, source: std::io::Error) -> ProcError {
    let gone = source.kind() == ErrorKind::NotFound
        || source.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error());
    if gone { ProcError::Gone { pid } } else { ProcError::Read { path, source } }
}

fn ticks_per_second() -> u64 {
    rustix::param::clock_ticks_per_second().max(1)
}

/// The time, on the clock that the kernel's records carry.
#[must_use]
pub fn boot_time() -> Nanos {
    Nanos(u64::try_from(nanos(ClockId::Boottime)).unwrap_or_default())
}

/// What to add to a boot time for the wall clock's: nanoseconds since 1970. It changes whenever the clock is set.
#[must_use]
pub fn wall_offset() -> i64 {
    nanos(ClockId::Realtime) - nanos(ClockId::Boottime)
}

fn nanos(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec * NANOS_PER_SECOND.cast_signed() + time.tv_nsec
}
