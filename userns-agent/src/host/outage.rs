//! How a source behind a network is doing: since when it fails, and when to ask again.

use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::pod_object::{PodFault, ReadPod};
use super::{SourceHealth, SourceState};
use crate::event::PodSpec;

/// Longest that another side may have us wait.
const MOST_ASKED: Duration = Duration::from_secs(60);

/// Tells how a source is doing.
#[derive(Debug)]
pub(super) struct Outage {
    /// For the log.
    name: &'static str,
    since: Option<SystemTime>,
    /// Whether pods were ever read.
    has_read: bool,
    health: SourceHealth,
    sender: watch::Sender<SourceHealth>,
}

impl Outage {
    pub(super) fn new(name: &'static str) -> (Self, watch::Receiver<SourceHealth>) {
        let health = SourceHealth { detail: "it has not answered yet".to_owned(), ..SourceHealth::default() };
        let (sender, receiver) = watch::channel(health.clone());
        (Self { name, since: None, has_read: false, health, sender }, receiver)
    }

    /// It answers, with this many pods.
    pub(super) fn over(&mut self, records: usize) {
        if let Some(since) = self.since.take() {
            tracing::info!("{}: works again, after failing since {}", self.name, at(since));
        }
        self.has_read = true;
        self.records(records);
        (self.health.state, self.health.detail) = (SourceState::Ok, String::new());
        self.publish();
    }

    /// It tells all pods there are, and has told this many.
    pub(super) fn reading(&mut self, pods: usize) {
        if self.health.state == SourceState::Missing {
            self.health.detail = format!("its pods are being read for the first time: {pods} so far");
            self.publish();
        }
    }

    /// It has this many pods now.
    pub(super) fn records(&mut self, records: usize) {
        self.health.records = records;
        self.publish();
    }

    /// Something went wrong that is not worth calling it failed.
    pub(super) fn error(&mut self) {
        self.health.errors += 1;
        self.publish();
    }

    /// The pod that was read, if it can be used; what of it is lost is counted.
    pub(super) fn usable(&mut self, pod: Result<ReadPod, PodFault>) -> Option<PodSpec> {
        match pod {
            Ok(pod) => {
                if pod.cut {
                    self.error();
                }
                Some(pod.spec)
            }
            Err(fault) => {
                tracing::debug!("{}: passed over a pod: {fault}", self.name);
                self.error();
                None
            }
        }
    }

    /// It fails.
    pub(super) fn failed(&mut self, error: &str) {
        let since = *self.since.get_or_insert_with(|| {
            tracing::warn!("{}: {error}", self.name);
            SystemTime::now()
        });
        let kept = match self.health.records {
            _ if !self.has_read => "no pods have been read yet".to_owned(),
            records => format!("{records} pods of before stay in force"),
        };
        self.health.state = SourceState::Failing;
        self.health.detail = format!("{error}; failing since {}, {kept}", at(since));
        self.health.errors += 1;
        self.publish();
    }

    fn publish(&self) {
        self.sender.send_if_modified(|current| {
            let changed = *current != self.health;
            current.clone_from(&self.health);
            changed
        });
    }
}

fn at(time: SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(time)
}

/// Pauses that grow, with jitter, so that nodes that failed together do not come back together.
#[derive(Debug)]
pub(super) struct Backoff {
    least: Duration,
    most: Duration,
    next: Duration,
    until: Option<Instant>,
}

impl Backoff {
    pub(super) fn new(least: Duration, most: Duration) -> Self {
        Self { least, most, next: least, until: None }
    }

    /// Begins a pause, of at least `asked`, which is what the other side wants.
    pub(super) fn pause(&mut self, asked: Option<Duration>) {
        let half = self.next / 2;
        let pause = half + half.mul_f64(fastrand::f64());
        let pause = pause.max(asked.unwrap_or_default().min(MOST_ASKED));
        self.until = Some(Instant::now() + pause);
        self.next = (self.next * 2).min(self.most);
    }

    /// What was tried held for `time`: if that is long, the next pause is short again.
    pub(super) fn held(&mut self, time: Duration) {
        if time >= self.most {
            self.next = self.least;
        }
    }

    /// Waits for the end of the pause. Nothing is lost if the future is dropped before it is ready.
    pub(super) async fn over(&mut self) {
        if let Some(until) = self.until {
            sleep_until(until).await;
            self.until = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pauses_grow_to_the_most_and_shrink_after_a_long_success() {
        let most = Duration::from_millis(80);
        let mut backoff = Backoff::new(Duration::from_millis(10), most);
        for (round, least) in [5, 10, 20, 40, 40, 5].into_iter().enumerate() {
            if round == 5 {
                backoff.held(most / 2);
                assert_eq!(backoff.next, most);
                backoff.held(most);
                assert_eq!(backoff.next, backoff.least);
            }
            let before = Instant::now();
            backoff.pause(None);
            backoff.over().await;
            assert!(before.elapsed() >= Duration::from_millis(least), "{round}: {:?}", before.elapsed());
        }
    }

    #[tokio::test]
    async fn the_other_side_may_ask_for_more_but_not_for_ever() {
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
        let pause = |backoff: &Backoff| backoff.until.unwrap().duration_since(Instant::now());
        backoff.pause(Some(Duration::from_secs(30)));
        assert!(pause(&backoff) > Duration::from_secs(29));
        backoff.pause(Some(Duration::from_secs(86_400)));
        assert!(pause(&backoff) <= MOST_ASKED);
    }

    #[test]
    fn an_outage_says_since_when_and_what_stays() {
        let (mut outage, health) = Outage::new("api");
        assert_eq!(health.borrow().state, SourceState::Missing);
        outage.failed("no route");
        let first = health.borrow().detail.clone();
        assert!(
            first.starts_with("no route; failing since 2") && first.ends_with("no pods have been read yet")
        );
        outage.over(3);
        assert_eq!((health.borrow().state, health.borrow().records), (SourceState::Ok, 3));
        outage.failed("no route");
        let since = outage.since;
        outage.failed("still none");
        assert_eq!(outage.since, since);
        let now = health.borrow().clone();
        assert!(now.detail.ends_with("3 pods of before stay in force"), "{}", now.detail);
        assert_eq!((now.state, now.errors, now.records), (SourceState::Failing, 3, 3));
    }
}
