//! What the API server says in lists and watches. Pure.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::brief;
use super::super::https::Refusal;
use super::super::pod_object::{Metadata, Object};

/// A line of a watch (`WatchEvent`, meta/v1).
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// What a line says.
pub(super) enum Message {
    /// A pod is new, changed or gone.
    Pod {
        /// Whether it is gone.
        gone: bool,
        /// The pod.
        object: Box<Object>,
    },
    /// Everything up to here has been told.
    Bookmark(Box<Metadata>),
    /// The server ends the watch.
    Error(Refusal),
    /// An event that is of no use, and why.
    Unusable(String),
}

/// Reads a line of a watch.
///
/// # Errors
///
/// What is wrong, if it is no event at all.
pub(super) fn read(line: &[u8]) -> Result<Message, String> {
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| brief(&error.to_string()))?;
    if line.kind == "ERROR" {
        // the answer was a success; the code is within
        return Ok(Message::Error(Refusal::read(200, line.object.get().as_bytes())));
    }
    let object = match serde_json::from_str::<Object>(line.object.get()) {
        Ok(object) => Box::new(object),
        Err(error) => return Ok(Message::Unusable(brief(&error.to_string()))),
    };
    Ok(match line.kind.as_ref() {
        "ADDED" | "MODIFIED" => Message::Pod { gone: false, object },
        "DELETED" => Message::Pod { gone: true, object },
        "BOOKMARK" => Message::Bookmark(Box::new(object.metadata.unwrap_or_default())),
        other => Message::Unusable(brief(&format!("an event of type {other}"))),
    })
}
