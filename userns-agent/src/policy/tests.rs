//! The rules file: what it may say, every mistake with its line, reloading, and what `check-config` tells.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use super::report::report;
use super::*;
use crate::event::{Fact, Nanos};
use crate::host::proc::ProcFs;
use crate::host::{SourceHealth, SourceState};
use crate::ps::known::KnownException;
use tokio::sync::watch;

const NAME: &str = "rules.yaml";
const HEAD: &str = "apiVersion: userns-agent/v1alpha1\nkind: RuleSet\n";
const SOON: Duration = Duration::from_millis(10);
/// Boot lies at 2030-01-01 in these tests.
const CLOCK: WallClock = WallClock { boot: 1_893_456_000_000_000_000 };

fn read(text: &str) -> Result<RuleSet, RulesError> {
    parse(Path::new(NAME), text.as_bytes())
}

fn mistakes(text: &str) -> Vec<String> {
    match read(text) {
        Err(RulesError::Invalid { mistakes }) => mistakes.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

/// The mistakes of one exception from I2, with this in it.
fn mistakes_with(lines: &str) -> Vec<String> {
    let exception = format!("{HEAD}exceptions:\n- name: a\n  rules: [I2]\n  reason: b\n{lines}");
    mistakes(&exception)
}

/// The example of docs/rules-file.md.
fn example() -> String {
    let page = include_str!("../../../docs/rules-file.md");
    let (_, behind) = page.split_once("```yaml\n").unwrap();
    behind.split_once("```").unwrap().0.to_owned()
}

#[test]
fn the_documented_example_is_read_and_says_everything_there_is_to_say() {
    let text = example();
    let rules = read(&text).unwrap_or_else(|error| panic!("{error}"));
    for key in [
        "enabled",
        "severity",
        "threshold",
        "count",
        "name",
        "rules",
        "namespaces",
        "matchLabels",
        "images",
        "executables",
        "serviceAccounts",
        "reason",
        "expires",
        "silencesCredentialEscape",
    ] {
        assert!(text.contains(&format!("{key}:")), "the example lacks {key}");
    }
    assert!(rules.rules.iter().any(|setting| !setting.enabled));
    assert!(rules.exceptions.iter().any(|it| it.silences_credential_escape && it.rules == [RuleId::I1]));
}

#[test]
fn a_full_file_becomes_a_policy() {
    let text = format!(
        "{HEAD}metadata: {{name: production}}\n\
         rules:\n\
         - {{id: denied_attempts, severity: medium, threshold: {{count: 10}}}}\n\
         - {{id: I12, enabled: false}}\n\
         exceptions:\n\
         - name: debugger\n\
         \x20 rules: [I12, host_root_in_pod]\n\
         \x20 namespaces: [kube-system, ci-*]\n\
         \x20 matchLabels: {{app.kubernetes.io/name: web}}\n\
         \x20 images: ['registry.example:5000/tools/*', 'sha256:12']\n\
         \x20 executables: [/usr/bin/debugger, /nowhere]\n\
         \x20 serviceAccounts: [builder]\n\
         \x20 reason: Told by the node team\n\
         \x20 expires: 2030-01-02\n"
    );
    let rules = read(&text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(rules.executables(), [PathBuf::from("/nowhere"), "/usr/bin/debugger".into()]);
    let image = Image { ino: 5, dev: 1, nlink: 1 };
    let policy = rules.policy(CLOCK, &Identities::from([("/usr/bin/debugger".into(), image)]));
    let setting = |rule: &str, enabled, severity, threshold| event::RuleSetting {
        rule: rule.to_owned(),
        enabled,
        severity,
        threshold,
    };
    assert_eq!(
        policy.rules,
        [setting("I11", true, Some(Severity::Medium as u8), 10), setting("I12", false, None, 0)]
    );
    let expected = event::Exception {
        name: "debugger".to_owned(),
        rules: vec!["I2".to_owned(), "I12".to_owned()],
        namespaces: vec!["kube-system".to_owned(), "ci-*".to_owned()],
        labels: [("app.kubernetes.io/name".to_owned(), "web".to_owned())].into(),
        images: vec!["registry.example:5000/tools/*".to_owned(), "sha256:12".to_owned()],
        service_accounts: vec!["builder".to_owned()],
        executables: Some(vec![image]),
        silences_credential_escape: false,
        expires: Some(Nanos(86_400_000_000_000)),
    };
    assert_eq!(policy.exceptions, [expected]);
}

#[test]
fn a_file_may_change_nothing() {
    for text in [HEAD.to_owned(), format!("{HEAD}rules: []\nexceptions:\n"), format!("{HEAD}rules: null\n")] {
        assert_eq!(read(&text).unwrap(), RuleSet::default(), "{text}");
    }
    assert_eq!(RuleSet::default().policy(CLOCK, &Identities::new()), Policy::default());
}

#[test]
fn all_mistakes_are_reported_at_once_with_their_lines() {
    let text = "apiVersion: v1\n\
                knd: RuleSet\n\
                rules:\n\
                - id: I99\n\
                - id: I2\n\
                \x20 severity: grave\n\
                \x20 treshold: {count: 3}\n\
                - id: I11\n\
                \x20 threshold:\n\
                \x20   count: 0\n\
                exceptions:\n\
                - name: One\n\
                \x20 rules: [I2, I100]\n\
                \x20 namespaces: [ok, Not, '*']\n\
                \x20 reason: ''\n\
                \x20 expires: tomorrow\n";
    let rules: Vec<_> = RuleId::ALL.iter().map(|id| rules::rule(*id).id).collect();
    let rule = format!("the id or name of a rule: one of {}", rules.join(", "));
    let expected = [
        "1: apiVersion: found \"v1\"; allowed is userns-agent/v1alpha1",
        "1: kind: found nothing; allowed is RuleSet",
        "2: knd: found a key that does not exist; allowed is kind, if that was meant",
        &format!("4: rules[0].id: found \"I99\"; allowed is {rule}"),
        "6: rules[1].severity: found \"grave\"; allowed is one of info, low, medium, high, critical",
        "7: rules[1].treshold: found a key that does not exist; allowed is threshold, if that was meant",
        "10: rules[2].threshold.count: found the number 0; allowed is a whole number from 1 to 1000000",
        "12: exceptions[0].name: found \"One\"; allowed is a name of at most 63 lower case letters, digits and `-`",
        &format!("13: exceptions[0].rules[1]: found \"I100\"; allowed is {rule}"),
        "14: exceptions[0].namespaces[1]: found \"Not\"; allowed is a name, perhaps with `*` at its end",
        "14: exceptions[0].namespaces[2]: found \"*\"; allowed is a name, perhaps with `*` at its end",
        "15: exceptions[0].reason: found \"\"; allowed is a text of at most 512 characters that says why this is \
         expected",
        "16: exceptions[0].expires: found \"tomorrow\"; allowed is a date, or a time in UTC, such as 2030-01-31 or \
         2030-01-31T12:00:00Z",
    ];
    assert_eq!(mistakes(text), expected.map(|mistake| format!("rules.yaml:{mistake}")));
}

#[test]
fn i1_is_not_touched_by_accident() {
    let exception = |more: &str| {
        format!("{HEAD}exceptions:\n- name: a\n  rules: [I1]\n  namespaces: [lab]\n  reason: b\n{more}")
    };
    assert_eq!(
        mistakes(&exception("")),
        [
            "rules.yaml:5: exceptions[0].rules: found I1; allowed is I1 only with silencesCredentialEscape: true, as it \
          proves that credentials were replaced inside the kernel"
        ]
    );
    assert_eq!(mistakes(&exception("  silencesCredentialEscape: false\n")).len(), 1);
    assert!(
        read(&exception("  silencesCredentialEscape: true\n")).unwrap().exceptions[0]
            .silences_credential_escape
    );
    let found = mistakes_with("  namespaces: [a]\n  silencesCredentialEscape: true\n");
    assert!(found[0].ends_with("true only where rules has I1") && found.len() == 1, "{found:?}");
    for (line, says) in [
        ("enabled: false", "silencesCredentialEscape"),
        ("severity: low", "critical for I1"),
        ("threshold: {count: 2}", "I5, I10, I11 only"),
    ] {
        let found = mistakes(&format!("{HEAD}rules:\n- id: I1\n  {line}\n"));
        assert!(
            found.len() == 1 && found[0].starts_with("rules.yaml:5: ") && found[0].contains(says),
            "{found:?}"
        );
    }
    assert!(read(&format!("{HEAD}rules: [{{id: I1, enabled: true, severity: critical}}]")).is_ok());
}

#[test]
fn an_exception_is_about_something_and_says_why() {
    let found = mistakes_with("");
    assert!(found[0].contains("found an exception for everything") && found.len() == 1, "{found:?}");
    for line in [
        "  namespaces: []\n",
        "  namespaces: kube-system\n",
        "  images: ['*']\n",
        "  images: ['a b']\n",
        "  matchLabels: {}\n",
        "  matchLabels: {a: 1}\n",
        "  matchLabels: [a]\n",
        "  serviceAccounts: [A]\n",
        "  executables: [debugger]\n",
        "  executables: [/usr/../debugger]\n",
        "  executables: [/]\n",
        "  namespaces: [a]\n  comm: [sh]\n",
        "  namespaces: [a]\n  expires: 2030-01-31T12:00:00\n",
        "  namespaces: [a]\n  expires: 2030-02-30\n",
        "  namespaces: [a]\n  silencesCredentialEscape: yes\n",
    ] {
        assert_eq!(mistakes_with(line).len(), 1, "{line}: {:?}", mistakes_with(line));
    }
    let other = format!(
        "{HEAD}exceptions:\n- {{name: a, rules: [I11, I2], executables: [/x], reason: b}}\n- {{name: a, rules: [], \
         namespaces: [x]}}\n- 3\n"
    );
    let found = mistakes(&other);
    let says = |what: &str| found.iter().any(|mistake| mistake.contains(what));
    assert!(says("executables with I11") && says("executables only with I2, I12"), "{found:?}");
    assert!(says("the name a a second time") && says("exceptions[1].reason: found nothing"), "{found:?}");
    assert!(
        says("exceptions[1].rules: found a list of 0") && says("exceptions[2]: found the number 3"),
        "{found:?}"
    );
    let twice = format!("{HEAD}rules: [{{id: I2}}, {{id: host_root_in_pod}}]\n");
    assert!(mistakes(&twice)[0].contains("I2 a second time"), "{:?}", mistakes(&twice));
}

#[test]
fn what_is_no_rules_file_is_refused() {
    for text in ["", "3", "[1]", "a"] {
        assert!(!mistakes(text).is_empty(), "{text:?}");
    }
    for text in ["a: [", "kind: a\nkind: b", "a: b\n---\nc: d\n"] {
        let error = read(text).unwrap_err();
        assert!(matches!(error, RulesError::Syntax { .. }), "{text:?}: {error}");
        assert!(error.to_string().contains(NAME) && error.to_string().lines().count() == 1, "{error}");
    }
    assert!(matches!(parse(Path::new(NAME), b"kind: \xff"), Err(RulesError::Syntax { .. })));
    let large = vec![b' '; usize::try_from(MAX_FILE_BYTES).unwrap() + 1];
    assert!(matches!(parse(Path::new(NAME), &large), Err(RulesError::Read { .. })));
    assert_eq!(ExitCode::from(&load(Path::new("/nonexistent")).unwrap_err()), ExitCode::NoInput);
    assert_eq!(ExitCode::from(&read("3").unwrap_err()), ExitCode::Usage);
    let many = format!("{HEAD}exceptions: [{}]\n", ["{name: a}"; 257].join(", "));
    assert!(mistakes(&many)[0].ends_with("a list of at most 256"));
}

#[test]
fn the_end_of_an_exception_is_on_the_clock_of_the_kernel() {
    let at = |text: &str| {
        let text = format!(
            "{HEAD}exceptions:\n- {{name: a, rules: [I2], namespaces: [x], reason: b, expires: {text}}}\n"
        );
        let rules = read(&text).unwrap_or_else(|error| panic!("{error}"));
        rules.policy(CLOCK, &Identities::new()).exceptions[0].expires.unwrap().0
    };
    assert_eq!(at("2030-01-01T00:00:00.5Z"), 500_000_000);
    assert_eq!(at("2030-01-01T01:00:00Z"), 3_600_000_000_000);
    assert_eq!(at("2029-12-31"), 0, "before the boot: it has ended");
    assert_eq!(at("9999-12-31"), at("9999-12-31T00:00:00Z"));
}

fn surroundings(host_root: &Path, clock: fn() -> WallClock) -> Surroundings {
    Surroundings { host_root: host_root.to_owned(), proc: ProcFs::new("/proc"), clock }
}

fn watcher(path: &Path) -> (RulesWatcher, watch::Receiver<SourceHealth>) {
    RulesWatcher::new(path, SOON, surroundings(path.parent().unwrap(), || CLOCK))
}

async fn next(watcher: &mut RulesWatcher) -> Policy {
    let fact =
        tokio::time::timeout(Duration::from_secs(10), watcher.next()).await.expect("no change was seen");
    let Fact::Policy(policy) = fact else { panic!("{fact:?}") };
    *policy
}

async fn nothing_new(watcher: &mut RulesWatcher) {
    let waited = tokio::time::timeout(Duration::from_millis(150), watcher.next()).await;
    assert!(waited.is_err(), "{waited:?}");
}

#[tokio::test]
async fn a_bad_new_file_keeps_the_old_one_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    fs::write(&path, format!("{HEAD}rules: [{{id: I12, enabled: false}}]\n")).unwrap();
    let (mut watcher, health) = watcher(&path);
    assert_eq!(watcher.initial().len(), 1);
    assert_eq!(health.borrow().state, SourceState::Ok);
    for (text, says) in [
        (Some(format!("{HEAD}rules: [{{id: I99}}]\n")), "rules.yaml:3: rules[0].id"),
        (Some("a: [".to_owned()), "is no YAML"),
        (None, "cannot read"),
    ] {
        match text {
            Some(text) => fs::write(&path, text).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        nothing_new(&mut watcher).await;
        let broken = health.borrow().clone();
        assert_eq!(broken.state, SourceState::Failing);
        assert!(broken.detail.contains(says), "{}", broken.detail);
        assert!(
            broken.detail.ends_with("0 exceptions of an earlier reading stay in force"),
            "{}",
            broken.detail
        );
        assert!(broken.errors > 0 && !broken.detail.contains('\n'));
    }
    fs::write(&path, format!("{HEAD}rules: [{{id: I12, enabled: false}}]\n")).unwrap();
    nothing_new(&mut watcher).await;
    assert_eq!(health.borrow().state, SourceState::Ok);
    fs::write(&path, HEAD).unwrap();
    assert_eq!(next(&mut watcher).await, Policy::default());
}

#[tokio::test]
async fn a_first_file_that_is_bad_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    fs::write(&path, "3").unwrap();
    let (mut watcher, health) = watcher(&path);
    assert_eq!(watcher.initial(), []);
    assert!(health.borrow().detail.ends_with("every rule is as built in"), "{:?}", health.borrow());
}

#[tokio::test]
async fn a_program_that_is_replaced_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    let tool = dir.path().join("tool");
    fs::write(&tool, "old").unwrap();
    fs::create_dir(dir.path().join("bin")).unwrap();
    fs::write(dir.path().join("bin/runc"), "a runtime, which nobody asked for").unwrap();
    let exception = "{name: a, rules: [I2], executables: [/tool, /bin], reason: b}";
    fs::write(&path, format!("{HEAD}exceptions: [{exception}]\n")).unwrap();
    let (mut watcher, _health) = watcher(&path);
    let Some(Fact::Policy(policy)) = watcher.initial().pop() else { panic!("no policy") };
    let inodes = |policy: &Policy| -> Vec<u64> {
        policy.exceptions[0].executables.iter().flatten().map(|image| image.ino).collect()
    };
    assert_eq!(inodes(&policy), [fs::metadata(&tool).unwrap().ino()]);
    fs::write(dir.path().join("new"), "new").unwrap();
    fs::rename(dir.path().join("new"), &tool).unwrap();
    assert_eq!(inodes(&next(&mut watcher).await), [fs::metadata(&tool).unwrap().ino()]);
    fs::remove_file(&tool).unwrap();
    assert_eq!(inodes(&next(&mut watcher).await), [0; 0]);
}

#[tokio::test]
async fn a_correction_of_civil_time_moves_the_end_of_exceptions() {
    use std::sync::atomic::{AtomicU64, Ordering};
    static BOOT: AtomicU64 = AtomicU64::new(CLOCK.boot);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    let exception = "{name: a, rules: [I2], namespaces: [x], reason: b, expires: 2030-01-02}";
    fs::write(&path, format!("{HEAD}exceptions: [{exception}]\n")).unwrap();
    let clock = || WallClock { boot: BOOT.load(Ordering::Relaxed) };
    let (mut watcher, _health) = RulesWatcher::new(&path, SOON, surroundings(dir.path(), clock));
    watcher.initial();
    BOOT.fetch_add(500_000_000, Ordering::Relaxed);
    nothing_new(&mut watcher).await;
    BOOT.fetch_add(3_600_000_000_000, Ordering::Relaxed);
    let end = next(&mut watcher).await.exceptions[0].expires.unwrap();
    assert_eq!(end.0, 86_400_000_000_000 - 3_600_000_000_000 - 500_000_000);
}

#[test]
fn the_report_tells_what_differs_and_what_is_of_no_use() {
    let text = format!(
        "{HEAD}rules:\n- {{id: I12, enabled: false}}\n- {{id: I11, severity: medium, threshold: {{count: 10}}}}\n\
         exceptions:\n\
         - {{name: used, rules: [I2, I12], executables: [/tool, /gone], reason: \"one\\ntwo\"}}\n\
         - {{name: unused, rules: [I11], namespaces: [ci], images: [a/*], reason: b, expires: 2031-01-01}}\n\
         - {{name: old, rules: [I11], matchLabels: {{a: b}}, serviceAccounts: [c], reason: c, expires: 2029-01-01}}\n"
    );
    let rules = read(&text).unwrap_or_else(|error| panic!("{error}"));
    let found = Identities::from([("/tool".into(), Image::default())]);
    let known = [
        KnownException { name: "used".into(), matched: 3, last_match: Some("2030-01-01T00:00:00Z".into()) },
        KnownException { name: "unused".into(), ..KnownException::default() },
    ];
    let now = CLOCK.at(Nanos(0));
    let said = report(Path::new("/etc/rules.yaml"), &rules, &found, Ok(&known), now);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/rules.txt");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&golden, &said).unwrap();
    }
    assert_eq!(said, fs::read_to_string(&golden).unwrap(), "UPDATE=1 writes it");
    assert!(said.lines().all(|line| line.starts_with("# ")), "the configuration stays YAML");
    let alone = report(Path::new("/etc/rules.yaml"), &rules, &found, Err("no agent listens"), now);
    assert!(alone.contains("what it has withheld is not known: no agent listens"), "{alone}");
    let plain = report(Path::new("/etc/rules.yaml"), &RuleSet::default(), &found, Ok(&[]), now);
    assert!(plain.ends_with("# Exceptions: none\n") && !plain.contains("turned off"), "{plain}");
}

#[test]
fn what_the_agent_renders_of_exceptions_is_understood() {
    use crate::core::ExceptionView;
    let view = ExceptionView {
        name: "a".into(),
        rules: vec![RuleId::I2],
        expires: None,
        expired: false,
        matched: 2,
        last: Some(Nanos(0)),
    };
    let json: serde_json::Value =
        serde_json::from_slice(&crate::sink::json::rules(&[view], CLOCK).unwrap()).unwrap();
    let known: Vec<KnownException> = serde_json::from_value(json["exceptions"].clone()).unwrap();
    let last_match = Some("2030-01-01T00:00:00.000000000Z".into());
    assert_eq!(known, [KnownException { name: "a".into(), matched: 2, last_match }]);
}
