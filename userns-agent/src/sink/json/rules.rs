//! What the local socket and `/status` tell of the rules file's exceptions.

use serde::Serialize;

use crate::core::ExceptionView;
use crate::core::rules::rule;
use crate::sink::report::{ExceptionState, WallClock};

/// Name and version of the schema.
const SCHEMA: &str = "userns-agent/rules/v1";

#[derive(Serialize)]
struct Body<'a> {
    schema: &'static str,
    version: &'static str,
    exceptions: Vec<ExceptionBody<'a>>,
}

#[derive(Serialize)]
pub(super) struct ExceptionBody<'a> {
    name: &'a str,
    rules: Vec<&'static str>,
    state: &'static str,
    expires: Option<String>,
    matched: u64,
    last_match: Option<String>,
}

impl<'a> ExceptionBody<'a> {
    fn new(view: &'a ExceptionView, clock: WallClock) -> Self {
        Self {
            name: &view.name,
            rules: view.rules.iter().map(|id| rule(*id).id).collect(),
            state: ExceptionState::of(view).name(),
            expires: view.expires.map(|time| clock.rfc3339(time)),
            matched: view.matched,
            last_match: view.last.map(|time| clock.rfc3339(time)),
        }
    }
}

/// The exceptions, as both have them.
pub(super) fn exceptions(views: &[ExceptionView], clock: WallClock) -> Vec<ExceptionBody<'_>> {
    views.iter().map(|view| ExceptionBody::new(view, clock)).collect()
}

/// What the local socket answers, with its end of line.
///
/// # Errors
///
/// As [`super::Renderer::finding`].
pub fn rules(views: &[ExceptionView], clock: WallClock) -> Result<Vec<u8>, serde_json::Error> {
    let exceptions = exceptions(views, clock);
    super::format::line(&Body { schema: SCHEMA, version: env!("CARGO_PKG_VERSION"), exceptions })
}
