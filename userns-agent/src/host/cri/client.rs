//! Calls of `runtime.v1.RuntimeService` over a Unix socket: one HTTP/2 connection, a time limit for each call.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;
use tokio::task::{AbortHandle, JoinSet};
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

use super::proto;
use crate::host::brief;

/// Largest answer that is taken; kubelet takes as much.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// Calls made at once.
const AT_ONCE: usize = 8;
const EVENTS: &str = "/runtime.v1.RuntimeService/GetContainerEvents";

/// Why the runtime does not tell.
#[derive(Debug, thiserror::Error)]
pub(super) enum CriError {
    /// No socket.
    #[error("no container runtime answers: none of {} exists", sockets(paths))]
    Missing {
        /// Where it was looked for.
        paths: Vec<PathBuf>,
    },
    /// Nobody takes connections, or the agent may not connect.
    #[error("cannot connect to {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else, or an old runtime.
    #[error(
        "{} does not speak the CRI runtime.v1: the runtime is too old (v1alpha2 only), or its CRI plugin is disabled",
        path.display()
    )]
    NotSpoken {
        /// The socket.
        path: PathBuf,
    },
    /// A call failed.
    #[error("{} failed: {}: {}", name(method), status.code(), brief(status.message()))]
    Call {
        /// Its path.
        method: &'static str,
        /// What was answered.
        status: Box<Status>,
        /// Whether further calls make no sense.
        over: bool,
    },
    /// A call was not answered in time.
    #[error("{} was not answered within {}", name(method), humantime::format_duration(*limit))]
    TimedOut {
        /// Its path.
        method: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The runtime ended the connection.
    #[error("the runtime ended the connection")]
    Closed,
}

impl CriError {
    /// Whether the connection is of no use any more.
    pub(super) fn is_over(&self) -> bool {
        !matches!(self, Self::Call { over: false, .. })
    }
}

fn name(method: &str) -> &str {
    method.rsplit('/').next().unwrap_or(method)
}

fn sockets(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// What the runtime says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Version {
    /// Such as `containerd`.
    pub(super) name: String,
    /// Without a leading `v`.
    pub(super) version: String,
}

/// A connection to the runtime, to be cloned for calls at the same time. It ends with the last clone.
#[derive(Clone, Debug)]
pub(super) struct Client {
    connection: Connection,
    limit: Duration,
    /// Carries the connection.
    _carrier: Arc<Carrier>,
}

#[derive(Debug)]
struct Carrier(AbortHandle);

impl Drop for Carrier {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The HTTP/2 connection as tonic wants it.
#[derive(Clone, Debug)]
struct Connection(SendRequest<Body>);

impl GrpcService<Body> for Connection {
    type ResponseBody = Incoming;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

impl Client {
    /// Connects and asks who it is.
    pub(super) async fn connect(path: &Path, limit: Duration) -> Result<(Self, Version), CriError> {
        let failed = |source| CriError::Connect { path: path.to_owned(), source };
        let connect = async {
            let stream = UnixStream::connect(path).await.map_err(failed)?;
            let builder = http2::Builder::new(TokioExecutor::new());
            builder.handshake(TokioIo::new(stream)).await.map_err(|error| failed(io::Error::other(error)))
        };
        let connected = tokio::time::timeout(limit, connect).await;
        let (sender, connection) = connected.map_err(|_| failed(io::ErrorKind::TimedOut.into()))??;
        let carrier = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("connection to the container runtime: {error}");
            }
        });
        let carrier = Arc::new(Carrier(carrier.abort_handle()));
        let client = Self { connection: Connection(sender), limit, _carrier: carrier };
        let request = proto::VersionRequest { version: "v1".into() };
        let answer: proto::VersionResponse =
            match client.call("/runtime.v1.RuntimeService/Version", request).await {
                Err(CriError::Call { status, .. }) if status.code() == Code::Unimplemented => {
                    return Err(CriError::NotSpoken { path: path.to_owned() });
                }
                answer => answer?,
            };
        let version = brief(answer.runtime_version.trim_start_matches('v'));
        Ok((client, Version { name: brief(&answer.runtime_name), version }))
    }

    /// Whether the runtime has ended the connection.
    pub(super) fn is_closed(&self) -> bool {
        self.connection.0.is_closed()
    }

    fn grpc(&self) -> Grpc<Connection> {
        let origin = Uri::from_static("http://localhost");
        Grpc::with_origin(self.connection.clone(), origin).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, CriError>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let answered = async {
            let mut grpc = self.grpc();
            grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
            grpc.unary(
                tonic::Request::new(request),
                PathAndQuery::from_static(method),
                ProstCodec::<Q, A>::default(),
            )
            .await
        };
        let limit = self.limit;
        match tokio::time::timeout(limit, answered).await {
            Ok(answer) => {
                answer.map(tonic::Response::into_inner).map_err(|status| self.failed(method, status))
            }
            Err(_) => Err(CriError::TimedOut { method, limit }),
        }
    }

    /// A status that the runtime sent has no source, one of the transport has.
    pub(super) fn failed(&self, method: &'static str, status: Status) -> CriError {
        let over = std::error::Error::source(&status).is_some() || self.is_closed();
        CriError::Call { method, status: Box::new(status), over }
    }

    /// Names of the handlers with which pods can have user namespaces; `None` from a runtime that tells no features.
    pub(super) async fn handlers(&self) -> Result<Option<Vec<String>>, CriError> {
        let answer: proto::StatusResponse =
            self.call("/runtime.v1.RuntimeService/Status", proto::StatusRequest {}).await?;
        let able = |handler: &proto::RuntimeHandler| {
            handler.features.is_some_and(|features| features.user_namespaces) && !handler.name.is_empty()
        };
        let handlers = answer.runtime_handlers;
        let able = handlers.iter().filter(|handler| able(handler)).map(|handler| brief(&handler.name));
        Ok((!handlers.is_empty()).then(|| able.collect()))
    }

    /// All sandboxes.
    pub(super) async fn sandboxes(&self) -> Result<Vec<proto::PodSandbox>, CriError> {
        let answer: proto::ListPodSandboxResponse =
            self.call("/runtime.v1.RuntimeService/ListPodSandbox", proto::ListPodSandboxRequest {}).await?;
        Ok(answer.items)
    }

    /// All containers, or the one of this id.
    pub(super) async fn containers(&self, id: Option<&str>) -> Result<Vec<proto::Container>, CriError> {
        let filter = id.map(|id| proto::ContainerFilter { id: id.to_owned() });
        let answer: proto::ListContainersResponse = self
            .call("/runtime.v1.RuntimeService/ListContainers", proto::ListContainersRequest { filter })
            .await?;
        Ok(answer.containers)
    }

    /// A sandbox; `None` if there is none of this id.
    pub(super) async fn sandbox(&self, id: String) -> Result<Option<proto::PodSandboxStatus>, CriError> {
        let request = proto::PodSandboxStatusRequest { pod_sandbox_id: id.clone() };
        let answer = self.call("/runtime.v1.RuntimeService/PodSandboxStatus", request).await;
        let status = found(answer)?.and_then(|answer: proto::PodSandboxStatusResponse| answer.status);
        Ok(status.filter(|status| status.id == id))
    }

    /// A container; `None` if there is none of this id.
    pub(super) async fn container(&self, id: String) -> Result<Option<proto::ContainerStatus>, CriError> {
        let request = proto::ContainerStatusRequest { container_id: id.clone() };
        let answer = self.call("/runtime.v1.RuntimeService/ContainerStatus", request).await;
        let status = found(answer)?.and_then(|answer: proto::ContainerStatusResponse| answer.status);
        Ok(status.filter(|status| status.id == id))
    }

    /// What happens to containers, from now on. The answer begins with the first event: there is no time limit.
    pub(super) async fn events(&self) -> Result<Streaming<proto::ContainerEventResponse>, Status> {
        let mut grpc = self.grpc();
        grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let codec = ProstCodec::<proto::GetEventsRequest, _>::default();
        let request = tonic::Request::new(proto::GetEventsRequest {});
        grpc.server_streaming(request, PathAndQuery::from_static(EVENTS), codec)
            .await
            .map(tonic::Response::into_inner)
    }

    /// Makes a call for each of `ids`, some at the same time, and takes the answers as they come. Answers that are
    /// failures of their own are returned; the first that ends the connection ends this.
    pub(super) async fn each<T, F>(
        &self,
        ids: Vec<String>,
        call: impl Fn(Self, String) -> F,
        mut take: impl FnMut(T),
    ) -> Result<Vec<CriError>, CriError>
    where
        T: Send + 'static,
        F: Future<Output = Result<Option<T>, CriError>> + Send + 'static,
    {
        let (mut calls, mut failures) = (JoinSet::new(), Vec::new());
        let mut ids = ids.into_iter();
        loop {
            for id in ids.by_ref().take(AT_ONCE.saturating_sub(calls.len())) {
                calls.spawn(call(self.clone(), id));
            }
            match calls.join_next().await {
                None => return Ok(failures),
                Some(Ok(Ok(answer))) => answer.into_iter().for_each(&mut take),
                Some(Ok(Err(error))) if error.is_over() => return Err(error),
                Some(Ok(Err(error))) => failures.push(error),
                Some(Err(_ended)) => return Err(CriError::Closed),
            }
        }
    }
}

fn found<T>(answer: Result<T, CriError>) -> Result<Option<T>, CriError> {
    match answer {
        Err(CriError::Call { status, over: false, .. }) if status.code() == Code::NotFound => Ok(None),
        answer => answer.map(Some),
    }
}
