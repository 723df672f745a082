//! Floods, stuck writers, and what each costs.

use super::*;

fn line(about: About, len: usize) -> Line {
    Line { bytes: Bytes::from(vec![b'x'; len]), about, receipt: None }
}

fn opened(severity: Severity) -> About {
    About::Opened(Nanos(1), severity)
}

fn next_len(queue: &Queue) -> usize {
    match queue.next() {
        Next::Write(line) => {
            queue.done();
            line.bytes.len()
        }
        other @ (Next::Reopen | Next::End) => panic!("{other:?}"),
    }
}

fn small() -> Queue {
    Queue::new(Limits { ordinary: 2 * (OVERHEAD + 100), urgent: 3 * (OVERHEAD + 100) })
}

#[test]
fn a_flood_of_low_findings_costs_no_critical_one() {
    let queue = small();
    let pushed: Vec<_> = (0..5).map(|_| queue.push(line(opened(Severity::Low), 100), Nanos(7))).collect();
    assert_eq!(pushed[..2], [Pushed::Queued; 2]);
    assert_eq!(pushed[2..], [Pushed::Dropped; 3]);
    for about in [opened(Severity::Critical), opened(Severity::High), About::Agent] {
        assert_eq!(queue.push(line(about, 100), Nanos(8)), Pushed::Queued);
    }
    assert_eq!(queue.push(line(opened(Severity::Critical), 100), Nanos(9)), Pushed::Dropped);
    assert_eq!(queue.take_lost(), None, "no room to tell it");
    for _ in 0..4 {
        next_len(&queue);
    }
    let count = BTreeMap::from([(Severity::Low, 3), (Severity::Critical, 1)]);
    assert_eq!(queue.take_lost(), Some(Lost { since: Nanos(7), count }));
    assert_eq!(queue.take_lost(), None);
}

#[test]
fn an_update_replaces_the_one_that_waits() {
    let queue = small();
    let update = |id, len| line(About::Updated(FindingId(id), Severity::High), len);
    assert_eq!(queue.push(line(opened(Severity::High), 1), Nanos(0)), Pushed::Queued);
    assert_eq!(queue.push(update(1, 10), Nanos(0)), Pushed::Queued);
    for len in 11..100 {
        assert_eq!(queue.push(update(1, len), Nanos(0)), Pushed::Superseded);
    }
    assert_eq!(next_len(&queue), 1);
    assert_eq!(queue.push(update(1, 50), Nanos(0)), Pushed::Superseded);
    assert_eq!(queue.push(update(2, 51), Nanos(0)), Pushed::Queued);
    assert_eq!(next_len(&queue), 50);
    assert_eq!(queue.push(update(1, 52), Nanos(0)), Pushed::Queued);
    assert_eq!((next_len(&queue), next_len(&queue), queue.bytes()), (51, 52, 0));
}

#[test]
fn a_finding_that_gets_worse_while_it_waits_moves_to_the_other_budget() {
    let queue = small();
    let update = |severity| line(About::Updated(FindingId(1), severity), 100);
    queue.push(update(Severity::Low), Nanos(0));
    assert_eq!(queue.push(update(Severity::Critical), Nanos(0)), Pushed::Superseded);
    for _ in 0..2 {
        assert_eq!(queue.push(line(opened(Severity::Low), 100), Nanos(0)), Pushed::Queued);
    }
}

#[test]
fn closing_waits_for_the_writer_and_counts_what_it_leaves() {
    let queue = small();
    for _ in 0..2 {
        queue.push(line(opened(Severity::High), 10), Nanos(0));
    }
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut lines = 0;
            while let Next::Write(_) = queue.next() {
                std::thread::sleep(Duration::from_millis(20));
                lines += 1;
                queue.done();
            }
            lines
        });
        let deadline = Instant::now() + Duration::from_secs(10);
        assert_eq!(queue.close(deadline), BTreeMap::new());
        assert_eq!(writer.join().unwrap(), 2);
    });
    assert_eq!(queue.push(line(About::Agent, 1), Nanos(0)), Pushed::Dropped);
}

#[test]
fn closing_does_not_wait_for_a_stuck_writer() {
    let queue = small();
    for severity in [Severity::Critical, Severity::High, Severity::Low] {
        queue.push(line(opened(severity), 10), Nanos(0));
    }
    assert!(matches!(queue.next(), Next::Write(_)));
    let start = Instant::now();
    let left = queue.close(start + Duration::from_millis(50));
    assert!(start.elapsed() < Duration::from_secs(5));
    let expected = [(Severity::Low, 1), (Severity::High, 1), (Severity::Critical, 1)];
    assert_eq!(left, BTreeMap::from(expected));
    assert!(!queue.wait_to_retry(Duration::from_secs(60)));
    assert!(matches!(queue.next(), Next::End));
}

#[test]
fn a_pause_ends_with_the_queue() {
    let queue = small();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            queue.close(Instant::now() + Duration::from_millis(1))
        });
        let start = Instant::now();
        queue.wait_to_retry(Duration::from_secs(60));
        assert!(start.elapsed() < Duration::from_secs(30));
    });
}
