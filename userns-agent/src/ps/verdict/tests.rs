//! Verdicts, case by case.

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
    Pod { spec: declared.map(spec), uid: uid.clone(), recorded, known: None }
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

fn unobservable() -> Unobservable {
    Unobservable::new(vec!["kata*".into(), "wasm".into()])
}

#[track_caller]
fn check(pod: &Pod, look: &Look, verdict: Verdict, says: &str) {
    let judgement = judge(pod, look, HOST, &unobservable(), &[]);
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
    let found = judge(&mine, &sample(namespace(131_072)), HOST, &unobservable(), &[(&theirs, &other)]);
    assert_eq!(found.verdict, Verdict::UnsafeRange);
    assert_eq!(found.reason, "its pod shares the host ids 196607 to 196607 with pod shop/web");
    other.uid_map = map(262_144);
    let found = judge(&mine, &sample(namespace(131_072)), HOST, &unobservable(), &[(&theirs, &other)]);
    assert_eq!(found.verdict, Verdict::UnsafeRange, "groups count too");
    other.gid_map = map(262_144);
    let found = judge(&mine, &sample(namespace(131_072)), HOST, &unobservable(), &[(&theirs, &other)]);
    assert_eq!(found.verdict, Verdict::Honoured);
}

#[test]
fn what_cannot_be_seen_is_unknown_and_says_why() {
    let pod = pod(Some(Some(false)), record(65_536));
    check(&pod, &Look::Empty, Verdict::Unknown, "no process is in its cgroup");
    check(&pod, &Look::Unreadable { why: "denied".into() }, Verdict::Unknown, "cannot be inspected: denied");
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
    assert_eq!(broken, [&Verdict::UnsafeRange, &Verdict::Ignored, &Verdict::Escaped]);
}

#[test]
fn pods_of_unobservable_runtime_classes_are_not_judged() {
    let mut pod = pod(Some(Some(false)), Recorded::Nothing);
    for (class, verdict) in [
        ("kata-qemu", Verdict::NotObservable),
        ("wasm", Verdict::NotObservable),
        ("my-kata", Verdict::Ignored),
        ("wasmtime", Verdict::Ignored),
        ("gvisor", Verdict::Ignored),
    ] {
        pod.spec.as_mut().unwrap().runtime_class = Some(class.into());
        check(&pod, &host(), verdict, if verdict == Verdict::NotObservable { class } else { "" });
    }
    // the class may have any name, where its handler is one of these
    pod.known = Some(Known { runtime_class: Some("kata".into()), ..Known::default() });
    check(&pod, &host(), Verdict::NotObservable, "its runtime class kata runs it");
}

#[test]
fn what_the_agent_found_to_have_left_is_told() {
    let finding = |rule: &str| KnownFinding { rule: rule.into(), ..KnownFinding::default() };
    let mut pod = pod(None, Recorded::Nothing);
    let known = Known { findings: vec![finding("I11"), finding("I1")], ..Known::default() };
    pod.known = Some(known);
    assert_eq!(pod.escape().unwrap().rule, "I1");
    pod.known.as_mut().unwrap().findings.pop();
    assert_eq!(pod.escape(), None);
}
