//! Files of Pod objects: forms, mistakes, reloading.

use std::fs;

use super::*;
use crate::event::{ContainerSpec, PodSource, PodUid};

const UID: &str = "0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11";
const OTHER: &str = "1f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11";
const HASH: &str = "51bd78aa51bd78aa51bd78aa51bd78aa";
const SOON: Duration = Duration::from_millis(10);

fn pod(uid: &str, name: &str) -> String {
    format!("{{\"kind\":\"Pod\",\"metadata\":{{\"uid\":\"{uid}\",\"name\":\"{name}\",\"namespace\":\"n\"}}}}")
}

fn names(text: &str) -> Vec<String> {
    parse_pods(text.as_bytes()).unwrap().into_iter().map(|pod| pod.name).collect()
}

fn error(text: &str) -> String {
    parse_pods(text.as_bytes()).unwrap_err().to_string()
}

const YAML: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  uid: 0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11
  labels: {app: web, tier: \"1\"}
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: |
      {\"a\": [1, 2]}
spec:
  hostUsers: false
  runtimeClassName: crun
  containers:
  - name: web
    image: web:1
    command: [sh, -c, 'echo hello; sleep 1d']
status: {phase: Running}
";

#[test]
fn a_pod_is_read() {
    let expected = PodSpec {
        uid: PodUid::parse(UID).unwrap(),
        namespace: "shop".into(),
        name: "web".into(),
        labels: [("app".to_owned(), "web".to_owned()), ("tier".to_owned(), "1".to_owned())].into(),
        host_users: Some(false),
        runtime_class: Some("crun".into()),
        containers: vec![ContainerSpec {
            name: "web".into(),
            image: "web:1".into(),
            ..ContainerSpec::default()
        }],
        ..PodSpec::default()
    };
    assert_eq!(parse_pods(YAML.as_bytes()).unwrap(), [expected]);
}

#[test]
fn host_users_is_unset_when_null_or_absent() {
    for (value, expected) in [
        ("hostUsers: true", Some(true)),
        ("hostUsers: null", None),
        ("hostUsers:", None),
        ("hostNetwork: false", None),
        ("hostUsers: no", Some(false)),
    ] {
        let text = YAML.replace("hostUsers: false", value);
        assert_eq!(parse_pods(text.as_bytes()).unwrap()[0].host_users, expected, "{value}");
    }
    assert!(error(&YAML.replace("hostUsers: false", "hostUsers: maybe")).contains("line 13"));
}

#[test]
fn lists_and_several_documents_are_read() {
    let (a, b) = (pod(UID, "a"), pod(OTHER, "b"));
    let bare = b.replace("\"kind\":\"Pod\",", "");
    assert_eq!(names(&a), ["a"]);
    assert_eq!(names(&format!("{a}\n{b}")), ["a", "b"]);
    assert_eq!(names(&format!("{{\"kind\":\"PodList\",\"items\":[{a},{bare}]}}")), ["a", "b"]);
    assert_eq!(names(&format!("{{\"kind\":\"List\",\"items\":[{a}]}} {b}")), ["a", "b"]);
    assert_eq!(names("{\"kind\":\"PodList\",\"items\":[]}"), [""; 0]);
    assert_eq!(names("kind: PodList\nitems:\n"), [""; 0]);
    let second = YAML.replace("name: web\n  names", "name: two\n  names");
    assert_eq!(names(&format!("---\n{YAML}---\n# nothing here\n---{second}...\n")), ["web", "two"]);
    assert_eq!(names(&format!("kind: List\nitems:\n- {a}\n- {bare}\n")), ["a", "b"]);
    assert_eq!(names(""), [""; 0]);
}

#[test]
fn static_pods_are_known_by_their_hash() {
    let text = YAML.replace(
        "kubectl.kubernetes.io/last-applied-configuration: |\n      {\"a\": [1, 2]}",
        &format!("kubernetes.io/config.mirror: {HASH}"),
    );
    assert_eq!(parse_pods(text.as_bytes()).unwrap()[0].uid.as_str(), HASH);
}

#[test]
fn a_pod_larger_than_any_is_refused() {
    let text = YAML.replace("name: web\n  names", &format!("name: {}\n  names", "w".repeat(5000)));
    assert!(error(&text).ends_with("longer than any cluster's"), "{}", error(&text));
}

#[test]
fn what_is_no_pod_is_named() {
    let service = "{\"kind\":\"Service\"}";
    assert_eq!(
        error(&format!("{} {service}", pod(UID, "a"))),
        "document 2 is of kind Service; only Pod, PodList and List of Pods are read"
    );
    assert_eq!(
        error(&format!("kind: List\nitems: [{}, {service}]", pod(UID, "a"))),
        "document 1, item 2, is of kind Service; only Pod, PodList and List of Pods are read"
    );
    assert!(error("a: b").starts_with("document 1 is of no kind"));
    assert!(
        error("{\"kind\":\"PodList\",\"items\":[{}]}")
            .starts_with("document 1, item 1, has no usable metadata.name")
    );
    assert!(error(&pod("", "a")).contains("has no usable metadata.uid: it is neither"));
    assert!(error(&YAML.replace("  uid: ", "  id: ")).contains("metadata.uid: it is missing"));
    assert!(error("{\"kind\":\"Pod\",").starts_with("document 1 is no Pod object: EOF"));
    assert!(error("[1, 2]").starts_with("it is no YAML of Pod objects: "));
    assert!(error("kind: Pod\nkind: Pod").contains("line 2"));
    assert!(matches!(parse_pods(b"kind: \xff"), Err(PodsError::NotUtf8 { offset: 6 })));
    assert!(matches!(parse_pods(&vec![b' '; MAX_PODS_FILE_BYTES + 1]), Err(PodsError::TooLarge)));
}

#[test]
fn messages_are_short_and_plain() {
    let long = format!("\u{1b}[2J{}", "x".repeat(1_000_000));
    let json = |text: &str| serde_json::Value::from(text).to_string();
    for text in [
        format!("{{\"kind\":{}}}", json(&long)),
        format!("{{\"kind\":\"Pod\",\"spec\":{{\"hostUsers\":{}}}}}", json(&long)),
        format!("kind: Pod\nspec:\n  hostUsers: {}", json(&long)),
        format!("kind: {}", json(&long)),
    ] {
        let error = error(&text);
        assert!(error.len() < 500 && !error.contains(char::is_control), "{} bytes", error.len());
    }
}

#[test]
fn bombs_are_refused_quickly() {
    let mut aliases = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let alias = format!("*a{}", level - 1);
        aliases.push_str(&format!("b{level}: &a{level} [{}]\n", [alias.as_str(); 10].join(", ")));
    }
    let bombs = [
        format!("kind: Pod\n{aliases}"),
        format!("kind: PodList\nmetadata:\n  labels:\n{}", aliases.replace("\n", "\n    ")),
        "[".repeat(100_000),
        format!("{{\"a\":{}", "[".repeat(100_000)),
        "- ".repeat(100_000),
        "--- a\n".repeat(100_000),
        format!("kind: Pod\nx: {}", "&a ".repeat(10_000)),
    ];
    for bomb in bombs {
        let begin = std::time::Instant::now();
        assert!(parse_pods(bomb.as_bytes()).is_err(), "{}", &bomb[..40]);
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?} for {}", begin.elapsed(), &bomb[..40]);
    }
}

async fn next(watcher: &mut PodsFileWatcher) -> Vec<String> {
    let fact =
        tokio::time::timeout(Duration::from_secs(10), watcher.next()).await.expect("no change was seen");
    let Fact::Pods(PodSource::PodsFile, pods) = fact else { panic!("{fact:?}") };
    pods.into_iter().map(|pod| pod.name).collect()
}

#[tokio::test]
async fn changes_are_seen_in_place_and_by_rename() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pods.yaml");
    fs::write(&path, pod(UID, "a")).unwrap();
    let (mut watcher, health) = PodsFileWatcher::new(&path, SOON);
    assert_eq!(watcher.initial().len(), 1);
    // the same size and, within a clock tick, the same times
    fs::write(&path, pod(UID, "b")).unwrap();
    assert_eq!(next(&mut watcher).await, ["b"]);
    fs::write(dir.path().join("new"), pod(UID, "c")).unwrap();
    fs::rename(dir.path().join("new"), &path).unwrap();
    assert_eq!(next(&mut watcher).await, ["c"]);
    assert_eq!(
        *health.borrow(),
        SourceHealth { state: SourceState::Ok, records: 1, ..SourceHealth::default() }
    );
}

#[tokio::test]
async fn a_broken_file_leaves_what_was_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pods.yaml");
    fs::write(&path, pod(UID, "a")).unwrap();
    let (mut watcher, health) = PodsFileWatcher::new(&path, SOON);
    watcher.initial();
    for (text, says) in
        [(Some("{"), "cannot use"), (Some("kind: Service"), "is of kind Service"), (None, "does not exist")]
    {
        match text {
            Some(text) => fs::write(&path, text).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let waited = tokio::time::timeout(Duration::from_millis(100), watcher.next()).await;
        assert!(waited.is_err(), "{waited:?}");
        let broken = health.borrow().clone();
        assert_eq!((broken.state, broken.records), (SourceState::Failing, 1));
        assert!(
            broken.detail.contains(says)
                && broken.detail.ends_with("1 pods of an earlier reading stay in force")
        );
        assert!(broken.errors > 0);
    }
    fs::write(&path, pod(UID, "a")).unwrap();
    let waited = tokio::time::timeout(Duration::from_millis(100), watcher.next()).await;
    assert!(waited.is_err(), "the same pods are no news: {waited:?}");
    assert_eq!(health.borrow().state, SourceState::Ok);
}

#[tokio::test]
async fn a_file_that_appears_later_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pods.yaml");
    let (mut watcher, health) = PodsFileWatcher::new(&path, SOON);
    assert_eq!(watcher.initial(), []);
    assert_eq!((health.borrow().state, health.borrow().errors), (SourceState::Missing, 0));
    fs::write(&path, "").unwrap();
    assert_eq!(next(&mut watcher).await, [""; 0]);
    fs::write(&path, pod(UID, "a")).unwrap();
    assert_eq!(next(&mut watcher).await, ["a"]);
}

#[tokio::test]
async fn what_is_no_regular_file_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
    for (path, says) in [(path.as_path(), "not a regular file"), (dir.path(), "not a regular file")] {
        let (mut watcher, health) = PodsFileWatcher::new(path, SOON);
        assert_eq!(watcher.initial(), []);
        assert!(health.borrow().detail.contains(says), "{:?}", health.borrow());
    }
}
