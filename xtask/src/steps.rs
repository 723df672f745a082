//! Steps of a command: each says what it does and why, is timed, and has a row in the closing table.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::Result;

/// The steps taken so far.
#[derive(Debug, Default)]
pub struct Steps {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    what: String,
    outcome: Outcome,
    took: Duration,
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Failed,
    Skipped(String),
}

impl Steps {
    /// Does `work`, announced as `what` (a few words) and `why` (the rest of the line).
    ///
    /// # Errors
    ///
    /// Those of `work`.
    pub fn step<T>(&mut self, what: &str, why: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("==> {what}: {why}");
        let start = Instant::now();
        let result = work();
        let took = start.elapsed();
        let outcome = if result.is_ok() { Outcome::Done } else { Outcome::Failed };
        println!("    {what}: {outcome} in {}", seconds(took));
        self.rows.push(Row { what: what.to_owned(), outcome, took });
        result
    }

    /// Records that `what` was not done.
    pub fn skip(&mut self, what: &str, reason: &str) {
        println!("==> {what}: skipped, {reason}");
        let outcome = Outcome::Skipped(reason.to_owned());
        self.rows.push(Row { what: what.to_owned(), outcome, took: Duration::ZERO });
    }

    /// Prints every step with its duration, and the sum.
    pub fn print_table(&self) {
        if self.rows.is_empty() {
            return;
        }
        let width = self.rows.iter().map(|row| row.what.len()).max().unwrap_or(0).max("total".len());
        println!();
        for Row { what, outcome, took } in &self.rows {
            println!("{what:width$}  {:>9}  {outcome}", seconds(*took));
        }
        let total = self.rows.iter().map(|row| row.took).sum();
        println!("{:width$}  {:>9}", "total", seconds(total));
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Failed => f.write_str("FAILED"),
            Self::Skipped(reason) => write!(f, "skipped: {reason}"),
        }
    }
}

fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn rows_keep_order_and_outcome() {
        let mut steps = Steps::default();
        assert_eq!(steps.step("one", "why", || Ok(1)).expect("the work succeeds"), 1);
        assert!(steps.step("two", "why", || Err::<(), _>(anyhow!("no"))).is_err());
        steps.skip("three", "no root");
        let outcomes: Vec<_> = steps.rows.iter().map(|row| row.outcome.to_string()).collect();
        assert_eq!(outcomes, ["done", "FAILED", "skipped: no root"]);
    }
}
