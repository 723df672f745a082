//! What led to a finding.

use userns_agent::core::finding::{Finding, Status};
use userns_agent::core::flight::{MAX_BYTES, MAX_TOLD};
use userns_agent::core::rules::RuleId;
use userns_agent::core::windows::{KEEP_NS, UPDATE_NS};
use userns_agent::event::{Hook, Operation, Relation, origin, reason};

use super::world::{Actor, MS, SEALED, SECOND, SLEEP, World};
use super::{BASE, SYS_ADMIN};

/// Who did what, in order.
fn steps(finding: &Finding) -> Vec<String> {
    let step = |step: &userns_agent::core::flight::Step| {
        format!("{}[{}] {}", step.comm.as_str(), step.process.pid, step.sentence())
    };
    finding.evidence.iter().map(|it| step(it)).collect()
}

fn leaves(world: &mut World, container: u64, actor: &Actor) {
    let thief = actor.clone().with_host_credentials();
    world.suspect(container, &thief, Hook::Exit, reason::LEFT_USERNS);
}

const STARTED: [&str; 3] = [
    "runc:[0:PARENT][50] was moved into the container's cgroup",
    "sh[50] was first seen in the pod's user namespace (7)",
    "sh[50] executed `sh`",
];
const LEFT: &str = "has credentials outside of the pod's user namespace";

#[test]
fn the_chain_leads_from_the_entry_to_the_escape() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let shell = Actor::inside(50, 7, BASE);
    world.calls(container, &shell, Operation::Unshare, -1);
    world.asks(container, &shell, SYS_ADMIN, Relation::Host, -1);
    leaves(&mut world, container, &shell);
    let finding = world.opened(RuleId::I1)[0];
    let expected = [
        STARTED[0],
        STARTED[1],
        STARTED[2],
        "sh[50] was denied unshare",
        "sh[50] was denied CAP_SYS_ADMIN over the host's user namespace",
        &format!("sh[50] {LEFT}"),
    ];
    assert_eq!(steps(finding), expected);
    assert!(finding.evidence.is_sorted_by_key(|step| step.time));
    let ids: Vec<_> = finding.evidence.iter().map(|step| step.ids.euid).collect();
    assert_eq!(ids[2], (BASE, Some(0)), "as the host and as the pod have it");
    assert_eq!(ids[5].0, 0);
}

/// A shell of the container makes a program, which escapes.
fn forked(world: &mut World) -> (u64, Actor) {
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let shell = Actor::inside(50, 7, BASE);
    let mut child = Actor::inside(51, 7, BASE).running(SLEEP, "exploit").child_of(&shell);
    child.0.args = vec!["exploit".into(), "--now; rm".into()];
    world.execs(container, &child);
    (container, child)
}

#[test]
fn a_child_has_its_parents_past() {
    let mut world = World::new();
    let (container, child) = forked(&mut world);
    leaves(&mut world, container, &child);
    let told = steps(world.only(RuleId::I1));
    assert_eq!(told[..3], STARTED);
    assert_eq!(
        told[3..],
        ["exploit[51] executed `exploit` with `--now; rm`".to_owned(), format!("exploit[51] {LEFT}")]
    );
}

#[test]
fn a_child_that_did_nothing_yet_has_it_too() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let child = Actor::inside(51, 7, BASE).child_of(&Actor::inside(50, 7, BASE));
    leaves(&mut world, container, &child);
    let told = steps(world.only(RuleId::I1));
    assert_eq!((&told[..3], told.len()), (&STARTED.map(str::to_owned)[..], 4));
}

#[test]
fn the_past_survives_whose_it_was() {
    let mut world = World::new();
    let (container, mut child) = forked(&mut world);
    world.exits(container, 50);
    world.pass(5 * KEEP_NS);
    // an orphan: its ancestors are others now
    child.0.ancestors.clear();
    leaves(&mut world, container, &child);
    assert_eq!(steps(world.only(RuleId::I1))[..3], STARTED);
}

#[test]
fn what_a_process_had_others_do_is_told_of_it() {
    let mut world = World::new();
    let (container, _) = forked(&mut world);
    world.exits(container, 51);
    leaves(&mut world, container, &Actor::inside(50, 7, BASE));
    let told = steps(world.only(RuleId::I1));
    assert!(told.contains(&"exploit[51] executed `exploit` with `--now; rm`".to_owned()), "{told:#?}");
}

#[test]
fn another_containers_past_is_its_own() {
    let mut world = World::new();
    world.recorded(1, BASE);
    world.recorded(2, BASE + 65_536);
    let one = world.honest_start(1, 50, 7, BASE);
    let other = world.honest_start(2, 60, 8, BASE + 65_536);
    world.calls(other, &Actor::inside(60, 8, BASE + 65_536), Operation::Setns, -1);
    leaves(&mut world, one, &Actor::inside(50, 7, BASE));
    let told = steps(world.opened(RuleId::I1)[0]);
    assert!(told.iter().all(|step| step.contains("[50]")), "{told:#?}");
}

#[test]
fn what_comes_late_by_the_other_ring_is_told_once_more() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let child = Actor::inside(51, 7, BASE).running(SLEEP, "exploit");
    world.skip(10 * MS);
    leaves(&mut world, container, &child);
    world.rewind(5 * MS);
    world.execs(container, &child);
    world.skip(5 * MS);
    assert_eq!(world.findings.len(), 1);
    world.pass(SECOND);
    let told: Vec<_> = world.findings.iter().map(|finding| (finding.status, steps(finding))).collect();
    assert_eq!(told.len(), 2, "{told:#?}");
    assert_eq!((told[0].0, told[0].1.len()), (Status::Opened, 1));
    let whole = ["exploit[51] executed `exploit`".to_owned(), format!("exploit[51] {LEFT}")];
    assert_eq!(told[1], (Status::Amended, whole.to_vec()));
    world.pass(60 * SECOND);
    assert_eq!(world.findings.len(), 2);
}

#[test]
fn an_update_tells_what_was_done_since() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let shell = Actor::inside(50, 7, BASE);
    world.calls(container, &shell, Operation::Unshare, -1);
    world.calls(container, &shell, Operation::Setns, -1);
    world.pass(UPDATE_NS + SECOND);
    let update = world.findings.iter().find(|finding| finding.status == Status::Updated).unwrap();
    assert_eq!(steps(update)[3..], ["sh[50] was denied unshare", "sh[50] was denied setns"]);
    // what the recorder has forgotten meanwhile is still told
    world.exits(container, 50);
    world.enters(container, &Actor::host(90, SEALED, "runc").entering(origin::ATTACHED));
    world.pass(3 * KEEP_NS);
    assert_eq!(steps(&world.engine().findings("", 1)[0]).len(), 5);
}

#[test]
fn a_flood_is_bounded_and_counted() {
    let mut world = World::with_tables(64, 1024);
    world.recorded(1, BASE);
    world.recorded(2, BASE + 65_536);
    let quiet = world.honest_start(1, 50, 7, BASE);
    let noisy = world.honest_start(2, 60, 8, BASE + 65_536);
    let bomb = Actor::inside(60, 8, BASE + 65_536);
    let long = "x".repeat(250);
    let mut most = 0;
    for pid in 1000..12_000 {
        let mut child = Actor::inside(pid, 8, BASE + 65_536).child_of(&bomb);
        child.0.args = vec!["sh".into(), long.as_str().into()];
        world.execs(noisy, &child);
        most = most.max(world.engine().stats().flight_bytes);
    }
    let stats = world.engine().stats();
    assert!(most <= MAX_BYTES && most > MAX_BYTES / 2, "{most}");
    assert!(stats.evicted["flight"] > 1000, "{stats:?}");
    // the others' past is whole, and the flood's own beginning and end are there
    leaves(&mut world, quiet, &Actor::inside(50, 7, BASE));
    assert_eq!(steps(world.opened(RuleId::I1)[0])[..3], STARTED);
    leaves(&mut world, noisy, &Actor::inside(11_999, 8, BASE + 65_536).child_of(&bomb));
    let told = world.opened(RuleId::I1)[1];
    assert!(told.evidence.len() <= MAX_TOLD);
    assert_eq!(told.evidence[0].process.pid, 60);
    // all of it goes with its containers
    world.ends(quiet, 50);
    world.ends(noisy, 60);
    world.pass(2 * KEEP_NS);
    assert_eq!(world.engine().stats().flight_bytes, 0);
}

#[test]
fn the_past_of_open_findings_is_bounded_too() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let shell = Actor::inside(50, 7, BASE);
    for pid in 1000..3000 {
        let child = Actor::inside(pid, 7, BASE).child_of(&shell);
        world.execs(container, &child);
        leaves(&mut world, container, &child);
    }
    let stats = world.engine().stats();
    assert_eq!(stats.open, 2000);
    assert!(stats.evicted["evidence"] > 100, "{stats:?}");
    // each had its evidence when it was told
    assert!(world.opened(RuleId::I1).iter().all(|finding| finding.evidence.len() >= 5));
}

/// Lines of a day with everything in it.
fn story() -> Vec<(u64, Status, Vec<String>)> {
    let mut world = World::new();
    let (container, child) = forked(&mut world);
    world.calls(container, &child, Operation::Setns, -1);
    leaves(&mut world, container, &child);
    world.exits(container, 51);
    world.pass(20 * SECOND);
    world.ends(container, 50);
    world.pass(20 * SECOND);
    world.findings.iter().map(|finding| (finding.id.0, finding.status, steps(finding))).collect()
}

#[test]
fn the_same_inputs_give_the_same_evidence() {
    let once = story();
    assert_eq!(once.len(), 4, "{once:#?}");
    assert_eq!(once, story());
}
