//! What a guest's output means: the runner's own lines among the tests', and the kernel's cries for help.

use std::{collections::BTreeMap, time::Duration};

use crate::quality::Sample;

const PREFIX: &str = "userns-vm: ";
/// What `timeout -s KILL` in the guest makes of a test that it killed.
const KILLED: i32 = 137;
/// One may be the fault of a busy host, which did not let the guest run.
const LOCKUPS: usize = 2;

/// A test that ran in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestRun {
    /// The mechanism by which hooks were attached, or `default`.
    pub mechanism: String,
    /// Its path, such as `day::a_day_with_runc`.
    pub name: String,
    /// What became of it.
    pub result: TestResult,
    /// How long it took.
    pub took: Duration,
}

/// What became of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TestResult {
    /// It passed.
    Passed,
    /// It said that it cannot run there.
    Skipped,
    /// It failed.
    Failed,
    /// It was killed after its time.
    TimedOut,
    /// The guest ended while it ran.
    Cut,
}

/// What a guest did with one mechanism.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cell {
    /// Its name, or `default`.
    pub(super) mechanism: String,
    /// Whether the kernel offers it, as far as that was found out.
    pub(super) offer: Option<Offer>,
    /// Each hook with its mechanism and state.
    pub(super) probes: Vec<[String; 3]>,
    pub(super) began: Duration,
    pub(super) took: Duration,
}

/// What a kernel has to offer of a mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    /// Other hooks than the default, which the tests ran with.
    Own,
    /// The same hooks as by default, so that there was nothing more to test.
    AsDefault,
    /// Too little to run any test.
    None,
}

/// Everything seen of a guest until now. Times are since QEMU was started.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// The kernel's release, and when.
    pub(super) booted: Option<(String, Duration)>,
    pub(super) exit: Option<(i32, Duration)>,
    pub(super) panic: Option<String>,
    /// Kernel messages that no kernel should give.
    pub(super) incidents: Vec<String>,
    pub(super) tests: Vec<TestRun>,
    pub(super) cells: Vec<Cell>,
    /// Instructions that the kernel's verifier went through, by program: the most of all cells.
    pub(super) verified: BTreeMap<String, u64>,
    /// What the tests told of detection.
    pub(super) quality: Vec<(String, Sample)>,
    running: Option<(String, Duration, bool)>,
    lockups: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Word<'a> {
    Booted(&'a str),
    Cell(&'a str),
    Offer(Offer),
    Probe([&'a str; 3]),
    Verified(&'a str, u64),
    Begin(&'a str),
    End(&'a str, i32),
    Exit(i32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Symptom {
    Panic,
    Lockup,
    Fault,
}

impl Watch {
    /// Takes in a line of the tests' output; whether it is for the reader, not for this.
    pub(super) fn read(&mut self, line: &str, at: Duration) -> bool {
        if let Some(sample) = Sample::read(line) {
            let mechanism = self.cells.last().map(|cell| cell.mechanism.clone()).unwrap_or_default();
            self.quality.push((mechanism, sample));
            return false;
        }
        let Some(word) = word(line) else {
            if let Some((_, _, skipped)) = &mut self.running {
                *skipped |= crate::test::tally::says_skipped(line);
            }
            return true;
        };
        match word {
            Word::Booted(release) => self.booted = Some((release.to_owned(), at)),
            Word::Cell(mechanism) => {
                self.end_cell(at);
                let mechanism = mechanism.to_owned();
                self.cells.push(Cell { mechanism, began: at, ..Cell::default() });
            }
            Word::Offer(offer) => {
                if let Some(cell) = self.cells.last_mut() {
                    cell.offer = Some(offer);
                }
            }
            Word::Probe(words) => {
                if let Some(cell) = self.cells.last_mut() {
                    cell.probes.push(words.map(str::to_owned));
                }
            }
            Word::Verified(program, instructions) => {
                let most = self.verified.entry(program.to_owned()).or_default();
                *most = instructions.max(*most);
            }
            Word::Begin(name) => self.running = Some((name.to_owned(), at, false)),
            Word::End(name, status) => {
                if let Some((running, since, skipped)) = self.running.take().filter(|(own, ..)| own == name) {
                    let result = match status {
                        0 if skipped => TestResult::Skipped,
                        0 => TestResult::Passed,
                        KILLED => TestResult::TimedOut,
                        _ => TestResult::Failed,
                    };
                    self.push(running, result, at.saturating_sub(since));
                }
            }
            Word::Exit(status) => {
                self.end_cell(at);
                self.exit = Some((status, at));
            }
        }
        false
    }

    /// Takes in a line of the kernel's console.
    pub(super) fn read_console(&mut self, line: &str) {
        let Some(symptom) = symptom(line) else { return };
        let line = line.trim().to_owned();
        match symptom {
            Symptom::Panic => self.panic = Some(line.clone()),
            Symptom::Lockup => self.lockups += 1,
            Symptom::Fault => {}
        }
        self.incidents.push(line);
    }

    /// Why the guest need not be waited for any longer, other than that it has finished.
    pub(super) fn given_up(&self) -> Option<String> {
        match &self.panic {
            Some(line) => Some(line.clone()),
            None if self.lockups >= LOCKUPS => self.incidents.last().cloned(),
            None => None,
        }
    }

    /// Notes that the guest is gone.
    pub(super) fn end(&mut self, at: Duration) {
        if let Some((name, since, _)) = self.running.take() {
            self.push(name, TestResult::Cut, at.saturating_sub(since));
        }
        if self.exit.is_none() {
            self.end_cell(at);
        }
    }

    fn push(&mut self, name: String, result: TestResult, took: Duration) {
        let mechanism = self.cells.last().map(|cell| cell.mechanism.clone()).unwrap_or_default();
        self.tests.push(TestRun { mechanism, name, result, took });
    }

    fn end_cell(&mut self, at: Duration) {
        if let Some(cell) = self.cells.last_mut() {
            cell.took = at.saturating_sub(cell.began);
        }
    }
}

fn word(line: &str) -> Option<Word<'_>> {
    // A test may have left its last line open.
    let (_, said) = line.rsplit_once(PREFIX)?;
    let words: Vec<&str> = said.split_whitespace().collect();
    Some(match words[..] {
        ["booted", release] => Word::Booted(release),
        ["cell", mechanism] => Word::Cell(mechanism),
        ["offer", _, "own"] => Word::Offer(Offer::Own),
        ["offer", _, "as-default"] => Word::Offer(Offer::AsDefault),
        ["offer", _, "none"] => Word::Offer(Offer::None),
        ["probe", hook, mechanism, state] => Word::Probe([hook, mechanism, state]),
        ["verified", program, instructions] => Word::Verified(program, instructions.parse().ok()?),
        ["begin", name] => Word::Begin(name),
        ["end", name, status] => Word::End(name, status.parse().ok()?),
        ["exit", status] => Word::Exit(status.parse().ok()?),
        _ => return None,
    })
}

fn symptom(line: &str) -> Option<Symptom> {
    const SYMPTOMS: [(&str, Symptom); 12] = [
        ("Kernel panic - not syncing", Symptom::Panic),
        ("soft lockup - CPU#", Symptom::Lockup),
        ("hard LOCKUP on cpu", Symptom::Lockup),
        ("self-detected stall on CPU", Symptom::Lockup),
        ("detected stalls on CPUs", Symptom::Lockup),
        ("BUG: ", Symptom::Fault),
        ("kernel BUG at ", Symptom::Fault),
        ("Oops: ", Symptom::Fault),
        ("general protection fault", Symptom::Fault),
        ("WARNING: CPU: ", Symptom::Fault),
        ("WARNING: possible ", Symptom::Fault),
        (" blocked for more than ", Symptom::Fault),
    ];
    SYMPTOMS.iter().find(|(text, _)| line.contains(text)).map(|(_, symptom)| *symptom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn watch(output: &str) -> Watch {
        let mut watch = Watch::default();
        for (second, line) in (0..).zip(output.lines()) {
            watch.read(line, at(second));
        }
        watch
    }

    #[test]
    fn every_test_has_a_result_and_a_time() {
        let mut watch = watch(
            "userns-vm: booted 7.2.12\nuserns-vm: begin a::one\ntest a::one ... ok\n\nuserns-vm: end a::one 0\n\
             userns-vm: begin two\ntest two ... SKIPPED: two: no root\nok\nuserns-vm: end two 0\n\
             userns-vm: begin three\nno newlineuserns-vm: end three 101\nuserns-vm: begin four\n\
             userns-vm: end four 137\nuserns-vm: begin five\n",
        );
        assert!(!watch.read("userns-vm: exit 1", at(20)) && watch.read("some output", at(20)));
        watch.end(at(30));
        let results: Vec<_> =
            watch.tests.iter().map(|test| (test.name.as_str(), test.result, test.took)).collect();
        let expected = [
            ("a::one", TestResult::Passed, at(3)),
            ("two", TestResult::Skipped, at(3)),
            ("three", TestResult::Failed, at(1)),
            ("four", TestResult::TimedOut, at(1)),
            ("five", TestResult::Cut, at(17)),
        ];
        assert_eq!(results, expected);
        assert_eq!((watch.booted, watch.exit), (Some(("7.2.12".into(), at(0))), Some((1, at(20)))));
    }

    #[test]
    fn a_cell_has_its_hooks_tests_and_time() {
        let watch = watch(
            "userns-vm: cell default\nuserns-vm: begin a\nuserns-vm: offer default own\n\
             userns-vm: probe exec tp_btf active\nuserns-vm: verified exec 5\nuserns-vm: end a 0\n\
             userns-vm: cell kprobe\nuserns-vm: begin a\nuserns-vm: offer kprobe as-default\n\
             userns-vm: verified exec 3\nuserns-vm: end a 0\nuserns-vm: exit 0\n",
        );
        let probes = vec![["exec", "tp_btf", "active"].map(str::to_owned)];
        let cell = |mechanism: &str, offer, probes, began, took| Cell {
            mechanism: mechanism.to_owned(),
            offer: Some(offer),
            probes,
            began: at(began),
            took: at(took),
        };
        let expected =
            [cell("default", Offer::Own, probes, 0, 6), cell("kprobe", Offer::AsDefault, Vec::new(), 6, 5)];
        assert_eq!(watch.cells, expected);
        let mechanisms: Vec<_> = watch.tests.iter().map(|test| test.mechanism.as_str()).collect();
        assert_eq!(mechanisms, ["default", "kprobe"]);
        assert_eq!(watch.verified, BTreeMap::from([("exec".to_owned(), 5)]));
    }

    #[test]
    fn only_the_runners_own_lines_count() {
        for line in
            ["userns-vm: exit", "userns-vm: exit x", "exit 0", "userns-vm: exit 0 0", "userns-vm:exit 0"]
        {
            assert_eq!(word(line), None, "{line}");
        }
        assert_eq!(word("userns-vm: exit 0"), Some(Word::Exit(0)));
    }

    #[test]
    fn a_kernel_in_trouble_is_recognised() {
        for (line, expected) in [
            ("[ 1.0] Kernel panic - not syncing: Attempted to kill init!", Symptom::Panic),
            ("[ 9.1] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:1]", Symptom::Lockup),
            ("[ 9.1] rcu: INFO: rcu_preempt self-detected stall on CPU", Symptom::Lockup),
            ("[ 3.3] BUG: unable to handle page fault for address: ffff", Symptom::Fault),
            ("[ 3.3] Oops: 0002 [#1] PREEMPT SMP NOPTI", Symptom::Fault),
            ("[ 3.4] WARNING: CPU: 1 PID: 9 at kernel/ucount.c:300 dec_rlimit", Symptom::Fault),
        ] {
            assert_eq!(symptom(line), Some(expected), "{line}");
        }
        for line in ["[ 0.1] Oops handling ready", "debug: no BUGs", "tsc: WARNING free"] {
            assert_eq!(symptom(line), None, "{line}");
        }
    }

    #[test]
    fn one_lockup_is_forgiven_and_a_panic_is_not() {
        let mut watch = Watch::default();
        watch.read_console("watchdog: BUG: soft lockup - CPU#0 stuck for 22s!");
        assert_eq!(watch.given_up(), None);
        watch.read_console("watchdog: BUG: soft lockup - CPU#1 stuck for 44s!");
        assert!(watch.given_up().is_some_and(|line| line.contains("CPU#1")));
        let mut watch = Watch::default();
        watch.read_console("Kernel panic - not syncing: Fatal exception");
        assert!(watch.given_up().is_some() && watch.incidents.len() == 1);
    }
}
