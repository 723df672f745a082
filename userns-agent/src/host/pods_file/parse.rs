//! Pod objects in YAML or JSON. Pure.

use crate::event::PodSpec;
use crate::host::brief;
use crate::host::pod_object::{self, Object, PodFault};

/// Largest pods file that is read: some 3 KiB a pod as an API server serves them, for thousands of pods.
pub const MAX_PODS_FILE_BYTES: usize = 32 * 1024 * 1024;

/// Why a text does not give pods. Documents and items count from 1.
#[derive(Debug, thiserror::Error)]
pub enum PodsError {
    /// It is too long.
    #[error("it is larger than {MAX_PODS_FILE_BYTES} bytes")]
    TooLarge,
    /// It is not UTF-8.
    #[error("it is not UTF-8 from byte {offset} on")]
    NotUtf8 {
        /// Bytes that are.
        offset: usize,
    },
    /// It is no JSON, or not of the form of Pod objects.
    #[error("document {document} is no Pod object: {reason}")]
    Json {
        /// Which document.
        document: usize,
        /// What the parser says, with line and column.
        reason: String,
    },
    /// It is no YAML, or not of the form of Pod objects.
    #[error("it is no YAML of Pod objects: {reason}")]
    Yaml {
        /// What the parser says, with line and column.
        reason: String,
    },
    /// An object is something else than a pod.
    #[error("{at} is of {kind}; only Pod, PodList and List of Pods are read")]
    Kind {
        /// Where it stands.
        at: String,
        /// Its kind, as `kind X`, or `no kind`.
        kind: String,
    },
    /// A pod lacks what it needs.
    #[error("{at} has no usable {key}: {reason}")]
    Pod {
        /// Where it stands.
        at: String,
        /// What it lacks.
        key: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Reads Pod objects: a Pod, a PodList, a List of Pods, or several of these one after another, in YAML or JSON.
/// What begins with a brace is read as JSON, as kubectl does it.
///
/// # Errors
///
/// [`PodsError`]; nothing is returned then, so that a broken file does not look like one with fewer pods.
pub fn parse_pods(bytes: &[u8]) -> Result<Vec<PodSpec>, PodsError> {
    if bytes.len() > MAX_PODS_FILE_BYTES {
        return Err(PodsError::TooLarge);
    }
    let text =
        std::str::from_utf8(bytes).map_err(|error| PodsError::NotUtf8 { offset: error.valid_up_to() })?;
    let documents = if text.trim_start().starts_with('{') { json(text) } else { yaml(text) }?;
    let mut pods = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        let Some(object) = document else { continue };
        read_document(object, index + 1, &mut pods)?;
    }
    Ok(pods)
}

fn json(text: &str) -> Result<Vec<Option<Object>>, PodsError> {
    let documents = serde_json::Deserializer::from_str(text).into_iter();
    let number = |(index, document): (usize, Result<_, _>)| {
        document.map_err(|error: serde_json::Error| PodsError::Json {
            document: index + 1,
            reason: brief(&error.to_string()),
        })
    };
    documents.enumerate().map(number).collect()
}

fn yaml(text: &str) -> Result<Vec<Option<Object>>, PodsError> {
    // Kubernetes reads YAML 1.1's yes and no as truth values, and so does this.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 20_000,
            max_nodes: 4_000_000,
            max_events: 8_000_000,
            max_depth: 64,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| PodsError::Yaml { reason: brief(&error.to_string()) })
}

fn read_document(object: Object, document: usize, pods: &mut Vec<PodSpec>) -> Result<(), PodsError> {
    let at = format!("document {document}");
    match object.kind.as_deref() {
        Some("Pod") => pods.push(read_pod(object, &at)?),
        Some("PodList" | "List") => {
            for (index, item) in object.items.unwrap_or_default().into_iter().enumerate() {
                let at = format!("{at}, item {},", index + 1);
                // items of a PodList need not say what they are
                match item.kind.as_deref() {
                    None | Some("Pod") => pods.push(read_pod(item, &at)?),
                    Some(kind) => return Err(PodsError::Kind { at, kind: brief(&format!("kind {kind}")) }),
                }
            }
        }
        Some(kind) => return Err(PodsError::Kind { at, kind: brief(&format!("kind {kind}")) }),
        None => return Err(PodsError::Kind { at, kind: "no kind".to_owned() }),
    }
    Ok(())
}

fn read_pod(object: Object, at: &str) -> Result<PodSpec, PodsError> {
    let wrong = |PodFault { key, reason }| PodsError::Pod { at: at.to_owned(), key, reason };
    let pod = pod_object::read_pod(object).map_err(wrong)?;
    if pod.cut {
        return Err(wrong(PodFault {
            key: "form",
            reason: "its texts or lists are longer than any cluster's",
        }));
    }
    Ok(pod.spec)
}
