//! Which files on the host are container runtimes: by inode, which a workload cannot forge, not by name.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat, openat2, statx,
};
use rustix::io::Errno;

use super::proc::{Device, ProcFs};
use crate::event::{Fact, Image};

/// Executables that make containers, or that are run in a container's cgroup while one is made.
pub const NAMES: &[&str] = &[
    "runc",
    "crun",
    "youki",
    "conmon",
    "conmonrs",
    "crio",
    "pinns",
    "containerd",
    "containerd-shim-runc-v2",
    "containerd-shim-kata-v2",
    "containerd-shim-runsc-v1",
    "runsc",
    "kata-runtime",
    "nvidia-container-runtime",
    "docker-runc",
    "dockerd",
    "podman",
    "k3s",
];

/// Those among them that stay for as long as what they watch over, in a container's cgroup if so configured (CRI-O's
/// `monitor_exec_cgroup`, exec affinity).
pub const MONITORS: &[&str] = &["conmon", "conmonrs"];

/// An executable found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// Its path below the host's root.
    pub path: PathBuf,
    /// Its identity, the device being the super block's as far as that can be told.
    pub image: Image,
}

/// What a look for runtimes found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The executables, in the order of the configured paths.
    pub runtimes: Vec<Runtime>,
    /// Why `/` was searched instead of the configured root.
    pub fallback: Option<String>,
    /// What could not be looked at, and why; what does not exist is not listed.
    pub failures: Vec<(PathBuf, Errno)>,
}

impl Found {
    /// The fact to tell.
    #[must_use]
    pub fn fact(&self) -> Fact {
        Fact::RuntimeImages(self.images(|_| true))
    }

    /// The fact about those of [`MONITORS`].
    #[must_use]
    pub fn monitors(&self) -> Fact {
        let is_monitor = |runtime: &Runtime| {
            let name = runtime.path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| MONITORS.contains(&name))
        };
        Fact::MonitorImages(self.images(is_monitor))
    }

    fn images(&self, wanted: impl Fn(&Runtime) -> bool) -> Vec<Image> {
        let runtimes = self.runtimes.iter().filter(|runtime| wanted(runtime));
        let mut images: Vec<_> = runtimes.map(|runtime| runtime.image).collect();
        images.sort_unstable_by_key(|image| (image.dev, image.ino));
        images.dedup();
        images
    }
}

/// Looks for the executables of container runtimes.
#[derive(Clone, Debug)]
pub struct Runtimes {
    host_root: PathBuf,
    paths: Vec<PathBuf>,
    proc: ProcFs,
}

impl Runtimes {
    /// Looks for `paths` below `host_root`; a directory among them is searched for [`NAMES`]. `proc` tells the
    /// devices of mounts.
    #[must_use]
    pub fn new(host_root: impl Into<PathBuf>, paths: Vec<PathBuf>, proc: ProcFs) -> Self {
        Self { host_root: host_root.into(), paths, proc }
    }

    /// Looks now. Packages are upgraded: look again from time to time.
    #[must_use]
    pub fn find(&self) -> Found {
        let mut found = Found::default();
        let root = open_root(&self.host_root).or_else(|errno| {
            found.fallback = Some(format!("{}: {errno}", self.host_root.display()));
            open_root(Path::new("/"))
        });
        let search = match root {
            Ok(root) => Search { root, devices: self.devices() },
            Err(errno) => {
                found.failures.push(("/".into(), errno));
                return found;
            }
        };
        for path in &self.paths {
            search.look(path, &mut found);
        }
        found
    }

    fn devices(&self) -> BTreeMap<u64, Device> {
        // mount ids are unique on the whole system, so the tables of two namespaces can be put together
        let of = |pid| self.proc.mount_devices(pid).unwrap_or_default();
        of(1).into_iter().chain(of(std::process::id())).collect()
    }
}

struct Search {
    root: OwnedFd,
    devices: BTreeMap<u64, Device>,
}

impl Search {
    fn look(&self, path: &Path, found: &mut Found) {
        match self.stat(path) {
            Ok(stat) if FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory => {
                for path in NAMES.iter().map(|name| path.join(name)) {
                    match self.stat(&path) {
                        Ok(stat) => self.add(path, &stat, found),
                        Err(errno) => found.fail(path, errno),
                    }
                }
            }
            Ok(stat) => self.add(path.to_owned(), &stat, found),
            Err(errno) => found.fail(path.to_owned(), errno),
        }
    }

    fn add(&self, path: PathBuf, stat: &Statx, found: &mut Found) {
        if FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile {
            let mount = self.devices.get(&stat.stx_mnt_id).copied();
            let device =
                mount.or_else(|| Device::new(stat.stx_dev_major, stat.stx_dev_minor)).unwrap_or_default();
            let image = Image { ino: stat.stx_ino, dev: device.0, nlink: stat.stx_nlink };
            found.runtimes.push(Runtime { path, image });
        }
    }

    fn stat(&self, path: &Path) -> Result<Statx, Errno> {
        let file = self.open(path)?;
        // a kernel without mount ids here (before 5.8) says 0, which no mount has
        statx(&file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
    }

    /// Links, also absolute ones, are those of the host: they stay below its root.
    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        const ATTEMPTS: usize = 8;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let open = || openat2(&self.root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
        // AGAIN: something on the way was being renamed
        let mut attempts = std::iter::repeat_with(open).take(ATTEMPTS);
        attempts.find(|result| !matches!(result, Err(Errno::AGAIN))).unwrap_or(Err(Errno::AGAIN))
    }
}

impl Found {
    fn fail(&mut self, path: PathBuf, errno: Errno) {
        if !matches!(errno, Errno::NOENT | Errno::NOTDIR) {
            self.failures.push((path, errno));
        }
    }
}

fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    fn host(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(&file[1..]);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "#!").unwrap();
        }
        dir
    }

    fn find(root: &Path, paths: &[&str]) -> Found {
        Runtimes::new(root, paths.iter().map(PathBuf::from).collect(), ProcFs::new("/proc")).find()
    }

    fn paths(found: &Found) -> Vec<&str> {
        found.runtimes.iter().map(|runtime| runtime.path.to_str().unwrap()).collect()
    }

    #[test]
    fn directories_are_searched_for_known_names() {
        let host = host(&["/usr/bin/runc", "/usr/bin/bash", "/opt/x/my-runtime", "/usr/sbin/crio"]);
        fs::create_dir(host.path().join("usr/bin/crun")).unwrap();
        let found =
            find(host.path(), &["/usr/sbin", "/usr/bin", "/nowhere", "/opt/x/my-runtime", "/usr/bin/bash/x"]);
        assert_eq!(paths(&found), ["/usr/sbin/crio", "/usr/bin/runc", "/opt/x/my-runtime"]);
        assert_eq!(found.monitors(), Fact::MonitorImages(vec![]));
        assert_eq!((found.fallback, found.failures), (None, vec![]));
    }

    #[test]
    fn identities_are_those_of_stat() {
        let host = host(&["/bin/runc"]);
        fs::hard_link(host.path().join("bin/runc"), host.path().join("bin/x")).unwrap();
        let stat = fs::metadata(host.path().join("bin/runc")).unwrap();
        let found = find(host.path(), &["/bin", "/bin/x"]);
        let Image { ino, dev, nlink } = found.runtimes[0].image;
        assert_eq!((ino, nlink), (stat.ino(), 2));
        // on btrfs stat(2) has another device, which is what the table of mounts is for
        let devices = ProcFs::new("/proc").mount_devices(std::process::id()).unwrap();
        let by_stat = Device::from_st_dev(stat.dev()).unwrap();
        assert!(dev == by_stat.0 || devices.iter().any(|(_, device)| device.0 == dev));
        assert_eq!(found.fact(), Fact::RuntimeImages(vec![found.runtimes[0].image]));
    }

    #[test]
    fn monitors_are_told_apart() {
        let host = host(&["/usr/bin/runc", "/usr/bin/conmon", "/opt/x/conmon"]);
        let found = find(host.path(), &["/usr/bin", "/opt/x/conmon"]);
        let conmons: Vec<_> =
            found.runtimes.iter().filter(|it| it.path.ends_with("conmon")).map(|it| it.image).collect();
        let Fact::MonitorImages(mut told) = found.monitors() else { panic!("{found:?}") };
        told.sort_unstable_by_key(|image| image.ino);
        assert_eq!((found.runtimes.len(), told.len(), conmons.len()), (3, 2, 2));
        assert!(conmons.iter().all(|image| told.contains(image)));
    }

    #[test]
    fn links_stay_below_the_hosts_root() {
        let host = host(&["/opt/real/runc", "/secret"]);
        let link = |from: &str, to: &str| symlink(to, host.path().join(from)).unwrap();
        link("absolute", "/opt/real/runc");
        link("up", "../../../../../../opt/real");
        link("loop", "loop");
        let found = find(host.path(), &["/absolute", "/up", "/loop", "/../../opt/real/runc"]);
        assert_eq!(paths(&found), ["/absolute", "/up/runc", "/../../opt/real/runc"]);
        assert_eq!(found.failures, [("/loop".into(), Errno::LOOP)]);
        let inodes: Vec<_> = found.runtimes.iter().map(|runtime| runtime.image.ino).collect();
        assert!(inodes.iter().all(|inode| *inode == inodes[0]));
        assert_eq!(found.fact(), Fact::RuntimeImages(vec![found.runtimes[0].image]));
    }

    #[test]
    fn an_upgraded_package_is_seen_by_the_next_look() {
        let host = host(&["/bin/runc", "/bin/new"]);
        let before = find(host.path(), &["/bin"]);
        fs::rename(host.path().join("bin/new"), host.path().join("bin/runc")).unwrap();
        let after = find(host.path(), &["/bin"]);
        assert_ne!(before.fact(), after.fact());
    }

    #[test]
    fn a_root_that_cannot_be_opened_is_replaced_and_named() {
        let found = find(Path::new("/nonexistent"), &["/proc/self/exe", "/usr/bin/env"]);
        assert!(found.fallback.unwrap().starts_with("/nonexistent: "));
        assert!(found.runtimes.len() <= 1);
    }
}
