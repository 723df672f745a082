//! No rule can go missing unnoticed: without any one of them a scenario with its name fails.

use std::process::Command;

use userns_agent::core::rules::{RuleId, rule};

use super::world::WITHOUT;

/// Scenarios that fail, of those that begin with `prefix`, and how many there are.
fn failures(prefix: &str, without: &str) -> (Vec<String>, usize) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args([prefix, "--test-threads=2"]).env(WITHOUT, without).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let ends = |line: &str, word: &str| {
        let name = line.strip_prefix("test ")?.strip_suffix(word)?;
        Some(name.to_owned())
    };
    let failed: Vec<String> = text.lines().filter_map(|line| ends(line, " ... FAILED")).collect();
    let passed = text.lines().filter(|line| ends(line, " ... ok").is_some()).count();
    let all = failed.len() + passed;
    (failed, all)
}

#[test]
fn without_any_rule_a_scenario_of_its_own_fails() {
    for id in RuleId::ALL {
        let id = rule(*id).id;
        // of rule I1, and not of I10
        let prefix = format!("{}_", id.to_lowercase());
        let (failed, all) = failures(&prefix, id);
        assert!(all > 0 && failed.iter().any(|name| name.contains(&prefix)), "{id}: {failed:?} of {all}");
        println!("without {id} of {all} scenarios {} fail: {}", failed.len(), failed.join(", "));
    }
    let (failed, all) = failures("fires", "none");
    assert!(failed.is_empty() && all > 20, "{failed:?} of {all} fail with all rules");
}
