//! Techniques that make namespaces of their own, or change which ids are mapped.

use std::fs;
use std::io::{Read as _, Write as _, pipe};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{
    Pid, Signal, WaitOptions, fchdir, getegid, geteuid, kill_process, set_parent_process_death_signal,
    waitpid,
};
use rustix::thread::{UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::call::{allowed_if, argument, errno, raw, refused};
use super::place::Ground;
use super::technique::{Attempt, Detection, Outcome, Sign, Stopped, Technique};
use crate::core::rules::RuleId;

const ESCAPE: (&str, &str) = ("T1611", "Escape to Host");
const EXPLOIT: (&str, &str) = ("T1068", "Exploitation for Privilege Escalation");
const NOT_MAPS: Detection =
    Detection::Nobody("the kernel refuses it before any capability over the host is asked for");
const MAKES: Detection = Detection::By(RuleId::I10, &[Sign::Done("unshare_newuser")]);

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique {
        name: "nested-user-namespace",
        title: "Make a user namespace in the pod's",
        known: "the first step of CVE-2022-0185, CVE-2024-1086 and others",
        attack: EXPLOIT,
        attempts: "Makes a user namespace with unshare(CLONE_NEWUSER).",
        stopped: Stopped::No,
        with_userns: "allowed unless seccomp or a sysctl forbids it: capabilities in there are over nothing of the host, \
                      but more of the kernel can be asked",
        without_userns: "the same",
        detection: MAKES,
        harmless: true,
        run: nested,
    },
    Technique {
        name: "nested-mount",
        title: "Mount in a nested user namespace",
        known: "CVE-2023-0386 and CVE-2021-3493 (overlayfs)",
        attack: EXPLOIT,
        attempts: "Makes a user and a mount namespace, maps its own user to root in there, and mounts a tmpfs.",
        stopped: Stopped::No,
        with_userns: "allowed unless seccomp or a sysctl forbids it; the mount is seen by this process alone",
        without_userns: "the same",
        detection: MAKES,
        harmless: true,
        run: nested_mount,
    },
    Technique {
        name: "map-rewrite",
        title: "Map the pod's ids anew",
        known: "/proc/self/uid_map",
        attack: ESCAPE,
        attempts: "Writes a map of all ids to its own /proc/self/uid_map, which can be written once.",
        stopped: Stopped::Yes,
        with_userns: "EPERM: the map stands",
        without_userns: "EPERM: the host's map stands as well",
        detection: NOT_MAPS,
        harmless: true,
        run: map_rewrite,
    },
    Technique {
        name: "map-foreign-id",
        title: "Map an id that is not the pod's",
        known: "newuidmap",
        attack: ESCAPE,
        attempts: "Makes a nested user namespace and maps the first user above the pod's to root in there.",
        stopped: Stopped::Yes,
        with_userns: "EPERM: an id that the pod does not have cannot be handed on",
        without_userns: "allowed with CAP_SETUID: every id is mapped",
        detection: NOT_MAPS,
        harmless: true,
        run: map_foreign_id,
    },
    Technique {
        name: "setgroups-allow",
        title: "Drop groups that deny",
        known: "CVE-2014-8989",
        attack: EXPLOIT,
        attempts: "In a nested user namespace whose /proc/self/setgroups says deny, writes allow.",
        stopped: Stopped::Yes,
        with_userns: "EPERM: what was denied stays so",
        without_userns: "EPERM as well",
        detection: NOT_MAPS,
        harmless: true,
        run: setgroups_allow,
    },
    Technique {
        name: "unmapped-user",
        title: "Become a user who is not the pod's",
        known: "setresuid",
        attack: ESCAPE,
        attempts: "Asks with setresuid to become the first user above those mapped into the pod.",
        stopped: Stopped::Yes,
        with_userns: "EINVAL: there is no such user",
        without_userns: "allowed with CAP_SETUID: every user is there",
        detection: NOT_MAPS,
        harmless: true,
        run: unmapped_user,
    },
    Technique {
        name: "mount-namespace",
        title: "Make a mount namespace",
        known: "unshare -m",
        attack: ESCAPE,
        attempts: "Makes a mount namespace with unshare(CLONE_NEWNS).",
        stopped: Stopped::No,
        with_userns: "EPERM with default capabilities; allowed with CAP_SYS_ADMIN, over the pod's own namespaces",
        without_userns: "EPERM with default capabilities; allowed with CAP_SYS_ADMIN, which is then the host's",
        detection: Detection::By(RuleId::I11, &[Sign::Call("unshare")]),
        harmless: true,
        run: mount_namespace,
    },
    Technique {
        name: "leaked-namespace",
        title: "Join a namespace by a leaked descriptor",
        known: "a descriptor passed through a socket or left open",
        attack: ESCAPE,
        attempts: "Joins the namespace that the descriptor of --leaked-fd is of.",
        stopped: Stopped::Yes,
        with_userns: "EPERM: it takes CAP_SYS_ADMIN over the host",
        without_userns: "allowed with CAP_SYS_ADMIN",
        detection: Detection::By(RuleId::I11, &[Sign::Call("setns")]),
        harmless: true,
        run: leaked_namespace,
    },
    Technique {
        name: "leaked-directory",
        title: "Change to a leaked directory",
        known: "CVE-2024-21626 (runc)",
        attack: ESCAPE,
        attempts: "Changes to the directory that the descriptor of --leaked-fd is of, and opens etc/shadow from there.",
        stopped: Stopped::Partly,
        with_userns: "the change is allowed; opening what is the host's root's alone is EACCES",
        without_userns: "allowed",
        detection: Detection::By(RuleId::I14, &[Sign::Finding]),
        harmless: true,
        run: leaked_directory,
    },
];

pub(super) fn unshare(flags: UnshareFlags) -> Result<(), Outcome> {
    // SAFETY: this process has one thread and ends after the attempt; no table of descriptors is unshared.
    unsafe { unshare_unsafe(flags) }.map_err(|errno| match errno {
        // as many as there may be: the sysctl user.max_user_namespaces says so
        rustix::io::Errno::NOSPC => {
            Outcome::Denied { errno: errno.raw_os_error(), call: "unshare".to_owned() }
        }
        errno => refused("unshare")(errno),
    })
}

/// Makes a mount namespace whose mounts nobody else sees.
pub(super) fn unshare_mounts() -> Result<(), Outcome> {
    unshare(UnshareFlags::NEWNS)?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).map_err(refused("mount"))
}

fn write(file: &str, text: &str) -> Result<(), Outcome> {
    fs::OpenOptions::new()
        .write(true)
        .open(file)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| refused("write")(errno(&error)))
}

fn nested(_: &Ground) -> Attempt {
    unshare(UnshareFlags::NEWUSER)
}

fn nested_mount(_: &Ground) -> Attempt {
    let user = geteuid().as_raw();
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)?;
    write("/proc/self/uid_map", &format!("0 {user} 1"))?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .map_err(refused("mount"))?;
    mount("none", "/", "tmpfs", MountFlags::empty(), None).map_err(refused("mount"))
}

fn map_rewrite(_: &Ground) -> Attempt {
    write("/proc/self/uid_map", "0 0 4294967295")
}

/// The first user above those that are mapped: 65536 in a pod as kubelet makes it.
fn first_unmapped() -> u32 {
    let text = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let end = |line: &str| -> Option<u32> {
        let mut numbers = line.split_ascii_whitespace();
        let first: u32 = numbers.next()?.parse().ok()?;
        first.checked_add(numbers.nth(1)?.parse().ok()?)
    };
    // where all are mapped, one that no account has
    text.lines().filter_map(end).max().filter(|end| *end < u32::MAX - 1).unwrap_or(u32::MAX - 1 - 65_536)
}

/// Has another process in a nested user namespace whose map is written from out here: only so do capabilities over the
/// pod's own namespace count.
fn map_foreign_id(_: &Ground) -> Attempt {
    let id = first_unmapped();
    let (mut made, mut tell) = pipe().map_err(|error| refused("pipe2")(errno(&error)))?;
    // SAFETY: there is one thread, and the child never returns from here.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(refused("fork")(errno(&std::io::Error::last_os_error()))),
        0 => {
            drop(made);
            let outcome = unshare(UnshareFlags::NEWUSER).err().unwrap_or(Outcome::Allowed);
            // its parent kills it, or has ended
            let _ = set_parent_process_death_signal(Some(Signal::KILL))
                .map(|()| tell.write_all(&outcome.encode()));
            drop(tell);
            std::thread::sleep(Duration::MAX);
            // SAFETY: ends this process, and runs nothing of its parent's.
            unsafe { libc::_exit(0) }
        }
        child => child,
    };
    drop(tell);
    let mut said = Vec::new();
    let heard = made.read_to_end(&mut said);
    let result = match (heard, Outcome::decode(&said)) {
        (Ok(_), Some(Outcome::Allowed)) => write(&format!("/proc/{child}/uid_map"), &format!("0 {id} 1")),
        (Ok(_), Some(outcome)) => Err(outcome),
        (Err(error), _) => Err(refused("read")(errno(&error))),
        (Ok(_), None) => Err(Outcome::Unsupported("its process ended without a word".to_owned())),
    };
    if let Some(child) = Pid::from_raw(child) {
        // it is there until it is waited for
        let _ = kill_process(child, Signal::KILL).and_then(|()| waitpid(Some(child), WaitOptions::empty()));
    }
    result
}

fn setgroups_allow(_: &Ground) -> Attempt {
    let group = getegid().as_raw();
    unshare(UnshareFlags::NEWUSER)?;
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/gid_map", &format!("0 {group} 1"))?;
    write("/proc/self/setgroups", "allow")
}

fn unmapped_user(_: &Ground) -> Attempt {
    let user = argument(first_unmapped());
    // SAFETY: no pointers; it changes this process alone, which ends after the attempt.
    match unsafe { raw(libc::SYS_setresuid, [user, user, user, 0, 0, 0]) } {
        Err(errno) => Err(Outcome::Denied { errno: errno.raw_os_error(), call: "setresuid".to_owned() }),
        Ok(_) => Ok(()),
    }
}

fn mount_namespace(_: &Ground) -> Attempt {
    unshare(UnshareFlags::NEWNS)
}

/// The descriptor that was left open, if it is of the type that is wanted.
fn leaked(ground: &Ground, wanted: u32, what: &str) -> Result<BorrowedFd<'static>, Outcome> {
    let Some(fd) = ground.leaked else {
        return Err(Outcome::OutOfReach("no descriptor was given with --leaked-fd".to_owned()));
    };
    // SAFETY: nothing closes it in this process; one that is not open gives EBADF.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let stat = rustix::fs::fstat(fd).map_err(|errno| Outcome::OutOfReach(format!("--leaked-fd: {errno}")))?;
    if stat.st_mode & libc::S_IFMT == wanted {
        Ok(fd)
    } else {
        Err(Outcome::OutOfReach(format!("descriptor {} is of no {what}", fd.as_raw_fd())))
    }
}

fn leaked_namespace(ground: &Ground) -> Attempt {
    let namespace = leaked(ground, libc::S_IFREG, "namespace")?;
    allowed_if(move_into_link_name_space(namespace, None), "setns", &[])
}

fn leaked_directory(ground: &Ground) -> Attempt {
    let directory = leaked(ground, libc::S_IFDIR, "directory")?;
    fchdir(directory).map_err(refused("fchdir"))?;
    let file = openat(directory, "etc/shadow", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    allowed_if(file, "openat", &[])
}
