//! What programs of pods are denied.

use userns_agent::core::finding::Severity;
use userns_agent::core::rules::RuleId;
use userns_agent::event::{AggregateKey, AggregateValue, Fact, Operation, Relation, state};
use userns_common::kind::verdict;

use super::world::{Actor, SECOND, World};
use super::{BASE, SYS_ADMIN};

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
