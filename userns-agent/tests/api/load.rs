//! Ten thousand pods and a hundred changes a second.

use std::time::{Duration, Instant};

use crate::apiserver::pod;
use crate::harness::{Bench, TIMING, changed, uid};
use crate::memory;
use userns_agent::host::api::Timing;

const PODS: u32 = 10_000;
const MIB: isize = 1 << 20;

#[tokio::test]
async fn ten_thousand_pods_with_a_hundred_changes_a_second_are_followed() {
    // a busy machine may be silent for longer than the other tests allow
    let mut bench = Bench::new(PODS, Timing { silence: Duration::from_secs(10), ..TIMING });
    let before = memory::held();
    memory::reset();
    bench.converges().await;
    let most = (memory::most() - before) / MIB;
    println!("reading {PODS} pods took {most} MiB at most");
    assert!(most < 64, "{most} MiB");

    let (began, mut changes) = (Instant::now(), 0);
    memory::reset();
    let before = memory::held();
    while began.elapsed() < Duration::from_secs(3) {
        let due = u32::try_from(began.elapsed().as_millis() / 10).unwrap();
        while changes < due {
            changes += 1;
            let number = changes * 7919 % PODS + 1;
            match changes % 10 {
                0 => bench.server.delete(&uid(number)),
                1 => bench.server.put(pod(PODS + changes)),
                _ => bench.server.put(changed(number, changes)),
            }
        }
        bench.take(Duration::from_millis(5)).await;
    }
    assert!(changes >= 290, "{changes} changes");
    bench.converges().await;
    let grown = (memory::most() - before) / 1024;
    println!("{changes} changes took {grown} KiB at most");
    assert!(grown < 8 * 1024, "{grown} KiB");
    assert_eq!(bench.health().errors, 0, "{:?}", bench.health());
    assert_eq!(bench.server.requests().len(), 1, "one watch did it: {:#?}", bench.requests());
}
