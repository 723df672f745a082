//! What an agent holds in the kernel, and that nothing of it is left when the agent is gone.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::{FromRawFd as _, OwnedFd},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{Node, slowdown};

/// The kernel frees programs and links after the last descriptor is closed, when no processor runs them any more.
const FREED: Duration = Duration::from_secs(5);
/// A start that takes longer has failed.
const LONGEST_START: Duration = Duration::from_secs(60);
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Kinds of objects with the `bpf(2)` command that opens one by its id (enum bpf_cmd, include/uapi/linux/bpf.h).
const KINDS: [(&str, libc::c_long); 3] = [("prog_id", 13), ("map_id", 14), ("link_id", 30)];

/// Kind and id of each eBPF object that a process has open. Ids are not given out again for a long time.
pub(crate) type Objects = BTreeSet<(&'static str, u32)>;

pub(crate) fn objects(pid: u32) -> Objects {
    let mut objects = Objects::new();
    // the process may end meanwhile
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return objects };
    for entry in entries.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        for line in text.lines().filter_map(|line| line.split_once(':')) {
            let kind = KINDS.iter().find(|(name, _)| *name == line.0);
            if let (Some((name, _)), Ok(id)) = (kind, line.1.trim().parse()) {
                objects.insert((name, id));
            }
        }
    }
    objects
}

fn exists((kind, id): (&str, u32)) -> Result<bool> {
    let (_, command) = KINDS.iter().find(|(name, _)| *name == kind).context("no such kind")?;
    // union bpf_attr of BPF_*_GET_FD_BY_ID: id, next_id, open_flags
    let attribute: [u32; 3] = [id, 0, 0];
    // SAFETY: the kernel reads as many bytes as it is told that there are.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, *command, attribute.as_ptr(), size_of_val(&attribute)) };
    if fd >= 0 {
        // SAFETY: the call made this descriptor, and nothing else knows it.
        drop(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) });
        return Ok(true);
    }
    let error = std::io::Error::last_os_error();
    ensure!(error.raw_os_error() == Some(libc::ENOENT), "cannot look for {kind} {id}: {error}");
    Ok(false)
}

/// Objects that others than the agent's own descriptors would have to keep: pins, and probes by name.
fn named() -> Result<BTreeSet<String>> {
    let mut named = BTreeSet::new();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for mount in mounts.lines().filter(|line| line.contains(" - bpf ")) {
        let point = mount.split(' ').nth(4).context("a line of mountinfo is cut")?;
        collect(Path::new(point), &mut named);
    }
    for (root, file) in
        TRACEFS.iter().flat_map(|root| ["kprobe_events", "uprobe_events"].map(|file| (root, file)))
    {
        let text = fs::read_to_string(format!("{root}/{file}")).unwrap_or_default();
        named.extend(text.lines().map(str::to_owned));
    }
    Ok(named)
}

fn collect(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        found.insert(entry.path().display().to_string());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), found);
        }
    }
}

/// Waits until none of the objects exists any more; returns how long that took.
pub(crate) fn wait_until_freed(objects: &Objects) -> Result<Duration> {
    let started = Instant::now();
    let mut left = objects.clone();
    while !left.is_empty() {
        if started.elapsed() > FREED * slowdown() {
            bail!("{} of {} objects are still there after {FREED:?}: {left:?}", left.len(), objects.len());
        }
        let mut still = Objects::new();
        for object in left {
            if exists(object)? {
                still.insert(object);
            }
        }
        left = still;
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(started.elapsed())
}

fn count(objects: &Objects, kind: &str) -> usize {
    objects.iter().filter(|(name, _)| *name == kind).count()
}

#[test]
fn nothing_stays_attached_when_the_agent_ends() -> Result<()> {
    let Some(node) = Node::new("nothing_stays_attached")? else { return Ok(()) };
    let before = named()?;
    for killed in [true, false] {
        let agent = node.agent(&[])?;
        let held = objects(agent.pid());
        for kind in KINDS.map(|(name, _)| name) {
            ensure!(count(&held, kind) > 0, "a running agent holds no {kind}: {held:?}");
        }
        for object in &held {
            ensure!(exists(*object)?, "{object:?} of a running agent does not exist");
        }
        let stopped = if killed { agent.kill()? } else { agent.stop()? };
        ensure!(stopped.status.success() != killed, "ended with {}", stopped.status);
        let took = wait_until_freed(&held)?;
        let [programs, maps, links] = KINDS.map(|(name, _)| count(&held, name));
        println!(
            "{}: {programs} programs, {maps} maps and {links} links gone {took:.1?} after the agent",
            if killed { "SIGKILL" } else { "SIGTERM" }
        );
        let left: Vec<_> = named()?.difference(&before).cloned().collect();
        ensure!(left.is_empty(), "left behind: {left:?}");
    }
    Ok(())
}

/// An agent that nobody waits for, killed with its value.
struct Starting(Child);

impl Drop for Starting {
    fn drop(&mut self) {
        // both fail only if it has been waited for
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn nothing_stays_attached_when_the_agent_is_killed_while_it_starts() -> Result<()> {
    let Some(node) = Node::new("killed_while_it_starts")? else { return Ok(()) };
    let before = named()?;
    let (mut held_most, mut killed, mut attached) = (0, 0, 0);
    let mut life = Duration::from_millis(5);
    // ever longer lives, until some have been long enough to attach programs
    while attached < 3 && life < LONGEST_START * slowdown() {
        let mut command = Command::new(&node.bin);
        command.args(["run", "--output", "json", "--listen", "127.0.0.1:0", "--state-dir"]);
        command.arg(node.lab.dir().join("state-starting"));
        command.arg("--kubelet-root").arg(node.lab.kubelet_root());
        command.arg("--cgroup-root").arg(node.lab.cgroup_root());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut agent = Starting(command.spawn().context("cannot start the agent")?);
        let started = Instant::now();
        let mut held = objects(agent.0.id());
        while started.elapsed() < life {
            held.extend(objects(agent.0.id()));
        }
        ensure!(agent.0.try_wait()?.is_none(), "the agent ended by itself");
        drop(agent);
        wait_until_freed(&held)?;
        held_most = held_most.max(held.len());
        attached += u32::from(count(&held, "link_id") > 0);
        killed += 1;
        life = life * 3 / 2;
    }
    let left: Vec<_> = named()?.difference(&before).cloned().collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    ensure!(attached > 0, "none lived long enough to attach anything");
    println!(
        "{killed} killed while starting, {attached} of them attached; up to {held_most} objects, all gone"
    );
    Ok(())
}
