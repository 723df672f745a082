//! The rules file: what it withholds, what it must not, and what is told of that after all.

use std::collections::BTreeMap;
use std::time::Duration;

use userns_agent::core::Reason;
use userns_agent::core::finding::{Finding, Severity, Status};
use userns_agent::core::rules::RuleId;
use userns_agent::event::{
    AggregateKey, AggregateValue, ContainerSpec, Exception, Fact, Hook, Image, KubeletRecord, Nanos,
    Operation, PodSource, PodSpec, Policy, ProcessId, Relation, RuleSetting, origin, reason, role, state,
};

use super::restart::told;
use super::world::{Actor, MS, SECOND, SLEEP, World, record, uid};
use super::{BASE, SYS_ADMIN};

/// A tool of the node's, on the host's disk.
const TOOL: Image = Image { ino: 201, dev: SLEEP.dev, nlink: 1 };

fn except(rule: &str) -> Exception {
    Exception { name: "known".into(), rules: vec![rule.into()], ..Exception::default() }
}

fn in_namespace(rule: &str, namespace: &str) -> Exception {
    Exception { namespaces: vec![namespace.into()], ..except(rule) }
}

fn with(exceptions: Vec<Exception>) -> Policy {
    Policy { exceptions, ..Policy::default() }
}

fn setting(rule: &str) -> RuleSetting {
    RuleSetting { rule: rule.into(), enabled: true, severity: None, threshold: 0 }
}

fn set(setting: RuleSetting) -> Policy {
    Policy { rules: vec![setting], ..Policy::default() }
}

fn follow(world: &mut World, policy: Policy) {
    world.fact(Fact::Policy(Box::new(policy)));
}

/// What an API server says of a pod that has one container.
fn described(world: &mut World, n: u32, container: u64) {
    let spec = PodSpec {
        uid: uid(n),
        namespace: "shop".into(),
        name: format!("web-{n}"),
        labels: BTreeMap::from([("app".to_owned(), "web".to_owned()), ("tier".to_owned(), "1".to_owned())]),
        service_account: Some("builder".into()),
        host_users: Some(false),
        containers: vec![ContainerSpec {
            name: "nginx".into(),
            image: "registry.example/tools/nginx:1.29".into(),
            image_digest: Some("sha256:1234".into()),
            id: Some(format!("{container:064x}")),
            ..ContainerSpec::default()
        }],
        ..PodSpec::default()
    };
    world.fact(Fact::Pod(PodSource::Api, Box::new(spec)));
}

/// A sound container of a pod that is described.
fn sound(world: &mut World, n: u32) -> u64 {
    let base = BASE + n * 65_536;
    world.recorded(n, base);
    let container = world.honest_start(n, 50 + n, 7 + n, base);
    described(world, n, container);
    container
}

/// A program of the host's comes into a container's cgroup: I2.
fn intrudes(world: &mut World, container: u64, pid: u32, image: Image) {
    world.enters(container, &Actor::host(pid, image, "tool").entering(origin::ATTACHED));
}

/// What an exception lets through, with a program of the host's in a described pod.
fn told_with(exception: Exception) -> usize {
    let mut world = World::new();
    follow(&mut world, with(vec![exception]));
    let container = sound(&mut world, 1);
    intrudes(&mut world, container, 70, TOOL);
    world.pass(SECOND);
    let excepted: u64 = world.engine().stats().policy.excepted.values().sum();
    assert_eq!(world.findings.len() + usize::try_from(excepted).unwrap(), 1, "told or counted, once");
    world.findings.len()
}

#[test]
fn each_kind_of_selector_withholds_what_it_names_and_nothing_else() {
    let labels = |value: &str| BTreeMap::from([("app".to_owned(), value.to_owned())]);
    let image = |image: &str| Exception { images: vec!["x".into(), image.into()], ..except("I2") };
    let account = |name: &str| Exception { service_accounts: vec![name.into()], ..except("I2") };
    let program = |image| Exception { executables: Some(vec![image]), ..except("I2") };
    for (silent, fires) in [
        (in_namespace("I2", "shop"), in_namespace("I2", "shops")),
        (in_namespace("I2", "sh*"), in_namespace("I3", "shop")),
        (
            Exception { labels: labels("web"), ..except("I2") },
            Exception { labels: labels("we"), ..except("I2") },
        ),
        (image("registry.example/tools/*"), image("registry.example/tool/*")),
        (image("sha256:1234"), image("sha256:12345")),
        (account("builder"), account("default")),
        (program(TOOL), program(SLEEP)),
        (
            Exception {
                labels: labels("web"),
                executables: Some(vec![SLEEP, TOOL]),
                ..in_namespace("I2", "shop")
            },
            Exception { labels: labels("web"), executables: Some(vec![TOOL]), ..in_namespace("I2", "other") },
        ),
    ] {
        assert_eq!(told_with(silent.clone()), 0, "{silent:?}");
        assert_eq!(told_with(fires.clone()), 1, "{fires:?}");
    }
    assert_eq!(told_with(Exception { executables: Some(Vec::new()), ..except("I2") }), 1);
}

#[test]
fn what_an_exception_withheld_is_told_when_it_expires() {
    let mut world = World::new();
    let expires = Some(Nanos(world.now().0 + 10 * SECOND));
    follow(&mut world, with(vec![Exception { expires, ..in_namespace("I13", "shop") }]));
    let container = sound(&mut world, 1);
    let moved = |pid| Actor::inside(pid, 8, BASE + 65_536);
    world.suspect(container, &moved(51), Hook::CgroupAttach, reason::LEFT_CGROUP);
    world.pass(5 * SECOND);
    world.silent();
    let stats = world.engine().stats();
    assert_eq!((stats.open, stats.exceptions[0].matched, stats.exceptions[0].expired), (0, 1, false));
    assert!(stats.exceptions[0].last.is_some() && world.engine().pods()[0].findings.is_empty());
    world.pass(10 * SECOND);
    let finding = world.only(RuleId::I13);
    assert_eq!(
        (finding.status, finding.pod.as_ref().unwrap().name.as_deref()),
        (Status::Opened, Some("web-1"))
    );
    assert!(!finding.evidence.is_empty(), "with what led to it, though that is long ago");
    let stats = world.engine().stats();
    assert_eq!((stats.open, stats.exceptions[0].matched, stats.exceptions[0].expired), (1, 1, true));
    world.suspect(container, &moved(52), Hook::CgroupAttach, reason::LEFT_CGROUP);
    assert_eq!(world.opened(RuleId::I13).len(), 2, "an expired exception withholds nothing");
}

#[test]
fn what_was_never_told_ends_without_a_word() {
    let mut world = World::new();
    let container = sound(&mut world, 1);
    intrudes(&mut world, container, 70, TOOL);
    follow(&mut world, with(vec![in_namespace("I2", "shop")]));
    intrudes(&mut world, container, 71, TOOL);
    world.pass(SECOND);
    [50, 70, 71].into_iter().for_each(|pid| world.ends(container, pid));
    world.pass(100 * SECOND);
    follow(&mut world, Policy::default());
    world.pass(SECOND);
    let told = world.findings.iter().map(|it| (it.status, it.task.as_ref().unwrap().task.process.pid));
    assert_eq!(told.collect::<Vec<_>>(), [(Status::Opened, 70), (Status::Resolved, 70)]);
}

#[test]
fn what_an_exception_withheld_is_told_when_it_is_removed_if_it_is_still_true() {
    let mut world = World::new();
    follow(&mut world, with(vec![in_namespace("I2", "shop"), in_namespace("I13", "shop")]));
    let (first, second) = (sound(&mut world, 1), sound(&mut world, 2));
    intrudes(&mut world, first, 70, TOOL);
    intrudes(&mut world, first, 71, TOOL);
    world.exits(first, 71);
    world.suspect(first, &Actor::inside(51, 8, BASE + 65_536), Hook::CgroupAttach, reason::LEFT_CGROUP);
    world.suspect(second, &Actor::inside(52, 9, BASE + 2 * 65_536), Hook::CgroupAttach, reason::LEFT_CGROUP);
    world.ends(second, 52);
    world.pass(SECOND);
    world.silent();
    follow(&mut world, Policy::default());
    let told: Vec<_> =
        world.findings.iter().map(|it| (it.rule, it.task.as_ref().unwrap().task.process.pid)).collect();
    assert_eq!(told, [(RuleId::I2, 70), (RuleId::I13, 51)]);
    world.pass(20 * SECOND);
    assert_eq!(world.findings.len(), 2);
}

#[test]
fn another_program_in_the_same_process_is_not_covered() {
    let mut world = World::new();
    follow(&mut world, with(vec![Exception { executables: Some(vec![TOOL]), ..except("I2") }]));
    let container = sound(&mut world, 1);
    intrudes(&mut world, container, 70, TOOL);
    world.pass(SECOND);
    world.silent();
    // it shows no name that an exception could have: executables are known by device and inode number
    world.execs(container, &Actor::host(70, SLEEP, "tool").entering(origin::ATTACHED));
    let finding = world.only(RuleId::I2);
    assert_eq!(finding.task.as_ref().unwrap().task.image, SLEEP);
}

#[test]
fn a_tool_that_has_become_the_workload_is_not_covered() {
    let mut world = World::new();
    follow(&mut world, with(vec![Exception { executables: Some(vec![TOOL]), ..except("I2") }]));
    let container = sound(&mut world, 1);
    world.execs(container, &Actor::host(70, TOOL, "tool").entering(origin::ATTACHED).working());
    world.only(RuleId::I2);
}

#[test]
fn a_finding_that_was_told_stays_when_its_process_runs_an_expected_program() {
    let mut world = World::new();
    follow(&mut world, with(vec![Exception { executables: Some(vec![TOOL]), ..except("I2") }]));
    let container = sound(&mut world, 1);
    intrudes(&mut world, container, 70, SLEEP);
    world.execs(container, &Actor::host(70, TOOL, "tool").entering(origin::ATTACHED));
    world.pass(SECOND);
    world.only(RuleId::I2);
    assert_eq!(world.engine().stats().open, 1);
}

fn escapes(world: &mut World, container: u64) {
    let thief = Actor::inside(61, 8, BASE + 65_536).with_host_credentials();
    world.suspect(container, &thief, Hook::Exec, reason::LEFT_USERNS);
}

#[test]
fn i1_is_not_silenced_but_by_an_exception_that_says_so() {
    let off = RuleSetting { enabled: false, severity: Some(0), threshold: 9, ..setting("I1") };
    for (policy, told) in [
        (with(vec![in_namespace("I1", "shop")]), 1),
        (set(off), 1),
        (with(vec![Exception { silences_credential_escape: true, ..in_namespace("I1", "shop") }]), 0),
        (with(vec![Exception { silences_credential_escape: true, ..in_namespace("I1", "other") }]), 1),
    ] {
        let mut world = World::new();
        follow(&mut world, policy.clone());
        let container = sound(&mut world, 1);
        escapes(&mut world, container);
        assert_eq!(world.opened(RuleId::I1).len(), told, "{policy:?}");
        assert!(world.findings.iter().all(|finding| finding.severity == Severity::Critical));
    }
}

#[test]
fn a_critical_finding_does_not_wait_for_what_an_exception_asks_for() {
    let mut world = World::waiting(Duration::from_secs(1));
    let exception = Exception { silences_credential_escape: true, ..in_namespace("I1", "shop") };
    follow(&mut world, with(vec![exception]));
    world.recorded(1, BASE + 65_536);
    let container = world.honest_start(1, 51, 8, BASE + 65_536);
    escapes(&mut world, container);
    world.only(RuleId::I1);
}

#[test]
fn others_wait_for_what_an_exception_asks_for_and_are_told_in_the_end() {
    let start = |namespace: &str| {
        let mut world = World::waiting(Duration::from_secs(1));
        follow(&mut world, with(vec![in_namespace("I2", namespace)]));
        world.recorded(1, BASE + 65_536);
        let container = world.honest_start(1, 51, 8, BASE + 65_536);
        intrudes(&mut world, container, 70, TOOL);
        world.pass(500 * MS);
        world.silent();
        (world, container)
    };
    let (mut world, container) = start("shop");
    described(&mut world, 1, container);
    world.pass(5 * SECOND);
    world.silent();
    assert_eq!(world.engine().stats().exceptions[0].matched, 1);
    let (mut world, container) = start("other");
    described(&mut world, 1, container);
    world.only(RuleId::I2);
    let (mut world, _) = start("shop");
    world.pass(SECOND);
    assert!(world.only(RuleId::I2).unknown.iter().any(|what| what.starts_with("pod name")));
}

#[test]
fn a_service_account_is_waited_for_though_the_names_are_known() {
    let mut world = World::waiting(Duration::from_secs(1));
    follow(&mut world, with(vec![Exception { service_accounts: vec!["builder".into()], ..except("I2") }]));
    world.recorded(1, BASE + 65_536);
    let container = world.honest_start(1, 51, 8, BASE + 65_536);
    // the runtime knows names and containers, and no accounts
    let mut spec =
        PodSpec { uid: uid(1), namespace: "shop".into(), name: "web-1".into(), ..PodSpec::default() };
    let id = Some(format!("{container:064x}"));
    spec.containers = vec![ContainerSpec { name: "nginx".into(), id, ..ContainerSpec::default() }];
    world.fact(Fact::Pod(PodSource::Cri, Box::new(spec)));
    intrudes(&mut world, container, 70, TOOL);
    world.pass(500 * MS);
    world.silent();
    described(&mut world, 1, container);
    world.pass(5 * SECOND);
    world.silent();
}

#[test]
fn a_rule_that_is_off_says_nothing_and_is_counted() {
    let mut world = World::new();
    follow(&mut world, set(RuleSetting { enabled: false, ..setting("I2") }));
    let container = sound(&mut world, 1);
    intrudes(&mut world, container, 70, TOOL);
    world.pass(5 * SECOND);
    world.silent();
    let stats = world.engine().stats();
    assert_eq!(stats.policy.withheld, BTreeMap::from([((RuleId::I2, Reason::Disabled), 1)]));
    assert_eq!((stats.open, stats.repeated), (0, 0));
    follow(&mut world, Policy::default());
    world.only(RuleId::I2);
}

#[test]
fn a_rule_has_the_severity_that_is_wanted() {
    let mut world = World::new();
    follow(&mut world, set(RuleSetting { severity: Some(Severity::Info as u8), ..setting("I2") }));
    let container = sound(&mut world, 1);
    intrudes(&mut world, container, 70, TOOL);
    assert_eq!(world.only(RuleId::I2).severity, Severity::Info);
    world.pass(20 * SECOND);
    world.only(RuleId::I2);
    follow(&mut world, set(RuleSetting { enabled: false, ..setting("I2") }));
    intrudes(&mut world, container, 71, TOOL);
    follow(&mut world, set(RuleSetting { severity: Some(Severity::Low as u8), ..setting("I2") }));
    assert_eq!(world.opened(RuleId::I2)[1].severity, Severity::Low, "of what was withheld meanwhile, too");
}

fn row(container: u64, count: u64) -> Fact {
    let key = AggregateKey {
        container,
        operation: Operation::Setns as u8,
        code: 0,
        relation: u8::try_from(Relation::Pod as u32).unwrap(),
        verdict: userns_common::kind::verdict::DENIED,
        state: u8::try_from(state::INSIDE).unwrap(),
        workload: 1,
        ..AggregateKey::default()
    };
    Fact::Aggregates(vec![(key, AggregateValue { count, last_ns: 9 * SECOND, ..AggregateValue::default() })])
}

#[test]
fn a_finding_is_told_from_so_many_uses_on() {
    let mut world = World::new();
    follow(&mut world, set(RuleSetting { threshold: 10, ..setting("I11") }));
    let container = sound(&mut world, 1);
    let shell = Actor::inside(51, 8, BASE + 65_536);
    world.calls(container, &shell, Operation::Setns, -1);
    world.calls(container, &shell, Operation::Unshare, -1);
    world.fact(row(container, 8));
    world.pass(20 * SECOND);
    world.silent();
    assert_eq!(world.engine().stats().policy.withheld[&(RuleId::I11, Reason::Threshold)], 3);
    world.fact(row(container, 9));
    let finding = world.only(RuleId::I11);
    assert_eq!(finding.calls.iter().map(|used| used.count).sum::<u64>(), 10);
    world.fact(row(container, 50));
    world.pass(20 * SECOND);
    assert_eq!(world.findings[1].status, Status::Updated);
}

#[test]
fn a_lower_threshold_tells_what_it_reaches() {
    let mut world = World::new();
    follow(&mut world, set(RuleSetting { threshold: 10, ..setting("I11") }));
    let container = sound(&mut world, 1);
    let shell = Actor::inside(51, 8, BASE + 65_536);
    world.calls(container, &shell, Operation::Setns, -1);
    world.calls(container, &shell, Operation::Unshare, -1);
    follow(&mut world, set(RuleSetting { threshold: 3, ..setting("I11") }));
    world.silent();
    follow(&mut world, set(RuleSetting { threshold: 2, ..setting("I11") }));
    world.only(RuleId::I11);
}

#[test]
fn what_an_earlier_run_told_is_no_news_because_of_a_threshold() {
    let attempt = |world: &mut World, operation| {
        let container = sound(world, 1);
        world.calls(container, &Actor::inside(51, 8, BASE + 65_536), operation, -1);
    };
    let mut first = World::new();
    attempt(&mut first, Operation::Setns);
    let mut second = World::new();
    follow(&mut second, set(RuleSetting { threshold: 10, ..setting("I11") }));
    second.fact(Fact::Told(vec![told(first.only(RuleId::I11))]));
    attempt(&mut second, Operation::Setns);
    let again = &second.findings[0];
    assert_eq!(
        (again.status, again.calls[0].count, second.engine().stats().recognised),
        (Status::Updated, 2, 1)
    );
    let mut third = World::new();
    follow(&mut third, with(vec![in_namespace("I11", "shop")]));
    third.fact(Fact::Told(vec![told(first.only(RuleId::I11))]));
    attempt(&mut third, Operation::Setns);
    third.pass(20 * SECOND);
    third.silent();
    follow(&mut third, Policy::default());
    third.pass(20 * SECOND);
    assert_eq!((third.findings.len(), third.findings[0].status), (1, Status::Updated));
}

#[test]
fn what_an_earlier_run_told_is_not_told_again_when_its_exception_goes() {
    let start = |world: &mut World| {
        let container = sound(world, 1);
        intrudes(world, container, 70, TOOL);
    };
    let mut first = World::new();
    start(&mut first);
    let mut second = World::new();
    follow(&mut second, with(vec![in_namespace("I2", "shop")]));
    second.fact(Fact::Told(vec![told(first.only(RuleId::I2))]));
    start(&mut second);
    follow(&mut second, Policy::default());
    second.pass(20 * SECOND);
    second.silent();
    assert_eq!((second.engine().stats().open, second.engine().stats().recognised), (1, 1));
}

#[test]
fn a_container_that_becomes_known_while_a_finding_waits_is_ruled_on() {
    let mut world = World::waiting(Duration::from_secs(2));
    follow(&mut world, with(vec![in_namespace("I13", "shop")]));
    described(&mut world, 1, 9999);
    let moved = Actor::inside(51, 8, BASE + 65_536);
    for container in [9999, 8888] {
        world.suspect(container, &moved, Hook::CgroupAttach, reason::LEFT_CGROUP);
    }
    world.pass(SECOND);
    world.silent();
    world.mkdir(9999, role::CONTAINER, &format!("/kubepods/pod{}/{:064x}", uid(1), 9999));
    world.pass(5 * SECOND);
    assert!(world.only(RuleId::I13).container.is_none(), "the one of which nothing became known");
    assert_eq!(world.engine().stats().exceptions[0].matched, 1);
}

#[test]
fn an_exception_that_comes_later_ends_the_updates_and_one_that_goes_brings_them_back() {
    let mut world = World::new();
    let container = sound(&mut world, 1);
    let shell = Actor::inside(51, 8, BASE + 65_536);
    world.calls(container, &shell, Operation::Setns, -1);
    world.only(RuleId::I11);
    follow(&mut world, with(vec![in_namespace("I11", "shop")]));
    world.calls(container, &shell, Operation::Unshare, -1);
    world.fact(row(container, 9));
    world.pass(20 * SECOND);
    assert_eq!(world.findings.len(), 1);
    assert_eq!(world.engine().stats().exceptions[0].matched, 2);
    follow(&mut world, Policy::default());
    world.pass(20 * SECOND);
    let update = &world.findings[1];
    assert_eq!((world.findings.len(), update.status, update.calls.len()), (2, Status::Updated, 2));
}

#[test]
fn counts_outlive_a_reload_and_only_news_is_counted() {
    let mut world = World::new();
    follow(&mut world, with(vec![in_namespace("I11", "shop")]));
    let container = sound(&mut world, 1);
    let shell = Actor::inside(51, 8, BASE + 65_536);
    for _ in 0..5 {
        world.calls(container, &shell, Operation::Setns, -1);
    }
    world.asks(container, &shell, SYS_ADMIN, Relation::Host, -1);
    follow(&mut world, with(vec![in_namespace("I11", "sh*")]));
    let stats = world.engine().stats();
    assert_eq!((stats.exceptions[0].matched, stats.policy.excepted.len(), stats.repeated), (2, 1, 0));
    assert!(world.engine().stats().exceptions[0].last <= Some(world.now()));
}

#[test]
fn withheld_findings_make_room_first() {
    let mut world = World::new();
    follow(&mut world, with(vec![in_namespace("I13", "shop")]));
    let container = sound(&mut world, 1);
    world.recorded(9, BASE);
    let other = world.honest_start(9, 40, 6, BASE);
    let moved = |pid| Actor::inside(pid, 8, BASE + 65_536);
    world.suspect(other, &Actor::inside(41, 6, BASE), Hook::CgroupAttach, reason::LEFT_CGROUP);
    for pid in 1000..10_000 {
        world.suspect(container, &moved(pid), Hook::CgroupAttach, reason::LEFT_CGROUP);
    }
    let stats = world.engine().stats();
    assert_eq!((world.findings.len(), stats.open), (1, 1));
    assert!(stats.evicted["findings"] > 0, "{stats:?}");
}

/// A day with something of everything in two pods, of which the second is not in any exception.
fn day(policy: Policy) -> World {
    let mut world = World::new();
    follow(&mut world, policy);
    let containers = [sound(&mut world, 1), sound(&mut world, 2)];
    // the second is of another namespace, with other labels, another account and another image
    let id = Some(format!("{:064x}", containers[1]));
    let spec = PodSpec {
        uid: uid(2),
        namespace: "untouched".into(),
        name: "web-2".into(),
        containers: vec![ContainerSpec {
            name: "db".into(),
            image: "db:1".into(),
            id,
            ..ContainerSpec::default()
        }],
        service_account: Some("default".into()),
        host_users: Some(false),
        ..PodSpec::default()
    };
    world.fact(Fact::Pod(PodSource::Api, Box::new(spec)));
    for (n, container) in (1..).zip(containers) {
        let shell = Actor::inside(500 + n, 7 + n, BASE + n * 65_536);
        intrudes(&mut world, container, 600 + n, TOOL);
        world.calls(container, &shell, Operation::Setns, -1);
        world.suspect(container, &shell, Hook::CgroupAttach, reason::LEFT_CGROUP);
        world.suspect(container, &shell.with_host_credentials(), Hook::Exit, reason::LEFT_USERNS);
        world.pass(SECOND);
    }
    world.fact(Fact::KubeletRecord { uid: uid(1), record: Some(KubeletRecord { ..record(0) }) });
    world.fact(Fact::KubeletRecord { uid: uid(2), record: Some(record(0)) });
    world.pass(30 * SECOND);
    world
}

#[test]
fn an_exception_never_changes_findings_that_it_does_not_match() {
    let of_second = |world: World| -> Vec<Finding> {
        let second = |finding: &Finding| finding.pod.as_ref().is_some_and(|pod| pod.uid == uid(2));
        world.findings.iter().filter(|it| second(it)).cloned().collect()
    };
    let plain = day(Policy::default());
    let in_first =
        plain.findings.iter().filter(|it| it.pod.as_ref().is_some_and(|pod| pod.uid == uid(1))).count();
    let expected = of_second(plain);
    assert!(expected.len() >= 5 && in_first >= 5, "{} {in_first}", expected.len());
    let mut random = fastrand::Rng::with_seed(7);
    let mut silenced = 0;
    for _ in 0..300 {
        let exceptions = (0..random.usize(1..4)).map(|_| arbitrary(&mut random)).collect();
        let policy = with(exceptions);
        let world = day(policy.clone());
        silenced += usize::from(world.engine().stats().policy.excepted.values().any(|count| *count > 0));
        let found = of_second(world);
        assert!(found == expected, "{policy:#?}");
    }
    assert!(silenced > 100, "{silenced} of the exceptions matched: the test would prove nothing");
}

/// An exception that may match the first pod of [`day`], and never the second.
fn arbitrary(random: &mut fastrand::Rng) -> Exception {
    let ids = ["I1", "I2", "I4", "I7", "I11", "I13"];
    let mut exception = Exception {
        name: format!("e{}", random.u8(..)),
        rules: ids.into_iter().filter(|_| random.bool()).map(str::to_owned).collect(),
        silences_credential_escape: random.bool(),
        expires: random.bool().then(|| Nanos(random.u64(..40 * SECOND))),
        ..Exception::default()
    };
    let pick = |random: &mut fastrand::Rng, from: &[&str]| vec![from[random.usize(..from.len())].to_owned()];
    match random.u8(..4) {
        0 => exception.namespaces = pick(random, &["shop", "s*", "other"]),
        1 => exception.labels = BTreeMap::from([("app".to_owned(), pick(random, &["web", "x"]).remove(0))]),
        2 => exception.images = pick(random, &["registry.example/*", "*nginx*", "sha256:1234", "x"]),
        _ => exception.service_accounts = pick(random, &["builder", "b*", "x"]),
    }
    if random.u8(..4) == 0 {
        exception.executables = Some(vec![TOOL]);
    }
    exception
}

#[test]
fn the_process_of_an_untold_finding_is_known_by_its_program_alone() {
    // the same pid again, for another process
    let mut world = World::new();
    follow(&mut world, with(vec![Exception { executables: Some(vec![TOOL]), ..except("I2") }]));
    let container = sound(&mut world, 1);
    intrudes(&mut world, container, 70, TOOL);
    world.exits(container, 70);
    let mut again = Actor::host(70, SLEEP, "tool").entering(origin::ATTACHED);
    again.0.task.process = ProcessId { pid: 70, start: Nanos(99) };
    world.enters(container, &again);
    world.only(RuleId::I2);
}
