//! What each rule says and does not say, on inputs like those of a real node. No kernel is needed.
//!
//! Names tell: `<rule>_fires_...` and `<rule>_silent_...`; a test below holds that every rule has both.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attempts;
mod engine;
mod evidence;
mod foreign;
mod ids;
mod lifecycle;
mod nested;
mod pods;
mod policy;
mod removal;
mod restart;
mod world;

use userns_agent::core::finding::Severity;
use userns_agent::core::rules::{RuleId, rule};
use userns_agent::event::{Fact, Hook, Relation, namespace, origin, place, reason};
use world::{Actor, CONMON, HOST_NS, RUNC, SEALED, SECOND, SLEEP, World, range, uid};

const BASE: u32 = 3_841_261_568;
const SYS_ADMIN: u32 = 21;

#[test]
fn every_rule_fires_in_one_scenario_and_is_silent_in_another() {
    let source = concat!(
        include_str!("main.rs"),
        include_str!("attempts.rs"),
        include_str!("foreign.rs"),
        include_str!("ids.rs")
    );
    for id in RuleId::ALL {
        for what in ["fires", "silent"] {
            let name = format!("fn {}_{what}", rule(*id).id.to_lowercase());
            assert!(source.contains(&name), "no scenario begins with `{name}`");
        }
    }
}

#[test]
fn i1_fires_when_credentials_are_replaced() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let thief = Actor::inside(51, 7, BASE).with_host_credentials();
    world.suspect(container, &thief, Hook::Exec, reason::LEFT_USERNS);
    let finding = world.only(RuleId::I1);
    assert_eq!(finding.severity, Severity::Critical);
    assert!(finding.why.contains("pid 51") && finding.why.contains(&HOST_NS.to_string()), "{}", finding.why);
    assert_eq!(finding.pod.as_ref().unwrap().uid, uid(1));
}

#[test]
fn i1_fires_for_a_step_sideways_into_another_pods_namespace() {
    let mut world = World::new();
    let container = world.honest_start(1, 50, 7, BASE);
    let mut thief = Actor::inside(51, 7, BASE);
    let other = Actor::inside(60, 8, 131_072).0.task;
    (thief.0.task.userns, thief.0.task.pod_userns) = (other.userns, other.pod_userns);
    world.suspect(container, &thief, Hook::Capable, reason::LEFT_USERNS);
    assert!(world.only(RuleId::I1).why.contains("another user namespace 8"));
}

#[test]
fn i1_fires_at_once_though_the_container_is_unknown() {
    let mut world = World::new();
    let thief = Actor::inside(51, 7, BASE).with_host_credentials();
    world.suspect(9999, &thief, Hook::Exit, reason::LEFT_USERNS);
    let finding = world.only(RuleId::I1);
    assert!(finding.pod.is_none() && finding.unknown[0].starts_with("container"));
}

#[test]
fn i1_fires_for_subjective_credentials_that_nothing_explains() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    world.suspect(container, &Actor::inside(51, 7, BASE), Hook::Exit, reason::ACTS_OUTSIDE);
    let finding = world.only(RuleId::I1);
    assert_eq!(finding.severity, Severity::Critical);
    assert!(finding.why.contains("subjective credentials"), "{}", finding.why);
}

#[test]
fn i1_silent_below_the_pods_namespace() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let mut nested = Actor::inside(51, 7, BASE);
    nested.0.task.userns.inum = 8;
    nested.0.task.userns.level = 2;
    world.execs(container, &nested);
    world.silent();
}

#[test]
fn i2_fires_at_once_for_an_executable_that_is_no_runtime() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    world.enters(container, &Actor::host(70, SLEEP, "sleep").entering(origin::ATTACHED));
    let finding = world.only(RuleId::I2);
    assert!(finding.why.contains("was moved into") && finding.why.contains("pid 70"), "{}", finding.why);
    world.pass(5 * SECOND);
    world.only(RuleId::I2);
}

#[test]
fn i2_fires_for_a_runtime_that_stays() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let runtime = Actor::host(70, RUNC, "runc").entering(origin::BORN);
    world.enters(container, &runtime);
    world.pass(3 * SECOND);
    world.suspect(container, &runtime, Hook::TaskIter, reason::PAST_GRACE);
    assert!(world.only(RuleId::I2).why.contains("longer than the 2s"));
}

#[test]
fn i2_silent_for_a_runtime_whose_end_was_lost() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    world.enters(container, &Actor::host(70, RUNC, "runc").entering(origin::BORN));
    world.pass(60 * SECOND);
    world.silent();
}

#[test]
fn i2_fires_for_a_name_that_claims_to_be_a_runtime() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    world.enters(container, &Actor::host(70, SLEEP, "runc:[2:INIT]").entering(origin::ATTACHED));
    world.only(RuleId::I2);
}

#[test]
fn i2_fires_for_a_host_program_in_a_container_that_has_a_namespace() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    world.execs(container, &Actor::host(70, SLEEP, "sh").entering(origin::ATTACHED).working());
    world.only(RuleId::I2);
}

#[test]
fn i2_fires_when_the_promise_becomes_known_after_the_entry() {
    let mut world = World::new();
    let container = world.container(1);
    world.enters(container, &Actor::host(70, SLEEP, "sleep").entering(origin::ATTACHED));
    world.silent();
    world.recorded(1, BASE);
    world.only(RuleId::I2);
}

#[test]
fn i2_silent_for_runtimes_on_their_way_in() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    for (pid, image) in [(70, RUNC), (71, SEALED)] {
        let runtime = Actor::host(pid, image, "6").entering(origin::BORN);
        world.enters(container, &runtime);
        world.execs(container, &runtime);
        world.inside(container, &Actor::inside(pid, 7, BASE));
        world.execs(container, &Actor::inside(pid, 7, BASE));
    }
    world.pass(10 * SECOND);
    world.silent();
}

#[test]
fn i2_silent_for_a_runtime_whose_end_is_known_before_all_that_it_did() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let runtime = Actor::host(70, RUNC, "6").entering(origin::ATTACHED);
    world.enters(container, &runtime);
    world.exits(container, 70);
    world.enters(container, &runtime);
    world.pass(10 * SECOND);
    world.silent();
}

#[test]
fn i2_silent_for_a_runtime_whose_end_is_known_before_its_entry() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let runtime = Actor::host(70, RUNC, "6").entering(origin::ATTACHED);
    world.exits(container, 70);
    world.enters(container, &runtime);
    world.pass(10 * SECOND);
    world.silent();
}

#[test]
fn i2_silent_for_a_runtime_that_is_installed_elsewhere() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let mut runtime = Actor::host(70, SLEEP, "runc:[0:PARENT]").entering(origin::ATTACHED);
    runtime.0.path = "runc".into();
    world.enters(container, &runtime);
    world.pass(SECOND);
    world.inside(container, &Actor::inside(70, 7, BASE));
    world.pass(10 * SECOND);
    world.silent();
}

#[test]
fn i2_silent_in_pods_that_were_promised_nothing() {
    let mut world = World::new();
    world.declared(1, None);
    let container = world.container(1);
    world.enters(container, &Actor::host(70, SLEEP, "sleep").entering(origin::ATTACHED));
    world.pass(10 * SECOND);
    world.silent();
}

#[test]
fn i2_silent_for_a_monitor_that_stays_in_the_containers_cgroup() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let conmon = Actor::host(70, CONMON, "conmon").entering(origin::BORN);
    world.enters(container, &conmon);
    world.pass(10 * SECOND);
    // it works with what it has, past the grace period
    world.asks(container, &conmon, SYS_ADMIN, Relation::Host, 0);
    world.suspect(container, &conmon, Hook::TaskIter, reason::PAST_GRACE);
    world.silent();
    assert_eq!(world.engine().stats().monitors, 1);
}

#[test]
fn i2_fires_for_what_only_calls_itself_a_monitor() {
    // by its name, by its executable's name, and the real one in the container's mount namespace
    let inside = Actor::host(72, CONMON, "conmon").entering(origin::BORN).working();
    for (actor, stays) in [
        (Actor::host(70, SLEEP, "conmon").entering(origin::BORN), true),
        (Actor::host(71, SEALED, "conmon").entering(origin::BORN), true),
        (inside, false),
    ] {
        let mut world = World::new();
        world.recorded(1, BASE);
        let container = world.honest_start(1, 50, 7, BASE);
        if stays {
            world.enters(container, &actor);
            world.pass(5 * SECOND);
            world.suspect(container, &actor, Hook::TaskIter, reason::PAST_GRACE);
        } else {
            world.execs(container, &actor);
        }
        world.only(RuleId::I2);
        assert_eq!(world.engine().stats().monitors, 0);
    }
}

#[test]
fn i2_silent_in_pods_that_this_kernel_does_not_see() {
    for class in ["kata", "kata-qemu", "gvisor"] {
        let mut world = World::new();
        world.declared_with_class(1, class);
        let container = world.container(1);
        world.enters(container, &Actor::host(70, SLEEP, "qemu-system-x86").entering(origin::ATTACHED));
        world.execs(container, &Actor::host(71, SLEEP, "virtiofsd").entering(origin::ATTACHED).working());
        world.pass(10 * SECOND);
        world.silent();
        let stats = world.engine().stats();
        assert!(stats.unobservable == 1 && stats.withheld_unobservable > 0, "{stats:?}");
    }
}

#[test]
fn i2_fires_in_pods_of_other_runtime_classes() {
    for class in ["crun", "gvisor-like", "my-kata"] {
        let mut world = World::new();
        world.declared_with_class(1, class);
        let container = world.container(1);
        world.enters(container, &Actor::host(70, SLEEP, "qemu").entering(origin::ATTACHED));
        world.only(RuleId::I2);
    }
}

#[test]
fn i1_fires_in_pods_that_this_kernel_does_not_see() {
    let mut world = World::new();
    world.declared_with_class(1, "gvisor");
    let container = world.container(1);
    let thief = Actor::inside(51, 7, BASE).with_host_credentials();
    world.suspect(container, &thief, Hook::Exec, reason::LEFT_USERNS);
    world.only(RuleId::I1);
}

#[test]
fn i3_fires_when_the_runtime_ignored_kubelets_record() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.container(1);
    world.enters(container, &Actor::host(50, SEALED, "runc").entering(origin::ATTACHED));
    world.execs(container, &Actor::host(50, SLEEP, "sh").entering(origin::ATTACHED).working());
    world.pass(5 * SECOND);
    let finding = world.only(RuleId::I3);
    assert!(finding.why.contains("kubelet recorded"), "{}", finding.why);
    assert_eq!(finding.container.as_ref().unwrap().cgroup.0, container);
}

#[test]
fn i3_fires_for_a_workload_found_at_start() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.container(1);
    world.found(container, &Actor::host(50, SLEEP, "sh").entering(origin::ADOPTED).working());
    world.only(RuleId::I3);
}

#[test]
fn i3_fires_when_the_spec_becomes_known_later() {
    let mut world = World::new();
    let container = world.container(1);
    world.execs(container, &Actor::host(50, SLEEP, "sh").entering(origin::ATTACHED).working());
    world.silent();
    world.declared(1, Some(false));
    let finding = world.only(RuleId::I3);
    assert!(finding.why.contains("hostUsers: false"));
    assert_eq!(finding.pod.as_ref().unwrap().name.as_deref(), Some("pod-1"));
}

#[test]
fn i3_silent_for_a_runtime_found_at_start_in_a_mount_namespace_of_its_own() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.container(1);
    let runtime = Actor::host(50, RUNC, "runc").entering(origin::ADOPTED).working();
    world.found(container, &runtime);
    world.inside(container, &Actor::inside(50, 7, BASE));
    world.execs(container, &Actor::inside(50, 7, BASE));
    world.pass(10 * SECOND);
    world.silent();
}

#[test]
fn i3_silent_for_pods_of_the_hosts_user_namespace() {
    for host_users in [None, Some(true)] {
        let mut world = World::new();
        world.declared(1, host_users);
        let container = world.container(1);
        world.execs(container, &Actor::host(50, SLEEP, "sh").entering(origin::ATTACHED).working());
        world.pass(5 * SECOND);
        world.silent();
    }
}

#[test]
fn i5_fires_once_for_all_capabilities_of_a_container() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.container(1);
    let shell = Actor::host(50, SLEEP, "sh").entering(origin::ATTACHED).working();
    world.execs(container, &shell);
    world.asks(container, &shell, SYS_ADMIN, Relation::Host, 0);
    world.asks(container, &shell, 18, Relation::Host, 0);
    let opened = world.opened(RuleId::I5);
    assert_eq!(opened.len(), 1);
    assert!(opened[0].why.contains("CAP_SYS_ADMIN"), "{}", opened[0].why);
    assert_eq!(world.opened(RuleId::I3).len(), 1);
    world.pass(11 * SECOND);
    let last = world.findings.last().unwrap();
    assert_eq!((last.rule, last.capabilities.len()), (RuleId::I5, 2), "the update names both");
    assert!(last.why.contains("CAP_SYS_CHROOT, CAP_SYS_ADMIN"), "{}", last.why);
}

#[test]
fn i5_silent_for_capabilities_over_the_pods_own_namespace() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    world.asks(container, &Actor::inside(50, 7, BASE), SYS_ADMIN, Relation::Pod, 0);
    world.pass(11 * SECOND);
    world.silent();
}

#[test]
fn i6_fires_for_a_namespace_that_became_the_hosts() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let mut thief = Actor::inside(51, 7, BASE);
    thief.0.foreign = namespace::MNT | namespace::PID;
    world.suspect(container, &thief, Hook::SwitchNamespaces, reason::FOREIGN_NAMESPACE);
    let finding = world.only(RuleId::I6);
    assert_eq!(finding.severity, Severity::Critical);
    assert!(finding.why.contains("foreign mount, PID namespace"), "{}", finding.why);
    assert_eq!(finding.pod.as_ref().unwrap().uid, uid(1));
}

#[test]
fn i6_silent_for_what_the_kernel_found_nothing_wrong_with() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let mut on_host_network = Actor::inside(51, 7, BASE);
    on_host_network.0.task.lineage.foreign = namespace::NET;
    world.execs(container, &on_host_network);
    world.silent();
}

#[test]
fn i13_fires_for_a_process_that_was_moved_out() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    world.suspect(container, &Actor::inside(51, 7, BASE), Hook::CgroupAttach, reason::LEFT_CGROUP);
    let finding = world.only(RuleId::I13);
    assert_eq!(finding.severity, Severity::High);
    assert_eq!(finding.pod.as_ref().unwrap().uid, uid(1));
}

#[test]
fn i13_silent_for_a_runtime_that_was_never_inside() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let runtime = Actor::host(70, RUNC, "runc").entering(origin::ATTACHED);
    world.suspect(container, &runtime, Hook::CgroupAttach, reason::LEFT_CGROUP);
    world.silent();
}

#[test]
fn i14_fires_for_a_first_program_that_works_on_the_host() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.container(1);
    world.enters(container, &Actor::host(50, SEALED, "runc").entering(origin::ATTACHED));
    let mut first = Actor::inside(50, 7, BASE);
    first.0.foreign = place::DIRECTORY | place::EXECUTABLE;
    world.suspect(container, &first, Hook::Exec, reason::FIRST_WORKLOAD | reason::OUTSIDE_MOUNT);
    let finding = world.only(RuleId::I14);
    assert_eq!(finding.severity, Severity::High);
    assert!(finding.why.contains("its working directory and executable in a mount"), "{}", finding.why);
    assert_eq!(finding.pod.as_ref().unwrap().uid, uid(1));
}

#[test]
fn i14_silent_for_a_runtime_at_work_and_for_what_was_told_before() {
    let mut world = World::new();
    world.recorded(1, BASE);
    let container = world.honest_start(1, 50, 7, BASE);
    let runtime = Actor::host(70, RUNC, "runc").entering(origin::ATTACHED);
    world.suspect(container, &runtime, Hook::Chdir, reason::OUTSIDE_MOUNT);
    let mut told = Actor::inside(51, 7, BASE);
    told.0.task.lineage.foreign = place::DIRECTORY;
    world.execs(container, &told);
    world.silent();
}

#[test]
fn i7_fires_for_host_root_in_the_map() {
    let mut world = World::new();
    world.recorded(1, 0);
    world.honest_start(1, 50, 7, 0);
    let finding = world.only(RuleId::I7);
    assert_eq!(finding.severity, Severity::Critical);
    assert!(finding.why.starts_with("host id 0 is mapped"), "{}", finding.why);
    assert!(finding.task.is_some());
}

#[test]
fn i7_fires_when_the_map_is_not_the_record() {
    let mut world = World::new();
    world.recorded(1, 131_072);
    world.honest_start(1, 50, 7, BASE);
    let finding = world.only(RuleId::I7);
    assert!(finding.why.contains("is not kubelet's record"), "{}", finding.why);
}

#[test]
fn i7_fires_once_for_two_pods_with_one_range() {
    let mut world = World::new();
    world.recorded(1, BASE);
    world.recorded(2, BASE);
    world.honest_start(1, 50, 7, BASE);
    world.silent();
    world.honest_start(2, 60, 8, BASE);
    let finding = world.only(RuleId::I7);
    assert!(finding.why.contains(uid(1).as_str()), "{}", finding.why);
}

#[test]
fn i7_silent_for_containers_of_one_pod_and_for_neighbours() {
    let mut world = World::new();
    for (n, base) in [(1, BASE), (2, BASE + 65_536), (3, BASE - 65_536)] {
        world.recorded(n, base);
        world.honest_start(n, 50 + n, 7 + n, base);
        world.honest_start(n, 60 + n, 7 + n, base);
    }
    world.silent();
}

#[test]
fn range_and_record_helpers_agree() {
    let mut world = World::new();
    world.fact(Fact::KubeletRecord { uid: uid(1), record: Some(world::record(BASE)) });
    assert_eq!(world::record(BASE).uid_mappings[0], range(BASE).extents[0]);
}
