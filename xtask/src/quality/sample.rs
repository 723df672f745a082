//! What tests tell of detection, a line each among what else they print.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::lab::Agent;

const PREFIX: &str = "userns-quality: ";

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Sample {
    /// A technique that left what a rule looks for.
    Technique {
        /// Its name.
        name: String,
        /// The rule's id.
        rule: String,
        /// The container's runtime.
        runtime: String,
        /// Whether the finding came.
        seen: bool,
    },
    /// Ordinary software.
    Noise {
        /// Its name.
        name: String,
        /// The container's runtime.
        runtime: String,
        /// How long it ran.
        seconds: f64,
        /// Findings about it, by severity.
        findings: BTreeMap<String, u64>,
    },
    /// The time from what was done to the finding's line.
    Delay {
        /// The rule's id.
        rule: String,
        /// Milliseconds.
        ms: f64,
    },
}

impl Sample {
    /// Prints it for [`Sample::read`].
    pub fn tell(&self) {
        if let Ok(text) = serde_json::to_string(self) {
            // a test may have left its last line open
            println!("\n{PREFIX}{text}");
        }
    }

    /// Tells of each finding of `agent`'s how long it took to be told.
    pub fn tell_delays(agent: &Agent) {
        for line in agent.findings() {
            let opened = line.text("/finding/status") == Some("opened");
            let first = line.text("/finding/first_seen").and_then(|text| since(text, line.at));
            let rule = line.text("/finding/rule/id");
            if let (true, Some(delay), Some(rule)) = (opened, first, rule) {
                Self::Delay { rule: rule.to_owned(), ms: delay.as_secs_f64() * 1e3 }.tell();
            }
        }
    }

    /// What a line tells.
    #[must_use]
    pub fn read(line: &str) -> Option<Self> {
        let (_, text) = line.rsplit_once(PREFIX)?;
        serde_json::from_str(text).ok()
    }
}

/// The time from `then` (RFC 3339) to `at`; `None` if that is no time, or one after it.
#[must_use]
pub fn since(then: &str, at: Instant) -> Option<Duration> {
    let then = humantime::parse_rfc3339(then).ok()?;
    SystemTime::now().checked_sub(at.elapsed())?.duration_since(then).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_read_wherever_the_line_began() {
        let findings = BTreeMap::from([("low".to_owned(), 2)]);
        let sample = Sample::Noise { name: "cron".into(), runtime: "crun".into(), seconds: 2.5, findings };
        let text = serde_json::to_string(&sample).unwrap_or_default();
        assert_eq!(Sample::read(&format!("half a line{PREFIX}{text}")), Some(sample));
        assert_eq!(Sample::read("userns-quality: no JSON"), None);
        assert_eq!(Sample::read(&text), None);
    }

    #[test]
    fn delays_are_from_then_to_the_arrival() {
        let at = Instant::now();
        let then = humantime::format_rfc3339_nanos(SystemTime::now() - Duration::from_secs(5)).to_string();
        let delay = since(&then, at).unwrap_or_default();
        assert!(delay >= Duration::from_secs(4) && delay < Duration::from_secs(60), "{delay:?}");
        assert_eq!(since("2999-01-01T00:00:00Z", at), None);
        assert_eq!(since("yesterday", at), None);
    }
}
