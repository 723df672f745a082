//! From the CRI's messages to what the agent knows of pods. Pure.

use std::collections::BTreeMap;

use super::proto;
use crate::event::{ContainerSpec, Extent, PodSpec, PodUid, Sandbox, UsernsMode};

/// Label by which kubelet tells the runtime a pod's UID (pkg/kubelet/types/labels.go).
const UID_LABEL: &str = "io.kubernetes.pod.uid";
/// Labels that kubelet and runtimes add to the pod's own begin so.
const ADDED_LABELS: [&str; 2] = ["io.kubernetes.pod.", "io.kubernetes.container."];

/// A sandbox without its containers; `None` if it is no pod's: whoever talks to the runtime can make sandboxes.
pub(super) fn from_status(status: proto::PodSandboxStatus) -> Option<Sandbox> {
    let options = status.linux.and_then(|linux| linux.namespaces).and_then(|namespaces| namespaces.options);
    let item = proto::PodSandbox {
        id: status.id,
        metadata: status.metadata,
        created_at: status.created_at,
        labels: status.labels,
        runtime_handler: status.runtime_handler,
    };
    let mut sandbox = from_item(item)?;
    if let Some(options) = options {
        add_namespaces(&mut sandbox, options);
    }
    Some(sandbox)
}

/// As [`from_status`], from a list, which does not tell namespaces.
pub(super) fn from_item(item: proto::PodSandbox) -> Option<Sandbox> {
    let metadata = item.metadata.unwrap_or_default();
    let label = || item.labels.get(UID_LABEL).and_then(|uid| PodUid::parse(uid));
    let pod = PodSpec {
        uid: PodUid::parse(&metadata.uid).or_else(label)?,
        namespace: metadata.namespace,
        name: metadata.name,
        labels: own_labels(item.labels),
        runtime_class: told(item.runtime_handler),
        ..PodSpec::default()
    };
    Some(Sandbox { id: item.id, pod, created_at: item.created_at, ..Sandbox::default() })
}

fn add_namespaces(sandbox: &mut Sandbox, options: proto::NamespaceOption) {
    sandbox.pod.host_network = options.network == proto::NODE;
    sandbox.pod.host_pid = options.pid == proto::NODE;
    sandbox.pod.host_ipc = options.ipc == proto::NODE;
    // kubelet before 1.25, and one without user namespaces, do not say: the runtime's default is the host's
    let Some(userns) = options.userns_options else { return };
    sandbox.userns_mode = match userns.mode {
        proto::POD => UsernsMode::Pod,
        proto::NODE => UsernsMode::Node,
        _ => UsernsMode::Unknown,
    };
    sandbox.uid_mappings = extents(&userns.uids);
    sandbox.gid_mappings = extents(&userns.gids);
}

fn extents(mappings: &[proto::IdMapping]) -> Vec<Extent> {
    let extent =
        |it: &proto::IdMapping| Extent { first: it.container_id, lower_first: it.host_id, count: it.length };
    mappings.iter().map(extent).collect()
}

fn own_labels(mut labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
    labels.retain(|key, _| !ADDED_LABELS.iter().any(|added| key.starts_with(added)));
    labels
}

/// A container. The CRI does not tell init containers from others.
pub(super) fn container(status: proto::ContainerStatus) -> ContainerSpec {
    let image = status.image.unwrap_or_default();
    ContainerSpec {
        name: status.metadata.unwrap_or_default().name,
        image: told(image.user_specified_image).unwrap_or(image.image),
        image_digest: digest(&status.image_ref),
        id: Some(status.id),
        ..ContainerSpec::default()
    }
}

/// As [`container`], from a list, which runtimes fill with less.
pub(super) fn container_of_item(item: proto::Container) -> ContainerSpec {
    let proto::Container { id, metadata, image, image_ref, .. } = item;
    container(proto::ContainerStatus { id, metadata, image, image_ref })
}

/// The digest of `name@sha256:…`. A reference that is a digest alone is the id of an image that no registry knows.
fn digest(image_ref: &str) -> Option<String> {
    image_ref.split_once('@').map(|(_, digest)| digest.to_owned())
}

fn told(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
