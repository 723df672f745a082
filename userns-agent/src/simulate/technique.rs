//! What a technique is, and what may become of it.

use serde_json::{Value, json};

use super::place::Ground;
use crate::core::rules::{self, RuleId};
use crate::sink::error_name;

/// One way to the host that is rehearsed.
#[derive(Debug)]
pub struct Technique {
    /// Name for machines: lower case, with hyphens.
    pub name: &'static str,
    /// Name for people.
    pub title: &'static str,
    /// What is known to go this way: tools and vulnerabilities; empty if nothing by name.
    pub known: &'static str,
    /// ATT&CK technique and its name; the version is [`rules::ATTACK_VERSION`].
    pub attack: (&'static str, &'static str),
    /// What is done, in one sentence.
    pub attempts: &'static str,
    /// Whether a user namespace stops it.
    pub stopped: Stopped,
    /// What should happen in a pod with a user namespace of its own.
    pub with_userns: &'static str,
    /// What should happen in one without.
    pub without_userns: &'static str,
    /// Who sees it.
    pub detection: Detection,
    /// Whether it may be done where nothing stops it: it then still changes nothing that outlives it.
    pub harmless: bool,
    /// Does it. Runs in a process of its own, which ends afterwards.
    pub(super) run: fn(&Ground) -> Attempt,
}

/// Whether a user namespace stops a technique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stopped {
    /// Always: root in the pod has neither the host's ids nor capabilities over the host.
    Yes,
    /// Only under the conditions that the technique's own words name.
    Partly,
    /// No: the kernel allows it to whoever has a user namespace.
    No,
}

impl Stopped {
    /// As printed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Partly => "partly",
            Self::No => "no",
        }
    }
}

/// Who sees a technique.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// This rule, by any of these signs.
    By(RuleId, &'static [Sign]),
    /// This rule, but only under a condition, given in words.
    Sometimes(RuleId, &'static [Sign], &'static str),
    /// Nobody, for this reason.
    Nobody(&'static str),
}

impl Detection {
    /// The rule, if there is one.
    #[must_use]
    pub const fn rule(&self) -> Option<RuleId> {
        match self {
            Self::By(rule, _) | Self::Sometimes(rule, ..) => Some(*rule),
            Self::Nobody(_) => None,
        }
    }

    /// By what its finding is told from those about other techniques.
    #[must_use]
    pub const fn signs(&self) -> &'static [Sign] {
        match self {
            Self::By(_, signs) | Self::Sometimes(_, signs, _) => signs,
            Self::Nobody(_) => &[],
        }
    }

    /// Why nobody sees it, or when only.
    #[must_use]
    pub const fn reservation(&self) -> Option<&'static str> {
        match self {
            Self::By(..) => None,
            Self::Sometimes(.., when) => Some(when),
            Self::Nobody(why) => Some(why),
        }
    }

    /// Whether a technique of which this became leaves a sign.
    #[must_use]
    pub(super) fn is_left_by(&self, outcome: &Outcome) -> bool {
        self.signs().iter().any(|sign| match sign {
            Sign::Capability(_) | Sign::During(..) | Sign::Call(_) => {
                matches!(outcome, Outcome::Denied { .. })
            }
            Sign::Done(_) => *outcome == Outcome::Allowed,
            Sign::Finding => matches!(outcome, Outcome::Denied { .. } | Outcome::Allowed),
        })
    }

    /// The rule's id as printed.
    pub(super) fn rule_id(&self) -> Option<&'static str> {
        self.rule().map(|rule| rules::rule(rule).id)
    }
}

/// What a finding lists when it tells of a technique.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// A capability that was denied, by its name.
    Capability(&'static str),
    /// The same, first in this system call: where others are denied it as well.
    During(&'static str, &'static str),
    /// A call that was refused, by its name.
    Call(&'static str),
    /// A call that succeeded, by its name.
    Done(&'static str),
    /// A finding is enough.
    Finding,
}

impl Sign {
    /// What is listed, if anything.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::Capability(name) | Self::During(name, _) | Self::Call(name) | Self::Done(name) => {
                Some(name)
            }
            Self::Finding => None,
        }
    }
}

/// What an attempt returns: `Ok` if it was allowed, and everything else as an outcome.
pub(super) type Attempt = Result<(), Outcome>;

/// What became of a technique.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was allowed.
    Allowed,
    /// The kernel refused a call.
    Denied {
        /// The error's number.
        errno: i32,
        /// The call.
        call: String,
    },
    /// Its process was killed by a signal: SIGSYS is seccomp's.
    Killed {
        /// The signal's number.
        signal: i32,
    },
    /// It did not end in time.
    TimedOut,
    /// The kernel or the container's root file system lacks what it needs.
    Unsupported(String),
    /// What it would reach for is not there to be reached.
    OutOfReach(String),
    /// It was not tried.
    Skipped(String),
}

impl Outcome {
    /// As printed in JSON.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied { .. } => "denied",
            Self::Killed { .. } => "killed",
            Self::TimedOut => "timed_out",
            Self::Unsupported(_) => "unsupported",
            Self::OutOfReach(_) => "out_of_reach",
            Self::Skipped(_) => "skipped",
        }
    }

    /// For people, in a few words.
    #[must_use]
    pub fn brief(&self) -> String {
        match self {
            Self::Denied { errno, .. } => format!("denied {}", errno_name(*errno)),
            Self::Killed { signal: libc::SIGSYS } => "killed by seccomp".to_owned(),
            Self::Killed { signal } => format!("killed by signal {signal}"),
            Self::TimedOut => "timed out".to_owned(),
            Self::OutOfReach(_) => "out of reach".to_owned(),
            Self::Allowed | Self::Unsupported(_) | Self::Skipped(_) => self.name().to_owned(),
        }
    }

    /// More about it; empty if there is nothing to say.
    #[must_use]
    pub fn detail(&self) -> &str {
        match self {
            Self::Denied { call: text, .. }
            | Self::Unsupported(text)
            | Self::OutOfReach(text)
            | Self::Skipped(text) => text,
            Self::Allowed | Self::Killed { .. } | Self::TimedOut => "",
        }
    }

    /// As printed in JSON.
    pub(super) fn to_json(&self) -> Value {
        let (errno, signal) = match self {
            Self::Denied { errno, .. } => (Some(errno_name(*errno)), None),
            Self::Killed { signal } => (None, Some(*signal)),
            Self::Allowed
            | Self::TimedOut
            | Self::Unsupported(_)
            | Self::OutOfReach(_)
            | Self::Skipped(_) => (None, None),
        };
        let detail = Some(self.detail()).filter(|detail| !detail.is_empty());
        json!({ "kind": self.name(), "errno": errno, "signal": signal, "detail": detail })
    }

    /// As bytes for a pipe; see [`Outcome::decode`].
    pub(super) fn encode(&self) -> Vec<u8> {
        let number = match self {
            Self::Denied { errno, .. } => *errno,
            Self::Killed { signal } => *signal,
            Self::Allowed
            | Self::TimedOut
            | Self::Unsupported(_)
            | Self::OutOfReach(_)
            | Self::Skipped(_) => 0,
        };
        format!("{} {number} {}", self.name(), self.detail()).into_bytes()
    }

    /// What [`Outcome::encode`] wrote; `None` if that was cut.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut parts = text.splitn(3, ' ');
        let (name, number) = (parts.next()?, parts.next()?.parse().ok()?);
        let detail = parts.next()?.to_owned();
        Some(match name {
            "allowed" => Self::Allowed,
            "denied" => Self::Denied { errno: number, call: detail },
            "killed" => Self::Killed { signal: number },
            "timed_out" => Self::TimedOut,
            "unsupported" => Self::Unsupported(detail),
            "out_of_reach" => Self::OutOfReach(detail),
            "skipped" => Self::Skipped(detail),
            _ => return None,
        })
    }
}

/// As a kernel developer writes it.
pub(super) fn errno_name(errno: i32) -> String {
    error_name(-errno).map_or_else(|| format!("errno {errno}"), str::to_owned)
}

/// What an outcome says about the promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It was stopped.
    AsPromised,
    /// It was allowed, and a user namespace does not promise to stop it.
    NotPromised,
    /// It was allowed, and a user namespace must stop it.
    Broken,
    /// It was not tried, so there is nothing to say.
    Unknown,
    /// There is no user namespace here: nothing was promised.
    NoPromise,
}

impl Verdict {
    /// Every verdict, the best first.
    pub const ALL: [Self; 5] =
        [Self::AsPromised, Self::NotPromised, Self::Unknown, Self::NoPromise, Self::Broken];

    /// As printed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AsPromised => "as promised",
            Self::NotPromised => "not promised",
            Self::Broken => "NOT as promised",
            Self::Unknown => "not tried",
            Self::NoPromise => "no promise here",
        }
    }

    /// Judges an outcome where there is a user namespace (`promised`) or none.
    #[must_use]
    pub fn of(outcome: &Outcome, stopped: Stopped, promised: bool) -> Self {
        match outcome {
            _ if !promised => Self::NoPromise,
            Outcome::Allowed if stopped == Stopped::Yes => Self::Broken,
            Outcome::Allowed => Self::NotPromised,
            Outcome::Denied { .. } | Outcome::Killed { .. } => Self::AsPromised,
            Outcome::TimedOut | Outcome::Unsupported(_) | Outcome::OutOfReach(_) | Outcome::Skipped(_) => {
                Self::Unknown
            }
        }
    }
}
