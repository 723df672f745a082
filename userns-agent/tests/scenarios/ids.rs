//! Ids outside of the pod's range (I4, I8).

use userns_agent::core::finding::Severity;
use userns_agent::core::rules::RuleId;
use userns_agent::event::{Extent, Hook, Ids, origin, reason};

use crate::BASE;
use crate::world::{Actor, SECOND, World};

#[test]
fn i4_fires_for_a_host_id_in_a_pod() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let mut thief = Actor::inside(51, 7, BASE);
    (thief.0.task.ids.euid, thief.0.task.ids.fsuid) = (0, 0);
    world.suspect(container, &thief, Hook::Exit, reason::ID_OUTSIDE_MAP);
    let finding = world.only(RuleId::I4);
    assert_eq!(finding.severity, Severity::Critical);
    assert!(finding.why.contains("euid 0, fsuid 0"), "{}", finding.why);
}

#[test]
fn i4_fires_for_an_id_that_the_map_does_not_hold() {
    for (recorded, id) in [(true, 0), (false, 0), (true, BASE - 1), (true, BASE + 65_536), (false, 131_072)] {
        let mut world = World::new();
        if recorded {
            world.recorded(1, BASE);
        }
        let container = world.honest_start(1, 50, 7, BASE);
        let mut thief = Actor::inside(51, 7, BASE);
        thief.0.task.ids.egid = id;
        world.suspect(container, &thief, Hook::NewTask, reason::ID_OUTSIDE_MAP);
        let finding = world.only(RuleId::I4);
        assert_eq!(finding.severity, Severity::Critical, "{id}");
        assert!(finding.why.contains("inside the kernel"), "{}", finding.why);
    }
}

#[test]
fn i8_fires_for_ids_that_decide_over_files_alone() {
    for (fsuid, fsgid) in [(0, BASE), (BASE, BASE - 1), (0, 0)] {
        let mut world = World::new();
        world.recorded(1, BASE);
        let container = world.honest_start(1, 50, 7, BASE);
        let mut thief = Actor::inside(51, 7, BASE);
        (thief.0.task.ids.fsuid, thief.0.task.ids.fsgid) = (fsuid, fsgid);
        world.suspect(container, &thief, Hook::Exit, reason::ID_OUTSIDE_MAP);
        let finding = world.only(RuleId::I8);
        assert_eq!(finding.severity, Severity::Critical);
        assert!(finding.why.contains("inside the kernel"), "{}", finding.why);
    }
}

#[test]
fn i8_silent_where_other_ids_are_outside_too() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let mut thief = Actor::inside(51, 7, BASE);
    (thief.0.task.ids.euid, thief.0.task.ids.fsuid, thief.0.task.ids.fsgid) = (0, 0, 0);
    world.suspect(container, &thief, Hook::Exit, reason::ID_OUTSIDE_MAP);
    assert!(world.only(RuleId::I4).why.contains("fsgid 0"));
}

/// A program with `id`, which a second extent of its namespace's map holds.
fn with_a_second_extent(id: u32) -> Actor {
    let mut actor = Actor::inside(51, 7, BASE);
    let mut ns = actor.0.task.userns;
    ns.uid_map.nr_extents = 2;
    ns.uid_map.extents[1] = Extent { first: 65_536, lower_first: id, count: 1 };
    (actor.0.task.userns, actor.0.task.pod_userns) = (ns, Some(ns));
    actor.0.task.ids.uid = id;
    actor
}

#[test]
fn i4_fires_for_an_id_that_only_the_map_holds() {
    for (id, severity) in [(1000, Severity::Critical), (131_072, Severity::High)] {
        let mut world = World::new();
        world.recorded(1, BASE);
        let container = world.container(1);
        world.execs(container, &with_a_second_extent(id));
        let finding = world.opened(RuleId::I4)[0];
        assert_eq!(finding.severity, severity, "{id}");
        assert!(finding.why.contains("kubelet recorded"), "{}", finding.why);
        assert_eq!(world.opened(RuleId::I7).len(), 1, "the map is not the record either");
    }
}

#[test]
fn i4_silent_for_the_first_and_the_last_id_of_the_range() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let mut actor = Actor::inside(51, 7, BASE);
    (actor.0.task.ids.euid, actor.0.task.ids.gid) = (BASE + 65_535, BASE + 65_535);
    world.execs(container, &actor);
    world.silent();
}

#[test]
fn i4_silent_without_a_record_for_an_id_that_the_map_holds() {
    let mut world = World::new();
    let container = world.container(1);
    world.execs(container, &with_a_second_extent(131_072));
    assert!(world.opened(RuleId::I4).is_empty());
}

#[test]
fn i4_silent_before_the_first_program() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.container(1);
    let mut child = Actor::inside(50, 7, BASE).with_host_credentials();
    let ns = Actor::inside(50, 7, BASE).0.task.userns;
    (child.0.task.userns, child.0.task.pod_userns) = (ns, Some(ns));
    child.0.task.lineage.flags = 0;
    world.inside(container, &child);
    world.execs(container, &Actor::inside(50, 7, BASE));
    world.silent();
}

/// What was found in a container with ids that are not the pod's: as crun's child is, before it takes them.
fn found_with_host_ids() -> Actor {
    let mut found = Actor::inside(51, 7, BASE).working();
    found.0.task.lineage.origin = origin::ADOPTED;
    found.0.task.ids = Ids::default();
    found
}

#[test]
fn i4_silent_for_a_runtime_that_is_found_before_it_has_taken_its_ids() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    world.inside(container, &found_with_host_ids());
    world.suspect(container, &found_with_host_ids(), Hook::TaskIter, 0);
    world.pass(10 * SECOND);
    world.silent();
}

#[test]
fn i4_fires_for_host_ids_that_were_found_and_stay() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let mut found = found_with_host_ids();
    found.0.task.lineage.entered_ns = SECOND;
    world.inside(container, &found);
    world.pass(3 * SECOND);
    world.suspect(container, &found, Hook::TaskIter, reason::ID_OUTSIDE_MAP);
    assert_eq!(world.only(RuleId::I4).severity, Severity::Critical);
}
