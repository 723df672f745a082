//! Kubelet's records: parsing, watching, and what can be wrong with them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use super::*;
use crate::event::{KubeletRecord, PodUid};
use crate::host::SourceState;

const POD: &str = "0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11";
const STATIC: &str = "51bd78aa51bd78aa51bd78aa51bd78aa";
/// Longer than any test takes: what is seen is seen by notification.
const NEVER: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(20);

struct Kubelet {
    root: tempfile::TempDir,
}

impl Kubelet {
    fn new() -> Self {
        let kubelet = Self { root: tempfile::tempdir().unwrap() };
        fs::create_dir(kubelet.pods()).unwrap();
        kubelet
    }

    fn pods(&self) -> PathBuf {
        self.root.path().join("pods")
    }

    fn pod(&self, uid: &str) -> PathBuf {
        let path = self.pods().join(uid);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// As kubelet does it: a new file, renamed.
    fn record(&self, uid: &str, host_id: u32) {
        let pod = self.pod(uid);
        fs::write(pod.join(".tmp"), text(host_id)).unwrap();
        fs::rename(pod.join(".tmp"), pod.join("userns")).unwrap();
    }

    fn watch(&self, rescan: Duration) -> (KubeletWatcher, watch::Receiver<SourceHealth>) {
        KubeletWatcher::new(self.root.path(), rescan)
    }
}

fn text(host_id: u32) -> String {
    let mappings = format!(r#"[{{"hostId":{host_id},"containerId":0,"length":65536}}]"#);
    format!(r#"{{"uidMappings":{mappings},"gidMappings":{mappings}}}"#)
}

fn fact(uid: &str, host_id: Option<u32>) -> Fact {
    let record: Option<KubeletRecord> =
        host_id.map(|host_id| parse_record(text(host_id).as_bytes()).unwrap());
    Fact::KubeletRecord { uid: PodUid::parse(uid).unwrap(), record }
}

async fn next(watcher: &mut KubeletWatcher) -> Vec<Fact> {
    tokio::time::timeout(Duration::from_secs(10), watcher.next()).await.expect("no change was seen")
}

#[tokio::test]
async fn records_that_are_there_are_delivered_at_once() {
    let kubelet = Kubelet::new();
    kubelet.record(POD, 65_536);
    kubelet.record(STATIC, 4_294_836_224);
    kubelet.pod("1111111111111111111111111111111f");
    kubelet.record("not-a-pod", 1);
    fs::write(kubelet.pods().join("2222222222222222222222222222222f"), "a file").unwrap();
    let (mut watcher, health) = kubelet.watch(NEVER);
    assert_eq!(health.borrow().state, SourceState::Missing);
    assert_eq!(watcher.initial(), [fact(POD, Some(65_536)), fact(STATIC, Some(4_294_836_224))]);
    let expected = SourceHealth { state: SourceState::Ok, detail: String::new(), records: 2, errors: 0 };
    assert_eq!(*health.borrow(), expected);
}

#[tokio::test]
async fn changes_are_seen_without_a_rescan() {
    let kubelet = Kubelet::new();
    let (mut watcher, health) = kubelet.watch(NEVER);
    assert_eq!(watcher.initial(), []);
    kubelet.record(POD, 65_536);
    assert_eq!(next(&mut watcher).await, [fact(POD, Some(65_536))]);
    kubelet.record(POD, 131_072);
    assert_eq!(next(&mut watcher).await, [fact(POD, Some(131_072))]);
    fs::write(kubelet.pod(POD).join("userns"), text(196_608)).unwrap();
    assert_eq!(next(&mut watcher).await, [fact(POD, Some(196_608))]);
    fs::remove_file(kubelet.pod(POD).join("userns")).unwrap();
    assert_eq!(next(&mut watcher).await, [fact(POD, None)]);
    kubelet.record(POD, 65_536);
    assert_eq!(next(&mut watcher).await, [fact(POD, Some(65_536))]);
    fs::remove_dir_all(kubelet.pod(POD)).unwrap();
    assert_eq!(next(&mut watcher).await, [fact(POD, None)]);
    assert_eq!((health.borrow().records, health.borrow().errors), (0, 0));
}

#[tokio::test]
async fn a_directory_made_and_filled_before_it_could_be_watched_is_not_missed() {
    let kubelet = Kubelet::new();
    let (mut watcher, _health) = kubelet.watch(NEVER);
    watcher.initial();
    for number in 0..200_u32 {
        kubelet.record(&format!("{number:032x}"), 65_536 * (number + 1));
    }
    let mut seen = Vec::new();
    while seen.len() < 200 {
        seen.extend(next(&mut watcher).await);
    }
    assert_eq!(seen.len(), 200);
}

#[tokio::test]
async fn a_root_that_appears_later_is_found() {
    let kubelet = Kubelet::new();
    fs::remove_dir(kubelet.pods()).unwrap();
    let (mut watcher, health) = kubelet.watch(SOON);
    assert_eq!(watcher.initial(), []);
    assert_eq!(health.borrow().state, SourceState::Missing);
    assert!(health.borrow().detail.ends_with("pods does not exist"));
    kubelet.record(POD, 65_536);
    assert_eq!(next(&mut watcher).await, [fact(POD, Some(65_536))]);
    assert_eq!(health.borrow().state, SourceState::Ok);
    fs::remove_dir_all(kubelet.pods()).unwrap();
    assert_eq!(next(&mut watcher).await, [fact(POD, None)]);
    kubelet.record(POD, 131_072);
    assert_eq!(next(&mut watcher).await, [fact(POD, Some(131_072))]);
}

#[tokio::test]
async fn rescans_alone_see_every_change() {
    let kubelet = Kubelet::new();
    kubelet.record(POD, 65_536);
    let (mut watcher, health) = kubelet.watch(SOON);
    watcher.notifications.inotify = None;
    watcher.notifications.failure = Some(io::Error::other("no more watches"));
    watcher.initial();
    assert!(health.borrow().detail.contains("only every 20ms: inotify failed: no more watches"));
    assert_eq!(health.borrow().state, SourceState::Ok);
    kubelet.record(POD, 131_072);
    assert_eq!(next(&mut watcher).await, [fact(POD, Some(131_072))]);
    fs::remove_dir_all(kubelet.pod(POD)).unwrap();
    assert_eq!(next(&mut watcher).await, [fact(POD, None)]);
}

#[tokio::test]
async fn what_cannot_be_used_is_named_and_tried_again() {
    let kubelet = Kubelet::new();
    kubelet.record(POD, 65_536);
    let (mut watcher, health) = kubelet.watch(SOON);
    watcher.initial();
    fs::write(kubelet.pod(POD).join("userns"), "{").unwrap();
    fs::create_dir(kubelet.pod(STATIC).join("userns")).unwrap();
    let waited = tokio::time::timeout(Duration::from_millis(200), watcher.next()).await;
    assert!(waited.is_err(), "what was known stays known: {waited:?}");
    let broken = health.borrow().clone();
    assert_eq!((broken.state, broken.records), (SourceState::Failing, 1));
    assert!(
        broken.detail.contains(&format!("{POD}/userns: it is not what kubelet writes")),
        "{}",
        broken.detail
    );
    assert!(broken.detail.ends_with("(and 1 more)") && broken.errors >= 2);
    fs::remove_dir_all(kubelet.pod(STATIC)).unwrap();
    kubelet.record(POD, 131_072);
    assert_eq!(next(&mut watcher).await, [fact(POD, Some(131_072))]);
    watcher.scan();
    assert_eq!((health.borrow().state, health.borrow().detail.as_str()), (SourceState::Ok, ""));
}

#[tokio::test]
async fn links_pipes_and_oversized_records_are_refused() {
    let kubelet = Kubelet::new();
    let (secret, target) = (kubelet.root.path().join("secret"), kubelet.pod(POD).join("userns"));
    fs::write(&secret, text(65_536)).unwrap();
    symlink(&secret, &target).unwrap();
    let (mut watcher, health) = kubelet.watch(NEVER);
    assert_eq!(watcher.initial(), []);
    assert_eq!(health.borrow().state, SourceState::Failing);
    fs::remove_file(&target).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &target, rustix::fs::Mode::RUSR).unwrap();
    assert_eq!(watcher.scan(), []);
    assert!(health.borrow().detail.contains("not a regular file"));
    fs::remove_file(&target).unwrap();
    fs::write(&target, " ".repeat(MAX_RECORD_BYTES + 1)).unwrap();
    assert_eq!(watcher.scan(), []);
    assert!(health.borrow().detail.contains("larger than"));
    assert_eq!(health.borrow().errors, 3);
}

#[tokio::test]
async fn a_directory_that_may_not_be_read_is_named() {
    if rustix::process::geteuid().is_root() {
        // root reads everything; a file in the directory's place fails for everyone
        let kubelet = Kubelet::new();
        fs::remove_dir(kubelet.pods()).unwrap();
        fs::write(kubelet.pods(), "").unwrap();
        let (mut watcher, health) = kubelet.watch(NEVER);
        assert_eq!(watcher.initial(), []);
        assert_eq!(health.borrow().state, SourceState::Failing);
        return;
    }
    let kubelet = Kubelet::new();
    fs::set_permissions(kubelet.pods(), fs::Permissions::from_mode(0o0)).unwrap();
    let (mut watcher, health) = kubelet.watch(NEVER);
    assert_eq!(watcher.initial(), []);
    assert_eq!((health.borrow().state, health.borrow().errors), (SourceState::Failing, 1));
    fs::set_permissions(kubelet.pods(), fs::Permissions::from_mode(0o700)).unwrap();
}
