//! Inputs of every kind.

use std::collections::BTreeMap;

use userns_common::limits::MAX_EXTENTS;

use crate::event::{
    AggregateKey, AggregateValue, Ancestor, Body, Budget, Call, CapSets, Cgroup, CgroupId, ContainerKind,
    ContainerSpec, Event, Exception, Extent, Fact, Hook, IdMap, Ids, Image, Input, KubeletRecord, Lineage,
    Namespaces, Nanos, Operation, Owner, PodSource, PodSpec, PodUid, Policy, ProcessId, Relation,
    RuleSetting, Sandbox, SecurityContext, Task, TaskEvent, Text, Told, ToldCall, ToldCapability, UserNs,
    UsernsMode, Volume,
};

/// Values of every kind, numbers of every length.
pub(super) struct Any(pub(super) fastrand::Rng);

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

    pub(super) fn input(&mut self) -> Input {
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
