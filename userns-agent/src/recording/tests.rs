//! What was written is read, and what is broken is told.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use userns_common::limits::MAX_EXTENTS;

use super::replay::{Change, Findings, Said, diff};
use super::writer::QUEUE;
use super::*;
use crate::core::Limits;
use crate::event::{
    AggregateKey, AggregateValue, Ancestor, Body, Budget, Call, CapSets, Cgroup, CgroupId, ContainerKind,
    ContainerSpec, Event, Exception, Extent, Fact, Hook, IdMap, Ids, Image, KubeletRecord, Lineage,
    Namespaces, Nanos, Operation, Owner, PodSource, PodSpec, PodUid, Policy, ProcessId, Relation,
    RuleSetting, Sandbox, SecurityContext, Task, TaskEvent, Text, Told, ToldCall, ToldCapability, UserNs,
    UsernsMode, Volume,
};
use crate::sink::Metrics;

/// Values of every kind, numbers of every length.
struct Any(fastrand::Rng);

impl Any {
    fn number(&mut self) -> u64 {
        self.0.u64(..) >> self.0.u32(0..64)
    }

    fn small(&mut self) -> u32 {
        (self.number() & 0xffff_ffff) as u32
    }

    fn bool(&mut self) -> bool {
        self.0.bool()
    }

    fn string(&mut self) -> String {
        let length = self.0.usize(0..12);
        (0..length).map(|_| self.0.char(..)).collect()
    }

    fn text(&mut self) -> Text {
        Text::from(self.string().as_str())
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.bool().then(|| make(self))
    }

    fn list<T>(&mut self, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.0.usize(0..4)).map(|_| make(self)).collect()
    }

    fn labels(&mut self) -> BTreeMap<String, String> {
        self.list(|any| (any.string(), any.string())).into_iter().collect()
    }

    fn uid(&mut self) -> PodUid {
        PodUid::parse(&format!("{:08x}-6f1d-4f3e-9d5c-2f1f4f1a7c11", self.small())).unwrap()
    }

    fn process(&mut self) -> ProcessId {
        ProcessId { pid: self.small(), start: Nanos(self.number()) }
    }

    fn extent(&mut self) -> Extent {
        Extent { first: self.small(), lower_first: self.small(), count: self.small() }
    }

    fn map(&mut self) -> IdMap {
        let mut map = IdMap { nr_extents: self.0.u32(0..9), ..IdMap::default() };
        let used = usize::try_from(map.nr_extents).unwrap().min(MAX_EXTENTS);
        map.extents[..used].fill_with(|| self.extent());
        map
    }

    fn userns(&mut self) -> UserNs {
        UserNs {
            inum: self.small(),
            level: self.small(),
            owner: self.small(),
            parent_inum: self.small(),
            uid_map: self.map(),
            gid_map: self.map(),
        }
    }

    fn image(&mut self) -> Image {
        Image { ino: self.number(), dev: self.small(), nlink: self.small() }
    }

    fn choice<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.0.usize(..all.len())]
    }

    fn ids(&mut self) -> Ids {
        let [uid, gid, suid, sgid, euid, egid, fsuid, fsgid] = std::array::from_fn(|_| self.small());
        Ids { uid, gid, suid, sgid, euid, egid, fsuid, fsgid }
    }

    fn lineage(&mut self) -> Lineage {
        Lineage {
            state: self.small(),
            flags: self.small(),
            origin: self.small(),
            userns_inum: self.small(),
            userns: self.number(),
            container: self.number(),
            entered_ns: self.number(),
            entry_mnt: self.number(),
            told_caps: self.number(),
            foreign: self.small(),
            told: self.small(),
        }
    }

    fn call(&mut self) -> Call {
        Call {
            operation: self.choice(Operation::ALL),
            capability: self.maybe(Self::small),
            relation: self.choice(Relation::ALL),
            ret: self.small().cast_signed(),
            target_inum: self.small(),
            target_level: self.small(),
            syscall: self.maybe(Self::small),
            flags: self.number(),
        }
    }

    fn task_event(&mut self) -> Box<TaskEvent> {
        let [inheritable, permitted, effective, bounding, ambient] = std::array::from_fn(|_| self.number());
        let [mnt, pid, net, ipc, uts, cgroup] = std::array::from_fn(|_| self.small());
        let task = Task {
            process: self.process(),
            tid: self.small(),
            ns_pid: self.maybe(Self::small),
            overridden: self.bool(),
            ids: self.ids(),
            caps: CapSets { inheritable, permitted, effective, bounding, ambient },
            userns: self.userns(),
            pod_userns: self.maybe(Self::userns),
            ns: Namespaces { mnt, pid, net, ipc, uts, cgroup },
            image: self.image(),
            cgroup: CgroupId(self.number()),
            lineage: self.lineage(),
            comm: self.text(),
        };
        Box::new(TaskEvent {
            task,
            call: self.maybe(Self::call),
            foreign: self.small(),
            ancestors: self.list(|any| Ancestor {
                process: any.process(),
                euid: any.small(),
                comm: any.text(),
            }),
            path: self.text(),
            args: self.list(Self::text),
            cut: self.bool(),
        })
    }

    fn cgroup(&mut self) -> Cgroup {
        Cgroup { id: CgroupId(self.number()), role: self.small(), path: self.text() }
    }

    fn body(&mut self) -> Body {
        let (process, container) = (self.process(), CgroupId(self.number()));
        match self.0.u32(0..10) {
            0 => Body::Entry(self.task_event()),
            1 => Body::Exec(self.task_event()),
            2 => Body::Inside(self.task_event()),
            3 => Body::Suspect(self.task_event()),
            4 => Body::Capability(self.task_event()),
            5 => Body::NamespaceCall(self.task_event()),
            6 => Body::Exit { process, container },
            7 => Body::Left { process, container },
            8 => Body::CgroupMkdir(self.cgroup()),
            _ => Body::CgroupRmdir(self.cgroup()),
        }
    }

    fn security(&mut self) -> SecurityContext {
        SecurityContext {
            privileged: self.maybe(Self::bool),
            run_as_user: self.maybe(|any| any.number().cast_signed()),
            run_as_group: self.maybe(|any| any.number().cast_signed()),
            run_as_non_root: self.maybe(Self::bool),
            allow_privilege_escalation: self.maybe(Self::bool),
            read_only_root_filesystem: self.maybe(Self::bool),
            proc_mount: self.maybe(Self::string),
            capabilities_add: self.list(Self::string),
            capabilities_drop: self.list(Self::string),
            seccomp_profile: self.maybe(Self::string),
            app_armor_profile: self.maybe(Self::string),
        }
    }

    fn pod(&mut self) -> PodSpec {
        PodSpec {
            uid: self.uid(),
            mirror_uid: self.maybe(Self::uid),
            namespace: self.string(),
            name: self.string(),
            labels: self.labels(),
            owner: self.maybe(|any| Owner { kind: any.string(), name: any.string() }),
            service_account: self.maybe(Self::string),
            runtime_class: self.maybe(Self::string),
            host_users: self.maybe(Self::bool),
            host_network: self.bool(),
            host_pid: self.bool(),
            host_ipc: self.bool(),
            security: self.security(),
            containers: self.list(|any| ContainerSpec {
                name: any.string(),
                kind: any.choice(&ContainerKind::ALL),
                image: any.string(),
                image_digest: any.maybe(Self::string),
                id: any.maybe(Self::string),
                security: any.security(),
            }),
            volumes: self.list(|any| Volume {
                name: any.string(),
                source: any.string(),
                host_path: any.maybe(Self::string),
            }),
        }
    }

    fn sandbox(&mut self) -> Sandbox {
        Sandbox {
            id: self.string(),
            pod: self.pod(),
            userns_mode: self.choice(&[UsernsMode::Unknown, UsernsMode::Node, UsernsMode::Pod]),
            uid_mappings: self.list(Self::extent),
            gid_mappings: self.list(Self::extent),
            created_at: self.number().cast_signed(),
        }
    }

    fn told(&mut self) -> Told {
        Told {
            id: self.number(),
            container: CgroupId(self.number()),
            first: Nanos(self.number()),
            last: Nanos(self.number()),
            count: self.number(),
            severity: self.0.u8(..),
            capabilities: self.list(|any| ToldCapability {
                capability: any.small(),
                granted: any.bool(),
                count: any.number(),
                syscall: any.maybe(Self::small),
            }),
            calls: self.list(|any| ToldCall {
                operation: any.choice(Operation::ALL),
                ret: any.small().cast_signed(),
                count: any.number(),
            }),
        }
    }

    fn policy(&mut self) -> Box<Policy> {
        Box::new(Policy {
            rules: self.list(|any| RuleSetting {
                rule: any.string(),
                enabled: any.bool(),
                severity: any.maybe(|any| any.0.u8(..)),
                threshold: any.number(),
            }),
            exceptions: self.list(|any| Exception {
                name: any.string(),
                rules: any.list(Self::string),
                namespaces: any.list(Self::string),
                labels: any.labels(),
                images: any.list(Self::string),
                service_accounts: any.list(Self::string),
                executables: any.maybe(|any| any.list(Self::image)),
                silences_credential_escape: any.bool(),
                expires: any.maybe(|any| Nanos(any.number())),
            }),
        })
    }

    fn aggregate(&mut self) -> (AggregateKey, AggregateValue) {
        let [operation, code, relation, verdict, state, workload, everyday, reserved] =
            std::array::from_fn(|_| self.0.u8(..));
        let container = self.number();
        let key = AggregateKey {
            container,
            operation,
            code,
            relation,
            verdict,
            state,
            workload,
            everyday,
            reserved,
        };
        let [count, first_ns, last_ns] = std::array::from_fn(|_| self.number());
        let (last_tgid, last_syscall) = (self.small(), self.small().cast_signed());
        (key, AggregateValue { count, first_ns, last_ns, last_tgid, last_syscall })
    }

    fn budget(&mut self) -> (CgroupId, Budget) {
        let [since_ns, used, withheld_execs, withheld_exits] = std::array::from_fn(|_| self.number());
        (CgroupId(self.number()), Budget { since_ns, used, withheld_execs, withheld_exits })
    }

    fn fact(&mut self) -> Fact {
        let source = self.choice(&PodSource::ALL);
        match self.0.u32(0..15) {
            0 => Fact::CgroupSeen(self.cgroup()),
            1 => Fact::CgroupWalkDone { started: Nanos(self.number()) },
            2 => {
                let record = self.maybe(|any| KubeletRecord {
                    uid_mappings: any.list(Self::extent),
                    gid_mappings: any.list(Self::extent),
                });
                Fact::KubeletRecord { uid: self.uid(), record }
            }
            3 => Fact::Pods(source, self.list(Self::pod)),
            4 => Fact::Pod(source, Box::new(self.pod())),
            5 => Fact::PodGone(source, self.uid()),
            6 => Fact::Sandboxes(self.list(Self::sandbox)),
            7 => Fact::Sandbox(Box::new(self.sandbox())),
            8 => Fact::SandboxGone(self.string()),
            9 => Fact::RuntimeImages(self.list(Self::image)),
            10 => Fact::MonitorImages(self.list(Self::image)),
            11 => Fact::Aggregates(self.list(Self::aggregate)),
            12 => Fact::Budgets(self.list(Self::budget)),
            13 => Fact::Told(self.list(Self::told)),
            _ => Fact::Policy(self.policy()),
        }
    }

    fn input(&mut self) -> Input {
        let time = Nanos(self.number());
        match self.0.u32(0..3) {
            0 => {
                let (hook, reasons) = (self.choice(Hook::ALL), self.small());
                Input::Event(Event { time, hook, reasons, body: self.body() })
            }
            1 => Input::Fact(time, self.fact()),
            _ => Input::Tick(time),
        }
    }
}

fn header() -> Header {
    Header {
        agent: "0.1.0".into(),
        kernel: "6.18.1".into(),
        node: "node-1".into(),
        boot: 1_767_225_600_000_000_000,
        limits: Limits {
            grace: Duration::from_secs(2),
            enrich_wait: Duration::ZERO,
            containers: 64,
            processes: 1024,
        },
        unobservable: vec!["kata*".into()],
        reference: Reference::default(),
    }
}

/// A recording of these, with a block for each.
fn recorded(inputs: &[Input]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), u64::MAX, &header()).unwrap();
    for input in inputs {
        writer.input(input).unwrap();
        writer.put(&[]).unwrap();
    }
    writer.end(Ended::Stopped).unwrap()
}

/// Everything that can be read, and what ends it.
fn read(bytes: &[u8]) -> (Vec<Entry>, Option<RecordingError>) {
    let mut entries = Vec::new();
    let mut reader = match Reader::new(Cursor::new(bytes)) {
        Ok(reader) => reader,
        Err(error) => return (entries, Some(error)),
    };
    loop {
        match reader.next() {
            Ok(Some(entry)) => entries.push(entry),
            Ok(None) => return (entries, None),
            Err(error) => return (entries, Some(error)),
        }
    }
}

#[test]
fn every_input_is_read_as_it_was_written() {
    let mut any = Any(fastrand::Rng::with_seed(7));
    let inputs: Vec<Input> = (0..3000).map(|_| any.input()).collect();
    let bytes = recorded(&inputs);
    let reader = Reader::new(Cursor::new(&bytes)).unwrap();
    assert_eq!(*reader.header(), header());
    let (entries, error) = read(&bytes);
    assert!(error.is_none(), "{error:?}");
    let expected = inputs.into_iter().map(Entry::Input).chain([Entry::End(Ended::Stopped)]);
    assert!(entries.into_iter().eq(expected));
}

#[test]
fn of_a_recording_that_is_cut_anywhere_the_beginning_is_read() {
    let mut any = Any(fastrand::Rng::with_seed(8));
    let inputs: Vec<Input> = (0..12).map(|_| any.input()).collect();
    let bytes = recorded(&inputs);
    let whole: Vec<Entry> = read(&bytes).0;
    let mut longest = 0;
    for length in 0..bytes.len() {
        let (entries, error) = read(&bytes[..length]);
        assert!(whole.starts_with(&entries) && entries.len() >= longest, "{length} bytes");
        longest = entries.len();
        match error {
            Some(RecordingError::NoRecording) => assert!(length < 10),
            Some(RecordingError::Cut { entries: read }) => assert_eq!(read, entries.len() as u64),
            Some(RecordingError::Damaged { .. }) => {}
            // the frame's own end is missing, which nothing needs
            None => assert_eq!(entries.len(), whole.len()),
            other => panic!("{length} bytes: {other:?}"),
        }
    }
    assert!(longest >= whole.len() - 1);
}

#[test]
fn a_flipped_bit_is_told_and_what_came_before_it_is_read() {
    let mut any = Any(fastrand::Rng::with_seed(9));
    let inputs: Vec<Input> = (0..8).map(|_| any.input()).collect();
    let bytes = recorded(&inputs);
    let whole = read(&bytes).0;
    for at in 0..bytes.len() {
        let mut broken = bytes.clone();
        broken[at] ^= 1 << (at % 8);
        let (entries, error) = read(&broken);
        assert!(whole.starts_with(&entries), "byte {at}");
        // but for the end of the frame, which nothing needs
        assert!(error.is_some() || entries.len() == whole.len(), "byte {at}");
    }
}

#[test]
fn what_is_none_says_so() {
    assert!(matches!(read(b"").1, Some(RecordingError::NoRecording)));
    assert!(matches!(read(b"{\"schema\": \"userns-agent/v1\"}").1, Some(RecordingError::NoRecording)));
    let mut newer = recorded(&[]);
    newer[8] = 2;
    let error = read(&newer).1.unwrap();
    assert!(error.to_string().contains("version 2, and this agent reads version 1"), "{error}");
    assert_eq!(crate::cli::ExitCode::from(&ReplayError::Recording(error)), crate::cli::ExitCode::Data);
}

#[test]
fn a_length_takes_no_memory_that_is_not_there() {
    let mut writer = Writer::new(Vec::new(), u64::MAX, &header()).unwrap();
    let mut bytes = Vec::new();
    codec::number((64 << 20) - 1, &mut bytes);
    writer.put(&bytes).unwrap();
    let (entries, error) = read(&writer.end(Ended::Stopped).unwrap());
    assert!(entries.is_empty() && matches!(error, Some(RecordingError::Cut { entries: 0 })), "{error:?}");
    // a list of a billion pods in ten bytes
    let mut entry = vec![0, 1, 0, 3, 0];
    codec::number(1 << 30, &mut entry);
    assert_eq!(whole(&entry, Entry::read), Err(Malformed::Short));
    // names of rules that are all there and all empty: a byte each in the file, and 24 times that in memory
    let count = 60 << 20;
    let mut entry = vec![0, 1, 0, 14, 0, 1, 0];
    codec::number(count, &mut entry);
    entry.resize(entry.len() + usize::try_from(count).unwrap(), 0);
    assert_eq!(whole(&entry, Entry::read), Err(Malformed::Memory));
}

#[test]
fn a_recorder_writes_what_it_took_to_a_file_of_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { path: dir.path().join("a.rec"), max_bytes: u64::MAX };
    let metrics = Arc::new(Metrics::new().unwrap());
    let mut recorder = Recorder::start(&options, &header(), Arc::clone(&metrics)).unwrap();
    for second in 0..5 {
        let now = Nanos(second * 1_000_000_000);
        recorder.take(&Input::Tick(now), now);
    }
    recorder.finish();
    let (entries, error) = read(&std::fs::read(&options.path).unwrap());
    assert!(error.is_none() && entries.len() == 6, "{error:?} {entries:?}");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&options.path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let error = Recorder::start(&options, &header(), Arc::clone(&metrics)).unwrap_err();
    assert!(error.to_string().contains("is there already"), "{error}");

    let options = Options { path: "/dev/full".into(), max_bytes: 1 };
    assert!(Recorder::start(&options, &header(), metrics).is_err());
}

/// A disk that takes nothing until it is told to.
struct Slow {
    gate: std::sync::mpsc::Receiver<()>,
    file: Arc<std::sync::Mutex<Vec<u8>>>,
    begun: bool,
}

impl std::io::Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.begun {
            // until the other end is gone
            let _ = self.gate.recv();
        }
        self.file.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.begun = true;
        Ok(())
    }
}

#[test]
fn what_a_slow_disk_does_not_take_is_marked_and_counted() {
    let (open, gate) = std::sync::mpsc::channel();
    let file = Arc::new(std::sync::Mutex::new(Vec::new()));
    let slow = Slow { gate, file: Arc::clone(&file), begun: false };
    let metrics = Arc::new(Metrics::new().unwrap());
    let writer = Writer::new(slow, u64::MAX, &header()).unwrap();
    let mut recorder = Recorder::on(writer, Path::new("x"), Arc::clone(&metrics)).unwrap();
    let all = QUEUE as u64 + 50;
    for second in 1..=all {
        let now = Nanos(second * 2_000_000_000);
        recorder.take(&Input::Tick(now), now);
    }
    drop(open);
    // the queue has room again
    while Arc::strong_count(&file) > 1 && file.lock().unwrap().len() < 200 {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(50));
    recorder.finish();
    let (entries, error) = read(&file.lock().unwrap());
    assert!(error.is_none(), "{error:?}");
    let inputs = entries.iter().filter(|entry| matches!(entry, Entry::Input(_))).count() as u64;
    let gaps: Vec<u64> = entries
        .iter()
        .filter_map(|entry| if let Entry::Gap(count) = entry { Some(*count) } else { None })
        .collect();
    assert!(gaps.len() == 1 && gaps[0] >= 40, "{gaps:?}");
    assert_eq!(inputs + gaps[0], all);
    let text = String::from_utf8(metrics.render().unwrap()).unwrap();
    assert!(text.contains(&format!("userns_recording_dropped_total {}\n", gaps[0])), "{text}");
    assert!(text.contains(&format!("userns_recording_inputs_total {inputs}\n")), "{text}");
}

/// A disk that has not taken anything when the agent stops: what is missing at the end is marked as well.
#[test]
fn what_is_missing_at_the_end_is_marked() {
    let (open, gate) = std::sync::mpsc::channel();
    let file = Arc::new(std::sync::Mutex::new(Vec::new()));
    let slow = Slow { gate, file: Arc::clone(&file), begun: false };
    let metrics = Arc::new(Metrics::new().unwrap());
    let writer = Writer::new(slow, u64::MAX, &header()).unwrap();
    let mut recorder = Recorder::on(writer, Path::new("x"), metrics).unwrap();
    let all = QUEUE as u64 + 50;
    for second in 1..=all {
        let now = Nanos(second * 2_000_000_000);
        recorder.take(&Input::Tick(now), now);
    }
    let opener = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(open);
    });
    recorder.finish();
    opener.join().unwrap();
    let (entries, error) = read(&file.lock().unwrap());
    assert!(error.is_none(), "{error:?}");
    let inputs = entries.iter().filter(|entry| matches!(entry, Entry::Input(_))).count() as u64;
    let missing = all - inputs;
    assert!(missing >= 40, "{missing}");
    assert_eq!(entries[entries.len() - 2..], [Entry::Gap(missing), Entry::End(Ended::Stopped)]);
}

#[test]
fn a_recording_ends_at_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { path: dir.path().join("a.rec"), max_bytes: 1 };
    let mut recorder = Recorder::start(&options, &header(), Arc::new(Metrics::new().unwrap())).unwrap();
    for second in 1..4 {
        let now = Nanos(second * 2_000_000_000);
        recorder.take(&Input::Tick(now), now);
        std::thread::sleep(Duration::from_millis(20));
    }
    recorder.finish();
    let (entries, error) = read(&std::fs::read(&options.path).unwrap());
    let end = [Entry::Input(Input::Tick(Nanos(2_000_000_000))), Entry::End(Ended::Full)];
    assert!(error.is_none() && entries == end, "{error:?} {entries:?}");
}

#[test]
fn what_differs_between_two_sets_of_rules_is_told() {
    let said = |severity, count| Said { rule: "I11", severity, count, why: "x".into() };
    let findings = |list: &[(&str, Said)]| -> Findings {
        list.iter().map(|(id, said)| ((*id).to_owned(), said.clone())).collect()
    };
    let old = findings(&[("a", said("low", 1)), ("b", said("low", 1)), ("c", said("low", 1))]);
    let new = findings(&[("b", said("low", 1)), ("c", said("high", 1)), ("d", said("low", 2))]);
    let changes: Vec<_> = diff(&old, &new).into_iter().collect();
    assert_eq!(
        changes,
        [
            ("a".to_owned(), Change::Removed(said("low", 1))),
            ("c".to_owned(), Change::Changed(said("low", 1), said("high", 1))),
            ("d".to_owned(), Change::Added(said("low", 2))),
        ]
    );
    assert!(diff(&old, &old).is_empty());
}

#[test]
fn two_sets_of_rules_are_compared_as_far_as_a_recording_goes() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let rules = file("rules.yaml", b"apiVersion: userns-agent/v1alpha1\nkind: RuleSet\nrules: []\n");
    let mut writer = Writer::new(Vec::new(), u64::MAX, &header()).unwrap();
    let mut entries = Vec::new();
    append(&[1, 7], &mut entries);
    writer.put(&entries).unwrap();
    let whole = writer.end(Ended::Stopped).unwrap();
    // without the end: the last block with its sums, and the end of the frame
    let recording = file("cut.rec", &whole[..whole.len() - 12]);
    let arguments = Arguments { recording, rules: vec![rules.clone(), rules], json: false };
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let error = replay(&arguments, &mut out, &mut notes).unwrap_err();
    assert!(matches!(error, ReplayError::Recording(_)), "{error}");
    let [out, notes] = [out, notes].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(out.ends_with("0 findings with the old rules, 0 with the new; 0 differ\n"), "{out:?}");
    assert!(notes.contains("7 inputs are missing in 1 places"), "{notes:?}");
}

#[test]
fn what_cannot_be_opened_says_what() {
    let arguments = Arguments { recording: Path::new("/nowhere").into(), ..Arguments::default() };
    let error = replay(&arguments, &mut Vec::new(), &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("/nowhere"), "{error}");
    assert_eq!(crate::cli::ExitCode::from(&error), crate::cli::ExitCode::NoInput);
}
