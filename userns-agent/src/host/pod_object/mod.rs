//! Pod objects (core/v1) as the API server, kubelet and the pods file give them. Pure.
//!
//! Only what is needed of an object is kept while it is read; everything else is passed over, whatever it is.
//! Anything may be absent or null.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::brief;
use crate::event::{ContainerKind, ContainerSpec, Owner, PodSpec, PodUid, SecurityContext, Volume};

/// Longest text that is kept, in bytes: that of a path (`PATH_MAX`). Names are far shorter.
const MAX_TEXT: usize = 4096;
/// Most containers of a kind, volumes, labels, or capabilities that are kept of a pod.
const MAX_LIST: usize = 256;

/// A Pod, or a list of them; also what a bookmark of a watch carries.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Object {
    pub(super) kind: Option<String>,
    pub(super) metadata: Option<Metadata>,
    spec: Option<Spec>,
    status: Option<Status>,
    pub(super) items: Option<Vec<Object>>,
}

/// Metadata of an object, or of a list.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    uid: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
    annotations: Option<Annotations>,
    owner_references: Option<Vec<OwnerReference>>,
    pub(super) resource_version: Option<String>,
    /// Where a list goes on.
    #[serde(rename = "continue")]
    pub(super) next: Option<String>,
}

impl Metadata {
    /// Whether this is the bookmark after which a watch that began with a list has told everything there was.
    pub(super) fn ends_initial_events(&self) -> bool {
        let annotations = self.annotations.as_ref();
        annotations.and_then(|it| it.initial_events_end.as_deref()) == Some("true")
    }
}

/// Values of other annotations are passed over, however long.
#[derive(Default, Deserialize)]
struct Annotations {
    #[serde(rename = "kubernetes.io/config.mirror")]
    mirror: Option<String>,
    #[serde(rename = "k8s.io/initial-events-end")]
    initial_events_end: Option<String>,
}

#[derive(Deserialize)]
struct OwnerReference {
    kind: Option<String>,
    name: Option<String>,
    controller: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    service_account_name: Option<String>,
    runtime_class_name: Option<String>,
    host_users: Option<bool>,
    host_network: Option<bool>,
    #[serde(rename = "hostPID")]
    host_pid: Option<bool>,
    #[serde(rename = "hostIPC")]
    host_ipc: Option<bool>,
    security_context: Option<Security>,
    init_containers: Option<Vec<Container>>,
    containers: Option<Vec<Container>>,
    ephemeral_containers: Option<Vec<Container>>,
    volumes: Option<Vec<VolumeObject>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: Option<String>,
    image: Option<String>,
    restart_policy: Option<String>,
    security_context: Option<Security>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Security {
    privileged: Option<bool>,
    run_as_user: Option<i64>,
    run_as_group: Option<i64>,
    run_as_non_root: Option<bool>,
    allow_privilege_escalation: Option<bool>,
    read_only_root_filesystem: Option<bool>,
    proc_mount: Option<String>,
    capabilities: Option<Capabilities>,
    seccomp_profile: Option<Profile>,
    app_armor_profile: Option<Profile>,
}

#[derive(Default, Deserialize)]
struct Capabilities {
    add: Option<Vec<String>>,
    drop: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Profile {
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    init_container_statuses: Option<Vec<ContainerStatus>>,
    container_statuses: Option<Vec<ContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Deserialize)]
struct ContainerStatus {
    name: Option<String>,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    #[serde(rename = "imageID")]
    image_id: Option<String>,
}

/// A volume: its name, and one more key, which is its source.
#[derive(Default)]
struct VolumeObject {
    name: Option<String>,
    source: Option<String>,
    host_path: Option<String>,
}

#[derive(Deserialize)]
struct HostPath {
    path: Option<String>,
}

impl<'de> Deserialize<'de> for VolumeObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(VolumeVisitor)
    }
}

struct VolumeVisitor;

impl<'de> Visitor<'de> for VolumeVisitor {
    type Value = VolumeObject;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a volume")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VolumeObject, A::Error> {
        let mut volume = VolumeObject::default();
        while let Some(key) = map.next_key::<String>()? {
            let is_source = match key.as_str() {
                "name" => {
                    volume.name = map.next_value()?;
                    false
                }
                "hostPath" => {
                    let source = map.next_value::<Option<HostPath>>()?;
                    let is_source = source.is_some();
                    volume.host_path = source.and_then(|source| source.path);
                    is_source
                }
                _ => map.next_value::<Option<IgnoredAny>>()?.is_some(),
            };
            if is_source {
                volume.source = Some(key);
            }
        }
        Ok(volume)
    }
}

/// Why an object is no pod that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no usable {key}: {reason}")]
pub(super) struct PodFault {
    /// What it lacks.
    pub(super) key: &'static str,
    /// What is wrong with it.
    pub(super) reason: &'static str,
}

/// A pod as it was read.
pub(super) struct ReadPod {
    pub(super) spec: PodSpec,
    /// Whether there was more of it than is kept.
    pub(super) cut: bool,
}

/// Reads a PodList, or a page of one. Its items do not say what they are.
///
/// # Errors
///
/// What is wrong with it.
pub(super) fn read_list(text: &[u8]) -> Result<Object, String> {
    let list: Object = serde_json::from_slice(text).map_err(|error| brief(&error.to_string()))?;
    match list.kind.as_deref() {
        Some("PodList") => Ok(list),
        Some(kind) => Err(brief(&format!("a {kind} where a PodList was asked for"))),
        None => Err("an object of no kind where a PodList was asked for".to_owned()),
    }
}

/// Reads a Pod.
pub(super) fn read_pod(object: Object) -> Result<ReadPod, PodFault> {
    let metadata = object.metadata.unwrap_or_default();
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let name = metadata.name.filter(|name| !name.is_empty());
    let name = name.ok_or(PodFault { key: "metadata.name", reason: "it is missing" })?;
    let (uid, mirror_uid) = uids(metadata.uid, metadata.annotations.unwrap_or_default().mirror)?;
    let mut bounds = Bounds { cut: false };
    let initial =
        joined(
            &mut bounds,
            spec.init_containers,
            status.init_container_statuses,
            |container| match container.restart_policy.as_deref() {
                Some("Always") => ContainerKind::Sidecar,
                _ => ContainerKind::Init,
            },
        );
    let mut containers = initial;
    let ordinary = |_: &Container| ContainerKind::Container;
    containers.extend(joined(&mut bounds, spec.containers, status.container_statuses, ordinary));
    let ephemeral = |_: &Container| ContainerKind::Ephemeral;
    let statuses = status.ephemeral_container_statuses;
    containers.extend(joined(&mut bounds, spec.ephemeral_containers, statuses, ephemeral));
    let labels = metadata.labels.unwrap_or_default().into_iter();
    let labels = labels.map(|(key, value)| (key, value.unwrap_or_default()));
    let owners = metadata.owner_references.unwrap_or_default();
    let owner = owners.into_iter().find(|owner| owner.controller == Some(true));
    let spec = PodSpec {
        uid,
        mirror_uid,
        namespace: bounds.text(metadata.namespace.unwrap_or_else(|| "default".to_owned())),
        name: bounds.text(name),
        labels: bounds
            .list(labels)
            .into_iter()
            .map(|(key, value)| (bounds.text(key), bounds.text(value)))
            .collect(),
        owner: owner.map(|owner| Owner {
            kind: bounds.text(owner.kind.unwrap_or_default()),
            name: bounds.text(owner.name.unwrap_or_default()),
        }),
        service_account: bounds.optional(spec.service_account_name),
        runtime_class: bounds.optional(spec.runtime_class_name),
        host_users: spec.host_users,
        host_network: spec.host_network.unwrap_or_default(),
        host_pid: spec.host_pid.unwrap_or_default(),
        host_ipc: spec.host_ipc.unwrap_or_default(),
        security: security(&mut bounds, spec.security_context),
        containers,
        volumes: volumes(&mut bounds, spec.volumes),
    };
    Ok(ReadPod { spec, cut: bounds.cut })
}

/// Kubelet's UID of a pod, and the API server's if that is another. Kubelet knows a static pod by its
/// configuration's hash, which the mirror tells in an annotation. Anyone may write other annotations of the kind on
/// any pod, and it still runs under its own UID; one with this is never run.
fn uids(uid: Option<String>, mirror: Option<String>) -> Result<(PodUid, Option<PodUid>), PodFault> {
    let wrong = |reason| PodFault { key: "metadata.uid", reason };
    let own = uid.as_deref().map(PodUid::parse);
    match mirror.as_deref().and_then(PodUid::parse) {
        Some(hash) => {
            let own = own.flatten().filter(|own| *own != hash);
            Ok((hash, own))
        }
        None => match own {
            Some(Some(own)) => Ok((own, None)),
            Some(None) => Err(wrong("it is neither a UUID nor 32 hex digits")),
            None => Err(wrong("it is missing; write the file from a cluster's own objects")),
        },
    }
}

/// Containers of one kind with their statuses.
fn joined(
    bounds: &mut Bounds,
    containers: Option<Vec<Container>>,
    statuses: Option<Vec<ContainerStatus>>,
    kind: impl Fn(&Container) -> ContainerKind,
) -> Vec<ContainerSpec> {
    let statuses = statuses.unwrap_or_default().into_iter();
    let mut statuses: BTreeMap<_, _> =
        statuses.filter_map(|status| Some((status.name?, (status.container_id, status.image_id)))).collect();
    let containers = bounds.list(containers.unwrap_or_default().into_iter());
    let join = |container: Container| {
        let kind = kind(&container);
        let name = container.name.unwrap_or_default();
        let (id, image) = statuses.remove(&name).unwrap_or_default();
        ContainerSpec {
            name: bounds.text(name),
            kind,
            image: bounds.text(container.image.unwrap_or_default()),
            image_digest: image.as_deref().and_then(digest),
            id: id.as_deref().and_then(container_id),
            security: security(bounds, container.security_context),
        }
    };
    containers.into_iter().map(join).collect()
}

/// The id without the runtime's scheme: `containerd://1f…` is `1f…`.
fn container_id(text: &str) -> Option<String> {
    let id = text.rsplit_once("://").map_or(text, |(_, id)| id);
    let is_id = !id.is_empty() && id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_id.then(|| id.to_owned())
}

/// The digest in a reference to an image, such as `docker.io/library/busybox@sha256:…`, or alone.
fn digest(text: &str) -> Option<String> {
    let digest = text.rsplit_once('@').map_or(text, |(_, digest)| digest);
    let hex = digest.strip_prefix("sha256:")?;
    (hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| digest.to_owned())
}

fn security(bounds: &mut Bounds, context: Option<Security>) -> SecurityContext {
    let context = context.unwrap_or_default();
    let capabilities = context.capabilities.unwrap_or_default();
    SecurityContext {
        privileged: context.privileged,
        run_as_user: context.run_as_user,
        run_as_group: context.run_as_group,
        run_as_non_root: context.run_as_non_root,
        allow_privilege_escalation: context.allow_privilege_escalation,
        read_only_root_filesystem: context.read_only_root_filesystem,
        proc_mount: bounds.optional(context.proc_mount),
        capabilities_add: bounds.texts(capabilities.add),
        capabilities_drop: bounds.texts(capabilities.drop),
        seccomp_profile: bounds.optional(context.seccomp_profile.and_then(|profile| profile.kind)),
        app_armor_profile: bounds.optional(context.app_armor_profile.and_then(|profile| profile.kind)),
    }
}

fn volumes(bounds: &mut Bounds, volumes: Option<Vec<VolumeObject>>) -> Vec<Volume> {
    let volumes = bounds.list(volumes.unwrap_or_default().into_iter());
    let volume = |volume: VolumeObject| Volume {
        name: bounds.text(volume.name.unwrap_or_default()),
        source: bounds.text(volume.source.unwrap_or_default()),
        host_path: bounds.optional(volume.host_path),
    };
    volumes.into_iter().map(volume).collect()
}

/// Keeps a pod from taking more memory than one can need.
struct Bounds {
    cut: bool,
}

impl Bounds {
    fn text(&mut self, mut text: String) -> String {
        if text.len() > MAX_TEXT {
            self.cut = true;
            text.truncate(text.floor_char_boundary(MAX_TEXT));
        }
        text
    }

    fn optional(&mut self, text: Option<String>) -> Option<String> {
        text.map(|text| self.text(text))
    }

    fn texts(&mut self, texts: Option<Vec<String>>) -> Vec<String> {
        let texts = self.list(texts.unwrap_or_default().into_iter());
        texts.into_iter().map(|text| self.text(text)).collect()
    }

    fn list<T>(&mut self, mut items: impl Iterator<Item = T>) -> Vec<T> {
        let kept = items.by_ref().take(MAX_LIST).collect();
        self.cut |= items.next().is_some();
        kept
    }
}
