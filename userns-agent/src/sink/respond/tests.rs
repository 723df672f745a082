//! Commands that do what they say, whatever the names.

use std::process::Command;

use super::*;
use crate::sink::sample;

const HOSTILE: [&str; 6] = [
    "'; touch pwned; rm -rf / #",
    "$(touch pwned)`touch pwned`",
    "a b\tc\nd",
    "-rf",
    "\"; touch pwned; \"",
    "\u{202e}\u{1b}]0;x\u{7}' || touch pwned || '",
];

fn hostile(finding: &mut Finding, name: &str) {
    let pod = finding.pod.as_mut().unwrap();
    (pod.namespace, pod.name) = (Some(name.to_owned()), Some(name.to_owned()));
    pod.labels.insert(name.to_owned(), name.to_owned());
    pod.service_account = Some(name.to_owned());
    let owner = pod.owner.as_mut().unwrap();
    (owner.kind, owner.name) = (name.to_owned(), name.to_owned());
    let container = finding.container.as_mut().unwrap();
    (container.id, container.cgroup_path) = (name.to_owned(), format!("/{name}"));
    let event = finding.task.as_mut().unwrap();
    (event.task.comm, event.path) = (name.into(), name.into());
    event.args = vec![name.into()];
}

/// What a shell makes of a command: its words, from a directory in which nothing else happens.
fn words(dir: &std::path::Path, command: &str) -> Vec<String> {
    let script = format!("show() {{ for word; do printf '%s\\0' \"$word\"; done; }}; show {command}");
    let output = Command::new("sh").args(["-c", &script]).current_dir(dir).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{script}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_terminator('\0').map(str::to_owned).collect()
}

#[test]
fn names_stay_names() {
    let dir = tempfile::tempdir().unwrap();
    for name in HOSTILE {
        for rule in RuleId::ALL {
            let mut finding = Finding { rule: *rule, ..sample::finding() };
            hostile(&mut finding, name);
            for Action { command, .. } in actions(&finding, name) {
                let Some(command) = command else { continue };
                assert!(!command.chars().any(super::super::text::is_deceptive), "{command:?}");
                // these two have redirections and names of this crate's own choice
                if command.starts_with("d=$(mktemp") {
                    assert!(!command.contains("pwned"), "{command}");
                    continue;
                }
                let command = command.replacen("echo 1 > ", "echo 1 ", 1);
                let words = words(dir.path(), &command);
                let shown: String = name.chars().filter(|c| !super::super::text::is_deceptive(*c)).collect();
                let after = words.iter().position(|word| word == "--").unwrap_or(usize::MAX);
                for (at, word) in words.iter().enumerate().filter(|(_, word)| word.contains(&shown)) {
                    assert!(
                        at > after || !word.starts_with(&shown),
                        "{word:?} may be an option in {command}"
                    );
                }
            }
        }
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something was run");
}

#[test]
fn a_quoted_word_is_the_word() {
    let dir = tempfile::tempdir().unwrap();
    for text in ["", "shop/web-0", "it's", "a b", "'; rm -rf /", "$HOME `x` \\ \"", "*", "~", "#x", "ä"] {
        assert_eq!(words(dir.path(), &word(text)), [text]);
    }
}

#[test]
fn what_to_do_depends_on_what_was_found() {
    let of = |rule, severity, status| {
        let finding = Finding { rule, severity, status, ..sample::finding() };
        let commands: Vec<String> =
            actions(&finding, "node-1").into_iter().filter_map(|action| action.command).collect();
        commands
            .iter()
            .map(|command| command.split(' ').take(2).collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
    };
    let open = Status::Opened;
    assert_eq!(
        of(RuleId::I1, Severity::Critical, open),
        [
            "kubectl cordon",
            "echo 1",
            "d=$(mktemp -d)",
            "userns-agent inspect",
            "crictl inspect",
            "kubectl drain",
            "kubectl get",
            "userns-agent explain"
        ]
    );
    assert_eq!(
        of(RuleId::I3, Severity::High, open),
        [
            "userns-agent inspect",
            "crictl inspect",
            "userns-agent ps",
            "kubectl delete",
            "userns-agent explain"
        ]
    );
    assert!(!of(RuleId::I11, Severity::Low, open).contains(&"kubectl delete".to_owned()));
    assert!(of(RuleId::I4, Severity::Critical, open).contains(&"kubectl drain".to_owned()));
    assert!(!of(RuleId::I4, Severity::High, open).contains(&"kubectl drain".to_owned()));
    assert_eq!(of(RuleId::I1, Severity::Critical, Status::Resolved), ["userns-agent explain"]);
    let text = actions(&sample::finding(), "node-1");
    assert!(text.iter().any(|it| it.command.as_deref() == Some("userns-agent inspect -- default/web-0")));
    assert!(text.iter().all(|it| it.what.ends_with('.')));
}

#[test]
fn a_finding_without_names_says_what_there_is_to_do() {
    let bare = actions(&sample::bare(), "node-1");
    assert_eq!(bare[0].command.as_deref(), Some("kubectl cordon -- node-1"));
    let mut unnamed = Finding { rule: RuleId::I5, ..sample::finding() };
    unnamed.pod.as_mut().unwrap().name = None;
    let commands: Vec<String> =
        actions(&unnamed, "n").into_iter().filter_map(|action| action.command).collect();
    assert!(commands.contains(&"userns-agent inspect -- 0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11".to_owned()));
    assert!(!commands.iter().any(|command| command.starts_with("kubectl delete")));
}
