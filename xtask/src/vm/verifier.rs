//! How much work the programs are for each kernel's verifier, against the figures that were last agreed to.
//!
//! The kernel's limit is a million instructions for a program, and start-up time grows with them. Growth shows in
//! the commit that blesses it.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};

/// Below the workspace's root.
pub(super) const FILE: &str = "docs/verifier.json";
/// Growth in percent that is not asked about.
const TOLERANCE: u64 = 10;
const BLESS: &str = "see what made it grow, then run `cargo xtask vm --bless` and explain it in the commit";

/// Instructions by program.
pub(super) type Figures = BTreeMap<String, u64>;
/// Figures by kernel line.
pub(super) type Kernels = BTreeMap<String, Figures>;

/// Holds `found` against the file, or with `bless` writes it there; returns what grew. Kernels that the file does not
/// know are told of and pass: Debian may have brought them today.
///
/// # Errors
///
/// When the file cannot be read or written.
pub(super) fn check(root: &Path, found: &Kernels, bless: bool) -> Result<Vec<String>> {
    let path = root.join(FILE);
    let mut agreed = read(&path)?;
    if bless {
        agreed.extend(found.clone());
        let text = serde_json::to_string_pretty(&agreed).context("cannot write JSON")? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("    wrote {FILE}");
        return Ok(Vec::new());
    }
    for line in found.keys().filter(|line| !agreed.contains_key(*line)) {
        println!("    {FILE} has no figures for {line} yet: `cargo xtask vm --bless` adds them");
    }
    Ok(compare(found, &agreed))
}

fn read(path: &Path) -> Result<Kernels> {
    if !path.exists() {
        return Ok(Kernels::new());
    }
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))
}

fn compare(found: &Kernels, agreed: &Kernels) -> Vec<String> {
    let known = found.iter().filter_map(|(line, figures)| Some((line, figures, agreed.get(line)?)));
    known
        .flat_map(|(line, figures, agreed)| {
            figures.iter().filter_map(move |(program, now)| match agreed.get(program) {
                Some(then) if *now * 100 <= *then * (100 + TOLERANCE) => None,
                Some(then) => Some(format!(
                    "{line}: the verifier went through {now} instructions of {program}, {then} before: {BLESS}"
                )),
                None => Some(format!("{line}: {program} is not in {FILE}: {BLESS}")),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernels(line: &str, figures: &[(&str, u64)]) -> Kernels {
        let figures = figures.iter().map(|(program, count)| ((*program).to_owned(), *count)).collect();
        Kernels::from([(line.to_owned(), figures)])
    }

    #[test]
    fn growth_and_new_programs_are_asked_about() {
        let agreed = kernels("6.1", &[("exec", 1000), ("exit", 500)]);
        assert_eq!(compare(&kernels("6.1", &[("exec", 1100), ("exit", 5)]), &agreed), Vec::<String>::new());
        assert_eq!(compare(&kernels("9.9", &[("exec", 1_000_000)]), &agreed), Vec::<String>::new());
        let grown = compare(&kernels("6.1", &[("exec", 1101), ("fork", 1)]), &agreed);
        assert_eq!(grown.len(), 2);
        assert!(grown[0].contains("1101") && grown[0].contains("1000") && grown[0].contains("--bless"));
        assert!(grown[1].contains("fork is not in"));
    }

    #[test]
    fn what_is_blessed_is_agreed_to() {
        let root = std::env::temp_dir().join(format!("userns-verifier-{}", std::process::id()));
        fs::create_dir_all(root.join("docs")).unwrap();
        let (old, new) = (kernels("6.1", &[("exec", 10)]), kernels("7.2", &[("exec", 20)]));
        for figures in [&old, &new] {
            assert_eq!(check(&root, figures, true).unwrap(), Vec::<String>::new());
        }
        assert_eq!(check(&root, &old, false).unwrap(), Vec::<String>::new());
        assert_eq!(check(&root, &kernels("7.2", &[("exec", 23)]), false).unwrap().len(), 1);
        fs::remove_dir_all(root).unwrap();
    }
}
