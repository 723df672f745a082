//! The unified cgroup hierarchy as a file system: where it is, and a walk over the pods in it.

#[cfg(test)]
mod tests;

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, statat, statfs};
use rustix::io::Errno;

use crate::cgroup::role_of;
use crate::event::{Cgroup, CgroupId, Text, role};

/// `CGROUP2_SUPER_MAGIC` (include/uapi/linux/magic.h).
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// Where the hierarchy is looked for: alone, or beside version 1 hierarchies.
const PLACES: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// Directories after which a walk no longer descends into what lies below containers: a workload that may make
/// cgroups must not be able to keep the agent walking. Pods and containers are visited in any case.
pub const MAX_DIRECTORIES: u64 = 65_536;

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Directories looked at for the processes of one cgroup.
const MAX_DIRECTORIES_BELOW: usize = 1024;

/// Why the hierarchy cannot be walked.
#[derive(Debug, thiserror::Error)]
pub enum CgroupFsError {
    /// No place has it.
    #[error(
        "no unified (version 2) cgroup hierarchy at {}; boot with systemd.unified_cgroup_hierarchy=1, or set \
         cgroup_root if it is mounted elsewhere",
        PLACES.join(" or ")
    )]
    NotFound,
    /// The configured place is something else.
    #[error("{} is not a unified (version 2) cgroup hierarchy; set cgroup_root to where one is mounted", path.display())]
    NotCgroup2 {
        /// The place.
        path: PathBuf,
    },
    /// The root cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What a walk did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalkStats {
    /// Directories met.
    pub directories: u64,
    /// Directories listed: the root and those with directories in them.
    pub listed: u64,
    /// Directories visited: pods, containers, what is below them, monitors.
    pub visited: u64,
    /// Directories that were removed meanwhile.
    pub vanished: u64,
    /// Directories not descended into because there were more than [`MAX_DIRECTORIES`].
    pub skipped: u64,
    /// Directories that could not be read.
    pub errors: u64,
    /// The first of these and why.
    pub first_error: Option<(PathBuf, Errno)>,
}

/// A unified cgroup hierarchy.
#[derive(Clone, Debug)]
pub struct CgroupFs {
    root: PathBuf,
}

impl CgroupFs {
    /// Takes the configured place, or finds it.
    ///
    /// # Errors
    ///
    /// [`CgroupFsError`]
    pub fn find(configured: Option<&Path>) -> Result<Self, CgroupFsError> {
        match configured {
            Some(path) if is_cgroup2(path)? => Ok(Self::at(path)),
            Some(path) => Err(CgroupFsError::NotCgroup2 { path: path.to_owned() }),
            None => {
                let mut places = PLACES.iter().map(Path::new);
                let found = places.find(|path| is_cgroup2(path).unwrap_or(false));
                found.map(Self::at).ok_or(CgroupFsError::NotFound)
            }
        }
    }

    /// Takes `root` without looking what it is.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether version 1 hierarchies exist beside it. Kubelet uses those then, and no pod shows in this one.
    #[must_use]
    pub fn is_hybrid(&self) -> bool {
        self.root.ends_with("unified")
    }

    /// Walks the hierarchy from the top and calls `visit` for the directories of pods, of containers, of what is
    /// below containers, and of monitors.
    ///
    /// A directory is visited *before* its children are listed: if `visit` makes the kernel watch the directory,
    /// then a child is either listed afterwards or reported by the kernel when it is made.
    ///
    /// # Errors
    ///
    /// [`CgroupFsError::Read`] if the root cannot be read. Errors below it are counted.
    pub fn walk(&self, visit: impl FnMut(Cgroup)) -> Result<WalkStats, CgroupFsError> {
        let failed = |errno: Errno| CgroupFsError::Read { path: self.root.clone(), source: errno.into() };
        // the root may be a symbolic link, or anything else that the configuration names
        let root = openat(CWD, &self.root, OPEN, Mode::empty()).map_err(failed)?;
        let device = fstat(&root).map_err(failed)?.st_dev;
        let mut walk = Walk { visit, device, stats: WalkStats::default(), pending: Vec::new() };
        walk.list(root, &Pending::default()).map_err(failed)?;
        while let Some(next) = walk.pending.pop() {
            let path = next.below(&self.root);
            let listed = openat(CWD, &path, OPEN | OFlags::NOFOLLOW, Mode::empty());
            if let Err(errno) = listed.and_then(|directory| walk.list(directory, &next)) {
                walk.stats.count(path, errno);
            }
        }
        Ok(walk.stats)
    }

    /// Ids of the processes in the cgroup at `path` and those below it, in the order of cgroup.procs and at most
    /// `most`. Processes of pid namespaces that the reader does not see have no id and are left out.
    ///
    /// # Errors
    ///
    /// [`CgroupFsError::Read`] if the cgroup cannot be read, for example because it is gone.
    pub fn processes(&self, path: &str, most: usize) -> Result<Vec<u32>, CgroupFsError> {
        let mut pids = Vec::new();
        let top = self.root.join(path.trim_start_matches('/'));
        let mut pending = vec![top.clone()];
        for _ in 0..MAX_DIRECTORIES_BELOW {
            let Some(path) = pending.pop().filter(|_| pids.len() < most) else { break };
            match members(&path, &mut pids).and_then(|()| children(&path)) {
                Ok(children) => pending.extend(children),
                Err(source) if path == top => return Err(CgroupFsError::Read { path, source }),
                // removed since it was listed
                Err(_) => {}
            }
        }
        pids.truncate(most);
        Ok(pids)
    }

    /// Ids of the processes in the cgroup at `path` itself.
    ///
    /// # Errors
    ///
    /// As for [`Self::processes`].
    pub fn own_processes(&self, path: &str) -> Result<Vec<u32>, CgroupFsError> {
        let path = self.root.join(path.trim_start_matches('/'));
        let mut pids = Vec::new();
        match members(&path, &mut pids) {
            Ok(()) => Ok(pids),
            Err(source) => Err(CgroupFsError::Read { path, source }),
        }
    }
}

fn is_cgroup2(path: &Path) -> Result<bool, CgroupFsError> {
    let stat =
        statfs(path).map_err(|errno| CgroupFsError::Read { path: path.to_owned(), source: errno.into() })?;
    Ok(u64::try_from(stat.f_type).is_ok_and(|magic| magic == CGROUP2_MAGIC))
}

fn members(path: &Path, pids: &mut Vec<u32>) -> io::Result<()> {
    match std::fs::read_to_string(path.join("cgroup.procs")) {
        Ok(text) => {
            pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
            Ok(())
        }
        // a threaded cgroup: its processes are listed with the domain above it
        Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => Ok(()),
        Err(error) => Err(error),
    }
}

fn children(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            children.push(entry.path());
        }
    }
    children.sort_by(|a, b| b.cmp(a));
    Ok(children)
}

/// A directory that has been visited and is still to be listed.
#[derive(Clone, Default)]
struct Pending {
    /// Path from the root, each component after a slash.
    path: Vec<u8>,
    role: u32,
}

impl Pending {
    fn below(&self, root: &Path) -> PathBuf {
        root.join(OsStr::from_bytes(self.path.strip_prefix(b"/").unwrap_or(&self.path)))
    }
}

struct Walk<V> {
    visit: V,
    device: u64,
    stats: WalkStats,
    pending: Vec<Pending>,
}

impl<V: FnMut(Cgroup)> Walk<V> {
    /// Visits the directories in `directory`.
    fn list(&mut self, directory: OwnedFd, this: &Pending) -> Result<(), Errno> {
        self.stats.listed += 1;
        let mut names: Vec<CString> = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
                names.push(name.to_owned());
            }
        }
        names.sort();
        for name in names {
            let path = [&this.path, b"/".as_slice(), name.to_bytes()].concat();
            let child = Pending { path, role: role_of(this.role, name.to_bytes()) };
            if let Err(errno) = self.directory(&directory, &name, &child) {
                self.stats.count(PathBuf::from(OsStr::from_bytes(&child.path)), errno);
            }
        }
        Ok(())
    }

    fn directory(&mut self, parent: &OwnedFd, name: &CStr, this: &Pending) -> Result<(), Errno> {
        let look = || statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = look()?;
        if stat.st_dev != self.device || FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(());
        }
        self.stats.directories += 1;
        if this.role != role::NONE {
            self.stats.visited += 1;
            let path = Text::from_bytes(&this.path);
            (self.visit)(Cgroup { id: CgroupId(stat.st_ino), role: this.role, path });
        }
        // asked again, as `visit` has been called since; listing every container's files would take most of the time.
        // A directory without directories in it has two links (kernfs_refresh_inode, fs/kernfs/inode.c); their type
        // differs between architectures
        if look()?.st_nlink == 2 {
            return Ok(());
        }
        if this.role == role::NESTED && self.stats.directories > MAX_DIRECTORIES {
            self.stats.skipped += 1;
        } else {
            self.pending.push(this.clone());
        }
        Ok(())
    }
}

impl WalkStats {
    fn count(&mut self, path: PathBuf, errno: Errno) {
        // kernfs answers ENODEV while a directory is being removed
        if matches!(errno, Errno::NOENT | Errno::NODEV) {
            self.vanished += 1;
        } else {
            self.errors += 1;
            self.first_error.get_or_insert((path, errno));
        }
    }
}
