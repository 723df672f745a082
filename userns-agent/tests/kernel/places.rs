//! Programs that work in mounts of the host's: a directory of it is left to them as their standard output.

use std::fs::File;

use userns_agent::event::{Nanos, place};

use super::proc_sweep::Container;
use super::*;

/// Where that directory is to be found.
const LEFT: &str = "/proc/self/fd/1";

/// A shell in namespaces of its own that waits for a line, with a directory of the host's left open.
fn leaky(command: &[&str], then: &str) -> Child {
    let script = format!("read line; {then}");
    let mut words = command.iter().copied().chain(["/bin/sh", "-c", &script]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).stdin(Stdio::piped()).stdout(File::open("/").unwrap());
    let child = command.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    child
}

fn outside(event: &Event) -> bool {
    event.reasons & reason::OUTSIDE_MOUNT != 0
}

/// Moves a process into a container, lets it act, and returns all evidence about it.
fn play(kernel: &mut Kernel, container: &Container, mut child: Child) -> Vec<Event> {
    container.watch(kernel);
    let pid = child.id();
    container.take_pid(pid);
    go(&mut child);
    child.wait().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let mut seen = Vec::new();
    while let Some(item) = kernel.rings.evidence.next() {
        seen.push(decode(&item).unwrap());
    }
    seen.retain(|event| event.body.task().is_some());
    seen
}

/// The one record that tells of a place, by which hook, and of which.
fn only(events: &[Event]) -> (&Event, Hook, u32) {
    let found: Vec<_> = events.iter().filter(|event| outside(event)).collect();
    let [event] = found.as_slice() else { panic!("{events:#?}") };
    (event, event.hook, event.body.task().unwrap().foreign)
}

#[test]
fn a_first_program_with_its_working_directory_on_the_host_is_told() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(mut kernel) = start("a_first_program_on_the_host") else { return };
    let container = Container::of_pod(0);
    let child = leaky(&["unshare", "-Urm"], &format!("cd {LEFT}; exec /bin/true"));
    let events = play(&mut kernel, &container, child);
    let (event, hook, places) = only(&events);
    assert_eq!((hook, places), (Hook::Exec, place::DIRECTORY));
    assert_ne!(event.reasons & reason::FIRST_WORKLOAD, 0);

    let limits = Limits { grace: GRACE, enrich_wait: Duration::ZERO, containers: 16, processes: 16 };
    let mut engine = Engine::new(limits);
    let mut out = Vec::new();
    engine.handle(Input::Event(event.clone()), &mut out);
    engine.handle(Input::Tick(Nanos(event.time.0 + 1_000_000_000)), &mut out);
    let told = |output: &Output| matches!(output, Output::Finding(finding) if finding.rule == RuleId::I14);
    assert_eq!(out.iter().filter(|output| told(output)).count(), 1, "{out:#?}");
}

#[test]
fn a_program_of_the_host_by_a_directory_left_open_is_told() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(mut kernel) = start("a_program_of_the_host") else { return };
    let container = Container::of_pod(0);
    let events = play(&mut kernel, &container, leaky(&["unshare", "-Urm"], &format!("exec {LEFT}/bin/true")));
    let (_, hook, places) = only(&events);
    assert_eq!((hook, places), (Hook::Exec, place::EXECUTABLE));
}

#[test]
fn a_program_that_goes_to_the_host_is_told_at_once_and_not_again() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(mut kernel) = start("a_program_that_goes_to_the_host") else { return };
    let container = Container::of_pod(0);
    let then = format!("exec /bin/sh -c 'cd {LEFT}; /bin/true; cd /; cd {LEFT}; exec /bin/true'");
    let events = play(&mut kernel, &container, leaky(&["unshare", "-Urm"], &then));
    let (_, hook, places) = only(&events);
    assert_eq!((hook, places), (Hook::Chdir, place::DIRECTORY));
}

#[test]
fn the_sweep_finds_who_works_on_the_host() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let without = |features: &mut Features| {
        let chdir = |target: &str| target.ends_with("_chdir") || target.ends_with("_fchdir");
        features.functions.retain(|target, _| !chdir(target));
        features.events.iter_mut().for_each(|events| events.retain(|target| !chdir(target)));
    };
    let Some(mut kernel) = start_with("the_sweep_finds_who_works_on_the_host", without) else { return };
    let container = Container::of_pod(0);
    container.watch(&mut kernel);
    let mut child = leaky(&["unshare", "-Urm"], &format!("exec /bin/sh -c 'cd {LEFT}; read line; exit 0'"));
    container.take_pid(child.id());
    child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    for _ in 0..2 {
        kernel.loaded.sweep().unwrap().run().unwrap();
    }
    let mut events = kernel.wait(outside);
    go(&mut child);
    child.wait().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    while let Some(item) = kernel.rings.evidence.next() {
        events.push(decode(&item).unwrap());
    }
    let (_, hook, places) = only(&events);
    assert_eq!((hook, places), (Hook::TaskIter, place::DIRECTORY));
}

#[test]
fn programs_in_mounts_of_their_own_and_of_nested_containers_are_not_told() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(mut kernel) = start("programs_in_mounts_of_their_own") else { return };
    let container = Container::of_pod(0);
    // its own; the pod's, of a namespace below; a program from a mount that is in no namespace any more
    let below = "unshare -Urm /bin/sh -c 'cd /tmp; /bin/true; cd /; /bin/true'";
    let detached = "mount -t tmpfs t /mnt && cp /bin/true /mnt/t && cd /mnt && umount -l /mnt && ./t";
    let left = format!("unshare -Urm /bin/sh -c 'cd {LEFT} && /bin/true'");
    let then = format!("exec /bin/sh -c \"/bin/true; exec 1</; {below}; {left}; {detached} || exit 3\"");
    let mut child = leaky(&["unshare", "-Urm"], &then);
    container.watch(&mut kernel);
    container.take_pid(child.id());
    go(&mut child);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    for _ in 0..2 {
        kernel.loaded.sweep().unwrap().run().unwrap();
    }
    std::thread::sleep(Duration::from_millis(50));
    let mut programs = 0;
    while let Some(item) = kernel.rings.evidence.next() {
        let event = decode(&item).unwrap();
        programs += u32::from(event.reasons & reason::FIRST_WORKLOAD != 0);
        assert!(!outside(&event), "{event:#?}");
    }
    assert_eq!(programs, 1);
}
