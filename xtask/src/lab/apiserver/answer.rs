//! Answers to requests: lists, watches and refusals.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{PoisonError, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustls::{ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::{
    Trouble,
    state::{Shared, State, lock},
};

type Stream = StreamOwned<ServerConnection, TcpStream>;

/// Time between two bookmarks; a minute on a real server.
const BOOKMARKS: Duration = Duration::from_millis(100);
/// How often a connection with nothing to say looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);
/// What a slow list comes in.
const PIECE: usize = 1024;
/// Largest head of a request.
const MAX_HEAD: usize = 16 << 10;

struct Request {
    path: String,
    query: BTreeMap<String, String>,
    token: Option<String>,
}

impl Request {
    fn get(&self, key: &str) -> Option<&str> {
        self.query.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The node whose pods are asked for.
    fn node(&self) -> Option<String> {
        Some(self.get("fieldSelector")?.strip_prefix("spec.nodeName=")?.to_owned())
    }
}

pub(super) fn answer(stream: &mut Stream, shared: &Shared) -> Result<()> {
    let request = read(stream, shared)?;
    let (trouble, refusal) = {
        let state = lock(&shared.state);
        (state.trouble, refusal(&state, &request))
    };
    if let Some((code, status)) = refusal {
        return refuse(stream, code, &status);
    }
    let watches = request.get("watch") == Some("1");
    if watches {
        watch(stream, shared, &request)
    } else if trouble == Trouble::Hangs {
        wait_out(shared, trouble)
    } else {
        list(stream, shared, &request)
    }
}

fn read(stream: &mut Stream, shared: &Shared) -> Result<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
        if head.len() > MAX_HEAD {
            bail!("the request's head is too long");
        }
    }
    let head = String::from_utf8(head)?;
    let mut lines = head.lines();
    let target = lines.next().and_then(|line| line.strip_prefix("GET ")?.strip_suffix(" HTTP/1.1"));
    let target = target.context("only GET over HTTP/1.1 is served")?;
    lock(&shared.state).requests.push(target.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').filter_map(|pair| pair.split_once('='));
    let headers = lines.filter_map(|line| line.split_once(": "));
    let authorization = headers.filter(|(name, _)| name.eq_ignore_ascii_case("authorization"));
    let token = authorization.map(|(_, value)| value.to_owned()).next();
    Ok(Request {
        path: path.to_owned(),
        query: query.map(|(key, value)| (key.to_owned(), decode(value))).collect(),
        token: token.and_then(|value| Some(value.strip_prefix("Bearer ")?.to_owned())),
    })
}

fn decode(text: &str) -> String {
    let mut parts = text.split('%');
    let mut decoded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (code, rest) = part.split_at_checked(2).unwrap_or((part, ""));
        decoded.push(u8::from_str_radix(code, 16).map_or('?', char::from));
        decoded.push_str(rest);
    }
    decoded
}

/// The status of a request that is refused, with the words of a real server.
fn refusal(state: &State, request: &Request) -> Option<(u16, Value)> {
    let status = |code: u16, reason: &str, message: &str| {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                            "message": message, "reason": reason, "code": code});
        Some((code, status))
    };
    let initial = request.get("sendInitialEvents") == Some("true");
    let wants_version = request.get("watch").is_none() || initial;
    match request.token.as_deref() {
        None => {
            return status(
                403,
                "Forbidden",
                "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\"",
            );
        }
        Some(token) if token != state.token() => return status(401, "Unauthorized", "Unauthorized"),
        Some(_) => {}
    }
    if !["/api/v1/pods", "/pods"].contains(&request.path.as_str()) {
        return status(404, "NotFound", "the server could not find the requested resource");
    }
    if !state.allowed {
        return status(
            403,
            "Forbidden",
            "pods is forbidden: User \"system:serviceaccount:userns:agent\" cannot watch resource \"pods\" in API \
             group \"\" at the cluster scope",
        );
    }
    if state.trouble == Trouble::Expired && request.get("watch").is_none() {
        return status(410, "Expired", "The provided continue parameter is too old");
    }
    if initial && !state.initial_events {
        return status(
            422,
            "Invalid",
            "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden \
             for watch unless the WatchList feature gate is enabled",
        );
    }
    if state.trouble == Trouble::TooLargeVersion && wants_version {
        let (code, mut status) = status(504, "Timeout", "Too large resource version: 2000, current: 1000")?;
        status["details"] = json!({"retryAfterSeconds": 1,
                "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]});
        return Some((code, status));
    }
    None
}

fn refuse(stream: &mut Stream, code: u16, status: &Value) -> Result<()> {
    let body = status.to_string();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {code} Refused\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )?;
    stream.write_all(body.as_bytes())?;
    Ok(stream.flush()?)
}

fn begin(stream: &mut Stream) -> Result<()> {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes())?;
    Ok(stream.flush()?)
}

fn chunk(stream: &mut Stream, bytes: &[u8]) -> Result<()> {
    let head = format!("{:x}\r\n", bytes.len());
    stream.write_all(&[head.as_bytes(), bytes, b"\r\n"].concat())?;
    Ok(stream.flush()?)
}

fn end(stream: &mut Stream) -> Result<()> {
    stream.write_all(b"0\r\n\r\n")?;
    Ok(stream.flush()?)
}

/// Says nothing as long as this goes wrong.
pub(super) fn wait_out(shared: &Shared, trouble: Trouble) -> Result<()> {
    while lock(&shared.state).trouble == trouble && !shared.stop.load(Ordering::Acquire) {
        thread::sleep(LOOK);
    }
    bail!("ended without an answer");
}

/// A list, or a page of one: `continue` is the number of pods before.
fn list(stream: &mut Stream, shared: &Shared, request: &Request) -> Result<()> {
    let body = {
        let state = lock(&shared.state);
        let node = request.node();
        let limit = request.get("limit").map_or(Ok(usize::MAX), str::parse)?;
        let skipped: usize = request.get("continue").map_or(Ok(0), str::parse)?;
        let total = state.pods(node.as_deref()).count();
        let items: Vec<&Value> = state.pods(node.as_deref()).skip(skipped).take(limit).collect();
        let told = skipped + items.len();
        let next = if told < total { told.to_string() } else { String::new() };
        let metadata = json!({"resourceVersion": state.version.to_string(), "continue": next});
        let body = json!({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items});
        body.to_string()
    };
    begin(stream)?;
    let mut left = body.as_bytes();
    while !left.is_empty() {
        let most = if linger(shared) { PIECE } else { 256 << 10 };
        let (piece, rest) = left.split_at(left.len().min(most));
        chunk(stream, piece)?;
        left = rest;
    }
    end(stream)
}

/// Waits a moment if the server is slow, which is what it returns.
fn linger(shared: &Shared) -> bool {
    let slow = lock(&shared.state).trouble == Trouble::Slow;
    if slow {
        thread::sleep(LOOK);
    }
    slow
}

/// Where a watch is.
struct Position {
    version: u64,
    /// Index of the first event that was not looked at; the history is the same as long as `restores` is.
    index: usize,
    restores: u32,
    oldest: u64,
}

fn watch(stream: &mut Stream, shared: &Shared, request: &Request) -> Result<()> {
    let began = Instant::now();
    let node = request.node();
    let lasts: u64 = request.get("timeoutSeconds").map_or(Ok(1800), str::parse)?;
    let (initial, mut position, cuts) = {
        let state = lock(&shared.state);
        let initial = request.get("sendInitialEvents") == Some("true") && state.trouble != Trouble::Expired;
        let version = match request.get("resourceVersion") {
            Some(version) if !initial => version.parse()?,
            _ => state.version,
        };
        let initial = initial.then(|| (state.objects(node.as_deref()), bookmark(state.version, true)));
        let position = Position { version, index: 0, restores: state.restores, oldest: state.oldest };
        (initial, position, state.cuts)
    };
    begin(stream)?;
    if lock(&shared.state).trouble == Trouble::Hangs {
        return wait_out(shared, Trouble::Hangs);
    }
    if let Some((objects, end)) = initial {
        for object in objects {
            linger(shared);
            chunk(stream, event("ADDED", &object).as_bytes())?;
        }
        chunk(stream, end.as_bytes())?;
    }
    let mut marked = Instant::now();
    loop {
        let lines = match next(shared, &mut position, node.as_deref(), cuts) {
            Next::Lines(lines) => lines,
            Next::Silence => Vec::new(),
            Next::Cut => return cut(stream),
            Next::Expired => {
                let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": "too old resource version", "reason": "Expired", "code": 410});
                chunk(stream, format!("{}\n", json!({"type": "ERROR", "object": status})).as_bytes())?;
                return end(stream);
            }
            Next::Stop => return end(stream),
        };
        for line in lines {
            chunk(stream, line.as_bytes())?;
        }
        let (limit, silent) = {
            let state = lock(&shared.state);
            let silent = state.trouble == Trouble::Hangs || position.restores != state.restores;
            (
                state.watches_last.unwrap_or(Duration::from_secs(lasts)),
                silent || position.version > state.version,
            )
        };
        if began.elapsed() > limit && !silent {
            return end(stream);
        }
        if !silent && marked.elapsed() > BOOKMARKS {
            marked = Instant::now();
            chunk(stream, bookmark(position.version, false).as_bytes())?;
        }
    }
}

fn event(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

enum Next {
    Lines(Vec<String>),
    Silence,
    Cut,
    Expired,
    Stop,
}

/// Waits a moment for what a watch is to say.
fn next(shared: &Shared, position: &mut Position, node: Option<&str>, cuts: u32) -> Next {
    let state = lock(&shared.state);
    let waited = shared.changed.wait_timeout_while(state, LOOK, |state| {
        state.cuts == cuts && state.events.len() <= position.index && !shared.stop.load(Ordering::Acquire)
    });
    let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
    if shared.stop.load(Ordering::Acquire) {
        return Next::Stop;
    }
    if state.cuts != cuts {
        return Next::Cut;
    }
    if state.trouble == Trouble::Hangs
        || position.restores != state.restores
        || position.version > state.version
    {
        drop(state);
        // woken by every change, and has nothing to say
        thread::sleep(LOOK);
        return Next::Silence;
    }
    let forgets = state.trouble == Trouble::Expired;
    if forgets || position.version < state.oldest || position.oldest != state.oldest {
        return Next::Expired;
    }
    let events = state.events.get(position.index..).unwrap_or_default();
    let lines = events
        .iter()
        .filter(|event| event.version > position.version && (node.is_none() || event.node.as_deref() == node))
        .map(|told| event(told.kind, &told.object))
        .collect();
    position.index = state.events.len();
    position.version = state.version;
    Next::Lines(lines)
}

/// Ends the connection in the middle of a line, and without TLS's goodbye.
fn cut(stream: &mut Stream) -> Result<()> {
    let half = "{\"type\":\"MODIFIED\",\"obj";
    write!(stream, "{:x}\r\n{half}", 2 * half.len())?;
    stream.flush()?;
    stream.sock.shutdown(std::net::Shutdown::Both)?;
    bail!("cut");
}

fn bookmark(version: u64, ends_initial_events: bool) -> String {
    let mut metadata = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
    if ends_initial_events {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let object = json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata,
                        "spec": {"containers": null}, "status": {}});
    format!("{}\n", json!({"type": "BOOKMARK", "object": object}))
}
