//! Techniques that mount, in a mount namespace that ends with the attempt.
//!
//! Where the kernel refuses a private mount namespace, the mount is asked for in a form that cannot succeed: an option that
//! the file system does not know, which the kernel looks at after the permission.

use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, MountFlags, fsconfig_set_string, fsopen, mount};

use super::call::{allowed_if, errno, raw, refused};
use super::namespaces::unshare_mounts;
use super::place::Ground;
use super::technique::{Attempt, Detection, Outcome, Sign, Stopped, Technique};
use crate::core::rules::RuleId;

const ESCAPE: (&str, &str) = ("T1611", "Escape to Host");
const EXPLOIT: (&str, &str) = ("T1068", "Exploitation for Privilege Escalation");
/// include/uapi/linux/mount.h
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
/// What no file system knows.
const IMPOSSIBLE: &str = "userns-agent-impossible=1";
const OVER_ITS_OWN: Detection = Detection::Nobody(
    "CAP_SYS_ADMIN is asked for over the pod's own user namespace, where it is the pod's affair",
);

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique {
        name: "mount-tmpfs",
        title: "Mount a file system",
        known: "mount -t tmpfs",
        attack: ESCAPE,
        attempts: "Mounts a tmpfs, in a private mount namespace if it may make one.",
        stopped: Stopped::No,
        with_userns: "EPERM with default capabilities; allowed with CAP_SYS_ADMIN, over the pod's own namespaces",
        without_userns: "EPERM with default capabilities; allowed with CAP_SYS_ADMIN",
        detection: OVER_ITS_OWN,
        harmless: true,
        run: mount_tmpfs,
    },
    Technique {
        name: "mount-cgroup-v1",
        title: "Mount a cgroup v1 hierarchy",
        known: "CDK mount-cgroup, CVE-2022-0492",
        attack: ESCAPE,
        attempts: "Mounts a cgroup v1 hierarchy that the host has, in a private mount namespace if it may make one.",
        stopped: Stopped::Partly,
        with_userns: "EPERM with default capabilities; with CAP_SYS_ADMIN allowed, for the pod's own part of it",
        without_userns: "EPERM with default capabilities; allowed with CAP_SYS_ADMIN",
        detection: OVER_ITS_OWN,
        harmless: true,
        run: mount_cgroup_v1,
    },
    Technique {
        name: "mount-disk",
        title: "Mount a disk of the host",
        known: "CDK mount-disk",
        attack: ESCAPE,
        attempts: "Asks to mount a file system that needs a disk, of a device that does not exist.",
        stopped: Stopped::Yes,
        with_userns: "EPERM: only the host may mount such a file system",
        without_userns: "allowed with CAP_SYS_ADMIN, as privileged pods have",
        detection: Detection::Sometimes(
            RuleId::I11,
            &[Sign::During("CAP_SYS_ADMIN", "mount")],
            "only in a pod with CAP_SYS_ADMIN in its own namespace: without, the kernel does not get as far as asking \
             for it over the host",
        ),
        harmless: true,
        run: mount_disk,
    },
    Technique {
        name: "fsconfig",
        title: "Configure a file system that is not mounted",
        known: "CVE-2022-0185",
        attack: EXPLOIT,
        attempts: "Opens a context of a file system with fsopen and sets one short option with fsconfig; mounts nothing.",
        stopped: Stopped::No,
        with_userns: "EPERM with default capabilities; allowed with CAP_SYS_ADMIN, also in a nested user namespace",
        without_userns: "the same",
        detection: OVER_ITS_OWN,
        harmless: true,
        run: fsconfig,
    },
    Technique {
        name: "idmapped-mount",
        title: "Map the ids of a mount",
        known: "mount_setattr(MOUNT_ATTR_IDMAP)",
        attack: ESCAPE,
        attempts: "Asks for an id map on the container's root mount, which cannot be given while it is mounted.",
        stopped: Stopped::Yes,
        with_userns: "EPERM: it takes CAP_SYS_ADMIN over the user namespace that mounted the file system",
        without_userns: "EPERM or EINVAL in this form; allowed with CAP_SYS_ADMIN for a mount that is being made",
        detection: Detection::By(RuleId::I11, &[Sign::Call("mount_setattr")]),
        harmless: true,
        run: idmapped_mount,
    },
];

/// Mounts `kind` over `/`, so that no directory is needed, where no other process sees it; or asks in vain.
fn try_mount(kind: &str, options: &str) -> Attempt {
    let mount = |options: &str| {
        let options = CString::new(options).map_err(|_| Errno::INVAL)?;
        mount("none", "/", kind, MountFlags::empty(), Some(options.as_c_str()))
    };
    match unshare_mounts() {
        Ok(()) => mount(options).map_err(refused("mount")),
        Err(_) => {
            let separator = if options.is_empty() { "" } else { "," };
            allowed_if(mount(&format!("{options}{separator}{IMPOSSIBLE}")), "mount", &[Errno::INVAL])
        }
    }
}

fn mount_tmpfs(_: &Ground) -> Attempt {
    try_mount("tmpfs", "")
}

/// The controllers of a hierarchy that is there. Asking for others would make one, or take them from cgroup v2.
fn hierarchy() -> Option<String> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let controllers = |line: &str| line.split(':').nth(1).map(str::to_owned);
    text.lines().filter_map(controllers).find(|names| !names.is_empty() && !names.contains('='))
}

fn no_hierarchy() -> Outcome {
    Outcome::OutOfReach("the host has no cgroup v1 hierarchy".to_owned())
}

fn mount_cgroup_v1(_: &Ground) -> Attempt {
    try_mount("cgroup", &hierarchy().ok_or_else(no_hierarchy)?)
}

/// Mounts a cgroup v1 hierarchy where no other process sees it. `/` itself stays what it was for paths, which begin at
/// the mount that was there before; so the place is one that every container has.
pub(super) fn mounted_hierarchy() -> Result<PathBuf, Outcome> {
    let (controllers, place) = (hierarchy().ok_or_else(no_hierarchy)?, PathBuf::from("/proc"));
    let options = CString::new(controllers).map_err(|_| no_hierarchy())?;
    unshare_mounts()?;
    mount("none", &place, "cgroup", MountFlags::empty(), Some(options.as_c_str()))
        .map_err(refused("mount"))?;
    Ok(place)
}

/// A file system of a disk that the kernel has already: asking for another would load a module.
fn disk_file_system() -> Result<String, Outcome> {
    let text = fs::read_to_string("/proc/filesystems")
        .map_err(|error| refused("read /proc/filesystems")(errno(&error)))?;
    let of_disks: Vec<_> = text.lines().filter_map(|line| line.strip_prefix('\t')).collect();
    let known = ["ext4", "xfs", "btrfs", "ext3", "ext2", "vfat", "iso9660"];
    let found = known.iter().find(|name| of_disks.contains(name));
    let none = || Outcome::Unsupported("the kernel has no file system of disks".to_owned());
    found.map(|name| (*name).to_owned()).ok_or_else(none)
}

fn mount_disk(_: &Ground) -> Attempt {
    let device = "/dev/userns-agent-no-such-disk";
    let mounted = mount(device, "/", disk_file_system()?.as_str(), MountFlags::RDONLY, None);
    allowed_if(mounted, "mount", &[Errno::NOENT])
}

fn fsconfig(_: &Ground) -> Attempt {
    let context = fsopen(disk_file_system()?, FsOpenFlags::FSOPEN_CLOEXEC).map_err(refused("fsopen"))?;
    allowed_if(fsconfig_set_string(&context, "source", "none"), "fsconfig", &[])
}

/// struct mount_attr (include/uapi/linux/mount.h)
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

fn idmapped_mount(_: &Ground) -> Attempt {
    let userns = fs::File::open("/proc/self/ns/user").map_err(|error| refused("openat")(errno(&error)))?;
    let descriptor = u64::try_from(userns.as_raw_fd()).unwrap_or(u64::MAX);
    let attributes = MountAttr { set: MOUNT_ATTR_IDMAP, clear: 0, propagation: 0, userns: descriptor };
    let (path, pointer) = (c"/", &raw const attributes);
    let size = size_of::<MountAttr>() as libc::c_long;
    let arguments =
        [libc::AT_FDCWD.into(), path.as_ptr() as libc::c_long, 0, pointer as libc::c_long, size, 0];
    // SAFETY: both pointers are to what lives until the end of the function, and the size is the structure's.
    allowed_if(unsafe { raw(libc::SYS_mount_setattr, arguments) }, "mount_setattr", &[])
}
