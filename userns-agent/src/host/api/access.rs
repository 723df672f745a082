//! Where the API server is, and as whom to ask it.

use std::path::{Path, PathBuf};

use hyper::Uri;

use super::super::https::{self, Credentials, Endpoint, Pem, RequestError, server_url};

/// How the API server is reached.
#[derive(Clone, Debug)]
pub enum Access {
    /// From within the cluster, with a service account.
    InCluster {
        /// Its URL.
        url: Uri,
        /// The service account's volume: `token`, `ca.crt`.
        service_account: PathBuf,
    },
    /// As a kubeconfig file says, read again for each connection.
    Kubeconfig(PathBuf),
}

/// Why there is no API server to ask.
#[derive(Debug, thiserror::Error)]
pub enum NoAccess {
    /// Not a pod.
    #[error(
        "not in a cluster: KUBERNETES_SERVICE_HOST is not set; set kubeconfig to use an API server from outside"
    )]
    NotInCluster,
    /// Not an address.
    #[error("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are no address: {0}")]
    Address(String),
    /// A pod without a token.
    #[error(
        "there is no service account at {}: set automountServiceAccountToken in the agent's pod",
        path.display()
    )]
    NoServiceAccount {
        /// Where its volume should be.
        path: PathBuf,
    },
}

impl Access {
    /// Access from within a cluster: `host` and `port` are `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`,
    /// which every pod is given.
    ///
    /// # Errors
    ///
    /// [`NoAccess`]
    pub fn in_cluster(
        service_account: &Path,
        host: Option<&str>,
        port: Option<&str>,
    ) -> Result<Self, NoAccess> {
        let host = host.filter(|host| !host.is_empty()).ok_or(NoAccess::NotInCluster)?;
        let port = port.filter(|port| !port.is_empty()).unwrap_or("443");
        if !service_account.join("token").exists() {
            return Err(NoAccess::NoServiceAccount { path: service_account.to_owned() });
        }
        let is_ipv6 = host.contains(':');
        let url = if is_ipv6 { format!("https://[{host}]:{port}") } else { format!("https://{host}:{port}") };
        let url = server_url(&url).map_err(NoAccess::Address)?;
        Ok(Self::InCluster { url, service_account: service_account.to_owned() })
    }

    pub(super) fn endpoint(&self) -> Result<Endpoint, RequestError> {
        match self {
            Self::InCluster { url, service_account } => Ok(Endpoint {
                url: url.clone(),
                name: None,
                ca: Pem::File(service_account.join("ca.crt")),
                credentials: Credentials::TokenFile(service_account.join("token")),
            }),
            Self::Kubeconfig(path) => https::kubeconfig(path),
        }
    }
}

/// A value as a URL's query has it (RFC 3986, section 2.1).
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}
