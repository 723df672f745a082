//! What several sources say of a pod, and when: precedence, waiting for names, amending, retention.

use std::time::Duration;

use userns_agent::core::finding::{Finding, Severity, Status};
use userns_agent::core::rules::RuleId;
use userns_agent::core::{Output, Promise};
use userns_agent::event::{
    Cgroup, CgroupId, ContainerKind, ContainerSpec, Fact, Hook, KubeletRecord, PodSource, PodSpec, Sandbox,
    UsernsMode, origin, reason, role,
};

use super::BASE;
use super::world::{Actor, MS, SEALED, SECOND, SLEEP, World, record, uid};

fn spec(n: u32, host_users: Option<bool>) -> PodSpec {
    let (namespace, name) = ("shop".to_owned(), format!("web-{n}"));
    PodSpec { uid: uid(n), namespace, name, host_users, ..PodSpec::default() }
}

fn with_container(mut spec: PodSpec, container: u64) -> PodSpec {
    let id = Some(format!("{container:064x}"));
    let image_digest = Some("sha256:1".to_owned());
    let known = ContainerSpec {
        name: "nginx".into(),
        image: "nginx:1".into(),
        image_digest,
        id,
        ..Default::default()
    };
    spec.containers.push(known);
    spec
}

fn sandbox(n: u32, id: &str, userns_mode: UsernsMode) -> Sandbox {
    Sandbox { id: id.into(), pod: spec(n, None), userns_mode, created_at: 1, ..Sandbox::default() }
}

fn from_api(spec: PodSpec) -> Fact {
    Fact::Pod(PodSource::Api, Box::new(spec))
}

/// A container that was promised a user namespace runs with the host's: I3, which is not critical.
fn ignored(world: &mut World, n: u32) -> u64 {
    world.recorded(n, BASE);
    let container = world.container(n);
    world.enters(container, &Actor::host(80, SEALED, "runc").entering(origin::ATTACHED));
    world.execs(container, &Actor::host(80, SLEEP, "sh").entering(origin::ATTACHED).working());
    container
}

fn waiting() -> World {
    World::waiting(Duration::from_millis(300))
}

fn names(finding: &Finding) -> (Option<&str>, Option<&str>) {
    let (pod, container) = (finding.pod.as_ref(), finding.container.as_ref());
    (pod.and_then(|pod| pod.name.as_deref()), container.and_then(|container| container.name.as_deref()))
}

fn statuses(world: &World) -> Vec<Status> {
    world.findings.iter().map(|finding| finding.status).collect()
}

#[test]
fn a_finding_waits_for_names_and_is_told_once_with_them() {
    let mut world = waiting();
    let container = ignored(&mut world, 1);
    world.silent();
    world.fact(from_api(spec(1, Some(false))));
    world.silent();
    world.fact(from_api(with_container(spec(1, Some(false)), container)));
    assert_eq!(names(world.only(RuleId::I3)), (Some("web-1"), Some("nginx")));
    world.pass(20 * SECOND);
    assert_eq!(statuses(&world), [Status::Opened]);
}

#[test]
fn what_does_not_come_in_time_is_amended_under_the_same_id() {
    let mut world = waiting();
    let container = ignored(&mut world, 1);
    world.pass(200 * MS);
    world.silent();
    world.pass(200 * MS);
    let id = world.only(RuleId::I3).id;
    assert!(world.findings[0].unknown.iter().any(|what| what.contains("pod name")));
    world.fact(from_api(with_container(spec(1, Some(false)), container)));
    assert_eq!(statuses(&world), [Status::Opened, Status::Amended]);
    let amended = &world.findings[1];
    assert_eq!((amended.id, amended.count, names(amended)), (id, 1, (Some("web-1"), Some("nginx"))));
    // the same again, or other labels, are no reason to tell it again
    let mut labelled = with_container(spec(1, Some(false)), container);
    labelled.labels.insert("app".into(), "web".into());
    world.fact(from_api(labelled));
    world.pass(20 * SECOND);
    assert_eq!(world.findings.len(), 2);
}

#[test]
fn a_critical_finding_waits_for_nothing() {
    let mut world = waiting();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let thief = Actor::inside(51, 7, BASE).with_host_credentials();
    world.suspect(container, &thief, Hook::Exec, reason::LEFT_USERNS);
    assert_eq!(names(world.only(RuleId::I1)), (None, None));
    world.fact(from_api(with_container(spec(1, Some(false)), container)));
    assert_eq!(
        (statuses(&world), names(&world.findings[1]).1),
        (vec![Status::Opened, Status::Amended], Some("nginx"))
    );
}

#[test]
fn what_waits_is_told_when_the_agent_stops() {
    let mut world = waiting();
    ignored(&mut world, 1);
    world.silent();
    let mut told = Vec::new();
    world.flush(&mut told);
    assert!(matches!(&told[..], [Output::Finding(finding)] if finding.status == Status::Opened), "{told:?}");
    world.pass(SECOND);
    world.silent();
}

#[test]
fn only_so_many_findings_wait() {
    let mut world = waiting();
    let ids: Vec<u64> = (0..30).map(|n| world.container(n)).collect();
    for (n, container) in (0_u32..).zip(ids) {
        world.recorded(n, 65_536 * (n + 1));
        for pid in 0..5 {
            let intruder = Actor::host(1000 + 10 * n + pid, SLEEP, "sh").entering(origin::ATTACHED);
            world.enters(container, &intruder);
        }
    }
    let told = world.findings.len();
    assert!((1..150).contains(&told), "{told}");
    world.pass(SECOND);
    assert_eq!(world.findings.len(), 150);
}

#[test]
fn the_best_source_wins_and_the_next_best_stands_in_for_it() {
    let mut world = World::new();
    let named = |name: &str| PodSpec { name: name.to_owned(), ..spec(1, None) };
    let order = [PodSource::Cri, PodSource::PodsFile, PodSource::KubeletApi, PodSource::Api];
    for source in order {
        world.fact(Fact::Pod(source, Box::new(named(source.name()))));
    }
    ignored(&mut world, 1);
    let told = world.only(RuleId::I3).pod.clone().unwrap();
    assert_eq!((told.source, told.name.as_deref()), (Some(PodSource::Api), Some("api")));
    world.fact(Fact::PodGone(PodSource::Api, uid(1)));
    let container = world.container(1);
    world.enters(container, &Actor::host(90, SLEEP, "sh").entering(origin::ATTACHED));
    let told = world.opened(RuleId::I2)[0].pod.clone().unwrap();
    assert_eq!((told.source, told.name.as_deref()), (Some(PodSource::KubeletApi), Some("kubelet_api")));
}

#[test]
fn whoever_says_that_there_is_to_be_a_user_namespace_wins() {
    let promises = |facts: Vec<Fact>| {
        let mut world = World::new();
        facts.into_iter().for_each(|fact| world.fact(fact));
        let stats = world.engine().stats();
        let all = [Promise::UserNamespace, Promise::HostUsers, Promise::Unknown];
        all.into_iter().find(|promise| stats.pods_promised(*promise) == 1).unwrap()
    };
    let cri = |mode| Fact::Sandbox(Box::new(sandbox(1, "s", mode)));
    let api = |host_users| from_api(spec(1, host_users));
    assert_eq!(promises(vec![cri(UsernsMode::Unknown)]), Promise::Unknown);
    assert_eq!(promises(vec![cri(UsernsMode::Node)]), Promise::HostUsers);
    assert_eq!(promises(vec![cri(UsernsMode::Pod)]), Promise::UserNamespace);
    assert_eq!(promises(vec![api(None)]), Promise::HostUsers);
    // an old kubelet that ignores the field asks the runtime for nothing
    assert_eq!(promises(vec![api(Some(false)), cri(UsernsMode::Node)]), Promise::UserNamespace);
    assert_eq!(promises(vec![api(None), cri(UsernsMode::Pod)]), Promise::UserNamespace);
}

#[test]
fn a_deleted_pod_stays_resolvable_for_a_while() {
    let mut world = World::new();
    world.fact(from_api(spec(1, Some(false))));
    world.fact(Fact::Pods(PodSource::Api, vec![spec(2, None)]));
    assert_eq!(world.engine().stats().pods, 2);
    let container = world.container(1);
    world.execs(container, &Actor::host(80, SLEEP, "sh").entering(origin::ATTACHED).working());
    assert_eq!(names(world.only(RuleId::I3)).0, Some("web-1"));
    world.pass(120 * SECOND);
    assert_eq!(world.engine().stats().pods, 2, "its container is still there");
    world.fact(Fact::PodGone(PodSource::Api, uid(2)));
    world.pass(59 * SECOND);
    assert_eq!(world.engine().stats().pods, 2);
    world.pass(2 * SECOND);
    assert_eq!(world.engine().stats().pods, 1);
}

#[test]
fn a_static_pod_is_known_by_the_uid_that_kubelet_has() {
    let mut world = World::new();
    let mirror = PodSpec { mirror_uid: Some(uid(9)), ..spec(1, Some(false)) };
    world.fact(from_api(mirror));
    ignored(&mut world, 1);
    assert_eq!(names(world.only(RuleId::I3)).0, Some("web-1"));
}

#[test]
fn sandboxes_tell_names_images_and_which_is_the_newest() {
    let mut world = World::new();
    let container = world.container(1);
    let mut old = sandbox(1, "old", UsernsMode::Node);
    old.pod.name = "before".into();
    let mut new = sandbox(1, "new", UsernsMode::Pod);
    (new.created_at, new.pod) = (2, with_container(new.pod, container));
    world.fact(Fact::Sandboxes(vec![new, old]));
    world.execs(container, &Actor::host(80, SLEEP, "sh").entering(origin::ATTACHED).working());
    let finding = world.only(RuleId::I3);
    assert_eq!(names(finding), (Some("web-1"), Some("nginx")));
    let known = finding.container.clone().unwrap();
    assert_eq!((known.image.as_deref(), known.image_digest.as_deref()), (Some("nginx:1"), Some("sha256:1")));
    assert!(finding.unknown.iter().any(|what| what.starts_with("spec.hostUsers")), "{:?}", finding.unknown);
    world.fact(Fact::SandboxGone("old".into()));
    world.fact(Fact::Sandboxes(vec![]));
    assert_eq!(world.engine().stats().pods_promised(Promise::UserNamespace), 1, "its container is there");
}

#[test]
fn a_sandboxs_own_container_has_no_name() {
    let mut world = World::new();
    let container = world.container(1);
    world.fact(Fact::Sandbox(Box::new(sandbox(1, &format!("{container:064x}"), UsernsMode::Pod))));
    world.execs(container, &Actor::host(80, SLEEP, "pause").entering(origin::ATTACHED).working());
    let known = world.only(RuleId::I3).container.clone().unwrap();
    assert_eq!((known.kind, known.name), (Some(ContainerKind::Sandbox), None));
}

#[test]
fn more_pods_than_the_table_holds_are_counted_and_those_in_use_stay() {
    let mut world = World::new();
    let container = world.container(0);
    for n in 1..200 {
        world.fact(from_api(spec(n, None)));
    }
    let stats = world.engine().stats();
    assert!(stats.pods <= 64 && stats.evicted["pods"] == 199 - 63, "{stats:?}");
    world.fact(Fact::Pods(PodSource::Api, vec![spec(0, Some(false))]));
    for n in 300..400 {
        world.fact(from_api(spec(n, None)));
    }
    world.execs(container, &Actor::host(80, SLEEP, "sh").entering(origin::ATTACHED).working());
    assert_eq!(names(world.only(RuleId::I3)).0, Some("web-0"));
}

#[test]
fn pods_that_are_only_described_make_room_for_those_on_the_node() {
    let mut world = World::new();
    // as many as the API server may have for a node; most have ended long ago
    world.fact(Fact::Pods(PodSource::Api, (1..200).map(|n| spec(n, None)).collect()));
    world.recorded(500, 1 << 20);
    let container = world.container(500);
    world.fact(from_api(spec(500, Some(false))));
    world.fact(Fact::Pods(PodSource::Api, (1..200).chain([500]).map(|n| spec(n, None)).collect()));
    world.execs(container, &Actor::host(80, SLEEP, "sh").entering(origin::ATTACHED).working());
    assert_eq!(names(world.only(RuleId::I3)).0, Some("web-500"));
    assert!(world.engine().stats().pods <= 64);
}

#[test]
fn it_is_told_once_how_long_a_container_had_no_name() {
    let mut world = World::new();
    let late = world.container(1);
    let made = world.now();
    world.skip(7 * SECOND);
    world.fact(from_api(spec(1, None)));
    assert_eq!(world.attributed, [], "the pod has a name, the container has none");
    let known = with_container(spec(1, None), late);
    world.fact(from_api(known.clone()));
    let took = Duration::from_nanos(world.now().0 - made.0);
    assert!(took >= Duration::from_secs(7), "{took:?}");
    assert_eq!(world.attributed, [(ContainerKind::Container, took)]);
    world.fact(Fact::Pods(PodSource::KubeletApi, vec![known]));
    assert_eq!(world.attributed.len(), 1, "it was known");
    // one that is known before it is there
    world.fact(from_api(with_container(spec(2, None), late + 2)));
    assert_eq!(world.container(2), late + 2);
    assert_eq!(world.attributed[1..], [(ContainerKind::Container, Duration::ZERO)]);
    // one that was there before the agent: nobody knows since when
    let cgroup = Cgroup {
        id: CgroupId(900),
        role: role::CONTAINER,
        path: format!("/kubepods/burstable/pod{}/{:064x}", uid(3), 900).as_str().into(),
    };
    world.fact(Fact::CgroupSeen(cgroup));
    world.fact(from_api(with_container(spec(3, None), 900)));
    assert_eq!(world.attributed.len(), 2);
}

/// A sandbox for which kubelet asked for a range.
fn asked(n: u32, base: u32) -> Sandbox {
    let KubeletRecord { uid_mappings, gid_mappings } = record(base);
    Sandbox { uid_mappings, gid_mappings, ..sandbox(n, &format!("sandbox-{n}"), UsernsMode::Pod) }
}

/// As [`asked`], with a container.
fn asked_for(n: u32, base: u32, container: u64) -> Sandbox {
    let sandbox = asked(n, base);
    Sandbox { pod: with_container(sandbox.pod, container), ..sandbox }
}

fn from_cri(sandbox: Sandbox) -> Fact {
    Fact::Sandbox(Box::new(sandbox))
}

#[test]
fn i3_fires_and_names_who_promised() {
    let said = |source| Fact::Pod(source, Box::new(spec(1, Some(false))));
    let asked = from_cri(asked(1, BASE));
    let record = Fact::KubeletRecord { uid: uid(1), record: Some(record(BASE)) };
    for (facts, expected) in [
        (vec![asked.clone()], "kubelet asked the runtime for a user namespace"),
        (vec![said(PodSource::PodsFile), asked.clone()], "by the pods file, says hostUsers: false"),
        (vec![said(PodSource::PodsFile), said(PodSource::KubeletApi)], "by kubelet, says hostUsers: false"),
        (vec![said(PodSource::Api), said(PodSource::PodsFile)], "by the API server, says hostUsers: false"),
        (vec![asked, said(PodSource::Api), record], "kubelet recorded a user namespace"),
    ] {
        let mut world = World::new();
        facts.into_iter().for_each(|fact| world.fact(fact));
        let container = world.container(1);
        world.execs(container, &Actor::host(50, SLEEP, "sh").entering(origin::ATTACHED).working());
        assert!(world.only(RuleId::I3).why.contains(expected), "{}", world.only(RuleId::I3).why);
    }
}

#[test]
fn i3_silent_where_kubelet_asked_for_the_hosts_namespace_or_for_nothing() {
    for userns_mode in [UsernsMode::Node, UsernsMode::Unknown] {
        let mut world = World::new();
        world.fact(from_cri(Sandbox { userns_mode, ..asked(1, BASE) }));
        let container = world.container(1);
        world.execs(container, &Actor::host(50, SLEEP, "sh").entering(origin::ATTACHED).working());
        world.pass(5 * SECOND);
        world.silent();
    }
}

#[test]
fn i7_fires_when_the_map_is_not_what_kubelet_asked_for() {
    for recorded in [false, true] {
        let mut world = World::new();
        if recorded {
            world.recorded(1, BASE);
        }
        let container = world.honest_start(1, 50, 7, BASE);
        world.silent();
        world.fact(from_cri(asked_for(1, 131_072, container)));
        let finding = world.only(RuleId::I7);
        assert_eq!(finding.severity, Severity::High);
        assert!(finding.why.contains("that kubelet asked the runtime for"), "{}", finding.why);
        world.fact(from_cri(asked_for(1, 196_608, container)));
        world.only(RuleId::I7);
    }
}

#[test]
fn i7_fires_once_where_neither_record_nor_request_is_the_map() {
    let mut world = World::new();
    world.recorded(1, 131_072);
    let container = world.honest_start(1, 50, 7, BASE);
    world.fact(from_cri(asked_for(1, 131_072, container)));
    let why = &world.only(RuleId::I7).why;
    assert!(why.contains("kubelet's record") && !why.contains("asked the runtime"), "{why}");
}

#[test]
fn i7_silent_for_what_kubelet_asked_for_and_for_other_sandboxes() {
    let mut world = World::new();
    let container = world.honest_start(1, 50, 7, BASE);
    world.fact(from_cri(asked_for(1, BASE, container)));
    // a sandbox that took the place of one whose container is still there, and one that asks for nothing of its own
    let newer = Sandbox { id: "newer".into(), created_at: 2, ..asked(1, 131_072) };
    world.fact(from_cri(newer));
    let container = world.honest_start(2, 60, 8, BASE + 65_536);
    let of_node = Sandbox { userns_mode: UsernsMode::Node, ..asked_for(2, 131_072, container) };
    world.fact(from_cri(of_node));
    let container = world.honest_start(3, 70, 9, BASE + 131_072);
    let left_open = asked_for(3, 131_072, container);
    world.fact(from_cri(Sandbox { uid_mappings: vec![], gid_mappings: vec![], ..left_open }));
    world.pass(5 * SECOND);
    world.silent();
}

/// A node with 500 pods on which 50 start and 50 go each second, for as many seconds; returns table sizes each second.
fn churn(seconds: u64) -> Vec<(usize, usize, usize)> {
    const PODS: u32 = 500;
    const STARTS: u32 = 50;
    let mut world = World::with_tables(8192, 65_536);
    let mut next = 0;
    let mut live = std::collections::VecDeque::new();
    let mut sizes = Vec::new();
    let start = |world: &mut World, n: u32| {
        // as many ranges as kubelet has, each free again before it is used again
        let base = 65_536 * (1 + n % 60_000);
        world.fact(from_api(spec(n, Some(false))));
        world.recorded(n, base);
        let container = world.honest_start(n, 10_000 + n, 10 + n, base);
        world.fact(from_api(with_container(spec(n, Some(false)), container)));
        (n, container)
    };
    for _ in 0..PODS {
        live.push_back(start(&mut world, next));
        next += 1;
    }
    for _ in 0..seconds {
        for _ in 0..STARTS {
            live.push_back(start(&mut world, next));
            next += 1;
            let (n, container) = live.pop_front().unwrap();
            world.ends(container, 10_000 + n);
            world.fact(Fact::PodGone(PodSource::Api, uid(n)));
            world.fact(Fact::KubeletRecord { uid: uid(n), record: None });
        }
        world.pass(100 * MS);
        world.skip(SECOND - 100 * MS);
        let stats = world.engine().stats();
        assert!(stats.evicted.values().all(|count| *count == 0), "{stats:?}");
        sizes.push((stats.pods, stats.containers, stats.processes));
    }
    world.silent();
    sizes
}

#[test]
fn tables_do_not_grow_while_pods_come_and_go() {
    let seconds = std::env::var("USERNS_CHURN_SECONDS").map_or(130, |text| text.parse().unwrap());
    let started = std::time::Instant::now();
    let sizes = churn(seconds);
    println!("{seconds} s of 50 starts a second among 500 pods took {:?}", started.elapsed());
    // what is gone is kept for a minute: from then on as many go as come
    let settled = &sizes[65..];
    assert!(
        settled.iter().all(|now| now.0 <= settled[0].0 + 50 && now.1 <= 501 && now.2 <= settled[0].2 + 50),
        "{settled:?}"
    );
}
