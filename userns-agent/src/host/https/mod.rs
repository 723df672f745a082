//! Requests to the API server and to kubelet: HTTP/1.1 over TLS, one connection for each.
//!
//! Certificates and tokens are read anew each time, so that rotated ones are used from the next request on. Whatever
//! the other side does, a request ends: connecting, the answer's head and each pause in its body have a limit, and
//! so have the sizes of lines and bodies.

mod credentials;
mod kubeconfig;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, HOST, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::ServerName;

pub(super) use credentials::{Credentials, Pem, Secret};
pub(super) use kubeconfig::endpoint as kubeconfig;

/// Largest body of a list: some thousands of pods.
pub(super) const MAX_BODY: usize = 32 << 20;
/// Largest line of a watch. An object is at most 1.5 MiB in etcd by default (`--max-request-bytes`).
const MAX_LINE: usize = 8 << 20;
/// Largest answer of an error that is read.
const MAX_STATUS: usize = 64 << 10;
/// Largest head of an answer, and the unit in which bodies are read.
const MAX_HEAD: usize = 64 << 10;

/// How long each part of a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Until the connection is made, TLS included.
    pub connect: Duration,
    /// Until the answer begins, and in each pause of a list's body.
    pub answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), answer: Duration::from_secs(30) }
    }
}

/// Where requests go, and as whom.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// `https://host:port`, perhaps with a path before all others.
    pub(super) url: Uri,
    /// The name its certificate must be for; `None`: that of the URL.
    pub(super) name: Option<String>,
    /// Who may have signed its certificate.
    pub(super) ca: Pem,
    /// Who asks.
    pub(super) credentials: Credentials,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// A file that is needed for it cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    /// Something that is needed for it is of no use.
    #[error("{what}: {reason}")]
    Unusable { what: String, reason: String },
    /// There is no connection.
    #[error("cannot connect to {address}: {source}")]
    Connect { address: String, source: io::Error },
    /// The other side is not who it should be.
    #[error("{address} has no valid certificate: {reason} (authorities: {ca})")]
    Certificate { address: String, reason: rustls::CertificateError, ca: String },
    /// It took too long.
    #[error("{address} did not {what} within {}", humantime::format_duration(*within))]
    Timeout { address: String, what: &'static str, within: Duration },
    /// The connection broke.
    #[error("the connection to {address} broke: {source}")]
    Broken { address: String, source: hyper::Error },
    /// The body ended within a line.
    #[error("the answer of {address} ended within a line")]
    Partial { address: String },
    /// The body is too large.
    #[error("the answer of {address} is larger than {limit} bytes")]
    TooLarge { address: String, limit: usize },
    /// It was refused.
    #[error("{address} answered {refusal}")]
    Refused { address: String, refusal: Refusal },
}

impl RequestError {
    /// What the other side answered, if it did.
    pub(super) fn refusal(&self) -> Option<&Refusal> {
        if let Self::Refused { refusal, .. } = self { Some(refusal) } else { None }
    }
}

/// An answer that is no success: the `Status` of the API (meta/v1), as far as the other side gives one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The HTTP status.
    pub(super) code: u16,
    /// In words.
    pub(super) message: String,
    /// How long not to ask again.
    pub(super) retry_after: Option<Duration>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, message, .. } = self;
        write!(f, "{code}")?;
        if message.is_empty() { Ok(()) } else { write!(f, " ({message})") }
    }
}

#[derive(Default, Deserialize)]
struct StatusObject {
    code: Option<u16>,
    message: Option<String>,
    details: Option<StatusDetails>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatusDetails {
    retry_after_seconds: Option<u64>,
}

impl Refusal {
    /// Reads a `Status`; what is none gives `code` alone.
    pub(super) fn read(code: u16, body: &[u8]) -> Self {
        let status = serde_json::from_slice::<StatusObject>(body).unwrap_or_default();
        Self {
            code: if code == StatusCode::OK.as_u16() { status.code.unwrap_or_default() } else { code },
            message: super::brief(&status.message.unwrap_or_default()),
            retry_after: status.details.unwrap_or_default().retry_after_seconds.map(Duration::from_secs),
        }
    }
}

impl Endpoint {
    /// Host and port, for messages.
    pub(super) fn address(&self) -> String {
        self.url.authority().map(ToString::to_string).unwrap_or_default()
    }

    /// Asks for `path`, and returns the body of a success.
    ///
    /// # Errors
    ///
    /// [`RequestError`]
    pub(super) async fn get(&self, path: &str, patience: Patience) -> Result<Body, RequestError> {
        let address = self.address();
        let (connector, name) = (self.connector()?, self.server_name()?);
        let request = self.request(path)?;
        let connected = timeout(patience.connect, self.connect(connector, name)).await;
        let tls = connected.map_err(|_| RequestError::Timeout {
            address: address.clone(),
            what: "take a connection",
            within: patience.connect,
        })??;
        let broken = |source| RequestError::Broken { address: address.clone(), source };
        let mut builder = hyper::client::conn::http1::Builder::new();
        builder.max_buf_size(MAX_HEAD);
        let (mut sender, connection) = builder.handshake(TokioIo::new(tls)).await.map_err(broken)?;
        // what goes wrong with the connection is told where its answer is read
        let connection = Connection(tokio::spawn(async move { drop(connection.await) }).abort_handle());
        let answered = timeout(patience.answer, sender.send_request(request)).await;
        let response = answered.map_err(|_| RequestError::Timeout {
            address: address.clone(),
            what: "answer",
            within: patience.answer,
        })?;
        let response = response.map_err(broken)?;
        let (status, retry_after) = (response.status(), retry_after(&response));
        let mut body = Body {
            address,
            incoming: response.into_body(),
            buffer: BytesMut::new(),
            searched: 0,
            ended: false,
            heard: Instant::now(),
            _connection: connection,
        };
        if status.is_success() {
            return Ok(body);
        }
        // without the words the code still says it
        let text = body.all(MAX_STATUS, patience.answer).await.unwrap_or_default();
        let mut refusal = Refusal::read(status.as_u16(), &text);
        refusal.retry_after = refusal.retry_after.or(retry_after);
        Err(RequestError::Refused { address: self.address(), refusal })
    }

    fn request(&self, path: &str) -> Result<Request<Empty<Bytes>>, RequestError> {
        let base = self.url.path().trim_end_matches('/');
        let unusable = |reason: String| RequestError::Unusable { what: self.url.to_string(), reason };
        let mut request = Request::get(format!("{base}{path}"))
            .header(HOST, self.address())
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("userns-agent/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = self.credentials.token()? {
            let value = HeaderValue::from_bytes(&[b"Bearer ", token.as_slice()].concat());
            let mut value =
                value.map_err(|_| unusable("the token has characters no token has".to_owned()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        request.body(Empty::new()).map_err(|error| unusable(error.to_string()))
    }

    async fn connect(
        &self,
        connector: TlsConnector,
        name: ServerName<'static>,
    ) -> Result<TlsStream<TcpStream>, RequestError> {
        let address = self.address();
        let host = self.host();
        let port = self.url.port_u16().unwrap_or(443);
        let failed = |source| RequestError::Connect { address: address.clone(), source };
        let tcp = TcpStream::connect((host, port)).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        connector.connect(name, tcp).await.map_err(|source| {
            let tls = source.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
            match tls {
                Some(rustls::Error::InvalidCertificate(reason)) => RequestError::Certificate {
                    address: self.address(),
                    reason: reason.clone(),
                    ca: self.ca.to_string(),
                },
                _ => failed(source),
            }
        })
    }

    /// Host of the URL, IPv6 addresses without their brackets.
    fn host(&self) -> &str {
        self.url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
    }

    fn server_name(&self) -> Result<ServerName<'static>, RequestError> {
        let name = self.name.as_deref().unwrap_or_else(|| self.host());
        ServerName::try_from(name.to_owned()).map_err(|error| RequestError::Unusable {
            what: format!("the server name {}", super::brief(name)),
            reason: error.to_string(),
        })
    }
}

/// Reads the URL of a server, which must be of https.
///
/// # Errors
///
/// What is wrong with it.
pub fn server_url(text: &str) -> Result<Uri, String> {
    let shown = super::brief(text);
    let url: Uri = text.parse().map_err(|error| format!("{shown}: {error}"))?;
    let (host, authority) = (url.host().unwrap_or_default(), url.authority().map_or("", |it| it.as_str()));
    // user names and ports that are no numbers are part of an authority, too
    let is_plain =
        authority == host || url.port_u16().is_some_and(|port| authority == format!("{host}:{port}"));
    let is_https = url.scheme_str() == Some("https") && !host.is_empty();
    if is_https && is_plain { Ok(url) } else { Err(format!("{shown} is no URL of https")) }
}

/// `Retry-After` in seconds; its form with a date is not used by Kubernetes.
fn retry_after(response: &Response<Incoming>) -> Option<Duration> {
    response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// A connection that ends with the value.
#[derive(Debug)]
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The body of an answer, as it comes.
#[derive(Debug)]
pub(super) struct Body {
    address: String,
    incoming: Incoming,
    buffer: BytesMut,
    /// Bytes of the buffer known to hold no line's end.
    searched: usize,
    ended: bool,
    /// When something came last.
    heard: Instant,
    _connection: Connection,
}

impl Body {
    /// The next line; `None` at the end. `silence` limits the pause before its next bytes. Nothing is lost if the
    /// future is dropped before it is ready.
    ///
    /// # Errors
    ///
    /// [`RequestError`]
    pub(super) async fn line(&mut self, silence: Duration) -> Result<Option<BytesMut>, RequestError> {
        loop {
            if let Some(line) = self.waiting_line() {
                return Ok(Some(line));
            }
            if self.ended {
                let partial = !self.buffer.is_empty();
                return if partial {
                    Err(RequestError::Partial { address: self.address.clone() })
                } else {
                    Ok(None)
                };
            }
            if self.buffer.len() > MAX_LINE {
                return Err(RequestError::TooLarge { address: self.address.clone(), limit: MAX_LINE });
            }
            self.read(silence).await?;
        }
    }

    /// The next line, if it is here already.
    pub(super) fn waiting_line(&mut self) -> Option<BytesMut> {
        let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
        match unsearched.iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                let line = self.buffer.split_to(self.searched + at);
                self.buffer.advance(1);
                self.searched = 0;
                Some(line)
            }
            None => {
                self.searched = self.buffer.len();
                None
            }
        }
    }

    /// All of it.
    ///
    /// # Errors
    ///
    /// [`RequestError`]
    pub(super) async fn all(&mut self, limit: usize, silence: Duration) -> Result<BytesMut, RequestError> {
        while !self.ended {
            self.read(silence).await?;
            if self.buffer.len() > limit {
                return Err(RequestError::TooLarge { address: self.address.clone(), limit });
            }
        }
        Ok(std::mem::take(&mut self.buffer))
    }

    async fn read(&mut self, silence: Duration) -> Result<(), RequestError> {
        let frame = timeout_at(self.heard + silence, self.incoming.frame()).await;
        let frame = frame.map_err(|_| RequestError::Timeout {
            address: self.address.clone(),
            what: "say anything more",
            within: silence,
        })?;
        self.heard = Instant::now();
        match frame {
            None => self.ended = true,
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    self.buffer.extend_from_slice(&data);
                }
            }
            Some(Err(source)) => {
                return Err(RequestError::Broken { address: self.address.clone(), source });
            }
        }
        Ok(())
    }
}
