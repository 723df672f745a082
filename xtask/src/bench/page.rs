//! docs/benchmarks.md: figures with how they were had, and what they do not say.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use super::{Results, delays, flood, programs, scale, storm};

const PAGE: &str = "benchmarks.md";

/// The whole page; a part that was not measured is left out.
pub(super) fn page(results: &Results, machine: &str) -> String {
    let mut text = String::new();
    for counted in &results.instructions {
        let _ = writeln!(text, "{}", counted.table());
    }
    let _ = writeln!(text, "Measured on {machine}.\n");
    if !results.programs.is_empty() {
        let _ = writeln!(text, "{}", programs::table(&results.programs));
    }
    if !results.storms.is_empty() {
        let _ = writeln!(text, "{}", storm::table(&results.storms));
    }
    let others = results.flood.iter().flat_map(|flood| &flood.others);
    let delays: Vec<_> = results.delays.iter().chain(others).cloned().collect();
    if !delays.is_empty() {
        let _ = writeln!(text, "{}", delays::table(&delays));
    }
    if let Some(flood) = &results.flood {
        let _ = writeln!(text, "{}", flood::table(flood));
    }
    if !results.sizes.is_empty() {
        let _ = writeln!(text, "{}", scale::table(&results.sizes));
    }
    text
}

/// Writes the page into `docs`.
///
/// # Errors
///
/// When it cannot be written.
pub(super) fn write(docs: &Path, page: &str, _results: &Results) -> Result<()> {
    let path = docs.join(PAGE);
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
}
