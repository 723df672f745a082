//! Pods of this node as kubelet has them: its `/pods`, asked for again and again.
//!
//! Works while the API server does not. Kubelet asks the API server who may read it and remembers the answer for
//! some minutes; `nodes/pods` is what is needed, where kubelet has the gate KubeletFineGrainedAuthz (on by default
//! from Kubernetes 1.33). Before that it wants `nodes/proxy`, which also allows running programs in any pod of the
//! node: the agent is not to be given that.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use tokio::sync::watch;
use tokio::time::sleep;

use super::SourceHealth;
use super::https::{Credentials, Endpoint, MAX_BODY, Patience, Pem, RequestError};
use super::outage::Outage;
use super::pod_object;
use crate::event::{Fact, PodSource, PodSpec};

/// How kubelet is asked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its URL, such as `https://127.0.0.1:10250`.
    pub url: Uri,
    /// The node's name, which its certificate is for: asked for where the URL has a loopback address, which no
    /// certificate of kubelet has.
    pub node: String,
    /// File of authorities for its serving certificate.
    pub ca: PathBuf,
    /// File of the token to show.
    pub token: PathBuf,
    /// Time between two questions, which is varied by a tenth.
    pub interval: Duration,
    /// How patient to be with it.
    pub patience: Patience,
}

/// Why kubelet gave no pods.
#[derive(Debug, thiserror::Error)]
enum PollError {
    #[error("{source}{}", advice(source))]
    Request { source: RequestError },
    #[error("kubelet's answer cannot be used: {0}")]
    Malformed(String),
}

fn advice(error: &RequestError) -> &'static str {
    if let RequestError::Certificate { .. } = error {
        return ": set kubelet_ca to the authorities of kubelet's serving certificate, and have it signed \
                (serverTLSBootstrap) for the node's name";
    }
    match error.refusal().map(|refusal| refusal.code) {
        Some(401) => ": kubelet does not take the token; it must run with authentication.webhook.enabled",
        Some(403) => {
            ": bind a ClusterRole with the verb get on nodes/pods to the agent's service account (kubelet 1.33 or \
             newer); do not grant nodes/proxy, which allows running programs in every pod of the node"
        }
        _ => "",
    }
}

/// Asks kubelet for its pods.
#[derive(Debug)]
pub struct KubeletApi {
    endpoint: Endpoint,
    interval: Duration,
    patience: Patience,
    asked: bool,
    /// What is in force.
    pods: Option<Vec<PodSpec>>,
    outage: Outage,
}

impl From<RequestError> for PollError {
    fn from(source: RequestError) -> Self {
        Self::Request { source }
    }
}

impl KubeletApi {
    /// Asks as `settings` say. Nothing is asked before [`Self::next`].
    #[must_use]
    pub fn new(settings: Settings) -> (Self, watch::Receiver<SourceHealth>) {
        let (outage, health) = Outage::new("kubelet's /pods");
        let host = settings.url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let is_loopback =
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        let endpoint = Endpoint {
            name: is_loopback.then(|| settings.node.clone()),
            url: settings.url,
            ca: Pem::File(settings.ca),
            credentials: Credentials::TokenFile(settings.token),
        };
        let Settings { interval, patience, .. } = settings;
        (Self { endpoint, interval, patience, asked: false, pods: None, outage }, health)
    }

    /// Waits until kubelet has other pods than before. While it cannot be asked, what it had stays in force. Nothing
    /// is lost if the future is dropped before it is ready. Large answers are read meanwhile: give it a task of its
    /// own.
    pub async fn next(&mut self) -> Fact {
        loop {
            if self.asked {
                sleep(self.interval.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
            }
            self.asked = true;
            match self.ask().await {
                Ok(pods) => {
                    self.outage.over(pods.len());
                    if self.pods.as_ref() != Some(&pods) {
                        self.pods = Some(pods.clone());
                        return Fact::Pods(PodSource::KubeletApi, pods);
                    }
                }
                Err(error) => self.outage.failed(&error.to_string()),
            }
        }
    }

    async fn ask(&mut self) -> Result<Vec<PodSpec>, PollError> {
        let mut body = self.endpoint.get("/pods", self.patience).await?;
        let text = body.all(MAX_BODY, self.patience.answer).await?;
        let list = pod_object::read_list(&text).map_err(PollError::Malformed)?;
        let items = list.items.unwrap_or_default().into_iter().map(pod_object::read_pod);
        Ok(items.filter_map(|pod| self.outage.usable(pod)).collect())
    }
}
