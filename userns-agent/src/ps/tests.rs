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

    fn rows(&self) -> Vec<Row> {
        let specs = declared(&self.config).unwrap();
        let mut node = looked_at(&self.config, &specs);
        node.notes.clear();
        judged(&node)
    }

    fn verdicts(&self) -> Vec<Verdict> {
        self.rows().iter().map(|row| row.judgement.verdict).collect()
    }
}

/// As [`observe`], without asking whether the directory is a cgroup file system.
fn looked_at(config: &Config, specs: &BTreeMap<PodUid, crate::event::PodSpec>) -> Node {
    observe::observe_in(
        config,
        specs,
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
    let pods: Vec<_> = fake.rows().iter().map(|row| row.pod_verdict).collect();
    assert_eq!(pods, [Honoured, Honoured, Ignored, HostUserNamespace]);
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
    let expected = "\
POD                                          CONTAINER     PROCS  HOST IDS               VERDICT
0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11         5a2f0c9be7d~      1  131072+65536           honoured
default/nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn~ \\u{1b}[31m\\~      1  the host's             ignored
    it runs in the host's user namespace, although its pod declares hostUsers: false

2 containers in 2 pods: 1 ignored, 1 honoured
";
    let table = render::table(&fake.rows());
    assert_eq!(table, expected);
    assert!(table.lines().all(|line| line.chars().count() <= 120));
}

#[test]
fn json_has_the_same_keys_always() {
    let fake = Fake::new();
    fake.record(UID, 3_841_261_568);
    fake.container(UID, ID, &[10]);
    fake.process(10, 77, "0 3841261568 65536", 5);
    fs::create_dir_all(fake.root.path().join(format!("cgroup/kubepods/pod{HASH}"))).unwrap();
    let json = render::json(&fake.rows());
    let keys = |index: usize| json[index].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(0), keys(1));
    assert_eq!(keys(0).len(), 19);
    assert_eq!(json[0]["uid_map"][0]["host_id"], 3_841_261_568_u32);
    assert_eq!(json[0]["comm"], "evil\u{1b}[2J\u{202e}");
    assert_eq!((&json[0]["verdict"], &json[0]["container"]), (&"honoured".into(), &ID.into()));
    assert!(json[1]["pid"].is_null() && json[1]["container"].is_null());
}

#[test]
fn an_empty_node_is_an_answer() {
    let table = render::table(&Fake::new().rows());
    assert!(table.ends_with("\n0 containers in 0 pods: nothing to judge\n"), "{table}");
}

#[test]
fn errors_have_exit_codes() {
    let mut config = Config { cgroup_root: Some("/proc".into()), ..Config::default() };
    let run = |config: &Config| run(config, PsOutput::Table, &mut Vec::new()).unwrap_err();
    assert_eq!(ExitCode::from(&run(&config)), ExitCode::Unavailable);
    config.pods_file = Some(Path::new("/nonexistent").into());
    let error = run(&config);
    assert_eq!(ExitCode::from(&error), ExitCode::NoInput);
    assert!(error.to_string().contains("/nonexistent does not exist"));
}
