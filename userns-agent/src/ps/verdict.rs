//! Whether what was promised for a container's pod holds. Pure.

use crate::core::range::{self, Problem, show_all};
use crate::event::{Extent, KubeletRecord, PodSpec, PodUid, Text};
use crate::host::proc::to_id_map;
use userns_common::limits::MAX_EXTENTS;

/// What holds, in a word; the worst of a pod's containers is the pod's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// What was promised, or what holds, cannot be told.
    Unknown,
    /// A user namespace of its own, with a range of its own.
    Honoured,
    /// The host's user namespace, as nothing else was promised.
    HostUserNamespace,
    /// A user namespace whose range is not the pod's alone.
    UnsafeRange,
    /// The host's user namespace, although another was promised.
    Ignored,
}

impl Verdict {
    /// Every verdict, worst last.
    pub const ALL: &'static [Self] =
        &[Self::Unknown, Self::Honoured, Self::HostUserNamespace, Self::UnsafeRange, Self::Ignored];

    /// The name printed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Honoured => "honoured",
            Self::HostUserNamespace => "host user namespace",
            Self::UnsafeRange => "unsafe range",
            Self::Ignored => "ignored",
        }
    }

    /// Whether a promise is broken.
    #[must_use]
    pub fn is_broken(self) -> bool {
        matches!(self, Self::UnsafeRange | Self::Ignored)
    }
}

/// A verdict and why, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
}

/// A user namespace with its maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Inode number.
    pub inum: u32,
    /// Map of user ids.
    pub uid_map: Vec<Extent>,
    /// Map of group ids.
    pub gid_map: Vec<Extent>,
}

impl Namespace {
    /// How many ids it maps.
    #[must_use]
    pub fn width(&self) -> u64 {
        self.uid_map.iter().map(|extent| u64::from(extent.count)).sum()
    }
}

/// What a look at a container's processes gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// No process is there.
    Empty,
    /// There are some, but none could be inspected.
    Unreadable {
        /// Why.
        why: String,
    },
    /// One was inspected that stands for all.
    Process(Sample),
}

/// The process that stands for a container: its first one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Its id.
    pub pid: u32,
    /// Its command name.
    pub comm: Text,
    /// Its user namespace.
    pub userns: Namespace,
    /// How many of the container's processes are in the host's user namespace.
    pub in_host: usize,
}

/// What kubelet says of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It gave it this.
    Record(KubeletRecord),
    /// It knows the pod and gave it nothing.
    Nothing,
    /// It does not know the pod.
    NoPod,
    /// It is not known.
    Unreadable {
        /// Why.
        why: String,
    },
}

/// What is known of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its UID.
    pub uid: PodUid,
    /// What it declares, if the pods file has it.
    pub spec: Option<PodSpec>,
    /// What kubelet gave it.
    pub recorded: Recorded,
}

impl Pod {
    /// Its name if known, else its UID.
    #[must_use]
    pub fn label(&self) -> String {
        self.spec
            .as_ref()
            .map_or_else(|| self.uid.to_string(), |spec| format!("{}/{}", spec.namespace, spec.name))
    }

    fn record(&self) -> Option<&KubeletRecord> {
        match &self.recorded {
            Recorded::Record(record) => Some(record),
            Recorded::Nothing | Recorded::NoPod | Recorded::Unreadable { .. } => None,
        }
    }
}

/// Judges a container of `pod`. `host` is the number of the host's user namespace; `others` are the user namespaces
/// of other pods.
#[must_use]
pub fn judge(pod: &Pod, look: &Look, host: u32, others: &[(&Pod, &Namespace)]) -> Judgement {
    match look {
        Look::Empty => unknown("no process is in its cgroup, so there is nothing to compare"),
        Look::Unreadable { why } => unknown(format!("its processes cannot be inspected: {why}")),
        Look::Process(sample) if sample.userns.inum == host => in_host(pod),
        Look::Process(sample) => in_own(pod, sample, others),
    }
}

fn unknown(reason: impl Into<String>) -> Judgement {
    Judgement { verdict: Verdict::Unknown, reason: reason.into() }
}

fn in_host(pod: &Pod) -> Judgement {
    const WHERE: &str = "it runs in the host's user namespace";
    let say = |verdict, why: String| Judgement { verdict, reason: format!("{WHERE}{why}") };
    if let Some(record) = pod.record() {
        let range = show_all(&record.uid_mappings);
        return say(Verdict::Ignored, format!(", although kubelet recorded {range} for its pod"));
    }
    let declared = pod.spec.as_ref().map(|spec| spec.host_users);
    match (declared, &pod.recorded) {
        (Some(Some(false)), _) => say(Verdict::Ignored, ", although its pod declares hostUsers: false".into()),
        (Some(Some(true)), _) => say(Verdict::HostUserNamespace, ", as its pod declares: hostUsers: true".into()),
        (Some(None), _) => say(Verdict::HostUserNamespace, ": its pod does not declare hostUsers: false".into()),
        (None, Recorded::Unreadable { why }) => {
            say(Verdict::Unknown, format!("; what was promised is not known: {why}"))
        }
        (None, Recorded::NoPod) => say(
            Verdict::Unknown,
            "; what was promised is not known: kubelet has no directory for its pod, and no pods file names it".into(),
        ),
        (None, Recorded::Nothing | Recorded::Record(_)) => {
            say(Verdict::HostUserNamespace, ", and kubelet recorded no other for its pod".into())
        }
    }
}

fn in_own(pod: &Pod, sample: &Sample, others: &[(&Pod, &Namespace)]) -> Judgement {
    let Namespace { uid_map, gid_map, .. } = &sample.userns;
    if uid_map.is_empty() && gid_map.is_empty() {
        return unknown("its user namespace has no id map yet");
    }
    let unsafe_range = |reason| Judgement { verdict: Verdict::UnsafeRange, reason };
    if let Some(problem) = problem(pod, &sample.userns) {
        return unsafe_range(say(&problem));
    }
    let shared = others.iter().find_map(|(other, namespace)| {
        let ids = overlap(uid_map, &namespace.uid_map).or_else(|| overlap(gid_map, &namespace.gid_map))?;
        Some((other, ids))
    });
    if let Some((other, (first, last))) = shared {
        return unsafe_range(format!(
            "its pod shares the host ids {first} to {last} with pod {}",
            other.label()
        ));
    }
    let range = show_all(uid_map);
    let record = match pod.record() {
        Some(record) if record.uid_mappings == *uid_map => ", as kubelet recorded",
        Some(_) => ", nested in what kubelet recorded",
        None => "",
    };
    let visitors = match sample.in_host {
        0 => String::new(),
        count => format!("; {count} of its processes run in the host's user namespace at this moment"),
    };
    let reason = format!("it runs in a user namespace of its own, {range}{record}{visitors}");
    Judgement { verdict: Verdict::Honoured, reason }
}

/// The worst problem of a namespace.
fn problem(pod: &Pod, namespace: &Namespace) -> Option<Problem> {
    // a long map is looked at in parts, as the kernel's inline form holds five extents only
    let maps = [&namespace.uid_map, &namespace.gid_map];
    let mut parts = maps.iter().flat_map(|map| map.chunks(MAX_EXTENTS));
    if let Some(problem) = parts.find_map(|part| range::check_map(&to_id_map(part))) {
        return Some(problem);
    }
    let (uid_map, gid_map) = (to_id_map(&namespace.uid_map), to_id_map(&namespace.gid_map));
    let record = pod.record()?;
    // a workload may itself make a user namespace, which can only hold ids of the one it was given
    let nested =
        within(&namespace.uid_map, &record.uid_mappings) && within(&namespace.gid_map, &record.gid_mappings);
    let differs = |problem: &Problem| matches!(problem, Problem::DiffersFromRecord { .. });
    range::problems(&uid_map, &gid_map, Some(record))
        .into_iter()
        .find(|problem| !(nested && differs(problem)))
}

/// Whether every host id of `inner` is one of `outer`.
fn within(inner: &[Extent], outer: &[Extent]) -> bool {
    let end = |extent: &Extent| u64::from(extent.lower_first) + u64::from(extent.count);
    inner.iter().all(|inner| {
        outer.iter().any(|outer| inner.lower_first >= outer.lower_first && end(inner) <= end(outer))
    })
}

fn overlap(a: &[Extent], b: &[Extent]) -> Option<(u32, u32)> {
    a.chunks(MAX_EXTENTS)
        .find_map(|a| b.chunks(MAX_EXTENTS).find_map(|b| range::overlap(&to_id_map(a), &to_id_map(b))))
}

fn say(problem: &Problem) -> String {
    match problem {
        Problem::HostRoot { inside } => format!("id {inside} in its user namespace is the host's root"),
        Problem::HostIds { extent } => {
            format!("its user namespace holds ids of the host's own users: {}", range::show(extent))
        }
        Problem::DiffersFromRecord { kind, recorded, actual } => format!(
            "its map of {kind} ids is {}, but kubelet recorded {}",
            show_all(actual),
            show_all(recorded)
        ),
        Problem::UnsafeRecord { extent } => {
            format!("kubelet recorded {} for its pod, which is no pod's range", range::show(extent))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: u32 = 4_026_531_837;
    const UID: &str = "0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11";

    fn map(first: u32) -> Vec<Extent> {
        vec![Extent { first: 0, lower_first: first, count: 65_536 }]
    }

    fn namespace(first: u32) -> Namespace {
        Namespace { inum: 4_026_532_000, uid_map: map(first), gid_map: map(first) }
    }

    fn record(first: u32) -> Recorded {
        Recorded::Record(KubeletRecord { uid_mappings: map(first), gid_mappings: map(first) })
    }

    fn pod(declared: Option<Option<bool>>, recorded: Recorded) -> Pod {
        let uid = PodUid::parse(UID).unwrap();
        let spec = |host_users| PodSpec {
            uid: uid.clone(),
            namespace: "shop".into(),
            name: "web".into(),
            host_users,
            ..PodSpec::default()
        };
        Pod { spec: declared.map(spec), uid: uid.clone(), recorded }
    }

    fn sample(userns: Namespace) -> Look {
        Look::Process(Sample { pid: 7, userns, ..Sample::default() })
    }

    fn host() -> Look {
        sample(Namespace {
            inum: HOST,
            uid_map: vec![Extent { count: u32::MAX, ..Extent::default() }],
            gid_map: vec![],
        })
    }

    #[track_caller]
    fn check(pod: &Pod, look: &Look, verdict: Verdict, says: &str) {
        let judgement = judge(pod, look, HOST, &[]);
        assert_eq!(judgement.verdict, verdict, "{judgement:?}");
        assert!(judgement.reason.contains(says), "{judgement:?}");
        assert!(!judgement.reason.ends_with('.') && !judgement.reason.contains('\n'), "{judgement:?}");
    }

    #[test]
    fn promises_are_judged_in_the_hosts_user_namespace() {
        use Recorded::{NoPod, Nothing};
        let unreadable = || Recorded::Unreadable { why: "permission denied".into() };
        for (declared, recorded, verdict, says) in [
            (None, record(65_536), Verdict::Ignored, "kubelet recorded 0→65536+65536"),
            (Some(None), record(65_536), Verdict::Ignored, "although kubelet recorded"),
            (Some(Some(true)), record(65_536), Verdict::Ignored, "although kubelet recorded"),
            (Some(Some(false)), Nothing, Verdict::Ignored, "declares hostUsers: false"),
            (Some(Some(false)), NoPod, Verdict::Ignored, "declares hostUsers: false"),
            (Some(Some(false)), unreadable(), Verdict::Ignored, "declares hostUsers: false"),
            (Some(Some(true)), Nothing, Verdict::HostUserNamespace, "declares: hostUsers: true"),
            (Some(None), NoPod, Verdict::HostUserNamespace, "does not declare"),
            (None, Nothing, Verdict::HostUserNamespace, "kubelet recorded no other"),
            (None, NoPod, Verdict::Unknown, "no pods file names it"),
            (None, unreadable(), Verdict::Unknown, "not known: permission denied"),
        ] {
            check(&pod(declared, recorded), &host(), verdict, says);
        }
    }

    #[test]
    fn ranges_are_judged_in_an_own_user_namespace() {
        for (actual, recorded, verdict, says) in [
            (131_072, record(131_072), Verdict::Honoured, "0→131072+65536, as kubelet recorded"),
            (131_072, Recorded::Nothing, Verdict::Honoured, "user namespace of its own"),
            (131_072, record(196_608), Verdict::UnsafeRange, " ids is 0→131072+65536, but kubelet recorded"),
            (0, Recorded::Nothing, Verdict::UnsafeRange, "id 0 in its user namespace is the host's root"),
            (0, record(0), Verdict::UnsafeRange, "the host's root"),
            (1000, record(1000), Verdict::UnsafeRange, "host's own users: 0→1000+65536"),
            (4_294_901_760, record(4_294_901_760), Verdict::UnsafeRange, "no pod's range"),
        ] {
            check(&pod(Some(Some(false)), recorded), &sample(namespace(actual)), verdict, says);
        }
    }

    #[test]
    fn a_namespace_made_by_the_workload_is_no_difference() {
        let given = pod(None, record(131_072));
        let inside = |first, count| {
            let map = vec![Extent { first: 0, lower_first: first, count }];
            sample(Namespace { inum: 1, uid_map: map.clone(), gid_map: map })
        };
        check(&given, &inside(132_072, 1), Verdict::Honoured, "nested in what kubelet recorded");
        check(&given, &inside(196_607, 1), Verdict::Honoured, "nested");
        check(&given, &inside(196_607, 2), Verdict::UnsafeRange, "kubelet recorded");
        check(&given, &inside(131_071, 2), Verdict::UnsafeRange, "but kubelet recorded");
    }

    #[test]
    fn long_maps_are_searched_to_the_end() {
        let mut long = namespace(131_072);
        long.uid_map = (0..340).map(|n| Extent { first: n, lower_first: 131_072 + n, count: 1 }).collect();
        check(&pod(None, Recorded::Nothing), &sample(long.clone()), Verdict::Honoured, "of its own");
        long.uid_map[339].lower_first = 0;
        check(&pod(None, Recorded::Nothing), &sample(long), Verdict::UnsafeRange, "id 339");
    }

    #[test]
    fn pods_that_share_ids_are_named() {
        let (mine, theirs) = (pod(None, Recorded::Nothing), pod(Some(None), Recorded::Nothing));
        let mut other = namespace(196_607);
        let found = judge(&mine, &sample(namespace(131_072)), HOST, &[(&theirs, &other)]);
        assert_eq!(found.verdict, Verdict::UnsafeRange);
        assert_eq!(found.reason, "its pod shares the host ids 196607 to 196607 with pod shop/web");
        other.uid_map = map(262_144);
        let found = judge(&mine, &sample(namespace(131_072)), HOST, &[(&theirs, &other)]);
        assert_eq!(found.verdict, Verdict::UnsafeRange, "groups count too");
        other.gid_map = map(262_144);
        let found = judge(&mine, &sample(namespace(131_072)), HOST, &[(&theirs, &other)]);
        assert_eq!(found.verdict, Verdict::Honoured);
    }

    #[test]
    fn what_cannot_be_seen_is_unknown_and_says_why() {
        let pod = pod(Some(Some(false)), record(65_536));
        check(&pod, &Look::Empty, Verdict::Unknown, "no process is in its cgroup");
        check(
            &pod,
            &Look::Unreadable { why: "denied".into() },
            Verdict::Unknown,
            "cannot be inspected: denied",
        );
        let fresh = Namespace { inum: 1, ..Namespace::default() };
        check(&pod, &sample(fresh), Verdict::Unknown, "no id map yet");
    }

    #[test]
    fn visitors_are_mentioned() {
        let look = Look::Process(Sample { in_host: 2, userns: namespace(131_072), ..Sample::default() });
        check(&pod(None, record(131_072)), &look, Verdict::Honoured, "2 of its processes run in the host's");
    }

    #[test]
    fn the_worst_verdict_is_the_greatest() {
        assert!(Verdict::ALL.is_sorted());
        let broken: Vec<_> = Verdict::ALL.iter().filter(|verdict| verdict.is_broken()).collect();
        assert_eq!(broken, [&Verdict::UnsafeRange, &Verdict::Ignored]);
    }
}
