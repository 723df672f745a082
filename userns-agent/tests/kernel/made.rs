//! What programs of pods make: user namespaces, id-mapped mounts, and ids for files that are not theirs. Real ones, by
//! processes that are copies of this one and call nothing but the kernel.

use std::fs::File;
use std::io::PipeWriter;
use std::os::fd::{AsRawFd as _, RawFd};

use userns_agent::event::{AggregateKey, Call, Operation, Relation, TaskEvent, place};
use userns_agent::host::proc::ProcFs;
use userns_common::kind::verdict;

use super::proc_sweep::{Container, apart};
use super::*;

/// A host id that no map of these tests holds.
const FSUID: libc::uid_t = 12_345;
/// include/uapi/linux/mount.h
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
const FSCONFIG_CMD_CREATE: libc::c_long = 6;

/// A copy of this process that waits for a word before it acts.
struct Copy {
    pid: u32,
    word: PipeWriter,
}

impl Copy {
    /// `prepare` and `act` may do nothing but system calls: other threads' locks stay locked in a copy.
    fn new(flags: libc::c_int, prepare: impl Fn() -> bool, act: impl Fn() -> bool) -> Self {
        let (reader, word) = std::io::pipe().unwrap();
        let none = std::ptr::null_mut::<libc::c_void>();
        let flags = libc::c_long::from(flags | libc::SIGCHLD);
        // SAFETY: as fork(2); the copy goes on with a stack of its own.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
        if pid == 0 {
            let mut byte = 0u8;
            // SAFETY: the copy's own: it ends when the original does, too.
            unsafe { libc::close(word.as_raw_fd()) };
            let ready = prepare();
            // SAFETY: one byte, of the copy's own.
            let read = unsafe { libc::read(reader.as_raw_fd(), (&raw mut byte).cast(), 1) };
            let done = ready && read == 1 && act();
            // SAFETY: ends the copy without anything of the original's.
            unsafe { libc::_exit(if done { 0 } else { 3 }) };
        }
        let pid = u32::try_from(pid).unwrap();
        assert_ne!(pid, 0, "{}", std::io::Error::last_os_error());
        std::thread::sleep(Duration::from_millis(100));
        Self { pid, word }
    }

    /// Has it act and end; true if all went well.
    fn goes_well(mut self) -> bool {
        self.word.write_all(b"x").unwrap();
        let mut status = 0;
        // SAFETY: a child of this process, waited for once.
        let waited = unsafe { libc::waitpid(self.pid.cast_signed(), &raw mut status, 0) };
        waited == self.pid.cast_signed() && status == 0
    }
}

fn userns_of(child: &Child) -> File {
    File::open(format!("/proc/{}/ns/user", child.id())).unwrap()
}

fn unshare(flags: libc::c_int) -> bool {
    // SAFETY: a system call without memory.
    unsafe { libc::unshare(flags) == 0 }
}

fn joins(userns: RawFd) -> bool {
    // SAFETY: as above.
    unsafe { libc::setns(userns, libc::CLONE_NEWUSER) == 0 && libc::setresuid(0, 0, 0) == 0 }
}

/// Mounts a tmpfs nowhere, and maps its ids as `userns` does.
fn maps_ids(userns: RawFd) -> bool {
    // struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    let attribute: [u64; 4] = [MOUNT_ATTR_IDMAP, 0, 0, userns as u64];
    // SAFETY: strings end in NUL, the attribute is as large as is said.
    unsafe {
        let none = std::ptr::null::<libc::c_void>();
        let fs = libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), 0);
        libc::syscall(libc::SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, none, none, 0);
        let mount = libc::syscall(libc::SYS_fsmount, fs, 0, 0);
        let (empty, flags) = (c"".as_ptr(), libc::c_long::from(libc::AT_EMPTY_PATH));
        let size = size_of_val(&attribute);
        libc::syscall(libc::SYS_mount_setattr, mount, empty, flags, attribute.as_ptr(), size) == 0
    }
}

/// Calls that were told, of either ring.
fn calls(kernel: &mut Kernel) -> Vec<(Call, TaskEvent)> {
    std::thread::sleep(Duration::from_millis(50));
    let mut seen = Vec::new();
    for ring in [&mut kernel.rings.evidence, &mut kernel.rings.bulk] {
        while let Some(item) = ring.next() {
            if let Body::NamespaceCall(task) = decode(&item).unwrap().body {
                seen.push((task.call.clone().unwrap(), *task));
            }
        }
    }
    seen
}

/// How often each operation of the container was counted, by programs and granted.
fn counted(kernel: &Kernel, container: u64) -> Vec<(Operation, Relation, u64)> {
    let granted = |key: &AggregateKey| {
        key.container == container
            && key.workload == 1
            && key.verdict == verdict::GRANTED
            && u32::from(key.operation) != Operation::Capability as u32
    };
    let rows = kernel.loaded.aggregates().into_iter().filter(|(key, _)| granted(key));
    let mut rows: Vec<_> = rows
        .map(|(key, value)| {
            let operation = Operation::try_from(u32::from(key.operation)).unwrap();
            (operation, Relation::try_from(u32::from(key.relation)).unwrap(), value.count)
        })
        .collect();
    rows.sort();
    rows
}

/// A node's user namespace of a pod with one below it, each held by a shell.
fn namespaces() -> [Child; 2] {
    let pod = apart(&["unshare", "-Ur"], "exit 0");
    let below = apart(&["nsenter", "-t", &pod.id().to_string(), "-U", "unshare", "-Ur"], "exit 0");
    [pod, below]
}

fn end(children: impl IntoIterator<Item = Child>) {
    for mut child in children {
        go(&mut child);
        child.wait().unwrap();
    }
}

/// The programs, which find a copy at work in a container. For tests that are [`wanted`].
fn finds(container: &Container, copy: &Copy) -> Kernel {
    container.take_pid(copy.pid);
    let mut kernel = start("").unwrap();
    container.watch(&mut kernel);
    kernel.loaded.sweep().unwrap().run().unwrap();
    kernel
}

#[test]
fn user_namespaces_that_a_program_makes_are_counted_by_the_call() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !wanted("user_namespaces_that_a_program_makes") {
        return;
    }
    let container = Container::new();
    let (pod, below) = (apart(&["unshare", "-Ur"], "exit 0"), libc::CLONE_NEWUSER);
    let userns = userns_of(&pod);
    let (fd, new) = (userns.as_raw_fd(), libc::c_long::from(below | libc::SIGCHLD));
    let copy = Copy::new(
        0,
        || joins(fd) && unshare(libc::CLONE_NEWNS),
        || {
            let none = std::ptr::null_mut::<libc::c_void>();
            for _ in 0..2 {
                // SAFETY: as fork(2).
                let pid = unsafe { libc::syscall(libc::SYS_clone, new, none, none, none, none) };
                if pid == 0 {
                    // SAFETY: ends the copy of the copy.
                    unsafe { libc::_exit(0) };
                }
            }
            unshare(libc::CLONE_NEWUTS) && unshare(below)
        },
    );
    let mut kernel = finds(&container, &copy);
    assert!(copy.goes_well());
    let rows = counted(&kernel, container.cgroup.id.0);
    let of = |operation, count| (operation, Relation::Pod, count);
    assert_eq!(
        rows,
        [of(Operation::Unshare, 1), of(Operation::CloneNewUser, 2), of(Operation::UnshareNewUser, 1)]
    );
    // the first of each, with the namespace that it made
    let told: Vec<_> = calls(&mut kernel)
        .iter()
        .map(|(call, task)| (call.operation, task.task.userns.level, task.task.userns.owner))
        .collect();
    assert_eq!(
        told,
        [(Operation::CloneNewUser, 2, 0), (Operation::Unshare, 1, 0), (Operation::UnshareNewUser, 2, 0)]
    );
    end([pod]);
}

#[test]
fn id_mapped_mounts_of_a_pods_own_file_systems_are_told_as_such() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !wanted("id_mapped_mounts_of_a_pods_own") {
        return;
    }
    let container = Container::new();
    let [pod, below] = namespaces();
    let (own, other) = (userns_of(&pod), userns_of(&below));
    let (own, other) = (own.as_raw_fd(), other.as_raw_fd());
    let copy =
        Copy::new(0, || joins(own) && unshare(libc::CLONE_NEWNS), || maps_ids(other) && maps_ids(other));
    let mut kernel = finds(&container, &copy);
    let went_well = copy.goes_well();
    end([below, pod]);
    if !went_well {
        println!(
            "SKIPPED: id_mapped_mounts_of_a_pods_own: this kernel maps no ids of tmpfs (before Linux 6.3)"
        );
        return;
    }
    assert_eq!(counted(&kernel, container.cgroup.id.0), [(Operation::MountSetattr, Relation::Pod, 2)]);
    let told = calls(&mut kernel);
    let [(call, _)] = told.as_slice() else { panic!("{told:#?}") };
    assert_eq!((call.relation, call.target_inum, call.ret), (Relation::Pod, 0, 0));
}

#[test]
fn id_mapped_mounts_of_another_owners_file_systems_are_told_as_such() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !wanted("id_mapped_mounts_of_another_owners") {
        return;
    }
    let [pod, below] = namespaces();
    let (own, other) = (userns_of(&pod), userns_of(&below));
    let (own, other) = (own.as_raw_fd(), other.as_raw_fd());
    let copy = Copy::new(0, || joins(own) && unshare(libc::CLONE_NEWNS), || maps_ids(other));
    let mut kernel = start("").unwrap();
    // of a pod with another user namespace, whose programs cannot do this
    kernel.claim_pid(Pid::from_raw(copy.pid.cast_signed()).unwrap());
    let went_well = copy.goes_well();
    let inum = ProcFs::new("/proc").user_namespace(pod.id()).unwrap();
    end([below, pod]);
    if !went_well {
        println!(
            "SKIPPED: id_mapped_mounts_of_another_owners: this kernel maps no ids of tmpfs (before Linux 6.3)"
        );
        return;
    }
    let told = calls(&mut kernel);
    let [(call, _)] = told.as_slice() else { panic!("{told:#?}") };
    assert_eq!((call.relation, call.target_inum, call.target_level), (Relation::Other, inum, 1));
}

#[test]
fn a_directory_of_the_hosts_is_told_of_by_fchdir() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !wanted("a_directory_of_the_hosts_by_fchdir") {
        return;
    }
    let container = Container::new();
    let pod = apart(&["unshare", "-Ur"], "exit 0");
    let (userns, directory) = (userns_of(&pod), File::open("/").unwrap());
    let (userns, directory) = (userns.as_raw_fd(), directory.as_raw_fd());
    let copy = Copy::new(
        0,
        || joins(userns) && unshare(libc::CLONE_NEWNS),
        // SAFETY: a system call without memory.
        || unsafe { libc::fchdir(directory) == 0 },
    );
    let mut kernel = finds(&container, &copy);
    std::thread::sleep(GRACE);
    assert!(copy.goes_well());
    end([pod]);
    let outside = |event: &Event| event.reasons & reason::OUTSIDE_MOUNT != 0;
    let event = kernel.wait(outside).into_iter().find(outside).unwrap();
    assert_eq!((event.hook, event.body.task().unwrap().foreign), (Hook::Fchdir, place::DIRECTORY));
}

#[test]
fn ids_for_files_alone_are_told_when_they_are_not_the_pods() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !wanted("ids_for_files_alone") {
        return;
    }
    let container = Container::new();
    // of this thread alone, and of what it makes
    // SAFETY: system calls without memory.
    unsafe { libc::setfsuid(FSUID) };
    let copy = Copy::new(libc::CLONE_NEWUSER | libc::CLONE_NEWNS, || true, || true);
    // SAFETY: as above.
    unsafe { libc::setfsuid(0) };
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{}/{map}", copy.pid), "0 0 1\n").unwrap();
    }
    let mut kernel = finds(&container, &copy);
    std::thread::sleep(GRACE);
    kernel.loaded.sweep().unwrap().run().unwrap();
    let outside = |event: &Event| event.reasons & reason::ID_OUTSIDE_MAP != 0;
    let event = kernel.wait(outside).into_iter().find(outside).unwrap();
    assert!(copy.goes_well());
    let ids = event.body.task().unwrap().task.ids;
    assert_eq!((ids.uid, ids.euid, ids.suid, ids.fsuid), (0, 0, 0, FSUID));
    let limits = Limits { grace: GRACE, enrich_wait: Duration::ZERO, containers: 16, processes: 16 };
    let mut engine = Engine::new(limits);
    let mut out = Vec::new();
    let later = userns_agent::event::Nanos(event.time.0 + 1_000_000_000);
    engine.handle(Input::Event(event), &mut out);
    engine.handle(Input::Tick(later), &mut out);
    let rules: Vec<_> = out
        .iter()
        .filter_map(|output| if let Output::Finding(finding) = output { Some(finding.rule) } else { None })
        .filter(|rule| matches!(rule, RuleId::I4 | RuleId::I8))
        .collect();
    assert_eq!(rules, [RuleId::I8]);
}
