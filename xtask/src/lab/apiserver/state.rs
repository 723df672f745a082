//! What the server has: pods, versions and the history of changes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use rustls::ServerConfig;
use serde_json::{Value, json};

use super::Trouble;

/// Versions begin here, so that a restored store can be far below.
const FIRST_VERSION: u64 = 1000;

/// Everything the connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    /// Something in `state` has changed.
    pub(super) changed: Condvar,
    pub(super) stop: AtomicBool,
}

/// A thread that panicked left nothing half-done.
pub(super) fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(tls: Arc<ServerConfig>) -> Self {
        let state = State {
            tls,
            trouble: Trouble::None,
            allowed: true,
            initial_events: true,
            tokens: 0,
            cuts: 0,
            watches_last: None,
            version: FIRST_VERSION,
            oldest: FIRST_VERSION,
            pods: BTreeMap::new(),
            events: Vec::new(),
            restores: 0,
            requests: Vec::new(),
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), stop: AtomicBool::new(false) }
    }
}

/// A pod, and its text as watches tell it.
#[derive(Debug)]
struct Stored {
    pod: Value,
    object: Arc<str>,
}

/// A change as watches tell it.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) version: u64,
    pub(super) node: Option<String>,
    pub(super) kind: &'static str,
    pub(super) object: Arc<str>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) tls: Arc<ServerConfig>,
    pub(super) trouble: Trouble,
    pub(super) allowed: bool,
    /// Whether watches may begin with a list.
    pub(super) initial_events: bool,
    /// Tokens so far; the last one counts.
    pub(super) tokens: u32,
    /// How often open answers were cut.
    pub(super) cuts: u32,
    pub(super) watches_last: Option<Duration>,
    pub(super) version: u64,
    /// Watches may begin here.
    pub(super) oldest: u64,
    pods: BTreeMap<String, Stored>,
    pub(super) events: Vec<Event>,
    /// How often the store was restored.
    pub(super) restores: u32,
    pub(super) requests: Vec<String>,
}

impl State {
    pub(super) fn token(&self) -> String {
        format!("token-{}", self.tokens)
    }

    pub(super) fn pods(&self, node: Option<&str>) -> impl Iterator<Item = &Value> {
        self.stored(node).map(|stored| &stored.pod)
    }

    /// The pods' texts as watches tell them.
    pub(super) fn objects(&self, node: Option<&str>) -> Vec<Arc<str>> {
        self.stored(node).map(|stored| Arc::clone(&stored.object)).collect()
    }

    fn stored(&self, node: Option<&str>) -> impl Iterator<Item = &Stored> {
        let on = move |stored: &&Stored| node.is_none() || stored.pod["spec"]["nodeName"].as_str() == node;
        self.pods.values().filter(on)
    }

    pub(super) fn put(&mut self, mut pod: Value) {
        let uid = uid(&pod);
        let kind = if self.pods.contains_key(&uid) { "MODIFIED" } else { "ADDED" };
        self.stamp(&mut pod);
        let object = self.tell(kind, &pod);
        self.pods.insert(uid, Stored { pod, object });
    }

    pub(super) fn delete(&mut self, uid: &str) {
        let Some(Stored { mut pod, .. }) = self.pods.remove(uid) else { return };
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        self.stamp(&mut pod);
        self.tell("MODIFIED", &pod);
        self.stamp(&mut pod);
        self.tell("DELETED", &pod);
    }

    pub(super) fn compact(&mut self) {
        self.version += 1;
        self.oldest = self.version;
        self.events.clear();
    }

    pub(super) fn restore(&mut self, pods: Vec<Value>) {
        self.version = FIRST_VERSION / 2;
        self.oldest = self.version;
        self.restores += 1;
        self.pods.clear();
        self.events.clear();
        pods.into_iter().for_each(|pod| self.put(pod));
    }

    fn stamp(&mut self, pod: &mut Value) {
        self.version += 1;
        pod["metadata"]["resourceVersion"] = json!(self.version.to_string());
    }

    fn tell(&mut self, kind: &'static str, pod: &Value) -> Arc<str> {
        let node = pod["spec"]["nodeName"].as_str().map(str::to_owned);
        let object = object(pod);
        self.events.push(Event { version: self.version, node, kind, object: Arc::clone(&object) });
        object
    }
}

fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
}

/// Objects of a watch say what they are.
fn object(pod: &Value) -> Arc<str> {
    let mut object = pod.clone();
    object["kind"] = json!("Pod");
    object["apiVersion"] = json!("v1");
    object.to_string().into()
}
