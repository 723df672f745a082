//! Inputs as bytes. Each field of each type is named here once, for writing and for reading: a field that is added
//! elsewhere does not compile before it has its place here, and then [`super::VERSION`] is to be raised.

use std::collections::BTreeMap;
use std::time::Duration;

use userns_common::limits::MAX_EXTENTS;

use crate::core::Limits;
use crate::event::{
    AggregateKey, AggregateValue, Ancestor, Body, Budget, Call, CapSets, Cgroup, CgroupId, ContainerKind,
    ContainerSpec, Event, Exception, Extent, Fact, Hook, IdMap, Ids, Image, Input, KubeletRecord, Lineage,
    Namespaces, Nanos, Operation, Owner, PodSource, PodSpec, PodUid, Policy, ProcessId, Reference, Relation,
    RuleSetting, Sandbox, SecurityContext, Task, TaskEvent, Text, Told, ToldCall, ToldCapability, UserNs,
    UsernsMode, Volume,
};

/// Memory that the lists of one entry may take: a byte of the file can be a whole text or pod in memory.
const MAX_MEMORY: usize = 256 << 20;

/// What is wrong with bytes that should be a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// They end too early.
    #[error("it ends in the middle of a value")]
    Short,
    /// A number is larger than its place.
    #[error("a number is too large")]
    Range,
    /// A number that should name something names nothing.
    #[error("{0} names nothing")]
    Unknown(u64),
    /// A text is no UTF-8, or no UID.
    #[error("a text is malformed")]
    Text,
    /// It would take more memory than any entry of an agent does.
    #[error("it would take more memory than is given to an entry")]
    Memory,
    /// There is more than the value.
    #[error("something follows the value")]
    Trailing,
}

/// Bytes still to be read, and memory still to be given to what is read.
#[derive(Debug)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8], usize);

impl<'a> Bytes<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes, MAX_MEMORY)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, Malformed> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(Malformed::Short)?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Malformed::Range);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed::Range)
    }

    /// A length, which is at most that of what is left: every entry takes a byte.
    fn length(&mut self) -> Result<usize, Malformed> {
        let length = usize::try_from(self.number()?).map_err(|_| Malformed::Range)?;
        if length > self.0.len() { Err(Malformed::Short) } else { Ok(length) }
    }

    /// The length of a list of these, for which there is memory.
    fn list<T>(&mut self) -> Result<usize, Malformed> {
        let length = self.length()?;
        let left = length.checked_mul(size_of::<T>()).and_then(|taken| self.1.checked_sub(taken));
        self.1 = left.ok_or(Malformed::Memory)?;
        Ok(length)
    }
}

/// Appends a number: seven bits a byte, the lowest first.
pub(super) fn number(mut number: u64, out: &mut Vec<u8>) {
    while number > 0x7f {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// A value as bytes.
pub(super) trait Code: Sized {
    fn write(&self, out: &mut Vec<u8>);
    fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed>;
}

macro_rules! numbers {
    ($($type:ty),+) => {$(
        impl Code for $type {
            fn write(&self, out: &mut Vec<u8>) {
                number(u64::from(*self), out);
            }

            fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
                Self::try_from(bytes.number()?).map_err(|_| Malformed::Range)
            }
        }
    )+};
}

numbers!(u8, u16, u32, u64);

impl Code for usize {
    fn write(&self, out: &mut Vec<u8>) {
        number(*self as u64, out);
    }

    fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
        Self::try_from(bytes.number()?).map_err(|_| Malformed::Range)
    }
}

impl Code for i64 {
    fn write(&self, out: &mut Vec<u8>) {
        // small numbers of either sign are short
        number((self.cast_unsigned() << 1) ^ (self >> 63).cast_unsigned(), out);
    }

    fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
        let number = bytes.number()?;
        Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }
}

impl Code for i32 {
    fn write(&self, out: &mut Vec<u8>) {
        i64::from(*self).write(out);
    }

    fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
        Self::try_from(i64::read(bytes)?).map_err(|_| Malformed::Range)
    }
}

impl Code for bool {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
        match bytes.number()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Malformed::Unknown(other)),
        }
    }
}

impl Code for Duration {
    fn write(&self, out: &mut Vec<u8>) {
        u64::try_from(self.as_nanos()).unwrap_or(u64::MAX).write(out);
    }

    fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
        Ok(Self::from_nanos(u64::read(bytes)?))
    }
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    text.len().write(out);
    out.extend_from_slice(text.as_bytes());
}

fn read_text<'a>(bytes: &mut Bytes<'a>) -> Result<&'a str, Malformed> {
    let length = bytes.length()?;
    std::str::from_utf8(bytes.take(length)?).map_err(|_| Malformed::Text)
}

impl Code for String {
    fn write(&self, out: &mut Vec<u8>) {
        write_text(self, out);
    }

    fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
        read_text(bytes).map(str::to_owned)
    }
}

impl Code for Text {
    fn write(&self, out: &mut Vec<u8>) {
        write_text(self.as_str(), out);
    }

    fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
        read_text(bytes).map(Self::from)
    }
}

impl Code for PodUid {
    fn write(&self, out: &mut Vec<u8>) {
        write_text(self.as_str(), out);
    }

    fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
        match read_text(bytes)? {
            "" => Ok(Self::default()),
            text => Self::parse(text).ok_or(Malformed::Text),
        }
    }
}

impl<T: Code> Code for Option<T> {
    fn write(&self, out: &mut Vec<u8>) {
        self.is_some().write(out);
        if let Some(value) = self {
            value.write(out);
        }
    }

    fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
        bool::read(bytes)?.then(|| T::read(bytes)).transpose()
    }
}

impl<T: Code> Code for Box<T> {
    fn write(&self, out: &mut Vec<u8>) {
        T::write(self, out);
    }

    fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
        T::read(bytes).map(Self::new)
    }
}

impl<T: Code> Code for Vec<T> {
    fn write(&self, out: &mut Vec<u8>) {
        self.len().write(out);
        self.iter().for_each(|value| value.write(out));
    }

    fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
        let length = bytes.list::<T>()?;
        let mut list = Self::with_capacity(length);
        for _ in 0..length {
            list.push(T::read(bytes)?);
        }
        Ok(list)
    }
}

impl<K: Code + Ord, V: Code> Code for BTreeMap<K, V> {
    fn write(&self, out: &mut Vec<u8>) {
        self.len().write(out);
        for (key, value) in self {
            key.write(out);
            value.write(out);
        }
    }

    fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
        (0..bytes.list::<(K, V)>()?).map(|_| Ok((K::read(bytes)?, V::read(bytes)?))).collect()
    }
}

impl<A: Code, B: Code> Code for (A, B) {
    fn write(&self, out: &mut Vec<u8>) {
        self.0.write(out);
        self.1.write(out);
    }

    fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
        Ok((A::read(bytes)?, B::read(bytes)?))
    }
}

impl Code for IdMap {
    fn write(&self, out: &mut Vec<u8>) {
        let Self { nr_extents, extents } = self;
        nr_extents.write(out);
        let used = usize::try_from(*nr_extents).unwrap_or(MAX_EXTENTS);
        extents.iter().take(used).for_each(|extent| extent.write(out));
    }

    fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
        let mut map = Self { nr_extents: u32::read(bytes)?, ..Self::default() };
        let used = usize::try_from(map.nr_extents).unwrap_or(MAX_EXTENTS);
        for extent in map.extents.iter_mut().take(used) {
            *extent = Extent::read(bytes)?;
        }
        Ok(map)
    }
}

/// Types with these fields, in this order.
macro_rules! fields {
    ($($type:ident { $($field:ident),+ $(,)? })+) => {$(
        impl Code for $type {
            fn write(&self, out: &mut Vec<u8>) {
                let Self { $($field),+ } = self;
                $($field.write(out);)+
            }

            fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
                Ok(Self { $($field: Code::read(bytes)?),+ })
            }
        }
    )+};
}

/// Types with one field that has no name.
macro_rules! wrappers {
    ($($type:ident)+) => {$(
        impl Code for $type {
            fn write(&self, out: &mut Vec<u8>) {
                self.0.write(out);
            }

            fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
                Code::read(bytes).map(Self)
            }
        }
    )+};
}

/// Choices, by their numbers.
macro_rules! choices {
    ($($type:ident { $($number:literal: $variant:ident $(($($part:ident),+))? $({ $($field:ident),+ })?),+ $(,)? })+) => {$(
        impl Code for $type {
            fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant $(($($part),+))? $({ $($field),+ })? => {
                        number($number, out);
                        $($($part.write(out);)+)?
                        $($($field.write(out);)+)?
                    })+
                }
            }

            fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
                match bytes.number()? {
                    $($number => {
                        $($(let $part = Code::read(bytes)?;)+)?
                        $($(let $field = Code::read(bytes)?;)+)?
                        Ok(Self::$variant $(($($part),+))? $({ $($field),+ })?)
                    })+
                    other => Err(Malformed::Unknown(other)),
                }
            }
        }
    )+};
}

/// What the kernel's side numbers as well.
macro_rules! stable {
    ($($type:ident)+) => {$(
        impl Code for $type {
            fn write(&self, out: &mut Vec<u8>) {
                (*self as u32).write(out);
            }

            fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
                Self::try_from(u32::read(bytes)?).map_err(|number| Malformed::Unknown(number.into()))
            }
        }
    )+};
}

wrappers! { Nanos CgroupId }

stable! { Hook Operation Relation }

fields! {
    ProcessId { pid, start }
    Extent { first, lower_first, count }
    UserNs { inum, level, owner, parent_inum, uid_map, gid_map }
    Ids { uid, gid, suid, sgid, euid, egid, fsuid, fsgid }
    CapSets { inheritable, permitted, effective, bounding, ambient }
    Lineage {
        state, flags, origin, userns_inum, userns, container, entered_ns, entry_mnt, told_caps, foreign, told,
    }
    Image { ino, dev, nlink }
    Namespaces { mnt, pid, net, ipc, uts, cgroup }
    Budget { since_ns, used, withheld_execs, withheld_exits }
    AggregateKey { container, operation, code, relation, verdict, state, workload, everyday, reserved }
    AggregateValue { count, first_ns, last_ns, last_tgid, last_syscall }
    Task {
        process, tid, ns_pid, overridden, ids, caps, userns, pod_userns, ns, image, cgroup, lineage, comm,
    }
    Ancestor { process, euid, comm }
    Call { operation, capability, relation, ret, target_inum, target_level, syscall, flags }
    TaskEvent { task, call, foreign, ancestors, path, args, cut }
    Event { time, hook, reasons, body }
    Cgroup { id, role, path }
    KubeletRecord { uid_mappings, gid_mappings }
    PodSpec {
        uid, mirror_uid, namespace, name, labels, owner, service_account, runtime_class, host_users, host_network,
        host_pid, host_ipc, security, containers, volumes,
    }
    Owner { kind, name }
    ContainerSpec { name, kind, image, image_digest, id, security }
    SecurityContext {
        privileged, run_as_user, run_as_group, run_as_non_root, allow_privilege_escalation,
        read_only_root_filesystem, proc_mount, capabilities_add, capabilities_drop, seccomp_profile,
        app_armor_profile,
    }
    Volume { name, source, host_path }
    Sandbox { id, pod, userns_mode, uid_mappings, gid_mappings, created_at }
    Told { id, container, first, last, count, severity, capabilities, calls }
    ToldCapability { capability, granted, count, syscall }
    ToldCall { operation, ret, count }
    Policy { rules, exceptions }
    RuleSetting { rule, enabled, severity, threshold }
    Exception {
        name, rules, namespaces, labels, images, service_accounts, executables, silences_credential_escape, expires,
    }
    Reference { inum, level, uid_map, gid_map }
    Limits { grace, enrich_wait, containers, processes }
}

choices! {
    PodSource { 0: Api, 1: KubeletApi, 2: PodsFile, 3: Cri }
    ContainerKind { 0: Container, 1: Init, 2: Sidecar, 3: Ephemeral, 4: Sandbox }
    UsernsMode { 0: Unknown, 1: Node, 2: Pod }
    Body {
        0: Entry(task), 1: Exec(task), 2: Inside(task), 3: Suspect(task), 4: Capability(task), 5: NamespaceCall(task),
        6: Exit { process, container }, 7: Left { process, container }, 8: CgroupMkdir(cgroup), 9: CgroupRmdir(cgroup),
    }
    Fact {
        0: CgroupSeen(cgroup), 1: CgroupWalkDone { started }, 2: KubeletRecord { uid, record }, 3: Pods(source, specs),
        4: Pod(source, spec), 5: PodGone(source, uid), 6: Sandboxes(sandboxes), 7: Sandbox(sandbox), 8: SandboxGone(id),
        9: RuntimeImages(images), 10: MonitorImages(images), 11: Aggregates(rows), 12: Budgets(rows), 13: Told(told),
        14: Policy(policy),
    }
    Input { 0: Event(event), 1: Fact(time, fact), 2: Tick(time) }
}
