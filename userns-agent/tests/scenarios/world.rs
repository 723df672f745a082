//! A node in values: builds the inputs that a kernel and a kubelet would give, in the order they would.

use std::time::Duration;

use userns_agent::core::finding::{Finding, Status};
use userns_agent::core::rules::{RuleId, rule};
use userns_agent::core::{Engine, Limits, Output};
use userns_agent::event::{
    Ancestor, Body, Call, Cgroup, CgroupId, ContainerKind, Event, Extent, Fact, Hook, IdMap, Ids, Image,
    Input, KubeletRecord, Lineage, Nanos, Operation, PodSource, PodSpec, PodUid, ProcessId, Reference,
    Relation, Task, TaskEvent, Text, UserNs, lineage, origin, reason, role, state,
};
use userns_agent::recording::{Ended, Entry, Header, Reader, Writer};

/// Names a rule that worlds are to do without.
pub(crate) const WITHOUT: &str = "USERNS_WITHOUT_RULE";

/// Inode number of the initial user namespace.
pub(crate) const HOST_NS: u32 = 0xEFFF_FFFD;
/// An executable on the host's disk that is a runtime.
pub(crate) const RUNC: Image = Image { ino: 100, dev: 8 << 20 | 1, nlink: 1 };
/// A monitor's executable on the host's disk.
pub(crate) const CONMON: Image = Image { ino: 101, dev: 8 << 20 | 1, nlink: 1 };
/// An executable on the host's disk that is none.
pub(crate) const SLEEP: Image = Image { ino: 200, dev: 8 << 20 | 1, nlink: 1 };
/// A sealed copy of a runtime: a memfd.
pub(crate) const SEALED: Image = Image { ino: 300, dev: 1, nlink: 0 };

/// Inode number of the user namespace of a node that has one.
pub(crate) const NODE_NS: u32 = 3;
/// Host id of root in it.
pub(crate) const NODE_BASE: u32 = 1_000_000;

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000 * MS;

/// A node under observation.
pub(crate) struct World {
    engine: Engine,
    header: Header,
    /// Everything the core took in.
    inputs: Vec<Input>,
    told: Vec<Finding>,
    /// Whether the agent has stopped, which ends a recording.
    flushed: bool,
    now: u64,
    /// Everything said so far.
    pub(crate) findings: Vec<Finding>,
    /// Containers whose memory is to go.
    pub(crate) forgotten: Vec<CgroupId>,
    /// Containers that became known by name, and how long after they were made.
    pub(crate) attributed: Vec<(ContainerKind, Duration)>,
    next_cgroup: u64,
    /// Id of a rule whose findings are dropped, as if there were none such.
    without: Option<String>,
}

pub(crate) fn uid(n: u32) -> PodUid {
    PodUid::parse(&format!("{n:08x}-6f1d-4f3e-9d5c-2f1f4f1a7c11")).unwrap()
}

pub(crate) fn range(base: u32) -> IdMap {
    let mut map = IdMap { nr_extents: 1, ..IdMap::default() };
    map.extents[0] = Extent { first: 0, lower_first: base, count: 65_536 };
    map
}

pub(crate) fn record(base: u32) -> KubeletRecord {
    let list = vec![Extent { first: 0, lower_first: base, count: 65_536 }];
    KubeletRecord { uid_mappings: list.clone(), gid_mappings: list }
}

/// A task somewhere.
#[derive(Clone)]
pub(crate) struct Actor(pub(crate) TaskEvent);

impl Actor {
    /// A process with the host's namespaces and root's ids.
    pub(crate) fn host(pid: u32, image: Image, name: &str) -> Self {
        Self(TaskEvent {
            task: Task {
                process: ProcessId { pid, start: Nanos(u64::from(pid) * 10) },
                tid: pid,
                userns: UserNs { inum: HOST_NS, ..UserNs::default() },
                image,
                comm: name.into(),
                ..Task::default()
            },
            path: Text::from(name),
            args: vec![name.into()],
            ..TaskEvent::default()
        })
    }

    /// A process of a pod's user namespace whose container root is host id `base`.
    pub(crate) fn inside(pid: u32, inum: u32, base: u32) -> Self {
        let mut actor = Self::host(pid, SLEEP, "sh");
        let ns = UserNs {
            inum,
            level: 1,
            owner: base,
            parent_inum: HOST_NS,
            uid_map: range(base),
            gid_map: range(base),
        };
        let task = &mut actor.0.task;
        task.userns = ns;
        task.pod_userns = Some(ns);
        task.ids = Ids {
            uid: base,
            gid: base,
            suid: base,
            sgid: base,
            euid: base,
            egid: base,
            fsuid: base,
            fsgid: base,
        };
        task.lineage = Lineage {
            state: state::INSIDE,
            flags: lineage::WORKLOAD,
            userns_inum: inum,
            ..Lineage::default()
        };
        actor
    }

    /// The same one level deeper: the pod's user namespace lies below the node's.
    pub(crate) fn on_nested_node(mut self) -> Self {
        let task = &mut self.0.task;
        task.userns.level += 1;
        if task.userns.level == 1 {
            task.userns.inum = NODE_NS;
        } else {
            task.userns.parent_inum = NODE_NS;
            task.pod_userns = Some(task.userns);
        }
        self
    }

    pub(crate) fn entering(mut self, origin: u32) -> Self {
        self.0.task.lineage = Lineage { state: state::ENTERING, origin, ..Lineage::default() };
        self
    }

    /// A process that came into a pod's namespaces from elsewhere: it keeps the cgroup that it had.
    pub(crate) fn foreign(mut self) -> Self {
        let task = &mut self.0.task;
        task.lineage.origin = origin::FOREIGN;
        task.lineage.told = reason::ID_OUTSIDE_MAP | reason::LEFT_CGROUP;
        task.lineage.flags = 0;
        if task.lineage.state == 0 {
            task.lineage.state = state::ENTERING;
        }
        self
    }

    /// Runs this program instead.
    pub(crate) fn running(mut self, image: Image, name: &str) -> Self {
        self.0.task.image = image;
        (self.0.path, self.0.task.comm) = (name.into(), name.into());
        self
    }

    pub(crate) fn child_of(mut self, parent: &Self) -> Self {
        let process = parent.0.task.process;
        self.0.ancestors = vec![Ancestor { process, euid: 0, comm: parent.0.task.comm.clone() }];
        self
    }

    /// What host credentials look like on a process that comes from a pod.
    pub(crate) fn with_host_credentials(mut self) -> Self {
        self.0.task.userns = UserNs { inum: HOST_NS, ..UserNs::default() };
        self.0.task.pod_userns = None;
        self.0.task.ids = Ids::default();
        self
    }

    pub(crate) fn working(mut self) -> Self {
        self.0.task.lineage.flags |= lineage::WORKLOAD;
        self
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self::waiting(Duration::ZERO)
    }

    /// A world in which findings wait so long for names.
    pub(crate) fn waiting(enrich_wait: Duration) -> Self {
        Self::of(Limits { grace: Duration::from_secs(2), enrich_wait, containers: 64, processes: 1024 })
    }

    /// A world with room for so many containers and processes.
    pub(crate) fn with_tables(containers: usize, processes: usize) -> Self {
        Self::of(Limits { grace: Duration::from_secs(2), enrich_wait: Duration::ZERO, containers, processes })
    }

    fn of(limits: Limits) -> Self {
        Self::under(limits, Reference::default(), vec!["kata*".to_owned(), "gvisor".to_owned()])
    }

    fn under(limits: Limits, reference: Reference, unobservable: Vec<String>) -> Self {
        let header = Header {
            agent: "0.1.0".to_owned(),
            kernel: "6.18.0".to_owned(),
            node: "node-1".to_owned(),
            boot: 0,
            limits,
            unobservable,
            reference,
        };
        let mut world = Self {
            engine: header.engine(),
            header,
            inputs: Vec::new(),
            told: Vec::new(),
            flushed: false,
            now: SECOND,
            findings: Vec::new(),
            forgotten: Vec::new(),
            attributed: Vec::new(),
            next_cgroup: 1000,
            without: std::env::var(WITHOUT).ok(),
        };
        world.fact(Fact::RuntimeImages(vec![RUNC, CONMON]));
        world.fact(Fact::MonitorImages(vec![CONMON]));
        world
    }

    /// A node whose kubelet runs in user namespace [`NODE_NS`], where root is host id [`NODE_BASE`].
    pub(crate) fn nested() -> Self {
        let map = vec![Extent { first: 0, lower_first: NODE_BASE, count: 4_000_000 }];
        let reference = Reference { inum: NODE_NS, level: 1, uid_map: map.clone(), gid_map: map };
        let grace = Duration::from_secs(2);
        let limits = Limits { grace, enrich_wait: Duration::ZERO, containers: 64, processes: 1024 };
        Self::under(limits, reference, Vec::new())
    }

    pub(crate) fn input(&mut self, input: Input) {
        let mut out = Vec::new();
        self.inputs.push(input.clone());
        self.engine.handle(input, &mut out);
        for output in out {
            if let Output::Finding(finding) = &output {
                self.told.push((**finding).clone());
            }
            match output {
                Output::Finding(finding) if self.without.as_deref() == Some(rule(finding.rule).id) => {}
                Output::Finding(finding) => self.findings.push(*finding),
                Output::Withheld(_) => {}
                Output::Attributed(kind, took) => self.attributed.push((kind, took)),
                Output::Forget(container) => self.forgotten.push(container),
            }
        }
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The agent stops.
    pub(crate) fn flush(&mut self, out: &mut Vec<Output>) {
        self.flushed = true;
        self.engine.flush(out);
    }

    /// A recording of everything so far.
    pub(crate) fn recording(&self) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), u64::MAX, &self.header).unwrap();
        self.inputs.iter().for_each(|input| writer.input(input).unwrap());
        writer.end(Ended::Stopped).unwrap()
    }

    pub(crate) fn now(&self) -> Nanos {
        Nanos(self.now)
    }

    pub(crate) fn fact(&mut self, fact: Fact) {
        self.input(Input::Fact(Nanos(self.now), fact));
    }

    /// Lets time pass without a tick.
    pub(crate) fn skip(&mut self, nanos: u64) {
        self.now += nanos;
    }

    /// What follows was recorded so much earlier: records come by two rings.
    pub(crate) fn rewind(&mut self, nanos: u64) {
        self.now -= nanos;
    }

    /// A container's process ends, and its cgroups go.
    pub(crate) fn ends(&mut self, container: u64, pid: u32) {
        self.exits(container, pid);
        for (id, role) in [(container, role::CONTAINER), (container - 1, role::POD)] {
            let cgroup = Cgroup { id: CgroupId(id), role, path: "".into() };
            self.event(Hook::CgroupRmdir, 0, Body::CgroupRmdir(cgroup));
        }
    }

    /// Lets time pass, with a tick every 100 ms.
    pub(crate) fn pass(&mut self, nanos: u64) {
        let end = self.now + nanos;
        while self.now < end {
            self.now = (self.now + 100 * MS).min(end);
            self.input(Input::Tick(Nanos(self.now)));
        }
    }

    pub(crate) fn recorded(&mut self, n: u32, base: u32) {
        self.fact(Fact::KubeletRecord { uid: uid(n), record: Some(record(base)) });
    }

    pub(crate) fn declared(&mut self, n: u32, host_users: Option<bool>) {
        let spec = PodSpec {
            uid: uid(n),
            namespace: "default".into(),
            name: format!("pod-{n}"),
            host_users,
            ..PodSpec::default()
        };
        self.fact(Fact::Pods(PodSource::PodsFile, vec![spec]));
    }

    pub(crate) fn declared_with_class(&mut self, n: u32, class: &str) {
        let spec = PodSpec {
            uid: uid(n),
            namespace: "default".into(),
            name: format!("pod-{n}"),
            host_users: Some(false),
            runtime_class: Some(class.into()),
            ..PodSpec::default()
        };
        self.fact(Fact::Pods(PodSource::PodsFile, vec![spec]));
    }

    /// Makes a pod's and a container's cgroup, as a kubelet and a runtime would.
    pub(crate) fn container(&mut self, n: u32) -> u64 {
        self.next_cgroup += 2;
        let pod = format!("/kubepods/burstable/pod{}", uid(n));
        let id = self.next_cgroup;
        self.mkdir(id - 1, role::POD, &pod);
        self.mkdir(id, role::CONTAINER, &format!("{pod}/{id:064x}"));
        id
    }

    pub(crate) fn mkdir(&mut self, id: u64, role: u32, path: &str) {
        let cgroup = Cgroup { id: CgroupId(id), role, path: path.into() };
        self.event(Hook::CgroupMkdir, 0, Body::CgroupMkdir(cgroup));
    }

    pub(crate) fn event(&mut self, hook: Hook, reasons: u32, body: Body) {
        self.now += MS;
        self.input(Input::Event(Event { time: Nanos(self.now), hook, reasons, body }));
    }

    fn placed(&self, container: u64, actor: &Actor) -> Box<TaskEvent> {
        let mut event = actor.0.clone();
        event.task.cgroup = CgroupId(container);
        event.task.lineage.container = container;
        if event.task.lineage.entered_ns == 0 {
            event.task.lineage.entered_ns = self.now;
        }
        Box::new(event)
    }

    pub(crate) fn enters(&mut self, container: u64, actor: &Actor) {
        let event = self.placed(container, actor);
        self.event(Hook::CgroupAttach, 0, Body::Entry(event));
    }

    /// A process of a container ends.
    pub(crate) fn exits(&mut self, container: u64, pid: u32) {
        let process = ProcessId { pid, start: Nanos(u64::from(pid) * 10) };
        self.event(Hook::Exit, 0, Body::Exit { process, container: CgroupId(container) });
    }

    /// The sweep finds a workload with the host's user namespace.
    pub(crate) fn found(&mut self, container: u64, actor: &Actor) {
        let event = self.placed(container, actor);
        self.event(Hook::TaskIter, reason::HOST_WORKLOAD, Body::Entry(event));
    }

    /// A program runs; what the probe would say of it is worked out from the actor.
    pub(crate) fn execs(&mut self, container: u64, actor: &Actor) {
        let event = self.placed(container, actor);
        let reasons = match (event.task.lineage.state, event.task.lineage.flags & lineage::WORKLOAD) {
            (state::INSIDE, _) => reason::FIRST_WORKLOAD,
            (_, 0) => 0,
            _ => reason::HOST_WORKLOAD,
        };
        self.event(Hook::Exec, reasons, Body::Exec(event));
    }

    pub(crate) fn inside(&mut self, container: u64, actor: &Actor) {
        let event = self.placed(container, actor);
        self.event(Hook::Setns, 0, Body::Inside(event));
    }

    /// A program of this container joins the mount and PID namespaces of the pod with this user namespace.
    pub(crate) fn joins(&mut self, container: u64, actor: &Actor, inum: u32) {
        let mut event = self.placed(container, actor);
        event.call = Some(Call {
            operation: Operation::Setns,
            capability: None,
            relation: Relation::Pod,
            ret: 0,
            target_inum: inum,
            target_level: 1,
            syscall: None,
            flags: 0,
        });
        self.event(Hook::Setns, reason::FOREIGN_ENTRY, Body::NamespaceCall(event));
    }

    /// A task that is in no pod joins namespaces of this container.
    pub(crate) fn comes_into(&mut self, container: u64, actor: &Actor) {
        let mut event = self.placed(container, actor);
        event.task.cgroup = CgroupId(77);
        self.event(Hook::Setns, 0, Body::Entry(event));
    }

    pub(crate) fn suspect(&mut self, container: u64, actor: &Actor, hook: Hook, reasons: u32) {
        let event = self.placed(container, actor);
        self.event(hook, reasons, Body::Suspect(event));
    }

    pub(crate) fn asks(
        &mut self,
        container: u64,
        actor: &Actor,
        capability: u32,
        relation: Relation,
        ret: i32,
    ) {
        let mut event = self.placed(container, actor);
        event.call = Some(Call {
            operation: Operation::Capability,
            capability: Some(capability),
            relation,
            ret,
            target_inum: HOST_NS,
            target_level: 0,
            syscall: Some(165),
            flags: 0,
        });
        let granted = ret == 0 && relation == Relation::Host;
        self.event(Hook::Capable, if granted { reason::HOST_CAPABILITY } else { 0 }, Body::Capability(event));
    }

    pub(crate) fn calls(&mut self, container: u64, actor: &Actor, operation: Operation, ret: i32) {
        self.calls_over(container, actor, operation, ret, Relation::Pod);
    }

    /// A call that is about something of such a user namespace.
    pub(crate) fn calls_over(
        &mut self,
        container: u64,
        actor: &Actor,
        operation: Operation,
        ret: i32,
        relation: Relation,
    ) {
        let mut event = self.placed(container, actor);
        event.call = Some(Call {
            operation,
            capability: None,
            relation,
            ret,
            target_inum: if relation == Relation::Host { HOST_NS } else { 0 },
            target_level: 0,
            syscall: None,
            flags: 0,
        });
        self.event(Hook::Unshare, 0, Body::NamespaceCall(event));
    }

    /// A container start as runc does it: stage 0 is moved in, the child joins the namespace, the program runs.
    pub(crate) fn honest_start(&mut self, n: u32, pid: u32, inum: u32, base: u32) -> u64 {
        let container = self.container(n);
        let runc = Actor::host(pid, SEALED, "runc:[0:PARENT]").entering(origin::ATTACHED);
        self.enters(container, &runc);
        let mut child = Actor::inside(pid, inum, base);
        child.0.task.lineage.flags = 0;
        child.0.task.userns.uid_map = IdMap::default();
        child.0.task.pod_userns = Some(child.0.task.userns);
        child.0.task.ids = Ids::default();
        self.inside(container, &child);
        self.execs(container, &Actor::inside(pid, inum, base));
        container
    }

    /// Findings of a rule that were opened.
    pub(crate) fn opened(&self, rule: RuleId) -> Vec<&Finding> {
        self.findings
            .iter()
            .filter(|finding| finding.rule == rule && finding.status == Status::Opened)
            .collect()
    }

    /// The one finding there is, of this rule.
    pub(crate) fn only(&self, rule: RuleId) -> &Finding {
        let opened: Vec<_> =
            self.findings.iter().filter(|finding| finding.status == Status::Opened).collect();
        assert_eq!(
            opened.len(),
            1,
            "{:#?}",
            opened.iter().map(|finding| (&finding.rule, &finding.why)).collect::<Vec<_>>()
        );
        assert_eq!(opened[0].rule, rule, "{}", opened[0].why);
        opened[0]
    }

    pub(crate) fn silent(&self) {
        let said: Vec<_> = self.findings.iter().map(|finding| (finding.rule, &finding.why)).collect();
        assert!(said.is_empty(), "{said:#?}");
    }
}

/// Whatever was scenario: a recording of it, replayed, tells the same.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() || self.flushed {
            return;
        }
        let recording = self.recording();
        let mut reader = Reader::new(&recording[..]).unwrap();
        let (mut engine, mut out) = (reader.header().engine(), Vec::new());
        while let Some(entry) = reader.next().unwrap() {
            if let Entry::Input(input) = entry {
                engine.handle(input, &mut out);
            }
        }
        let told = out.iter().filter_map(|output| match output {
            Output::Finding(finding) => Some(&**finding),
            Output::Withheld(_) | Output::Attributed(..) | Output::Forget(_) => None,
        });
        assert!(told.eq(&self.told), "a replay tells something else");
    }
}
