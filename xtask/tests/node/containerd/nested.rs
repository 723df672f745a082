//! Containers in a container: podman in a pod, run by a user without privileges and by the pod's root. Their user
//! namespaces are below the pod's.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use xtask::lab::{CriContainer, CriContainerSpec, CriPod, Handler, IdRange, RuntimeName};

use super::{Asked, Cluster, attributed, container, only_made, shell};
use crate::slowdown;

const PREPARE: &str = include_str!("nested.sh");
const PROBES: u32 = 10;

/// Who runs podman, and with which user namespace.
#[derive(Debug, Clone, Copy)]
enum Manager {
    /// User 1000, with the subordinate ids that setuid programs map.
    Rootless,
    /// Root in the pod, whose containers are given other ids of the pod.
    Root,
}

/// A pod with containers of its own. Fields in the order in which they go away.
struct Host {
    container: CriContainer,
    pod: CriPod,
}

#[test]
fn containers_in_a_pod_are_left_alone_and_the_pods() -> Result<()> {
    let Some(cluster) = Cluster::new("containers_in_a_pod")? else { return Ok(()) };
    let agent = cluster.agent(&[])?;
    for (runtime, range) in RuntimeName::ALL.into_iter().zip([48_010, 48_011]) {
        let started = Instant::now();
        let host = prepare(&cluster, runtime, IdRange::nth(range))?;
        for manager in [Manager::Rootless, Manager::Root] {
            run(&cluster, &host, manager).with_context(|| format!("{manager:?}, in a pod by {runtime}"))?;
        }
        println!("in a pod by {runtime}, containers have come and gone after {:.1?}", started.elapsed());
    }
    only_made(&agent, RuntimeName::ALL.len())
}

fn prepare(cluster: &Cluster, runtime: RuntimeName, range: IdRange) -> Result<Host> {
    let handler = Handler::Oci(runtime);
    let pod = cluster.run(Asked { name: "nested", handler, range: Some(range), host_network: false })?;
    // beside what podman of root needs, this has containerd's seccomp filter let programs make user namespaces
    let capabilities = vec!["SYS_ADMIN".to_owned()];
    let spec = CriContainerSpec { capabilities, packages: true, ..container("nested", &[]) };
    let container = pod.start(&spec)?;
    shell(&container, PREPARE)?;
    Ok(Host { container, pod })
}

fn run(cluster: &Cluster, Host { container, pod }: &Host, manager: Manager) -> Result<()> {
    let podman = |arguments: &str| {
        let script = match manager {
            Manager::Rootless => {
                format!("XDG_RUNTIME_DIR=/run/user/1000 su user -c 'cd; nested {arguments}'")
            }
            Manager::Root => format!("nested {arguments}"),
        };
        shell(container, &script)
    };
    let namespace = match manager {
        Manager::Rootless => "",
        Manager::Root => "--uidmap=0:20000:1000 --gidmap=0:20000:1000",
    };
    podman(&format!(
        "run --detach --name=inner {namespace} --network=none --cgroups=disabled --rootfs /home/user/rootfs sleep 3600"
    ))?;
    let map = podman("exec inner cat /proc/self/uid_map")?;
    let first = map.split_whitespace().nth(1);
    let expected = match manager {
        Manager::Rootless => "1000",
        Manager::Root => "20000",
    };
    ensure!(first == Some(expected), "root of the nested container is {map:?}");
    attributed(cluster, pod, 1)?;
    for _ in 0..PROBES / slowdown() {
        podman("exec inner true")?;
    }
    podman("rm --force --time=0 inner").map(drop)
}
