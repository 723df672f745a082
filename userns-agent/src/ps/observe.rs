//! Looking at the node: which containers there are, and one process of each.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::known::Known;
use super::verdict::{Look, Namespace, Pod, Recorded, Sample};
use crate::cgroup::{self, ContainerId, PodCgroup};
use crate::config::Config;
use crate::core::Unobservable;
use crate::event::{Nanos, PodSpec, PodUid, role};
use crate::host::cgroupfs::{CgroupFs, CgroupFsError};
use crate::host::kubelet::{Records, read_records};
use crate::host::pods_file::{PodsFileError, read_pods};
use crate::host::proc::{ProcError, ProcFs};

/// Processes of a container that are counted.
const MAX_PROCESSES: usize = 65_536;
/// Processes of a container that are inspected; its first one is among the first listed.
const MAX_INSPECTED: usize = 256;

/// A container, or a pod without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Container {
    pub(super) pod: PodUid,
    /// `None`: the pod's cgroup has no container's.
    pub(super) id: Option<ContainerId>,
    pub(super) cgroup: String,
    pub(super) processes: usize,
    pub(super) look: Look,
}

/// Everything a look at the node gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    /// Number of the host's user namespace.
    pub(super) host: u32,
    /// Runtime classes whose pods cannot be looked at.
    pub(super) unobservable: Unobservable,
    pub(super) pods: BTreeMap<PodUid, Pod>,
    pub(super) containers: Vec<Container>,
    /// What a reader should know about what was not seen.
    pub(super) notes: Vec<String>,
}

/// Why the node cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// There is no unified cgroup hierarchy, or it cannot be read.
    #[error(transparent)]
    Cgroups(#[from] CgroupFsError),
    /// The pods file cannot be used.
    #[error(transparent)]
    Pods(#[from] PodsFileError),
    /// The host's user namespace is not known.
    #[error(
        "cannot tell the host's user namespace; run it as root, with proc_root set to the host's procfs: {0}"
    )]
    Host(#[source] ProcError),
}

/// What is told of pods besides what the node shows.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// By the pods file.
    pub(super) specs: BTreeMap<PodUid, PodSpec>,
    /// By the agent.
    pub(super) known: BTreeMap<PodUid, Known>,
}

impl Told {
    fn pod(&self, uid: &PodUid, recorded: Recorded) -> Pod {
        let known = self.known.get(uid).cloned();
        let declared = known.as_ref().filter(|known| known.host_network.is_some());
        let by_agent = declared.map(|known| PodSpec {
            uid: uid.clone(),
            namespace: known.namespace.clone().unwrap_or_default(),
            name: known.name.clone().unwrap_or_default(),
            host_users: known.host_users,
            runtime_class: known.runtime_class.clone(),
            ..PodSpec::default()
        });
        Pod { uid: uid.clone(), spec: self.specs.get(uid).cloned().or(by_agent), recorded, known }
    }
}

/// The pods file's pods.
pub(super) fn declared(config: &Config) -> Result<BTreeMap<PodUid, PodSpec>, ObserveError> {
    let pods = config.pods_file.as_deref().map(read_pods).transpose()?.unwrap_or_default();
    Ok(pods.into_iter().map(|pod| (pod.uid.clone(), pod)).collect())
}

/// Looks at the node.
pub(super) fn observe(config: &Config, told: &Told) -> Result<Node, ObserveError> {
    observe_in(config, told, &CgroupFs::find(config.cgroup_root.as_deref())?)
}

/// Looks at the node whose cgroups are `cgroups`.
pub(super) fn observe_in(config: &Config, told: &Told, cgroups: &CgroupFs) -> Result<Node, ObserveError> {
    let proc = ProcFs::new(&config.proc_root);
    let unobservable = Unobservable::new(config.unobservable_runtimes.clone());
    let mut node = Node { unobservable, ..Node::default() };
    node.find_host(&proc)?;
    node.note_reader(&proc, cgroups);
    node.find_containers(&proc, cgroups)?;
    let records = match read_records(&config.kubelet_root) {
        Ok(Some(records)) => Ok(records),
        Ok(None) => Err(format!("{} does not exist", config.kubelet_root.join("pods").display())),
        Err(error) => Err(error.to_string()),
    };
    if let Err(why) = &records {
        node.notes.push(format!("kubelet's records are not known: {why}"));
    }
    for container in &node.containers {
        let uid = &container.pod;
        node.pods.entry(uid.clone()).or_insert_with(|| told.pod(uid, recorded(&records, uid)));
    }
    Ok(node)
}

fn recorded(records: &Result<Records, String>, uid: &PodUid) -> Recorded {
    match records.as_ref().map(|records| records.get(uid)) {
        Ok(Some(Ok(Some(record)))) => Recorded::Record(record.clone()),
        Ok(Some(Ok(None))) => Recorded::Nothing,
        Ok(Some(Err(error))) => Recorded::Unreadable { why: error.to_string() },
        Ok(None) => Recorded::NoPod,
        Err(why) => Recorded::Unreadable { why: why.clone() },
    }
}

impl Node {
    /// The host's user namespace is that of its init, which is not the initial one on a node that is a container.
    fn find_host(&mut self, proc: &ProcFs) -> Result<(), ObserveError> {
        self.host = match proc.user_namespace(1) {
            Ok(inum) => inum,
            Err(error) => {
                let own = proc.user_namespace(std::process::id()).map_err(ObserveError::Host)?;
                self.notes.push(format!("{error}; this process's user namespace is taken for the host's"));
                own
            }
        };
        Ok(())
    }

    fn note_reader(&mut self, proc: &ProcFs, cgroups: &CgroupFs) {
        if cgroups.is_hybrid() {
            self.notes.push(format!(
                "version 1 cgroup hierarchies exist beside {}; kubelet uses those, and its pods do not show here",
                cgroups.root().display()
            ));
        }
        if proc.user_namespace(std::process::id()).is_ok_and(|own| own != self.host) {
            self.notes.push(
                "this is not run in the host's user namespace; the ids shown are not the host's".into(),
            );
        }
        if !rustix::process::geteuid().is_root() {
            self.notes.push("not run as root; processes of other users cannot be inspected".into());
        }
    }

    fn find_containers(&mut self, proc: &ProcFs, cgroups: &CgroupFs) -> Result<(), CgroupFsError> {
        let mut found: BTreeMap<String, PodCgroup> = BTreeMap::new();
        let stats = cgroups.walk(|cgroup| {
            if matches!(cgroup.role, role::POD | role::CONTAINER) {
                let path = cgroup.path.as_str().to_owned();
                found.extend(cgroup::parse(&path).map(|parsed| (path, parsed)));
            }
        })?;
        if let Some((path, errno)) = stats.first_error {
            self.notes.push(format!(
                "{} cgroups could not be read; the first: {}: {errno}",
                stats.errors,
                path.display()
            ));
        }
        let with_containers: Vec<_> =
            found.values().filter(|it| it.container.is_some()).map(|it| it.uid.clone()).collect();
        for (cgroup, parsed) in found {
            if parsed.container.is_some() || !with_containers.contains(&parsed.uid) {
                let pids = cgroups.processes(&cgroup, MAX_PROCESSES).unwrap_or_default();
                let look =
                    if parsed.container.is_some() { inspect(proc, &pids, self.host) } else { Look::Empty };
                let (pod, id, processes) = (parsed.uid, parsed.container, pids.len());
                self.containers.push(Container { pod, id, cgroup, processes, look });
            }
        }
        self.containers.sort_by(|a, b| (&a.pod, &a.cgroup).cmp(&(&b.pod, &b.cgroup)));
        Ok(())
    }
}

/// Finds the process that stands for a container: its first one, which was there before anything that enters it
/// from the host or that it made itself.
fn inspect(proc: &ProcFs, pids: &[u32], host: u32) -> Look {
    let (mut first, mut in_host, mut refused) = (None, 0, None);
    let mut namespaces: BTreeMap<u32, Namespace> = BTreeMap::new();
    for pid in pids.iter().take(MAX_INSPECTED) {
        match namespace(proc, *pid, &mut namespaces) {
            Ok((inum, start)) => {
                in_host += usize::from(inum == host);
                let this = (start, *pid, inum);
                first = Some(first.map_or(this, |first: (Nanos, u32, u32)| first.min(this)));
            }
            // ended since it was listed
            Err(ProcError::Gone { .. }) => {}
            Err(error) => refused = Some(error.to_string()),
        }
    }
    match (first, refused) {
        (Some((_, pid, inum)), _) => Look::Process(Sample {
            pid,
            comm: proc.comm(pid).unwrap_or_default(),
            userns: namespaces.get(&inum).cloned().unwrap_or_default(),
            in_host,
            nested: namespaces.keys().filter(|other| **other != inum && **other != host).count(),
        }),
        (None, Some(why)) => Look::Unreadable { why },
        (None, None) => Look::Empty,
    }
}

/// The number of a process's user namespace, whose maps are read when it is first met, and when it started.
fn namespace(
    proc: &ProcFs,
    pid: u32,
    known: &mut BTreeMap<u32, Namespace>,
) -> Result<(u32, Nanos), ProcError> {
    let inum = proc.user_namespace(pid)?;
    if let Entry::Vacant(slot) = known.entry(inum) {
        let namespace = Namespace { inum, uid_map: proc.uid_map(pid)?, gid_map: proc.gid_map(pid)? };
        // it may have gone elsewhere in between
        if proc.user_namespace(pid)? == inum {
            slot.insert(namespace);
        }
    }
    Ok((inum, proc.process(pid)?.start))
}
