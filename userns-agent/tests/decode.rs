//! Records as the eBPF programs lay them out decode field by field.

use userns_agent::decode::{DecodeError, decode};
use userns_agent::event::{Body, CgroupId, Extent, Hook, IdMap, Nanos, Operation, Relation, Text};
use userns_common::kind::EventKind;
use userns_common::limits::{ARGS_LEN, CGROUP_PATH_LEN, MAX_ANCESTORS, PATH_LEN};
use userns_common::record::{
    Ancestor, CapSets, CgroupRecord, Detail, ExitRecord, Header, Ids, Image, Lineage, Namespaces, Task,
    TaskRecord, UserNs,
};

fn bytes<T: Copy>(record: &T) -> Vec<u8> {
    // SAFETY: records are repr(C) integers without padding.
    unsafe { std::slice::from_raw_parts((&raw const *record).cast::<u8>(), size_of::<T>()) }.to_vec()
}

fn header<T>(kind: EventKind, hook: Hook) -> Header {
    Header { kind: kind as u32, len: size_of::<T>() as u32, time_ns: 77, hook: hook as u32, reasons: 5 }
}

fn userns(base: u32) -> UserNs {
    let mut map = IdMap { nr_extents: 1, ..IdMap::default() };
    map.extents[0] = Extent { first: 0, lower_first: base, count: 65_536 };
    map.extents[4] = Extent { first: 9, lower_first: 9, count: 9 };
    UserNs {
        inum: base + 1,
        level: base + 2,
        owner: base + 3,
        parent_inum: base + 4,
        uid_map: map,
        gid_map: map,
    }
}

fn record() -> TaskRecord {
    let mut record = TaskRecord {
        header: header::<TaskRecord>(EventKind::Capability, Hook::Capable),
        task: Task {
            tgid: 1,
            tid: 2,
            start_ns: 3,
            ns_tgid: 4,
            overridden: 1,
            ids: Ids { uid: 10, gid: 11, suid: 12, sgid: 13, euid: 14, egid: 15, fsuid: 16, fsgid: 17 },
            caps: CapSets { inheritable: 20, permitted: 21, effective: 22, bounding: 23, ambient: 24 },
            userns: userns(100),
            pod_userns: userns(200),
            ns: Namespaces { mnt: 30, pid: 31, net: 32, ipc: 33, uts: 34, cgroup: 35 },
            image: Image { ino: 40, dev: 41, nlink: 42 },
            cgroup: 50,
            lineage: Lineage {
                state: 60,
                flags: 61,
                origin: 62,
                userns_inum: 63,
                userns: 64,
                container: 65,
                entered_ns: 66,
                entry_mnt: 67,
                told_caps: 68,
                foreign: 69,
                told: 70,
            },
            comm: *b"sh\xff\n\0garbage....",
        },
        detail: Detail {
            operation: Operation::Capability as u32,
            code: 21,
            relation: Relation::Host as u32,
            ret: -1,
            target_inum: 70,
            target_level: 71,
            syscall: -1,
            foreign: 0,
            flags: 72,
            fd: 73,
        },
        nr_ancestors: 2,
        path_len: 7,
        args_len: 6,
        args_total: 9,
        ancestors: [Ancestor::default(); MAX_ANCESTORS],
        path: [b'x'; PATH_LEN],
        args: [b'y'; ARGS_LEN],
    };
    record.ancestors[1] =
        Ancestor { tgid: 80, euid: 81, start_ns: 82, comm: *b"runc\0\0\0\0\0\0\0\0\0\0\0\0" };
    record.path[..7].copy_from_slice(b"/bin/sh");
    record.args[..6].copy_from_slice(b"sh\0-c\0");
    record
}

#[test]
fn every_field_of_a_task_record_arrives() {
    let record = record();
    let event = decode(&bytes(&record)).unwrap();
    assert_eq!((event.time, event.hook, event.reasons), (Nanos(77), Hook::Capable, 5));
    let Body::Capability(event) = event.body else { panic!("{:?}", event.body) };
    let task = &event.task;
    assert_eq!((task.process.pid, task.tid, task.process.start, task.ns_pid), (1, 2, Nanos(3), Some(4)));
    assert!(task.overridden);
    assert_eq!((task.ids, task.caps), (record.task.ids, record.task.caps));
    assert_eq!((task.ns, task.image, task.cgroup), (record.task.ns, record.task.image, CgroupId(50)));
    assert_eq!(task.lineage, record.task.lineage);
    assert_eq!(task.comm.as_str(), "sh\\xff\n");
    assert_eq!((task.userns.inum, task.userns.parent_inum, task.userns.level), (101, 104, 102));
    assert_eq!(task.userns.uid_map.extents[0].lower_first, 100);
    assert_eq!(task.userns.uid_map.extents[4], Extent::default(), "slots past the last extent are dropped");
    assert_eq!(task.pod_userns.as_ref().unwrap().gid_map.extents[0].lower_first, 200);
    let call = event.call.as_ref().unwrap();
    assert_eq!(
        (call.capability, call.relation, call.ret, call.syscall),
        (Some(21), Relation::Host, -1, None)
    );
    assert_eq!((call.target_inum, call.target_level, call.flags), (70, 71, 72));
    assert_eq!(event.ancestors.len(), 2);
    assert_eq!((event.ancestors[1].process.pid, event.ancestors[1].euid), (80, 81));
    assert_eq!(event.ancestors[1].comm, Text::from("runc"));
    assert_eq!((event.path.as_str(), event.args.len(), event.cut), ("/bin/sh", 2, true));
}

#[test]
fn exits_and_cgroups_arrive() {
    let exit = ExitRecord {
        header: header::<ExitRecord>(EventKind::Exit, Hook::Exit),
        tgid: 1,
        reserved: 0,
        start_ns: 2,
        container: 3,
    };
    let Body::Exit { process, container } = decode(&bytes(&exit)).unwrap().body else { panic!() };
    assert_eq!((process.pid, process.start, container), (1, Nanos(2), CgroupId(3)));

    let mut cgroup = CgroupRecord {
        header: header::<CgroupRecord>(EventKind::CgroupMkdir, Hook::CgroupMkdir),
        id: 4,
        role: 1,
        path_len: 9,
        path: [0; CGROUP_PATH_LEN],
    };
    cgroup.path[..9].copy_from_slice(b"/kubepods");
    let Body::CgroupMkdir(cgroup) = decode(&bytes(&cgroup)).unwrap().body else { panic!() };
    assert_eq!((cgroup.id, cgroup.role, cgroup.path.as_str()), (CgroupId(4), 1, "/kubepods"));
}

#[test]
fn lengths_past_their_arrays_are_clamped_and_truncation_is_an_error() {
    let mut record = record();
    (record.nr_ancestors, record.path_len, record.args_len) = (u32::MAX, u32::MAX, u32::MAX);
    record.task.userns.uid_map.nr_extents = 340;
    let Body::Capability(event) = decode(&bytes(&record)).unwrap().body else { panic!() };
    assert_eq!((event.ancestors.len(), event.path.as_str().len()), (MAX_ANCESTORS, PATH_LEN));
    assert_eq!(event.task.userns.uid_map.extents, IdMap::default().extents);
    let all = bytes(&record);
    for end in 0..all.len() {
        assert!(decode(&all[..end]).is_err(), "{end}");
    }
    let mut unknown = record;
    unknown.detail.operation = 99;
    assert_eq!(decode(&bytes(&unknown)), Err(DecodeError::UnknownOperation(99)));
}

/// Random bytes behind a valid header never panic.
#[test]
fn random_records_never_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let template = bytes(&record());
    for _ in 0..20_000 {
        let mut mutated = template.clone();
        for _ in 0..8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = (state >> 8) as usize % mutated.len();
            mutated[at] = state as u8;
        }
        let _ = decode(&mutated);
    }
}
