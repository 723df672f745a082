//! Pods of this node as the API server has them, listed and watched.
//!
//! A watch that begins with a list (`sendInitialEvents`, Kubernetes 1.32 by default) tells all pods there are, then a
//! bookmark, then every change. Where the server refuses that, pods are listed by pages and watched from there. What
//! was read stays in force whatever happens: everything here ends in another attempt, with growing pauses.
//!
//! | what happens | what is done |
//! |---|---|
//! | the watch ends, is cut, or the server cannot be reached | watch again from the last resource version |
//! | that version is not kept any more (410, as an answer or within the stream) | list again |
//! | nothing is heard for long: the server hangs, or its store was restored from an older copy | list again |
//! | the version is ahead of the server (504) | list again after the pause it asks for |
//! | not known or not allowed (401, 403) | say which rule is missing, and try again |

mod access;
mod message;
#[cfg(test)]
mod tests;

pub use access::{Access, NoAccess};

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::SourceHealth;
use super::https::{Body, Endpoint, MAX_BODY, Patience, Refusal, RequestError};
use super::outage::{Backoff, Outage};
use super::pod_object::{self, Metadata, Object};
use crate::event::{Fact, PodSource, PodSpec, PodUid};
use message::Message;

/// Pods in a page of a list.
const PAGE: u32 = 500;
/// Facts that are handed on at a time.
const BATCH: usize = 64;
/// Most pods that are kept: kubelet runs 110 by default.
const MAX_PODS: usize = 16_384;
/// Most pages of a list, which need not be full.
const MAX_PAGES: usize = 100;

/// How patient the watch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// With a request.
    pub request: Patience,
    /// How long a watch may be silent. The server sends a bookmark about once a minute.
    pub silence: Duration,
    /// How long a watch may last: the server ends it then.
    pub watch: Duration,
    /// The first pause after a failure.
    pub least_pause: Duration,
    /// The longest.
    pub most_pause: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            request: Patience::default(),
            silence: Duration::from_secs(150),
            watch: Duration::from_secs(300),
            least_pause: Duration::from_millis(500),
            most_pause: Duration::from_secs(30),
        }
    }
}

/// Why a list or watch ended.
#[derive(Debug, thiserror::Error)]
enum End {
    /// The server ended it.
    #[error("the watch ended before all pods were told")]
    Clean,
    /// It went wrong.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// An error within the stream.
    #[error("the API server ended the watch: {0}")]
    Told(Refusal),
    /// The server does not know watches that begin with a list.
    #[error("the API server does not begin a watch with a list")]
    NoInitialEvents,
    /// Something else than was to be expected.
    #[error("the API server's answer cannot be used: {0}")]
    Malformed(String),
    /// There are too many.
    #[error("the API server has more than {MAX_PODS} pods for this node; is node_name right?")]
    TooMany,
}

impl End {
    fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Told(refusal) => Some(refusal),
            Self::Request(error) => error.refusal(),
            Self::Clean | Self::NoInitialEvents | Self::Malformed(_) | Self::TooMany => None,
        }
    }

    /// What to do about it.
    fn advice(&self) -> &'static str {
        match self.refusal().map(|refusal| refusal.code) {
            Some(401) => {
                ": the token has expired or is not this cluster's; check the service account's volume"
            }
            Some(403) => {
                ": bind a ClusterRole with the verbs get, list and watch on pods to the agent's service account"
            }
            _ => "",
        }
    }
}

/// An open watch.
#[derive(Debug)]
struct Stream {
    body: Body,
    opened: Instant,
    /// Pods told so far, until all there were have been told.
    initial: Option<BTreeMap<PodUid, PodSpec>>,
}

/// Watches the pods of a node.
#[derive(Debug)]
pub struct ApiWatcher {
    access: Access,
    node: String,
    timing: Timing,
    /// Where to watch from; `None`: everything has to be told anew.
    version: Option<String>,
    /// Whether the next attempt to be told everything is a list by pages.
    by_pages: bool,
    stream: Option<Stream>,
    /// Pods that are there.
    pods: BTreeSet<PodUid>,
    /// Whether all pods were ever told.
    has_read: bool,
    backoff: Backoff,
    outage: Outage,
}

impl ApiWatcher {
    /// Watches the pods of `node`. Nothing is asked before [`Self::next`]: the agent does not wait for a network.
    #[must_use]
    pub fn new(access: Access, node: &str, timing: Timing) -> (Self, watch::Receiver<SourceHealth>) {
        let (outage, health) = Outage::new("API server");
        let watcher = Self {
            access,
            node: node.to_owned(),
            timing,
            version: None,
            by_pages: false,
            stream: None,
            pods: BTreeSet::new(),
            has_read: false,
            backoff: Backoff::new(timing.least_pause, timing.most_pause),
            outage,
        };
        (watcher, health)
    }

    /// Waits for pods and their changes, and returns them in order. While the server cannot be reached nothing
    /// is returned, and what was returned stays in force. Files and large answers are read meanwhile: give it a
    /// task of its own. If the future is dropped before it is ready, a list under way begins again.
    pub async fn next(&mut self) -> Vec<Fact> {
        loop {
            self.backoff.over().await;
            match self.step().await {
                Ok(facts) if facts.is_empty() => {}
                Ok(facts) => return facts,
                Err(end) => self.ended(&end),
            }
        }
    }

    async fn step(&mut self) -> Result<Vec<Fact>, End> {
        if self.stream.is_some() {
            return self.read().await;
        }
        let endpoint = self.access.endpoint()?;
        if self.version.is_none() && self.by_pages {
            return self.list(&endpoint).await;
        }
        let path = self.watch_path();
        let body = endpoint.get(&path, self.timing.request).await.map_err(|error| self.opening(error))?;
        let initial = self.version.is_none().then(BTreeMap::new);
        if initial.is_none() {
            self.works();
        }
        self.stream = Some(Stream { body, opened: Instant::now(), initial });
        Ok(Vec::new())
    }

    fn watch_path(&self) -> String {
        // of nodes that began together not all end together
        let lasts = self.timing.watch.mul_f64(1.0 + fastrand::f64()).as_secs().max(1);
        let from = match &self.version {
            Some(version) => format!("resourceVersion={}", access::escape(version)),
            None => "sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned(),
        };
        let node = access::escape(&self.node);
        format!(
            "/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3D{node}&{from}&allowWatchBookmarks=true\
             &timeoutSeconds={lasts}"
        )
    }

    /// A server without watches that begin with a list finds the parameters for them invalid.
    fn opening(&self, error: RequestError) -> End {
        let code = error.refusal().map(|refusal| refusal.code);
        let is_unknown = self.version.is_none() && matches!(code, Some(400 | 422));
        if is_unknown { End::NoInitialEvents } else { End::Request(error) }
    }

    /// Lists all pods, page by page. They may come from the server's cache (version 0) the first time only: what is
    /// told later must not be older than what was told.
    async fn list(&mut self, endpoint: &Endpoint) -> Result<Vec<Fact>, End> {
        let mut pods = BTreeMap::new();
        let mut next = None::<String>;
        for _ in 0..MAX_PAGES {
            let node = access::escape(&self.node);
            let from = match &next {
                Some(next) => format!("&continue={}", access::escape(next)),
                None if self.has_read => String::new(),
                None => "&resourceVersion=0".to_owned(),
            };
            let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}&limit={PAGE}{from}");
            let patience = self.timing.request;
            let mut body = endpoint.get(&path, patience).await?;
            let text = body.all(MAX_BODY, patience.answer).await?;
            let page = pod_object::read_list(&text).map_err(End::Malformed)?;
            for item in page.items.unwrap_or_default() {
                if let Some(spec) = self.outage.usable(pod_object::read_pod(item)) {
                    pods.insert(spec.uid.clone(), spec);
                }
            }
            if pods.len() > MAX_PODS {
                return Err(End::TooMany);
            }
            let metadata = page.metadata.unwrap_or_default();
            next = metadata.next.filter(|next| !next.is_empty());
            if next.is_none() {
                self.version = metadata.resource_version;
                return Ok(vec![self.all(pods)]);
            }
        }
        Err(End::TooMany)
    }

    /// Reads what the watch says next, and whatever has come with it.
    async fn read(&mut self) -> Result<Vec<Fact>, End> {
        let mut facts = Vec::new();
        let Some(stream) = &mut self.stream else { return Ok(facts) };
        let Some(mut line) = stream.body.line(self.timing.silence).await? else { return Err(End::Clean) };
        loop {
            if !line.trim_ascii().is_empty() {
                let message = message::read(&line).map_err(End::Malformed);
                // what came before is not lost with what went wrong
                match message.and_then(|message| self.take(message)) {
                    Ok(fact) => facts.extend(fact),
                    Err(end) if facts.is_empty() => return Err(end),
                    Err(end) => {
                        self.ended(&end);
                        break;
                    }
                }
            }
            if facts.len() >= BATCH {
                break;
            }
            let Some(next) = self.stream.as_mut().and_then(|stream| stream.body.waiting_line()) else {
                break;
            };
            line = next;
        }
        match self.stream.as_ref().and_then(|stream| stream.initial.as_ref()) {
            Some(initial) => self.outage.reading(initial.len()),
            None => self.outage.records(self.pods.len()),
        }
        Ok(facts)
    }

    fn take(&mut self, message: Message) -> Result<Option<Fact>, End> {
        match message {
            Message::Pod { gone, object } => self.change(gone, *object),
            Message::Bookmark(metadata) => self.bookmark(*metadata),
            Message::Error(refusal) => Err(End::Told(refusal)),
            Message::Unusable(reason) => {
                tracing::debug!("passed over an event of the API server: {reason}");
                self.outage.error();
                Ok(None)
            }
        }
    }

    fn change(&mut self, gone: bool, mut object: Object) -> Result<Option<Fact>, End> {
        let version = object.metadata.as_mut().and_then(|metadata| metadata.resource_version.take());
        let spec = self.outage.usable(pod_object::read_pod(object));
        let Some(stream) = &mut self.stream else { return Ok(None) };
        if let Some(initial) = &mut stream.initial {
            // versions of what a watch begins with are in no order
            match spec {
                Some(spec) if gone => drop(initial.remove(&spec.uid)),
                Some(spec) => drop(initial.insert(spec.uid.clone(), spec)),
                None => {}
            }
            return if initial.len() > MAX_PODS { Err(End::TooMany) } else { Ok(None) };
        }
        if version.is_some() {
            self.version = version;
        }
        let Some(spec) = spec else { return Ok(None) };
        if gone {
            self.pods.remove(&spec.uid);
            return Ok(Some(Fact::PodGone(PodSource::Api, spec.uid)));
        }
        self.pods.insert(spec.uid.clone());
        if self.pods.len() > MAX_PODS {
            self.version = None;
            return Err(End::TooMany);
        }
        Ok(Some(Fact::Pod(PodSource::Api, Box::new(spec))))
    }

    fn bookmark(&mut self, metadata: Metadata) -> Result<Option<Fact>, End> {
        let Some(stream) = &mut self.stream else { return Ok(None) };
        if stream.initial.is_some() && !metadata.ends_initial_events() {
            let late = stream.opened.elapsed() > self.timing.silence;
            return if late { Err(End::NoInitialEvents) } else { Ok(None) };
        }
        if metadata.resource_version.is_some() {
            self.version = metadata.resource_version;
        }
        Ok(stream.initial.take().map(|pods| self.all(pods)))
    }

    /// Everything has been told.
    fn all(&mut self, pods: BTreeMap<PodUid, PodSpec>) -> Fact {
        if pods.is_empty() {
            tracing::warn!("the API server has no pods for node `{}`: is node_name right?", self.node);
        }
        self.by_pages = false;
        self.has_read = true;
        self.pods = pods.keys().cloned().collect();
        self.works();
        Fact::Pods(PodSource::Api, pods.into_values().collect())
    }

    fn works(&mut self) {
        self.outage.over(self.pods.len());
    }

    /// Decides how to go on.
    fn ended(&mut self, end: &End) {
        let lasted = self.stream.take().map(|stream| stream.opened.elapsed());
        let untold = self.version.is_none();
        self.backoff.held(lasted.unwrap_or_default());
        match end {
            End::Clean if !untold => {
                // one that ends at once would be asked for again without end
                if lasted.unwrap_or_default() < self.timing.least_pause {
                    self.backoff.pause(None);
                }
                return;
            }
            End::NoInitialEvents => {
                self.by_pages = true;
                return;
            }
            End::Request(RequestError::Timeout { .. }) if lasted.is_some() => self.version = None,
            End::Told(_) => self.version = None,
            End::Clean | End::Request(_) | End::Malformed(_) | End::TooMany => {}
        }
        if untold && (self.by_pages || lasted.is_some()) {
            // whichever way everything was to be told, the next attempt goes the other
            self.by_pages = !self.by_pages;
        }
        let refusal = end.refusal();
        let code = refusal.map(|refusal| refusal.code);
        if matches!(code, Some(400 | 410 | 504)) {
            self.version = None;
        }
        // one that is not kept any more is nothing unusual; that none is, is
        if code == Some(410) && !untold {
            self.outage.error();
        } else {
            self.outage.failed(&format!("{end}{}", end.advice()));
        }
        self.backoff.pause(refusal.and_then(|refusal| refusal.retry_after));
    }
}
