//! podman on the node itself, beside the pods: containers with user namespaces that are no pod's.

use std::{
    fs,
    path::PathBuf,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{Cluster, honest::look, silence};
use crate::slowdown;

const PREPARE: &str = include_str!("podman.sh");
/// Below the root of the hierarchy.
const CGROUP: &str = "userns-lab-podman";
const PROBES: u32 = 20;
/// Below what `podman.sh` sets aside.
const FIRST_ID: &str = "3000000000";

#[test]
fn containers_of_the_node_are_no_pods() -> Result<()> {
    let Some(cluster) = Cluster::new("containers_of_the_node")? else { return Ok(()) };
    let agent = cluster.agent(&[])?;
    shell(&cluster, PREPARE)?;
    let _cgroup = Cgroup::new(cluster.node.lab.cgroup_root().join(CGROUP))?;
    let podman = |arguments: &str| {
        shell(&cluster, &format!("podman --runtime=/opt/oci/crun --storage-driver=vfs {arguments}"))
    };
    podman(&format!(
        "run --detach --name=own --userns=auto --network=none --cgroups=enabled --cgroup-parent=/{CGROUP} \
         localhost/own:1 sleep 3600"
    ))?;
    let map = podman("exec own cat /proc/self/uid_map")?;
    ensure!(map.split_whitespace().nth(1) == Some(FIRST_ID), "it has the ids {map:?}");
    for _ in 0..PROBES / slowdown() {
        podman("exec own true")?;
    }
    let pods = look(&cluster)?;
    ensure!(pods.is_empty(), "there are no pods: {pods:#?}");
    podman("rm --force --time=0 own")?;
    silence(&agent)?;
    let stopped = agent.stop()?;
    ensure!(stopped.status.code() == Some(0), "SIGTERM ended it with {}", stopped.status);
    Ok(())
}

/// What podman puts its containers and monitors in. Goes away with the value, and what a killed test left before.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(path: PathBuf) -> Result<Self> {
        let cgroup = Self(path);
        cgroup.remove();
        ensure!(!cgroup.0.exists(), "{} cannot be removed", cgroup.0.display());
        Ok(cgroup)
    }

    fn remove(&self) {
        let started = Instant::now();
        // It may not exist, and is busy until the last process has ended.
        while self.0.exists() && started.elapsed() < Duration::from_secs(5) * slowdown() {
            let _ = fs::write(self.0.join("cgroup.kill"), "1");
            let below = fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path());
            for path in below.filter(|path| path.is_dir()).chain([self.0.clone()]) {
                let _ = fs::remove_dir(path);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Runs a shell script on the node, which must go well; what it wrote.
fn shell(cluster: &Cluster, script: &str) -> Result<String> {
    let mut command = cluster.containerd.command("sh");
    let output = command.args(["-c", script]).stdin(Stdio::null()).output().context("cannot run nsenter")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "`{script}` failed: {}", text(&output.stderr));
    Ok(text(&output.stdout))
}
