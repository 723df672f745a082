//! `simulate` as a program: it refuses on the host, and in a user namespace tries everything and leaves nothing.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};
use std::thread;

use rustix::process::{getegid, geteuid};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::Value;

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_userns-agent"));
    command.args(["simulate"]).args(arguments);
    command
}

/// Ids for a user namespace: those that the parent may give.
fn maps(pid: u32) -> std::io::Result<()> {
    let (user, group) = (geteuid(), getegid());
    let map = |id: u32| if user.is_root() { "0 100000 65536".to_owned() } else { format!("0 {id} 1") };
    if !user.is_root() {
        fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
    }
    fs::write(format!("/proc/{pid}/uid_map"), map(user.as_raw()))?;
    fs::write(format!("/proc/{pid}/gid_map"), map(group.as_raw()))
}

/// Runs `command` as root of a new user namespace, with a mount namespace of its own.
fn in_user_namespace(mut command: Command) -> std::io::Result<Output> {
    let (mut made, mut tell) = std::io::pipe()?;
    let (mut mapped, mut go) = std::io::pipe()?;
    // SAFETY: system calls only, on what is the child's alone.
    unsafe {
        command.pre_exec(move || {
            unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS | UnshareFlags::NEWIPC)?;
            tell.write_all(&std::process::id().to_ne_bytes())?;
            mapped.read_exact(&mut [0])?;
            rustix::thread::set_thread_res_uid(ROOT, ROOT, ROOT)?;
            rustix::thread::set_thread_res_gid(ROOT_GROUP, ROOT_GROUP, ROOT_GROUP)?;
            Ok(())
        });
    }
    let helper = thread::spawn(move || {
        let mut pid = [0; 4];
        made.read_exact(&mut pid)?;
        maps(u32::from_ne_bytes(pid))?;
        go.write_all(&[1])
    });
    let output = command.output();
    // its own end of the pipe goes with the command
    drop(command);
    let helped = helper.join().unwrap();
    output.and_then(|output| helped.map(|()| output))
}

const ROOT: rustix::process::Uid = rustix::process::Uid::ROOT;
const ROOT_GROUP: rustix::process::Gid = rustix::process::Gid::ROOT;

/// What must be the same afterwards.
fn machine() -> BTreeMap<&'static str, String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    BTreeMap::from([
        ("mounts", read("/proc/self/mountinfo")),
        ("core pattern", read("/proc/sys/kernel/core_pattern")),
        (
            "modules",
            read("/proc/modules")
                .lines()
                .map(|line| line.split(' ').next().unwrap().to_owned() + "\n")
                .collect(),
        ),
        ("hierarchies", read("/proc/self/cgroup")),
        ("scratch", ["/tmp", "/run", "/var/tmp", "/"].map(scratch).concat()),
    ])
}

fn scratch(dir: &str) -> String {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name.starts_with("userns-agent-"))
        .collect()
}

#[test]
fn the_host_is_refused() {
    let uid_map = fs::read_to_string("/proc/self/uid_map").unwrap();
    let pid = fs::read_link("/proc/self/ns/pid").unwrap();
    if uid_map.split_whitespace().ne(["0", "0", "4294967295"]) || !pid.ends_with("pid:[4026531836]") {
        println!("SKIPPED: the_host_is_refused: this is no host");
        return;
    }
    let before = machine();
    for arguments in [&["run", "--all"][..], &["run", "kexec", "--output", "json"]] {
        let output = program(arguments).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(77), 0), "{errors}");
        assert!(errors.contains("run it in a pod") && errors.contains("nothing was tried"), "{errors}");
    }
    assert_eq!(machine(), before);
}

#[test]
fn the_command_line_says_what_is_wrong() {
    for (arguments, part) in [
        (&["run"][..], "required"),
        (&["run", "kexecc"], "kexec"),
        (&["run", "--all", "--findings", "ftp://x"], "http://"),
        (&["run", "--all", "kexec"], "cannot be used with"),
        (&["run", "--all", "--leaked-fd", "0"], "3.."),
    ] {
        let output = program(arguments).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(64) && errors.contains(part), "{arguments:?}: {errors}");
    }
    let output = program(&["list", "--output", "json"]).output().unwrap();
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list["techniques"].as_array().unwrap().len(), userns_agent::simulate::techniques().count());
}

#[test]
fn a_user_namespace_holds_and_nothing_is_left() {
    let before = machine();
    let output = match in_user_namespace(program(&["run", "--all", "--output", "json"])) {
        Ok(output) => output,
        Err(error) => {
            println!("SKIPPED: a_user_namespace_holds: no user namespace can be made here: {error}");
            return;
        }
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {errors}"));
    assert_eq!((output.status.code(), &report["broken"]), (Some(0), &Value::Bool(false)), "{report:#}");
    assert_eq!(report["place"]["standing"], "user_namespace");
    let techniques = report["techniques"].as_array().unwrap();
    let kind = |name: &str| {
        let row = techniques.iter().find(|row| row["name"] == name);
        row.and_then(|row| row["outcome"]["kind"].as_str()).unwrap_or("missing").to_owned()
    };
    for name in ["kernel-log", "map-rewrite", "unmapped-user", "device-node", "core-pattern"] {
        assert_eq!(kind(name), "denied", "{name}: {report:#}");
    }
    // the processes of the host are in sight
    for name in ["proc-namespaces", "pidfd-namespaces", "process-environ", "process-root", "process-memory"] {
        assert_eq!(kind(name), "denied", "{name}: {report:#}");
    }
    for name in ["ptrace-seize", "process-vm-read", "pidfd-getfd", "map-foreign-id"] {
        assert_eq!(kind(name), "denied", "{name}: {report:#}");
    }
    // root in there has every capability over it
    for name in ["mount-namespace", "mount-tmpfs", "nested-user-namespace", "nested-mount"] {
        assert_eq!(kind(name), "allowed", "{name}: {report:#}");
    }
    assert_eq!(kind("leaked-directory"), "out_of_reach");
    assert_eq!(machine(), before);
}

#[test]
fn a_directory_left_open_is_entered_and_read_no_further() {
    // root's alone, whoever runs the test
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("etc")).unwrap();
    let shadow = dir.path().join("etc/shadow");
    fs::write(&shadow, "x").unwrap();
    fs::set_permissions(&shadow, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let leaked = File::open(dir.path()).unwrap();
    let mut command = program(&["run", "leaked-directory", "--leaked-fd", "77", "--output", "json"]);
    // SAFETY: one system call, on the child's own descriptors.
    unsafe {
        command.pre_exec(move || {
            let raw = std::os::fd::AsRawFd::as_raw_fd(&leaked);
            if libc::dup2(raw, 77) == 77 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    if !geteuid().is_root() {
        println!("SKIPPED: a_directory_left_open: its owner would be mapped");
        return;
    }
    let Ok(output) = in_user_namespace(command) else {
        println!("SKIPPED: a_directory_left_open: no user namespace can be made here");
        return;
    };
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let outcome = &report["techniques"][0]["outcome"];
    assert_eq!(
        (outcome["errno"].as_str(), outcome["detail"].as_str()),
        (Some("EACCES"), Some("openat")),
        "{report:#}"
    );
}
