//! The recorder's bounds, which no scenario comes near.

use super::*;
use crate::event::{Ancestor, Hook, Lineage, Task, Text};

fn id(pid: u32) -> ProcessId {
    ProcessId { pid, start: Nanos(u64::from(pid)) }
}

fn task(container: u64, pid: u32, parent: u32) -> TaskEvent {
    let lineage = Lineage { container, ..Lineage::default() };
    TaskEvent {
        task: Task { process: id(pid), lineage, ..Task::default() },
        ancestors: vec![Ancestor { process: id(parent), euid: 0, comm: Text::default() }],
        ..TaskEvent::default()
    }
}

fn exec(container: u64, pid: u32, parent: u32, time: u64, path: &str) -> Event {
    let event = TaskEvent { path: path.into(), args: vec![path.into()], ..task(container, pid, parent) };
    Event { time: Nanos(time), hook: Hook::Exec, reasons: 0, body: Body::Exec(Box::new(event)) }
}

fn exit(container: u64, pid: u32, time: u64) -> Event {
    let body = Body::Exit { process: id(pid), container: CgroupId(container) };
    Event { time: Nanos(time), hook: Hook::Exit, reasons: 0, body }
}

fn programs(recorder: &Recorder, container: u64, pid: u32, parent: u32) -> Vec<String> {
    let chain = recorder.chain(&task(container, pid, parent));
    let path = |step: &Arc<Step>| match &step.deed {
        Deed::Executed { path, .. } => path.as_str().to_owned(),
        Deed::Entered { .. } | Deed::Inside | Deed::Asked(_) | Deed::Contradicted { .. } => step.sentence(),
    };
    chain.steps.iter().map(path).collect()
}

/// What the accounts must add up to.
fn audit(recorder: &Recorder) {
    let of = |recorded: &Recorded| -> usize {
        let flights = recorded.flights.values();
        flights.map(|flight| ROW + flight.steps.iter().map(|step| step.bytes()).sum::<usize>()).sum()
    };
    for recorded in recorder.containers.values() {
        assert_eq!(recorded.bytes, of(recorded));
        assert_eq!(recorded.order.len(), recorded.flights.len());
        for (process, flight) in &recorded.flights {
            assert!(recorded.order.contains(&(flight.rank, *process)) && flight.rank.0 == flight.worth());
        }
    }
    assert_eq!(recorder.bytes, recorder.containers.values().map(of).sum::<usize>());
    assert_eq!(recorder.sizes.len(), recorder.containers.len());
}

#[test]
fn the_first_and_the_last_steps_of_a_process_are_kept() {
    let mut recorder = Recorder::new(MAX_BYTES);
    for n in 0..40 {
        recorder.saw(&exec(1, 10, 1, n, &format!("/bin/{n}")));
    }
    audit(&recorder);
    let programs = programs(&recorder, 1, 10, 1);
    assert_eq!(programs.len(), MAX_STEPS);
    assert_eq!(programs[..FIRST_STEPS], ["/bin/0", "/bin/1", "/bin/2"]);
    assert_eq!(programs[MAX_STEPS - 1], "/bin/39");
    assert_eq!(recorder.chain(&task(1, 10, 1)).omitted, 40 - MAX_STEPS as u64);
}

#[test]
fn the_same_again_takes_no_room() {
    let mut recorder = Recorder::new(MAX_BYTES);
    recorder.saw(&exec(1, 10, 1, 5, "/bin/true"));
    let before = recorder.bytes();
    for n in 6..1000 {
        recorder.saw(&exec(1, 10, 1, n, "/bin/true"));
    }
    assert_eq!(recorder.bytes(), before);
    let step = Arc::clone(&recorder.chain(&task(1, 10, 1)).steps[0]);
    assert_eq!((step.time, step.last, step.count), (Nanos(5), Nanos(999), 995));
}

#[test]
fn a_flood_costs_nobody_else_anything_and_is_counted() {
    const LIMIT: usize = 256 << 10;
    let mut recorder = Recorder::new(LIMIT);
    recorder.saw(&exec(1, 10, 1, 1, "/bin/quiet"));
    let noise = "/".repeat(200);
    for pid in 100..20_000 {
        recorder.saw(&exec(2, pid, 99, u64::from(pid), &noise));
        if pid % 2 == 0 {
            recorder.saw(&exit(2, pid, u64::from(pid)));
        }
        assert!(recorder.bytes() <= LIMIT);
    }
    audit(&recorder);
    assert!(recorder.evicted > 10_000, "{}", recorder.evicted);
    assert_eq!(programs(&recorder, 1, 10, 1), ["/bin/quiet"]);
    // the latest of the flood are there, and its first process
    assert_eq!(programs(&recorder, 2, 19_999, 0), [noise.as_str()]);
    assert_eq!(programs(&recorder, 2, 100, 0), [noise]);
}

#[test]
fn a_parent_outlives_its_end_as_long_as_its_child_lives() {
    let keep = KEEP_STEPS_NS;
    let mut recorder = Recorder::new(MAX_BYTES);
    recorder.saw(&exec(1, 9, 1, 0, "/init"));
    recorder.saw(&exec(1, 10, 9, 1, "/bin/parent"));
    recorder.saw(&exec(1, 11, 10, 2, "/bin/child"));
    recorder.saw(&exit(1, 10, 3));
    recorder.tick(Nanos(10 * keep));
    // the orphan's ancestors are others now
    assert_eq!(programs(&recorder, 1, 11, 1), ["/init", "/bin/parent", "/bin/child"]);
    recorder.saw(&exit(1, 11, 10 * keep));
    recorder.saw(&exit(1, 11, 10 * keep));
    audit(&recorder);
    recorder.tick(Nanos(11 * keep));
    assert_eq!(programs(&recorder, 1, 11, 1).len(), 3);
    recorder.tick(Nanos(11 * keep + 1));
    audit(&recorder);
    assert_eq!(programs(&recorder, 1, 11, 1), [""; 0]);
    assert_eq!(programs(&recorder, 1, 9, 1), ["/init"]);
}

#[test]
fn what_a_short_lived_child_did_is_told_of_its_parent_for_a_while() {
    let mut recorder = Recorder::new(MAX_BYTES);
    recorder.saw(&exec(1, 9, 1, 0, "/bin/sh"));
    for child in 0..10 {
        let time = 1 + u64::from(child);
        recorder.saw(&exec(1, 10 + child, 9, time, &format!("/bin/tool-{child}")));
        recorder.saw(&exit(1, 10 + child, time));
    }
    let told = programs(&recorder, 1, 9, 1);
    assert_eq!(told[0], "/bin/sh");
    assert_eq!(told[1..], ["/bin/tool-6", "/bin/tool-7", "/bin/tool-8", "/bin/tool-9"]);
    recorder.tick(Nanos(2 * KEEP_STEPS_NS));
    assert_eq!(programs(&recorder, 1, 9, 1), ["/bin/sh"]);
    audit(&recorder);
}

#[test]
fn nothing_stays_of_a_container_that_is_forgotten() {
    let mut recorder = Recorder::new(MAX_BYTES);
    for container in 1..5 {
        recorder.saw(&exec(container, 10, 1, 0, "/bin/sh"));
    }
    recorder.forget(CgroupId(1));
    recorder.retain(|id| id.0 < 4);
    audit(&recorder);
    assert_eq!(recorder.len(), 2);
    recorder.forget(CgroupId(2));
    recorder.forget(CgroupId(3));
    assert_eq!((recorder.len(), recorder.bytes()), (0, 0));
}

#[test]
fn records_that_come_late_stand_where_they_belong() {
    let mut recorder = Recorder::new(MAX_BYTES);
    for (time, path) in [(1, "/a"), (9, "/d"), (5, "/c"), (3, "/b")] {
        recorder.saw(&exec(1, 10, 1, time, path));
    }
    assert_eq!(programs(&recorder, 1, 10, 1), ["/a", "/b", "/c", "/d"]);
}

#[test]
fn every_reason_and_every_way_in_has_words() {
    use userns_common::kind::{origin, reason};
    let of = |body: fn(Box<TaskEvent>) -> Body, reasons: u32, event: TaskEvent| {
        let body = body(Box::new(event));
        Step::of(&Event { time: Nanos(1), hook: Hook::TaskIter, reasons, body }).unwrap().sentence()
    };
    let mut told = BTreeSet::new();
    for bit in (0..10).map(|bit| 1 << bit).filter(|bit| *bit != reason::FIRST_WORKLOAD) {
        let event = TaskEvent { foreign: userns_common::kind::namespace::MNT, ..task(1, 10, 1) };
        let words = of(Body::Suspect, bit, event);
        assert!(words != "was told of" && told.insert(words.clone()), "{bit:#x}: {words}");
    }
    for way in [origin::ATTACHED, origin::BORN, origin::ADOPTED, origin::FOREIGN] {
        let mut event = task(1, 10, 1);
        event.task.lineage.origin = way;
        assert!(told.insert(of(Body::Entry, 0, event)), "{way}");
    }
    let hostile = TaskEvent {
        path: "/x\n\u{202e}".into(),
        args: vec!["x".into(), "\u{1b}[2J".into()],
        ..task(1, 10, 1)
    };
    let words = of(Body::Exec, 0, hostile);
    assert!(!words.chars().any(|c| c.is_control() || c == '\u{202e}'), "{words:?}");
}
