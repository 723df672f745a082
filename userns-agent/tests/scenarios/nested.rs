//! A node that runs in a user namespace itself: kubelet's is the reference, pods lie one level deeper.

use userns_agent::core::finding::Severity;
use userns_agent::core::rules::RuleId;
use userns_agent::event::{Hook, origin, reason};

use super::world::{Actor, NODE_BASE, NODE_NS, RUNC, SECOND, SLEEP, World};

/// First id of the pod, as the node's kubelet recorded it.
const RECORDED: u32 = 131_072;
/// The same as the kernel has it.
const KERNEL: u32 = NODE_BASE + RECORDED;

fn starts(world: &mut World, n: u32, pid: u32, inum: u32, base: u32) -> u64 {
    let container = world.container(n);
    world.enters(container, &Actor::host(pid, RUNC, "runc").on_nested_node().entering(origin::ATTACHED));
    world.execs(container, &Actor::inside(pid, inum, base).on_nested_node());
    container
}

#[test]
fn a_pod_that_stays_one_level_below_the_node_is_fine() {
    let mut world = World::nested();
    world.recorded(1, RECORDED);
    let container = starts(&mut world, 1, 50, 7, KERNEL);
    world.execs(container, &Actor::inside(51, 7, KERNEL).on_nested_node());
    world.pass(5 * SECOND);
    world.silent();
}

#[test]
fn the_same_pod_is_wrong_for_who_takes_the_initial_namespace_for_the_hosts() {
    let mut world = World::new();
    world.recorded(1, RECORDED);
    starts(&mut world, 1, 50, 7, KERNEL);
    world.only(RuleId::I7);
}

#[test]
fn credentials_of_the_nodes_root_are_an_escape() {
    let mut world = World::nested();
    world.recorded(1, RECORDED);
    let container = starts(&mut world, 1, 50, 7, KERNEL);
    let thief = Actor::inside(51, 7, KERNEL).with_host_credentials().on_nested_node();
    world.suspect(container, &thief, Hook::Exec, reason::LEFT_USERNS);
    let finding = world.only(RuleId::I1);
    assert!(finding.why.contains(&format!("the host's user namespace {NODE_NS}")), "{}", finding.why);
}

#[test]
fn a_process_of_the_node_in_a_pod_is_a_host_process() {
    let mut world = World::nested();
    world.recorded(1, RECORDED);
    let container = starts(&mut world, 1, 50, 7, KERNEL);
    world.enters(container, &Actor::host(70, SLEEP, "sleep").on_nested_node().entering(origin::ATTACHED));
    world.only(RuleId::I2);
}

#[test]
fn ranges_are_judged_by_the_nodes_ids_and_shown_in_both() {
    // root of the node, which is an unprivileged user of the initial namespace
    let mut world = World::nested();
    world.recorded(1, 0);
    starts(&mut world, 1, 50, 7, NODE_BASE);
    let finding = world.only(RuleId::I7);
    assert_eq!(finding.severity, Severity::Critical);
    for part in ["host id 0 is mapped", "user namespace 3", &format!("0→{NODE_BASE}+65536")] {
        assert!(finding.why.contains(part), "{}", finding.why);
    }
}

#[test]
fn ids_of_the_node_are_told_from_those_of_the_pod() {
    let mut world = World::nested();
    world.recorded(1, RECORDED);
    let container = starts(&mut world, 1, 50, 7, KERNEL);
    let mut thief = Actor::inside(51, 7, KERNEL).on_nested_node();
    thief.0.task.ids.euid = NODE_BASE;
    world.suspect(container, &thief, Hook::Exit, reason::ID_OUTSIDE_MAP);
    assert_eq!(world.only(RuleId::I4).severity, Severity::Critical);
}
