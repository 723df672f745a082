//! Counts test results in the output of `cargo test`.

use std::fmt;

/// Number of tests by result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    ok: u64,
    failed: u64,
    ignored: u64,
    said_skipped: u64,
}

impl Tally {
    /// Takes in one line of output.
    ///
    /// A test that cannot run here prints a line starting with `SKIPPED:` and returns, so the harness counts it
    /// as passed; [`Tally::passed`] does not.
    pub fn read(&mut self, line: &str) {
        if let Some(summary) = line.strip_prefix("test result: ") {
            self.ok += count(summary, "passed");
            self.failed += count(summary, "failed");
            self.ignored += count(summary, "ignored");
        } else if says_skipped(line) {
            self.said_skipped += 1;
        }
    }

    /// Adds the counts of `other`.
    pub fn add(&mut self, other: Self) {
        self.ok += other.ok;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.said_skipped += other.said_skipped;
    }

    /// Adds tests that were counted elsewhere.
    pub fn add_counts(&mut self, passed: u64, failed: u64, skipped: u64) {
        self.ok += passed;
        self.failed += failed;
        self.ignored += skipped;
    }

    /// Counts a failure that no test reported, such as code that does not compile.
    pub fn add_failure(&mut self) {
        self.failed += 1;
    }

    /// Counts a group of tests that was not started.
    pub fn add_skipped(&mut self) {
        self.ignored += 1;
    }

    /// Tests that ran and passed.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.ok.saturating_sub(self.said_skipped)
    }

    /// Tests that failed, and other failures.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// Tests that did not run.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.ignored + self.said_skipped
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed(), self.failed())?;
        if self.skipped() > 0 { write!(f, ", {} skipped", self.skipped()) } else { Ok(()) }
    }
}

fn count(summary: &str, kind: &str) -> u64 {
    let mut words = summary.split([' ', ';']).filter(|word| !word.is_empty());
    let mut number = 0;
    words
        .find_map(|word| {
            if word == kind {
                return Some(number);
            }
            number = word.parse().unwrap_or(0);
            None
        })
        .unwrap_or(0)
}

/// With one thread the harness prints `test name ... ` first, and the test's own output follows on that line.
pub(crate) fn says_skipped(line: &str) -> bool {
    let said = match line.strip_prefix("test ") {
        Some(rest) => rest.split_once(" ... ").map_or(line, |(_, said)| said),
        None => line,
    };
    said.starts_with("SKIPPED:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(output: &str) -> Tally {
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.read(line));
        tally
    }

    #[test]
    fn summaries_add_up() {
        let output = "test a ... ok\n\
            test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
            test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.01s\n";
        assert_eq!(tally(output).to_string(), "15 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn a_test_that_skipped_itself_did_not_pass() {
        let output = "SKIPPED: no root\ntest a ... SKIPPED: no cgroup v2\nok\nnot SKIPPED: at all\n\
            test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n";
        assert_eq!(tally(output).to_string(), "1 passed, 0 failed, 2 skipped");
    }

    #[test]
    fn other_failures_count() {
        let mut tally = tally("error: could not compile `userns-agent`\n");
        tally.add_failure();
        assert_eq!(tally.to_string(), "0 passed, 1 failed");
        tally.add_counts(3, 1, 2);
        assert_eq!(tally.to_string(), "3 passed, 2 failed, 2 skipped");
    }
}
