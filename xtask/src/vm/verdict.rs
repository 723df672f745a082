//! What came of a kernel with each mechanism, and the tables over all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use crate::quality::{self, Sample};

use super::{
    guest::End,
    kernels::Line,
    plan,
    watch::{Cell, Offer, TestResult, TestRun, Watch},
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
    /// From QEMU's start to its end.
    pub took: Duration,
    /// Every test that was begun.
    pub tests: Vec<TestRun>,
    /// What is wrong although every test passed.
    pub problems: Vec<String>,
    /// Kernel messages that no kernel should give.
    pub incidents: Vec<String>,
    pub(super) cells: Vec<Cell>,
    pub(super) verified: BTreeMap<String, u64>,
    release: String,
    quality: Vec<(String, Sample)>,
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
    pub(super) fn new(line: Line, watch: Watch, end: End, took: Duration) -> Self {
        let outcome = match end {
            End::NoBoot => Outcome::NoBoot,
            End::NotDone => Outcome::NotDone,
            End::Crashed(why) => Outcome::Crashed(why),
            End::Vanished(why) => Outcome::Vanished(why),
            End::Finished if watch.tests.is_empty() => Outcome::NoTests,
            End::Finished if watch.exit.is_some_and(|(status, _)| status == 0) => Outcome::Passed,
            End::Finished => Outcome::Failed,
        };
        let problems = watch.cells.iter().flat_map(|cell| problems(line, cell)).collect();
        let Watch { tests, incidents, cells, verified, quality, booted, .. } = watch;
        let (release, boot) = booted.unzip();
        let release = release.unwrap_or_default();
        Self { line, outcome, boot, took, tests, problems, incidents, cells, verified, release, quality }
    }

    /// What the tests told of detection, by mechanism.
    #[must_use]
    pub fn quality(&self) -> Vec<quality::Cell> {
        let of = |cell: &Cell| {
            let own = self.quality.iter().filter(|(mechanism, _)| *mechanism == cell.mechanism);
            let samples: Vec<_> = own.map(|(_, sample)| sample.clone()).collect();
            let cell = quality::Cell::of_guest(self.release.clone(), cell.mechanism.clone(), samples);
            Some(cell).filter(|cell| !cell.is_empty())
        };
        self.cells.iter().filter_map(of).collect()
    }

    /// Whether all is well.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.outcome == Outcome::Passed && self.problems.is_empty()
    }

    /// The number of tests with any of `results`.
    #[must_use]
    pub fn count(&self, results: &[TestResult]) -> usize {
        self.tests.iter().filter(|test| results.contains(&test.result)).count()
    }

    fn cell(&self, mechanism: &str) -> String {
        let Some(cell) = self.cells.iter().find(|cell| cell.mechanism == mechanism) else {
            return "-".to_owned();
        };
        let mut tests = self.tests.iter().filter(|test| test.mechanism == mechanism);
        let word = match cell.offer {
            _ if !tests.all(|test| test.result == TestResult::Passed) => "FAILED",
            Some(Offer::AsDefault) => return "as default".to_owned(),
            Some(Offer::None) => return "not offered".to_owned(),
            Some(Offer::Own) | None => "ok",
        };
        let active = cell.probes.iter().filter(|[.., state]| state == "active").count();
        let hooks = if cell.probes.is_empty() { String::new() } else { format!(", {active} hooks") };
        format!("{word} {:.0} s{hooks}", cell.took.as_secs_f64())
    }
}

/// What a cell has that it should not, or has not that it should.
fn problems(line: Line, cell: &Cell) -> Vec<String> {
    let mechanism = &cell.mechanism;
    let mut problems: Vec<String> = cell
        .probes
        .iter()
        .filter(|[.., state]| state == "failed")
        .map(|[hook, ..]| format!("{mechanism}: the kernel refuses the program of {hook}"))
        .collect();
    let offered = match cell.offer {
        Some(Offer::Own | Offer::AsDefault) => true,
        Some(Offer::None) => false,
        None => return problems,
    };
    if mechanism != plan::DEFAULT && offered != plan::offers(line, mechanism) {
        let (is, should) = if offered { ("offers", "does not have") } else { ("does not offer", "has") };
        problems.push(format!("{line} {is} {mechanism}, which the table in xtask/src/vm/plan.rs {should}"));
    }
    problems
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let passed = self.count(&[TestResult::Passed]);
        let skipped = self.count(&[TestResult::Skipped]);
        let failed = self.tests.len() - passed - skipped;
        let boot =
            self.boot.map_or_else(|| "never".to_owned(), |boot| format!("{:.1} s", boot.as_secs_f64()));
        write!(
            f,
            "{}: booted {boot}, all {:.0} s: {passed} passed, {failed} failed",
            self.line,
            self.took.as_secs_f64()
        )?;
        if skipped > 0 {
            write!(f, ", {skipped} skipped")?;
        }
        if !self.incidents.is_empty() {
            write!(f, ", {} kernel messages of trouble", self.incidents.len())?;
        }
        let outcome = if self.passed() || self.outcome != Outcome::Passed {
            self.outcome.to_string()
        } else {
            "NOT AS EXPECTED".to_owned()
        };
        write!(f, ": {outcome}")
    }
}

/// Every mechanism and every test against every kernel, then a line for each kernel.
pub(super) fn table(verdicts: &[Verdict]) -> String {
    let mut mechanisms = Vec::new();
    for cell in verdicts.iter().flat_map(|verdict| &verdict.cells) {
        if !mechanisms.contains(&cell.mechanism.as_str()) {
            mechanisms.push(cell.mechanism.as_str());
        }
    }
    let mut rows = vec![row_of("", verdicts, |verdict| verdict.line.to_string())];
    rows.extend(mechanisms.iter().map(|name| row_of(name, verdicts, |verdict| verdict.cell(name))));
    let mut seen = BTreeSet::new();
    let tests = verdicts.iter().flat_map(|verdict| &verdict.tests);
    for test in tests.filter(|test| seen.insert((&test.mechanism, &test.name))) {
        let cell = |verdict: &Verdict| {
            let same = |own: &&TestRun| own.mechanism == test.mechanism && own.name == test.name;
            verdict.tests.iter().find(same).map_or_else(
                || "-".to_owned(),
                |test| format!("{} {:.0} s", word(test.result), test.took.as_secs_f64()),
            )
        };
        rows.push(row_of(&format!("{} {}", test.mechanism, test.name), verdicts, cell));
    }
    let mut text = format!("\n{}\n", aligned(&rows));
    for verdict in verdicts {
        text.push_str(&format!("{verdict}\n"));
        verdict.problems.iter().for_each(|line| text.push_str(&format!("    {line}\n")));
        verdict.incidents.iter().for_each(|line| text.push_str(&format!("    {line}\n")));
    }
    text
}

fn row_of(name: &str, verdicts: &[Verdict], cell: impl Fn(&Verdict) -> String) -> Vec<String> {
    std::iter::once(name.to_owned()).chain(verdicts.iter().map(cell)).collect()
}

/// The first column to the left, the others to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
            text.push_str(&if index == 0 { format!("{cell:width$}") } else { format!("  {cell:>width$}") });
        }
        text.push('\n');
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
        Verdict::new(Line::new(6, 12), watch, end, Duration::from_secs(60))
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
    fn a_mechanism_that_comes_or_goes_is_no_pass() {
        let with = |offer: &str| {
            let offer = format!("userns-vm: offer {offer}");
            let name = offer.split(' ').nth(2).unwrap_or_default();
            let cell = format!("userns-vm: cell {name}");
            let lines = [&cell, "userns-vm: begin a", &offer, "userns-vm: end a 0", "userns-vm: exit 0"];
            verdict(&lines, End::Finished)
        };
        for offer in ["kprobe own", "fexit as-default", "tp_btf none", "default own"] {
            assert!(with(offer).passed(), "{offer}");
        }
        for (offer, problem) in [
            ("kprobe none", "6.12 does not offer kprobe, which the table in xtask/src/vm/plan.rs has"),
            ("tp_btf own", "6.12 offers tp_btf, which the table in xtask/src/vm/plan.rs does not have"),
        ] {
            let verdict = with(offer);
            assert!(!verdict.passed() && verdict.problems == [problem], "{verdict:?}");
            assert!(table(&[verdict]).contains("NOT AS EXPECTED"));
        }
    }

    #[test]
    fn a_program_that_the_kernel_refuses_is_no_pass() {
        let lines = ["userns-vm: cell default", "userns-vm: probe exec tp_btf failed"];
        let ran = ["userns-vm: begin a", "userns-vm: end a 0", "userns-vm: exit 0"];
        assert!(!verdict(&[&lines[..], &ran].concat(), End::Finished).passed());
    }

    #[test]
    fn the_table_has_a_cell_for_every_mechanism_test_and_kernel() {
        let one = verdict(
            &[
                "userns-vm: booted x",
                "userns-vm: cell default",
                "userns-vm: begin a",
                "userns-vm: probe exec tp_btf active",
                "userns-vm: end a 0",
                "userns-vm: exit 0",
            ],
            End::Finished,
        );
        let other = verdict(&["userns-vm: cell kprobe", "userns-vm: begin b"], End::NotDone);
        let text = table(&[one, other]);
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        let after =
            |name: &str| line(name).trim_start_matches(name).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(after("default  "), "ok 4 s, 1 hooks -");
        assert_eq!(after("kprobe  "), "- FAILED 60 s");
        assert_eq!(after("default a"), "ok 2 s -");
        assert_eq!(after("kprobe b"), "- CUT OFF 59 s");
        assert!(
            text.contains("6.12: booted never, all 60 s: 0 passed, 1 failed: NOT DONE IN TIME"),
            "{text}"
        );
    }
}
