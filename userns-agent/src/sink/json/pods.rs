//! What the local socket tells of the pods.

use serde::Serialize;

use super::finding;
use super::process::{Extents, recorded};
use crate::core::{PodView, Promise};
use crate::event::{ContainerSpec, PodSource, SecurityContext, UsernsMode};
use crate::sink::report::WallClock;

/// Name and version of the schema.
const SCHEMA: &str = "userns-agent/pods/v1";

#[derive(Serialize)]
struct Body<'a> {
    schema: &'static str,
    version: &'static str,
    pods: Vec<Pod<'a>>,
}

#[derive(Serialize)]
struct Pod<'a> {
    #[serde(flatten)]
    pod: finding::Pod<'a>,
    sources: Vec<&'static str>,
    promise: &'static str,
    asked: Option<Asked>,
    containers: Vec<Container<'a>>,
    findings: Vec<OpenFinding<'a>>,
}

#[derive(Serialize)]
struct Asked {
    mode: &'static str,
    uid_map: Option<Extents>,
}

#[derive(Serialize)]
struct Container<'a> {
    id: Option<&'a str>,
    name: &'a str,
    kind: &'static str,
    image: &'a str,
    image_digest: Option<&'a str>,
    security_context: Security<'a>,
}

#[derive(Serialize)]
struct Security<'a> {
    privileged: Option<bool>,
    run_as_user: Option<i64>,
    run_as_group: Option<i64>,
    run_as_non_root: Option<bool>,
    allow_privilege_escalation: Option<bool>,
    read_only_root_filesystem: Option<bool>,
    proc_mount: Option<&'a str>,
    capabilities_add: &'a [String],
    capabilities_drop: &'a [String],
    seccomp_profile: Option<&'a str>,
    app_armor_profile: Option<&'a str>,
}

#[derive(Serialize)]
struct OpenFinding<'a> {
    id: String,
    rule: &'static str,
    name: &'static str,
    severity: &'static str,
    container: Option<&'a str>,
    first_seen: String,
    last_seen: String,
    count: u64,
    why: &'a str,
}

impl<'a> Pod<'a> {
    fn new(view: &'a PodView, clock: WallClock) -> Self {
        let asked = |(mode, map): &(UsernsMode, Vec<_>)| Asked {
            mode: match mode {
                UsernsMode::Pod => "pod",
                UsernsMode::Node => "node",
                UsernsMode::Unknown => "unknown",
            },
            uid_map: recorded(map),
        };
        Self {
            pod: finding::Pod::new(&view.pod),
            sources: view.sources.iter().map(|source| PodSource::name(*source)).collect(),
            promise: match view.promise {
                Promise::UserNamespace => "user_namespace",
                Promise::HostUsers => "host_users",
                Promise::Unknown => "unknown",
            },
            asked: view.asked.as_ref().map(asked),
            containers: view.containers.iter().map(Container::new).collect(),
            findings: view.findings.iter().map(|finding| OpenFinding::new(finding, clock)).collect(),
        }
    }
}

impl<'a> Container<'a> {
    fn new(spec: &'a ContainerSpec) -> Self {
        Self {
            id: spec.id.as_deref(),
            name: &spec.name,
            kind: spec.kind.name(),
            image: &spec.image,
            image_digest: spec.image_digest.as_deref(),
            security_context: Security::new(&spec.security),
        }
    }
}

impl<'a> Security<'a> {
    fn new(of: &'a SecurityContext) -> Self {
        Self {
            privileged: of.privileged,
            run_as_user: of.run_as_user,
            run_as_group: of.run_as_group,
            run_as_non_root: of.run_as_non_root,
            allow_privilege_escalation: of.allow_privilege_escalation,
            read_only_root_filesystem: of.read_only_root_filesystem,
            proc_mount: of.proc_mount.as_deref(),
            capabilities_add: &of.capabilities_add,
            capabilities_drop: &of.capabilities_drop,
            seccomp_profile: of.seccomp_profile.as_deref(),
            app_armor_profile: of.app_armor_profile.as_deref(),
        }
    }
}

impl<'a> OpenFinding<'a> {
    fn new(finding: &'a crate::core::finding::Finding, clock: WallClock) -> Self {
        let rule = crate::core::rules::rule(finding.rule);
        Self {
            id: finding.id.to_string(),
            rule: rule.id,
            name: rule.name,
            severity: finding.severity.name(),
            container: finding.container.as_ref().map(|container| container.id.as_str()),
            first_seen: clock.rfc3339(finding.first),
            last_seen: clock.rfc3339(finding.time),
            count: finding.count,
            why: &finding.why,
        }
    }
}

/// What the local socket answers, with its end of line.
///
/// # Errors
///
/// As [`super::Renderer::finding`].
pub fn pods(views: &[PodView], clock: WallClock) -> Result<Vec<u8>, serde_json::Error> {
    let pods = views.iter().map(|view| Pod::new(view, clock)).collect();
    super::format::line(&Body { schema: SCHEMA, version: env!("CARGO_PKG_VERSION"), pods })
}
