//! What the endpoints tell, kept up to date by the application.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use crate::sink::json::Health;
use crate::sink::metrics::Metrics;
use crate::sink::report::Status;

/// Age of a heartbeat at which the event loop counts as stuck.
const STUCK: Duration = Duration::from_secs(10);

/// Status, metrics and the event loop's heartbeat.
#[derive(Debug)]
pub struct StatusSource {
    metrics: Arc<Metrics>,
    status: RwLock<Status>,
    started: Instant,
    /// Milliseconds after `started`.
    heartbeat: AtomicU64,
    stuck: Duration,
}

impl StatusSource {
    /// The event loop counts as alive from now on.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, status: Status) -> Self {
        let started = Instant::now();
        Self { metrics, status: RwLock::new(status), started, heartbeat: AtomicU64::new(0), stuck: STUCK }
    }

    /// The event loop is alive. To be called in every turn of it that a timer causes.
    pub fn beat(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heartbeat.store(now, Ordering::Relaxed);
    }

    /// Changes the status.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.write().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn status(&self) -> RwLockReadGuard<'_, Status> {
        self.status.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(super) fn health(&self) -> Health {
        let uptime = self.started.elapsed();
        let age = uptime.saturating_sub(Duration::from_millis(self.heartbeat.load(Ordering::Relaxed)));
        Health { uptime: uptime.as_secs_f64(), heartbeat_age: age.as_secs_f64(), alive: age < self.stuck }
    }

    #[cfg(test)]
    pub(super) fn with_limit(mut self, stuck: Duration) -> Self {
        self.stuck = stuck;
        self
    }
}
