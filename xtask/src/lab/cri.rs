//! A client of the CRI, the way kubelet talks to its container runtime, for callers that wait.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use prost::Message;
use tokio::runtime::Runtime;
use tonic::{
    Request,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

pub(super) mod messages;

/// Sandboxes take seconds on an emulated processor, and some retries are the runtime's own.
const LONGEST_CALL: Duration = Duration::from_secs(120);

/// A connection to a CRI socket. It is made with the first call, and again when it was lost.
#[derive(Debug)]
pub(super) struct Cri {
    grpc: Grpc<Channel>,
    /// One thread beside the callers, so that the connection is served between calls.
    runtime: Runtime,
}

impl Cri {
    pub(super) fn new(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("cannot start a thread for the CRI")?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))
            .with_context(|| format!("{} cannot be a CRI socket", socket.display()))?;
        let _inside = runtime.enter();
        let grpc = Grpc::new(endpoint.connect_lazy());
        Ok(Self { grpc, runtime })
    }

    /// Calls `method`, such as `RuntimeService/Version`.
    pub(super) fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.grpc.clone();
        let exchange = async move {
            grpc.ready().await.map_err(|error| anyhow!(error).context("nobody answers at the socket"))?;
            let path = PathAndQuery::try_from(format!("/runtime.v1.{method}"))?;
            let answer = grpc.unary(Request::new(request), path, ProstCodec::<Q, A>::default()).await;
            match answer {
                Ok(answer) => Ok(answer.into_inner()),
                Err(status) => Err(anyhow!("{:?}: {}", status.code(), status.message())),
            }
        };
        // the timer needs the runtime around it
        let bounded = async { tokio::time::timeout(LONGEST_CALL, exchange).await };
        let answer = self.runtime.block_on(bounded);
        answer
            .unwrap_or_else(|_| Err(anyhow!("no answer within {LONGEST_CALL:?}")))
            .with_context(|| format!("the CRI call {method} failed"))
    }
}

#[cfg(test)]
mod tests {
    use super::{messages::Empty, *};

    #[test]
    fn a_socket_without_a_runtime_is_an_error_at_once() {
        let cri = Cri::new(Path::new("/nowhere/containerd.sock")).unwrap();
        let error = cri.call::<_, Empty>("RuntimeService/Version", Empty {}).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("Version") && !text.contains("no answer within"), "{text}");
    }
}
