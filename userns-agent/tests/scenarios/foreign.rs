//! Rule I12: who comes into a pod's namespaces from elsewhere.

use userns_agent::core::finding::Severity;
use userns_agent::core::rules::RuleId;
use userns_agent::event::{Hook, Ids, origin, reason};

use super::BASE;
use super::world::{Actor, RUNC, SEALED, SECOND, SLEEP, World, uid};

/// A pod of the host's user namespace, with a shell.
fn privileged_pod(world: &mut World, n: u32) -> (u64, Actor) {
    world.declared(n, None);
    let container = world.container(n);
    let shell = Actor::host(90, SLEEP, "nsenter").entering(origin::ATTACHED).working();
    world.execs(container, &shell);
    (container, shell)
}

#[test]
fn i12_fires_for_a_process_of_the_host_in_the_pods_user_namespace() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let nsenter = Actor::inside(70, 7, BASE).running(SLEEP, "nsenter").foreign();
    world.comes_into(container, &nsenter);
    // what it executes and makes is the same entry
    world.execs(container, &nsenter.clone().running(SLEEP, "sh").working());
    world.execs(
        container,
        &Actor::inside(71, 7, BASE).running(SLEEP, "id").foreign().working().child_of(&nsenter),
    );
    let finding = world.only(RuleId::I12);
    assert_eq!((finding.severity, finding.from.as_ref()), (Severity::Medium, None));
    for part in [
        "`nsenter` (pid 70) came into the pod's user namespace 7",
        "no pod (cgroup 77)",
        "no container runtime",
    ] {
        assert!(finding.why.contains(part), "{}", finding.why);
    }
    assert_eq!(finding.pod.as_ref().unwrap().uid, uid(1));
}

#[test]
fn i12_fires_for_ids_of_the_host_without_claiming_more() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let mut nsenter = Actor::inside(70, 7, BASE).running(SLEEP, "nsenter").foreign();
    nsenter.0.task.ids = Ids::default();
    world.comes_into(container, &nsenter);
    world.execs(container, &nsenter.working());
    world.only(RuleId::I12);
}

#[test]
fn i12_fires_for_host_root_that_executes_in_the_pods_mount_and_pid_namespaces() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let nsenter = Actor::host(70, SLEEP, "nsenter").foreign();
    world.comes_into(container, &nsenter);
    world.silent();
    world.execs(container, &Actor::host(71, SLEEP, "sh").foreign().working().child_of(&nsenter));
    world.suspect(container, &nsenter, Hook::TaskIter, reason::PAST_GRACE);
    let finding = world.only(RuleId::I12);
    assert!(finding.why.contains("mount and PID namespaces with user id 0 of the host's"), "{}", finding.why);
    assert_eq!(finding.task.as_ref().unwrap().task.process.pid, 71);
}

#[test]
fn i12_fires_for_a_program_of_another_pod_and_names_it() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let victim = world.honest_start(1, 50, 7, BASE);
    let (container, _) = privileged_pod(&mut world, 2);
    let mut inside = Actor::inside(90, 7, BASE).running(SLEEP, "nsenter");
    inside.0.task.lineage.origin = origin::ATTACHED;
    // as the kernel notes on the arrival of a program that was at work with the host's ids, which it may keep
    inside.0.task.lineage.told = reason::ID_OUTSIDE_MAP;
    inside.0.task.ids = Ids::default();
    world.inside(container, &inside);
    world.execs(container, &inside.clone().running(SLEEP, "sh"));
    let finding = world.only(RuleId::I12);
    assert!(finding.why.contains(&format!("it comes from pod {}", uid(2))), "{}", finding.why);
    assert_eq!(finding.container.as_ref().unwrap().cgroup.0, victim);
    let from = finding.from.as_ref().unwrap();
    assert_eq!(
        (from.container.cgroup.0, from.pod.as_ref().unwrap().name.as_deref()),
        (container, Some("pod-2"))
    );
}

#[test]
fn i12_fires_for_host_root_of_another_pod() {
    let mut world = World::new();
    world.recorded(1, BASE);
    world.honest_start(1, 50, 7, BASE);
    let (container, shell) = privileged_pod(&mut world, 2);
    world.joins(container, &shell, 7);
    let finding = world.only(RuleId::I12);
    assert!(finding.why.contains("mount and PID namespaces") && finding.from.is_some(), "{}", finding.why);
}

#[test]
fn i12_fires_for_another_pods_program_that_is_met_before_the_pods_own() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let victim = world.container(1);
    world.declared(2, None);
    let container = world.container(2);
    let mut intruder = Actor::inside(90, 7, BASE).running(SLEEP, "nsenter");
    intruder.0.task.lineage.origin = origin::ADOPTED;
    world.execs(container, &intruder);
    world.silent();
    world.execs(victim, &Actor::inside(50, 7, BASE));
    let finding = world.only(RuleId::I12);
    assert_eq!(finding.task.as_ref().unwrap().task.process.pid, 90);
    assert_eq!(finding.from.as_ref().unwrap().container.cgroup.0, container);
}

#[test]
fn i12_fires_when_the_promise_becomes_known_after_the_entry() {
    let mut world = World::new();
    let container = world.honest_start(1, 50, 7, BASE);
    world.comes_into(container, &Actor::inside(70, 7, BASE).running(SLEEP, "nsenter").foreign());
    world.silent();
    world.recorded(1, BASE);
    world.only(RuleId::I12);
}

#[test]
fn i12_fires_for_what_may_be_a_runtime_and_stays() {
    for (image, severity, told) in
        [(RUNC, Severity::Info, "was not moved"), (SEALED, Severity::Medium, "longer than a runtime needs")]
    {
        let mut world = World::new();
        world.recorded(1, BASE);
        let container = world.honest_start(1, 50, 7, BASE);
        let runtime = Actor::inside(70, 7, BASE).running(image, "runc").foreign();
        world.comes_into(container, &runtime);
        world.pass(10 * SECOND);
        world.silent();
        world.suspect(container, &runtime, Hook::TaskIter, reason::PAST_GRACE);
        let finding = world.only(RuleId::I12);
        assert_eq!(finding.severity, severity);
        assert!(finding.why.contains(told), "{}", finding.why);
    }
}

#[test]
fn i12_silent_for_a_runtime_that_joins_before_it_is_moved() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    for (pid, image) in [(70, RUNC), (80, SEALED)] {
        // the mount and PID namespaces first, then the user namespace; the second stage is moved
        let parent = Actor::host(pid, image, "runc:[1:CHILD]").foreign();
        world.comes_into(container, &parent);
        world.inside(container, &Actor::inside(pid, 7, BASE).running(image, "runc:[1:CHILD]").foreign());
        let mut child = Actor::inside(pid + 1, 7, BASE).running(image, "runc:[2:INIT]");
        child.0.task.lineage.flags = 0;
        child.0.task.lineage.origin = origin::ATTACHED;
        world.enters(container, &child);
        world.execs(container, &Actor::inside(pid + 1, 7, BASE));
    }
    world.pass(10 * SECOND);
    world.silent();
}

#[test]
fn i12_silent_for_a_thread_that_looks_in_and_goes_back() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    world.comes_into(container, &Actor::host(70, SLEEP, "profiler").foreign());
    world.pass(10 * SECOND);
    world.silent();
}

#[test]
fn i12_silent_for_containers_of_one_pod_and_for_nested_engines() {
    let mut world = World::new();
    world.recorded(1, BASE);
    world.honest_start(1, 50, 7, BASE);
    world.honest_start(1, 60, 7, BASE);
    // an engine in a pod of the host's user namespace makes one of its own
    let (container, _) = privileged_pod(&mut world, 2);
    world.execs(container, &Actor::inside(91, 9, 131_072));
    world.silent();
}

#[test]
fn i12_silent_in_pods_that_were_promised_nothing() {
    let mut world = World::new();
    world.declared(1, None);
    let container = world.honest_start(1, 50, 7, BASE);
    world.comes_into(container, &Actor::inside(70, 7, BASE).running(SLEEP, "nsenter").foreign());
    world.pass(10 * SECOND);
    world.silent();
}
