//! A watcher beside a server, and what the agent would know from it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use userns_agent::event::{Fact, PodSource, PodSpec};
use userns_agent::host::api::{Access, ApiWatcher, Timing};
use userns_agent::host::{Patience, SourceHealth, SourceState};

use crate::apiserver::{ApiServer, NODE, pod};

/// How long anything may take on a busy machine.
const LONG: Duration = Duration::from_secs(30);

pub(crate) const PATIENCE: Patience =
    Patience { connect: Duration::from_secs(2), answer: Duration::from_secs(2) };

/// The times of production, some hundred times shorter.
pub(crate) const TIMING: Timing = Timing {
    request: PATIENCE,
    silence: Duration::from_millis(600),
    watch: Duration::from_secs(60),
    least_pause: Duration::from_millis(10),
    most_pause: Duration::from_millis(100),
};

/// A pod's number, that of its last change, and what else a spec says of it.
pub(crate) fn changed(number: u32, change: u32) -> Value {
    let mut pod = pod(number);
    pod["metadata"]["labels"]["change"] = change.to_string().into();
    pod
}

pub(crate) fn uid(number: u32) -> String {
    pod(number)["metadata"]["uid"].as_str().unwrap().to_owned()
}

/// What a source has told: by UID, the name and the number of the last change.
pub(crate) type Known = BTreeMap<String, (String, String)>;

pub(crate) fn learn(known: &mut Known, source: PodSource, fact: Fact) {
    let row = |spec: &PodSpec| {
        let change = spec.labels.get("change").cloned().unwrap_or_default();
        (spec.uid.to_string(), (spec.name.clone(), change))
    };
    if let Fact::Pods(from, specs) = fact {
        assert_eq!(from, source);
        *known = specs.iter().map(row).collect();
    } else if let Fact::Pod(from, spec) = fact {
        assert_eq!(from, source);
        known.extend([row(&spec)]);
    } else if let Fact::PodGone(from, uid) = fact {
        assert_eq!(from, source);
        known.remove(uid.as_str());
    } else {
        panic!("{fact:?}");
    }
}

/// What a server has.
pub(crate) fn served(server: &ApiServer) -> Known {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let row = |pod: &Value| {
        let metadata = &pod["metadata"];
        (text(&metadata["uid"]), (text(&metadata["name"]), text(&metadata["labels"]["change"])))
    };
    server.pods(row).into_iter().collect()
}

pub(crate) struct Bench {
    pub(crate) server: ApiServer,
    pub(crate) dir: TempDir,
    /// What the watcher tells, on a task of its own as in the agent.
    facts: mpsc::Receiver<Vec<Fact>>,
    pub(crate) known: Known,
    health: watch::Receiver<SourceHealth>,
}

pub(crate) fn access(dir: &Path, server: &ApiServer) -> Access {
    let (host, port) = (server.address().ip().to_string(), server.address().port().to_string());
    Access::in_cluster(dir, Some(&host), Some(&port)).unwrap()
}

impl Bench {
    /// A server with pods 1 to `pods`, and a watcher that has not asked yet.
    pub(crate) fn new(pods: u32, timing: Timing) -> Self {
        Self::with(pods, timing, access)
    }

    /// The same, with another way to it.
    pub(crate) fn with(pods: u32, timing: Timing, access: impl Fn(&Path, &ApiServer) -> Access) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = ApiServer::start(dir.path()).unwrap();
        (1..=pods).for_each(|number| server.put(pod(number)));
        let (mut watcher, health) = ApiWatcher::new(access(dir.path(), &server), NODE, timing);
        let (sender, facts) = mpsc::channel(1);
        tokio::spawn(async move { while sender.send(watcher.next().await).await.is_ok() {} });
        Self { server, dir, facts, known: Known::new(), health }
    }

    /// The same, once the watcher has told all of them.
    pub(crate) async fn settled(pods: u32, timing: Timing) -> Self {
        let mut bench = Self::new(pods, timing);
        bench.converges().await;
        bench
    }

    pub(crate) fn health(&self) -> SourceHealth {
        self.health.borrow().clone()
    }

    /// Takes what the watcher tells until `done`.
    pub(crate) async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !done(self) {
            assert!(
                began.elapsed() < LONG,
                "never {what}: {:?}, requests {:#?}",
                self.health(),
                self.requests()
            );
            self.take(Duration::from_millis(10)).await;
        }
    }

    /// Takes what the watcher tells next, if it does so within this time.
    pub(crate) async fn take(&mut self, within: Duration) {
        if let Ok(Some(facts)) = timeout(within, self.facts.recv()).await {
            facts.into_iter().for_each(|fact| learn(&mut self.known, PodSource::Api, fact));
        }
    }

    /// Hands on what the watcher tells next.
    pub(crate) async fn tell(&mut self, to: &mut impl FnMut(Fact)) {
        let facts = timeout(LONG, self.facts.recv()).await.expect("nothing is told any more");
        let facts = facts.expect("the watcher has ended");
        facts.into_iter().for_each(to);
    }

    pub(crate) async fn converges(&mut self) {
        let same = |bench: &Self| {
            bench.health().state == SourceState::Ok
                && bench.health().records == bench.known.len()
                && bench.known == served(&bench.server)
        };
        self.until("converged", same).await;
    }

    /// Waits until the source fails with a detail that has all of `parts`, and everything known is as before.
    pub(crate) async fn fails(&mut self, parts: &[&str]) {
        let before = self.known.clone();
        let says = |bench: &Self| {
            let health = bench.health();
            health.state == SourceState::Failing && parts.iter().all(|part| health.detail.contains(part))
        };
        self.until(&format!("failed with {parts:?}"), says).await;
        assert_eq!(self.known, before, "what was known did not stay in force");
        let health = self.health();
        assert!(health.errors > 0 && health.detail.contains("failing since 20"), "{health:?}");
        if !before.is_empty() {
            let stays = format!("{} pods of before stay in force", before.len());
            assert!(health.detail.ends_with(&stays), "{}", health.detail);
        }
    }

    /// Changes what the server has: one pod more, one changed, one gone.
    pub(crate) fn change(&self) {
        self.server.put(changed(1001, 1));
        self.server.put(changed(2, 1));
        self.server.delete(&uid(1));
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        let mut requests = self.server.requests();
        let begin = requests.len().saturating_sub(12);
        requests.drain(..begin);
        requests
    }
}
