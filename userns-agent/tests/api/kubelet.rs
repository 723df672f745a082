//! Kubelet's `/pods`.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use userns_agent::event::{Fact, PodSource};
use userns_agent::host::kubelet_api::{KubeletApi, Settings};
use userns_agent::host::{SourceHealth, SourceState};

use crate::apiserver::{ApiServer, NODE, Trouble, pod};
use crate::harness::{Known, PATIENCE, changed, learn, served};

struct Poll {
    server: ApiServer,
    dir: tempfile::TempDir,
    facts: mpsc::Receiver<Fact>,
    health: watch::Receiver<SourceHealth>,
    known: Known,
}

impl Poll {
    fn new(node: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = ApiServer::start(dir.path()).unwrap();
        (1..=3).for_each(|number| server.put(pod(number)));
        let settings = Settings {
            url: format!("https://{}", server.address()).parse().unwrap(),
            node: node.to_owned(),
            ca: dir.path().join("ca.crt"),
            token: dir.path().join("token"),
            interval: Duration::from_millis(50),
            patience: PATIENCE,
        };
        let (mut kubelet, health) = KubeletApi::new(settings);
        let (sender, facts) = mpsc::channel(1);
        tokio::spawn(async move { while sender.send(kubelet.next().await).await.is_ok() {} });
        Self { server, dir, facts, health, known: Known::new() }
    }

    async fn until(&mut self, done: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !done(self) {
            assert!(began.elapsed() < Duration::from_secs(30), "{:?}", self.health.borrow());
            if let Ok(Some(fact)) = timeout(Duration::from_millis(10), self.facts.recv()).await {
                learn(&mut self.known, PodSource::KubeletApi, fact);
            }
        }
    }

    async fn converges(&mut self) {
        let same =
            |poll: &Self| poll.health.borrow().state == SourceState::Ok && poll.known == served(&poll.server);
        self.until(same).await;
        assert_eq!(self.health.borrow().records, self.known.len());
    }

    async fn fails(&mut self, parts: &[&str]) {
        let before = self.known.clone();
        let says = |poll: &Self| {
            let health = poll.health.borrow();
            health.state == SourceState::Failing && parts.iter().all(|part| health.detail.contains(part))
        };
        self.until(says).await;
        assert_eq!(self.known, before);
    }
}

#[tokio::test]
async fn pods_are_asked_for_again_and_again() {
    let mut poll = Poll::new(NODE);
    poll.converges().await;
    poll.server.put(changed(2, 1));
    poll.server.put(pod(9));
    poll.converges().await;
    assert!(poll.server.requests().iter().all(|request| request == "/pods"));
    // the same pods are no news
    let waited = timeout(Duration::from_millis(300), poll.facts.recv()).await;
    assert!(waited.is_err(), "{waited:?}");
    assert_eq!(poll.health.borrow().errors, 0);
}

#[tokio::test]
async fn every_failure_is_named_and_passes() {
    let mut poll = Poll::new(NODE);
    poll.converges().await;
    poll.server.allow(false);
    poll.server.put(changed(2, 1));
    poll.fails(&["403", "the verb get on nodes/pods", "do not grant nodes/proxy", "3 pods of before stay"])
        .await;
    poll.server.allow(true);
    poll.converges().await;
    poll.server.expire_token();
    poll.fails(&["401", "authentication.webhook.enabled"]).await;
    poll.server.rotate_token().unwrap();
    poll.converges().await;
    poll.server.trouble(Trouble::Down);
    poll.fails(&["cannot connect"]).await;
    poll.server.trouble(Trouble::Hangs);
    poll.fails(&["did not answer within 2s"]).await;
    poll.server.trouble(Trouble::None);
    poll.converges().await;
    let replaced = poll.server.change_ca().unwrap();
    let authorities = poll.dir.path().join("ca.crt");
    poll.fails(&["no valid certificate", "kubelet_ca", authorities.to_str().unwrap()]).await;
    poll.server.publish_ca(&replaced).unwrap();
    poll.converges().await;
}

#[tokio::test]
async fn on_the_loopback_address_the_certificate_is_for_the_node() {
    let mut poll = Poll::new("node-2");
    poll.fails(&["no valid certificate", "no pods have been read yet"]).await;
}
