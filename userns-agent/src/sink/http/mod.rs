//! The HTTP endpoint: metrics, health and status.
//!
//! | path | answer |
//! |---|---|
//! | `/` | a list of the others |
//! | `/metrics` | metrics in Prometheus' text format |
//! | `/healthz` | 200 as long as the event loop is alive, else 503: for liveness probes |
//! | `/readyz` | 200 once everything that ran before the agent is known, else 503 with the reason |
//! | `/status` | version, kernel, hooks, sources, exceptions, losses and tables as JSON |
//!
//! Every connection is one request. A client may take its time or send anything at all: heads are limited in
//! size, exchanges in time, and when there are too many connections the oldest one is ended, so that a client
//! that holds many of them cannot keep a liveness probe out.

mod routes;
mod source;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

pub use routes::paths;
pub use source::StatusSource;

/// Largest request head.
const MAX_HEAD: usize = 8 << 10;
/// Time for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a request and its answer.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at a time.
const MAX_CONNECTIONS: usize = 32;
/// Pause after a connection could not be accepted, as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The endpoint cannot be opened.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {source}; {}", advice(source))]
pub struct BindError {
    /// The address asked for.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

const ADVICE: [(io::ErrorKind, &str); 3] = [
    (
        io::ErrorKind::AddrInUse,
        "stop the program that has it, perhaps another agent, or set another address with --listen",
    ),
    (
        io::ErrorKind::PermissionDenied,
        "ports below 1024 need CAP_NET_BIND_SERVICE: set another port with --listen",
    ),
    (
        io::ErrorKind::AddrNotAvailable,
        "set an address of this node with --listen, or 0.0.0.0 or [::] for all of them",
    ),
];

fn advice(error: &io::Error) -> &'static str {
    let known = ADVICE.iter().find(|(kind, _)| *kind == error.kind());
    known.map_or("set another address with --listen", |(_, advice)| advice)
}

/// An open endpoint that does not answer yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Where it listens: with port 0 asked for, the port that it got.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Opens the endpoint, so that an address that cannot be had is an error at the start.
///
/// # Errors
///
/// [`BindError`], which says what to do.
pub fn bind(address: SocketAddr) -> Result<Server, BindError> {
    let open = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Server { listener, address })
    };
    open().map_err(|source| BindError { address, source })
}

/// Answers until it is dropped.
///
/// # Errors
///
/// When the listener cannot be handed to the runtime.
pub async fn serve(server: Server, source: Arc<StatusSource>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(server.listener)?;
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.add(stream, &source),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The connections that are open.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// Oldest first.
    open: VecDeque<AbortHandle>,
}

impl Connections {
    fn add(&mut self, stream: TcpStream, source: &Arc<StatusSource>) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|task| !task.is_finished());
        if self.open.len() >= MAX_CONNECTIONS
            && let Some(oldest) = self.open.pop_front()
        {
            oldest.abort();
            source.metrics().http_rejected("limit");
        }
        self.open.push_back(self.tasks.spawn(exchange(stream, Arc::clone(source))));
    }
}

/// One request and its answer.
async fn exchange(stream: TcpStream, source: Arc<StatusSource>) {
    let service = service_fn(|request| ready(Ok::<_, Infallible>(answer(&request, &source))));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let rejected = match timeout(EXCHANGE_TIMEOUT, connection).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) if error.is_timeout() => Some("timeout"),
        Ok(Err(error)) if error.is_parse() => Some("malformed"),
        // the client went away
        Ok(Err(_)) => None,
        Err(_) => Some("timeout"),
    };
    if let Some(reason) = rejected {
        source.metrics().http_rejected(reason);
    }
}

fn answer(request: &Request<Incoming>, source: &StatusSource) -> Response<Full<Bytes>> {
    routes::answer(request.method(), request.uri().path(), source)
}
