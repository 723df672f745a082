//! What the application tells about the agent itself: plain data, rendered elsewhere.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::core::ExceptionView;
use crate::core::finding::{ContainerRef, PodRef, Severity};
use crate::event::{Nanos, Reference};

/// The time since boot, sleep included: the clock that the kernel's records carry.
#[must_use]
pub fn boot_now() -> Nanos {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    Nanos(
        seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or_default()),
    )
}

/// Where the node's boot lies in civil time. A value, so that what is written depends on what is given only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WallClock {
    /// Nanoseconds of Unix time at which `CLOCK_BOOTTIME` was zero.
    pub boot: u64,
}

impl WallClock {
    /// Reads both clocks. To be read again from time to time: civil time is corrected while a node runs.
    #[must_use]
    pub fn now() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix = u64::try_from(unix.as_nanos()).unwrap_or(u64::MAX);
        Self { boot: unix.saturating_sub(boot_now().0) }
    }

    /// Civil time, UTC.
    #[must_use]
    pub fn at(self, time: Nanos) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.boot) + Duration::from_nanos(time.0)
    }

    /// The moment of civil time on the kernel's clock; zero if that was before the boot.
    #[must_use]
    pub fn nanos(self, time: SystemTime) -> Nanos {
        let unix = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        Nanos(u64::try_from(unix.saturating_sub(self.boot.into())).unwrap_or(u64::MAX))
    }

    /// As RFC 3339 with nanoseconds, UTC.
    #[must_use]
    pub fn rfc3339(self, time: Nanos) -> String {
        humantime::format_rfc3339_nanos(self.at(time)).to_string()
    }
}

/// A state of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentState {
    /// Started; not watching yet.
    Starting,
    /// Watching.
    Ready,
    /// Watching with less than was planned.
    Degraded,
    /// On its way out.
    Stopping,
}

impl AgentState {
    /// The name used in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Stopping => "stopping",
        }
    }
}

/// A hook's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeReport {
    /// The hook.
    pub hook: &'static str,
    /// The mechanism chosen, if any.
    pub mechanism: Option<&'static str>,
    /// `active`, `degraded` or `failed`.
    pub state: &'static str,
    /// Why it is not active.
    pub reason: Option<String>,
    /// What is lost without it; told where it is not active.
    pub without: &'static str,
}

impl ProbeReport {
    /// Every state.
    pub const STATES: &'static [&'static str] = &["active", "degraded", "failed"];

    /// Whether it works.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.state == "active"
    }
}

/// Something the agent tells about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentEvent {
    /// When.
    pub time: Nanos,
    /// Its state.
    pub state: AgentState,
    /// Why, where the state needs a reason.
    pub reason: Option<String>,
    /// Its version.
    pub version: &'static str,
    /// Where it answers HTTP: the real address, also if port 0 was asked for.
    pub listen: Option<SocketAddr>,
    /// Its hooks.
    pub probes: Vec<ProbeReport>,
}

/// Findings, lines or records that were not told one by one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suppressed {
    /// When this was noticed.
    pub time: Nanos,
    /// Since when it is counted.
    pub since: Nanos,
    /// Why they were not told, such as `queue_full`.
    pub reason: &'static str,
    /// The kind of record that a container may send no more of for now; `None`: lines.
    pub kind: Option<&'static str>,
    /// The output that lacks them; `None`: every one.
    pub sink: Option<&'static str>,
    /// Their severity, if they have one.
    pub severity: Option<Severity>,
    /// How many.
    pub count: u64,
    /// The container whose records they are.
    pub container: Option<ContainerRef>,
    /// Its pod.
    pub pod: Option<PodRef>,
}

/// Whether the agent sees everything that it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Not yet, or not any more.
    NotReady {
        /// What is missing.
        reason: String,
    },
    /// The first sweep is done and what ran before has been adopted.
    Ready,
}

/// A source of facts, such as kubelet's records or the pods file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceReport {
    /// Its name.
    pub name: &'static str,
    /// Whether its last reading went well.
    pub up: bool,
    /// Why not.
    pub error: Option<String>,
    /// What else is worth knowing of it while it is up, such as which runtime it is.
    pub detail: Option<String>,
    /// When it last went well.
    pub last_success: Option<Nanos>,
}

/// What an exception of the rules file is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExceptionState {
    /// It has withheld something since the agent started.
    Matched,
    /// It has not.
    Unmatched,
    /// It withholds nothing any more.
    Expired,
}

impl ExceptionState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Matched, Self::Unmatched, Self::Expired];

    /// That of this exception.
    #[must_use]
    pub fn of(exception: &ExceptionView) -> Self {
        match (exception.expired, exception.matched) {
            (true, _) => Self::Expired,
            (false, 0) => Self::Unmatched,
            (false, _) => Self::Matched,
        }
    }

    /// The name used in metrics and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Matched => "matched",
            Self::Unmatched => "unmatched",
            Self::Expired => "expired",
        }
    }
}

/// A bounded table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableReport {
    /// Its name.
    pub name: &'static str,
    /// Rows in use.
    pub used: u64,
    /// Rows it may have; 0: as many as there are.
    pub capacity: u64,
}

/// What `/status` and `/readyz` tell. Losses are not in it: they are taken from the metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The agent's version.
    pub version: &'static str,
    /// The kernel's release.
    pub kernel: String,
    /// The node's name.
    pub node: String,
    /// Whether it is ready.
    pub readiness: Readiness,
    /// The user namespace that counts as the host's, and the process that it was taken from.
    pub reference: (Reference, Option<u32>),
    /// Its hooks.
    pub probes: Vec<ProbeReport>,
    /// Its sources.
    pub sources: Vec<SourceReport>,
    /// Exceptions of its rules file.
    pub exceptions: Vec<ExceptionView>,
    /// Its tables.
    pub tables: Vec<TableReport>,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            kernel: String::new(),
            node: String::new(),
            readiness: Readiness::NotReady { reason: "starting".to_owned() },
            reference: (Reference::default(), None),
            probes: Vec::new(),
            sources: Vec::new(),
            exceptions: Vec::new(),
            tables: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_to_the_nanosecond() {
        let clock = WallClock { boot: 1_767_225_599_999_999_999 };
        assert_eq!(clock.rfc3339(Nanos(0)), "2025-12-31T23:59:59.999999999Z");
        assert_eq!(clock.rfc3339(Nanos(1)), "2026-01-01T00:00:00.000000000Z");
        assert_eq!(clock.rfc3339(Nanos(59 * 86_400_000_000_000 + 1)), "2026-03-01T00:00:00.000000000Z");
        let leap = WallClock { boot: 1_709_164_800_000_000_000 };
        assert_eq!(leap.rfc3339(Nanos(500)), "2024-02-29T00:00:00.000000500Z");
    }

    #[test]
    fn absurd_times_have_a_text_too() {
        assert!(WallClock { boot: u64::MAX }.rfc3339(Nanos(u64::MAX)).starts_with("3139-"));
        assert_eq!(WallClock::default().rfc3339(Nanos(0)), "1970-01-01T00:00:00.000000000Z");
    }

    #[test]
    fn the_clocks_agree() {
        let apart = WallClock::now().at(boot_now()).duration_since(SystemTime::now());
        let apart = apart.unwrap_or_else(|earlier| earlier.duration());
        assert!(apart < Duration::from_secs(1), "{apart:?}");
    }
}
