//! What is known of the container and pod that a finding is about.

use super::Engine;
use crate::core::context::Context;
use crate::core::finding::{CameFrom, ContainerRef, Finding, HostNamespaces, PodRef};
use crate::core::open::Key;
use crate::core::pods::Pod;
use crate::event::{CgroupId, PodUid};

impl Engine {
    /// The open finding with what is known of its container and pod.
    pub(super) fn described(&self, key: &Key) -> Option<Finding> {
        let (finding, container) = self.open.get(key)?;
        let mut finding = finding.clone();
        self.describe(&mut finding, container);
        Some(finding)
    }

    /// Adds what is known of container and pod, and says what is not.
    pub(super) fn describe(&self, finding: &mut Finding, container: Option<CgroupId>) {
        let context = self.context(container);
        let (known, pod) = refs(&context);
        if known.is_none() && finding.container.is_some() {
            // it outlived its container, and is known as it was told last
            return;
        }
        finding.unknown.clear();
        if known.is_none() {
            finding.unknown.push("container: its cgroup was not seen");
            return;
        }
        finding.container = known;
        finding.pod = pod;
        let came_from = finding.task.as_ref().map(|event| CgroupId(event.task.lineage.container));
        finding.from = came_from.filter(|from| Some(*from) != container).and_then(|from| {
            let (container, pod) = refs(&self.context(Some(from)));
            container.map(|container| Box::new(CameFrom { container, pod }))
        });
        let Some((_, pod)) = context.pod else {
            finding.unknown.push("pod: the cgroup path names none");
            return;
        };
        if pod.spec().is_none() {
            finding.unknown.push("pod name, namespace and labels: no source has told them");
        }
        if pod.declared().is_none() {
            finding.unknown.push("spec.hostUsers, owner and service account: no Pod object was given");
        }
        if finding.container.as_ref().is_some_and(|known| known.kind.is_none() && !known.id.is_empty()) {
            finding.unknown.push("container name and image: no source has told them");
        }
        if pod.record.is_none() {
            finding.unknown.push("recorded range: kubelet has no record of a user namespace for this pod");
        }
    }
}

/// What is known of container and pod.
pub(super) fn refs(context: &Context<'_>) -> (Option<ContainerRef>, Option<PodRef>) {
    let container = context.container.map(|container| {
        let spec = context.pod.and_then(|(_, pod)| pod.container(&container.id));
        let told = |text: String| (!text.is_empty()).then_some(text);
        let kind = spec.as_ref().map(|spec| spec.kind);
        let (name, image, image_digest) =
            spec.map_or_else(Default::default, |spec| (told(spec.name), told(spec.image), spec.image_digest));
        ContainerRef {
            name,
            kind,
            image,
            image_digest,
            id: container.id.clone(),
            runtime: container.runtime,
            cgroup: container.cgroup,
            cgroup_path: container.path.as_str().to_owned(),
        }
    });
    let pod = context.pod.map(|(uid, pod)| pod_ref(uid, pod));
    (container, pod)
}

pub(super) fn pod_ref(uid: &PodUid, pod: &Pod) -> PodRef {
    let mut known = PodRef { uid: uid.clone(), ..PodRef::default() };
    if let Some((source, spec)) = pod.described() {
        known.source = Some(source);
        known.namespace = Some(spec.namespace.clone());
        known.name = Some(spec.name.clone());
        known.labels.clone_from(&spec.labels);
        known.owner.clone_from(&spec.owner);
        known.service_account.clone_from(&spec.service_account);
        known.runtime_class.clone_from(&spec.runtime_class);
    }
    if let Some(spec) = pod.declared() {
        known.host_users = spec.host_users;
        let (network, pid, ipc) = (spec.host_network, spec.host_pid, spec.host_ipc);
        known.host_namespaces = Some(HostNamespaces { network, pid, ipc });
    }
    if let Some(record) = &pod.record {
        known.recorded_uid_map.clone_from(&record.uid_mappings);
    }
    known
}
