//! How findings end.

use userns_agent::core::finding::{Finding, Resolved, Status};
use userns_agent::core::rules::RuleId;
use userns_agent::core::windows::{KEEP_NS, RESOLVE_NS};
use userns_agent::event::{Body, Cgroup, CgroupId, Fact, Hook, Operation, origin, reason, role};

use std::time::Duration;

use super::BASE;
use super::world::{Actor, SECOND, SLEEP, World, uid};

fn removed(world: &mut World, id: u64, role: u32) {
    let cgroup = Cgroup { id: CgroupId(id), role, path: "".into() };
    world.event(Hook::CgroupRmdir, 0, Body::CgroupRmdir(cgroup));
}

fn resolved(world: &World) -> Vec<&Finding> {
    world.findings.iter().filter(|finding| finding.status == Status::Resolved).collect()
}

fn attempt(world: &mut World, container: u64, operation: Operation) {
    world.calls(container, &Actor::inside(51, 7, BASE), operation, -1);
}

#[test]
fn a_finding_is_resolved_once_its_container_is_gone() {
    let mut world = World::new();
    world.recorded(1, BASE);
    world.declared(1, Some(false));
    let container = world.honest_start(1, 50, 7, BASE);
    attempt(&mut world, container, Operation::Setns);
    let opened = world.only(RuleId::I11).clone();
    attempt(&mut world, container, Operation::Unshare);
    world.pass(2 * SECOND);
    world.ends(container, 50);
    let (gone, before) = (world.now().0 - 1_000_000, world.findings.len());
    world.pass(RESOLVE_NS - SECOND);
    assert_eq!(world.findings.len(), before, "what is under way counts as well");
    world.pass(2 * SECOND);
    let told = resolved(&world);
    assert_eq!(told.len(), 1);
    let last = told[0].clone();
    assert_eq!((last.id, last.rule, last.first), (opened.id, RuleId::I11, opened.first));
    let Resolved { at, because } = last.resolved.unwrap();
    assert_eq!((at.0, because), (gone, "the container is gone"));
    assert_eq!(last.calls.len(), 2, "the final counts, though no update had told them: {:?}", last.calls);
    assert_eq!(last.pod.as_ref().unwrap().name.as_deref(), Some("pod-1"));
    assert!(!last.evidence.is_empty());
    assert_eq!(world.engine().stats().open, 0);
    // once, whatever comes late
    attempt(&mut world, container, Operation::MountSetattr);
    world.declared(1, Some(true));
    world.pass(2 * KEEP_NS);
    assert_eq!(resolved(&world).len(), 1);
    assert_eq!(world.findings.len(), before + 1);
}

#[test]
fn a_container_that_a_walk_misses_is_as_gone() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    attempt(&mut world, container, Operation::Setns);
    world.pass(SECOND);
    let started = world.now();
    world.fact(Fact::CgroupWalkDone { started });
    world.pass(RESOLVE_NS + SECOND);
    assert_eq!(resolved(&world).len(), 1);
    assert_eq!(resolved(&world)[0].resolved.unwrap().at, started);
}

#[test]
fn a_finding_is_open_as_long_as_another_process_keeps_the_container() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let thief = Actor::inside(51, 7, BASE).with_host_credentials();
    world.suspect(container, &thief, Hook::Exit, reason::LEFT_USERNS);
    world.only(RuleId::I1);
    world.exits(container, 51);
    world.pass(10 * KEEP_NS);
    assert_eq!((resolved(&world).len(), world.engine().stats().open), (0, 1));
    world.ends(container, 50);
    world.pass(RESOLVE_NS + SECOND);
    assert_eq!(resolved(&world).len(), 1);
}

#[test]
fn what_is_wrong_with_a_pod_ends_with_its_last_container() {
    let mut world = World::new();
    world.recorded(1, 0);
    let first = world.honest_start(1, 50, 7, 0);
    let second = first + 1000;
    world.mkdir(second, role::CONTAINER, &format!("/kubepods/burstable/pod{}/{second:064x}", uid(1)));
    world.execs(second, &Actor::inside(60, 7, 0));
    world.only(RuleId::I7);
    world.exits(first, 50);
    removed(&mut world, first, role::CONTAINER);
    world.pass(2 * KEEP_NS);
    assert_eq!((resolved(&world).len(), world.engine().stats().open), (0, 1), "the other container lives");
    world.only(RuleId::I7);
    world.exits(second, 60);
    removed(&mut world, second, role::CONTAINER);
    removed(&mut world, first - 1, role::POD);
    world.pass(RESOLVE_NS + SECOND);
    let told = resolved(&world);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].resolved.unwrap().because, "the pod is gone");
}

#[test]
fn two_pods_with_one_range_are_one_finding_until_either_goes() {
    for gone_first in [true, false] {
        let mut world = World::new();
        world.recorded(1, BASE);
        world.recorded(2, BASE);
        let one = world.honest_start(1, 50, 7, BASE);
        let other = world.honest_start(2, 60, 8, BASE);
        world.only(RuleId::I7);
        let (container, pid) = if gone_first { (one, 50) } else { (other, 60) };
        world.ends(container, pid);
        world.pass(RESOLVE_NS + SECOND);
        let told = resolved(&world);
        assert_eq!(told.len(), 1, "{gone_first}");
        assert_eq!(told[0].resolved.unwrap().because, "one of the two pods is gone");
    }
}

#[test]
fn a_process_that_left_the_cgroup_is_not_gone_with_it() {
    let mut world = World::new();
    world.recorded(1, BASE);
    world.declared(1, Some(false));
    let container = world.honest_start(1, 50, 7, BASE);
    let mut fugitive = Actor::inside(51, 7, BASE);
    world.suspect(container, &fugitive, Hook::CgroupAttach, reason::LEFT_CGROUP);
    fugitive.0.task.lineage.told |= reason::LEFT_CGROUP;
    // one that it made is out of the cgroup as well, and of the pod's namespace too
    let child = Actor::inside(52, 7, BASE).child_of(&fugitive).with_host_credentials();
    let mut child = child;
    child.0.task.lineage.told |= reason::LEFT_CGROUP;
    world.suspect(container, &child, Hook::Exit, reason::LEFT_USERNS);
    let thief = Actor::inside(53, 7, BASE).with_host_credentials();
    world.suspect(container, &thief, Hook::Exit, reason::LEFT_USERNS);
    world.ends(container, 50);
    world.pass(2 * KEEP_NS);
    let told: Vec<_> = resolved(&world).iter().map(|it| it.task.as_ref().unwrap().task.process.pid).collect();
    assert_eq!(told, [53], "nothing shows that the others have ended");
    let open = world.engine().findings("", 16);
    assert_eq!(open.len(), 2);
    assert!(open.iter().all(|it| it.pod.as_ref().unwrap().name.as_deref() == Some("pod-1")), "{open:#?}");
    assert!(open.iter().all(|it| it.container.as_ref().unwrap().cgroup == CgroupId(container)));
}

#[test]
fn what_waits_for_names_is_told_before_it_ends() {
    let mut world = World::waiting(Duration::from_secs(30));
    world.recorded(1, BASE);
    let container = world.container(1);
    world.execs(container, &Actor::host(50, SLEEP, "sh").entering(origin::ATTACHED).working());
    world.silent();
    world.ends(container, 50);
    world.pass(RESOLVE_NS + SECOND);
    // it waited for names that will not come: it is told first
    let told: Vec<_> = world.findings.iter().map(|finding| (finding.rule, finding.status)).collect();
    assert_eq!(told, [(RuleId::I3, Status::Opened), (RuleId::I3, Status::Resolved)]);
    world.pass(60 * SECOND);
    assert_eq!(world.findings.len(), 2);
}

#[test]
fn open_findings_are_counted_by_rule_and_severity() {
    use userns_agent::core::finding::Severity;
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    attempt(&mut world, container, Operation::Setns);
    let thief = Actor::inside(51, 7, BASE).with_host_credentials();
    world.suspect(container, &thief, Hook::Exit, reason::LEFT_USERNS);
    let open = world.engine().stats().open_by;
    assert_eq!(open[&(RuleId::I11, Severity::Low)], 1);
    assert_eq!(open[&(RuleId::I1, Severity::Critical)], 1);
    assert_eq!(open.len(), 2);
    assert_eq!(world.engine().findings(&world.findings[0].id.to_string()[..8], 16).len(), 1);
    assert_eq!((world.engine().finding_ids().len(), world.engine().findings("", 1).len()), (2, 1));
}
