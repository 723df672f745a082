//! The manifests below deploy/kustomize: complete, of Kubernetes 1.36's form, and asking for no more than the agent needs.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use userns_agent::sink::http;
use userns_agent::{cli, config};

/// A change to the manifests.
type Change = fn(&mut Manifests);

/// The objects, by kind; there is one of each.
#[derive(Clone)]
struct Manifests(BTreeMap<String, Value>);

fn kustomize() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kustomize")
}

fn read(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// What `kubectl kustomize` would render: the base transforms nothing.
fn base() -> Manifests {
    let dir = kustomize().join("base");
    let kustomization = read(&dir.join("kustomization.yaml"));
    let keys: Vec<_> = kustomization.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["apiVersion", "kind", "resources"]);
    let listed: BTreeSet<_> = texts(&kustomization["resources"]).into_iter().map(str::to_owned).collect();
    let files = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files: BTreeSet<_> = files.filter(|name| name != "kustomization.yaml").collect();
    assert_eq!(listed, files, "listed are not those that are there");
    let objects = listed.iter().map(|name| read(&dir.join(name)));
    Manifests(objects.map(|object| (object["kind"].as_str().unwrap().to_owned(), object)).collect())
}

impl Manifests {
    fn at(&mut self, kind: &str, pointer: &str) -> &mut Value {
        self.0
            .get_mut(kind)
            .unwrap()
            .pointer_mut(pointer)
            .unwrap_or_else(|| panic!("{kind} has no {pointer}"))
    }

    fn get(&self, kind: &str, pointer: &str) -> &Value {
        self.0.get(kind).and_then(|object| object.pointer(pointer)).unwrap_or(&Value::Null)
    }

    fn list(&self, kind: &str, pointer: &str) -> &[Value] {
        self.get(kind, pointer).as_array().map(Vec::as_slice).unwrap_or_default()
    }

    /// Everything that is wrong.
    fn problems(&self) -> Vec<String> {
        let all =
            [self.form(), self.permissions(), self.paths(), self.container(), self.probes(), self.config()];
        all.into_iter().flatten().collect()
    }

    /// Fields that Kubernetes does not know or that are of another type.
    fn form(&self) -> Vec<String> {
        let check = |(kind, object): (&String, &Value)| match kind.as_str() {
            "Namespace" => unknown::<Namespace>(object),
            "ServiceAccount" => unknown::<ServiceAccount>(object),
            "ClusterRole" => unknown::<ClusterRole>(object),
            "ClusterRoleBinding" => unknown::<ClusterRoleBinding>(object),
            "ConfigMap" => unknown::<ConfigMap>(object),
            "DaemonSet" => unknown::<DaemonSet>(object),
            "Service" => unknown::<Service>(object),
            other => Err(format!("a {other} is not part of it")),
        };
        self.0.iter().filter_map(|entry| check(entry).err()).collect()
    }

    /// Pods may be read and watched, nodes read; nothing else.
    fn permissions(&self) -> Vec<String> {
        let allowed = [
            json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}),
            json!({"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}),
        ];
        let rules = self.list("ClusterRole", "/rules");
        let mut wrong: Vec<_> = rules
            .iter()
            .filter(|rule| !allowed.contains(rule))
            .map(|rule| format!("permission {rule}"))
            .collect();
        let name = |kind, pointer| self.get(kind, pointer).as_str().unwrap_or_default();
        let account = name("ServiceAccount", "/metadata/name");
        let subject = json!([{"kind": "ServiceAccount", "name": account, "namespace": name("Namespace", "/metadata/name")}]);
        if *self.get("ClusterRoleBinding", "/subjects") != subject {
            wrong.push("the role is bound to others".into());
        }
        if name("ClusterRoleBinding", "/roleRef/name") != name("ClusterRole", "/metadata/name") {
            wrong.push("another role is bound".into());
        }
        if name("DaemonSet", "/spec/template/spec/serviceAccountName") != account {
            wrong.push("the pods have another service account".into());
        }
        wrong
    }

    /// Paths of the host are mounted for reading, and no secret is.
    fn paths(&self) -> Vec<String> {
        const NEEDED: [&str; 4] =
            ["/var/lib/kubelet/pods", "/sys/fs/cgroup", "/sys/kernel/btf", "/sys/kernel/tracing"];
        let (mut wrong, mut paths) = (Vec::new(), Vec::new());
        let mounts = self.list("DaemonSet", "/spec/template/spec/containers/0/volumeMounts");
        for volume in self.list("DaemonSet", "/spec/template/spec/volumes") {
            let name = &volume["name"];
            let mount = mounts.iter().find(|mount| mount["name"] == *name);
            let read_only = mount.is_some_and(|mount| mount["readOnly"] == true);
            match volume.as_object().unwrap().keys().find(|key| *key != "name").map(String::as_str) {
                Some("hostPath") if read_only => paths.extend(volume["hostPath"]["path"].as_str()),
                Some("configMap") if read_only => {}
                Some("emptyDir") if mount.is_some() => {}
                source => wrong.push(format!("volume {name} of {source:?}: read-only {read_only}")),
            }
        }
        if paths != NEEDED {
            wrong.push(format!("host paths {paths:?}"));
        }
        wrong.extend(mounts.iter().filter_map(|mount| {
            let path = mount["mountPath"].as_str()?;
            let from_host = path.starts_with("/host/kubelet");
            (from_host && mount["mountPropagation"] != "HostToContainer")
                .then(|| format!("{path} keeps what the host unmounts"))
        }));
        wrong
    }

    fn container(&self) -> Vec<String> {
        let container = |pointer: &str| {
            self.get("DaemonSet", &format!("/spec/template/spec/containers/0{pointer}")).clone()
        };
        let pod = |pointer: &str| self.get("DaemonSet", &format!("/spec/template/spec{pointer}")).clone();
        let mut wrong = Vec::new();
        let mut must = |what: &str, value: Value, wanted: Value| {
            if value != wanted {
                wrong.push(format!("{what} is {value}"));
            }
        };
        must("privileged", container("/securityContext/privileged"), json!(true));
        must("readOnlyRootFilesystem", container("/securityContext/readOnlyRootFilesystem"), json!(true));
        must("hostPID", pod("/hostPID"), json!(true));
        must("hostUsers", pod("/hostUsers"), Value::Null);
        must("hostNetwork", pod("/hostNetwork"), Value::Null);
        must("tolerations", pod("/tolerations"), json!([{"operator": "Exists"}]));
        must("NODE_NAME", container("/env/0/valueFrom/fieldRef/fieldPath"), json!("spec.nodeName"));
        must("strategy", self.get("DaemonSet", "/spec/updateStrategy/type").clone(), json!("RollingUpdate"));
        for what in ["requests/cpu", "requests/memory", "limits/cpu", "limits/memory"] {
            must(what, json!(container(&format!("/resources/{what}")).is_string()), json!(true));
        }
        let containerfile = fs::read_to_string(kustomize().join("../Containerfile")).unwrap();
        let title = format!("-t {} ", container("/image").as_str().unwrap_or_default());
        if !containerfile.contains(&title) {
            wrong.push(format!("the Containerfile does not say `{title}`"));
        }
        wrong
    }

    /// Probes ask for paths that the agent serves, at the port that it is told to serve.
    fn probes(&self) -> Vec<String> {
        let container = "/spec/template/spec/containers/0";
        let served: Vec<_> = http::paths().map(|(path, _)| path).collect();
        let mut wrong = Vec::new();
        for (probe, path) in
            [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")]
        {
            let asked = self.get("DaemonSet", &format!("{container}/{probe}/httpGet/path"));
            let port = self.get("DaemonSet", &format!("{container}/{probe}/httpGet/port"));
            if asked != path || !served.contains(&path) || port != "metrics" {
                wrong.push(format!("{probe} asks for {asked} at {port}"));
            }
        }
        let port = self.get("DaemonSet", &format!("{container}/ports/0/containerPort"));
        let annotations = self.get("Service", "/metadata/annotations");
        let scraped = (&annotations["prometheus.io/port"], &annotations["prometheus.io/path"]);
        let config =
            self.parsed().map(|config| (json!(config.listen.port()), config.listen.ip().is_unspecified()));
        if config != Ok((port.clone(), true)) || self.get("Service", "/spec/ports/0/port") != port {
            wrong.push(format!("port {port} is not that of the configuration or the Service: {config:?}"));
        }
        if scraped.0.as_str() != Some(port.to_string().as_str())
            || scraped.1 != "/metrics"
            || !served.contains(&"/metrics")
        {
            wrong.push(format!("scraped is {scraped:?}"));
        }
        wrong
    }

    fn parsed(&self) -> Result<config::Config, String> {
        let text = self.get("ConfigMap", "/data/agent.yaml").as_str().unwrap_or_default();
        let loaded = config::parse(Some((Path::new("agent.yaml"), text)), &[]);
        loaded.map(|loaded| loaded.config).map_err(|error| error.to_string())
    }

    /// The configuration is one, and names places that are mounted.
    fn config(&self) -> Vec<String> {
        let config = match self.parsed() {
            Ok(config) => config,
            Err(error) => return vec![error],
        };
        let mounts = self.list("DaemonSet", "/spec/template/spec/containers/0/volumeMounts");
        let mounted: Vec<_> =
            mounts.iter().filter_map(|mount| mount["mountPath"].as_str()).map(Path::new).collect();
        let pods = Some(config.kubelet_root.join("pods"));
        let places = [pods, config.cgroup_root, config.state_dir, config.socket];
        let missing = places
            .into_iter()
            .flatten()
            .filter(|place| !mounted.iter().any(|mount| place.starts_with(mount)));
        missing.map(|place| format!("{} is not mounted", place.display())).collect()
    }
}

/// An error if `object` has a field that `T` does not know, or lacks one that it must have.
fn unknown<T: DeserializeOwned + Serialize>(object: &Value) -> Result<(), String> {
    let kind = &object["kind"];
    let read: T = serde_json::from_value(object.clone()).map_err(|error| format!("{kind}: {error}"))?;
    let known = serde_json::to_value(read).map_err(|error| format!("{kind}: {error}"))?;
    if &known == object { Ok(()) } else { Err(format!("{kind}: of {object} Kubernetes understands {known}")) }
}

#[test]
fn the_base_is_right() {
    assert_eq!(base().problems(), Vec::<String>::new());
}

const CONTAINER: &str = "/spec/template/spec/containers/0";

/// Each with what is said of it.
const MISTAKES: &[(&str, Change)] = &[
    ("nodes/proxy", |all| {
        all.at("ClusterRole", "/rules/1/resources").as_array_mut().unwrap().push(json!("nodes/proxy"));
    }),
    ("secrets", |all| {
        let rule = json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]});
        all.at("ClusterRole", "/rules").as_array_mut().unwrap().push(rule);
    }),
    ("\"*\"", |all| {
        *all.at("ClusterRole", "/rules/0/verbs") = json!(["*"]);
    }),
    ("bound to others", |all| {
        *all.at("ClusterRoleBinding", "/subjects/0/namespace") = json!("default");
    }),
    ("another role", |all| {
        *all.at("ClusterRoleBinding", "/roleRef/name") = json!("cluster-admin");
    }),
    ("service account", |all| *all.at("DaemonSet", "/spec/template/spec/serviceAccountName") = json!("x")),
    ("read-only false", |all| {
        *all.at("DaemonSet", &format!("{CONTAINER}/volumeMounts/3/readOnly")) = json!(false);
    }),
    ("host paths", |all| *all.at("DaemonSet", "/spec/template/spec/volumes/2/hostPath/path") = json!("/")),
    ("secret", |all| {
        *all.at("DaemonSet", "/spec/template/spec/volumes/0") = json!({"name": "config", "secret": {}});
    }),
    ("keeps what the host unmounts", |all| {
        *all.at("DaemonSet", &format!("{CONTAINER}/volumeMounts/2/mountPropagation")) = json!("None");
    }),
    ("privileged is", |all| {
        *all.at("DaemonSet", &format!("{CONTAINER}/securityContext/privileged")) = json!(false);
    }),
    ("readOnlyRootFilesystem", |all| {
        *all.at("DaemonSet", &format!("{CONTAINER}/securityContext/readOnlyRootFilesystem")) = json!(false);
    }),
    ("hostPID", |all| {
        *all.at("DaemonSet", "/spec/template/spec/hostPID") = json!(false);
    }),
    ("hostUsers", |all| {
        all.at("DaemonSet", "/spec/template/spec")
            .as_object_mut()
            .unwrap()
            .insert("hostUsers".into(), json!(false));
    }),
    ("hostNetwork", |all| {
        all.at("DaemonSet", "/spec/template/spec")
            .as_object_mut()
            .unwrap()
            .insert("hostNetwork".into(), json!(true));
    }),
    ("tolerations", |all| {
        *all.at("DaemonSet", "/spec/template/spec/tolerations") = json!([]);
    }),
    ("NODE_NAME", |all| {
        *all.at("DaemonSet", &format!("{CONTAINER}/env/0/valueFrom/fieldRef/fieldPath")) = json!("spec.name");
    }),
    ("strategy", |all| {
        *all.at("DaemonSet", "/spec/updateStrategy/type") = json!("OnDelete");
    }),
    ("limits/memory", |all| {
        all.at("DaemonSet", &format!("{CONTAINER}/resources/limits"))
            .as_object_mut()
            .unwrap()
            .remove("memory");
    }),
    ("Containerfile", |all| {
        *all.at("DaemonSet", &format!("{CONTAINER}/image")) = json!("other:1");
    }),
    ("livenessProbe asks", |all| {
        *all.at("DaemonSet", &format!("{CONTAINER}/livenessProbe/httpGet/path")) = json!("/alive");
    }),
    ("not that of the configuration", |all| {
        *all.at("DaemonSet", &format!("{CONTAINER}/ports/0/containerPort")) = json!(80);
    }),
    ("not that of the configuration", |all| {
        *all.at("ConfigMap", "/data/agent.yaml") = json!("listen: 127.0.0.1:9477");
    }),
    ("scraped", |all| {
        *all.at("Service", "/metadata/annotations/prometheus.io~1port") = json!("80");
    }),
    ("allowed is", |all| {
        *all.at("ConfigMap", "/data/agent.yaml") = json!("listne: 0.0.0.0:9477");
    }),
    ("/elsewhere/pods is not mounted", |all| {
        *all.at("ConfigMap", "/data/agent.yaml") = json!("kubelet_root: /elsewhere");
    }),
    ("understands", |all| {
        let container = all.at("DaemonSet", CONTAINER).as_object_mut().unwrap();
        container.insert("securityContextt".into(), json!({}));
    }),
    ("invalid type", |all| {
        *all.at("DaemonSet", "/spec/template/spec/hostPID") = json!("yes");
    }),
    ("not part of it", |all| {
        all.0.insert("Secret".into(), json!({"kind": "Secret"}));
    }),
];

#[test]
fn mistakes_are_found() {
    for (wanted, change) in MISTAKES {
        let mut all = base();
        change(&mut all);
        let problems = all.problems();
        assert!(problems.iter().any(|problem| problem.contains(wanted)), "{wanted}: {problems:?}");
    }
}

#[test]
fn the_overlay_adds_one_permission() {
    let overlay = read(&kustomize().join("overlays/kubelet-api/kustomization.yaml"));
    assert_eq!(texts(&overlay["resources"]), ["../../base"]);
    let patches = overlay["patches"].as_array().unwrap();
    let patch: Value = serde_saphyr::from_str(patches[0]["patch"].as_str().unwrap()).unwrap();
    let value = json!({"apiGroups": [""], "resources": ["nodes/pods"], "verbs": ["get"]});
    assert_eq!(patch, json!([{"op": "add", "path": "/rules/-", "value": value}]));
    assert_eq!((patches.len(), &patches[0]["target"]["kind"]), (1, &json!("ClusterRole")));
}

fn simulation() -> PathBuf {
    kustomize().join("../simulate")
}

/// Everything that is wrong with the Job that rehearses escapes.
fn problems_of_simulation(job: &Value) -> Vec<String> {
    let mut wrong: Vec<_> = unknown::<Job>(job).err().into_iter().collect();
    let pod = "/spec/template/spec";
    let container = format!("{pod}/containers/0");
    let at = |pointer: &str| job.pointer(pointer).cloned().unwrap_or(Value::Null);
    for (pointer, wanted) in [
        ("/spec/backoffLimit".to_owned(), json!(0)),
        (format!("{pod}/hostUsers"), json!(false)),
        (format!("{pod}/restartPolicy"), json!("Never")),
        (format!("{pod}/automountServiceAccountToken"), json!(false)),
        (format!("{pod}/hostPID"), Value::Null),
        (format!("{pod}/hostNetwork"), Value::Null),
        (format!("{container}/securityContext/privileged"), json!(false)),
        (format!("{container}/securityContext/readOnlyRootFilesystem"), json!(true)),
        (format!("{container}/securityContext/runAsUser"), json!(0)),
        (format!("{container}/image"), base().get("DaemonSet", &format!("{CONTAINER}/image")).clone()),
        (format!("{container}/env/0/name"), json!("POD_UID")),
        (format!("{container}/env/0/valueFrom/fieldRef/fieldPath"), json!("metadata.uid")),
    ] {
        if at(&pointer) != wanted {
            wrong.push(format!("{pointer} is {}", at(&pointer)));
        }
    }
    for what in ["requests/cpu", "requests/memory", "limits/cpu", "limits/memory"] {
        if !at(&format!("{container}/resources/{what}")).is_string() {
            wrong.push(format!("no {what}"));
        }
    }
    let volumes = at(&format!("{pod}/volumes"));
    if volumes.as_array().into_iter().flatten().any(|volume| volume["emptyDir"].is_null()) {
        wrong.push(format!("volumes {volumes}"));
    }
    let args = at(&format!("{container}/args"));
    let line = ["userns-agent"].into_iter().chain(texts(&args)).map(Into::into);
    if !cli::parse(line).is_ok_and(|cli| matches!(cli.command, cli::Command::Simulate { .. })) {
        wrong.push(format!("arguments {args}"));
    }
    wrong
}

#[test]
fn the_simulation_is_a_job_that_asks_for_nothing() {
    let job = read(&simulation().join("job.yaml"));
    assert_eq!(problems_of_simulation(&job), Vec::<String>::new());
    assert_eq!(texts(&read(&simulation().join("kustomization.yaml"))["resources"]), ["job.yaml"]);
    for (pointer, value, part) in [
        ("/spec/template/spec/hostUsers", json!(true), "hostUsers is true"),
        ("/spec/template/spec/restartPolicy", json!("OnFailure"), "restartPolicy is"),
        ("/spec/backoffLimit", json!(6), "backoffLimit is 6"),
        ("/spec/template/spec/automountServiceAccountToken", json!(true), "Token is true"),
        ("/spec/template/spec/containers/0/securityContext/privileged", json!(true), "privileged is true"),
        ("/spec/template/spec/containers/0/image", json!("other:1"), "image is"),
        ("/spec/template/spec/containers/0/args", json!(["simulate", "everything"]), "arguments"),
        ("/spec/template/spec/containers/0/args", json!(["ps"]), "arguments"),
        ("/spec/template/spec/containers/0/resources/limits", json!({}), "no limits/cpu"),
        ("/spec/template/spec/volumes/0", json!({"name": "h", "hostPath": {"path": "/"}}), "volumes"),
        ("/spec/template/spec/volumes", json!([{"name": "x", "emptyDirr": {}}]), "understands"),
    ] {
        let mut job = job.clone();
        *job.pointer_mut(pointer).unwrap() = value;
        let problems = problems_of_simulation(&job);
        assert!(problems.iter().any(|problem| problem.contains(part)), "{pointer}: {problems:?}");
    }
}

#[test]
fn the_overlay_of_the_simulation_takes_the_user_namespace_away_and_nothing_else() {
    let overlay = read(&simulation().join("host-users/kustomization.yaml"));
    assert_eq!(texts(&overlay["resources"]), [".."]);
    let patches = overlay["patches"].as_array().unwrap();
    let patch: Value = serde_saphyr::from_str(patches[0]["patch"].as_str().unwrap()).unwrap();
    assert_eq!(patch, json!([{"op": "remove", "path": "/spec/template/spec/hostUsers"}]));
    let job = read(&simulation().join("job.yaml"));
    assert_eq!((patches.len(), &patches[0]["target"]["name"]), (1, &job["metadata"]["name"]));
}
