//! How namespaces are related, which only ioctl_nsfs(2) tells.

use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use rustix::io::Errno;

use super::{INITIAL_USERNS, ProcError, ProcFs, error};
use crate::event::UserNs;

/// More levels than the kernel allows below the initial user namespace (`user_namespaces(7)`: 32).
const MAX_LEVELS: usize = 40;

/// A user namespace and all those above it, as far as the initial one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ancestry {
    /// Inode number and owner, innermost first, the initial one left out.
    below_initial: Vec<(u32, u32)>,
}

impl Ancestry {
    /// Of these inode numbers and owners, innermost first, the initial namespace left out.
    #[must_use]
    pub fn new(below_initial: Vec<(u32, u32)>) -> Self {
        Self { below_initial }
    }

    /// Inode number and owner of the namespace and of those above it, innermost first, the initial one left out.
    #[must_use]
    pub fn chain(&self) -> &[(u32, u32)] {
        &self.below_initial
    }

    /// Inode number of the namespace itself.
    #[must_use]
    pub fn inum(&self) -> u32 {
        self.below_initial.first().map_or(INITIAL_USERNS, |first| first.0)
    }

    /// Whether the namespace is this one or lies below it.
    #[must_use]
    pub fn holds(&self, inum: u32) -> bool {
        inum == INITIAL_USERNS || self.below_initial.iter().any(|ns| ns.0 == inum)
    }

    /// The namespace itself, without its maps.
    #[must_use]
    pub fn userns(&self) -> UserNs {
        self.at(0).unwrap_or(UserNs { inum: INITIAL_USERNS, ..UserNs::default() })
    }

    /// Its ancestor one level below the host's, which is at `host_level`, without its maps: the pod's.
    #[must_use]
    pub fn pod(&self, host_level: u32) -> Option<UserNs> {
        self.at(self.below_initial.len().checked_sub(host_level as usize + 1)?)
    }

    fn at(&self, index: usize) -> Option<UserNs> {
        let (inum, owner) = *self.below_initial.get(index)?;
        let level = u32::try_from(self.below_initial.len() - index).unwrap_or(u32::MAX);
        let parent_inum = self.below_initial.get(index + 1).map_or(INITIAL_USERNS, |parent| parent.0);
        Some(UserNs { inum, level, owner, parent_inum, ..UserNs::default() })
    }
}

impl ProcFs {
    /// The user namespace of a process and those above it; `None` if these do not end at the initial one, as for a
    /// reader that is not in it.
    ///
    /// # Errors
    ///
    /// [`ProcError`]
    pub fn ancestry(&self, pid: u32) -> Result<Option<Ancestry>, ProcError> {
        let path = self.path(pid, "ns/user");
        File::open(&path).and_then(|ns| climb(ns.into())).map_err(|source| error(pid, path, source))
    }

    /// As [`Self::ancestry`], of the user namespace that owns the process's namespace `kind`.
    ///
    /// # Errors
    ///
    /// [`ProcError`]
    pub fn owner(&self, pid: u32, kind: &str) -> Result<Option<Ancestry>, ProcError> {
        let path = self.path(pid, "ns").join(kind);
        let owner = || climb(related(&File::open(&path)?.into(), libc::NS_GET_USERNS)?);
        owner().map_err(|source| error(pid, path.clone(), source))
    }
}

fn climb(mut ns: OwnedFd) -> std::io::Result<Option<Ancestry>> {
    let mut below_initial = Vec::new();
    for _ in 0..MAX_LEVELS {
        let inum = inum(&ns)?;
        if inum == INITIAL_USERNS {
            return Ok(Some(Ancestry { below_initial }));
        }
        below_initial.push((inum, owner_uid(&ns)?));
        ns = match related(&ns, libc::NS_GET_PARENT) {
            Ok(parent) => parent,
            Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => return Ok(None),
            Err(error) => return Err(error),
        };
    }
    Ok(None)
}

fn inum(ns: &OwnedFd) -> std::io::Result<u32> {
    let stat = rustix::fs::fstat(ns)?;
    u32::try_from(stat.st_ino).map_err(|_| Errno::OVERFLOW.into())
}

/// The namespace that `request`, one of those without an argument, leads to.
fn related(ns: &OwnedFd, request: libc::Ioctl) -> std::io::Result<OwnedFd> {
    // SAFETY: NS_GET_PARENT and NS_GET_USERNS take no argument and touch no memory.
    let fd = unsafe { libc::ioctl(ns.as_raw_fd(), request) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for this call (open_related_ns, fs/nsfs.c).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn owner_uid(userns: &OwnedFd) -> std::io::Result<u32> {
    let mut uid: libc::uid_t = 0;
    // SAFETY: NS_GET_OWNER_UID writes one uid_t to the address, which lives until the call returns.
    let result = unsafe { libc::ioctl(userns.as_raw_fd(), libc::NS_GET_OWNER_UID, &raw mut uid) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(uid) }
}
