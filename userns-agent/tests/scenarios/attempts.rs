//! What programs of pods are denied.

use userns_agent::core::finding::Severity;
use userns_agent::core::rules::RuleId;
use userns_agent::event::{AggregateKey, AggregateValue, Fact, Operation, Relation, state};
use userns_common::kind::{origin, verdict};

use super::world::{Actor, SECOND, World};
use super::{BASE, SLEEP, SYS_ADMIN};

const BPF: u8 = 39;

#[test]
fn i11_fires_once_and_counts() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let shell = Actor::inside(51, 7, BASE);
    world.asks(container, &shell, 16, Relation::Host, -1);
    world.calls(container, &shell, Operation::Setns, -1);
    let finding = world.only(RuleId::I11);
    assert_eq!(finding.severity, Severity::Low);
    assert!(finding.why.contains("CAP_SYS_MODULE"), "{}", finding.why);
    world.pass(11 * SECOND);
    let last = world.findings.last().unwrap();
    assert_eq!((last.capabilities.len(), last.calls.len()), (1, 1));
}

/// A row of the kernel's table: denials of a capability over the host.
fn denied(container: u64, capability: u8, everyday: u8) -> (AggregateKey, AggregateValue) {
    let key = AggregateKey {
        container,
        operation: Operation::Capability as u8,
        code: capability,
        relation: Relation::Host as u8,
        verdict: verdict::DENIED,
        state: state::INSIDE as u8,
        workload: 1,
        everyday,
        reserved: 0,
    };
    (key, AggregateValue { count: 3, ..AggregateValue::default() })
}

#[test]
fn i11_silent_of_what_systemd_asks_for_and_does_without() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    world.asks(container, &Actor::inside(51, 7, BASE), 16, Relation::Host, -1);
    // by bpf, among others
    world.fact(Fact::Aggregates(vec![denied(container, SYS_ADMIN as u8, 1), denied(container, BPF, 0)]));
    world.pass(11 * SECOND);
    assert_eq!(world.findings.len(), 1, "{:?}", world.findings);
    world.fact(Fact::Aggregates(vec![denied(container, SYS_ADMIN as u8, 0)]));
    world.pass(11 * SECOND);
    let last = world.findings.last().unwrap();
    assert_eq!(last.capabilities.len(), 2, "{last:?}");
}

#[test]
fn i11_silent_before_the_first_program_and_for_calls_that_fail_otherwise() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let mut runtime = Actor::inside(51, 7, BASE);
    world.calls(container, &runtime, Operation::Setns, -22);
    runtime.0.task.lineage.flags = 0;
    world.calls(container, &runtime, Operation::Unshare, -1);
    world.asks(container, &runtime, SYS_ADMIN, Relation::Host, -1);
    world.pass(11 * SECOND);
    world.silent();
}

/// A row of the kernel's table: calls of programs that succeeded.
fn made(container: u64, operation: Operation, count: u64) -> (AggregateKey, AggregateValue) {
    let (mut key, value) = denied(container, 0, 0);
    (key.operation, key.relation, key.verdict) = (operation as u8, Relation::Pod as u8, verdict::GRANTED);
    (key, AggregateValue { count, ..value })
}

#[test]
fn i10_fires_once_and_counts() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let mut podman = Actor::inside(51, 7, BASE);
    (podman.0.task.userns.inum, podman.0.task.userns.level, podman.0.task.userns.owner) = (8, 2, BASE + 1000);
    world.calls(container, &podman, Operation::CloneNewUser, 0);
    world.calls(container, &podman, Operation::UnshareNewUser, 0);
    let finding = world.only(RuleId::I10);
    assert_eq!(finding.severity, Severity::Info);
    let says = |what: &str| assert!(finding.why.contains(what), "{}", finding.why);
    says("user namespace 8 by clone_newuser, 1 below the pod's 7");
    says(&format!("id {}", BASE + 1000));
    world.fact(Fact::Aggregates(vec![
        made(container, Operation::CloneNewUser, 5),
        made(container, Operation::UnshareNewUser, 2),
    ]));
    world.pass(11 * SECOND);
    let calls: Vec<_> =
        world.findings.last().unwrap().calls.iter().map(|call| (call.call, call.count)).collect();
    assert_eq!(calls, [("clone_newuser", 5), ("unshare_newuser", 2)]);
}

#[test]
fn i10_silent_for_what_is_refused_for_other_namespaces_and_for_runtimes() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let mut shell = Actor::inside(51, 7, BASE);
    world.calls(container, &shell, Operation::UnshareNewUser, -28);
    world.calls(container, &shell, Operation::Unshare, 0);
    shell.0.task.lineage.flags = 0;
    world.calls(container, &shell, Operation::UnshareNewUser, 0);
    world.fact(Fact::Aggregates(vec![made(container, Operation::UnshareNewUser, 3)]));
    world.pass(11 * SECOND);
    world.silent();
}

/// Browsers and rootless container engines map whichever ids they like, those of others as well.
#[test]
fn i7_i9_i10_silent_in_containers_of_the_hosts_users() {
    let mut world = World::new();
    let container = world.container(1);
    let first = Actor::host(50, SLEEP, "sh").entering(origin::ATTACHED).working();
    world.enters(container, &first);
    world.execs(container, &first);
    let browser = Actor::inside(51, 8, 1000);
    world.inside(container, &browser);
    world.execs(container, &browser);
    for operation in [Operation::UnshareNewUser, Operation::MountSetattr] {
        world.calls(container, &browser, operation, 0);
        world.fact(Fact::Aggregates(vec![made(container, operation, 3)]));
    }
    world.pass(11 * SECOND);
    world.silent();
}

#[test]
fn i9_fires_once_for_file_systems_of_the_pod_and_counts() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let podman = Actor::inside(51, 7, BASE);
    for _ in 0..2 {
        world.calls(container, &podman, Operation::MountSetattr, 0);
    }
    let finding = world.only(RuleId::I9);
    assert_eq!((finding.severity, finding.calls[0].call), (Severity::Info, "mount_setattr"));
    world.fact(Fact::Aggregates(vec![made(container, Operation::MountSetattr, 4)]));
    world.pass(11 * SECOND);
    assert_eq!(world.findings.last().unwrap().calls[0].count, 4);
}

#[test]
fn i9_fires_for_a_file_system_of_the_hosts() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let podman = Actor::inside(51, 7, BASE);
    world.calls(container, &podman, Operation::MountSetattr, 0);
    world.calls_over(container, &podman, Operation::OpenTreeAttr, 9, Relation::Host);
    let found = world.opened(RuleId::I9);
    let severities: Vec<_> = found.iter().map(|finding| finding.severity).collect();
    assert_eq!(severities, [Severity::Info, Severity::Critical]);
    assert!(found[1].why.contains(&super::HOST_NS.to_string()), "{}", found[1].why);
}

#[test]
fn i9_silent_for_refused_calls_and_for_runtimes() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let mut runtime = Actor::inside(51, 7, BASE);
    world.calls(container, &runtime, Operation::MountSetattr, -22);
    runtime.0.task.lineage.flags = 0;
    world.calls(container, &runtime, Operation::MountSetattr, 0);
    world.calls_over(container, &runtime, Operation::OpenTreeAttr, 9, Relation::Host);
    world.pass(11 * SECOND);
    world.silent();
}
