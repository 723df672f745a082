//! `userns-agent replay`, as a program: lines, codes, and what differs between two rules files.

#![expect(unused_crate_dependencies, reason = "an integration test uses few of the package's dependencies")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "the scenarios use the rest")]
#[path = "scenarios/world.rs"]
mod world;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use userns_agent::event::Operation;
use world::{Actor, SECOND, World};

const BASE: u32 = 3_841_261_568;
const HOST_NS: u32 = world::HOST_NS;

/// Two pods: one where a program was denied something, and one that made a user namespace.
fn recording(dir: &Path) -> PathBuf {
    let mut world = World::new();
    for n in [1, 2] {
        world.recorded(n, BASE + n * 65_536);
        let container = world.honest_start(n, 50 * n, 7 + n, BASE + n * 65_536);
        let program = Actor::inside(50 * n + 1, 7 + n, BASE + n * 65_536);
        if n == 1 {
            world.calls(container, &program, Operation::Setns, -1);
        } else {
            world.calls(container, &program, Operation::UnshareNewUser, 0);
        }
    }
    world.pass(SECOND);
    let path = dir.join("a.rec");
    std::fs::write(&path, world.recording()).unwrap();
    path
}

fn replay(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_userns-agent")).arg("replay").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_recording_gives_the_same_lines_every_time() {
    assert_ne!(HOST_NS, 0);
    let dir = tempfile::tempdir().unwrap();
    let path = recording(dir.path());
    let path = path.to_str().unwrap();
    let first = replay(&[path, "--output", "json"]);
    assert_eq!(first.status.code(), Some(0), "{first:?}");
    assert_eq!(first.stdout, replay(&[path, "--output", "json"]).stdout);
    let rules: Vec<String> = text(&first.stdout)
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| line["finding"]["rule"]["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(rules, ["I11", "I10"]);
    assert!(text(&first.stderr).contains("2 lines about findings"), "{first:?}");
    let shown = replay(&[path]);
    assert!(text(&shown.stdout).contains("I11") && !text(&shown.stdout).contains('{'), "{shown:?}");
}

#[test]
fn rules_files_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let path = recording(dir.path());
    let rules = |name: &str, rules: &str| {
        let head = "apiVersion: userns-agent/v1alpha1\nkind: RuleSet\n";
        let path = dir.path().join(name);
        std::fs::write(&path, format!("{head}{rules}")).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let old = rules("old.yaml", "rules: []\n");
    let new = rules("new.yaml", "rules:\n- id: I10\n  enabled: false\n- id: I11\n  severity: medium\n");
    let path = path.to_str().unwrap();
    let output = replay(&[path, "--diff", &old, &new]);
    let told = text(&output.stdout);
    let marks: Vec<(&str, &str)> =
        told.lines().filter_map(|line| Some((line.get(..1)?, line.split(' ').nth(2)?))).collect();
    assert_eq!(marks[..3], [("-", "I11"), ("+", "I11"), ("-", "I10")], "{told}");
    assert!(told.ends_with("2 findings with the old rules, 1 with the new; 2 differ\n"), "{told}");
    let piped = Command::new(env!("CARGO_BIN_EXE_userns-agent"))
        .args(["replay", "-", "--diff", &old, &new])
        .stdin(std::fs::File::open(path).unwrap())
        .output()
        .unwrap();
    assert_eq!(text(&piped.stdout), told, "{piped:?}");
    let only = replay(&[path, "--rules", &new, "--output", "json"]);
    assert_eq!(text(&only.stdout).lines().count(), 1);
    let wrong = rules("wrong.yaml", "rules: 1\n");
    assert_eq!(replay(&[path, "--rules", &wrong]).status.code(), Some(64));
}

#[test]
fn a_recording_that_is_cut_is_replayed_as_far_as_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let path = recording(dir.path());
    let whole = std::fs::read(&path).unwrap();
    let cut = dir.path().join("cut.rec");
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let output = replay(&[cut.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(65), "{output:?}");
    assert!(text(&output.stderr).contains("the recording is "), "{output:?}");
    let missing = replay(&["/nowhere"]);
    assert_eq!(missing.status.code(), Some(66));
    std::fs::write(&cut, "no recording at all").unwrap();
    assert_eq!(replay(&[cut.to_str().unwrap()]).status.code(), Some(65));
}
