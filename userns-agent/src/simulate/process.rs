//! Techniques that reach for processes of the host.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};
use rustix::thread::{move_into_link_name_space, move_into_thread_name_spaces};

use super::call::{allowed_if, argument, errno, raw, refused};
use super::place::Ground;
use super::technique::{Attempt, Detection, Outcome, Sign, Stopped, Technique};
use crate::core::rules::RuleId;

const ESCAPE: (&str, &str) = ("T1611", "Escape to Host");
const PROC: (&str, &str) = ("T1003.007", "OS Credential Dumping: Proc Filesystem");
const PTRACE: (&str, &str) = ("T1055.008", "Process Injection: Ptrace System Calls");
const BY_PTRACE: Detection = Detection::By(RuleId::I11, &[Sign::Capability("CAP_SYS_PTRACE")]);
const BY_SETNS: Detection =
    Detection::By(RuleId::I11, &[Sign::Call("setns"), Sign::Capability("CAP_SYS_PTRACE")]);
const NOT_OPENS: Detection = Detection::Nobody(
    "the file's owner is mapped to nobody in the pod, so its mode denies it and no capability over the host is asked \
     for; opens of files are not judged",
);

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique {
        name: "proc-namespaces",
        title: "Join the namespaces of process 1",
        known: "nsenter -t 1",
        attack: ESCAPE,
        attempts: "Opens /proc/PID/ns/mnt of a process of the host, or of process 1 if none is in sight, and joins it \
                   with setns.",
        stopped: Stopped::Yes,
        with_userns: "EACCES or EPERM: it takes CAP_SYS_PTRACE and CAP_SYS_ADMIN over the host",
        without_userns: "allowed with the host's PID namespace and CAP_SYS_ADMIN, as privileged pods have",
        detection: BY_SETNS,
        harmless: true,
        run: proc_namespaces,
    },
    Technique {
        name: "pidfd-namespaces",
        title: "Join namespaces by a process descriptor",
        known: "setns(pidfd, CLONE_NEWNS)",
        attack: ESCAPE,
        attempts: "Opens a descriptor of the same process with pidfd_open, and joins its mount namespace by that.",
        stopped: Stopped::Yes,
        with_userns: "EPERM: it takes CAP_SYS_PTRACE and CAP_SYS_ADMIN over the host",
        without_userns: "allowed with the host's PID namespace and CAP_SYS_ADMIN",
        detection: BY_SETNS,
        harmless: true,
        run: pidfd_namespaces,
    },
    Technique {
        name: "process-environ",
        title: "Read the environment of a process of the host",
        known: "/proc/1/environ",
        attack: PROC,
        attempts: "Opens /proc/PID/environ of a process of the host and reads one byte, which is forgotten.",
        stopped: Stopped::Yes,
        with_userns: "EACCES: the file belongs to a user who is nobody in the pod",
        without_userns: "allowed with the host's PID namespace",
        detection: NOT_OPENS,
        harmless: true,
        run: process_environ,
    },
    Technique {
        name: "process-root",
        title: "Reach the host's files through a process",
        known: "/proc/1/root, /proc/1/cwd",
        attack: ESCAPE,
        attempts: "Opens the directory /proc/PID/root of a process of the host.",
        stopped: Stopped::Yes,
        with_userns: "EACCES: it takes CAP_SYS_PTRACE over the host",
        without_userns: "allowed with the host's PID namespace",
        detection: BY_PTRACE,
        harmless: true,
        run: process_root,
    },
    Technique {
        name: "process-memory",
        title: "Open the memory of a process of the host",
        known: "/proc/1/mem",
        attack: PTRACE,
        attempts: "Opens /proc/PID/mem of a process of the host for reading, and reads nothing.",
        stopped: Stopped::Yes,
        with_userns: "EACCES: the file belongs to a user who is nobody in the pod",
        without_userns: "allowed with the host's PID namespace",
        detection: NOT_OPENS,
        harmless: true,
        run: process_memory,
    },
    Technique {
        name: "process-executable",
        title: "Overwrite the executable of a process of the host",
        known: "CVE-2019-5736 (runc)",
        attack: ESCAPE,
        attempts: "Opens /proc/PID/exe of a process of the host for writing, which cannot succeed while it runs.",
        stopped: Stopped::Yes,
        with_userns: "EACCES: it takes CAP_SYS_PTRACE over the host, and the file is the host's root's",
        without_userns: "ETXTBSY until the process ends, and then allowed",
        detection: BY_PTRACE,
        harmless: true,
        run: process_executable,
    },
    Technique {
        name: "ptrace-seize",
        title: "Trace a process of the host",
        known: "PTRACE_SEIZE",
        attack: PTRACE,
        attempts: "Asks to trace a process of the host with PTRACE_SEIZE, which does not stop it, and lets it go.",
        stopped: Stopped::Yes,
        with_userns: "EPERM: it takes CAP_SYS_PTRACE over the host",
        without_userns: "allowed with the host's PID namespace and CAP_SYS_PTRACE; not tried there",
        detection: BY_PTRACE,
        harmless: false,
        run: ptrace_seize,
    },
    Technique {
        name: "process-vm-read",
        title: "Read the memory of a process of the host",
        known: "process_vm_readv",
        attack: PTRACE,
        attempts: "Asks for one byte at address 0 of a process of the host, where nothing is.",
        stopped: Stopped::Yes,
        with_userns: "EPERM: it takes CAP_SYS_PTRACE over the host",
        without_userns: "allowed with the host's PID namespace and CAP_SYS_PTRACE",
        detection: BY_PTRACE,
        harmless: true,
        run: process_vm_read,
    },
    Technique {
        name: "pidfd-getfd",
        title: "Take a descriptor from a process of the host",
        known: "pidfd_getfd",
        attack: PTRACE,
        attempts: "Asks for a descriptor of a process of the host that does not exist.",
        stopped: Stopped::Yes,
        with_userns: "EPERM: it takes CAP_SYS_PTRACE over the host",
        without_userns: "allowed with the host's PID namespace and CAP_SYS_PTRACE",
        detection: BY_PTRACE,
        harmless: true,
        run: take_descriptor,
    },
];

fn foreign(ground: &Ground) -> Result<i32, Outcome> {
    let hidden = "no process of others is in sight: the PID namespace hides them";
    ground.foreign.ok_or_else(|| Outcome::OutOfReach(hidden.to_owned()))
}

/// What joining the namespaces of process 1 says, if that is the container's own.
fn of_process_1(ground: &Ground) -> Attempt {
    let own = "process 1 is the container's own: the PID namespace hides the host's";
    ground.foreign.map(|_| ()).ok_or_else(|| Outcome::OutOfReach(own.to_owned()))
}

fn open(pid: i32, file: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    openat(CWD, format!("/proc/{pid}/{file}"), flags | OFlags::CLOEXEC, Mode::empty())
}

fn proc_namespaces(ground: &Ground) -> Attempt {
    let namespace = open(ground.foreign.unwrap_or(1), "ns/mnt", OFlags::RDONLY).map_err(refused("openat"))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount)).map_err(refused("setns"))?;
    of_process_1(ground)
}

fn descriptor(pid: i32) -> Result<OwnedFd, Outcome> {
    let pid = Pid::from_raw(pid).ok_or_else(|| Outcome::Unsupported("no process has that id".into()))?;
    pidfd_open(pid, PidfdFlags::empty()).map_err(refused("pidfd_open"))
}

fn pidfd_namespaces(ground: &Ground) -> Attempt {
    let process = descriptor(ground.foreign.unwrap_or(1))?;
    move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::MOUNT).map_err(refused("setns"))?;
    of_process_1(ground)
}

fn process_environ(ground: &Ground) -> Attempt {
    let file = File::from(open(foreign(ground)?, "environ", OFlags::RDONLY).map_err(refused("openat"))?);
    std::io::Read::read(&mut &file, &mut [0; 1]).map_err(|error| refused("read")(errno(&error)))?;
    Ok(())
}

fn process_root(ground: &Ground) -> Attempt {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    allowed_if(open(foreign(ground)?, "root", flags), "openat", &[])
}

fn process_memory(ground: &Ground) -> Attempt {
    allowed_if(open(foreign(ground)?, "mem", OFlags::RDONLY), "openat", &[])
}

fn process_executable(ground: &Ground) -> Attempt {
    allowed_if(open(foreign(ground)?, "exe", OFlags::WRONLY), "openat", &[Errno::TXTBSY])
}

fn ptrace_seize(ground: &Ground) -> Attempt {
    let arguments = [argument(libc::PTRACE_SEIZE), foreign(ground)?.into(), 0, 0, 0, 0];
    // SAFETY: no pointers. The kernel lets the other process go when this one ends.
    allowed_if(unsafe { raw(libc::SYS_ptrace, arguments) }, "ptrace", &[])
}

fn process_vm_read(ground: &Ground) -> Attempt {
    let pid = foreign(ground)?;
    let mut byte = 0_u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 };
    // SAFETY: one byte may be written to `byte`; the other address is the other process's.
    let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    let result = if read < 0 { Err(errno(&std::io::Error::last_os_error())) } else { Ok(()) };
    allowed_if(result, "process_vm_readv", &[Errno::FAULT])
}

fn take_descriptor(ground: &Ground) -> Attempt {
    let process = descriptor(foreign(ground)?)?;
    let taken = pidfd_getfd(process.as_fd(), i32::MAX, PidfdGetfdFlags::empty());
    allowed_if(taken.map(|fd| fd.as_raw_fd()), "pidfd_getfd", &[Errno::BADF])
}
