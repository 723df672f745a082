//! A finding made while the API server cannot be reached.

use userns_agent::core::finding::Status;
use userns_agent::core::rules::RuleId;
use userns_agent::event::{Fact, origin};
use userns_agent::host::SourceState;

use crate::apiserver::{Trouble, pod};
use crate::harness::{Bench, TIMING};
use crate::world::{Actor, SLEEP, World};

#[tokio::test]
async fn a_finding_made_during_an_outage_is_amended_afterwards() {
    let mut bench = Bench::settled(1, TIMING).await;
    bench.server.trouble(Trouble::Down);
    bench.server.cut();
    bench.fails(&["cannot connect"]).await;

    // a pod that comes during the outage: kubelet has recorded it, and the world gives pods the double's UIDs
    bench.server.put(pod(7));
    let mut world = World::new();
    world.recorded(7, 1 << 20);
    let container = world.container(7);
    let intruder = Actor::host(70, SLEEP, "sh").entering(origin::ATTACHED).working();
    world.execs(container, &intruder);
    let made = world.only(RuleId::I3).clone();
    let nameless = made.pod.as_ref().unwrap();
    assert_eq!((nameless.name.as_deref(), made.status), (None, Status::Opened));
    assert!(made.unknown.iter().any(|unknown| unknown.starts_with("pod")), "{:?}", made.unknown);

    bench.server.trouble(Trouble::None);
    let told = world.findings.len();
    while world.findings.len() == told {
        bench.tell(&mut |fact: Fact| world.fact(fact)).await;
    }
    let amended = world.findings.last().unwrap();
    assert_eq!((amended.id, amended.status), (made.id, Status::Amended));
    let named = amended.pod.as_ref().unwrap();
    assert_eq!(named.name.as_deref(), Some("pod-7"));
    assert!(amended.unknown.len() < made.unknown.len(), "{:?}", amended.unknown);
}

#[tokio::test]
async fn a_server_that_keeps_no_version_fails_and_says_so() {
    let mut bench = Bench::settled(3, TIMING).await;
    bench.server.trouble(Trouble::Expired);
    bench.change();
    bench.fails(&["410"]).await;
    bench.server.trouble(Trouble::None);
    bench.converges().await;
}

#[tokio::test]
async fn a_server_that_takes_connections_and_is_silent_is_left_after_a_while() {
    let mut bench = Bench::settled(3, TIMING).await;
    bench.server.trouble(Trouble::Silent);
    bench.server.cut();
    bench.change();
    bench.fails(&["did not take a connection within 2s"]).await;
    bench.server.trouble(Trouble::None);
    bench.converges().await;
}

#[tokio::test]
async fn a_killed_server_is_found_again_where_it_was() {
    let mut bench = Bench::settled(3, TIMING).await;
    bench.server.kill();
    bench.fails(&["cannot connect", "refused"]).await;
    bench.change();
    bench.server.revive().unwrap();
    bench.converges().await;
}

#[tokio::test]
async fn a_first_list_that_is_slow_says_how_far_it_is() {
    let mut bench = Bench::new(500, TIMING);
    bench.server.trouble(Trouble::Slow);
    let says = |bench: &Bench| bench.health().detail.ends_with(" so far");
    bench.until("said how far it is", says).await;
    let health = bench.health();
    assert_eq!((health.state, health.records, bench.known.len()), (SourceState::Missing, 0, 0), "{health:?}");
    bench.server.trouble(Trouble::None);
    bench.converges().await;
    assert_eq!((bench.known.len(), bench.health().errors), (500, 0), "{:?}", bench.health());
}
