//! The unified cgroup hierarchy as a file system: where it is, and a walk over the pods in it.

#[cfg(test)]
mod tests;

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, fstat, openat, statfs};
use rustix::io::Errno;

use super::cgroup::role_of;
use crate::event::{Cgroup, CgroupId, Text, role};

/// `CGROUP2_SUPER_MAGIC` (include/uapi/linux/magic.h).
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// Where the hierarchy is looked for: alone, or beside version 1 hierarchies.
const PLACES: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// Directories after which a walk no longer descends into what lies below containers: a workload that may make
/// cgroups must not be able to keep the agent walking. Pods and containers are visited in any case.
pub const MAX_DIRECTORIES: u64 = 65_536;

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
    /// Directories opened.
    pub directories: u64,
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

    /// Walks the hierarchy depth first and calls `visit` for the directories of pods, of containers, of what is
    /// below containers, and of monitors.
    ///
    /// A directory is visited *before* its children are listed: if `visit` makes the kernel watch the directory,
    /// then a child is either listed afterwards or reported by the kernel when it is made.
    ///
    /// # Errors
    ///
    /// [`CgroupFsError::Read`] if the root cannot be read. Errors below it are counted.
    pub fn walk(&self, visit: impl FnMut(Cgroup)) -> Result<WalkStats, CgroupFsError> {
        let mut walk =
            Walk { root: &self.root, visit, stats: WalkStats::default(), pending: Vec::new(), device: None };
        let root = Pending { path: Vec::new(), parent: role::NONE };
        walk.directory(&root)
            .map_err(|errno| CgroupFsError::Read { path: self.root.clone(), source: errno.into() })?;
        while let Some(next) = walk.pending.pop() {
            if let Err(errno) = walk.directory(&next) {
                walk.stats.count(next.below(&self.root), errno);
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

/// A directory still to be walked.
struct Pending {
    /// Path from the root, each component after a slash.
    path: Vec<u8>,
    /// Role of the directory it lies in.
    parent: u32,
}

impl Pending {
    fn name(&self) -> &[u8] {
        self.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }

    fn below(&self, root: &Path) -> PathBuf {
        root.join(OsStr::from_bytes(self.path.strip_prefix(b"/").unwrap_or(&self.path)))
    }
}

struct Walk<'a, V> {
    root: &'a Path,
    visit: V,
    stats: WalkStats,
    pending: Vec<Pending>,
    device: Option<u64>,
}

impl<V: FnMut(Cgroup)> Walk<'_, V> {
    fn directory(&mut self, this: &Pending) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        // the root may be a symbolic link, or anything else that the configuration names
        let flags = if this.path.is_empty() { flags - OFlags::NOFOLLOW } else { flags };
        let directory = openat(CWD, this.below(self.root), flags, Mode::empty())?;
        let stat = fstat(&directory)?;
        if *self.device.get_or_insert(stat.st_dev) != stat.st_dev {
            return Ok(());
        }
        self.stats.directories += 1;
        let role = if this.path.is_empty() { role::NONE } else { role_of(this.parent, this.name()) };
        if role != role::NONE {
            self.stats.visited += 1;
            (self.visit)(Cgroup { id: CgroupId(stat.st_ino), role, path: Text::from_bytes(&this.path) });
        }
        if role == role::NESTED && self.stats.directories > MAX_DIRECTORIES {
            self.stats.skipped += 1;
            return Ok(());
        }
        self.list(directory, this, role)
    }

    fn list(&mut self, directory: OwnedFd, this: &Pending, role: u32) -> Result<(), Errno> {
        let mut names: Vec<CString> = Vec::new();
        for entry in Dir::new(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
                names.push(name.to_owned());
            }
        }
        // the last one is taken first
        names.sort_by(|a, b| b.cmp(a));
        self.pending.extend(names.iter().map(|name| Pending {
            path: [&this.path, b"/".as_slice(), name.to_bytes()].concat(),
            parent: role,
        }));
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
