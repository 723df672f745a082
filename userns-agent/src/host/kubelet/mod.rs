//! Kubelet's own records of which pod was given which ids: `<kubelet root>/pods/<uid>/userns`.
//!
//! Written before a pod's sandbox is made and removed when the pod is gone; a pod without a user namespace has
//! none (pkg/kubelet/userns/userns_manager.go). Changes are learnt by inotify, and everything is read again at
//! an interval, so that neither a lost notification nor a directory that was not there yet matters for long.

mod record;
mod scan;
#[cfg(test)]
mod tests;

pub use record::{MAX_RECORD_BYTES, RecordError, parse_record};
pub use scan::{KubeletError, Records, read_records};

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use self::scan::Scanner;
use super::SourceHealth;
use crate::event::Fact;

/// Reads kubelet's records and keeps reading them.
#[derive(Debug)]
pub struct KubeletWatcher {
    scanner: Scanner,
    notifications: Notifications,
    rescan: Interval,
    health: watch::Sender<SourceHealth>,
}

impl KubeletWatcher {
    /// Watches `<kubelet_root>/pods`, reading everything again every `rescan`. Call it within a Tokio runtime.
    #[must_use]
    pub fn new(kubelet_root: &Path, rescan: Duration) -> (Self, watch::Receiver<SourceHealth>) {
        let (health, receiver) = watch::channel(SourceHealth::default());
        let mut rescan = interval_at(tokio::time::Instant::now() + rescan, rescan);
        rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watcher =
            Self { scanner: Scanner::new(kubelet_root), notifications: Notifications::new(), rescan, health };
        (watcher, receiver)
    }

    /// Everything there is now. Call it once, before [`Self::next`].
    pub fn initial(&mut self) -> Vec<Fact> {
        self.scan()
    }

    /// Waits for changes and returns them, in the order in which they were seen. Nothing is lost if the future is
    /// dropped before it is ready. Small files are read meanwhile: give it a task of its own.
    pub async fn next(&mut self) -> Vec<Fact> {
        loop {
            let facts = tokio::select! {
                _ = self.rescan.tick() => self.scan(),
                changes = self.notifications.next() => self.look(changes),
            };
            if !facts.is_empty() {
                return facts;
            }
        }
    }

    fn scan(&mut self) -> Vec<Fact> {
        let Self { scanner, notifications, .. } = self;
        notifications.watch_pods(scanner.pods());
        let pods = scanner.pods().to_owned();
        let facts = scanner.scan(|name| notifications.watch_pod(&pods, name));
        self.publish();
        facts
    }

    fn look(&mut self, changes: Changes) -> Vec<Fact> {
        let names = match changes {
            Changes::Lost => return self.scan(),
            Changes::Pods(names) => names,
        };
        let Self { scanner, notifications, .. } = self;
        let mut facts = Vec::new();
        for name in names {
            let Some(uid) = scan::uid(&name) else { continue };
            notifications.watch_pod(scanner.pods(), &name);
            facts.extend(scanner.check(&uid, &name));
        }
        self.publish();
        facts
    }

    fn publish(&self) {
        let mut health = self.scanner.health();
        if let (true, Some(error)) = (health.detail.is_empty(), &self.notifications.failure) {
            let every = humantime::format_duration(self.rescan.period());
            health.detail = format!("changes are seen only every {every}: inotify failed: {error}");
        }
        self.health.send_if_modified(|current| {
            let changed = *current != health;
            *current = health;
            changed
        });
    }
}

/// What a batch of notifications says.
enum Changes {
    /// Something may have changed in these directories of pods.
    Pods(Vec<OsString>),
    /// Notifications were lost.
    Lost,
}

/// Watches on `pods` and on each pod's directory.
#[derive(Debug)]
struct Notifications {
    inotify: Option<AsyncFd<OwnedFd>>,
    pods: Option<i32>,
    names: BTreeMap<i32, OsString>,
    /// The last failure to watch something; records are then read at the interval only.
    failure: Option<io::Error>,
}

impl Notifications {
    fn new() -> Self {
        let (inotify, failure) = match register() {
            Ok(inotify) => (Some(inotify), None),
            Err(error) => (None, Some(error)),
        };
        Self { inotify, pods: None, names: BTreeMap::new(), failure }
    }

    /// Watching a directory again costs nothing, and finds one that has taken the place of another.
    fn watch_pods(&mut self, pods: &Path) {
        if self.inotify.is_some() {
            self.failure = None;
        }
        self.pods = self.add(pods, WatchFlags::CREATE | WatchFlags::DELETE);
    }

    fn watch_pod(&mut self, pods: &Path, name: &OsStr) {
        let flags = WatchFlags::CLOSE_WRITE | WatchFlags::DELETE | WatchFlags::DONT_FOLLOW;
        if let Some(watch) = self.add(&pods.join(name), flags) {
            self.names.insert(watch, name.to_owned());
        }
    }

    fn add(&mut self, path: &Path, flags: WatchFlags) -> Option<i32> {
        let moves = WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::ONLYDIR;
        match inotify::add_watch(self.inotify.as_ref()?, path, flags | moves) {
            Ok(watch) => Some(watch),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => None,
            Err(errno) => {
                self.failure = Some(errno.into());
                None
            }
        }
    }

    async fn next(&mut self) -> Changes {
        let Some(inotify) = &mut self.inotify else { return std::future::pending().await };
        loop {
            let mut guard = match inotify.readable_mut().await {
                Ok(guard) => guard,
                Err(error) => {
                    (self.inotify, self.failure) = (None, Some(error));
                    return Changes::Lost;
                }
            };
            let (pods, names) = (self.pods, &mut self.names);
            let read = guard.try_io(|inotify| read(inotify.get_ref(), pods, names));
            match read {
                Ok(Ok(changes)) => return changes,
                Ok(Err(error)) => {
                    drop(guard);
                    (self.inotify, self.failure) = (None, Some(error));
                    return Changes::Lost;
                }
                Err(_not_ready) => {}
            }
        }
    }
}

fn register() -> io::Result<AsyncFd<OwnedFd>> {
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    // SAFETY: an OwnedFd keeps the one descriptor it has open until it is dropped, with the AsyncFd.
    Ok(unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }?)
}

/// Takes one buffer of notifications.
fn read(inotify: &OwnedFd, pods: Option<i32>, names: &mut BTreeMap<i32, OsString>) -> io::Result<Changes> {
    const BYTES: usize = 16 * 1024;
    let mut buffer = [MaybeUninit::uninit(); BYTES];
    let mut reader = inotify::Reader::new(inotify, &mut buffer);
    let (mut changed, mut lost) = (Vec::new(), false);
    loop {
        let event = reader.next()?;
        lost |= event.events().contains(ReadFlags::QUEUE_OVERFLOW);
        let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned());
        if event.events().contains(ReadFlags::IGNORED) {
            // its directory is gone
            changed.extend(names.remove(&event.wd()));
        } else if Some(event.wd()) == pods {
            changed.extend(name);
        } else if name.is_some_and(|name| name == "userns") {
            changed.extend(names.get(&event.wd()).cloned());
        }
        if reader.is_buffer_empty() {
            changed.dedup();
            return Ok(if lost { Changes::Lost } else { Changes::Pods(changed) });
        }
    }
}
