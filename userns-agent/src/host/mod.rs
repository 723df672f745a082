//! What is read from the host, besides the kernel's hooks: procfs, cgroupfs, kubelet's records, the pods file,
//! the API server, kubelet's `/pods`.
//!
//! Every root directory is injected. Nothing here knows the eBPF side, the core or the outputs; what is learnt
//! leaves as [`crate::event::Fact`]s.

pub mod api;
pub mod cgroupfs;
pub mod cri;
mod https;
pub mod kubelet;
pub mod kubelet_api;
mod outage;
mod pod_object;
pub mod pods_file;
pub mod proc;
pub mod reference;
pub mod runtimes;
pub(crate) mod watched_file;

pub use https::{Patience, server_url};

/// How a source of facts is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceHealth {
    /// In a word.
    pub state: SourceState,
    /// In a sentence: what is wrong and where; empty if nothing is.
    pub detail: String,
    /// Records known.
    pub records: usize,
    /// Failures so far, each attempt counted.
    pub errors: u64,
}

/// How a source of facts is doing, in a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceState {
    /// Everything there is has been read.
    Ok,
    /// There is nothing to read from yet.
    #[default]
    Missing,
    /// Something could not be read.
    Failing,
}

impl SourceState {
    /// The name used in metrics and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Missing => "missing",
            Self::Failing => "failing",
        }
    }
}

/// A message short enough for a status page: parsers quote what they found, however long, and as it stands.
pub(crate) fn brief(message: &str) -> String {
    const MOST: usize = 300;
    let mut short = String::new();
    for character in message.chars().take(MOST) {
        if character.is_control() {
            short.extend(character.escape_default());
        } else {
            short.push(character);
        }
    }
    if message.chars().nth(MOST).is_some() {
        short.push('…');
    }
    short
}
