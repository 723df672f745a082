//! docs/benchmarks.md: figures with how they were had, and what they do not say.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use super::{
    Results, attribution, churn,
    delays::{self, Delays},
    flood, plot, programs, scale, storm,
};

const PAGE: &str = "benchmarks.md";
const FIGURES: &str = "benchmarks.svg";

const HEAD: &str = "\
<!-- Written by `cargo xtask bench`. -->

# Benchmarks

What the agent costs, and how quick it is. `cargo xtask bench` measures all of this in one run, the agent and its absence
side by side, and writes this page; figures from two pages compare only if nothing else differed.
";

const INSTRUCTIONS: &str = "\
## Instructions per operation

In a virtual machine with one processor whose clock ticks once an instruction (QEMU's `-icount shift=0`), the CPU time that
a process spends is the number of instructions executed for it, in the kernel and outside, the same in every run whatever
else the machine does. What is not in it: caches, branch prediction, and work of the agent's own process.

- *check over the own UTS namespace*: `sethostname(NULL, -1)`, one check of `CAP_SYS_ADMIN` and then a refused length.
- *check over the host*: `swapoff(NULL)`, which a container is denied after one check.
- *empty*: a program that does nothing on the same hook. *above empty* is what the agent's own program takes, together with
  what its other hooks take from any system call: the row *getppid* has that alone.
- *bpftrace script*: one line for Debian's bpftrace that prints the two namespaces of each check, by fentry.
- ±: how far the two repetitions are from their mean.
";

const NATIVE: &str = "\
## On the running kernel

Times, so everything else that the machine did is in them: read them as sizes, not as digits. ± is the standard deviation
over the rounds of one run.
";

const PROGRAMS: &str = "\
### Each eBPF program

By the kernel's statistics (`BPF_ENABLE_STATS`), whose own cost is in each figure: the program that does nothing shows how
much. Meanwhile containers came and went, and in a pod and on the host one process asked for a capability and another
started programs, without pause. The names are tracepoints, or what the kernel keeps of a program's name.
";

const STORM: &str = "\
### Programs started

Containers of one watched pod start `/bin/true` as fast as they can, one after another in each. Records *held back* are
those of containers that had used up their budget: the kernel's side counts and does not send them. *Lost* is what should
have been sent and was not, in all rounds.
";

const DELAYS: &str = "\
### From the act to the JSON line

The clock starts just before the act and stops when the line has been read. The kernel's work for the act is in the figure
(a move between cgroups may wait for a grace period of RCU), and so is the runtime's where one starts a container.
";

const FLOOD: &str = "\
### A flood of denied attempts

One process of a pod makes 500,000 calls each of `swapoff` and `unshare`, which are denied. The kernel's side counts them;
the first of a kind is told.
";

const SIZES: &str = "\
### Size of the node

Pods have a cgroup, a record of kubelet and a process in a user namespace each, made without a runtime; further tasks are
threads. The agent is started three times and then sweeps once a second (every five by default); *CPU time per sweep* has
everything in it that it does in a second. Memory is that of the process, with what start-up needed once; the kernel's maps
are apart.
";

const CHURN: &str = "\
### Pods that come and go

Pods as in the table above; again and again the oldest ends and a new one starts. *Lost* is what should have been sent and
was not. What is gone is kept for a minute, so that what comes late finds it: memory grows until then.
";

const ATTRIBUTION: &str = "\
### From a container's start to its names

containerd runs pods of ten containers each, with user namespaces; the agent knows namespace, pod and container names by
the CRI alone. The time is from the event of the container's cgroup being made, which is before its first program runs, to
the moment the agent has both names; 0 where the runtime had told them before. It is read from the agent's own histogram
(`userns_attribution_seconds`): quantiles are interpolated in their bucket, *at most* is the end of the last one.
";

/// The whole page; a part that was not measured is left out.
pub(super) fn page(results: &Results, machine: &str) -> String {
    let mut parts = vec![HEAD.to_owned()];
    parts.extend(in_short(results));
    if !results.instructions.is_empty() {
        parts.push(INSTRUCTIONS.to_owned());
        parts.extend(results.instructions.iter().map(super::Counted::table));
    }
    let delays = all_delays(results);
    let native: Vec<String> = [
        (!results.programs.is_empty()).then(|| format!("{PROGRAMS}\n{}", programs::table(&results.programs))),
        (!results.storms.is_empty()).then(|| format!("{STORM}\n{}", storm::table(&results.storms))),
        (!delays.is_empty()).then(|| format!("{DELAYS}\n{}", delays::table(&delays))),
        results.flood.as_ref().map(|flood| format!("{FLOOD}\n{}", flood::table(flood))),
        (!results.sizes.is_empty()).then(|| format!("{SIZES}\n{}", scale::table(&results.sizes))),
        results.churn.as_ref().map(|churn| format!("{CHURN}\n{}", churn::table(churn))),
        results.attribution.as_ref().map(|found| format!("{ATTRIBUTION}\n{}", attribution::table(found))),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !native.is_empty() {
        parts.push(format!("{NATIVE}\nMachine: {machine}.\n"));
        parts.extend(native);
    }
    parts.join("\n")
}

/// What the parts come to, if they were measured.
fn in_short(results: &Results) -> Option<String> {
    let delay = results
        .attribution
        .as_ref()
        .map(|found| format!("| attribution delay, p50 and p99 | {} |", found.in_short()));
    let memory = scale::memory_per_pod(&results.sizes)
        .map(|kib| format!("| memory per pod, 10 to 500 pods | {kib:.1} KiB |"));
    let cpu = results.churn.as_ref().map(|churn| {
        let rate = f64::from(churn.started) / churn.seconds;
        format!("| CPU at {rate:.0} pod starts per second | {:.1} % of a processor |", churn.cpu_percent())
    });
    let rows: Vec<String> = [delay, memory, cpu].into_iter().flatten().collect();
    (!rows.is_empty())
        .then(|| format!("## In short\n\n| figure | measured |\n| --- | ---: |\n{}\n", rows.join("\n")))
}

/// Those of the idle and the busy node, then those during the flood.
fn all_delays(results: &Results) -> Vec<Delays> {
    let others = results.flood.iter().flat_map(|flood| &flood.others);
    results.delays.iter().chain(others).cloned().collect()
}

/// Writes page and figures into `docs`.
///
/// # Errors
///
/// When one cannot be drawn or written.
pub(super) fn write(docs: &Path, results: &Results, machine: &str) -> Result<()> {
    let figures = plot::draw(&plot::Figures::new(results, &all_delays(results)))?;
    let link = format!("![the figures as curves]({FIGURES})\n");
    let page = page(results, machine).replacen(HEAD, &format!("{HEAD}\n{link}"), 1);
    for (name, text) in [(FIGURES, figures), (PAGE, page)] {
        let path = docs.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("    {}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::scale::Point;

    #[test]
    fn a_page_has_what_was_measured() {
        let results = Results { sizes: vec![Point::default()], ..Results::default() };
        let text = page(&results, "ACME 9");
        assert!(text.contains("Machine: ACME 9.") && text.contains("### Size of the node"), "{text}");
        for part in [INSTRUCTIONS, PROGRAMS, STORM, DELAYS, FLOOD, CHURN, ATTRIBUTION, "## In short"] {
            assert!(!text.contains(part), "{part}");
        }
        assert!(!page(&Results::default(), "ACME 9").contains("ACME"));
    }

    #[test]
    fn what_it_comes_to_is_told_first() {
        let point = |pods, resident| Point { pods, resident, ..Point::default() };
        let results = Results {
            sizes: vec![point(10, 10.0), point(110, 11.0), point(500, 14.9)],
            churn: Some(churn::Churn { started: 3000, seconds: 60.0, cpu: 3.0, ..churn::Churn::default() }),
            attribution: Some(attribution::Attribution::default()),
            ..Results::default()
        };
        let text = page(&results, "ACME 9");
        for row in [
            "| attribution delay, p50 and p99 | 0.00 ms, 0.00 ms |\n",
            "| memory per pod, 10 to 500 pods | 10.2 KiB |\n",
            "| CPU at 50 pod starts per second | 5.0 % of a processor |\n",
        ] {
            let at = text.find(row).expect(row);
            assert!(at < text.find(NATIVE).unwrap(), "{text}");
        }
    }
}
