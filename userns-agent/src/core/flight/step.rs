//! One step of a process, and what it says in words.

use std::fmt::Write as _;

use userns_common::caps;
use userns_common::kind::{Operation, Relation, namespace, origin, reason, verdict};

use crate::core::finding::to_container;
use crate::event::{Body, Call, Event, IdMap, Nanos, ProcessId, TaskEvent, Text};

/// What a process did, or what was seen of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// It came into the container: one of [`origin`], and bits of [`reason`].
    Entered {
        /// How.
        origin: u32,
        /// What was wrong with it.
        reasons: u32,
    },
    /// It executed a program.
    Executed {
        /// Path given to execve.
        path: Text,
        /// Arguments; the last one may be cut.
        args: Vec<Text>,
        /// What was wrong with it.
        reasons: u32,
    },
    /// It was first seen in the pod's user namespace.
    Inside,
    /// It asked for something.
    Asked(Call),
    /// Its state contradicts where it comes from.
    Contradicted {
        /// Bits of [`reason`].
        reasons: u32,
        /// Bits of [`namespace`].
        foreign: u32,
    },
}

/// Ids as the host and as the pod, or before there is one, the credentials' own user namespace, has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// Real user id.
    pub uid: (u32, Option<u32>),
    /// Real group id.
    pub gid: (u32, Option<u32>),
    /// Effective user id.
    pub euid: (u32, Option<u32>),
    /// Effective group id.
    pub egid: (u32, Option<u32>),
}

impl Ids {
    fn of(event: &TaskEvent) -> Self {
        let task = &event.task;
        let ns = task.pod_userns.as_ref().filter(|ns| ns.inum != 0).unwrap_or(&task.userns);
        let both = |map: &IdMap, id: u32| (id, to_container(map, id));
        let (uids, gids, ids) = (&ns.uid_map, &ns.gid_map, &task.ids);
        Self {
            uid: both(uids, ids.uid),
            gid: both(gids, ids.gid),
            euid: both(uids, ids.euid),
            egid: both(gids, ids.egid),
        }
    }
}

/// A step of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// When, for the first time.
    pub time: Nanos,
    /// When for the last time.
    pub last: Nanos,
    /// How often.
    pub count: u64,
    /// Name of the hook that saw it.
    pub hook: &'static str,
    /// What it was.
    pub deed: Deed,
    /// The process.
    pub process: ProcessId,
    /// Its id in its own pid namespace, if known.
    pub ns_pid: Option<u32>,
    /// Its command name.
    pub comm: Text,
    /// Its ids.
    pub ids: Ids,
    /// Inode number of its credentials' user namespace; 0 if unknown.
    pub userns: u32,
}

impl Step {
    /// The step that a record tells of; `None` if it tells of none.
    #[must_use]
    pub(super) fn of(event: &Event) -> Option<Self> {
        let task = event.body.task()?;
        Some(Self {
            time: event.time,
            last: event.time,
            count: 1,
            hook: event.hook.name(),
            deed: deed(&event.body, event.reasons)?,
            process: task.task.process,
            ns_pid: task.task.ns_pid,
            comm: task.task.comm.clone(),
            ids: Ids::of(task),
            userns: task.task.userns.inum,
        })
    }

    /// Whether another step is the same but for its time.
    pub(in crate::core) fn is_like(&self, other: &Self) -> bool {
        let what = |step: &Self| (step.process, step.hook, step.ids, step.userns);
        what(self) == what(other) && self.deed == other.deed && self.comm == other.comm
    }

    /// It happened once more.
    pub(super) fn again(&mut self, time: Nanos) {
        self.count = self.count.saturating_add(1);
        self.time = self.time.min(time);
        self.last = self.last.max(time);
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        let texts = match &self.deed {
            Deed::Executed { path, args, .. } => {
                let args = args.iter().map(|arg| arg.as_str().len() + size_of::<Text>());
                path.as_str().len() + args.sum::<usize>()
            }
            Deed::Entered { .. } | Deed::Inside | Deed::Asked(_) | Deed::Contradicted { .. } => 0,
        };
        // with the two counts of an `Arc`, and a place in the queue
        size_of::<Self>() + 3 * size_of::<usize>() + self.comm.as_str().len() + texts
    }

    /// What it was, in one sentence without its subject. Texts of the workload are escaped.
    #[must_use]
    pub fn sentence(&self) -> String {
        match &self.deed {
            Deed::Entered { origin, reasons } => with(entered(*origin).to_owned(), *reasons, 0),
            Deed::Executed { path, args, reasons } => with(executed(path, args), *reasons, 0),
            Deed::Inside => format!("was first seen in the pod's user namespace ({})", self.userns),
            Deed::Asked(call) => asked(call),
            Deed::Contradicted { reasons, foreign } => {
                let what = wrong(*reasons, *foreign);
                if what.is_empty() { "was told of".to_owned() } else { what.join(", ") }
            }
        }
    }
}

fn deed(body: &Body, reasons: u32) -> Option<Deed> {
    Some(match body {
        Body::Entry(task) => Deed::Entered { origin: task.task.lineage.origin, reasons },
        Body::Exec(task) => Deed::Executed { path: task.path.clone(), args: task.args.clone(), reasons },
        Body::Inside(_) => Deed::Inside,
        Body::Suspect(task) => Deed::Contradicted { reasons, foreign: task.foreign },
        Body::Capability(task) | Body::NamespaceCall(task) => Deed::Asked(task.call.clone()?),
        Body::Exit { .. } | Body::Left { .. } | Body::CgroupMkdir(_) | Body::CgroupRmdir(_) => return None,
    })
}

fn with(text: String, reasons: u32, foreign: u32) -> String {
    let wrong = wrong(reasons, foreign);
    if wrong.is_empty() { text } else { format!("{text}, and {}", wrong.join(", ")) }
}

fn entered(how: u32) -> &'static str {
    match how {
        origin::ATTACHED => "was moved into the container's cgroup",
        origin::BORN => "was born in the container's cgroup",
        origin::ADOPTED => "was found in the container",
        origin::FOREIGN => "joined namespaces of the container from a cgroup that is no pod's",
        _ => "came into the container",
    }
}

fn executed(path: &Text, args: &[Text]) -> String {
    let mut text = format!("executed `{}`", path.as_str().escape_debug());
    if args.len() > 1 {
        text.push_str(" with");
    }
    for arg in args.iter().skip(1) {
        // writing to a String cannot fail
        let _ = write!(text, " `{}`", arg.as_str().escape_debug());
    }
    text
}

fn asked(call: &Call) -> String {
    let capability = call.capability.map(|number| {
        let name = caps::name(number).map_or_else(|| format!("CAP_{number}"), str::to_owned);
        let over = match call.relation {
            Relation::Host => "the host's user namespace",
            Relation::Pod => "the pod's user namespace",
            Relation::Nested => "a user namespace below the pod's",
            Relation::Other => "another user namespace",
        };
        format!("{name} over {over}")
    });
    match (verdict::of(call.ret), capability) {
        (verdict::GRANTED, Some(capability)) => format!("was granted {capability}"),
        (_, Some(capability)) => format!("was denied {capability}"),
        (verdict::GRANTED, None) => format!("did {}", operation(call.operation)),
        (verdict::DENIED, None) => format!("was denied {}", operation(call.operation)),
        (_, None) => format!("tried {}, which failed with error {}", operation(call.operation), call.ret),
    }
}

fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::CloneNewUser => "clone with a new user namespace",
        Operation::UnshareNewUser => "unshare with a new user namespace",
        Operation::Capability
        | Operation::Setns
        | Operation::Unshare
        | Operation::MountSetattr
        | Operation::OpenTreeAttr => operation.name(),
    }
}

const REASONS: [(u32, &str); 9] = [
    (reason::LEFT_USERNS, "has credentials outside of the pod's user namespace"),
    (reason::ACTS_OUTSIDE, "acts with credentials outside of the pod's user namespace"),
    (reason::ID_OUTSIDE_MAP, "has an id that the pod's user namespace does not map"),
    (reason::HOST_WORKLOAD, "runs a program of the container in the host's user namespace"),
    (reason::HOST_CAPABILITY, "used a capability over the host"),
    (reason::PAST_GRACE, "is still in the host's user namespace after the time that a runtime needs"),
    (reason::LEFT_CGROUP, "is in a cgroup outside of its container's"),
    (reason::FOREIGN_ENTRY, "joined another pod's namespaces"),
    (reason::OUTSIDE_MOUNT, "works in a mount that is not the pod's"),
];

const NAMESPACES: [(u32, &str); 5] = [
    (namespace::MNT, "mount"),
    (namespace::PID, "PID"),
    (namespace::NET, "network"),
    (namespace::IPC, "IPC"),
    (namespace::UTS, "UTS"),
];

fn wrong(reasons: u32, foreign: u32) -> Vec<String> {
    let known = REASONS.iter().filter(|(bit, _)| reasons & bit != 0);
    let mut wrong: Vec<String> = known.map(|(_, text)| (*text).to_owned()).collect();
    if reasons & reason::FOREIGN_NAMESPACE != 0 {
        let kinds = NAMESPACES.iter().filter(|(bit, _)| foreign & bit != 0).map(|(_, name)| *name);
        wrong.push(format!(
            "is in namespaces that are not the pod's: {}",
            kinds.collect::<Vec<_>>().join(", ")
        ));
    }
    wrong
}
