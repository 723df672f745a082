//! The container runtime's own view of pods, by its CRI socket (containerd, CRI-O): who a pod is, its containers with
//! their images, and which user namespace kubelet asked for.
//!
//! Only questions are asked that change nothing. Changes are learnt from the runtime's events where it has them, and
//! by asking for a container whose cgroup has appeared; everything is listed again at an interval, so that neither a
//! lost event nor a runtime that stopped sending them matters for long. What a status says does not change, so each
//! sandbox and container is asked for once. Whatever happens to the connection, pods known stay in force.

mod client;
mod proto;
mod sandbox;
mod session;
mod table;
#[cfg(test)]
mod tests;
mod wanted;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::client::{Client, CriError, Version};
use self::session::Session;
use self::table::Table;
use super::outage::Backoff;
use super::{SourceHealth, SourceState};
use crate::event::Fact;

/// Where runtimes have their sockets: containerd, CRI-O, k3s and RKE2, k0s, MicroK8s, cri-dockerd.
pub const SOCKETS: &[&str] = &[
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/cri-dockerd.sock",
    "/var/run/containerd/containerd.sock",
    "/var/run/crio/crio.sock",
];

/// The known places of sockets ([`SOCKETS`]) below a host's root directory.
#[must_use]
pub fn sockets(host_root: &Path) -> Vec<PathBuf> {
    SOCKETS.iter().map(|path| host_root.join(path.trim_start_matches('/'))).collect()
}

/// Delays and time limits.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Limit of each call.
    pub call: Duration,
    /// Time between two full lists.
    pub list: Duration,
    /// First and longest time between two attempts to connect.
    pub retry: (Duration, Duration),
}

impl Default for Times {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(5),
            list: Duration::from_secs(10),
            retry: (Duration::from_millis(200), Duration::from_secs(10)),
        }
    }
}

/// Containers whose ids wait until the source takes note of them.
const NUDGES: usize = 256;

/// Tells the source of containers that the kernel has shown. Never waits.
#[derive(Clone, Debug)]
pub struct CriNudge {
    ids: mpsc::Sender<String>,
    /// How many did not fit: all are then listed.
    lost: Arc<AtomicU64>,
}

impl CriNudge {
    /// A container, or a sandbox's own, of this id has appeared.
    pub fn appeared(&self, id: &str) {
        if self.ids.try_send(id.to_owned()).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Asks a runtime and keeps asking it.
#[derive(Debug)]
pub struct CriWatcher {
    /// Where to connect: the first that answers.
    sockets: Vec<PathBuf>,
    times: Times,
    nudges: mpsc::Receiver<String>,
    lost: Arc<AtomicU64>,
    table: Table,
    facts: mpsc::Sender<Vec<Fact>>,
    errors: u64,
    health: watch::Sender<SourceHealth>,
}

impl CriWatcher {
    /// Will connect to the first of `sockets` that answers, and send what it learns to `facts`.
    #[must_use]
    pub fn new(
        sockets: Vec<PathBuf>,
        times: Times,
        facts: mpsc::Sender<Vec<Fact>>,
    ) -> (Self, CriNudge, watch::Receiver<SourceHealth>) {
        let (ids, nudges) = mpsc::channel(NUDGES);
        let (health, receiver) = watch::channel(SourceHealth::default());
        let lost = Arc::new(AtomicU64::new(0));
        let nudge = CriNudge { ids, lost: Arc::clone(&lost) };
        let table = Table::default();
        (Self { sockets, times, nudges, lost, table, facts, errors: 0, health }, nudge, receiver)
    }

    /// Connects, listens, and connects again whenever that ends, until nobody takes its facts any more.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(self.times.retry.0, self.times.retry.1);
        while !self.facts.is_closed() {
            let started = Instant::now();
            let ended = match self.connect().await {
                Ok((client, version)) => Session::new(&mut self, client, version).run().await,
                Err(error) => Err(error),
            };
            let Err(error) = ended else { return };
            self.failed(&error);
            // one that lasted was good: what ended it may be a restart
            backoff.held(started.elapsed());
            backoff.pause(None);
            let facts = self.facts.clone();
            tokio::select! {
                () = backoff.over() => {}
                () = facts.closed() => return,
            }
        }
    }

    /// The first runtime that answers; else why the first that could not be asked did not.
    async fn connect(&self) -> Result<(Client, Version), CriError> {
        let mut first = None;
        // whatever else is wrong with a socket, connecting to it tells
        for path in self.sockets.iter().filter(|path| !matches!(path.try_exists(), Ok(false))) {
            match Client::connect(path, self.times.call).await {
                Ok(connected) => return Ok(connected),
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        Err(first.unwrap_or_else(|| CriError::Missing { paths: self.sockets.clone() }))
    }

    /// Takes note that nothing is learnt for now.
    fn failed(&mut self, error: &CriError) {
        let known = self.table.len();
        let missing = matches!(error, CriError::Missing { .. }) && known == 0;
        self.errors += u64::from(!missing);
        let state = if missing { SourceState::Missing } else { SourceState::Failing };
        let kept = if known > 0 { format!("; {known} sandboxes known stay in force") } else { String::new() };
        self.publish(state, format!("{error}{kept}"));
    }

    fn publish(&self, state: SourceState, detail: String) {
        let health = SourceHealth { state, detail, records: self.table.len(), errors: self.errors };
        if self.health.borrow().state != state {
            if state == SourceState::Failing {
                tracing::warn!("container runtime: {}", health.detail);
            } else {
                tracing::info!("container runtime: {}", health.detail);
            }
        }
        self.health.send_if_modified(|current| {
            let changed = *current != health;
            *current = health;
            changed
        });
    }
}
