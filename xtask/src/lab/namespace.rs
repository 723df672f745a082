//! A private mount namespace for the runtimes.
//!
//! runc and crun must find a pure cgroup v2 at `/sys/fs/cgroup` and their libraries in `/usr/lib`, neither of
//! which the machine needs to have. No mount made for them is visible on the host, and the kernel takes them
//! all away with the last process and file descriptor of the namespace, however the lab ends.

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::Command,
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A mount namespace held open by a file descriptor.
#[derive(Debug, Clone)]
pub(super) struct MountNamespace {
    fd: Arc<OwnedFd>,
}

/// Runs `work` on a thread in the network namespace of the process `pid`.
pub(super) fn in_network_of<T: Send>(pid: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let path = format!("/proc/{pid}/ns/net");
    let namespace = File::open(&path).with_context(|| format!("no {path}"))?;
    in_thread(|| {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter {path}"))?;
        work()
    })
}

impl MountNamespace {
    /// That of the process `pid`.
    pub(super) fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/ns/mnt");
        let namespace = File::open(&path).with_context(|| format!("no {path}"))?;
        Ok(Self { fd: Arc::new(namespace.into()) })
    }

    /// A copy of the host's mounts, with the libraries of the package tree `tree` added to the machine's.
    pub(super) fn new(tree: &Path) -> Result<Self> {
        let fd = in_thread(|| {
            // SAFETY: the flags leave the table of file descriptors shared with the other threads.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("cannot create a mount namespace")?;
            let quiet = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
            mount_change("/", quiet).context("cannot keep mounts from propagating to the host")?;
            for library_dir in ["lib", "lib64"] {
                add_libraries(tree, library_dir)?;
            }
            let namespace = File::open("/proc/thread-self/ns/mnt").context("no handle to the namespace")?;
            Ok(OwnedFd::from(namespace))
        })?;
        Ok(Self { fd: Arc::new(fd) })
    }

    /// Shows the cgroup v2 hierarchy mounted at `cgroup_root` at `/sys/fs/cgroup`.
    pub(super) fn bind_cgroup2(&self, cgroup_root: &Path) -> Result<()> {
        let usual = Path::new("/sys/fs/cgroup");
        if cgroup_root == usual {
            return Ok(());
        }
        self.run(|| mount_bind(cgroup_root, usual).context("cannot bind cgroup v2 over /sys/fs/cgroup"))
    }

    /// Runs `work` on a thread inside the namespace; its working directory is `/`.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        in_thread(|| {
            // SAFETY: the flags leave the table of file descriptors shared with the other threads.
            unsafe { unshare_unsafe(UnshareFlags::FS) }.context("cannot leave the process's directories")?;
            enter(&self.fd).context("cannot enter the lab's mount namespace")?;
            work()
        })
    }

    /// A command that starts inside the namespace, in `/` and with an almost empty environment.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", SEARCH_PATH).env("LC_ALL", "C");
        let fd = Arc::clone(&self.fd);
        // SAFETY: between fork and exec the closure only makes one system call.
        unsafe { command.pre_exec(move || enter(&fd)) };
        command
    }
}

fn enter(namespace: &OwnedFd) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?)
}

/// A mount namespace belongs to a thread: changing it must not happen on one of the caller's.
pub(super) fn in_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| scope.spawn(work).join())
        .map_err(|_panic| anyhow!("the thread in the mount namespace panicked"))?
}

/// Lays `<tree>/lib` and `<tree>/usr/lib` over `/usr/lib`.
fn add_libraries(tree: &Path, library_dir: &str) -> Result<()> {
    let machine = Path::new("/usr").join(library_dir);
    let mut layers = vec![tree.join(library_dir), tree.join("usr").join(library_dir)];
    layers.retain(|layer| layer.is_dir());
    if layers.is_empty() || !machine.is_dir() {
        return Ok(());
    }
    layers.push(machine.clone());
    overlay(&format!("lowerdir={}", join(&layers)?), &machine)
}

/// Mounts an overlay with `options` at `target`.
pub(super) fn overlay(options: &str, target: &Path) -> Result<()> {
    let data = CString::new(options).context("overlay options with a NUL byte")?;
    mount("overlay", target, "overlay", MountFlags::empty(), data.as_c_str())
        .with_context(|| format!("cannot mount the overlay {options} at {}", target.display()))
}

fn join(layers: &[std::path::PathBuf]) -> Result<String> {
    let names: Option<Vec<&str>> =
        layers.iter().map(|layer| layer.to_str().filter(|name| !name.contains([':', ',', '\\']))).collect();
    Ok(names.with_context(|| format!("overlayfs cannot take one of the paths {layers:?}"))?.join(":"))
}
