//! Techniques that reach for files, devices and sockets of the host.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, open};
use rustix::io::Errno;

use super::call::{allowed_if, errno, raw, refused};
use super::mounts::mounted_hierarchy;
use super::place::Ground;
use super::technique::{Attempt, Detection, Outcome, Sign, Stopped, Technique};
use crate::core::rules::RuleId;

const ESCAPE: (&str, &str) = ("T1611", "Escape to Host");
const NOT_OPENS: Detection = Detection::Nobody(
    "the file's owner is mapped to nobody in the pod, so its mode denies it and no capability over the host is asked \
     for; opens of files are not judged",
);
/// Where container runtimes listen.
const RUNTIME_SOCKETS: [&str; 8] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/podman/podman.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/cri-dockerd.sock",
    "/host/run/containerd/containerd.sock",
];
/// Where a container may write, if anywhere.
const WRITABLE: [&str; 4] = ["/tmp", "/run", "/var/tmp", "/"];

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique {
        name: "core-pattern",
        title: "Have the kernel run a program at a core dump",
        known: "/proc/sys/kernel/core_pattern, CVE-2025-52881 (runc)",
        attack: ESCAPE,
        attempts: "Opens /proc/sys/kernel/core_pattern for writing, and writes nothing.",
        stopped: Stopped::Yes,
        with_userns: "EACCES: the file is the host's root's; or EROFS, as runtimes mount it",
        without_userns: "EROFS; allowed in privileged pods",
        detection: NOT_OPENS,
        harmless: true,
        run: core_pattern,
    },
    Technique {
        name: "modprobe-path",
        title: "Have the kernel run a program at the loading of a module",
        known: "/proc/sys/kernel/modprobe",
        attack: ESCAPE,
        attempts: "Opens /proc/sys/kernel/modprobe for writing, and writes nothing.",
        stopped: Stopped::Yes,
        with_userns: "EACCES: the file is the host's root's; or EROFS, as runtimes mount it",
        without_userns: "EROFS; allowed in privileged pods",
        detection: NOT_OPENS,
        harmless: true,
        run: modprobe_path,
    },
    Technique {
        name: "release-agent",
        title: "Have the kernel run a program when a cgroup is empty",
        known: "CVE-2022-0492, CDK mount-cgroup",
        attack: ESCAPE,
        attempts: "Opens the release_agent of a cgroup v1 hierarchy for writing, one that is mounted or one that it mounts \
                   where nobody else sees it, and writes nothing.",
        stopped: Stopped::Yes,
        with_userns: "EPERM or EACCES: the file is the host's root's",
        without_userns: "allowed where a hierarchy is mounted for writing, or may be with CAP_SYS_ADMIN",
        detection: NOT_OPENS,
        harmless: true,
        run: release_agent,
    },
    Technique {
        name: "raw-disk",
        title: "Read a disk of the host",
        known: "/dev/sda",
        attack: ESCAPE,
        attempts: "Opens the first disk below /dev for reading, reads nothing and closes it.",
        stopped: Stopped::Yes,
        with_userns: "EACCES: the device is the host's root's",
        without_userns: "EPERM by the device cgroup; allowed in privileged pods",
        detection: NOT_OPENS,
        harmless: true,
        run: raw_disk,
    },
    Technique {
        name: "device-node",
        title: "Make a device",
        known: "mknod",
        attack: ESCAPE,
        attempts: "Makes the character device 1:3, which is /dev/null, in a directory of its own, and removes both.",
        stopped: Stopped::Yes,
        with_userns: "EPERM: it takes CAP_MKNOD over the host",
        without_userns: "allowed with CAP_MKNOD, which is among the default capabilities",
        detection: Detection::Nobody(
            "denied CAP_MKNOD over the host is left out: package managers ask for it and do without",
        ),
        harmless: true,
        run: device_node,
    },
    Technique {
        name: "file-handle",
        title: "Open a file of the host by its handle",
        known: "shocker, CDK cap-dac-read-search",
        attack: ESCAPE,
        attempts: "Asks with open_by_handle_at for the root directory of the file system that /etc/hosts is on, and closes it.",
        stopped: Stopped::Yes,
        with_userns: "EPERM: it takes CAP_DAC_READ_SEARCH over the host",
        without_userns: "allowed with CAP_DAC_READ_SEARCH",
        detection: Detection::By(RuleId::I11, &[Sign::Capability("CAP_DAC_READ_SEARCH")]),
        harmless: true,
        run: file_handle,
    },
    Technique {
        name: "runtime-socket",
        title: "Talk to the container runtime",
        known: "docker.sock",
        attack: ("T1609", "Container Administration Command"),
        attempts: "Connects to the first socket of a container runtime that is there, and says nothing.",
        stopped: Stopped::Partly,
        with_userns: "EACCES, if only the host's root may connect; a socket that is open to all stays so",
        without_userns: "allowed if it is mounted into the pod",
        detection: Detection::Nobody(
            "the socket's mode denies it and no capability over the host is asked for; connections are not judged",
        ),
        harmless: true,
        run: runtime_socket,
    },
];

/// Opens a file for writing, without creating or cutting it, and closes it.
fn open_for_writing(path: &Path) -> Attempt {
    allowed_if(open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()), "open", &[])
}

fn core_pattern(_: &Ground) -> Attempt {
    open_for_writing(Path::new("/proc/sys/kernel/core_pattern"))
}

fn modprobe_path(_: &Ground) -> Attempt {
    open_for_writing(Path::new("/proc/sys/kernel/modprobe"))
}

fn release_agent(_: &Ground) -> Attempt {
    let mounted = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let agents = mounted.map(|entry| entry.path().join("release_agent"));
    match agents.into_iter().find(|path| path.exists()) {
        Some(path) => open_for_writing(&path),
        None => open_for_writing(&mounted_hierarchy()?.join("release_agent")),
    }
}

/// The first block device in a directory, by name.
fn first_disk(dir: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?.flatten();
    let disks = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_block_device()));
    disks.map(|entry| entry.path()).min()
}

fn raw_disk(_: &Ground) -> Attempt {
    let none = || Outcome::OutOfReach("there is no disk below /dev".to_owned());
    let disk = first_disk(Path::new("/dev")).ok_or_else(none)?;
    allowed_if(open(&disk, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()), "open", &[])
}

/// A directory that goes with its value.
struct Scratch(PathBuf);

impl Scratch {
    /// In the first place that can be written to.
    fn new() -> Result<Self, Outcome> {
        let name = format!("userns-agent-{}", std::process::id());
        let paths = WRITABLE.map(|place| Path::new(place).join(&name));
        let made = paths.into_iter().find(|path| fs::DirBuilder::new().mode(0o700).create(path).is_ok());
        made.map(Self).ok_or_else(|| Outcome::Unsupported("no directory can be written to".to_owned()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // nothing but what was made is in there
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn device_node(_: &Ground) -> Attempt {
    let scratch = Scratch::new()?;
    let made = mknodat(CWD, scratch.0.join("null"), FileType::CharacterDevice, Mode::empty(), makedev(1, 3));
    allowed_if(made, "mknodat", &[])
}

/// struct file_handle with the handle of inode 2, generation 0: the root directory of most file systems
/// (FILEID_INO32_GEN, include/linux/exportfs.h).
#[repr(C)]
struct RootHandle {
    bytes: u32,
    kind: i32,
    inode: u32,
    generation: u32,
}

fn file_handle(_: &Ground) -> Attempt {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let on = open("/etc/hosts", flags, Mode::empty()).or_else(|_| open("/", flags, Mode::empty()));
    let on = on.map_err(refused("open"))?;
    let mut handle = RootHandle { bytes: 8, kind: 1, inode: 2, generation: 0 };
    let arguments =
        [on.as_raw_fd().into(), (&raw mut handle) as libc::c_long, libc::O_RDONLY.into(), 0, 0, 0];
    // SAFETY: the handle is as long as it says and lives until the end of the function; the descriptor that may be
    // made is closed with this process.
    let opened = unsafe { raw(libc::SYS_open_by_handle_at, arguments) };
    allowed_if(opened, "open_by_handle_at", &[])
}

fn runtime_socket(_: &Ground) -> Attempt {
    let is_socket = |path: &&&str| fs::metadata(path).is_ok_and(|stat| stat.file_type().is_socket());
    let Some(path) = RUNTIME_SOCKETS.iter().find(is_socket) else {
        return Err(Outcome::OutOfReach("no socket of a container runtime is in sight".to_owned()));
    };
    match UnixStream::connect(path).map_err(|error| errno(&error)) {
        Err(Errno::CONNREFUSED) => Err(Outcome::OutOfReach(format!("nobody listens on {path}"))),
        connected => allowed_if(connected, "connect", &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_directory_goes_with_what_is_in_it() {
        let scratch = Scratch::new().unwrap();
        let path = scratch.0.clone();
        fs::write(path.join("x"), "").unwrap();
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_without_disks_has_no_first_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("sda"), "").unwrap();
        assert_eq!(first_disk(dir.path()), None);
    }
}
