//! Where findings go: standard output, a file, metrics, HTTP.
//!
//! [`Sinks`] renders a finding once and hands it to one queue and one writer thread per output, so that a
//! pipe nobody reads or a full disk delays neither detection nor the other output. A queue is bounded in
//! bytes, with a budget of its own for what must not be lost; [`queue`] says what happens when it is full.
//!
//! Only [`json`] knows the wire format. What the application tells about the agent itself is plain data, in
//! [`report`].

pub mod file;
pub mod http;
pub mod json;
pub mod live;
pub mod local;
pub mod memory;
pub mod metrics;
mod names;
mod process;
pub mod queue;
pub mod report;
mod respond;
#[cfg(test)]
mod sample;
mod sinks;
pub(crate) mod text;
mod writer;

pub use metrics::Metrics;
pub(crate) use names::error as error_name;
pub use report::{
    AgentEvent, AgentState, ExceptionState, ProbeReport, Readiness, SourceReport, Status, Suppressed,
    TableReport,
};
pub use report::{WallClock, boot_now};
pub use sinks::{Drained, Form, Options, SinkError, Sinks};

/// An output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SinkKind {
    /// Standard output.
    Stdout,
    /// The output file.
    File,
}

impl SinkKind {
    /// Every output.
    pub const ALL: &'static [Self] = &[Self::Stdout, Self::File];

    /// The name used in metrics and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::File => "file",
        }
    }
}
