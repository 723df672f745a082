//! State of each hook.

use userns_common::kind::Hook;

use super::plan::Mechanism;

/// State of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Attached.
    Active,
    /// This kernel cannot have it; the agent works without.
    Degraded {
        /// Why.
        reason: String,
    },
    /// The kernel refused what it should have accepted.
    Failed {
        /// Its words.
        error: String,
    },
}

impl State {
    /// The name used in metrics and JSON.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Degraded { .. } => "degraded",
            Self::Failed { .. } => "failed",
        }
    }

    /// Why it is not active.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Active => None,
            Self::Degraded { reason } => Some(reason),
            Self::Failed { error } => Some(error),
        }
    }
}

/// A hook and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The hook.
    pub hook: Hook,
    /// The mechanism chosen, if any.
    pub mechanism: Option<Mechanism>,
    /// Its state.
    pub state: State,
    /// Why better mechanisms are not used.
    pub passed_over: Vec<String>,
    /// What is lost without it.
    pub without: &'static str,
}
