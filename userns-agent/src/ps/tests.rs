//! `ps` on a node made of directories: what it sees, and what it prints.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;

const UID: &str = "0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11";
const OTHER: &str = "1f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11";
const HASH: &str = "51bd78aa51bd78aa51bd78aa51bd78aa";
const ID: &str = "5a2f0c9be7d14c3f8a61b2e4d0937f5ac1b8e6d2470f93ab5c6d7e8f90a1b2c3";
const HOST: u32 = 4_026_531_837;

/// A node of directories, with the host's init as process 1.
struct Fake {
    root: tempfile::TempDir,
    config: Config,
}

impl Fake {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let config = Config {
            kubelet_root: at("kubelet"),
            proc_root: at("proc"),
            cgroup_root: Some(at("cgroup")),
            ..Config::default()
        };
        for name in ["kubelet/pods", "proc", "cgroup"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        let fake = Self { root, config };
        fake.process(1, HOST, "0 0 4294967295", 0);
        fake
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn process(&self, pid: u32, inum: u32, map: &str, start: u32) {
        self.write(&format!("proc/{pid}/uid_map"), map);
        self.write(&format!("proc/{pid}/gid_map"), map);
        self.write(&format!("proc/{pid}/comm"), "evil\u{1b}[2J\u{202e}\n");
        self.write(&format!("proc/{pid}/stat"), &format!("{pid} (x) S{} {start}", " 0".repeat(18)));
        let namespaces = self.root.path().join(format!("proc/{pid}/ns"));
        fs::create_dir_all(&namespaces).unwrap();
        symlink(format!("user:[{inum}]"), namespaces.join("user")).unwrap();
    }

    fn container(&self, uid: &str, id: &str, pids: &[u32]) {
        let text: String = pids.iter().map(|pid| format!("{pid}\n")).collect();
        self.write(&format!("cgroup/kubepods/besteffort/pod{uid}/{id}/cgroup.procs"), &text);
    }

    fn record(&self, uid: &str, host_id: u32) {
        let mappings = format!("[{{\"hostId\":{host_id},\"containerId\":0,\"length\":65536}}]");
        let text = format!("{{\"uidMappings\":{mappings},\"gidMappings\":{mappings}}}");
        self.write(&format!("kubelet/pods/{uid}/userns"), &text);
    }

    fn pods(&self) -> Vec<PodRow> {
        self.pods_told(BTreeMap::new())
    }

    fn pods_told(&self, known: BTreeMap<PodUid, known::Known>) -> Vec<PodRow> {
        let told = Told { specs: declared(&self.config).unwrap(), known };
        judged(&looked_at(&self.config, &told))
    }

    /// Of each container.
    fn rows(&self) -> Vec<Row> {
        self.pods().into_iter().flat_map(|pod| pod.rows).collect()
    }

    fn verdicts(&self) -> Vec<Verdict> {
        self.rows().iter().map(|row| row.judgement.verdict).collect()
    }
}

/// As [`observe`], without asking whether the directory is a cgroup file system.
fn looked_at(config: &Config, told: &Told) -> Node {
    observe::observe_in(
        config,
        told,
        &crate::host::cgroupfs::CgroupFs::at(config.cgroup_root.clone().unwrap()),
    )
    .unwrap()
}

#[test]
fn a_node_is_judged_container_by_container() {
    let fake = Fake::new();
    fake.record(UID, 131_072);
    fake.record(OTHER, 262_144);
    fs::create_dir(fake.root.path().join(format!("kubelet/pods/{HASH}"))).unwrap();
    fake.container(UID, "a", &[10]);
    fake.process(10, 77, "0 131072 65536", 5);
    fake.container(UID, "b", &[]);
    fake.container(OTHER, "c", &[11]);
    fake.process(11, HOST, "0 0 4294967295", 6);
    fake.container(HASH, "d", &[12]);
    fake.process(12, HOST, "0 0 4294967295", 7);
    fake.container(HASH, "crio-conmon-d", &[13]);
    use Verdict::{Honoured, HostUserNamespace, Ignored, Unknown};
    assert_eq!(fake.verdicts(), [Honoured, Unknown, Ignored, HostUserNamespace]);
    let pods: Vec<_> = fake.pods().iter().map(|row| row.judgement.verdict).collect();
    assert_eq!(pods, [Honoured, Ignored, HostUserNamespace]);
}

#[test]
fn the_first_process_stands_for_a_container() {
    let fake = Fake::new();
    fake.record(UID, 131_072);
    fake.container(UID, "a", &[13, 12, 11, 10, 99]);
    fake.process(10, HOST, "0 0 4294967295", 100);
    fake.process(11, 77, "0 131072 65536", 60);
    fake.process(12, 77, "0 131072 65536", 50);
    fake.process(13, 78, "0 132072 1", 70);
    let rows = fake.rows();
    let Look::Process(sample) = &rows[0].container.look else { panic!("{rows:?}") };
    assert_eq!((sample.pid, sample.in_host, rows[0].container.processes), (12, 1, 5));
    assert_eq!(rows[0].judgement.verdict, Verdict::Honoured);
}

#[test]
fn a_user_namespace_made_in_a_container_does_not_hide_the_hosts() {
    let fake = Fake::new();
    fake.record(UID, 131_072);
    fake.container(UID, "a", &[10, 11]);
    fake.process(10, HOST, "0 0 4294967295", 50);
    fake.process(11, 77, "0 131072 65536", 60);
    assert_eq!(fake.verdicts(), [Verdict::Ignored]);
}

#[test]
fn pods_that_share_a_range_are_both_unsafe() {
    let fake = Fake::new();
    for (uid, pid) in [(UID, 10), (OTHER, 11)] {
        fake.container(uid, "a", &[pid]);
        fake.process(pid, pid, "0 131072 65536", 5);
    }
    assert_eq!(fake.verdicts(), [Verdict::UnsafeRange; 2]);
}

#[test]
fn a_process_that_may_not_be_inspected_is_unknown() {
    let fake = Fake::new();
    fake.container(UID, "a", &[10]);
    fake.process(10, 77, "not a map", 5);
    let rows = fake.rows();
    assert_eq!(rows[0].judgement.verdict, Verdict::Unknown);
    assert!(rows[0].judgement.reason.contains("proc/10/uid_map: line 1"), "{:?}", rows[0].judgement);
}

#[test]
fn the_table_is_aligned_and_escaped() {
    let mut fake = Fake::new();
    fake.record(UID, 131_072);
    fake.container(UID, ID, &[10]);
    fake.process(10, 77, "0 131072 65536", 5);
    fake.container(OTHER, "\u{1b}[31m\u{202e}x", &[11]);
    fake.process(11, HOST, "0 0 4294967295", 5);
    let name = "n".repeat(100);
    fake.write("pods.json", &format!("{{\"kind\":\"Pod\",\"metadata\":{{\"name\":\"{name}\",\"uid\":\"{OTHER}\"}},\"spec\":{{\"hostUsers\":false}}}}"));
    fake.config.pods_file = Some(fake.root.path().join("pods.json"));
    let table = render::table(&fake.pods(), false);
    let expected = format!(
        "\
POD                                          HOSTUSERS USERNS     HOST IDS               CTRS PROCS NESTED  VERDICT
0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11         -         77         131072+65536              1     1      0  honoured
default/nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn~ false     {HOST} the host's                1     1      0  ignored
    it runs in the host's user namespace, although its pod declares hostUsers: false

2 pods with 2 containers: 1 ignored, 1 honoured
"
    );
    assert_eq!(table, expected);
    let wide = render::table(&fake.pods(), true);
    assert!(
        wide.contains(&format!("uid {OTHER}; runtime class -; told by -; kubelet's record none")),
        "{wide}"
    );
    assert!(wide.contains("as kubelet recorded"), "{wide}");
    assert!(table.lines().chain(wide.lines()).all(|line| line.chars().count() <= 120));
}

/// What an agent would tell of the pod `uid`.
fn known(uid: &str, name: &str) -> BTreeMap<PodUid, known::Known> {
    let json = serde_json::json!({
        "uid": uid,
        "source": "cri",
        "sources": ["api", "cri"],
        "namespace": "shop\u{1b}[2J",
        "name": name,
        "labels": {"app": "web\u{202e}"},
        "owner": {"kind": "StatefulSet", "name": "web"},
        "service_account": "web",
        "runtime_class": "crun",
        "host_users": false,
        "host_network": false,
        "asked": {"mode": "pod", "uid_map": []},
        "containers": [{
            "id": ID, "name": "nginx", "kind": "container", "image": "nginx:1", "image_digest": null,
            "security_context": {"privileged": true, "proc_mount": null, "capabilities_add": []},
        }],
        "findings": [{
            "id": "1", "rule": "I1", "name": "cred_escape", "severity": "critical", "container": ID, "count": 2,
            "first_seen": "2026-01-01T00:00:00Z", "last_seen": "2026-01-01T00:00:01Z", "why": "it left",
        }],
    });
    let known: known::Known = serde_json::from_value(json).unwrap();
    BTreeMap::from([(PodUid::parse(uid).unwrap(), known)])
}

fn inspectable() -> Fake {
    let fake = Fake::new();
    fake.record(UID, 131_072);
    fake.container(UID, ID, &[10]);
    fake.process(10, 77, "0 131072 65536", 5);
    let at = fake.root.path().join("proc/10/ns");
    for (kind, inum) in
        ["mnt", "pid", "pid_for_children", "net", "ipc", "uts", "cgroup"].into_iter().zip(100..)
    {
        symlink(format!("{kind}:[{inum}]"), at.join(kind)).unwrap();
    }
    let status = "Name:\tx\nTgid:\t10\nPPid:\t1\nUid:\t131072\t131073\t131072\t131072\nGid:\t131072\t131072\t131072\t5\n\
                  Groups:\t131082 7\nNSpid:\t10\t1\nCapInh:\t0\nCapPrm:\t1\nCapEff:\t200000\nCapBnd:\t1\nCapAmb:\t0\n\
                  NoNewPrivs:\t1\nSeccomp:\t2\n";
    fake.write("proc/10/status", status);
    fake.write("proc/10/attr/current", "cri-containerd.apparmor.d (enforce)\n");
    fake
}

#[test]
fn what_the_agent_knows_is_put_beside_what_the_node_shows() {
    let fake = inspectable();
    let pods = fake.pods_told(known(UID, "web-0"));
    assert_eq!((pods[0].judgement.verdict, pods[0].pod.name().unwrap().1), (Verdict::Escaped, "web-0"));
    assert_eq!(pods[0].judgement.reason, "I1 (cred_escape): it left");
    let table = render::table(&pods, true);
    assert!(
        table.contains("false") && table.contains("told by api, cri") && table.contains("escaped"),
        "{table}"
    );
    let json = render::json(&pods);
    assert_eq!(
        (&json[0]["containers"][0]["name"], &json[0]["findings"][0]["rule"]),
        (&"nginx".into(), &"I1".into())
    );
}

#[test]
fn a_pod_is_inspected_in_both_views() {
    let fake = inspectable();
    let pods = fake.pods_told(known(UID, "web-0"));
    let proc = crate::host::proc::ProcFs::new(fake.root.path().join("proc"));
    let text = inspect::text(&pods[0], &proc);
    for line in [
        "  verdict            escaped: I1 (cred_escape): it left",
        "  owner              StatefulSet/web",
        "  security context   privileged=true",
        "    uid map            0→131072+65536",
        "    euid               1 in the pod, 131073 on the host",
        "    fsgid              none in the pod, 5 on the host",
        "    groups             10 (131082), none (7)",
        "    net namespace      103",
        "    seccomp            filter",
        "    no_new_privs       yes",
        "    LSM label          cri-containerd.apparmor.d (enforce)",
        "    effective          CAP_SYS_ADMIN",
    ] {
        assert!(text.lines().any(|it| it == line), "no line {line:?} in\n{text}");
    }
    assert!(text.chars().all(|c| c == '\n' || c == '→' || (' '..='~').contains(&c)), "{text:?}");
    let json = inspect::object(&pods[0], &proc);
    let process = &json["containers"][0]["process"];
    assert_eq!(process["ids"]["euid"], serde_json::json!({"host": 131_073, "container": 1}));
    assert_eq!(
        (&process["pid_in_container"], &process["lsm_label"]),
        (&1.into(), &"cri-containerd.apparmor.d (enforce)".into())
    );
}

#[test]
fn a_pod_is_found_by_any_of_its_names() {
    let fake = inspectable();
    fake.container(OTHER, "b", &[]);
    let mut told = known(UID, "web-0");
    told.extend(known(OTHER, "web-0"));
    let pods = fake.pods_told(told);
    for query in [UID, &ID[..8]] {
        assert_eq!(inspect::find(&pods, query).unwrap().pod.uid.as_str(), UID, "{query}");
    }
    let error = inspect::find(&pods, "web-0").unwrap_err();
    assert!(error.to_string().contains(UID) && error.to_string().contains(OTHER), "{error}");
    assert_eq!(ExitCode::from(&error), ExitCode::Usage);
    for query in ["nobody", "5a", "default/web-0", ""] {
        let error = inspect::find(&pods, query).unwrap_err();
        assert_eq!(ExitCode::from(&error), ExitCode::NoInput, "{query}");
    }
}

#[test]
fn json_has_the_same_keys_always() {
    let fake = Fake::new();
    fake.record(UID, 3_841_261_568);
    fake.container(UID, ID, &[10]);
    fake.process(10, 77, "0 3841261568 65536", 5);
    fs::create_dir_all(fake.root.path().join(format!("cgroup/kubepods/pod{HASH}"))).unwrap();
    let json = render::json(&fake.pods());
    let keys = |object: &serde_json::Value| object.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!((keys(&json[0]), keys(&json[0]).len()), (keys(&json[1]), 20));
    let container = |index: usize| &json[index]["containers"][0];
    assert_eq!((keys(container(0)), keys(container(0)).len()), (keys(container(1)), 19));
    assert_eq!(json[0]["uid_map"][0]["host_id"], 3_841_261_568_u32);
    assert_eq!(container(0)["comm"], "evil\u{1b}[2J\u{202e}");
    assert_eq!((&json[0]["verdict"], &container(0)["id"]), (&"honoured".into(), &ID.into()));
    assert!(container(1)["pid"].is_null() && container(1)["id"].is_null());
}

#[test]
fn an_empty_node_is_an_answer() {
    let table = render::table(&Fake::new().pods(), false);
    assert!(table.ends_with("\n0 pods with 0 containers: nothing to judge\n"), "{table}");
}

#[test]
fn errors_have_exit_codes() {
    let mut config = Config { cgroup_root: Some("/proc".into()), ..Config::default() };
    let run = |config: &Config| run(config, PsOutput::Table, true, &mut Vec::new()).unwrap_err();
    assert_eq!(ExitCode::from(&run(&config)), ExitCode::Unavailable);
    config.pods_file = Some(Path::new("/nonexistent").into());
    let error = run(&config);
    assert_eq!(ExitCode::from(&error), ExitCode::NoInput);
    assert!(error.to_string().contains("/nonexistent does not exist"));
}

#[test]
fn runtime_classes_that_the_configuration_names_are_not_judged() {
    let mut fake = Fake::new();
    fake.record(UID, 131_072);
    fake.container(UID, "a", &[10]);
    fake.process(10, HOST, "0 0 4294967295", 50);
    let known = known::Known { runtime_class: Some("microvm-small".into()), ..known::Known::default() };
    let known = BTreeMap::from([(PodUid::parse(UID).unwrap(), known)]);
    assert_eq!(fake.pods_told(known.clone())[0].judgement.verdict, Verdict::Ignored);
    fake.config.unobservable_runtimes = vec!["microvm*".into()];
    assert_eq!(fake.pods_told(known)[0].judgement.verdict, Verdict::NotObservable);
}
