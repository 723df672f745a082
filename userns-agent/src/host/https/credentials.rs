//! Certificates, keys and tokens: where they are, and what is made of them.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use super::{Endpoint, RequestError};

/// Largest file of certificates, a key, a token, or a kubeconfig.
const MAX_FILE: u64 = 1 << 20;

/// Bytes that no message shows.
#[derive(Clone)]
pub(in crate::host) struct Secret(pub(super) Vec<u8>);

impl Secret {
    /// Without the space around it.
    pub(super) fn as_slice(&self) -> &[u8] {
        self.0.trim_ascii()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Text in PEM (RFC 7468).
#[derive(Clone, Debug)]
pub(in crate::host) enum Pem {
    /// In a file, read for each connection.
    File(PathBuf),
    /// Part of a kubeconfig.
    Given(Secret),
}

impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Given(_) => f.write_str("those of the kubeconfig"),
        }
    }
}

impl Pem {
    fn read(&self) -> Result<Secret, RequestError> {
        match self {
            Self::File(path) => read_file(path).map(Secret),
            Self::Given(secret) => Ok(secret.clone()),
        }
    }

    fn unusable(&self, reason: impl fmt::Display) -> RequestError {
        RequestError::Unusable { what: self.to_string(), reason: reason.to_string() }
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, RequestError> {
        let text = self.read()?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text.0).collect();
        let certificates = certificates.map_err(|error| self.unusable(error))?;
        if certificates.is_empty() { Err(self.unusable("it holds no certificate")) } else { Ok(certificates) }
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub(in crate::host) enum Credentials {
    /// Nobody in particular.
    Anonymous,
    /// Whom the token in a file is for, read for each request.
    TokenFile(PathBuf),
    /// Whom a token is for.
    Token(Secret),
    /// Whom a client certificate is for.
    Certificate {
        /// It and those between it and the authority.
        chain: Pem,
        /// Its key.
        key: Pem,
    },
}

impl Credentials {
    pub(super) fn token(&self) -> Result<Option<Secret>, RequestError> {
        match self {
            Self::TokenFile(path) => read_file(path).map(|bytes| Some(Secret(bytes))),
            Self::Token(token) => Ok(Some(token.clone())),
            Self::Anonymous | Self::Certificate { .. } => Ok(None),
        }
    }
}

/// Reads a small file.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, RequestError> {
    let unreadable = |source| RequestError::File { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(unreadable(std::io::Error::other("it is larger than 1 MiB")));
    }
    Ok(bytes)
}

impl Endpoint {
    /// TLS with the authorities and the client certificate as they are now.
    pub(super) fn connector(&self) -> Result<TlsConnector, RequestError> {
        let mut roots = RootCertStore::empty();
        let certificates = self.ca.certificates()?;
        let (added, ignored) = roots.add_parsable_certificates(certificates);
        if added == 0 {
            return Err(self.ca.unusable(format!("none of its {ignored} certificates can be used")));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let unusable = |error: rustls::Error| RequestError::Unusable {
            what: "TLS cannot be set up".to_owned(),
            reason: error.to_string(),
        };
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().map_err(unusable)?;
        let builder = builder.with_root_certificates(roots);
        let config = match &self.credentials {
            Credentials::Certificate { chain, key } => {
                let text = key.read()?;
                let parsed = PrivateKeyDer::from_pem_slice(&text.0).map_err(|error| key.unusable(error))?;
                builder.with_client_auth_cert(chain.certificates()?, parsed).map_err(unusable)?
            }
            Credentials::Anonymous | Credentials::TokenFile(_) | Credentials::Token(_) => {
                builder.with_no_client_auth()
            }
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }
}
