//! A finding with everything in it, for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::report::{AgentEvent, AgentState, ProbeReport, Suppressed, WallClock};
use crate::core::finding::{
    CallUse, CameFrom, CapabilityUse, Confidence, ContainerRef, Finding, FindingId, HostNamespaces, PodRef,
    Severity, Status,
};
use crate::core::flight::{Deed, Ids, Step};
use crate::core::rules::{Rule, RuleId};
use crate::event::{
    self, Ancestor, Call, CapSets, CgroupId, ContainerKind, Extent, IdMap, Image, Lineage, Namespaces, Nanos,
    Operation, Owner, PodSource, PodUid, ProcessId, Relation, Task, TaskEvent, UserNs, lineage, origin,
    reason, state,
};

pub(super) const CLOCK: WallClock = WallClock { boot: 1_767_225_600_000_000_000 };

const SECOND: u64 = 1_000_000_000;
const HOST_BASE: u32 = 1_048_576;

pub(super) static RULE: Rule = Rule {
    id: "I0",
    name: "sample_rule",
    title: "A rule for tests",
    severity: Severity::High,
    technique: ("T1611", "Escape to Host"),
    tactic: ("TA0004", "Privilege Escalation"),
    proves: "Nothing.",
    evidence: "None.",
    exceptions: "None.",
    respond: "Do nothing.",
};

pub(super) fn map(first: u32, lower_first: u32, count: u32) -> IdMap {
    let mut map = IdMap { nr_extents: 1, ..IdMap::default() };
    map.extents[0] = Extent { first, lower_first, count };
    map
}

fn pod_userns() -> UserNs {
    let map = map(0, HOST_BASE, 65_536);
    UserNs { inum: 4_026_532_713, level: 1, owner: 0, parent_inum: 4_026_531_837, uid_map: map, gid_map: map }
}

fn host_userns() -> UserNs {
    let map = map(0, 0, u32::MAX);
    UserNs { inum: 4_026_531_837, level: 0, owner: 0, parent_inum: 0, uid_map: map, gid_map: map }
}

fn task() -> Task {
    Task {
        process: ProcessId { pid: 4242, start: Nanos(100 * SECOND) },
        tid: 4243,
        ns_pid: Some(17),
        overridden: false,
        ids: event::Ids { uid: HOST_BASE + 1000, gid: HOST_BASE, ..event::Ids::default() },
        caps: CapSets {
            permitted: (1 << 41) - 1,
            effective: (1 << 21) | (1 << 41),
            bounding: 1 << 0,
            ..CapSets::default()
        },
        userns: host_userns(),
        pod_userns: Some(pod_userns()),
        ns: Namespaces {
            mnt: 4_026_532_700,
            pid: 4_026_532_703,
            net: 4_026_532_705,
            ipc: 0,
            uts: 0,
            cgroup: 0,
        },
        image: Image { ino: 131_092, dev: (8 << 20) | 1, nlink: 1 },
        cgroup: CgroupId(9001),
        lineage: Lineage {
            state: state::INSIDE,
            origin: origin::ATTACHED,
            flags: lineage::WORKLOAD,
            told: reason::LEFT_USERNS,
            entered_ns: 90 * SECOND,
            container: 9001,
            ..Lineage::default()
        },
        comm: "sh".into(),
    }
}

/// The process with all that is known of it.
pub(super) fn task_event() -> TaskEvent {
    let parent = |pid, comm: &str| Ancestor {
        process: ProcessId { pid, start: Nanos(80 * SECOND) },
        euid: 0,
        comm: comm.into(),
    };
    TaskEvent {
        task: task(),
        call: Some(call()),
        foreign: 0,
        ancestors: vec![parent(4200, "containerd-shim"), parent(1, "systemd")],
        path: "/bin/busybox".into(),
        args: vec!["sh".into(), "-c".into(), "echo \"a\tb\"".into()],
        cut: true,
    }
}

/// The way from the runtime's entry to the finding.
fn evidence() -> Vec<Arc<Step>> {
    let root = (HOST_BASE, Some(0));
    let inside = Ids { uid: root, gid: root, euid: root, egid: root };
    let step = |second, hook, deed, comm: &str, pid, ids| {
        let process = ProcessId { pid, start: Nanos(100 * SECOND) };
        let time = Nanos(second * SECOND);
        let userns = if ids == inside { pod_userns().inum } else { host_userns().inum };
        let (comm, ns_pid) = (comm.into(), Some(17));
        Arc::new(Step { time, last: time, count: 1, hook, deed, process, ns_pid, comm, ids, userns })
    };
    let host = Ids { uid: (0, None), gid: (0, None), euid: (0, None), egid: (0, None) };
    let entered = Deed::Entered { origin: origin::ATTACHED, reasons: 0 };
    let shell = Deed::Executed {
        path: "/bin/busybox".into(),
        args: vec!["sh".into(), "-c".into(), "echo \"a\tb\"".into()],
        reasons: 0,
    };
    let asked = Deed::Asked(Call { capability: Some(21), operation: Operation::Capability, ..call() });
    let left = Deed::Contradicted { reasons: reason::LEFT_USERNS, foreign: 0 };
    vec![
        step(90, "cgroup_attach_task", entered, "runc:[2:INIT]", 4230, host),
        step(91, "setns", Deed::Inside, "runc:[2:INIT]", 4230, inside),
        step(100, "sched_process_exec", shell, "sh", 4242, inside),
        step(120, "cap_capable", asked, "sh", 4242, inside),
        step(123, "sched_process_exit", left, "sh", 4242, host),
    ]
}

fn call() -> Call {
    Call {
        operation: Operation::MountSetattr,
        capability: None,
        relation: Relation::Host,
        ret: -1,
        target_inum: 4_026_531_837,
        target_level: 0,
        // the same number on every architecture
        syscall: Some(442),
        flags: 0x10_0001,
    }
}

pub(super) fn finding() -> Finding {
    let call = |ret, count| CallUse { call: "setns", ret, count };
    Finding {
        id: FindingId(0xcbf2_9ce4_8422_2325),
        status: Status::Opened,
        rule: RuleId::I1,
        severity: Severity::Critical,
        confidence: Confidence::Certain,
        time: Nanos(123_456_789_012),
        first: Nanos(120 * SECOND),
        count: 3,
        why: "`sh` (pid 4242) of the pod works with credentials of the host's user namespace".to_owned(),
        pod: Some(PodRef {
            uid: PodUid::parse("0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11").unwrap(),
            source: Some(PodSource::Api),
            namespace: Some("default".to_owned()),
            name: Some("web-0".to_owned()),
            labels: BTreeMap::from([("app".to_owned(), "web".to_owned())]),
            owner: Some(Owner { kind: "StatefulSet".to_owned(), name: "web".to_owned() }),
            service_account: Some("web".to_owned()),
            runtime_class: Some("crun".to_owned()),
            host_users: Some(false),
            host_namespaces: Some(HostNamespaces::default()),
            recorded_uid_map: vec![Extent { first: 0, lower_first: HOST_BASE, count: 65_536 }],
        }),
        container: Some(ContainerRef {
            name: Some("nginx".to_owned()),
            kind: Some(ContainerKind::Container),
            image: Some("registry.example/nginx:1.29".to_owned()),
            image_digest: Some(format!("sha256:{:064x}", 0x1234_5678)),
            id: "3f2a9c81d04e5b6a7c8d9e0f3f2a9c81d04e5b6a7c8d9e0f3f2a9c81d04e5b6a".to_owned(),
            runtime: Some("containerd"),
            cgroup: CgroupId(9001),
            cgroup_path: "/kubepods.slice/kubepods-pod0f4b5b7e_6f1d_4f3e_9d5c_2f1f4f1a7c11.slice/\
                          cri-containerd-3f2a9c81d04e.scope"
                .to_owned(),
        }),
        from: Some(Box::new(CameFrom {
            container: ContainerRef {
                id: "debug".to_owned(),
                cgroup: CgroupId(9100),
                cgroup_path: "/kubepods/pod1a2b3c4d-0000-4000-8000-000000000001/debug".to_owned(),
                ..ContainerRef::default()
            },
            pod: PodUid::parse("1a2b3c4d-0000-4000-8000-000000000001")
                .map(|uid| PodRef { uid, ..PodRef::default() }),
        })),
        task: Some(Box::new(task_event())),
        hook: Some("sched_process_exec"),
        capabilities: vec![
            CapabilityUse { capability: 21, granted: true, count: 2, syscall: Some(435) },
            CapabilityUse { capability: 63, granted: false, count: 1, syscall: None },
        ],
        calls: vec![call(-1, 4), call(0, 1), call(-999, 1)],
        unknown: vec!["runtime images: none was found"],
        evidence: evidence(),
        evidence_omitted: 2,
        resolved: None,
    }
}

/// The least that a finding can say.
pub(super) fn bare() -> Finding {
    Finding {
        pod: None,
        container: None,
        from: None,
        task: None,
        hook: None,
        capabilities: Vec::new(),
        calls: Vec::new(),
        unknown: Vec::new(),
        evidence: Vec::new(),
        evidence_omitted: 0,
        ..finding()
    }
}

pub(super) fn agent(state: AgentState) -> AgentEvent {
    let active = ProbeReport {
        hook: "cap_capable",
        mechanism: Some("tp_btf"),
        state: "active",
        reason: None,
        without: "x",
    };
    let degraded = ProbeReport {
        hook: "open_tree_attr",
        mechanism: None,
        state: "degraded",
        reason: Some("this kernel has no event syscalls/sys_exit_open_tree_attr".to_owned()),
        without: "nothing on kernels before 6.15, which lack the call",
    };
    AgentEvent {
        time: Nanos(SECOND),
        state,
        reason: Some("1 of 2 hooks is missing".to_owned()),
        version: "0.1.0",
        listen: Some("127.0.0.1:9477".parse().unwrap()),
        probes: vec![active, degraded],
    }
}

pub(super) fn withheld() -> Suppressed {
    let Finding { container, pod, .. } = finding();
    Suppressed {
        time: Nanos(9 * SECOND),
        since: Nanos(7 * SECOND),
        reason: "container_budget",
        kind: Some("exec"),
        sink: None,
        severity: None,
        count: 31_400,
        container,
        pod,
    }
}

pub(super) fn suppressed() -> Suppressed {
    Suppressed {
        time: Nanos(9 * SECOND),
        since: Nanos(7 * SECOND),
        reason: "queue_full",
        kind: None,
        sink: Some("stdout"),
        severity: Some(Severity::Low),
        count: 12,
        container: None,
        pod: None,
    }
}
