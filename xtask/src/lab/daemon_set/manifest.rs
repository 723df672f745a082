//! As much of Kubernetes' objects as the manifests have. A field or value that is not in here is an error.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};

use super::Probe;

/// What names an object.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) namespace: String,
    #[serde(rename = "labels")]
    _labels: IgnoredAny,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Object {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    #[serde(rename = "selector")]
    _selector: IgnoredAny,
    #[serde(rename = "updateStrategy")]
    _update_strategy: IgnoredAny,
    template: Template,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Template {
    pub(super) metadata: TemplateMetadata,
    pub(super) spec: PodTemplateSpec,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TemplateMetadata {
    pub(super) labels: BTreeMap<String, String>,
    #[serde(rename = "annotations")]
    _annotations: IgnoredAny,
}

/// Fields that begin with `_` are for the API server and the scheduler.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PodTemplateSpec {
    #[serde(rename = "serviceAccountName")]
    _service_account_name: IgnoredAny,
    #[serde(rename = "automountServiceAccountToken")]
    _automount_service_account_token: IgnoredAny,
    #[serde(rename = "priorityClassName")]
    _priority_class_name: PriorityClass,
    #[serde(rename = "nodeSelector")]
    _node_selector: IgnoredAny,
    #[serde(rename = "tolerations")]
    _tolerations: IgnoredAny,
    #[serde(rename = "hostPID")]
    pub(super) host_pid: bool,
    pub(super) termination_grace_period_seconds: u64,
    pub(super) containers: [Container; 1],
    pub(super) volumes: Vec<Volume>,
}

/// kubelet has another score for those that the kernel is to kill first.
#[derive(Debug, Clone, Deserialize)]
enum PriorityClass {
    #[serde(rename = "system-node-critical")]
    SystemNodeCritical,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) image: String,
    #[serde(rename = "imagePullPolicy")]
    _image_pull_policy: PullPolicy,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<Env>,
    ports: Vec<Port>,
    pub(super) security_context: SecurityContext,
    pub(super) startup_probe: HttpProbe,
    pub(super) liveness_probe: HttpProbe,
    pub(super) readiness_probe: HttpProbe,
    pub(super) resources: Resources,
    pub(super) volume_mounts: Vec<VolumeMount>,
}

/// There is no registry.
#[derive(Debug, Clone, Deserialize)]
enum PullPolicy {
    IfNotPresent,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Env {
    pub(super) name: String,
    value_from: ValueFrom,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ValueFrom {
    field_ref: FieldRef,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FieldRef {
    field_path: FieldPath,
}

#[derive(Debug, Clone, Deserialize)]
enum FieldPath {
    #[serde(rename = "spec.nodeName")]
    NodeName,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Port {
    name: String,
    container_port: u16,
    #[serde(rename = "protocol")]
    _protocol: Protocol,
}

#[derive(Debug, Clone, Deserialize)]
enum Protocol {
    #[serde(rename = "TCP")]
    Tcp,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SecurityContext {
    pub(super) privileged: bool,
    pub(super) read_only_root_filesystem: bool,
    pub(super) run_as_user: i64,
    pub(super) run_as_group: i64,
}

/// Defaults are Kubernetes'.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HttpProbe {
    http_get: HttpGet,
    #[serde(default = "ten")]
    period_seconds: u64,
    #[serde(default = "one")]
    timeout_seconds: u64,
    #[serde(default = "three")]
    failure_threshold: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HttpGet {
    path: String,
    /// The name of one.
    port: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Resources {
    pub(super) requests: Amounts,
    pub(super) limits: Amounts,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Amounts {
    pub(super) cpu: String,
    pub(super) memory: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct VolumeMount {
    pub(super) name: String,
    pub(super) mount_path: String,
    #[serde(default)]
    pub(super) read_only: bool,
    #[serde(default)]
    pub(super) mount_propagation: Propagation,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(super) enum Propagation {
    #[default]
    None,
    HostToContainer,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Volume {
    pub(super) name: String,
    config_map: Option<ConfigMapVolume>,
    empty_dir: Option<EmptyDirVolume>,
    host_path: Option<HostPathVolume>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ConfigMapVolume {
    name: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EmptyDirVolume {
    #[serde(rename = "medium")]
    _medium: Medium,
    size_limit: String,
}

#[derive(Debug, Clone, Deserialize)]
enum Medium {
    Memory,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HostPathVolume {
    path: String,
    #[serde(rename = "type")]
    _kind: HostPathType,
}

#[derive(Debug, Clone, Deserialize)]
enum HostPathType {
    Directory,
}

/// What a volume shows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source<'a> {
    /// The ConfigMap of that name.
    ConfigMap(&'a str),
    /// Memory.
    EmptyDir {
        /// A [`quantity`].
        size: &'a str,
    },
    /// A directory of the node, which must be there.
    HostPath(&'a str),
}

/// Files by name.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ConfigMap {
    api_version: String,
    kind: String,
    metadata: Metadata,
    pub(super) data: BTreeMap<String, String>,
}

const fn one() -> u64 {
    1
}

const fn three() -> u32 {
    3
}

const fn ten() -> u64 {
    10
}

/// What names the DaemonSet, and its pods.
pub(super) fn daemon_set(text: &str) -> Result<(Metadata, Template)> {
    let object: Object = read(text)?;
    ensure!((object.api_version.as_str(), object.kind.as_str()) == ("apps/v1", "DaemonSet"), "is none");
    Ok((object.metadata, object.spec.template))
}

pub(super) fn config_map(text: &str) -> Result<ConfigMap> {
    let object: ConfigMap = read(text)?;
    ensure!((object.api_version.as_str(), object.kind.as_str()) == ("v1", "ConfigMap"), "is none");
    Ok(object)
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_saphyr::from_str(text).context("cannot be understood")
}

impl ConfigMap {
    pub(super) fn name(&self) -> &str {
        &self.metadata.name
    }
}

impl Env {
    pub(super) fn value(&self, node_name: &str) -> String {
        match self.value_from.field_ref.field_path {
            FieldPath::NodeName => node_name.to_owned(),
        }
    }
}

impl Container {
    pub(super) fn probe(&self, probe: &HttpProbe) -> Result<Probe> {
        let name = &probe.http_get.port;
        let port = self.ports.iter().find(|port| port.name == *name);
        Ok(Probe {
            path: probe.http_get.path.clone(),
            port: port.with_context(|| format!("no port is called {name}"))?.container_port,
            period: Duration::from_secs(probe.period_seconds),
            timeout: Duration::from_secs(probe.timeout_seconds),
            failures: probe.failure_threshold,
        })
    }
}

impl Volume {
    pub(super) fn source(&self) -> Result<Source<'_>> {
        match (&self.config_map, &self.empty_dir, &self.host_path) {
            (Some(config_map), None, None) => Ok(Source::ConfigMap(&config_map.name)),
            (None, Some(empty_dir), None) => Ok(Source::EmptyDir { size: &empty_dir.size_limit }),
            (None, None, Some(host_path)) => Ok(Source::HostPath(&host_path.path)),
            _ => bail!("the volume {} has not one source", self.name),
        }
    }
}

/// A quantity such as `50m` or `64Mi`, in thousandths.
pub(super) fn quantity(text: &str) -> Result<i64> {
    let digits = text.trim_end_matches(|last: char| last.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "m" => 1,
        "" => 1000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        other => bail!("{text}: the unit {other} is not known"),
    };
    let number: i64 = digits.parse().with_context(|| format!("{text} is no quantity"))?;
    number.checked_mul(unit).with_context(|| format!("{text} is too much"))
}
