//! Ten thousand pods and a hundred changes a second.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::apiserver::pod;
use crate::harness::{Bench, TIMING, changed, uid};
use crate::memory;
use userns_agent::host::api::Timing;

const PODS: u32 = 10_000;
const MIB: isize = 1 << 20;
const CHANGES: u32 = 300;
const BETWEEN: Duration = Duration::from_millis(10);

/// What this thread has used, which is the watcher's, and not the server's connections'.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

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

    let before = memory::held();
    memory::reset();
    let (cpu, began) = (cpu_time(), Instant::now());
    let mut of_server = Duration::ZERO;
    for change in 1..=CHANGES {
        let (number, asked) = (change * 7919 % PODS + 1, cpu_time());
        match change % 10 {
            0 => bench.server.delete(&uid(number)),
            1 => bench.server.put(pod(PODS + change)),
            _ => bench.server.put(changed(number, change)),
        }
        of_server += cpu_time() - asked;
        // a busy machine makes up for being late: the changes to follow are the same
        while let Some(left) = (BETWEEN * change).checked_sub(began.elapsed()) {
            bench.take(left).await;
        }
    }
    // changes are told in order
    let last = uid(PODS * 2);
    bench.server.put(pod(PODS * 2));
    bench.until("told the last change", |bench| bench.known.contains_key(&last)).await;
    let (took, used) = (began.elapsed(), cpu_time() - cpu - of_server);
    let grown = (memory::most() - before) / 1024;
    println!("{CHANGES} changes in {took:.1?} took {used:.1?} of CPU time and {grown} KiB at most");
    assert!(used < BETWEEN * CHANGES, "{used:.1?} of CPU time: changes come faster");
    assert!(grown < 8 * 1024, "{grown} KiB");
    bench.converges().await;
    assert_eq!(bench.health().errors, 0, "{:?}", bench.health());
    assert_eq!(bench.server.requests().len(), 1, "one watch did it: {:#?}", bench.requests());
}
