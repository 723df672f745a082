//! A runtime's socket: what is learnt, how soon, at which cost, and through which failures.

mod failures;
mod runtime;

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use self::runtime::{Node, Runtime, Tells};
use super::*;
use crate::event::{ContainerSpec, Extent, PodSpec, PodUid, Sandbox, UsernsMode};

const BASE: u32 = 3_841_261_568;
const CREATED: i32 = 0;
/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3600);
/// Long enough for whatever must happen.
const LIMIT: Duration = Duration::from_secs(20);
/// Long enough to see that something does not happen.
const MOMENT: Duration = Duration::from_millis(300);

fn times() -> Times {
    let retry = (Duration::from_millis(10), Duration::from_millis(50));
    Times { call: LIMIT, list: NEVER, retry }
}

fn often() -> Times {
    Times { list: Duration::from_millis(50), ..times() }
}

/// A watcher at work.
struct Watched {
    facts: mpsc::Receiver<Vec<Fact>>,
    nudge: CriNudge,
    health: watch::Receiver<SourceHealth>,
}

impl Watched {
    fn start(sockets: Vec<PathBuf>, times: Times) -> Self {
        let (sender, facts) = mpsc::channel(64);
        let (watcher, nudge, health) = CriWatcher::new(sockets, times, sender);
        tokio::spawn(watcher.run());
        Self { facts, nudge, health }
    }

    fn of(runtime: &Runtime, times: Times) -> Self {
        Self::start(vec![runtime.socket()], times)
    }

    async fn next(&mut self) -> Vec<Fact> {
        timeout(LIMIT, self.facts.recv()).await.expect("facts come in time").unwrap()
    }

    /// The full list, which comes first.
    async fn list(&mut self) -> Vec<Sandbox> {
        match self.next().await.as_slice() {
            [Fact::Sandboxes(sandboxes)] => sandboxes.clone(),
            other => panic!("{other:#?}"),
        }
    }

    async fn only(&mut self) -> Fact {
        let mut facts = self.next().await;
        assert_eq!(facts.len(), 1, "{facts:#?}");
        facts.remove(0)
    }

    async fn sandbox(&mut self) -> Sandbox {
        let fact = self.only().await;
        let Fact::Sandbox(sandbox) = fact else { panic!("{fact:#?}") };
        *sandbox
    }

    async fn is_silent(&mut self) {
        if let Ok(facts) = timeout(MOMENT, self.facts.recv()).await {
            panic!("{facts:#?}");
        }
    }

    async fn health(&mut self, wanted: impl FnMut(&SourceHealth) -> bool) -> SourceHealth {
        let health = timeout(LIMIT, self.health.wait_for(wanted)).await;
        let health = health.map(|health| health.unwrap().clone());
        health.unwrap_or_else(|_| panic!("it stays at {:?}", self.health.borrow()))
    }

    async fn state(&mut self, state: SourceState) -> SourceHealth {
        self.health(|health| health.state == state).await
    }
}

fn pod(n: u32) -> PodUid {
    PodUid::parse(&format!("{n:08x}-6f1d-4f3e-9d5c-2f1f4f1a7c11")).unwrap()
}

fn labels(list: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// As containerd 2.1 tells one that kubelet 1.33 made, with a range of its own.
fn sandbox_status(n: u32) -> proto::PodSandboxStatus {
    let (id, uid, name) = (format!("s{n}"), pod(n).to_string(), format!("web-{n}"));
    let map = vec![proto::IdMapping { host_id: BASE + n * 65_536, container_id: 0, length: 65_536 }];
    let userns = proto::UserNamespace { mode: proto::POD, uids: map.clone(), gids: map };
    let options =
        proto::NamespaceOption { network: proto::POD, pid: 1, ipc: proto::POD, userns_options: Some(userns) };
    let labels = labels(&[
        ("app", "web"),
        ("io.kubernetes.pod.name", &name),
        ("io.kubernetes.pod.namespace", "shop"),
        ("io.kubernetes.pod.uid", &uid),
    ]);
    let namespaces = Some(proto::Namespace { options: Some(options) });
    proto::PodSandboxStatus {
        id,
        metadata: Some(proto::PodSandboxMetadata { name, uid, namespace: "shop".into() }),
        created_at: 7,
        linux: Some(proto::LinuxPodSandboxStatus { namespaces }),
        labels,
        runtime_handler: "crun".into(),
    }
}

fn container_status(id: &str) -> proto::ContainerStatus {
    proto::ContainerStatus {
        id: id.to_owned(),
        metadata: Some(proto::ContainerMetadata { name: "nginx".into() }),
        image: Some(proto::ImageSpec {
            image: "docker.io/library/nginx:1.29".into(),
            user_specified_image: "nginx:1.29".into(),
        }),
        image_ref: "docker.io/library/nginx@sha256:0fab".into(),
    }
}

fn expected(n: u32, containers: &[&str]) -> Sandbox {
    let container = |id: &&str| ContainerSpec {
        name: "nginx".into(),
        image: "nginx:1.29".into(),
        image_digest: Some("sha256:0fab".into()),
        id: Some((*id).to_owned()),
        ..ContainerSpec::default()
    };
    let map = vec![Extent { first: 0, lower_first: BASE + n * 65_536, count: 65_536 }];
    Sandbox {
        id: format!("s{n}"),
        pod: PodSpec {
            uid: pod(n),
            namespace: "shop".into(),
            name: format!("web-{n}"),
            labels: labels(&[("app", "web")]),
            runtime_class: Some("crun".into()),
            containers: containers.iter().map(container).collect(),
            ..PodSpec::default()
        },
        userns_mode: UsernsMode::Pod,
        uid_mappings: map.clone(),
        gid_mappings: map,
        created_at: 7,
    }
}

impl Node {
    fn add_sandbox(&mut self, n: u32) {
        self.sandboxes.insert(format!("s{n}"), sandbox_status(n));
    }

    fn add_container(&mut self, n: u32, id: &str) {
        self.containers.insert(id.to_owned(), (format!("s{n}"), container_status(id)));
    }
}

fn with_a_pod() -> Runtime {
    Runtime::with(|node| {
        node.add_sandbox(1);
        node.add_container(1, "c1");
    })
}

#[tokio::test]
async fn pods_containers_and_mappings_are_learnt() {
    let runtime = with_a_pod();
    let mut watched = Watched::of(&runtime, times());
    assert_eq!(watched.list().await, [expected(1, &["c1"])]);
    let health = watched.state(SourceState::Ok).await;
    assert_eq!((health.records, health.errors), (1, 0));
    assert_eq!(health.detail, "containerd 2.1.9; handlers with user namespaces: runc, crun");
}

#[tokio::test]
async fn handlers_without_user_namespaces_are_told() {
    for (handlers, expected) in [
        (vec![], "it does not say which handlers have user namespaces, so kubelet gives none to pods"),
        (vec![("", false), ("runc", false)], "no handler with user namespaces"),
    ] {
        let runtime = Runtime::with(|node| node.handlers = handlers);
        let health = Watched::of(&runtime, times()).state(SourceState::Ok).await;
        assert_eq!(health.detail, format!("containerd 2.1.9; {expected}"));
    }
}

#[tokio::test]
async fn a_pods_uid_is_taken_from_where_it_stands() {
    let hash = "51bd78aa51bd78aa51bd78aa51bd78aa";
    let runtime = Runtime::with(|node| {
        for n in 1..=3 {
            node.add_sandbox(n);
        }
        let mut nothing = sandbox_status(1);
        nothing.metadata.as_mut().unwrap().uid = "crictl".into();
        nothing.labels.clear();
        node.sandboxes.insert("s1".into(), nothing);
        node.add_container(1, "stranger");
        let labelled = node.sandboxes.get_mut("s2").unwrap();
        labelled.metadata.as_mut().unwrap().uid.clear();
        let of_static = node.sandboxes.get_mut("s3").unwrap();
        of_static.metadata.as_mut().unwrap().uid = hash.into();
    });
    let mut watched = Watched::of(&runtime, often());
    let uids: Vec<_> = watched.list().await.into_iter().map(|sandbox| sandbox.pod.uid).collect();
    assert_eq!(uids, [pod(2), PodUid::parse(hash).unwrap()]);
    let health = watched.state(SourceState::Ok).await;
    assert!(health.detail.ends_with("; 1 sandboxes are no pods"), "{}", health.detail);
    runtime.node.lock().unwrap().tell("stranger", CREATED, true);
    watched.is_silent().await;
    assert_eq!(runtime.node.lock().unwrap().calls("ContainerStatus"), 0, "strangers are nobody's");
}

#[tokio::test]
async fn what_a_runtime_does_not_say_is_not_made_up() {
    let runtime = Runtime::with(|node| {
        for n in 1..=3 {
            node.add_sandbox(n);
        }
        let options = |status: &mut proto::PodSandboxStatus, mode| {
            let linux = status.linux.as_mut().unwrap();
            let options = linux.namespaces.as_mut().unwrap().options.as_mut().unwrap();
            (options.network, options.pid, options.ipc) = (proto::NODE, proto::NODE, proto::NODE);
            options.userns_options = mode;
        };
        let node_mode = proto::UserNamespace { mode: proto::NODE, ..Default::default() };
        options(node.sandboxes.get_mut("s1").unwrap(), Some(node_mode));
        options(node.sandboxes.get_mut("s2").unwrap(), None);
        let bare = node.sandboxes.get_mut("s3").unwrap();
        (bare.linux, bare.runtime_handler) = (None, String::new());
    });
    let list = Watched::of(&runtime, times()).list().await;
    let modes: Vec<_> = list.iter().map(|sandbox| sandbox.userns_mode).collect();
    assert_eq!(modes, [UsernsMode::Node, UsernsMode::Unknown, UsernsMode::Unknown]);
    assert!(list.iter().all(|sandbox| sandbox.pod.host_users.is_none()));
    let shared = |at: usize| (list[at].pod.host_network, list[at].pod.host_pid, list[at].pod.host_ipc);
    assert_eq!((shared(1), shared(2)), ((true, true, true), (false, false, false)));
    assert_eq!((list[2].uid_mappings.as_slice(), &list[2].pod.runtime_class), ([].as_slice(), &None));
}

#[tokio::test]
async fn starts_are_told_by_events_without_a_question() {
    let runtime = Runtime::start();
    let mut watched = Watched::of(&runtime, times());
    assert_eq!(watched.list().await, []);
    while runtime.node.lock().unwrap().listeners() == 0 {
        tokio::task::yield_now().await;
    }
    let before = runtime.node.lock().unwrap().all_calls();
    for n in 1..=50 {
        let mut node = runtime.node.lock().unwrap();
        node.add_sandbox(n);
        node.tell(&format!("s{n}"), CREATED, true);
        node.add_container(n, &format!("c{n}"));
        node.tell(&format!("c{n}"), CREATED, true);
    }
    let mut known = std::collections::BTreeMap::new();
    while known.len() < 50 || known.values().any(|sandbox: &Sandbox| sandbox.pod.containers.is_empty()) {
        let sandbox = watched.sandbox().await;
        known.insert(sandbox.id.clone(), sandbox);
    }
    assert_eq!(known["s50"], expected(50, &["c50"]));
    assert_eq!(runtime.node.lock().unwrap().all_calls(), before);
}

#[tokio::test]
async fn a_cgroup_that_appears_leaves_time_for_the_event() {
    let runtime = with_a_pod();
    let mut watched = Watched::of(&runtime, times());
    watched.list().await;
    watched.state(SourceState::Ok).await;
    // a machine under load may take longer than the source waits: once is enough
    let (mut spared, mut known) = (false, 1);
    for n in 2..20 {
        let id = format!("c{n}");
        runtime.node.lock().unwrap().calls.clear();
        watched.nudge.appeared(&id);
        tokio::time::sleep(Duration::from_millis(50)).await;
        {
            let mut node = runtime.node.lock().unwrap();
            node.add_container(1, &id);
            node.tell(&id, CREATED, true);
        }
        assert_eq!(watched.sandbox().await.pod.containers.len(), n);
        known = n;
        spared |= runtime.node.lock().unwrap().all_calls() == 0;
        if spared {
            break;
        }
    }
    assert!(spared);
    // and does not wait for it for ever
    runtime.node.lock().unwrap().add_container(1, "late");
    watched.nudge.appeared("late");
    assert_eq!(watched.sandbox().await.pod.containers.len(), known + 1);
}

#[tokio::test]
async fn events_without_statuses_are_followed_by_questions() {
    let runtime = with_a_pod();
    let mut watched = Watched::of(&runtime, times());
    watched.list().await;
    {
        let mut node = runtime.node.lock().unwrap();
        node.calls.clear();
        node.add_container(1, "c2");
        node.tell("c2", CREATED, false);
    }
    assert_eq!(watched.sandbox().await, expected(1, &["c1", "c2"]));
    let node = runtime.node.lock().unwrap();
    let calls = ["ListContainers", "ContainerStatus", "PodSandboxStatus", "ListPodSandbox"];
    assert_eq!(calls.map(|method| node.calls(method)), [1, 1, 0, 0]);
}

#[tokio::test]
async fn what_is_removed_goes_and_containers_stay_for_a_while() {
    let runtime = with_a_pod();
    let mut watched = Watched::of(&runtime, often());
    watched.list().await;
    {
        let mut node = runtime.node.lock().unwrap();
        node.containers.clear();
        node.tell("c1", proto::DELETED, false);
    }
    watched.is_silent().await;
    {
        let mut node = runtime.node.lock().unwrap();
        node.add_container(1, "c2");
        node.tell("c2", CREATED, true);
    }
    assert_eq!(watched.sandbox().await, expected(1, &["c1", "c2"]), "what c1 did may still be judged");
    {
        let mut node = runtime.node.lock().unwrap();
        node.sandboxes.clear();
        node.tell("s1", proto::DELETED, false);
    }
    assert_eq!(watched.only().await, Fact::SandboxGone("s1".into()));
}

#[tokio::test]
async fn lost_events_are_made_up_for_by_the_next_list() {
    let runtime = with_a_pod();
    let mut watched = Watched::of(&runtime, often());
    watched.list().await;
    runtime.node.lock().unwrap().add_sandbox(2);
    assert_eq!(watched.sandbox().await, expected(2, &[]));
    runtime.node.lock().unwrap().add_container(2, "c2");
    assert_eq!(watched.sandbox().await, expected(2, &["c2"]));
    runtime.node.lock().unwrap().sandboxes.remove("s1");
    assert_eq!(watched.only().await, Fact::SandboxGone("s1".into()));
}

#[tokio::test]
async fn without_events_a_cgroup_that_appears_makes_it_ask() {
    let crio: fn(&mut Node) =
        |node| (node.name, node.version, node.tells) = ("cri-o", "1.34.0", Tells::Nothing);
    let old: fn(&mut Node) = |node| node.tells = Tells::Unimplemented;
    let shared: fn(&mut Node) = |node| node.version = "1.7.28";
    for (change, subscriptions) in [(crio, 1), (old, 1), (shared, 0)] {
        let runtime = Runtime::with(change);
        let mut watched = Watched::of(&runtime, times());
        assert_eq!(watched.list().await, []);
        watched.health(|health| health.detail.contains("no events of containers")).await;
        {
            let mut node = runtime.node.lock().unwrap();
            node.add_sandbox(1);
            node.add_container(1, "c1");
        }
        let begin = Instant::now();
        watched.nudge.appeared("s1");
        assert_eq!(watched.sandbox().await, expected(1, &[]));
        watched.nudge.appeared("c1");
        assert_eq!(watched.sandbox().await, expected(1, &["c1"]));
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(2), "{took:?}: the list would have told");
        let node = runtime.node.lock().unwrap();
        assert_eq!((node.calls("GetContainerEvents"), node.calls("ListPodSandbox")), (subscriptions, 1));
    }
}

#[tokio::test]
async fn a_container_is_asked_for_until_the_runtime_lists_it() {
    let runtime = Runtime::with(|node| node.tells = Tells::Unimplemented);
    let mut watched = Watched::of(&runtime, times());
    watched.list().await;
    watched.nudge.appeared("c1");
    tokio::time::sleep(Duration::from_millis(100)).await;
    {
        let mut node = runtime.node.lock().unwrap();
        assert!(node.calls("ListContainers") > 1, "{:?}", node.calls);
        node.add_sandbox(1);
        node.add_container(1, "c1");
    }
    assert_eq!(watched.sandbox().await, expected(1, &["c1"]));
    let calls = runtime.node.lock().unwrap().all_calls();
    tokio::time::sleep(MOMENT).await;
    assert_eq!(runtime.node.lock().unwrap().all_calls(), calls, "it is known and not asked for again");
    assert_eq!(watched.state(SourceState::Ok).await.errors, 0, "that there is none yet is no failure");
}

#[tokio::test]
async fn more_than_can_be_noted_is_listed() {
    let runtime = Runtime::with(|node| node.tells = Tells::Unimplemented);
    let mut watched = Watched::of(&runtime, times());
    watched.list().await;
    // the list that follows the first one
    while runtime.node.lock().unwrap().calls("ListPodSandbox") < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    runtime.node.lock().unwrap().add_sandbox(1);
    for n in 0..2 * NUDGES {
        watched.nudge.appeared(&format!("unknown-{n}"));
    }
    assert_eq!(watched.sandbox().await, expected(1, &[]));
}

#[tokio::test]
async fn many_pods_cost_two_calls_a_list() {
    let runtime = Runtime::with(|node| {
        for n in 0..500 {
            node.add_sandbox(n);
            node.add_container(n, &format!("a{n}"));
            node.add_container(n, &format!("b{n}"));
        }
    });
    let mut watched = Watched::of(&runtime, often());
    let list = watched.list().await;
    assert_eq!(list.len(), 500);
    assert_eq!(list.iter().map(|sandbox| sandbox.pod.containers.len()).sum::<usize>(), 1000);
    watched.is_silent().await;
    let node = runtime.node.lock().unwrap();
    assert_eq!((node.calls("PodSandboxStatus"), node.calls("ContainerStatus")), (500, 1000));
    assert!(
        node.calls("ListContainers") > 1
            && node.calls("ListContainers").abs_diff(node.calls("ListPodSandbox")) <= 1
    );
}

#[tokio::test]
async fn it_ends_when_nobody_listens() {
    let runtime = with_a_pod();
    let (sender, facts) = mpsc::channel(1);
    let (watcher, _nudge, _health) = CriWatcher::new(vec![runtime.socket()], times(), sender);
    let running = tokio::spawn(watcher.run());
    drop(facts);
    timeout(LIMIT, running).await.expect("it ends").unwrap();
}

#[test]
fn sockets_are_looked_for_below_the_hosts_root() {
    let found = sockets(Path::new("/host"));
    assert!(found.contains(&"/host/run/containerd/containerd.sock".into()));
    assert!(found.iter().all(|path| path.starts_with("/host/")));
}
