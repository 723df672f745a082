//! From a method and a path to an answer.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Method, Response, StatusCode};

use super::source::StatusSource;
use crate::sink::json;
use crate::sink::metrics;
use crate::sink::report::{Readiness, WallClock};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// A path and what it answers.
struct Route {
    path: &'static str,
    about: &'static str,
    answer: fn(&StatusSource) -> Answer,
}

const ROUTES: &[Route] = &[
    Route { path: "/", about: "this list", answer: |_| index() },
    Route { path: "/metrics", about: "metrics in Prometheus' text format", answer: metrics },
    Route {
        path: "/healthz",
        about: "200 while the event loop is alive, else 503; for liveness probes",
        answer: healthz,
    },
    Route {
        path: "/readyz",
        about: "200 once what ran before the agent is known, else 503 and why",
        answer: readyz,
    },
    Route {
        path: "/status",
        about: "version, kernel, hooks, sources, exceptions, losses and tables as JSON",
        answer: status,
    },
];

/// Every path with what it answers, for the documentation.
pub fn paths() -> impl Iterator<Item = (&'static str, &'static str)> {
    ROUTES.iter().map(|route| (route.path, route.about))
}

struct Answer {
    code: StatusCode,
    content_type: &'static str,
    body: Bytes,
}

impl Answer {
    fn text(code: StatusCode, text: impl Into<Bytes>) -> Self {
        Self { code, content_type: TEXT, body: text.into() }
    }

    fn rendered<E: std::fmt::Display>(content_type: &'static str, body: Result<Vec<u8>, E>) -> Self {
        match body {
            Ok(body) => Self { code: StatusCode::OK, content_type, body: body.into() },
            Err(error) => Self::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }
}

/// Answers a request and counts it. The body of an answer to HEAD is left out by the connection.
pub(super) fn answer(method: &Method, path: &str, source: &StatusSource) -> Response<Full<Bytes>> {
    let route = ROUTES.iter().find(|route| route.path == path);
    let answer = match route {
        None => Answer::text(StatusCode::NOT_FOUND, "not found; / lists what there is\n"),
        Some(_) if ![Method::GET, Method::HEAD].contains(method) => {
            Answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed\n")
        }
        Some(route) => (route.answer)(source),
    };
    source.metrics().http_request(route.map_or("other", |route| route.path), answer.code.as_u16());
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = answer.code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if answer.code == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

fn index() -> Answer {
    let mut text = format!("userns-agent {}\n\n", env!("CARGO_PKG_VERSION"));
    for route in ROUTES {
        text.push_str(&format!("{:<10} {}\n", route.path, route.about));
    }
    Answer::text(StatusCode::OK, text)
}

fn metrics(source: &StatusSource) -> Answer {
    Answer::rendered(metrics::CONTENT_TYPE, source.metrics().render())
}

fn healthz(source: &StatusSource) -> Answer {
    let health = source.health();
    if health.alive {
        return Answer::text(StatusCode::OK, "ok\n");
    }
    let text = format!("the event loop was last heard of {:.1} s ago\n", health.heartbeat_age);
    Answer::text(StatusCode::SERVICE_UNAVAILABLE, text)
}

fn readyz(source: &StatusSource) -> Answer {
    match &source.status().readiness {
        Readiness::Ready => Answer::text(StatusCode::OK, "ready\n"),
        Readiness::NotReady { reason } => {
            Answer::text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n"))
        }
    }
}

fn status(source: &StatusSource) -> Answer {
    let losses = source.metrics().losses();
    let health = source.health();
    Answer::rendered(JSON, json::status(&source.status(), &losses, health, WallClock::now()))
}
