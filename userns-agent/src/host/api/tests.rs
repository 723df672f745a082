//! What the API server says, and where it is.

use std::fs;
use std::path::Path;

use super::access::escape;
use super::message::{Message, read};
use super::*;

fn pod_line(kind: &str) -> String {
    format!(
        "{{\"type\":\"{kind}\",\"object\":{{\"kind\":\"Pod\",\"metadata\":{{\"resourceVersion\":\"7\"}}}}}}"
    )
}

#[test]
fn each_kind_of_line_is_read() {
    for (kind, expected) in [("ADDED", false), ("MODIFIED", false), ("DELETED", true)] {
        let Ok(Message::Pod { gone, object }) = read(pod_line(kind).as_bytes()) else { panic!("{kind}") };
        assert_eq!(gone, expected, "{kind}");
        assert_eq!(object.metadata.unwrap().resource_version.as_deref(), Some("7"));
    }
    let bookmark = r#"{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"12",
        "creationTimestamp":null,"annotations":{"k8s.io/initial-events-end":"true"}},"spec":{"containers":null},
        "status":{}}}"#;
    for (text, ends) in [(bookmark.to_owned(), true), (bookmark.replace("\"true\"", "\"false\""), false)] {
        let Ok(Message::Bookmark(metadata)) = read(text.as_bytes()) else { panic!("{text}") };
        assert_eq!(
            (metadata.resource_version.as_deref(), metadata.ends_initial_events()),
            (Some("12"), ends)
        );
    }
    let error = r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
        "message":"too old resource version: 1 (2)","reason":"Expired","code":410,
        "details":{"retryAfterSeconds":3}}}"#;
    let Ok(Message::Error(refusal)) = read(error.as_bytes()) else { panic!("{error}") };
    assert_eq!(refusal.to_string(), "410 (too old resource version: 1 (2))");
    assert_eq!(refusal.retry_after, Some(Duration::from_secs(3)));
}

#[test]
fn what_is_no_event_ends_the_watch_and_what_is_no_pod_does_not() {
    for text in ["", "{", "{}", "[]", "\u{fffd}", "{\"type\":\"ADDED\"}"] {
        assert!(read(text.as_bytes()).is_err(), "{text}");
    }
    assert!(read(b"{\"type\":\"ADDED\",\"object\":{}\xff}").is_err());
    for text in [
        pod_line("SYNCED"),
        pod_line("ADDED").replace("\"7\"", "7"),
        pod_line("ADDED").replace("{\"res", "[{\"res").replace("\"7\"}", "\"7\"}]"),
    ] {
        assert!(matches!(read(text.as_bytes()), Ok(Message::Unusable(_))), "{text}");
    }
}

#[test]
fn a_cluster_is_known_by_its_environment_and_service_account() {
    let dir = tempfile::tempdir().unwrap();
    let find = |host, port| Access::in_cluster(dir.path(), host, port);
    assert!(matches!(find(None, Some("443")), Err(NoAccess::NotInCluster)));
    assert!(matches!(find(Some(""), None), Err(NoAccess::NotInCluster)));
    assert!(matches!(find(Some("10.0.0.1"), None), Err(NoAccess::NoServiceAccount { .. })));
    fs::write(dir.path().join("token"), "t").unwrap();
    for (host, port, expected) in [
        ("10.0.0.1", Some("6443"), "https://10.0.0.1:6443/"),
        ("fd00::1", None, "https://[fd00::1]:443/"),
        ("kubernetes.default.svc", Some(""), "https://kubernetes.default.svc:443/"),
    ] {
        let Ok(Access::InCluster { url, service_account }) = find(Some(host), port) else { panic!("{host}") };
        assert_eq!((url.to_string().as_str(), service_account.as_path()), (expected, dir.path()));
    }
    assert!(matches!(find(Some("a b"), None), Err(NoAccess::Address(_))));
    assert!(matches!(find(Some("10.0.0.1"), Some("x")), Err(NoAccess::Address(_))));
}

#[test]
fn values_cannot_leave_their_place_in_the_query() {
    assert_eq!(escape("node-1.example_~"), "node-1.example_~");
    assert_eq!(escape("a&b=c d/é"), "a%26b%3Dc%20d%2F%C3%A9");
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used_is_a_failure_that_says_so() {
    let path = Path::new("/nonexistent/kubeconfig");
    let timing = Timing { least_pause: Duration::from_millis(1), ..Timing::default() };
    let (mut watcher, health) = ApiWatcher::new(Access::Kubeconfig(path.to_owned()), "n", timing);
    let waited = tokio::time::timeout(Duration::from_millis(100), watcher.next()).await;
    assert!(waited.is_err(), "{waited:?}");
    let health = health.borrow();
    assert!(health.detail.starts_with("cannot read /nonexistent/kubeconfig: "), "{}", health.detail);
    assert_eq!(health.state, crate::host::SourceState::Failing);
}
