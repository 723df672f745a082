//! What a lab with containerd leaves on the machine: nothing, whatever becomes of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use xtask::lab::{Handler, IdRange, RuntimeName};

use super::{Asked, Cluster, container};
use crate::slowdown;

/// Processes end one after the other.
const LIMIT: Duration = Duration::from_secs(5);

#[test]
fn nothing_is_left_when_containerd_is_killed() -> Result<()> {
    let mounts = || fs::read_to_string("/proc/self/mountinfo");
    let before = mounts()?;
    let Some(cluster) = Cluster::new("nothing_is_left")? else { return Ok(()) };
    let mut pods = Vec::new();
    for (runtime, range) in RuntimeName::ALL.into_iter().zip([48_000, 48_001]) {
        let range = Some(IdRange::nth(range));
        let asked = Asked { name: "p", handler: Handler::Oci(runtime), range, host_network: false };
        let pod = cluster.run(asked)?;
        pods.push((pod.start(&container("app", &[]))?, pod));
    }
    let cgroups: Vec<_> = pods.iter().map(|(_, pod)| pod.pod().cgroup_dir().to_owned()).collect();
    let dir = cluster.node.lab.dir().to_owned();
    let processes = below(cluster.containerd.pid());
    // process 1, containerd, and of each pod a shim, the sandbox and the container
    ensure!(processes.len() >= 2 + 3 * pods.len(), "there are only {processes:?}");
    // what a lab that is killed itself comes to: process 1 ends
    let killed = Command::new("kill").args(["-KILL", &cluster.containerd.pid().to_string()]).status()?;
    ensure!(killed.success(), "cannot kill it");
    let started = Instant::now();
    let live = |pid: &&u32| state(**pid).is_some_and(|state| state != 'Z');
    while let Some(pid) = processes.iter().find(live) {
        ensure!(started.elapsed() < LIMIT * slowdown(), "process {pid} goes on");
        thread::sleep(Duration::from_millis(1));
    }
    println!("{} processes gone after {:.1?}", processes.len(), started.elapsed());
    drop(pods);
    drop(cluster);
    for path in cgroups.iter().map(AsRef::as_ref).chain([dir.as_path(), Path::new("/run/userns-lab")]) {
        ensure!(!path.exists(), "{} is left", path.display());
    }
    ensure!(mounts()? == before, "mounts are left");
    Ok(())
}

/// The process `root` and all below it, as the host sees them.
fn below(root: u32) -> BTreeSet<u32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let parents: BTreeMap<u32, u32> = pids.filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut found = BTreeSet::from([root]);
    loop {
        let size = found.len();
        found.extend(
            parents
                .iter()
                .filter(|(_, parent)| found.contains(parent))
                .map(|(pid, _)| *pid)
                .collect::<Vec<_>>(),
        );
        if found.len() == size {
            return found;
        }
    }
}

fn parent(pid: u32) -> Option<u32> {
    stat(pid)?.get(1)?.parse().ok()
}

fn state(pid: u32) -> Option<char> {
    stat(pid)?.first()?.chars().next()
}

/// What follows the name in `/proc/<pid>/stat`; the name may have any bytes.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat).into_owned();
    Some(stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}
