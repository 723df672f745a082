//! What the running agent knows of the pods, asked of its local socket.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::event::Extent;

use crate::sink::local::Wanted;

/// How long the agent may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most that is read of an answer: tens of thousands of containers.
const MAX_BYTES: u64 = 256 << 20;

/// Why the agent does not answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is no socket, or nobody listens on it.
    #[error("no agent listens on {}", path.display())]
    NoAgent {
        /// The socket.
        path: PathBuf,
    },
    /// There is one, and it cannot be asked.
    #[error("cannot ask the agent on {}: {source}; run it as root, or with --no-agent", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its answer is none.
    #[error("the agent on {} answers {answer:?}; are both of the same version?", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// The beginning of what it says.
        answer: String,
    },
}

/// A pod as the agent knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Known {
    /// Its UID.
    pub uid: String,
    /// Who told its name.
    pub source: Option<String>,
    /// Everyone who told of it.
    pub sources: Vec<String>,
    /// Namespace.
    pub namespace: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// Labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// The controller that made it.
    pub owner: Option<Owner>,
    /// Service account.
    pub service_account: Option<String>,
    /// Runtime class, or the runtime's handler.
    pub runtime_class: Option<String>,
    /// `spec.hostUsers`.
    pub host_users: Option<bool>,
    /// `spec.hostNetwork`; absent while no Pod object is known.
    pub host_network: Option<bool>,
    /// What was asked of the runtime.
    pub asked: Option<Asked>,
    /// Its containers.
    pub containers: Vec<KnownContainer>,
    /// What is open about it, the worst first.
    pub findings: Vec<KnownFinding>,
}

/// A controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Owner {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// The user namespace that kubelet asked the runtime for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Asked {
    /// `pod`, `node` or `unknown`.
    pub mode: String,
    /// The map; absent if none was asked for.
    pub uid_map: Option<Vec<Asking>>,
}

/// One extent of a map that was asked for, with the keys of findings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Asking {
    inside: u32,
    host: u32,
    count: u32,
}

impl Asked {
    /// The map as maps are.
    pub(super) fn extents(&self) -> Option<Vec<Extent>> {
        let extent = |it: &Asking| Extent { first: it.inside, lower_first: it.host, count: it.count };
        self.uid_map.as_ref().map(|map| map.iter().map(extent).collect())
    }
}

/// A container as the agent knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct KnownContainer {
    /// Its id.
    pub id: Option<String>,
    /// Its name.
    pub name: String,
    /// What it is in the pod.
    pub kind: String,
    /// Its image.
    pub image: String,
    /// The image's digest.
    pub image_digest: Option<String>,
    /// `securityContext`, with the keys that are set or `null`.
    pub security_context: Value,
}

/// An open finding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct KnownFinding {
    /// Its id.
    pub id: String,
    /// The rule's id.
    pub rule: String,
    /// The rule's name.
    pub name: String,
    /// Its severity.
    pub severity: String,
    /// The container that it is about.
    pub container: Option<String>,
    /// How often.
    pub count: u64,
    /// When first, in RFC 3339.
    pub first_seen: String,
    /// When last.
    pub last_seen: String,
    /// Why, in one sentence.
    pub why: String,
}

/// An exception of the rules file, as the agent knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct KnownException {
    /// Its name.
    pub name: String,
    /// What it has withheld since the agent started.
    pub matched: u64,
    /// When it last did, in RFC 3339.
    pub last_match: Option<String>,
}

#[derive(Deserialize)]
struct Body {
    pods: Vec<Known>,
}

/// What the agent answers about findings.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct KnownFindings {
    /// Those asked for, as findings' lines are; the first of them if they are many.
    pub findings: Vec<Value>,
    /// Ids of all that are open.
    pub open: Vec<String>,
}

#[derive(Deserialize)]
struct RulesBody {
    exceptions: Vec<KnownException>,
}

/// Asks the agent on `socket` for the pods.
///
/// # Errors
///
/// [`AskError`]; [`AskError::NoAgent`] is no mistake of anybody's.
pub fn ask(socket: &Path) -> Result<Vec<Known>, AskError> {
    get(socket, &Wanted::Pods).map(|body: Body| body.pods)
}

/// Asks the agent on `socket` for open findings whose id begins so.
///
/// # Errors
///
/// As [`ask`].
pub fn findings(socket: &Path, beginning: &str) -> Result<KnownFindings, AskError> {
    get(socket, &Wanted::Findings(beginning.to_owned()))
}

/// Asks the agent on `socket` what became of its exceptions.
///
/// # Errors
///
/// As [`ask`].
pub fn ask_exceptions(socket: &Path) -> Result<Vec<KnownException>, AskError> {
    get(socket, &Wanted::Rules).map(|body: RulesBody| body.exceptions)
}

fn get<T: DeserializeOwned>(socket: &Path, wanted: &Wanted) -> Result<T, AskError> {
    let io = |source| AskError::Io { path: socket.to_owned(), source };
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            return Err(AskError::NoAgent { path: socket.to_owned() });
        }
        Err(error) => return Err(io(error)),
    };
    stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
    let request = format!("GET {} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n", wanted.path());
    stream.write_all(request.as_bytes()).map_err(io)?;
    let mut answer = Vec::new();
    stream.take(MAX_BYTES).read_to_end(&mut answer).map_err(io)?;
    body(&answer).ok_or_else(|| {
        let text = String::from_utf8_lossy(&answer);
        AskError::Answer { path: socket.to_owned(), answer: text.chars().take(80).collect() }
    })
}

fn body<T: DeserializeOwned>(answer: &[u8]) -> Option<T> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, body) = (answer.get(..end)?, answer.get(end + 4..)?);
    serde_json::from_slice(head.starts_with(b"HTTP/1.1 200 ").then_some(body)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(answer: &[u8]) -> Option<Vec<Known>> {
        super::body(answer).map(|body: Body| body.pods)
    }

    #[test]
    fn an_answer_is_told_from_a_refusal() {
        assert_eq!(body(b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n{\"pods\":[]}\n"), Some(Vec::new()));
        for answer in [
            "",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 503 x\r\n\r\n{\"pods\":[]}",
            "HTTP/1.1 200 OK\r\n\r\n{}",
        ] {
            assert_eq!(body(answer.as_bytes()), None, "{answer}");
        }
    }

    #[test]
    fn without_an_agent_that_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        assert!(matches!(ask(&socket), Err(AskError::NoAgent { .. })));
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(matches!(ask(&socket), Err(AskError::NoAgent { .. })));
    }

    #[test]
    fn what_the_agent_renders_is_understood() {
        use crate::core::{PodView, Promise};
        use crate::event::{ContainerSpec, Extent, PodSource, UsernsMode};
        use crate::sink::{WallClock, json};
        let extent = Extent { first: 0, lower_first: 65_536, count: 65_536 };
        let id = Some("abc".to_owned());
        let view = PodView {
            pod: crate::core::finding::PodRef { name: Some("web".into()), ..Default::default() },
            sources: vec![PodSource::Api, PodSource::Cri],
            promise: Promise::UserNamespace,
            asked: Some((UsernsMode::Pod, vec![extent])),
            containers: vec![ContainerSpec { id, name: "nginx".into(), ..ContainerSpec::default() }],
            findings: Vec::new(),
        };
        let json = json::pods(&[view], WallClock { boot: 0 }).unwrap();
        let known = body(&[b"HTTP/1.1 200 OK\r\n\r\n", &json[..]].concat()).unwrap();
        assert_eq!(
            (known[0].name.as_deref(), &known[0].sources[..]),
            (Some("web"), &["api".to_owned(), "cri".to_owned()][..])
        );
        assert_eq!(
            (known[0].containers[0].name.as_str(), known[0].asked.as_ref().unwrap().mode.as_str()),
            ("nginx", "pod")
        );
        assert_eq!(known[0].asked.as_ref().unwrap().extents(), Some(vec![extent]));
    }
}
