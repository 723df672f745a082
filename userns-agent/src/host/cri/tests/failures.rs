//! Sockets that are missing, closed or somebody else's; runtimes that restart, hang, cut and answer garbage.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn impatient() -> Times {
    Times { call: Duration::from_millis(500), ..often() }
}

#[tokio::test]
async fn a_socket_that_is_not_there_is_waited_for() {
    let mut runtime = with_a_pod();
    runtime.stop().await;
    let mut watched = Watched::of(&runtime, times());
    let health = watched.health(|health| !health.detail.is_empty()).await;
    assert_eq!((health.state, health.errors), (SourceState::Missing, 0));
    assert!(health.detail.contains("cri.sock exists"), "{}", health.detail);
    runtime.serve();
    assert_eq!(watched.list().await, [expected(1, &["c1"])]);
    watched.state(SourceState::Ok).await;
}

#[tokio::test]
async fn pods_stay_in_force_while_a_runtime_restarts() {
    let mut runtime = with_a_pod();
    let mut watched = Watched::of(&runtime, often());
    watched.list().await;
    runtime.stop().await;
    let health = watched.state(SourceState::Failing).await;
    assert!(health.detail.ends_with("; 1 sandboxes known stay in force"), "{}", health.detail);
    assert!(health.errors > 0 && health.records == 1);
    watched.is_silent().await;
    {
        let mut node = runtime.node.lock().unwrap();
        node.add_sandbox(2);
        node.calls.clear();
    }
    runtime.serve();
    assert_eq!(watched.list().await, [expected(1, &["c1"]), expected(2, &[])]);
    watched.state(SourceState::Ok).await;
    let node = runtime.node.lock().unwrap();
    assert_eq!(
        (node.calls("PodSandboxStatus"), node.calls("ContainerStatus")),
        (1, 0),
        "what is known stays known"
    );
}

#[tokio::test]
async fn a_stream_that_is_cut_is_opened_again() {
    let runtime = with_a_pod();
    let mut watched = Watched::of(&runtime, times());
    watched.list().await;
    watched.state(SourceState::Ok).await;
    {
        let mut node = runtime.node.lock().unwrap();
        node.tell("c1", CREATED, true);
        node.cut_events();
    }
    let health = watched.state(SourceState::Failing).await;
    assert!(health.detail.contains("GetContainerEvents failed"), "{}", health.detail);
    assert_eq!(watched.list().await, [expected(1, &["c1"])]);
    {
        let mut node = runtime.node.lock().unwrap();
        node.add_container(1, "c2");
        node.tell("c2", CREATED, true);
    }
    assert_eq!(watched.sandbox().await, expected(1, &["c1", "c2"]));
}

#[tokio::test]
async fn a_runtime_that_hangs_is_left_and_asked_again() {
    for method in ["Version", "ListContainers", "PodSandboxStatus"] {
        let runtime = with_a_pod();
        runtime.node.lock().unwrap().hangs.push(method);
        let mut watched = Watched::of(&runtime, impatient());
        let health = watched.state(SourceState::Failing).await;
        assert!(
            health.detail.starts_with(&format!("{method} was not answered within 500ms")),
            "{}",
            health.detail
        );
        runtime.node.lock().unwrap().hangs.clear();
        assert_eq!(watched.list().await, [expected(1, &["c1"])]);
        watched.state(SourceState::Ok).await;
    }
}

#[tokio::test]
async fn one_that_speaks_another_version_is_named() {
    let runtime = Runtime::with(|node| node.speaks = false);
    let mut watched = Watched::of(&runtime, times());
    let health = watched.state(SourceState::Failing).await;
    assert!(health.detail.contains("does not speak the CRI runtime.v1"), "{}", health.detail);
}

#[tokio::test]
async fn garbage_is_counted_and_the_rest_is_used() {
    let runtime = with_a_pod();
    runtime.node.lock().unwrap().garbles.push("PodSandboxStatus");
    let mut watched = Watched::of(&runtime, often());
    let known = watched.list().await;
    assert_eq!((known[0].userns_mode, &known[0].pod.name), (UsernsMode::Unknown, &"web-1".to_owned()));
    let health = watched.state(SourceState::Failing).await;
    assert!(health.detail.contains("PodSandboxStatus failed") && health.errors > 0, "{}", health.detail);
    runtime.node.lock().unwrap().garbles.clear();
    assert_eq!(watched.sandbox().await, expected(1, &["c1"]));
    watched.state(SourceState::Ok).await;
    for method in
        ["Version", "Status", "ListPodSandbox", "ListContainers", "ContainerStatus", "GetContainerEvents"]
    {
        runtime.node.lock().unwrap().garbles = vec![method];
        let mut watched = Watched::of(&runtime, often());
        watched.state(SourceState::Failing).await;
        runtime.node.lock().unwrap().garbles.clear();
        watched.state(SourceState::Ok).await;
    }
}

#[tokio::test]
async fn what_answers_in_no_http_and_what_does_not_answer_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("other.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let other = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            use tokio::io::AsyncWriteExt as _;
            let _ = stream.write_all(b"220 smtp.example.com ESMTP\r\n").await;
        }
    });
    let mut watched = Watched::start(vec![socket], times());
    let health = watched.state(SourceState::Failing).await;
    assert!(!health.detail.is_empty() && health.errors > 0);
    other.abort();
    let health = watched.health(|health| health.detail.contains("refused")).await;
    assert!(health.detail.starts_with("cannot connect to "), "{}", health.detail);
}

#[tokio::test]
async fn a_socket_that_may_not_be_used_is_named() {
    /// What the thread may do with files becomes what that user may.
    fn act_as(uid: u32) {
        // SAFETY: takes a number and concerns the calling thread alone (setfsuid(2)).
        unsafe { libc::setfsuid(uid) };
    }
    let runtime = with_a_pod();
    let own = rustix::process::geteuid().as_raw();
    std::fs::set_permissions(runtime.socket(), std::fs::Permissions::from_mode(0o000)).unwrap();
    act_as(if own == 0 { 65_534 } else { own });
    let mut watched = Watched::of(&runtime, times());
    let health = watched.state(SourceState::Failing).await;
    act_as(own);
    assert!(health.detail.contains("cri.sock: Permission denied"), "{}", health.detail);
}

#[tokio::test]
async fn the_first_that_answers_is_used() {
    let (without, with) = (Runtime::with(|node| node.speaks = false), with_a_pod());
    let sockets = vec![without.dir().join("none.sock"), without.socket(), with.socket()];
    let mut watched = Watched::start(sockets, times());
    assert_eq!(watched.list().await, [expected(1, &["c1"])]);
    assert_eq!(watched.state(SourceState::Ok).await.errors, 0);
}
