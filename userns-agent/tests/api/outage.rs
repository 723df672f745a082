//! A finding made while the API server cannot be reached.

use userns_agent::core::finding::Status;
use userns_agent::core::rules::RuleId;
use userns_agent::event::{Fact, origin};

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
