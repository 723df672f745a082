//! What came of a kernel, and the table over all of them.

use std::{collections::BTreeSet, fmt, time::Duration};

use super::{
    guest::End,
    kernels::Line,
    watch::{TestResult, TestRun, Watch},
};

/// What came of one kernel.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The kernel's line.
    pub line: Line,
    /// How it ended.
    pub outcome: Outcome,
    /// From QEMU's start to the guest's first process.
    pub boot: Option<Duration>,
    /// Every test that was begun.
    pub tests: Vec<TestRun>,
    /// Kernel messages that no kernel should give.
    pub incidents: Vec<String>,
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All tests passed, and there were some.
    Passed,
    /// A test failed.
    Failed,
    /// No test has the name asked for.
    NoTests,
    /// The guest did not come up in time.
    NoBoot,
    /// The tests did not end in time.
    NotDone,
    /// The kernel panicked or locked up, with these words.
    Crashed(String),
    /// QEMU ended before the guest had; its last words.
    Vanished(String),
}

impl Outcome {
    /// Whether the tests' output says it all, and the console adds nothing.
    pub(super) fn is_told_by_tests(&self) -> bool {
        matches!(self, Self::Passed | Self::Failed | Self::NoTests)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Failed => f.write_str("FAILED"),
            Self::NoTests => f.write_str("NO TESTS"),
            Self::NoBoot => f.write_str("DID NOT BOOT"),
            Self::NotDone => f.write_str("NOT DONE IN TIME"),
            Self::Crashed(why) => write!(f, "CRASHED: {why}"),
            Self::Vanished(why) => write!(f, "QEMU ENDED: {why}"),
        }
    }
}

impl Verdict {
    pub(super) fn new(line: Line, watch: Watch, end: End) -> Self {
        let outcome = match end {
            End::NoBoot => Outcome::NoBoot,
            End::NotDone => Outcome::NotDone,
            End::Crashed(why) => Outcome::Crashed(why),
            End::Vanished(why) => Outcome::Vanished(why),
            End::Finished if watch.tests.is_empty() => Outcome::NoTests,
            End::Finished if watch.exit.is_some_and(|(status, _)| status == 0) => Outcome::Passed,
            End::Finished => Outcome::Failed,
        };
        let boot = watch.booted.map(|(_, at)| at);
        Self { line, outcome, boot, tests: watch.tests, incidents: watch.incidents }
    }

    /// Whether all is well.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.outcome == Outcome::Passed
    }

    /// The number of tests with any of `results`.
    #[must_use]
    pub fn count(&self, results: &[TestResult]) -> usize {
        self.tests.iter().filter(|test| results.contains(&test.result)).count()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took: Duration = self.tests.iter().map(|test| test.took).sum();
        let passed = self.count(&[TestResult::Passed]);
        let skipped = self.count(&[TestResult::Skipped]);
        let failed = self.tests.len() - passed - skipped;
        let boot =
            self.boot.map_or_else(|| "never".to_owned(), |boot| format!("{:.1} s", boot.as_secs_f64()));
        write!(
            f,
            "{}: booted {boot}, tests {:.0} s: {passed} passed, {failed} failed",
            self.line,
            took.as_secs_f64()
        )?;
        if skipped > 0 {
            write!(f, ", {skipped} skipped")?;
        }
        if !self.incidents.is_empty() {
            write!(f, ", {} kernel messages of trouble", self.incidents.len())?;
        }
        write!(f, ": {}", self.outcome)
    }
}

/// Every test against every kernel, then a line for each kernel.
pub(super) fn table(verdicts: &[Verdict]) -> String {
    let mut seen = BTreeSet::new();
    let names: Vec<&str> = verdicts
        .iter()
        .flat_map(|verdict| &verdict.tests)
        .map(|test| test.name.as_str())
        .filter(|name| seen.insert(*name))
        .collect();
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    let cell = |verdict: &Verdict, name: &str| {
        let test = verdict.tests.iter().find(|test| test.name == name);
        test.map_or_else(
            || "-".to_owned(),
            |test| format!("{} {:.0} s", word(test.result), test.took.as_secs_f64()),
        )
    };
    let row = |name: &str, cells: Vec<String>| {
        let cells: String = cells.iter().map(|cell| format!("  {cell:>13}")).collect();
        format!("{name:width$}{cells}\n")
    };
    let mut text =
        format!("\n{}", row("", verdicts.iter().map(|verdict| verdict.line.to_string()).collect()));
    for name in names {
        text.push_str(&row(name, verdicts.iter().map(|verdict| cell(verdict, name)).collect()));
    }
    text.push('\n');
    for verdict in verdicts {
        text.push_str(&format!("{verdict}\n"));
        verdict.incidents.iter().for_each(|line| text.push_str(&format!("    {line}\n")));
    }
    text
}

const fn word(result: TestResult) -> &'static str {
    match result {
        TestResult::Passed => "ok",
        TestResult::Skipped => "skipped",
        TestResult::Failed => "FAILED",
        TestResult::TimedOut => "TIME OUT",
        TestResult::Cut => "CUT OFF",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(lines: &[&str], end: End) -> Verdict {
        let mut watch = Watch::default();
        for (second, line) in (0..).zip(lines) {
            watch.read(line, Duration::from_secs(second));
        }
        watch.end(Duration::from_secs(60));
        Verdict::new(Line::new(6, 12), watch, end)
    }

    #[test]
    fn nothing_but_passed_tests_is_a_pass() {
        let ran = ["userns-vm: begin a", "userns-vm: end a 0", "userns-vm: exit 0"];
        assert_eq!(verdict(&ran, End::Finished).outcome, Outcome::Passed);
        assert_eq!(verdict(&ran[2..], End::Finished).outcome, Outcome::NoTests);
        assert_eq!(
            verdict(&["userns-vm: begin a", "userns-vm: exit 1"], End::Finished).outcome,
            Outcome::Failed
        );
        for end in [End::NotDone, End::NoBoot, End::Crashed("x".into()), End::Vanished("y".into())] {
            assert!(!verdict(&ran[..2], end).passed());
        }
    }

    #[test]
    fn the_table_has_a_cell_for_every_test_and_kernel() {
        let one = verdict(
            &["userns-vm: booted x", "userns-vm: begin a", "userns-vm: end a 0", "userns-vm: exit 0"],
            End::Finished,
        );
        let other = verdict(&["userns-vm: begin b"], End::NotDone);
        let text = table(&[one, other]);
        let cells = |name: &str| -> Vec<&str> {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().skip(1).collect()
        };
        assert_eq!(cells("a "), ["ok", "1", "s", "-"]);
        assert_eq!(cells("b "), ["-", "CUT", "OFF", "60", "s"]);
        assert!(
            text.contains("6.12: booted never, tests 60 s: 0 passed, 1 failed: NOT DONE IN TIME"),
            "{text}"
        );
    }
}
