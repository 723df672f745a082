//! Idmapped mounts: the files of a root file system shown with the IDs of a pod's user namespace.
//!
//! This is what containerd does for each root file system, with a throw-away user namespace of the pod's map.

use std::{
    fs::{self, File},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use rustix::{
    fs::CWD,
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
    thread::{UnshareFlags, unshare_unsafe},
};

use super::ids::IdMapping;

const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// `struct mount_attr` of `<linux/mount.h>`.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Mounts `source` at `target`, its IDs shifted by `mapping`. `sleeper` is a program that runs for a while.
///
/// The file system of `source` must support it: tmpfs does from Linux 6.3 on, overlayfs from 7.3 on.
pub(super) fn mount_idmapped(
    source: &Path,
    target: &Path,
    mapping: &[IdMapping],
    sleeper: &mut Command,
) -> Result<()> {
    let user_namespace = throw_away_user_namespace(mapping, sleeper)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, source, flags).with_context(|| format!("cannot clone {}", source.display()))?;
    set_idmap(&tree, &user_namespace)
        .with_context(|| format!("the file system of {} takes no idmapped mounts", source.display()))?;
    move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("cannot mount at {}", target.display()))
}

fn set_idmap(mount: &OwnedFd, user_namespace: &OwnedFd) -> Result<()> {
    let attributes = MountAttr {
        attr_set: MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(user_namespace.as_raw_fd())?,
    };
    // SAFETY: the path is NUL-terminated, and `attributes` lives through the call with the size passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if result != 0 {
        return Err(std::io::Error::last_os_error()).context("mount_setattr");
    }
    Ok(())
}

fn throw_away_user_namespace(mapping: &[IdMapping], sleeper: &mut Command) -> Result<OwnedFd> {
    sleeper.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: between fork and exec the closure only makes one system call, in a process of one thread.
    unsafe { sleeper.pre_exec(|| Ok(unshare_unsafe(UnshareFlags::NEWUSER)?)) };
    let mut child = sleeper.spawn().context("cannot start a process in a new user namespace")?;
    let namespace = map_and_open(&child, mapping);
    child.kill().and_then(|()| child.wait()).context("cannot end the throw-away user namespace")?;
    namespace
}

fn map_and_open(child: &Child, mapping: &[IdMapping]) -> Result<OwnedFd> {
    let proc = Path::new("/proc").join(child.id().to_string());
    let lines: String = mapping
        .iter()
        .map(|range| format!("{} {} {}\n", range.container_id, range.host_id, range.length))
        .collect();
    for file in ["uid_map", "gid_map"] {
        fs::write(proc.join(file), &lines).with_context(|| format!("cannot write {file} {lines:?}"))?;
    }
    let namespace = File::open(proc.join("ns/user")).context("no handle to the user namespace")?;
    Ok(namespace.into())
}
