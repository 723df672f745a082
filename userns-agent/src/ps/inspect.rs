//! `userns-agent inspect`: everything known about one pod.

use std::fmt::Write as _;
use std::io::Write;

use serde_json::{Value, json};
use userns_common::caps;

use super::render::{self, plain};
use super::verdict::{Look, Sample};
use super::{Outcome, PodRow, PsError, Row, judged, observe, told};
use crate::cli::{ExitCode, InspectOutput};
use crate::config::Config;
use crate::core::range::show_all;
use crate::event::{CapSets, Extent, Ids};
use crate::host::proc::{ProcError, ProcFs, Status};

/// Namespaces besides the user namespace, by their names in `/proc/PID/ns`.
const KINDS: [&str; 6] = ["mnt", "pid", "net", "ipc", "uts", "cgroup"];
/// Shortest beginning of a container's id that is taken for one.
const ID_PREFIX: usize = 6;

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The node cannot be looked at.
    #[error(transparent)]
    Ps(#[from] PsError),
    /// No pod is meant.
    #[error("no pod on this node is {query:?}; `userns-agent ps` lists them")]
    Nobody {
        /// What was asked for.
        query: String,
    },
    /// Several are.
    #[error("{query:?} may be any of these, say which: {candidates}")]
    Ambiguous {
        /// What was asked for.
        query: String,
        /// Who is meant.
        candidates: String,
    },
}

impl From<&InspectError> for ExitCode {
    fn from(error: &InspectError) -> Self {
        match error {
            InspectError::Ps(error) => error.into(),
            InspectError::Nobody { .. } => Self::NoInput,
            InspectError::Ambiguous { .. } => Self::Usage,
        }
    }
}

/// What `/proc` says of the process that stands for a container.
struct Detail {
    status: Status,
    /// The user namespace's number and those of its ancestors, and each one's owner on the host.
    chain: Option<Vec<(u32, u32)>>,
    /// Kind, number, and number of the user namespace that owns it.
    namespaces: Vec<(&'static str, u32, Option<u32>)>,
    lsm: Option<String>,
}

/// Looks at the node and writes what is known of the pod that `query` names: namespace/name, name, UID, or the
/// beginning of a container's id.
///
/// # Errors
///
/// [`InspectError`]
pub fn inspect(
    config: &Config,
    query: &str,
    output: InspectOutput,
    alone: bool,
    out: &mut dyn Write,
) -> Result<Outcome, InspectError> {
    let mut notes = Vec::new();
    let told = told(config, alone, &mut notes)?;
    let mut node = observe(config, &told).map_err(PsError::from)?;
    let pods = judged(&node);
    let pod = find(&pods, query)?;
    let proc = ProcFs::new(&config.proc_root);
    match output {
        InspectOutput::Text => out.write_all(text(pod, &proc).as_bytes()).map_err(PsError::from)?,
        InspectOutput::Json => writeln!(out, "{:#}", object(pod, &proc)).map_err(PsError::from)?,
    }
    out.flush().map_err(PsError::from)?;
    notes.append(&mut node.notes);
    let code = if pod.judgement.verdict.is_broken() { ExitCode::BrokenPromise } else { ExitCode::Ok };
    Ok(Outcome { code, notes })
}

pub(super) fn find<'a>(pods: &'a [PodRow], query: &str) -> Result<&'a PodRow, InspectError> {
    let is_it = |row: &&PodRow| {
        let by_name = row.pod.name().is_some_and(|(namespace, name)| {
            query == name || query.split_once('/').is_some_and(|parts| parts == (namespace, name))
        });
        let ids = row.rows.iter().filter_map(|row| row.container.id.as_ref());
        let mut ids = ids.filter(|_| query.len() >= ID_PREFIX);
        by_name || row.pod.uid.as_str() == query || ids.any(|id| id.id.starts_with(query))
    };
    let found: Vec<_> = pods.iter().filter(is_it).collect();
    match found[..] {
        [one] => Ok(one),
        [] => Err(InspectError::Nobody { query: query.to_owned() }),
        _ => {
            let name = |row: &&PodRow| format!("{} ({})", row.pod.label(), row.pod.uid);
            let candidates = found.iter().map(name).collect::<Vec<_>>().join(", ");
            Err(InspectError::Ambiguous { query: query.to_owned(), candidates })
        }
    }
}

fn sample(row: &Row) -> Option<&Sample> {
    match &row.container.look {
        Look::Process(sample) => Some(sample),
        Look::Empty | Look::Unreadable { .. } => None,
    }
}

impl Detail {
    fn of(proc: &ProcFs, pid: u32) -> Result<Self, ProcError> {
        let inodes = proc.namespaces(pid)?;
        let inodes = [inodes.mnt, inodes.pid, inodes.net, inodes.ipc, inodes.uts, inodes.cgroup];
        // who may see a process may still not be told how its namespaces are related
        let owner = |kind: &str| proc.owner(pid, kind).ok().flatten().map(|ancestry| ancestry.inum());
        Ok(Self {
            status: proc.status(pid)?,
            chain: proc.ancestry(pid).ok().flatten().map(|ancestry| ancestry.chain().to_vec()),
            namespaces: KINDS.into_iter().zip(inodes).map(|(kind, inum)| (kind, inum, owner(kind))).collect(),
            lsm: proc.security_label(pid).ok().flatten().map(|label| label.as_str().to_owned()),
        })
    }

    fn seccomp(&self) -> &'static str {
        match self.status.seccomp {
            Some(0) => "disabled",
            Some(1) => "strict",
            Some(2) => "filter",
            Some(_) => "unknown",
            None => "not in this kernel",
        }
    }

    /// Depth of the user namespace below the initial one.
    fn level(&self) -> Option<usize> {
        self.chain.as_ref().map(Vec::len)
    }
}

/// The id in the namespace that `map` belongs to.
fn inside(map: &[Extent], kernel: u32) -> Option<u32> {
    map.iter().find_map(|extent| {
        let offset = kernel.checked_sub(extent.lower_first)?;
        (offset < extent.count).then(|| extent.first.wrapping_add(offset))
    })
}

/// Name, kernel id and map's kind of each id.
fn ids(of: &Ids) -> [(&'static str, u32, bool); 8] {
    [
        ("uid", of.uid, true),
        ("euid", of.euid, true),
        ("suid", of.suid, true),
        ("fsuid", of.fsuid, true),
        ("gid", of.gid, false),
        ("egid", of.egid, false),
        ("sgid", of.sgid, false),
        ("fsgid", of.fsgid, false),
    ]
}

fn sets(of: &CapSets) -> [(&'static str, u64); 5] {
    [
        ("effective", of.effective),
        ("permitted", of.permitted),
        ("inheritable", of.inheritable),
        ("bounding", of.bounding),
        ("ambient", of.ambient),
    ]
}

fn names(set: u64) -> Vec<String> {
    let held = (0..64).filter(|number| caps::holds(set, *number));
    held.map(|number| caps::name(number).map_or_else(|| format!("CAP_{number}"), str::to_owned)).collect()
}

/// For people.
pub(super) fn text(row: &PodRow, proc: &ProcFs) -> String {
    let mut text = String::new();
    let mut say = |indent: usize, key: &str, value: &str| {
        // writing to a String cannot fail
        let _ = writeln!(text, "{:indent$}{key:18} {}", "", plain(value), indent = indent);
    };
    let pod = &row.pod;
    say(0, "Pod", &pod.label());
    say(2, "uid", pod.uid.as_str());
    say(2, "verdict", &format!("{}: {}", row.judgement.verdict.name(), row.judgement.reason));
    say(2, "hostUsers", render::host_users(pod));
    say(2, "runtime class", pod.runtime_class().unwrap_or("-"));
    say(2, "kubelet's record", &render::record(pod));
    if let Some(known) = &pod.known {
        let owner = known.owner.as_ref().map(|owner| format!("{}/{}", owner.kind, owner.name));
        say(2, "owner", owner.as_deref().unwrap_or("-"));
        say(2, "service account", known.service_account.as_deref().unwrap_or("-"));
        say(2, "told by", &known.sources.join(", "));
        let labels = known.labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
        say(2, "labels", &labels.collect::<Vec<_>>().join(", "));
        if let Some(asked) = &known.asked {
            let map = asked.extents().map_or(String::new(), |map| format!(", {}", show_all(&map)));
            say(2, "asked of runtime", &format!("mode {}{map}", asked.mode));
        }
        for finding in &known.findings {
            let head = format!(
                "{} {} {} ×{} since {}",
                finding.severity, finding.rule, finding.name, finding.count, finding.first_seen
            );
            say(2, "finding", &format!("{head}: {} ({})", finding.why, finding.id));
        }
    }
    for container in &row.rows {
        container_text(&mut say, row, container, proc);
    }
    text
}

fn container_text(say: &mut impl FnMut(usize, &str, &str), pod: &PodRow, row: &Row, proc: &ProcFs) {
    let container = &row.container;
    let id = container.id.as_ref().map(|id| id.id.as_str());
    say(0, "Container", id.unwrap_or("none yet"));
    if let Some(known) = pod.pod.container(id) {
        say(2, "name", &format!("{} ({})", known.name, known.kind));
        say(2, "image", &format!("{} {}", known.image, known.image_digest.as_deref().unwrap_or_default()));
        let set = known.security_context.as_object().into_iter().flatten();
        let set =
            set.filter(|(_, value)| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()));
        let set: Vec<_> = set.map(|(key, value)| format!("{key}={value}")).collect();
        say(2, "security context", if set.is_empty() { "-".to_owned() } else { set.join(", ") }.as_str());
    }
    say(2, "cgroup", &container.cgroup);
    say(2, "verdict", &format!("{}: {}", row.judgement.verdict.name(), row.judgement.reason));
    say(2, "processes", &container.processes.to_string());
    let Some(sample) = sample(row) else { return };
    say(2, "first process", &format!("{} ({})", sample.pid, sample.comm.as_str()));
    let maps = [("uid map", &sample.userns.uid_map), ("gid map", &sample.userns.gid_map)];
    maps.into_iter().for_each(|(key, map)| say(4, key, &show_all(map)));
    say(4, "nested user ns", &sample.nested.to_string());
    let detail = match Detail::of(proc, sample.pid) {
        Ok(detail) => detail,
        Err(error) => return say(4, "unknown", &error.to_string()),
    };
    for (name, kernel, user) in ids(&detail.status.ids) {
        let map = if user { &sample.userns.uid_map } else { &sample.userns.gid_map };
        let here = inside(map, kernel).map_or("none".to_owned(), |id| id.to_string());
        say(4, name, &format!("{here} in the pod, {kernel} on the host"));
    }
    let groups = detail.status.groups.iter().map(|kernel| {
        let here = inside(&sample.userns.gid_map, *kernel).map_or("none".to_owned(), |id| id.to_string());
        format!("{here} ({kernel})")
    });
    say(4, "groups", &groups.collect::<Vec<_>>().join(", "));
    let chain = detail.chain.as_ref().map(|chain| {
        chain
            .iter()
            .map(|(inum, owner)| format!("{inum} (owner {owner})"))
            .collect::<Vec<_>>()
            .join(" below ")
    });
    say(4, "user namespace", &chain.unwrap_or_else(|| sample.userns.inum.to_string()));
    for (kind, inum, owner) in &detail.namespaces {
        let owner = owner.map_or(String::new(), |owner| format!(", owned by user namespace {owner}"));
        say(4, &format!("{kind} namespace"), &format!("{inum}{owner}"));
    }
    say(4, "seccomp", detail.seccomp());
    say(
        4,
        "no_new_privs",
        detail.status.no_new_privs.map_or("unknown", |set| if set { "yes" } else { "no" }),
    );
    say(4, "LSM label", detail.lsm.as_deref().unwrap_or("none"));
    for (name, set) in sets(&detail.status.caps) {
        say(4, name, &names(set).join(" "));
    }
}

/// For programs: what `ps` gives of the pod, and `process` in each container.
pub(super) fn object(row: &PodRow, proc: &ProcFs) -> Value {
    let mut pod = render::object(row);
    if let Some(containers) = pod["containers"].as_array_mut() {
        for (object, container) in containers.iter_mut().zip(&row.rows) {
            let detail = sample(container).map(|sample| (sample, Detail::of(proc, sample.pid)));
            object["process"] = match detail {
                Some((sample, Ok(detail))) => process(sample, &detail),
                Some((_, Err(error))) => json!({"error": error.to_string()}),
                None => Value::Null,
            };
        }
    }
    pod
}

fn process(sample: &Sample, detail: &Detail) -> Value {
    let views = |kernel: u32, user: bool| {
        let map = if user { &sample.userns.uid_map } else { &sample.userns.gid_map };
        json!({"host": kernel, "container": inside(map, kernel)})
    };
    let status = &detail.status;
    let ids: serde_json::Map<_, _> = ids(&status.ids)
        .map(|(name, kernel, user)| (name.to_owned(), views(kernel, user)))
        .into_iter()
        .collect();
    let caps: serde_json::Map<_, _> =
        sets(&status.caps).map(|(name, set)| (name.to_owned(), json!(names(set)))).into_iter().collect();
    let namespaces: serde_json::Map<_, _> = detail
        .namespaces
        .iter()
        .map(|(kind, inum, owner)| ((*kind).to_owned(), json!({"inode": inum, "owner": owner})))
        .collect();
    let chain = detail.chain.as_ref().map(|chain| {
        chain.iter().map(|(inum, owner)| json!({"inode": inum, "owner": owner})).collect::<Vec<_>>()
    });
    json!({
        "pid": sample.pid,
        "pid_in_container": status.ns_pids.last(),
        "ids": ids,
        "groups": status.groups.iter().map(|kernel| views(*kernel, false)).collect::<Vec<_>>(),
        "user_namespaces": chain,
        "user_namespace_level": detail.level(),
        "namespaces": namespaces,
        "seccomp": detail.seccomp(),
        "no_new_privs": status.no_new_privs,
        "lsm_label": detail.lsm,
        "capabilities": caps,
    })
}
