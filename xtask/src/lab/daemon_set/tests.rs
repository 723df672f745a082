//! The converter against the manifests, and against ones with mistakes.

use super::*;

const DAEMON_SET: &str = include_str!("../../../../deploy/kustomize/base/daemon-set.yaml");
const CONFIG_MAP: &str = include_str!("../../../../deploy/kustomize/base/config-map.yaml");

#[test]
fn the_manifest_comes_to_what_kubelet_asks_for() {
    let daemon_set = DaemonSet::base().unwrap();
    let sandbox = daemon_set.sandbox();
    assert!(sandbox.host_pid && sandbox.privileged && !sandbox.host_network && sandbox.range.is_none());
    let spec = daemon_set.container_spec("u1", "node-7").unwrap();
    assert_eq!(spec.image.as_deref(), Some(crate::image::NAME));
    assert_eq!(spec.args, ["run", "--config", "/etc/userns-agent/agent.yaml"]);
    assert_eq!((spec.command, spec.env), (vec![], vec![("NODE_NAME".to_owned(), "node-7".to_owned())]));
    assert!(spec.privileged && spec.read_only_root && spec.logged);
    assert_eq!((spec.user, spec.group), (Some(0), Some(0)));
    let resources = CriResources {
        cpu_request: 50,
        cpu_limit: 1000,
        memory_limit: 192 << 20,
        oom_score_adj: CRITICAL_OOM_SCORE,
    };
    assert_eq!(spec.resources, Some(resources));
    let mount = |path: &str| spec.mounts.iter().find(|mount| mount.container_path == path).unwrap();
    let volumes = "/var/lib/kubelet/pods/u1/volumes";
    for (path, host_path, read_only, follows_host) in [
        ("/etc/userns-agent", format!("{volumes}/kubernetes.io~configmap/config"), true, false),
        ("/run/userns-agent", format!("{volumes}/kubernetes.io~empty-dir/run"), false, false),
        ("/host/kubelet/pods", "/var/lib/kubelet/pods".to_owned(), true, true),
        ("/sys/kernel/btf", "/sys/kernel/btf".to_owned(), true, false),
    ] {
        let expected = CriMount { host_path, container_path: path.to_owned(), read_only, follows_host };
        assert_eq!(mount(path), &expected);
    }
    let probe = daemon_set.startup_probe().unwrap();
    assert_eq!((probe.path.as_str(), probe.port, probe.failures), ("/healthz", 9477, 60));
    assert_eq!((probe.period, probe.timeout), (Duration::from_secs(1), Duration::from_secs(1)));
    assert_eq!(daemon_set.grace(), Duration::from_secs(15));
}

#[test]
fn what_is_not_understood_is_an_error() {
    for (from, to, wanted) in [
        ("hostPID: true", "hostPID: true\n      hostNetwork: true", "hostNetwork"),
        ("hostPID: true", "hostPID: 3", "bool"),
        ("privileged: true", "privileged: true\n            allowPrivilegeEscalation: true", "allowPriv"),
        ("system-node-critical", "system-cluster-critical", "system-cluster-critical"),
        ("fieldPath: spec.nodeName", "fieldPath: status.hostIP", "status.hostIP"),
        ("- name: run\n              mountPath", "- name: rum\n              mountPath", "volume"),
        ("- name: btf\n              mountPath", "- name: tracing\n              mountPath", "btf"),
        ("medium: Memory", "medium: ''", "Memory"),
        ("type: Directory", "type: DirectoryOrCreate", "DirectoryOrCreate"),
        ("name: userns-agent\n        # what", "name: other\n        # what", "other"),
        ("emptyDir:\n", "hostPath: {path: /x, type: Directory}\n          emptyDir:\n", "not one source"),
        ("mountPropagation: HostToContainer", "mountPropagation: Bidirectional", "Bidirectional"),
        ("path: /healthz\n              port: metrics", "path: /healthz\n              port: web", "web"),
        ("memory: 64Mi", "memory: 192Mi", "requests"),
        ("memory: 64Mi", "memory: 64Mb", "Mb"),
        ("kind: DaemonSet", "kind: Deployment", "none"),
    ] {
        let changed = DAEMON_SET.replacen(from, to, 1);
        assert_ne!(changed, DAEMON_SET, "{from}");
        let error = DaemonSet::parse(&changed, CONFIG_MAP).map(|_| to).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains(wanted), "{to}: {text}");
    }
    let config_map = CONFIG_MAP.replacen("data:", "immutable: true\ndata:", 1);
    assert!(DaemonSet::parse(DAEMON_SET, &config_map).is_err());
}

#[test]
fn a_config_map_is_projected_as_kubelet_does_it() {
    let dir = std::env::temp_dir().join(format!("userns-config-map-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    project(&DaemonSet::base().unwrap().config, &dir).unwrap();
    let text = fs::read_to_string(dir.join("agent.yaml"));
    let link = fs::read_link(dir.join("agent.yaml"));
    fs::remove_dir_all(&dir).unwrap();
    assert!(text.unwrap().contains("kubelet_root: /host/kubelet"));
    assert_eq!(link.unwrap(), Path::new("..data/agent.yaml"));
}
