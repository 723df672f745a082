//! The local socket: what the agent knows of the pods, for root on this node.
//!
//! HTTP/1.1 over a Unix stream socket, one request a connection: `GET /v1/pods`, `GET /v1/rules` and
//! `GET /v1/findings/ID` answer JSON. Only the agent's own
//! user may open the socket, in a directory that is that user's alone, and each peer's credentials are looked at
//! besides. The event loop is asked for a snapshot; a client that is slow, silent or one of many costs it nothing.

use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::geteuid;
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::Metrics;

/// The path, before the beginning of a finding's id, that answers with open findings.
const FINDINGS: &str = "/v1/findings/";

/// What the event loop can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// What is known of the pods.
    Pods,
    /// What became of the rules file's exceptions.
    Rules,
    /// Open findings whose id begins so.
    Findings(String),
}

impl Wanted {
    /// The path that answers.
    #[must_use]
    pub fn path(&self) -> String {
        match self {
            Self::Pods => "/v1/pods".to_owned(),
            Self::Rules => "/v1/rules".to_owned(),
            Self::Findings(beginning) => format!("{FINDINGS}{beginning}"),
        }
    }

    fn of(path: &str) -> Option<Self> {
        match path {
            "/v1/pods" => Some(Self::Pods),
            "/v1/rules" => Some(Self::Rules),
            _ => path.strip_prefix(FINDINGS).map(|beginning| Self::Findings(beginning.to_owned())),
        }
    }
}

/// Connections at a time; others wait.
const MAX_CONNECTIONS: usize = 8;
/// Time for a request and its answer.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Largest request head.
const MAX_HEAD: usize = 8 << 10;

/// The socket cannot be made.
#[derive(Debug, Error)]
pub enum LocalError {
    /// An agent answers there.
    #[error("another agent listens on {}: stop it, or name another socket with --socket", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// It is in a directory that others may change, or not a socket.
    #[error("cannot listen on {}: {why}; name another place with --socket", path.display())]
    Unsafe {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
    /// The operating system refused it.
    #[error("cannot listen on {}: {source}; name another place with --socket, or `none`", path.display())]
    Os {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Asks the event loop for what it knows: it sends JSON back.
#[derive(Debug)]
pub struct Query {
    /// For what.
    pub wanted: Wanted,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Vec<u8>>,
}

/// The socket, removed with the value.
#[derive(Debug)]
pub struct LocalServer {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        // a file that is left is replaced at the next start
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Makes the socket, in place of one that a dead agent left. Call it within a Tokio runtime.
///
/// # Errors
///
/// [`LocalError`], which says what to do.
pub fn bind(path: &Path) -> Result<LocalServer, LocalError> {
    let os = |source| LocalError::Os { path: path.to_owned(), source };
    let unsafe_because = |why| LocalError::Unsafe { path: path.to_owned(), why };
    let dir = path.parent().ok_or(unsafe_because("it is no path of a file"))?;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(os)?;
    let stat = std::fs::symlink_metadata(dir).map_err(os)?;
    if !stat.is_dir() || stat.uid() != geteuid().as_raw() || stat.mode() & 0o022 != 0 {
        return Err(unsafe_because("its directory must be the agent's user's, and writable by nobody else"));
    }
    match std::fs::symlink_metadata(path) {
        Ok(stat) if !stat.file_type().is_socket() => {
            return Err(unsafe_because("there is a file that is no socket"));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(LocalError::InUse { path: path.to_owned() });
        }
        Ok(_) => std::fs::remove_file(path).map_err(os)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(os(error)),
    }
    let listener = UnixListener::bind(path).map_err(os)?;
    let server = LocalServer { listener, path: path.to_owned() };
    // nobody else can be in the directory, so there is no moment at which others could connect
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(os)?;
    Ok(server)
}

/// Answers until it is dropped, asking by `queries`; peers of other users than `user` are refused.
pub async fn serve(server: LocalServer, queries: mpsc::Sender<Query>, metrics: Arc<Metrics>, user: u32) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match server.listener.accept().await {
            Ok((stream, _)) => {
                let (queries, metrics) = (queries.clone(), Arc::clone(&metrics));
                tokio::spawn(async move {
                    exchange(stream, queries, &metrics, user).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection on the local socket");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn exchange(stream: UnixStream, queries: mpsc::Sender<Query>, metrics: &Metrics, user: u32) {
    if !stream.peer_cred().is_ok_and(|peer| peer.uid() == user) {
        metrics.http_rejected("peer");
        return;
    }
    let service = service_fn(|request| {
        let queries = queries.clone();
        async move { Ok::<_, Infallible>(answer(&request, &queries).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(EXCHANGE_TIMEOUT, connection).await {
        Ok(Err(error)) if error.is_parse() => metrics.http_rejected("malformed"),
        Err(_) => metrics.http_rejected("timeout"),
        // answered, or the client went away
        Ok(_) => {}
    }
}

async fn answer(request: &Request<Incoming>, queries: &mpsc::Sender<Query>) -> Response<Full<Bytes>> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Full::from(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        response
    };
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n");
    }
    let Some(wanted) = Wanted::of(request.uri().path()) else {
        return plain(StatusCode::NOT_FOUND, "there are /v1/pods, /v1/rules and /v1/findings/ID\n");
    };
    let (reply, told) = oneshot::channel();
    let asked = queries.send(Query { wanted, reply }).await.is_ok();
    match told.await {
        Ok(json) if asked => {
            let mut response = Response::new(Full::from(Bytes::from(json)));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        _ => plain(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream as Client;

    use super::*;

    struct Served {
        dir: tempfile::TempDir,
        metrics: Arc<Metrics>,
        runtime: tokio::runtime::Runtime,
    }

    impl Served {
        /// A socket that answers `["pods"]` to this user.
        fn new(user: u32) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let metrics = Arc::new(Metrics::new().unwrap());
            let served = Self { dir, metrics: Arc::clone(&metrics), runtime };
            let (queries, mut asked) = mpsc::channel::<Query>(1);
            let path = served.path();
            served.runtime.block_on(async move {
                let server = bind(&path).unwrap();
                tokio::spawn(serve(server, queries, metrics, user));
                tokio::spawn(async move {
                    while let Some(Query { wanted, reply }) = asked.recv().await {
                        let answer = match wanted {
                            Wanted::Pods => "[\"pods\"]\n".to_owned(),
                            Wanted::Rules => "[\"rules\"]\n".to_owned(),
                            Wanted::Findings(beginning) => format!("[\"{beginning}\"]\n"),
                        };
                        let _ = reply.send(answer.into_bytes());
                    }
                });
            });
            served
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("run/agent.sock")
        }

        fn ask(&self, request: &str) -> String {
            let mut client = Client::connect(self.path()).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let _ = client.write_all(request.as_bytes());
            let mut answer = String::new();
            let _ = client.read_to_string(&mut answer);
            answer
        }
    }

    const GET: &str = "GET /v1/pods HTTP/1.1\r\nhost: agent\r\n\r\n";

    fn own() -> u32 {
        geteuid().as_raw()
    }

    #[test]
    fn it_answers_its_own_user_only() {
        let served = Served::new(own());
        let answer = served.ask(GET);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("[\"pods\"]\n"), "{answer}");
        let finding = served.ask(&GET.replace("pods", "findings/cbf2"));
        assert!(finding.starts_with("HTTP/1.1 200") && finding.ends_with("[\"cbf2\"]\n"), "{finding}");
        let rules = served.ask(&GET.replace("pods", "rules"));
        assert!(rules.ends_with("[\"rules\"]\n"), "{rules}");
        for (request, status) in [
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", "404"),
            ("PUT /v1/pods HTTP/1.1\r\nhost: a\r\n\r\n", "405"),
        ] {
            assert!(served.ask(request).starts_with(&format!("HTTP/1.1 {status}")), "{request}");
        }
        let refusing = Served::new(own() + 1);
        assert_eq!(refusing.ask(GET), "");
        let metrics = String::from_utf8(refusing.metrics.render().unwrap()).unwrap();
        assert!(metrics.contains("userns_http_rejected_total{reason=\"peer\"} 1"), "{metrics}");
    }

    #[test]
    fn silent_clients_do_not_keep_others_out_for_ever() {
        let served = Served::new(own());
        let silent: Vec<_> = (1..MAX_CONNECTIONS).map(|_| Client::connect(served.path()).unwrap()).collect();
        assert!(served.ask(GET).starts_with("HTTP/1.1 200"));
        drop(silent);
    }

    #[test]
    fn the_socket_is_private_and_goes_with_the_agent() {
        let served = Served::new(own());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let path = served.path();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let _guard = served.runtime.enter();
        assert!(matches!(bind(&path), Err(LocalError::InUse { .. })));
        drop(_guard);
        let Served { dir, runtime, .. } = served;
        drop(runtime);
        assert!(!path.exists());
        drop(dir);
    }

    #[tokio::test]
    async fn what_a_dead_agent_left_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        drop(bind(&path).unwrap());
        std::fs::write(&path, "precious").unwrap();
        assert!(bind(&path).unwrap_err().to_string().contains("no socket"));
        std::fs::remove_file(&path).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(bind(&path).unwrap_err().to_string().contains("writable by nobody else"));
    }
}
