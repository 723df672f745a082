//! The body of `/status`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::process::Extents;
use super::rules::{ExceptionBody, exceptions};
use super::{Health, Probe, STATUS_SCHEMA};
use crate::event::{Extent, Reference};
use crate::sink::metrics::Loss;
use crate::sink::report::{Readiness, SourceReport, Status, TableReport, WallClock};

#[derive(Serialize)]
pub(super) struct StatusBody<'a> {
    schema: &'static str,
    version: &'static str,
    kernel: &'a str,
    node: &'a str,
    uptime_seconds: f64,
    ready: bool,
    reason: Option<&'a str>,
    event_loop: EventLoop,
    reference: ReferenceView,
    probes: Vec<Probe<'a>>,
    sources: Vec<Source<'a>>,
    exceptions: Vec<ExceptionBody<'a>>,
    losses: Vec<LossView<'a>>,
    tables: Vec<Table>,
}

/// The user namespace that counts as the host's.
#[derive(Serialize)]
struct ReferenceView {
    inode: u32,
    level: u32,
    /// Kubelet's, or the configured process.
    pid: Option<u32>,
    uid_map: Extents,
    gid_map: Extents,
}

#[derive(Serialize)]
struct EventLoop {
    alive: bool,
    heartbeat_age_seconds: f64,
}

#[derive(Serialize)]
struct Source<'a> {
    name: &'static str,
    up: bool,
    error: Option<&'a str>,
    detail: Option<&'a str>,
    last_success: Option<String>,
}

#[derive(Serialize)]
struct LossView<'a> {
    metric: &'a str,
    labels: BTreeMap<&'a str, &'a str>,
    count: u64,
}

#[derive(Serialize)]
struct Table {
    name: &'static str,
    used: u64,
    capacity: Option<u64>,
}

impl<'a> StatusBody<'a> {
    pub(super) fn new(status: &'a Status, losses: &'a [Loss], health: Health, clock: WallClock) -> Self {
        let reason = match &status.readiness {
            Readiness::NotReady { reason } => Some(reason.as_str()),
            Readiness::Ready => None,
        };
        Self {
            schema: STATUS_SCHEMA,
            version: status.version,
            kernel: &status.kernel,
            node: &status.node,
            uptime_seconds: health.uptime,
            ready: reason.is_none(),
            reason,
            event_loop: EventLoop { alive: health.alive, heartbeat_age_seconds: health.heartbeat_age },
            reference: ReferenceView::new(&status.reference),
            probes: status.probes.iter().map(Probe::new).collect(),
            sources: status.sources.iter().map(|source| Source::new(source, clock)).collect(),
            exceptions: exceptions(&status.exceptions, clock),
            losses: losses.iter().map(LossView::new).collect(),
            tables: status.tables.iter().map(Table::new).collect(),
        }
    }
}

impl ReferenceView {
    fn new((reference, pid): &(Reference, Option<u32>)) -> Self {
        let map = |extents: &[Extent]| extents.iter().map(Into::into).collect();
        let (uid_map, gid_map) = (map(&reference.uid_map), map(&reference.gid_map));
        Self { inode: reference.inum, level: reference.level, pid: *pid, uid_map, gid_map }
    }
}

impl<'a> Source<'a> {
    fn new(source: &'a SourceReport, clock: WallClock) -> Self {
        Self {
            name: source.name,
            up: source.up,
            error: source.error.as_deref(),
            detail: source.detail.as_deref(),
            last_success: source.last_success.map(|time| clock.rfc3339(time)),
        }
    }
}

impl<'a> LossView<'a> {
    fn new(loss: &'a Loss) -> Self {
        let labels = loss.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        Self { metric: &loss.metric, labels: labels.collect(), count: loss.count }
    }
}

impl Table {
    fn new(table: &TableReport) -> Self {
        let capacity = (table.capacity != 0).then_some(table.capacity);
        Self { name: table.name, used: table.used, capacity }
    }
}
