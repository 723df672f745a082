//! Pods from the API server and from kubelet's `/pods`, against a server that fails in every way real ones do.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[expect(unreachable_pub, reason = "public in xtask, whose file it is")]
#[path = "../../../xtask/src/lab/apiserver/mod.rs"]
mod apiserver;
mod harness;
mod kubelet;
mod load;
mod memory;
mod outage;
#[expect(dead_code, reason = "the scenarios use the rest")]
#[path = "../scenarios/world.rs"]
mod world;

use std::time::Duration;

use apiserver::{Trouble, pod};
use harness::{Bench, TIMING, changed, served, uid};
use userns_agent::host::SourceState;
use userns_agent::host::api::{Access, Timing};

#[tokio::test]
async fn pods_of_the_node_are_told_and_then_their_changes() {
    let mut bench = Bench::new(3, TIMING);
    assert_eq!(bench.health().state, SourceState::Missing);
    let mut elsewhere = pod(99);
    elsewhere["spec"]["nodeName"] = "node-2".into();
    bench.server.put(elsewhere);
    bench.converges().await;
    assert_eq!(bench.known.len(), 3);
    bench.change();
    bench.converges().await;
    assert_eq!(bench.known[&uid(2)].1, "1");
    assert!(!bench.known.contains_key(&uid(1)));
    let requests = bench.requests();
    assert_eq!(requests.len(), 1, "one watch does it all: {requests:#?}");
    let begins = "/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dnode-1&sendInitialEvents=true\
                  &resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=";
    assert!(requests[0].starts_with(begins), "{}", requests[0]);
    assert_eq!(bench.health().errors, 0);
}

#[tokio::test]
async fn a_kubeconfig_leads_to_the_server() {
    let mut bench = Bench::with(3, TIMING, |dir, server| {
        let path = dir.join("kubeconfig");
        let text = format!(
            "current-context: x\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://{}', certificate-authority: ca.crt}}}}]\n\
             users: [{{name: u, user: {{tokenFile: token}}}}]\n",
            server.address()
        );
        std::fs::write(&path, text).unwrap();
        Access::Kubeconfig(path)
    });
    bench.converges().await;
    assert_eq!((bench.known.len(), bench.health().errors), (3, 0));
}

#[tokio::test]
async fn a_pod_that_cannot_be_used_is_counted_and_hides_no_other() {
    let mut bench = Bench::settled(3, TIMING).await;
    let mut strange = pod(8);
    strange["metadata"]["uid"] = "no-uid".into();
    bench.server.put(strange);
    bench.server.put(pod(9));
    bench.until("told", |bench| bench.known.contains_key(&uid(9))).await;
    let health = bench.health();
    assert_eq!((health.state, health.errors, health.records), (SourceState::Ok, 1, 4));
    assert_eq!(bench.known.len(), 4);
}

#[tokio::test]
async fn a_server_without_initial_events_is_listed_by_pages() {
    let mut bench = Bench::new(1, TIMING);
    (2..=1100).for_each(|number| bench.server.put(pod(number)));
    bench.server.be_older();
    bench.converges().await;
    bench.change();
    bench.converges().await;
    let requests = bench.requests();
    let has = |part: &str| requests.iter().filter(|request| request.contains(part)).count();
    assert_eq!((has("sendInitialEvents"), has("limit=500"), has("continue=")), (1, 3, 2), "{requests:#?}");
    assert_eq!((has("limit=500&resourceVersion=0"), has("watch=1&fieldSelector")), (1, 2), "{requests:#?}");
    assert_eq!(bench.health().errors, 0, "a server that is older does not fail: {:?}", bench.health());
}

#[tokio::test]
async fn a_slow_list_is_waited_for() {
    for is_older in [false, true] {
        let mut bench = Bench::new(40, TIMING);
        bench.server.trouble(Trouble::Slow);
        if is_older {
            bench.server.be_older();
        }
        bench.converges().await;
        assert_eq!((bench.known.len(), bench.health().errors), (40, 0), "{:?}", bench.health());
    }
}

#[tokio::test]
async fn watches_that_end_cleanly_go_on_where_they_were() {
    let mut bench = Bench::settled(3, TIMING).await;
    bench.server.end_watches_after(Some(Duration::from_millis(50)));
    for number in 10..20 {
        bench.server.put(pod(number));
        bench.server.put(changed(2, number));
        bench.converges().await;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let requests = bench.server.requests();
    let full = requests.iter().filter(|request| request.contains("sendInitialEvents")).count();
    assert!(full == 1 && requests.len() > 3, "{requests:#?}");
    assert_eq!(bench.health().errors, 0);
}

#[tokio::test]
async fn a_cut_stream_is_taken_up_again() {
    let mut bench = Bench::settled(3, TIMING).await;
    bench.server.trouble(Trouble::Down);
    bench.server.cut();
    bench.change();
    bench.fails(&["cannot connect to 127.0.0.1:"]).await;
    let errors = bench.health().errors;
    bench.server.trouble(Trouble::None);
    bench.converges().await;
    assert!(bench.health().errors >= errors, "errors are never uncounted");
    assert!(bench.requests().last().unwrap().contains("&resourceVersion="), "{:#?}", bench.requests());
    for _ in 0..3 {
        bench.server.cut();
        bench.change();
        bench.server.put(pod(1));
        bench.converges().await;
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_left_after_a_while() {
    let mut bench = Bench::settled(3, TIMING).await;
    bench.server.trouble(Trouble::Hangs);
    bench.change();
    bench.fails(&["did not say anything more within 600ms"]).await;
    bench.server.trouble(Trouble::None);
    bench.converges().await;
}

#[tokio::test]
async fn an_expired_version_is_listed_again() {
    let mut bench = Bench::settled(3, TIMING).await;
    bench.change();
    bench.server.compact();
    bench.converges().await;
    // and where it expired while nobody watched
    bench.server.trouble(Trouble::Down);
    bench.server.cut();
    bench.fails(&["cannot connect"]).await;
    bench.server.put(changed(3, 1));
    bench.server.compact();
    bench.server.trouble(Trouble::None);
    bench.converges().await;
}

#[tokio::test]
async fn a_restored_store_is_noticed_by_its_silence() {
    let mut bench = Bench::settled(5, TIMING).await;
    bench.server.restore(vec![changed(2, 7), pod(50)]);
    bench.until("noticed", |bench| bench.health().errors > 0).await;
    bench.converges().await;
    assert_eq!(bench.known.len(), 2);
    // the same for one that was restored while it could not be reached: its versions are in the future then
    bench.server.trouble(Trouble::Down);
    bench.server.cut();
    bench.fails(&["cannot connect"]).await;
    (100..110).for_each(|number| bench.server.put(pod(number)));
    bench.server.restore(vec![pod(60)]);
    bench.server.trouble(Trouble::None);
    bench.converges().await;
    assert_eq!(bench.known.keys().collect::<Vec<_>>(), [&uid(60)]);
}

#[tokio::test]
async fn a_version_ahead_of_the_server_is_waited_for() {
    let mut bench = Bench::new(3, TIMING);
    bench.server.trouble(Trouble::TooLargeVersion);
    bench.fails(&["504", "Too large resource version", "no pods have been read yet"]).await;
    let asked = bench.server.requests().len();
    tokio::time::sleep(Duration::from_millis(300)).await;
    bench.server.trouble(Trouble::None);
    bench.converges().await;
    assert!(bench.server.requests().len() <= asked + 2, "it said in which second to ask again");
}

#[tokio::test]
async fn another_certificate_is_refused_until_its_authority_is_known() {
    let mut bench = Bench::settled(3, TIMING).await;
    let replaced = bench.server.change_ca().unwrap();
    bench.server.cut();
    bench.change();
    let file = bench.dir.path().join("ca.crt");
    bench.fails(&["no valid certificate", file.to_str().unwrap()]).await;
    std::fs::write(&file, "no certificate").unwrap();
    bench.fails(&[file.to_str().unwrap(), "it holds no certificate"]).await;
    std::fs::remove_file(&file).unwrap();
    bench.fails(&["cannot read", file.to_str().unwrap()]).await;
    bench.server.publish_ca(&replaced).unwrap();
    bench.converges().await;
}

#[tokio::test]
async fn a_token_that_has_expired_is_read_again() {
    let mut bench = Bench::settled(3, TIMING).await;
    bench.server.expire_token();
    bench.server.cut();
    bench.change();
    bench.fails(&["401", "the token has expired or is not this cluster's"]).await;
    bench.server.rotate_token().unwrap();
    bench.converges().await;
}

#[tokio::test]
async fn what_is_not_allowed_is_named() {
    let mut bench = Bench::settled(3, TIMING).await;
    bench.server.allow(false);
    bench.server.cut();
    bench.change();
    let rule = "bind a ClusterRole with the verbs get, list and watch on pods";
    bench.fails(&["403", "cannot watch resource", rule]).await;
    bench.server.allow(true);
    bench.converges().await;
}

#[tokio::test]
async fn a_server_that_always_cuts_is_not_asked_without_pause() {
    let timing = Timing { most_pause: Duration::from_millis(400), ..TIMING };
    let mut bench = Bench::settled(3, timing).await;
    bench.server.end_watches_after(Some(Duration::ZERO));
    let before = bench.server.requests().len();
    bench.take(Duration::from_secs(2)).await;
    let asked = bench.server.requests().len() - before;
    assert!((3..40).contains(&asked), "{asked} requests in two seconds");
    bench.server.end_watches_after(None);
    bench.change();
    bench.converges().await;
    assert_eq!(served(&bench.server), bench.known);
}
