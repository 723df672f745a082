//! Pod objects: every field, from JSON and YAML, and what is hostile.

use serde_json::{Value, json};

use super::*;

const UID: &str = "0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11";
const HASH: &str = "51bd78aa51bd78aa51bd78aa51bd78aa";

fn read(pod: &Value) -> Result<ReadPod, PodFault> {
    read_pod(serde_json::from_value(pod.clone()).unwrap())
}

fn spec(pod: &Value) -> PodSpec {
    let pod = read(pod).unwrap();
    assert!(!pod.cut);
    pod.spec
}

/// A pod with one value more, at a place in its metadata or specification.
fn with(place: &str, value: Value) -> Value {
    let mut pod = json!({"metadata": {"uid": UID, "name": "a"}, "spec": {}});
    let (parent, key) = place.rsplit_once('/').unwrap();
    pod.pointer_mut(parent).unwrap()[key] = value;
    pod
}

fn full() -> Value {
    let id = "1f".repeat(32);
    json!({
        "metadata": {
            "uid": UID, "name": "web-1", "namespace": "shop", "labels": {"app": "web", "empty": null},
            "ownerReferences": [{"kind": "Node", "name": "n"},
                                {"kind": "ReplicaSet", "name": "web", "controller": true, "uid": "x"}],
        },
        "spec": {
            "serviceAccountName": "seller", "runtimeClassName": "crun", "hostUsers": false,
            "hostNetwork": true, "hostPID": true, "hostIPC": true,
            "securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "runAsNonRoot": true, "fsGroup": 7,
                                "seccompProfile": {"type": "RuntimeDefault"}},
            "initContainers": [{"name": "migrate", "image": "m:1"},
                               {"name": "proxy", "image": "p:1", "restartPolicy": "Always"}],
            "containers": [{"name": "web", "image": "web:1", "securityContext": {
                "privileged": true, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "procMount": "Unmasked", "capabilities": {"add": ["SYS_ADMIN"], "drop": ["ALL"]},
                "appArmorProfile": {"type": "Localhost", "localhostProfile": "x"}}}],
            "ephemeralContainers": [{"name": "debug", "image": "sh:1", "targetContainerName": "web"}],
            "volumes": [{"name": "root", "hostPath": {"path": "/", "type": ""}},
                        {"name": "claim", "persistentVolumeClaim": {"claimName": "c"}, "secret": null},
                        {"emptyDir": {}, "name": "tmp"}],
        },
        "status": {
            "initContainerStatuses": [{"name": "proxy", "containerID": format!("cri-o://{id}"), "imageID": "x"}],
            "containerStatuses": [{"name": "gone", "containerID": "containerd://00"},
                {"name": "web", "containerID": format!("containerd://{id}"),
                 "imageID": format!("registry.example/web@sha256:{id}")}],
            "ephemeralContainerStatuses": [{"name": "debug", "containerID": "", "imageID": format!("sha256:{id}")}],
        },
    })
}

fn expected() -> PodSpec {
    let id = "1f".repeat(32);
    let container = |name: &str, kind, image: &str| ContainerSpec {
        name: name.into(),
        kind,
        image: image.into(),
        ..ContainerSpec::default()
    };
    let volume = |name: &str, source: &str, host_path: Option<&str>| Volume {
        name: name.into(),
        source: source.into(),
        host_path: host_path.map(Into::into),
    };
    PodSpec {
        uid: PodUid::parse(UID).unwrap(),
        mirror_uid: None,
        namespace: "shop".into(),
        name: "web-1".into(),
        labels: [("app".to_owned(), "web".to_owned()), ("empty".to_owned(), String::new())].into(),
        owner: Some(Owner { kind: "ReplicaSet".into(), name: "web".into() }),
        service_account: Some("seller".into()),
        runtime_class: Some("crun".into()),
        host_users: Some(false),
        host_network: true,
        host_pid: true,
        host_ipc: true,
        security: SecurityContext {
            run_as_user: Some(1000),
            run_as_group: Some(3000),
            run_as_non_root: Some(true),
            seccomp_profile: Some("RuntimeDefault".into()),
            ..SecurityContext::default()
        },
        containers: vec![
            container("migrate", ContainerKind::Init, "m:1"),
            ContainerSpec { id: Some(id.clone()), ..container("proxy", ContainerKind::Sidecar, "p:1") },
            ContainerSpec {
                id: Some(id.clone()),
                image_digest: Some(format!("sha256:{id}")),
                security: SecurityContext {
                    privileged: Some(true),
                    allow_privilege_escalation: Some(false),
                    read_only_root_filesystem: Some(true),
                    proc_mount: Some("Unmasked".into()),
                    capabilities_add: vec!["SYS_ADMIN".into()],
                    capabilities_drop: vec!["ALL".into()],
                    app_armor_profile: Some("Localhost".into()),
                    ..SecurityContext::default()
                },
                ..container("web", ContainerKind::Container, "web:1")
            },
            ContainerSpec {
                image_digest: Some(format!("sha256:{id}")),
                ..container("debug", ContainerKind::Ephemeral, "sh:1")
            },
        ],
        volumes: vec![
            volume("root", "hostPath", Some("/")),
            volume("claim", "persistentVolumeClaim", None),
            volume("tmp", "emptyDir", None),
        ],
    }
}

#[test]
fn everything_is_read_from_json_and_yaml() {
    assert_eq!(spec(&full()), expected());
    let mut pod = full();
    pod["kind"] = json!("Pod");
    let yaml = format!("---\n{pod}");
    assert_eq!(crate::host::pods_file::parse_pods(yaml.as_bytes()).unwrap(), [expected()]);
}

#[test]
fn every_field_may_be_null_or_absent() {
    fn paths(value: &Value, at: &str, found: &mut Vec<String>) {
        for (index, item) in value.as_array().into_iter().flatten().enumerate() {
            paths(item, &format!("{at}/{index}"), found);
        }
        for (key, child) in value.as_object().into_iter().flatten() {
            let path = format!("{at}/{key}");
            paths(child, &path, found);
            found.push(path);
        }
    }
    let mut found = Vec::new();
    paths(&full(), "", &mut found);
    assert!(found.len() > 40, "{found:?}");
    let needed = ["/metadata", "/metadata/uid", "/metadata/name"];
    for path in found.iter().filter(|path| !needed.contains(&path.as_str())) {
        let mut pod = full();
        *pod.pointer_mut(path).unwrap() = Value::Null;
        assert!(read(&pod).is_ok(), "{path} as null");
        let (parent, key) = path.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
        assert!(read(&pod).is_ok(), "without {path}");
    }
}

#[test]
fn a_static_pod_is_known_by_what_its_mirror_says_and_by_nothing_else() {
    let annotated = |key: &str| {
        let mut pod = full();
        pod["metadata"]["annotations"] = json!({key: HASH, "other": "x".repeat(100_000)});
        spec(&pod)
    };
    let mirrored = annotated("kubernetes.io/config.mirror");
    assert_eq!((mirrored.uid.as_str(), mirrored.mirror_uid.as_ref().map(PodUid::as_str)), (HASH, Some(UID)));
    // what anyone may write on a pod of their own must not make it pass for a static one
    for key in ["kubernetes.io/config.hash", "kubernetes.io/config.source"] {
        assert_eq!((annotated(key).uid.as_str(), annotated(key).mirror_uid), (UID, None), "{key}");
    }
    // as kubelet itself tells a static pod
    let mut pod = full();
    pod["metadata"]["uid"] = json!(HASH);
    assert_eq!((spec(&pod).uid.as_str(), spec(&pod).mirror_uid), (HASH, None));
}

#[test]
fn ids_and_digests_have_one_form() {
    let hex = "ab".repeat(32);
    for (text, expected) in [
        (format!("docker-pullable://web@sha256:{hex}"), true),
        (format!("sha256:{hex}"), true),
        (format!("web@sha256:{hex}0"), false),
        ("web:1".to_owned(), false),
        (String::new(), false),
    ] {
        assert_eq!(digest(&text), expected.then(|| format!("sha256:{hex}")), "{text}");
    }
    for (text, expected) in [
        ("containerd://abc", Some("abc")),
        ("abc", Some("abc")),
        ("", None),
        ("containerd://", None),
        ("containerd://../x", None),
    ] {
        assert_eq!(container_id(text).as_deref(), expected, "{text}");
    }
}

#[test]
fn what_is_too_much_is_cut_and_said_to_be() {
    let many = |count: usize| Value::from(vec![json!({"name": "a", "image": "b"}); count]);
    for key in ["/spec/containers", "/spec/initContainers", "/spec/ephemeralContainers", "/spec/volumes"] {
        assert!(!read(&with(key, many(MAX_LIST))).unwrap().cut, "{key}");
        let pod = read(&with(key, many(100_000))).unwrap();
        assert!(pod.cut && pod.spec.containers.len() + pod.spec.volumes.len() == MAX_LIST, "{key}");
    }
    let capabilities = json!({"capabilities": {"add": vec!["X"; 100_000]}});
    let pod = read(&with("/spec/securityContext", capabilities)).unwrap();
    assert!(pod.cut && pod.spec.security.capabilities_add.len() == MAX_LIST);
    let labels: serde_json::Map<_, _> = (0..100_000).map(|n| (n.to_string(), json!("x"))).collect();
    let pod = read(&with("/metadata/labels", labels.into())).unwrap();
    assert!(pod.cut && pod.spec.labels.len() == MAX_LIST);
    let pod = read(&with("/spec/serviceAccountName", json!("π".repeat(10_000)))).unwrap();
    assert!(pod.cut && pod.spec.service_account.unwrap().len() == MAX_TEXT);
}

#[test]
fn what_is_no_pod_is_named() {
    for (pod, key) in [
        (json!({}), "metadata.name"),
        (json!({"metadata": {"name": "a"}}), "metadata.uid"),
        (json!({"metadata": {"uid": "x", "name": "a"}}), "metadata.uid"),
        (json!({"metadata": {"uid": UID}}), "metadata.name"),
        (json!({"metadata": {"uid": UID, "name": ""}}), "metadata.name"),
    ] {
        assert_eq!(read(&pod).err().map(|fault| fault.key), Some(key), "{pod}");
    }
}

#[test]
fn a_page_is_a_list_of_pods() {
    let list =
        read_list(br#"{"kind":"PodList","metadata":{"continue":"abc"},"items":[{"metadata":{}}]}"#).unwrap();
    assert_eq!(list.metadata.unwrap().next.as_deref(), Some("abc"));
    assert_eq!(list.items.unwrap().len(), 1);
    for (text, says) in [
        ("{\"kind\":\"NodeList\",\"items\":[]}", "a NodeList where a PodList was asked for"),
        ("{}", "an object of no kind where a PodList was asked for"),
        ("<html>", "expected value at line 1 column 1"),
    ] {
        assert_eq!(read_list(text.as_bytes()).err().as_deref(), Some(says));
    }
}
