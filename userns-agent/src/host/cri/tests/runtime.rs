//! A container runtime's CRI in a test's process, with the ways in which one can fail.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tonic::server::{Grpc, ServerStreamingService, UnaryService};
use tonic_prost::ProstCodec;

use super::super::proto::*;

/// Whether and how it tells events.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Tells {
    Events,
    /// As one that does not know the call.
    Unimplemented,
    /// As CRI-O that is configured to tell none.
    Nothing,
}

type Told = Result<ContainerEventResponse, Status>;

/// What it knows and how it behaves.
pub(super) struct Node {
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    /// Whether it has `runtime.v1`.
    pub(super) speaks: bool,
    pub(super) tells: Tells,
    /// Handlers, and whether they have user namespaces.
    pub(super) handlers: Vec<(&'static str, bool)>,
    pub(super) sandboxes: BTreeMap<String, PodSandboxStatus>,
    /// By id, with their sandboxes' ids.
    pub(super) containers: BTreeMap<String, (String, ContainerStatus)>,
    /// Calls that are never answered.
    pub(super) hangs: Vec<&'static str>,
    /// Calls that are answered with what is no message.
    pub(super) garbles: Vec<&'static str>,
    /// Calls so far.
    pub(super) calls: BTreeMap<String, usize>,
    subscribers: Vec<mpsc::Sender<Told>>,
}

impl Node {
    pub(super) fn calls(&self, method: &str) -> usize {
        self.calls.get(method).copied().unwrap_or(0)
    }

    pub(super) fn all_calls(&self) -> usize {
        self.calls.values().sum()
    }

    /// Tells an event about a container or sandbox, with all statuses or without any.
    pub(super) fn tell(&mut self, id: &str, kind: i32, statuses: bool) {
        let of = self.containers.get(id).map_or(id, |(of, _)| of);
        let event = ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind,
            pod_sandbox_status: self.sandboxes.get(of).filter(|_| statuses).cloned(),
            containers_statuses: if statuses { self.statuses_of(of) } else { Vec::new() },
        };
        self.subscribers.retain(|subscriber| subscriber.try_send(Ok(event.clone())).is_ok());
        assert!(!self.subscribers.is_empty(), "nobody listens");
    }

    fn statuses_of(&self, sandbox: &str) -> Vec<ContainerStatus> {
        let own = self.containers.values().filter(|(of, _)| of == sandbox);
        own.map(|(_, status)| status.clone()).collect()
    }

    /// Ends all streams of events in the middle.
    pub(super) fn cut_events(&mut self) {
        for subscriber in self.subscribers.drain(..) {
            subscriber.try_send(Err(Status::unavailable("going down"))).unwrap();
        }
    }

    pub(super) fn listeners(&self) -> usize {
        self.subscribers.iter().filter(|subscriber| !subscriber.is_closed()).count()
    }
}

/// A runtime that answers at [`Runtime::socket`] until it is dropped or stopped.
pub(super) struct Runtime {
    dir: tempfile::TempDir,
    pub(super) node: Arc<Mutex<Node>>,
    serving: JoinSet<()>,
}

impl Runtime {
    /// containerd 2 without any pod.
    pub(super) fn start() -> Self {
        let node = Node {
            name: "containerd",
            version: "v2.1.9",
            speaks: true,
            tells: Tells::Events,
            handlers: vec![("", true), ("runc", true), ("kata", false), ("crun", true)],
            sandboxes: BTreeMap::new(),
            containers: BTreeMap::new(),
            hangs: Vec::new(),
            garbles: Vec::new(),
            calls: BTreeMap::new(),
            subscribers: Vec::new(),
        };
        let dir = tempfile::tempdir().unwrap();
        let mut runtime = Self { dir, node: Arc::new(Mutex::new(node)), serving: JoinSet::new() };
        runtime.serve();
        runtime
    }

    pub(super) fn with(change: impl FnOnce(&mut Node)) -> Self {
        let runtime = Self::start();
        change(&mut runtime.node.lock().unwrap());
        runtime
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join("cri.sock")
    }

    /// The directory of the socket.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Answers, from now on.
    pub(super) fn serve(&mut self) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let node = Arc::clone(&self.node);
        self.serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let node = Arc::clone(&node);
                let service = service_fn(move |request| answer(Arc::clone(&node), request));
                let connection = http2::Builder::new(TokioExecutor::new());
                connections.spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
    }

    /// Ends, cutting all connections, as a process that is killed does.
    pub(super) async fn stop(&mut self) {
        self.serving.shutdown().await;
        self.node.lock().unwrap().subscribers.clear();
        std::fs::remove_file(self.socket()).unwrap();
    }
}

async fn answer(node: Arc<Mutex<Node>>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let method = path.strip_prefix("/runtime.v1.RuntimeService/").unwrap().to_owned();
    let (hangs, garbles, speaks) = {
        let mut node = node.lock().unwrap();
        *node.calls.entry(method.clone()).or_default() += 1;
        (node.hangs.contains(&&*method), node.garbles.contains(&&*method), node.speaks)
    };
    if hangs {
        std::future::pending::<()>().await;
    }
    if garbles {
        let frame = Full::new(Bytes::from_static(b"\0\0\0\0\x04\xff\xff\xff\xff"));
        let response = Response::builder().header("content-type", "application/grpc");
        return Ok(response.body(Body::new(frame)).unwrap());
    }
    if !speaks {
        return Ok(Status::unimplemented("unknown service runtime.v1.RuntimeService").into_http());
    }
    let node = move || Arc::clone(&node);
    Ok(match method.as_str() {
        "Version" => unary(node(), request, version).await,
        "Status" => unary(node(), request, status).await,
        "ListPodSandbox" => unary(node(), request, sandboxes).await,
        "ListContainers" => unary(node(), request, containers).await,
        "PodSandboxStatus" => unary(node(), request, sandbox).await,
        "ContainerStatus" => unary(node(), request, container).await,
        "GetContainerEvents" => {
            let codec = ProstCodec::<ContainerEventResponse, GetEventsRequest>::default();
            Grpc::new(codec).server_streaming(Subscribe(node()), request).await
        }
        _ => Status::unimplemented("unknown method").into_http(),
    })
}

async fn unary<Q, A>(
    node: Arc<Mutex<Node>>,
    request: Request<Incoming>,
    answer: fn(&Node, Q) -> Result<A, Status>,
) -> Response<Body>
where
    Q: prost::Message + Default + 'static,
    A: prost::Message + 'static,
{
    Grpc::new(ProstCodec::<A, Q>::default()).unary(Answer(node, answer), request).await
}

struct Answer<Q, A>(Arc<Mutex<Node>>, fn(&Node, Q) -> Result<A, Status>);

impl<Q, A> UnaryService<Q> for Answer<Q, A> {
    type Response = A;
    type Future = Ready<Result<tonic::Response<A>, Status>>;

    fn call(&mut self, request: tonic::Request<Q>) -> Self::Future {
        let node = self.0.lock().unwrap();
        ready(self.1(&node, request.into_inner()).map(tonic::Response::new))
    }
}

struct Subscribe(Arc<Mutex<Node>>);

impl ServerStreamingService<GetEventsRequest> for Subscribe {
    type Response = ContainerEventResponse;
    type ResponseStream = ReceiverStream<Told>;
    type Future = Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: tonic::Request<GetEventsRequest>) -> Self::Future {
        let mut node = self.0.lock().unwrap();
        let (sender, events) = mpsc::channel(1024);
        match node.tells {
            Tells::Events => node.subscribers.push(sender),
            Tells::Unimplemented => return ready(Err(Status::unimplemented("no such method"))),
            Tells::Nothing => {}
        }
        ready(Ok(tonic::Response::new(ReceiverStream::new(events))))
    }
}

fn version(node: &Node, _: VersionRequest) -> Result<VersionResponse, Status> {
    Ok(VersionResponse { runtime_name: node.name.to_owned(), runtime_version: node.version.to_owned() })
}

fn status(node: &Node, _: StatusRequest) -> Result<StatusResponse, Status> {
    let handler = |(name, user_namespaces): &(&str, bool)| RuntimeHandler {
        name: (*name).to_owned(),
        features: Some(RuntimeHandlerFeatures { user_namespaces: *user_namespaces }),
    };
    Ok(StatusResponse { runtime_handlers: node.handlers.iter().map(handler).collect() })
}

fn sandboxes(node: &Node, _: ListPodSandboxRequest) -> Result<ListPodSandboxResponse, Status> {
    let item = |status: &PodSandboxStatus| PodSandbox {
        id: status.id.clone(),
        metadata: status.metadata.clone(),
        created_at: status.created_at,
        labels: status.labels.clone(),
        runtime_handler: status.runtime_handler.clone(),
    };
    Ok(ListPodSandboxResponse { items: node.sandboxes.values().map(item).collect() })
}

fn containers(node: &Node, request: ListContainersRequest) -> Result<ListContainersResponse, Status> {
    let wanted = request.filter.map(|filter| filter.id);
    let all = node.containers.iter().filter(|(id, _)| wanted.as_ref().is_none_or(|wanted| wanted == *id));
    let item = |(id, (of, status)): (&String, &(String, ContainerStatus))| Container {
        id: id.clone(),
        pod_sandbox_id: of.clone(),
        metadata: status.metadata.clone(),
        image: None,
        image_ref: "sha256:5e1f".into(),
    };
    Ok(ListContainersResponse { containers: all.map(item).collect() })
}

fn sandbox(node: &Node, request: PodSandboxStatusRequest) -> Result<PodSandboxStatusResponse, Status> {
    let status = node.sandboxes.get(&request.pod_sandbox_id).cloned();
    let status = status.ok_or_else(|| Status::not_found("no such sandbox"))?;
    Ok(PodSandboxStatusResponse { status: Some(status) })
}

fn container(node: &Node, request: ContainerStatusRequest) -> Result<ContainerStatusResponse, Status> {
    let status = node.containers.get(&request.container_id).map(|(_, status)| status.clone());
    let status = status.ok_or_else(|| Status::not_found("no such container"))?;
    Ok(ContainerStatusResponse { status: Some(status) })
}
