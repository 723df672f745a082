//! Ways to hide do not help: whoever works in a pod with the host's credentials, or leaves its cgroup, is found under
//! any name, from any file, and however soon it is gone.
//!
//! Credentials overwritten in the kernel, by any thread, before an exec, a fork or an exit, are in the tests of guests;
//! hundreds of denied attempts as a cover are in `flood`.

use std::{
    fs::{self, File},
    io::Write as _,
    os::{
        fd::AsRawFd as _,
        unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    },
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{MemfdFlags, memfd_create};
use xtask::lab::{Container, ContainerSpec, IdRange, Line, Pod, PodSpec, ProcessSpec, RuntimeName};

use crate::{Node, rounds, slowdown, told};

/// A runtime's time to enter, a sweep, and some more.
const PATIENCE: Duration = Duration::from_secs(12);

/// How a process of the host that works in a pod's cgroup tries to look like something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trick {
    None,
    /// Its file and its name are a runtime's.
    RuntimesName,
    /// Its file has no name, as the copy of itself that runc executes.
    Memfd,
    /// Its file had a name.
    Deleted,
    /// It is a daemon: its parent has ended, and it has a session of its own.
    DoubleFork,
    /// It is in a PID namespace below another one.
    PidNamespaces,
    /// It is gone before anybody could look.
    GoneAtOnce,
}

const TRICKS: [Trick; 7] = [
    Trick::None,
    Trick::RuntimesName,
    Trick::Memfd,
    Trick::Deleted,
    Trick::DoubleFork,
    Trick::PidNamespaces,
    Trick::GoneAtOnce,
];

/// Ends what it started; what that started goes with the container.
struct Spy(Child);

impl Drop for Spy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `trick` in the cgroup of `container`, with everything else the host's.
fn spy(trick: Trick, busybox: &Path, dir: &Path, container: &Container) -> Result<Spy> {
    let program = dir.join("runc");
    if !program.exists() {
        fs::copy(busybox, &program)?;
    }
    // open until the program runs
    let mut open = None;
    let mut command = match trick {
        Trick::None | Trick::DoubleFork | Trick::PidNamespaces | Trick::GoneAtOnce => Command::new(busybox),
        Trick::RuntimesName => Command::new(&program),
        Trick::Memfd => {
            let mut file = File::from(memfd_create("runc", MemfdFlags::empty())?);
            file.write_all(&fs::read(busybox)?)?;
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            open = Some(file);
            Command::new(path)
        }
        Trick::Deleted => {
            let path = dir.join("gone");
            fs::copy(busybox, &path)?;
            // not closed by the exec that names it
            let file = File::options().read(true).custom_flags(0).open(&path)?;
            rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty())?;
            fs::remove_file(&path)?;
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            open = Some(file);
            Command::new(path)
        }
    };
    match trick {
        Trick::None | Trick::RuntimesName | Trick::Memfd | Trick::Deleted => command.arg0("sleep").arg("60"),
        Trick::DoubleFork => command.arg0("sh").args(["-c", "(setsid sleep 60 &)"]),
        Trick::PidNamespaces => {
            command.arg0("unshare").args(["-p", "-f", "unshare", "-p", "-f", "sleep", "60"])
        }
        Trick::GoneAtOnce => command.arg0("true"),
    };
    let procs = container.cgroup_dir().join("cgroup.procs");
    // who looks like a runtime does so from the moment it comes; the others are there before they begin
    let disguised = matches!(trick, Trick::RuntimesName | Trick::Memfd | Trick::Deleted);
    if !disguised {
        let procs = procs.clone();
        // SAFETY: the child has one thread, and what it allocates nobody else holds.
        unsafe { command.pre_exec(move || fs::write(&procs, "0")) };
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let spy = Spy(child.with_context(|| format!("{trick:?} does not start"))?);
    drop(open);
    if disguised {
        fs::write(&procs, spy.0.id().to_string()).context("cannot move it into the container's cgroup")?;
    }
    Ok(spy)
}

fn sound(node: &Node, runtime: RuntimeName, nth: u16) -> Result<(Pod, Container)> {
    let range = IdRange::nth(nth);
    let pod = node.lab.pod(PodSpec { name: "p".into(), record: Some(range), ..PodSpec::default() })?;
    let spec = ContainerSpec { runtime, mapping: Some(range.mapping()), ..ContainerSpec::default() };
    let container = pod.run(spec)?;
    Ok((pod, container))
}

#[test]
fn whoever_works_in_a_pod_as_the_host_is_found_whatever_it_looks_like() -> Result<()> {
    let Some(node) = Node::new("whoever_works_in_a_pod_as_the_host")? else { return Ok(()) };
    let agent = node.agent(&[])?;
    let busybox = node.lab.busybox()?;
    let mut kept = Vec::new();
    for (nth, trick) in (47_100..).zip(TRICKS) {
        let (pod, container) = sound(&node, RuntimeName::ALL[usize::from(nth) % 2], nth)?;
        let start = Instant::now();
        let spy = spy(trick, &busybox, node.lab.dir(), &container)?;
        kept.push((trick, start, spy, container, pod));
    }
    let mut missed = Vec::new();
    for (trick, start, _, _, pod) in &kept {
        let about = |line: &Line| {
            line.text("/finding/rule/id") == Some("I2") && line.text("/pod/uid") == Some(pod.uid())
        };
        let left = (PATIENCE * slowdown()).saturating_sub(start.elapsed());
        match agent.wait_for(about, left) {
            Ok(line) => println!("{trick:?}: I2 after {:.1?}", line.at - *start),
            Err(_) => missed.push(*trick),
        }
    }
    ensure!(missed.is_empty(), "not found: {missed:?}; told:{}", told(&agent));
    Ok(())
}

/// What a process that was executed into a container does before it leaves the cgroup; what leaves sleeps for 61 s.
const LEAVERS: [&str; 3] = [
    "exec sleep 61",
    // a daemon
    "(setsid sleep 61 &); sleep 1",
    // a shell with a runtime's name starts it
    "echo -n containerd-shim > /proc/self/comm; sleep 61 & wait",
];

/// The process of a container that sleeps for 61 s.
fn sleeper(container: &Container) -> Result<u32> {
    let started = Instant::now();
    loop {
        let processes = fs::read_to_string(container.cgroup_dir().join("cgroup.procs"))?;
        let sleeps =
            |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"sleep\x0061\0");
        if let Some(pid) = processes.lines().filter_map(|pid| pid.parse().ok()).find(sleeps) {
            return Ok(pid);
        }
        ensure!(started.elapsed() < PATIENCE * slowdown(), "nothing sleeps in the container");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn whoever_was_executed_into_a_pod_and_leaves_its_cgroup_is_found() -> Result<()> {
    let Some(node) = Node::new("whoever_was_executed_into_a_pod")? else { return Ok(()) };
    let agent = node.agent(&[])?;
    for (nth, script) in (47_120..).zip(LEAVERS) {
        let (pod, container) = sound(&node, RuntimeName::ALL[usize::from(nth) % 2], nth)?;
        // its program runs
        rounds::exec(&container, &ProcessSpec::new(&["true"]))?;
        container.exec_detached(&ProcessSpec::new(&["sh", "-c", script]))?;
        let pid = sleeper(&container).with_context(|| script.to_owned())?;
        fs::write(node.lab.cgroup_root().join("cgroup.procs"), pid.to_string())?;
        let start = Instant::now();
        let about = |line: &Line| {
            line.text("/finding/rule/id") == Some("I13")
                && line.text("/pod/uid") == Some(pod.uid())
                && line.json.pointer("/process/pid").and_then(serde_json::Value::as_u64) == Some(pid.into())
        };
        let found = agent.wait_for(about, PATIENCE * slowdown());
        // so that it ends with the container
        let _ = fs::write(container.cgroup_dir().join("cgroup.procs"), pid.to_string());
        let line = found.with_context(|| format!("{script:?} is not found; told:{}", told(&agent)))?;
        println!("{script:?}: I13 after {:.1?}", line.at - start);
    }
    Ok(())
}
