//! docs/detection.md: the figures with how they were had, and what they do not say.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
};

use anyhow::{Context as _, Result};

use super::Sample;
use crate::{bench::quantile, workspace::Workspace};

pub(super) const PAGE: &str = "detection.md";

const HEAD: &str = "\
<!-- Written by `cargo xtask quality`. -->

# Detection: what is found, what is not, and how soon

`cargo xtask quality` tries every technique that `userns-agent simulate` has in real containers, overwrites credentials from a
kernel module where there is a virtual machine to spare, runs ordinary software, and writes this page. The tests themselves
fail on whatever is missed or is too much, so that `cargo xtask test` holds the same on every kernel with the mechanism that
the agent chooses by itself.
";

const RECALL: &str = "\
## Recall

A technique counts where it left what its rule looks for: the kernel denied it, or, for those that no kernel denies, allowed
it. What cannot be tried on a kernel (a system call it does not have, a file that is not there) is in no figure. *default* is
what the agent chooses by itself. A mechanism that a kernel does not offer, or that is its default, has no row.
";

const TECHNIQUES: &str = "\
### By technique

Of all rows above together. What no rule sees, and why, is in [coverage.md](coverage.md).
";

const NOISE: &str = "\
## False findings

[Ordinary software](noise.md) in containers with a user namespace, on the running kernel. What is *info* or *low* there is
right, and explained on that page; anything of *medium* or above would be a false alarm, and fails the test.
";

const DELAYS: &str = "\
## Time to detect

From the moment that the kernel's side stamped on the first event of a finding to the arrival of its JSON line in another
process. What waits for a name of the pod (`enrich_wait`) or for a sweep has that in it. Virtual machines are emulated here,
some twenty times slower than a processor: read their rows as a bound.
";

/// One kernel with one mechanism.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Release of the kernel.
    pub(super) kernel: String,
    /// How hooks are attached.
    pub(super) mechanism: String,
    /// Whether it is the running kernel.
    pub(super) native: bool,
    /// What the tests told.
    pub(super) samples: Vec<Sample>,
}

/// How many were seen, of how many.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    seen: u64,
    all: u64,
}

impl Share {
    fn add(&mut self, seen: bool) {
        self.all += 1;
        self.seen += u64::from(seen);
    }

    fn show(self) -> String {
        let percent = 100.0 * self.seen as f64 / self.all.max(1) as f64;
        format!("{} of {} | {percent:.0} %", self.seen, self.all)
    }
}

pub(super) fn write(workspace: &Workspace, cells: &[Cell], quick: bool) -> Result<()> {
    let machine = super::processor()?;
    let path = super::docs(workspace).join(PAGE);
    fs::write(&path, page(cells, &machine, quick)).with_context(|| format!("cannot write {}", path.display()))
}

fn page(cells: &[Cell], machine: &str, quick: bool) -> String {
    let amount = if quick { "only what `cargo xtask test` runs of it each time" } else { "all there is" };
    let mut page = format!("{HEAD}\nMeasured on {machine}; of ordinary software {amount}.\n\n{RECALL}\n");
    page.push_str(&recall(cells));
    let _ = write!(page, "\n{TECHNIQUES}\n{}\n{NOISE}\n{}", techniques(cells), noise(cells));
    let _ = write!(page, "\n{DELAYS}\n{}", delays(cells));
    page
}

fn place(cell: &Cell) -> String {
    let how = if cell.native { "running kernel" } else { "virtual machine" };
    format!("{} | {how} | {}", cell.kernel, cell.mechanism)
}

fn recall(cells: &[Cell]) -> String {
    let mut table =
        "| kernel | | mechanism | runtime | seen | recall |\n| --- | --- | --- | --- | ---: | ---: |\n"
            .to_owned();
    for cell in cells {
        let mut shares: BTreeMap<&str, Share> = BTreeMap::new();
        for sample in &cell.samples {
            if let Sample::Technique { runtime, seen, .. } = sample {
                shares.entry(runtime).or_default().add(*seen);
            }
        }
        for (runtime, share) in shares {
            let _ = writeln!(table, "| {} | {runtime} | {} |", place(cell), share.show());
        }
    }
    table
}

fn techniques(cells: &[Cell]) -> String {
    let mut shares: BTreeMap<(&str, &str), (Share, BTreeSet<&str>)> = BTreeMap::new();
    for cell in cells {
        for sample in &cell.samples {
            if let Sample::Technique { name, rule, seen, .. } = sample {
                let (share, missed) = shares.entry((name, rule)).or_default();
                share.add(*seen);
                if !seen {
                    missed.insert(&cell.kernel);
                }
            }
        }
    }
    let mut table =
        "| technique | rule | seen | recall | missed on |\n| --- | --- | ---: | ---: | --- |\n".to_owned();
    for ((name, rule), (share, missed)) in shares {
        let missed = missed.into_iter().collect::<Vec<_>>().join(", ");
        let _ = writeln!(table, "| {name} | {rule} | {} | {missed} |", share.show());
    }
    table
}

fn noise(cells: &[Cell]) -> String {
    const SEVERITIES: [&str; 5] = ["info", "low", "medium", "high", "critical"];
    let mut rows: BTreeMap<&str, (f64, BTreeMap<&str, u64>)> = BTreeMap::new();
    for sample in cells.iter().flat_map(|cell| &cell.samples) {
        if let Sample::Noise { name, seconds, findings, .. } = sample {
            let (total, by) = rows.entry(name).or_default();
            *total += seconds;
            for (severity, count) in findings {
                *by.entry(severity).or_default() += count;
            }
        }
    }
    let mut table =
        "| software | seconds | info | low | medium and above |\n| --- | ---: | ---: | ---: | ---: |\n"
            .to_owned();
    let (mut hours, mut alarms) = (0.0, 0);
    for (name, (seconds, by)) in &rows {
        let [info, low, more @ ..] = SEVERITIES.map(|severity| by.get(severity).copied().unwrap_or(0));
        let more: u64 = more.iter().sum();
        let _ = writeln!(table, "| {name} | {seconds:.1} | {info} | {low} | {more} |");
        (hours, alarms) = (hours + seconds / 3600.0, alarms + more);
    }
    // the rule of three: with none in a time, the rate is below three in that time, with 95 % confidence
    let bound = if hours > 0.0 { 3.0 / hours } else { f64::INFINITY };
    let _ = writeln!(
        table,
        "\n{alarms} false findings in {hours:.3} hours of containers at work: {:.1} an hour; with so little time, none seen means \
         below {bound:.0} an hour at 95 % confidence.",
        alarms as f64 / hours.max(f64::MIN_POSITIVE)
    );
    table
}

fn delays(cells: &[Cell]) -> String {
    let mut table = "| kernel | | mechanism | findings | median | p99 | longest |\n| --- | --- | --- | ---: | ---: | ---: | ---: |\n".to_owned();
    for cell in cells {
        let of = |sample: &Sample| match sample {
            Sample::Delay { ms, .. } => Some(*ms),
            Sample::Technique { .. } | Sample::Noise { .. } => None,
        };
        let ms: Vec<f64> = cell.samples.iter().filter_map(of).collect();
        if !ms.is_empty() {
            let [median, p99, longest] = [0.5, 0.99, 1.0].map(|share| quantile(&ms, share));
            let _ = writeln!(
                table,
                "| {} | {} | {median:.1} ms | {p99:.1} ms | {longest:.1} ms |",
                place(cell),
                ms.len()
            );
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn technique(name: &str, seen: bool) -> Sample {
        Sample::Technique { name: name.into(), rule: "I11".into(), runtime: "runc".into(), seen }
    }

    #[test]
    fn what_is_missed_is_said_where() {
        let delay = |ms| Sample::Delay { rule: "I11".into(), ms };
        let findings = BTreeMap::from([("low".to_owned(), 2), ("high".to_owned(), 1)]);
        let noise = Sample::Noise { name: "cron".into(), runtime: "runc".into(), seconds: 1800.0, findings };
        let samples = vec![technique("kexec", true), technique("bpf", false), delay(1.0), delay(3.0), noise];
        let cells = [
            Cell { kernel: "6.1.9".into(), mechanism: "kprobe".into(), native: false, samples },
            Cell::of_guest("7.3".into(), "default".into(), vec![technique("bpf", true)]),
        ];
        let page = page(&cells, "a processor", true);
        for line in [
            "| 6.1.9 | virtual machine | kprobe | runc | 1 of 2 | 50 % |",
            "| bpf | I11 | 1 of 2 | 50 % | 6.1.9 |",
            "| kexec | I11 | 1 of 1 | 100 % |  |",
            "| cron | 1800.0 | 0 | 2 | 1 |",
            "| 6.1.9 | virtual machine | kprobe | 2 | 1.0 ms | 3.0 ms | 3.0 ms |",
        ] {
            assert!(page.lines().any(|own| own == line), "{line} is not in\n{page}");
        }
        assert!(
            page.contains("1 false findings in 0.500 hours of containers at work: 2.0 an hour"),
            "{page}"
        );
    }
}
