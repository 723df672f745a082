//! Instructions per operation: the guest's samples as a table.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::Result;

use super::{
    Programs, bpftrace,
    guest::{self, Message, Place, Sample, Setup},
    operation::Operation,
};
use crate::{
    steps::Steps,
    vm::{self, Job},
    workspace::Workspace,
};

/// What was counted on one kernel.
#[derive(Debug, Default)]
pub(super) struct Counted {
    /// As `uname -r` tells it.
    pub(super) kernel: String,
    /// Instructions per operation, of each repetition of the measurement.
    cells: BTreeMap<(Place, Operation), BTreeMap<Setup, Vec<f64>>>,
    /// Set-ups that this kernel or this agent does not offer.
    pub(super) missing: Vec<String>,
}

/// Counts in a guest of each kernel.
///
/// # Errors
///
/// When a guest cannot be made or does not end well.
pub(super) fn count(
    steps: &mut Steps,
    workspace: &Workspace,
    programs: &Programs,
    kernels: &[String],
    with_bpftrace: bool,
) -> Result<Vec<Counted>> {
    let files = [
        (programs.agent.as_path(), guest::AGENT),
        (programs.empty.as_path(), guest::OBJECT),
        (programs.bench.as_path(), guest::PROGRAM),
    ];
    let packages: &[&str] = if with_bpftrace { &[bpftrace::PROGRAM] } else { &[] };
    let job = Job { kernels, name: "bench", files: &files, packages };
    let mut counted: Vec<Counted> = Vec::new();
    vm::count_instructions(steps, workspace, &job, |kernel, line| {
        if counted.last().is_none_or(|last| last.kernel != kernel) {
            counted.push(Counted { kernel: kernel.to_owned(), ..Counted::default() });
        }
        match (message(line), counted.last_mut()) {
            (Some(message), Some(last)) => last.add(message),
            _ => println!("    {line}"),
        }
    })?;
    Ok(counted)
}

fn message(line: &str) -> Option<Message> {
    serde_json::from_str(line.strip_prefix(guest::PREFIX)?).ok()
}

impl Counted {
    fn add(&mut self, message: Message) {
        match message {
            Message::Sample(sample) => {
                let Sample { setup, place, operation, count, nanoseconds } = sample;
                let each = nanoseconds as f64 / f64::from(count);
                self.cells.entry((place, operation)).or_default().entry(setup).or_default().push(each);
            }
            Message::Missing(what) => self.missing.push(what),
        }
    }

    /// The mean of a cell.
    pub(super) fn mean(&self, place: Place, operation: Operation, setup: &Setup) -> Option<f64> {
        let values = self.cells.get(&(place, operation))?.get(setup)?;
        Some(values.iter().sum::<f64>() / values.len() as f64)
    }

    /// What a set-up adds to the operation alone.
    pub(super) fn added(&self, place: Place, operation: Operation, setup: &Setup) -> Option<f64> {
        Some(self.mean(place, operation, setup)? - self.mean(place, operation, &Setup::Alone)?)
    }

    /// The mechanism that the agent chose by itself: with that every operation was measured.
    pub(super) fn mechanism(&self) -> Option<String> {
        self.cells.get(&(Place::Host, Operation::Open))?.keys().find_map(|setup| match setup {
            Setup::Agent(mechanism) => Some(mechanism.clone()),
            Setup::Alone | Setup::Empty(_) | Setup::Bpftrace => None,
        })
    }

    /// Every cell: the mean, how far the repetitions are apart, what the set-up adds to the operation alone, and what
    /// the agent adds to an empty program at the same hook.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "### Linux {}\n\n| where | operation | with | instructions | ± | added | above empty |\n\
             | --- | --- | --- | ---: | ---: | ---: | ---: |\n",
            self.kernel
        );
        for ((place, operation), setups) in &self.cells {
            let mean = |setup: &Setup| self.mean(*place, *operation, setup);
            for (setup, values) in setups {
                let value = mean(setup).unwrap_or_default();
                let spread = values.iter().map(|one| (one - value).abs()).fold(0.0, f64::max);
                let added = mean(&Setup::Alone).filter(|_| *setup != Setup::Alone).map(|alone| value - alone);
                let above = match setup {
                    Setup::Agent(mechanism) => {
                        mean(&Setup::Empty(mechanism.clone())).map(|empty| value - empty)
                    }
                    Setup::Alone | Setup::Empty(_) | Setup::Bpftrace => None,
                };
                let cell = |value: Option<f64>| value.map(|value| format!("{value:+.0}")).unwrap_or_default();
                let _ = writeln!(
                    text,
                    "| {place} | {operation} | {setup} | {value:.0} | {spread:.0} | {} | {} |",
                    cell(added),
                    cell(above)
                );
            }
        }
        if !self.missing.is_empty() {
            let _ = writeln!(text, "\nNot measured:\n\n- {}", self.missing.join("\n- "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(setup: Setup, nanoseconds: u64) -> String {
        let (place, operation) = (Place::Host, Operation::OwnCheck);
        let message = Message::Sample(Sample { setup, place, operation, count: 10, nanoseconds });
        format!("{}{}", guest::PREFIX, serde_json::to_string(&message).unwrap())
    }

    #[test]
    fn samples_become_a_table_of_differences() {
        let fexit = || "fexit".to_owned();
        let mut counted = Counted { kernel: "6.1".to_owned(), ..Counted::default() };
        for line in [
            sample(Setup::Alone, 4_000),
            sample(Setup::Alone, 4_020),
            sample(Setup::Empty(fexit()), 6_000),
            sample(Setup::Agent(fexit()), 6_500),
            format!("{}{{\"missing\":\"empty tp_btf: none\"}}", guest::PREFIX),
        ] {
            counted.add(message(&line).unwrap());
        }
        let table = counted.table();
        for row in [
            "| no program | 401 | 1 |  |  |",
            "| empty, fexit | 600 | 0 | +199 |  |",
            "| agent, fexit | 650 | 0 | +249 | +50 |",
            "\n- empty tp_btf: none",
        ] {
            assert!(table.contains(row), "{row} is not in\n{table}");
        }
        assert_eq!(message("bench: what else"), None);
    }
}
