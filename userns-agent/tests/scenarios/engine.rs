//! Properties of the engine as a whole: order, bounds, replay.

use userns_agent::core::rules::RuleId;
use userns_agent::event::{CgroupId, Fact, Hook, origin, reason, role};

use super::world::{Actor, MS, SEALED, SECOND, SLEEP, World, uid};
use super::{BASE, SYS_ADMIN};

#[test]
fn evidence_waits_for_its_container_and_is_judged_when_it_comes() {
    let mut world = World::new();
    world.recorded(1, BASE);
    world.execs(500, &Actor::host(50, SLEEP, "sh").entering(origin::ATTACHED).working());
    world.silent();
    world.mkdir(500, role::CONTAINER, &format!("/kubepods/pod{}/{:064x}", uid(1), 5));
    world.only(RuleId::I3);
    assert_eq!(world.engine().stats().unattributed, 0);
}

#[test]
fn evidence_that_waits_in_vain_is_counted() {
    let mut world = World::new();
    world.execs(500, &Actor::host(50, SLEEP, "sh").entering(origin::ATTACHED).working());
    world.pass(SECOND);
    assert_eq!(world.engine().stats().unattributed, 1);
}

#[test]
fn a_walk_that_meets_a_container_first_is_as_good_as_the_hook() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let path = format!(
        "/kubepods.slice/kubepods-pod{}.slice/cri-containerd-{:064x}.scope",
        uid(1).as_str().replace('-', "_"),
        5
    );
    world.fact(Fact::CgroupSeen(userns_agent::event::Cgroup {
        id: CgroupId(500),
        role: role::CONTAINER,
        path: path.as_str().into(),
    }));
    world.execs(500, &Actor::host(50, SLEEP, "sh").entering(origin::ADOPTED).working());
    let container = world.only(RuleId::I3).container.clone().unwrap();
    assert_eq!((container.runtime, container.id), (Some("containerd"), format!("{:064x}", 5)));
}

#[test]
fn what_is_gone_is_forgotten_after_a_while() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    assert_eq!(world.engine().stats().processes, 1);
    world.ends(container, 50);
    world.fact(Fact::KubeletRecord { uid: uid(1), record: None });
    assert_eq!(world.engine().stats().containers, 0);
    assert_eq!(world.engine().stats().pods, 1);
    world.pass(70 * SECOND);
    let stats = world.engine().stats();
    assert_eq!((stats.pods, stats.containers, stats.processes, stats.open), (0, 0, 0, 0));
    world.silent();
}

#[test]
fn tables_are_bounded_and_say_what_fell_out() {
    let mut world = World::new();
    for n in 0..200 {
        let container = world.container(n);
        for pid in 0..30 {
            world.execs(container, &Actor::inside(1000 * n + pid, 7, BASE));
        }
    }
    let stats = world.engine().stats();
    assert!(stats.containers <= 64 && stats.processes <= 1024, "{stats:?}");
    assert!(stats.evicted["containers"] > 0 && stats.evicted["processes"] > 0, "{stats:?}");
}

#[test]
fn hostile_names_are_escaped_in_reasons() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    world.enters(container, &Actor::host(70, SLEEP, "a\n\u{1b}[31m\"b\u{202e}").entering(origin::ATTACHED));
    let why = &world.only(RuleId::I2).why;
    assert!(!why.chars().any(|c| c.is_control() || c == '\u{202e}'), "{why:?}");
}

/// The story of a bad day, with time passing in steps of `step`.
fn story(step: u64) -> Vec<(RuleId, String, u64)> {
    let mut world = World::new();
    world.recorded(1, BASE);
    let honest = world.honest_start(1, 50, 7, BASE);
    world.recorded(2, 0);
    world.honest_start(2, 60, 8, 0);
    let ignored = world.container(3);
    world.declared(3, Some(false));
    let shell = Actor::host(80, SLEEP, "sh").entering(origin::ATTACHED).working();
    world.enters(ignored, &Actor::host(80, SEALED, "runc").entering(origin::ATTACHED));
    world.execs(ignored, &shell);
    world.asks(ignored, &shell, SYS_ADMIN, userns_agent::event::Relation::Host, 0);
    world.suspect(
        honest,
        &Actor::inside(51, 7, BASE).with_host_credentials(),
        Hook::Exit,
        reason::LEFT_USERNS,
    );
    for _ in 0..(12 * SECOND / step) {
        world.pass(step);
    }
    world.findings.iter().map(|finding| (finding.rule, finding.why.clone(), finding.id.0)).collect()
}

#[test]
fn the_same_inputs_give_the_same_findings_however_time_is_cut() {
    let once = story(100 * MS);
    let rules: Vec<RuleId> = once.iter().map(|(rule, ..)| *rule).collect();
    assert_eq!(rules, [RuleId::I7, RuleId::I3, RuleId::I5, RuleId::I1]);
    assert_eq!(once, story(100 * MS));
    assert_eq!(once, story(400 * MS));
}
