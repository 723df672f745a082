//! An API server that serves the pods of a node, and fails in the ways real ones do.
//!
//! It imitates what Kubernetes 1.36 answers to `list` and `watch` of pods over HTTP/1.1 and TLS: watches that begin
//! with a list, bookmarks, `ERROR` within a success, lists whose items say no kind. What goes wrong with it is chosen
//! by [`Trouble`] and the methods of [`ApiServer`]. It answers kubelet's `/pods` as well.
//!
//! The agent's tests use this file as well, by its path: it needs nothing of the other modules.

mod answer;
mod state;
mod tls;

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustls::{ServerConnection, StreamOwned};
use serde_json::{Value, json};

use state::{Shared, lock};
use tls::Authority;

/// The node that has the pods of [`pod`].
pub const NODE: &str = "node-1";

/// What goes wrong with new requests, besides what methods do to those that are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    #[default]
    None,
    /// Connections are ended before TLS.
    Down,
    /// Requests are taken, watches begun, and nothing more is said.
    Hangs,
    /// Connections are taken, and nothing is said, not even TLS's first word.
    Silent,
    /// No version is kept: watches end at once with 410 within a success, lists are answered so.
    Expired,
    /// Lists come slowly, a piece at a time.
    Slow,
    /// The version asked for is ahead of the server's: 504 with `retryAfterSeconds`.
    TooLargeVersion,
}

/// The server, until it is dropped.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    service_account: PathBuf,
    address: SocketAddr,
    /// `None`: killed.
    accepting: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Starts it on a free port of the loopback address, and writes `token` and `ca.crt` into `service_account`, as
    /// the volume of a pod's service account has them.
    ///
    /// # Errors
    ///
    /// When files cannot be written or no port can be had.
    pub fn start(service_account: &Path) -> Result<Self> {
        let authority = Authority::new()?;
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(authority.server(&["127.0.0.1", NODE])?));
        let accepting = Some(accepting(listener, &shared));
        let server = Self { shared, service_account: service_account.to_owned(), address, accepting };
        server.write_ca(&authority)?;
        server.rotate_token()?;
        Ok(server)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections, and refuses others until [`Self::revive`], as a process that is gone.
    pub fn kill(&mut self) {
        let Some(accepting) = self.accepting.take() else { return };
        self.shared.stop.store(true, Ordering::Release);
        self.shared.changed.notify_all();
        // accept() has no timeout
        let _ = TcpStream::connect(self.address);
        let _ = accepting.join();
    }

    /// Listens where it did before [`Self::kill`], with what it had.
    ///
    /// # Errors
    ///
    /// When the port is taken by now.
    pub fn revive(&mut self) -> Result<()> {
        if self.accepting.is_none() {
            let listener = TcpListener::bind(self.address).context("cannot listen again")?;
            self.shared.stop.store(false, Ordering::Release);
            self.accepting = Some(accepting(listener, &self.shared));
        }
        Ok(())
    }

    /// Adds a pod, or changes the one with its UID.
    pub fn put(&self, pod: Value) {
        lock(&self.shared.state).put(pod);
        self.shared.changed.notify_all();
    }

    /// Deletes the pod with this UID, as kubelet's last update and the server's deletion do it.
    pub fn delete(&self, uid: &str) {
        lock(&self.shared.state).delete(uid);
        self.shared.changed.notify_all();
    }

    /// What `of` takes from each pod of [`NODE`], by UID.
    pub fn pods<T>(&self, of: impl Fn(&Value) -> T) -> Vec<T> {
        lock(&self.shared.state).pods(Some(NODE)).map(of).collect()
    }

    /// What goes wrong from now on.
    pub fn trouble(&self, trouble: Trouble) {
        lock(&self.shared.state).trouble = trouble;
        self.shared.changed.notify_all();
    }

    /// Cuts open answers in the middle of a line.
    pub fn cut(&self) {
        lock(&self.shared.state).cuts += 1;
        self.shared.changed.notify_all();
    }

    /// Whether requests are allowed, as a binding to a ClusterRole would have it.
    pub fn allow(&self, allowed: bool) {
        lock(&self.shared.state).allowed = allowed;
    }

    /// Is a server whose watches do not begin with a list: 422, from now on.
    pub fn be_older(&self) {
        lock(&self.shared.state).initial_events = false;
    }

    /// Ends watches after this time, however long they were asked for.
    pub fn end_watches_after(&self, time: Option<Duration>) {
        lock(&self.shared.state).watches_last = time;
    }

    /// Forgets earlier versions: watches from before now get 410 within a success.
    pub fn compact(&self) {
        lock(&self.shared.state).compact();
        self.shared.changed.notify_all();
    }

    /// What a restored store does: these pods are all there ever were, and versions begin again far below. Watches
    /// that are open, or begin at later versions, are silent.
    pub fn restore(&self, pods: Vec<Value>) {
        lock(&self.shared.state).restore(pods);
        self.shared.changed.notify_all();
    }

    /// Takes another token from now on, and writes it where the kubelet would.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn rotate_token(&self) -> Result<()> {
        let token = self.expire_token();
        let path = self.service_account.join("token");
        fs::write(&path, format!("{token}\n")).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Takes another token from now on, which it returns; the one that is written is of no use.
    pub fn expire_token(&self) -> String {
        let mut state = lock(&self.shared.state);
        state.tokens += 1;
        state.token()
    }

    /// Shows a certificate of another authority from now on. [`Self::publish_ca`] tells of it.
    ///
    /// # Errors
    ///
    /// When there is none to be made.
    pub fn change_ca(&self) -> Result<Replaced> {
        let authority = Authority::new()?;
        lock(&self.shared.state).tls = authority.server(&["127.0.0.1", NODE])?;
        Ok(Replaced(authority))
    }

    /// Writes the authority where the kubelet would.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn publish_ca(&self, replaced: &Replaced) -> Result<()> {
        self.write_ca(&replaced.0)
    }

    /// The requests so far, as `<path>?<query>`.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shared.state).requests.clone()
    }

    fn write_ca(&self, authority: &Authority) -> Result<()> {
        let path = self.service_account.join("ca.crt");
        fs::write(&path, authority.pem()).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An authority that is not published yet.
#[derive(Debug)]
pub struct Replaced(Authority);

/// A pod of [`NODE`] with this number, about as large as real ones.
#[must_use]
pub fn pod(number: u32) -> Value {
    let uid = format!("{number:08x}-6f1d-4f3e-9d5c-2f1f4f1a7c11");
    let managed: Vec<Value> = (0..8)
        .map(|field| {
            json!({"manager": "kubelet", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
                   "fieldsV1": {"f:status": {format!("f:field-{field}"): {".": {}, "f:type": {}, "k:{\"a\":1}": {}}}}})
        })
        .collect();
    json!({
        "metadata": {
            "name": format!("pod-{number}"), "namespace": "default", "uid": uid,
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": "web", "number": number.to_string()},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f",
                                 "uid": uid, "controller": true, "blockOwnerDeletion": true}],
            "managedFields": managed,
        },
        "spec": {
            "nodeName": NODE, "hostUsers": false, "serviceAccountName": "default", "restartPolicy": "Always",
            "volumes": [{"name": "token", "projected": {"defaultMode": 420, "sources": []}}],
            "containers": [{"name": "web", "image": "registry.example/web:1", "resources": {}}],
        },
        "status": {
            "phase": "Running", "qosClass": "BestEffort",
            "containerStatuses": [{"name": "web", "ready": true, "restartCount": 0,
                "imageID": format!("registry.example/web@sha256:{number:064x}"),
                "containerID": format!("containerd://{number:064x}")}],
        },
    })
}

/// Takes connections until the server is stopped; the port is free then.
fn accepting(listener: TcpListener, shared: &Arc<Shared>) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    thread::spawn(move || accept(&listener, &shared))
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let shared = Arc::clone(shared);
        // ends with the connection or the server
        thread::spawn(move || drop(serve(stream, &shared)));
    }
}

fn serve(stream: TcpStream, shared: &Shared) -> Result<()> {
    let (trouble, tls) = {
        let state = lock(&shared.state);
        (state.trouble, Arc::clone(&state.tls))
    };
    if trouble == Trouble::Down {
        return Ok(());
    }
    if trouble == Trouble::Silent {
        return answer::wait_out(shared, trouble);
    }
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    stream.set_nodelay(true)?;
    let mut stream = StreamOwned::new(ServerConnection::new(tls)?, stream);
    answer::answer(&mut stream, shared)?;
    stream.conn.send_close_notify();
    stream.conn.complete_io(&mut stream.sock)?;
    Ok(())
}
