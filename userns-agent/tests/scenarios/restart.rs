//! The agent was restarted: what an earlier run told is not told as new, and nothing else is held back.

use userns_agent::core::finding::{Finding, Severity, Status};
use userns_agent::core::rules::RuleId;
use userns_agent::event::{
    CgroupId, Extent, Fact, Hook, Nanos, Operation, Relation, Told, ToldCall, ToldCapability, origin, reason,
};

use super::world::{Actor, MS, SECOND, SLEEP, World};
use super::{BASE, SYS_ADMIN};

/// What the state directory keeps of a finding.
pub(crate) fn told(finding: &Finding) -> Told {
    let operation = |name: &str| Operation::ALL.iter().copied().find(|operation| operation.name() == name);
    Told {
        id: finding.id.0,
        container: finding.container.as_ref().unwrap().cgroup,
        first: finding.first,
        last: finding.time,
        count: finding.count,
        severity: finding.severity as u8,
        capabilities: finding
            .capabilities
            .iter()
            .map(|used| ToldCapability {
                capability: used.capability,
                granted: used.granted,
                count: used.count,
                syscall: used.syscall,
            })
            .collect(),
        calls: finding
            .calls
            .iter()
            .map(|used| ToldCall {
                operation: operation(used.call).unwrap(),
                ret: used.ret,
                count: used.count,
            })
            .collect(),
    }
}

/// The next run on the same node, with the memory of what this one told.
fn restarted(world: &World) -> World {
    let mut next = World::new();
    next.fact(Fact::Told(world.findings.iter().map(told).collect()));
    next
}

/// A container whose runtime ignored the promise, as a run meets it that sees it start.
fn ignored(world: &mut World) -> u64 {
    world.recorded(1, BASE);
    let container = world.container(1);
    world.execs(container, &Actor::host(50, SLEEP, "sh").entering(origin::ATTACHED).working());
    container
}

/// The same container, as the next run's first sweep meets it.
fn ignored_before(world: &mut World) -> u64 {
    world.recorded(1, BASE);
    let container = world.container(1);
    world.found(container, &Actor::host(50, SLEEP, "sh").entering(origin::ADOPTED).working());
    container
}

#[test]
fn what_was_told_is_recognised_and_counted_as_repeated() {
    let mut first = World::new();
    ignored(&mut first);
    first.only(RuleId::I3);
    let mut second = restarted(&first);
    ignored_before(&mut second);
    second.pass(30 * SECOND);
    second.silent();
    let stats = second.engine().stats();
    assert_eq!((stats.open, stats.recognised, stats.repeated), (1, 1, 1));
}

#[test]
fn what_an_earlier_run_told_is_resolved_by_this_one() {
    let mut first = World::new();
    ignored(&mut first);
    let told = first.only(RuleId::I3).clone();
    let mut second = restarted(&first);
    let container = ignored_before(&mut second);
    second.silent();
    second.ends(container, 50);
    second.pass(61 * SECOND);
    let ended: Vec<_> = second.findings.iter().map(|it| (it.status, it.id, it.first, it.count)).collect();
    assert_eq!(ended, [(Status::Resolved, told.id, told.first, told.count)]);
}

#[test]
fn what_was_decided_but_not_told_comes_again_as_new() {
    let mut first = World::new();
    ignored(&mut first);
    let id = first.only(RuleId::I3).id;
    let mut second = World::new();
    second.fact(Fact::Told(Vec::new()));
    ignored_before(&mut second);
    assert_eq!(second.only(RuleId::I3).id, id);
    assert_eq!(second.engine().stats().recognised, 0);
}

#[test]
fn another_finding_about_a_known_container_is_new() {
    let mut first = World::new();
    ignored(&mut first);
    let mut second = restarted(&first);
    let container = ignored_before(&mut second);
    let shell = Actor::host(51, SLEEP, "sh").entering(origin::ADOPTED).working();
    second.asks(container, &shell, SYS_ADMIN, Relation::Host, 0);
    second.only(RuleId::I5);
}

#[test]
fn a_known_finding_that_is_worse_now_is_updated() {
    let mut first = World::new();
    first.recorded(1, BASE);
    let container = first.honest_start(1, 50, 7, BASE);
    let thief = |id| {
        let mut thief = Actor::inside(51, 7, BASE);
        let mut ns = thief.0.task.userns;
        ns.uid_map.nr_extents = 2;
        ns.uid_map.extents[1] = Extent { first: 65_536, lower_first: 131_072, count: 1 };
        (thief.0.task.userns, thief.0.task.pod_userns) = (ns, Some(ns));
        thief.0.task.ids.euid = id;
        thief
    };
    let in_the_map_only = thief(131_072);
    first.suspect(container, &in_the_map_only, Hook::Exit, reason::ID_OUTSIDE_MAP);
    assert_eq!(first.opened(RuleId::I4)[0].severity, Severity::High);
    let mut second = restarted(&first);
    second.recorded(1, BASE);
    let container = second.honest_start(1, 50, 7, BASE);
    second.suspect(container, &in_the_map_only, Hook::Exit, reason::ID_OUTSIDE_MAP);
    second.silent();
    let mut third = restarted(&first);
    third.recorded(1, BASE);
    let container = third.honest_start(1, 50, 7, BASE);
    third.suspect(container, &thief(0), Hook::Exit, reason::ID_OUTSIDE_MAP);
    let is_i4 = |finding: &&Finding| finding.rule == RuleId::I4;
    let update = third.findings.iter().find(is_i4).unwrap();
    assert_eq!((update.status, update.severity, update.count), (Status::Updated, Severity::Critical, 2));
    let told = first.findings.iter().find(is_i4).unwrap();
    assert_eq!((update.id, update.first), (told.id, told.first));
    assert!(update.pod.is_some() && update.why.contains("euid 0"), "{update:?}");
}

#[test]
fn new_attempts_add_to_those_of_the_earlier_run() {
    let attempt = |world: &mut World, container, operation| {
        world.calls(container, &Actor::inside(51, 7, BASE), operation, -1);
    };
    let mut first = World::new();
    first.recorded(1, BASE);
    let container = first.honest_start(1, 50, 7, BASE);
    attempt(&mut first, container, Operation::Setns);
    first.only(RuleId::I11);
    let mut second = restarted(&first);
    second.recorded(1, BASE);
    let container = second.honest_start(1, 50, 7, BASE);
    second.silent();
    attempt(&mut second, container, Operation::Setns);
    let again = &second.findings[0];
    assert_eq!((again.status, again.count, again.calls[0].count), (Status::Updated, 2, 2));
    attempt(&mut second, container, Operation::Unshare);
    second.pass(11 * SECOND);
    let other = &second.findings[1];
    let calls: Vec<_> = other.calls.iter().map(|used| (used.call, used.count)).collect();
    assert_eq!((other.status, calls), (Status::Updated, vec![("setns", 2), ("unshare", 1)]));
    assert_eq!(second.findings.len(), 2);
}

#[test]
fn numbers_of_a_corrupt_memory_do_no_harm() {
    let mut first = World::new();
    first.recorded(1, BASE);
    let container = first.honest_start(1, 50, 7, BASE);
    first.calls(container, &Actor::inside(51, 7, BASE), Operation::Setns, -1);
    let mut record = told(first.only(RuleId::I11));
    (record.count, record.severity, record.first, record.last) =
        (u64::MAX, 255, Nanos(u64::MAX), Nanos(u64::MAX));
    record.calls[0].count = u64::MAX;
    let mut second = World::new();
    second.fact(Fact::Told(vec![record]));
    second.recorded(1, BASE);
    let container = second.honest_start(1, 50, 7, BASE);
    second.calls(container, &Actor::inside(51, 7, BASE), Operation::Setns, -1);
    second.calls(container, &Actor::inside(51, 7, BASE), Operation::Unshare, -1);
    second.pass(20 * SECOND);
    assert_eq!(second.engine().stats().recognised, 1);
}

#[test]
fn what_was_told_of_a_container_that_is_gone_is_forgotten() {
    let mut first = World::new();
    let container = ignored(&mut first);
    let walk = |world: &mut World| {
        let started = world.now();
        world.fact(Fact::CgroupWalkDone { started });
    };
    let mut second = restarted(&first);
    walk(&mut second);
    second.pass(61 * SECOND);
    assert_eq!(second.forgotten, [], "not before a walk has shown that it is gone");
    walk(&mut second);
    assert_eq!(second.forgotten, [CgroupId(container)]);
    walk(&mut second);
    assert_eq!(second.forgotten.len(), 1);
    // were there such a container after all, that would be news
    ignored_before(&mut second);
    second.only(RuleId::I3);
    assert_eq!(second.engine().stats().recognised, 0);
}

#[test]
fn a_container_that_is_there_keeps_its_memory_however_long_nothing_is_found() {
    let mut first = World::new();
    ignored(&mut first);
    let mut second = restarted(&first);
    let container = second.container(1);
    let started = second.now();
    second.pass(61 * SECOND);
    second.fact(Fact::CgroupSeen(userns_agent::event::Cgroup {
        id: CgroupId(container),
        ..userns_agent::event::Cgroup::default()
    }));
    second.fact(Fact::CgroupWalkDone { started: Nanos(started.0 + 60 * SECOND + MS) });
    assert_eq!(second.forgotten, []);
    second.recorded(1, BASE);
    second.found(container, &Actor::host(50, SLEEP, "sh").entering(origin::ADOPTED).working());
    second.silent();
    assert_eq!(second.engine().stats().recognised, 1);
}
