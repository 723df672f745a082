//! Files of procfs, from directories made for it.

use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use super::*;
use crate::event::Ids;

/// A procfs of one process, 812.
fn fake() -> (tempfile::TempDir, ProcFs) {
    let dir = tempfile::tempdir().unwrap();
    let process = dir.path().join("812");
    std::fs::create_dir_all(process.join("ns")).unwrap();
    std::fs::create_dir(dir.path().join("sys")).unwrap();
    let write = |name: &str, text: &[u8]| std::fs::write(process.join(name), text).unwrap();
    write("uid_map", b"         0 3841261568      65536\n");
    write("gid_map", b"         0 3841261568      65536\n");
    write("cgroup", b"0::/kubepods/besteffort/x\n");
    write("comm", b"a\nb\xff\n");
    write("cmdline", b"/pause\0-v\0");
    write("stat", b"812 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4207 20");
    for (name, number) in
        [("user", 4_026_532_000_u32), ("mnt", 1), ("pid_for_children", 2), ("net", 3), ("ipc", 4), ("uts", 5)]
    {
        symlink(format!("x:[{number}]"), process.join("ns").join(name)).unwrap();
    }
    symlink("nonsense", process.join("ns/cgroup")).unwrap();
    let proc = ProcFs::new(dir.path());
    (dir, proc)
}

#[test]
fn the_root_is_injected_everywhere() {
    let (_dir, proc) = fake();
    assert_eq!(proc.pids().unwrap(), [812]);
    assert_eq!(proc.cgroup(812).unwrap().unwrap().as_str(), "/kubepods/besteffort/x");
    assert_eq!(proc.comm(812).unwrap().as_str(), "a\nb\\xff");
    assert_eq!(proc.cmdline(812).unwrap().len(), 2);
    let userns = proc.userns(812).unwrap();
    assert_eq!((userns.inum, userns.uid_map.nr_extents), (4_026_532_000, 1));
    assert_eq!(userns.gid_map.extents[0].lower_first, 3_841_261_568);
}

#[test]
fn the_boot_has_an_id() {
    let (dir, proc) = fake();
    assert!(proc.boot_id().unwrap_err().to_string().contains("random/boot_id"));
    std::fs::create_dir_all(dir.path().join("sys/kernel/random")).unwrap();
    std::fs::write(dir.path().join("sys/kernel/random/boot_id"), "2f1f4f1a-7c11\n").unwrap();
    assert_eq!(proc.boot_id().unwrap(), "2f1f4f1a-7c11");
}

#[test]
fn start_times_are_compared_within_a_tick() {
    let (_dir, proc) = fake();
    let process = proc.process(812).unwrap();
    assert_eq!(process, ProcessId { pid: 812, start: Nanos(42_070_000_000) });
    let at = |start| proc.is(ProcessId { pid: 812, start: Nanos(start) }).unwrap();
    assert!(at(42_070_000_000) && at(42_079_999_999));
    assert!(!at(42_069_999_999) && !at(42_080_000_000));
    assert!(!proc.is(ProcessId { pid: 813, start: Nanos(0) }).unwrap());
}

#[test]
fn errors_name_the_file() {
    let (dir, proc) = fake();
    assert!(matches!(proc.uid_map(1), Err(ProcError::Gone { pid: 1 })));
    let error = proc.namespaces(812).unwrap_err().to_string();
    assert!(error.contains("812/ns/cgroup") && error.contains("expected a link"), "{error}");
    std::fs::write(dir.path().join("812/uid_map"), "0 0\n").unwrap();
    let error = proc.uid_map(812).unwrap_err().to_string();
    assert!(error.contains("812/uid_map: line 1: expected three numbers"), "{error}");
    std::fs::remove_file(dir.path().join("812/stat")).unwrap();
    std::fs::create_dir(dir.path().join("812/stat")).unwrap();
    assert!(matches!(proc.process(812), Err(ProcError::Read { .. })));
    assert!(matches!(ProcFs::new("/nonexistent").pids(), Err(ProcError::Read { .. })));
}

#[test]
fn the_real_procfs_agrees_with_the_kernel() {
    let (proc, me) = (ProcFs::new("/proc"), std::process::id());
    assert!(proc.pids().unwrap().contains(&me));
    // the test itself runs on another thread than the first
    assert!(proc.threads(me).unwrap().len() > 1 && proc.threads(me).unwrap().contains(&me));
    let status = proc.status(me).unwrap();
    assert_eq!((status.tgid, status.ids.uid), (me, rustix::process::getuid().as_raw()));
    let executable = proc.executable(me).unwrap().unwrap();
    let stat = std::fs::metadata(std::env::current_exe().unwrap()).unwrap();
    assert_eq!((executable.image.ino, u64::from(executable.image.nlink)), (stat.ino(), stat.nlink()));
    assert!(proc.user_namespace(me).unwrap() > 0 && proc.namespaces(me).unwrap().mnt > 0);
    assert!(!proc.mount_devices(me).unwrap().is_empty());
    assert!(!proc.cmdline(me).unwrap().is_empty());
    let process = proc.process(me).unwrap();
    assert!(process.start < boot_time() && proc.is(process).unwrap());
}

#[test]
fn a_process_is_described_as_the_kernels_records_have_it() {
    let (dir, proc) = fake();
    let executable = dir.path().join("pause");
    std::fs::write(&executable, "x").unwrap();
    symlink(&executable, dir.path().join("812/exe")).unwrap();
    let ids = Ids { uid: 3_841_261_568, ..Ids::default() };
    let standing = Standing {
        status: Status { tgid: 812, ids, ns_pids: vec![812, 7], ..Status::default() },
        host_level: 0,
        user: Ancestry::new(vec![(4_026_532_000, 0)]),
        uid_map: to_id_map(&proc.uid_map(812).unwrap()),
        gid_map: to_id_map(&proc.gid_map(812).unwrap()),
        owners: Vec::new(),
    };
    let event = proc.describe(812, &standing).unwrap();
    let task = &event.task;
    assert_eq!((task.process.pid, task.tid, task.ns_pid, task.ids), (812, 812, Some(7), ids));
    assert_eq!((task.userns.level, task.userns.inum, task.pod_userns), (1, 4_026_532_000, Some(task.userns)));
    assert_eq!(task.userns.uid_map.extents[0].lower_first, 3_841_261_568);
    // the link of the cgroup namespace is nonsense: unknown, and no reason to keep the rest back
    assert_eq!((task.ns.mnt, task.ns.uts, task.ns.cgroup), (1, 5, 0));
    assert_eq!((event.path.as_str(), event.args.len()), (executable.to_str().unwrap(), 2));
    assert_eq!((event.task.comm.as_str(), event.ancestors.len()), ("a\nb\\xff", 0));
    assert!(matches!(proc.describe(813, &standing), Err(ProcError::Gone { pid: 813 })));
}

#[test]
fn the_real_procfs_tells_where_a_process_stands() {
    let (proc, me) = (ProcFs::new("/proc"), std::process::id());
    let inum = proc.user_namespace(me).unwrap();
    match proc.standing(me).unwrap() {
        Some(standing) => assert_eq!((standing.user.inum(), standing.status.tgid), (inum, me)),
        // who is in a namespace of its own sees no further
        None => assert_ne!(inum, INITIAL_USERNS),
    }
    let mut child = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
    while proc.executable(child.id()).is_ok_and(|found| found.is_some()) {
        std::thread::yield_now();
    }
    assert!(!matches!(proc.standing(child.id()), Ok(Some(_))), "a zombie");
    child.wait().unwrap();
    assert!(matches!(proc.standing(child.id()), Err(ProcError::Gone { .. })));
}

#[test]
fn clocks_advance_and_the_wall_clock_is_after_1970() {
    let (before, after) = (boot_time(), boot_time());
    assert!(before.0 > 0 && before <= after);
    assert!(wall_offset() > 0);
}

#[test]
fn a_process_that_has_ended_is_gone_even_while_it_is_a_zombie() {
    let mut child = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
    let (proc, pid) = (ProcFs::new("/proc"), child.id());
    while proc.executable(pid).is_ok_and(|found| found.is_some()) {
        std::thread::yield_now();
    }
    assert!(proc.cmdline(pid).unwrap().is_empty());
    child.wait().unwrap();
    assert!(matches!(proc.comm(pid), Err(ProcError::Gone { .. })));
    assert!(matches!(proc.executable(pid), Err(ProcError::Gone { .. })));
}
