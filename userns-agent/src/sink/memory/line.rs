//! The file's lines: a header that says for which boot they hold, then one JSON object for each finding told.

use serde::Deserialize;
use serde_json::json;

use crate::core::finding::{Finding, FindingId, Severity};
use crate::core::rules;
use crate::event::{CgroupId, Nanos, Operation, Told, ToldCall, ToldCapability};

/// Name and version of the format.
const SCHEMA: &str = "userns-agent/told/v1";

/// The first line.
pub(super) fn header(boot: &str) -> String {
    format!("{}\n", json!({ "schema": SCHEMA, "boot_id": boot }))
}

#[derive(Deserialize)]
struct Header {
    schema: String,
    boot_id: String,
}

#[derive(Deserialize)]
struct Row {
    id: String,
    container: u64,
    first: u64,
    last: u64,
    count: u64,
    severity: String,
    capabilities: Vec<(u32, bool, u64, Option<u32>)>,
    calls: Vec<(String, i32, u64)>,
    /// It has ended, and that was told: there is nothing to remember.
    #[serde(default)]
    resolved: bool,
}

/// A line as read.
pub(super) struct Parsed {
    pub(super) told: Told,
    pub(super) line: String,
    pub(super) resolved: bool,
}

/// What is to be remembered of a finding; `None` if it is about no container.
pub(super) fn told(finding: &Finding) -> Option<Told> {
    let by_path = finding.container.as_ref().map(|container| container.cgroup);
    let by_lineage = || finding.task.as_ref().map(|event| CgroupId(event.task.lineage.container));
    let capabilities = finding.capabilities.iter().map(|used| ToldCapability {
        capability: used.capability,
        granted: used.granted,
        count: used.count,
        syscall: used.syscall,
    });
    let calls = finding.calls.iter().filter_map(|used| {
        Some(ToldCall { operation: operation(used.call)?, ret: used.ret, count: used.count })
    });
    Some(Told {
        id: finding.id.0,
        container: by_path.or_else(by_lineage)?,
        first: finding.first,
        last: finding.time,
        count: finding.count,
        severity: finding.severity as u8,
        capabilities: capabilities.collect(),
        calls: calls.collect(),
    })
}

/// Its line. Rule and severity are in it by name, for people.
pub(super) fn format(told: &Told, finding: &Finding) -> String {
    let capabilities: Vec<_> = told
        .capabilities
        .iter()
        .map(|used| json!([used.capability, used.granted, used.count, used.syscall]))
        .collect();
    let calls: Vec<_> =
        told.calls.iter().map(|used| json!([used.operation.name(), used.ret, used.count])).collect();
    let row = json!({
        "id": finding.id.to_string(),
        "rule": rules::rule(finding.rule).id,
        "container": told.container.0,
        "first": told.first.0,
        "last": told.last.0,
        "count": told.count,
        "severity": finding.severity.name(),
        "capabilities": capabilities,
        "calls": calls,
        "resolved": finding.resolved.is_some(),
    });
    format!("{row}\n")
}

/// What a file says of the boot `boot`, each with its line, and why the rest of it is of no use. That it is about
/// another boot is no fault.
pub(super) fn parse(bytes: &[u8], boot: &str) -> (Vec<Parsed>, Vec<String>) {
    let mut lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let Some(first) = lines.next() else { return (Vec::new(), Vec::new()) };
    match serde_json::from_slice::<Header>(first) {
        Ok(header) if header.schema != SCHEMA => {
            return (Vec::new(), vec![format!("it is written as {:.40}, not {SCHEMA}", header.schema)]);
        }
        Ok(header) if header.boot_id != boot => return (Vec::new(), Vec::new()),
        Ok(_) => {}
        Err(error) => return (Vec::new(), vec![format!("its first line is broken: {error}")]),
    }
    let mut found = Vec::new();
    let mut refused = Vec::new();
    for (number, line) in (2..).zip(lines) {
        match row(line) {
            Ok((told, resolved)) => {
                found.push(Parsed { told, line: format!("{}\n", String::from_utf8_lossy(line)), resolved });
            }
            Err(error) => refused.push(format!("line {number} is broken: {error}")),
        }
    }
    (found, refused)
}

fn row(line: &[u8]) -> Result<(Told, bool), String> {
    let row: Row = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let id = u64::from_str_radix(&row.id, 16).map(FindingId).map_err(|error| error.to_string())?;
    let severity = Severity::ALL.iter().find(|severity| severity.name() == row.severity);
    let severity = severity.ok_or_else(|| format!("unknown severity {:.40}", row.severity))?;
    let capability =
        |(capability, granted, count, syscall)| ToldCapability { capability, granted, count, syscall };
    let call = |(name, ret, count): (String, i32, u64)| {
        let operation = operation(&name).ok_or_else(|| format!("unknown call {name:.40}"))?;
        Ok(ToldCall { operation, ret, count })
    };
    let told = Told {
        id: id.0,
        container: CgroupId(row.container),
        first: Nanos(row.first),
        last: Nanos(row.last),
        count: row.count,
        severity: *severity as u8,
        capabilities: row.capabilities.into_iter().map(capability).collect(),
        calls: row.calls.into_iter().map(call).collect::<Result<_, String>>()?,
    };
    Ok((told, row.resolved))
}

fn operation(name: &str) -> Option<Operation> {
    Operation::ALL.iter().copied().find(|operation| operation.name() == name)
}
