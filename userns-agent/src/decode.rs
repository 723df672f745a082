//! Bytes from a ring to an [`Event`]. Every length and number is checked; nothing is transmuted.

use thiserror::Error;
use userns_common::kind::EventKind;
use userns_common::limits::{ARGS_LEN, CGROUP_PATH_LEN, COMM_LEN, MAX_ANCESTORS, MAX_EXTENTS, PATH_LEN};
use userns_common::record::{CgroupRecord, ExitRecord, TaskRecord};

use crate::event::{
    Ancestor, Body, Call, CapSets, Cgroup, CgroupId, Event, Extent, Hook, IdMap, Ids, Image, Lineage,
    Namespaces, Nanos, Operation, ProcessId, Relation, Task, TaskEvent, Text, UserNs,
};

/// Why a record was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Shorter than its kind needs.
    #[error("record is truncated at byte {at}")]
    Truncated {
        /// Where the next read would have begun.
        at: usize,
    },
    /// The length it gives is not the length it has.
    #[error("record says {said} bytes and has {got}")]
    Length {
        /// What the header says.
        said: u32,
        /// What came.
        got: usize,
    },
    /// A kind of another version.
    #[error("unknown kind of record {0}")]
    UnknownKind(u32),
    /// A hook of another version.
    #[error("unknown hook {0}")]
    UnknownHook(u32),
    /// An operation of another version.
    #[error("unknown operation {0}")]
    UnknownOperation(u32),
    /// A relation of another version.
    #[error("unknown relation {0}")]
    UnknownRelation(u32),
}

impl DecodeError {
    /// The name used in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Truncated { .. } => "truncated",
            Self::Length { .. } => "length",
            Self::UnknownKind(_) => "unknown_kind",
            Self::UnknownHook(_) => "unknown_hook",
            Self::UnknownOperation(_) => "unknown_operation",
            Self::UnknownRelation(_) => "unknown_relation",
        }
    }
}

/// Decodes one record.
///
/// # Errors
///
/// [`DecodeError`] if the bytes are not a record of this version.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    let mut reader = Reader { bytes, at: 0 };
    let kind = reader.u32()?;
    let said = reader.u32()?;
    let kind = EventKind::try_from(kind).map_err(DecodeError::UnknownKind)?;
    let expected = size_of_kind(kind);
    // rings round lengths up to eight bytes; what follows the record is not looked at
    if said as usize != expected || bytes.len() < expected {
        return Err(DecodeError::Length { said, got: bytes.len() });
    }
    let time = Nanos(reader.u64()?);
    let hook = Hook::try_from(reader.u32()?).map_err(DecodeError::UnknownHook)?;
    let reasons = reader.u32()?;
    Ok(Event { time, hook, reasons, body: reader.body(kind)? })
}

fn size_of_kind(kind: EventKind) -> usize {
    match kind {
        EventKind::Entry
        | EventKind::Exec
        | EventKind::Inside
        | EventKind::Suspect
        | EventKind::Capability
        | EventKind::NamespaceCall => size_of::<TaskRecord>(),
        EventKind::Exit | EventKind::Left => size_of::<ExitRecord>(),
        EventKind::CgroupMkdir | EventKind::CgroupRmdir => size_of::<CgroupRecord>(),
    }
}

/// Reads fields one after the other, in the order of the shared structs.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let taken = self.bytes.get(self.at..self.at + len).ok_or(DecodeError::Truncated { at: self.at })?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let at = self.at;
        self.take(N)?.try_into().map_err(|_| DecodeError::Truncated { at })
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_ne_bytes)
    }

    fn i32(&mut self) -> Result<i32, DecodeError> {
        self.array().map(i32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_ne_bytes)
    }

    fn body(&mut self, kind: EventKind) -> Result<Body, DecodeError> {
        Ok(match kind {
            EventKind::Entry => Body::Entry(Box::new(self.task_event(false)?)),
            EventKind::Exec => Body::Exec(Box::new(self.task_event(false)?)),
            EventKind::Inside => Body::Inside(Box::new(self.task_event(false)?)),
            EventKind::Suspect => Body::Suspect(Box::new(self.task_event(false)?)),
            EventKind::Capability => Body::Capability(Box::new(self.task_event(true)?)),
            EventKind::NamespaceCall => Body::NamespaceCall(Box::new(self.task_event(true)?)),
            EventKind::Exit => {
                let (process, container) = self.gone()?;
                Body::Exit { process, container }
            }
            EventKind::Left => {
                let (process, container) = self.gone()?;
                Body::Left { process, container }
            }
            EventKind::CgroupMkdir => Body::CgroupMkdir(self.cgroup()?),
            EventKind::CgroupRmdir => Body::CgroupRmdir(self.cgroup()?),
        })
    }

    fn gone(&mut self) -> Result<(ProcessId, CgroupId), DecodeError> {
        let pid = self.u32()?;
        self.u32()?;
        let process = ProcessId { pid, start: Nanos(self.u64()?) };
        Ok((process, CgroupId(self.u64()?)))
    }

    fn cgroup(&mut self) -> Result<Cgroup, DecodeError> {
        let id = CgroupId(self.u64()?);
        let role = self.u32()?;
        let used = self.u32()? as usize;
        let path = self.take(CGROUP_PATH_LEN)?;
        Ok(Cgroup { id, role, path: Text::from_bytes(path.get(..used).unwrap_or(path)) })
    }

    fn task_event(&mut self, with_call: bool) -> Result<TaskEvent, DecodeError> {
        let task = self.task()?;
        let (call, foreign) = self.detail(with_call)?;
        let nr_ancestors = (self.u32()? as usize).min(MAX_ANCESTORS);
        let path_len = self.u32()? as usize;
        let args_len = self.u32()? as usize;
        let args_total = self.u32()? as usize;
        let mut ancestors = Vec::with_capacity(nr_ancestors);
        for index in 0..MAX_ANCESTORS {
            let ancestor = self.ancestor()?;
            if index < nr_ancestors {
                ancestors.push(ancestor);
            }
        }
        let path = self.take(PATH_LEN)?;
        let args = self.take(ARGS_LEN)?;
        let args = args.get(..args_len).unwrap_or(args);
        Ok(TaskEvent {
            task,
            call,
            foreign,
            ancestors,
            path: Text::from_bytes(path.get(..path_len).unwrap_or(path)),
            args: arguments(args),
            cut: path_len >= PATH_LEN || args_total > args_len && args_len != 0,
        })
    }

    fn task(&mut self) -> Result<Task, DecodeError> {
        let pid = self.u32()?;
        let tid = self.u32()?;
        let start = Nanos(self.u64()?);
        let ns_pid = Some(self.u32()?).filter(|pid| *pid != 0);
        let overridden = self.u32()? != 0;
        let ids = self.ids()?;
        let caps = self.caps()?;
        let userns = self.userns()?;
        let pod_userns = Some(self.userns()?).filter(|ns| ns.inum != 0);
        let ns = Namespaces {
            mnt: self.u32()?,
            pid: self.u32()?,
            net: self.u32()?,
            ipc: self.u32()?,
            uts: self.u32()?,
            cgroup: self.u32()?,
        };
        let image = Image { ino: self.u64()?, dev: self.u32()?, nlink: self.u32()? };
        let cgroup = CgroupId(self.u64()?);
        let lineage = self.lineage()?;
        let comm = Text::from_c_bytes(&self.array::<COMM_LEN>()?);
        let process = ProcessId { pid, start };
        Ok(Task {
            process,
            tid,
            ns_pid,
            overridden,
            ids,
            caps,
            userns,
            pod_userns,
            ns,
            image,
            cgroup,
            lineage,
            comm,
        })
    }

    fn ids(&mut self) -> Result<Ids, DecodeError> {
        Ok(Ids {
            uid: self.u32()?,
            gid: self.u32()?,
            suid: self.u32()?,
            sgid: self.u32()?,
            euid: self.u32()?,
            egid: self.u32()?,
            fsuid: self.u32()?,
            fsgid: self.u32()?,
        })
    }

    fn caps(&mut self) -> Result<CapSets, DecodeError> {
        Ok(CapSets {
            inheritable: self.u64()?,
            permitted: self.u64()?,
            effective: self.u64()?,
            bounding: self.u64()?,
            ambient: self.u64()?,
        })
    }

    fn userns(&mut self) -> Result<UserNs, DecodeError> {
        Ok(UserNs {
            inum: self.u32()?,
            level: self.u32()?,
            owner: self.u32()?,
            parent_inum: self.u32()?,
            uid_map: self.id_map()?,
            gid_map: self.id_map()?,
        })
    }

    fn id_map(&mut self) -> Result<IdMap, DecodeError> {
        let mut map = IdMap { nr_extents: self.u32()?, ..IdMap::default() };
        let used = if map.nr_extents as usize <= MAX_EXTENTS { map.nr_extents as usize } else { 0 };
        for index in 0..MAX_EXTENTS {
            let extent = Extent { first: self.u32()?, lower_first: self.u32()?, count: self.u32()? };
            // slots past the last one are what the memory held before: pointers, where there are more extents
            if let Some(slot) = map.extents.get_mut(index).filter(|_| index < used) {
                *slot = extent;
            }
        }
        Ok(map)
    }

    fn lineage(&mut self) -> Result<Lineage, DecodeError> {
        Ok(Lineage {
            state: self.u32()?,
            flags: self.u32()?,
            origin: self.u32()?,
            userns_inum: self.u32()?,
            userns: self.u64()?,
            container: self.u64()?,
            entered_ns: self.u64()?,
            entry_mnt: self.u64()?,
            told_caps: self.u64()?,
            foreign: self.u32()?,
            told: self.u32()?,
        })
    }

    fn ancestor(&mut self) -> Result<Ancestor, DecodeError> {
        let pid = self.u32()?;
        let euid = self.u32()?;
        let start = Nanos(self.u64()?);
        Ok(Ancestor {
            process: ProcessId { pid, start },
            euid,
            comm: Text::from_c_bytes(&self.array::<COMM_LEN>()?),
        })
    }

    /// The operation, where there is one, and the namespaces that were found to be foreign.
    fn detail(&mut self, wanted: bool) -> Result<(Option<Call>, u32), DecodeError> {
        let operation = self.u32()?;
        let code = self.u32()?;
        let relation = self.u32()?;
        let ret = self.i32()?;
        let target_inum = self.u32()?;
        let target_level = self.u32()?;
        let syscall = u32::try_from(self.i32()?).ok();
        let foreign = self.u32()?;
        let flags = self.u64()?;
        self.u64()?;
        if !wanted {
            return Ok((None, foreign));
        }
        let operation = Operation::try_from(operation).map_err(DecodeError::UnknownOperation)?;
        let relation = Relation::try_from(relation).map_err(DecodeError::UnknownRelation)?;
        let capability = (operation == Operation::Capability).then_some(code);
        let call = Call { operation, capability, relation, ret, target_inum, target_level, syscall, flags };
        Ok((Some(call), foreign))
    }
}

/// Splits NUL-separated arguments. The last one may lack its NUL, if it was cut.
fn arguments(bytes: &[u8]) -> Vec<Text> {
    if bytes.is_empty() {
        return Vec::new();
    }
    let ended = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    ended.split(|byte| *byte == 0).map(Text::from_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_or_foreign_bytes_are_errors() {
        assert_eq!(decode(&[]), Err(DecodeError::Truncated { at: 0 }));
        assert_eq!(decode(&[0; 64]), Err(DecodeError::UnknownKind(0)));
        let mut exit = [0; 48];
        exit[0] = 3;
        assert_eq!(decode(&exit), Err(DecodeError::Length { said: 0, got: 48 }));
        exit[4] = 48;
        assert_eq!(decode(&exit), Err(DecodeError::UnknownHook(0)));
        exit[16] = 3;
        assert!(decode(&exit).is_ok());
        assert_eq!(decode(&exit[..40]), Err(DecodeError::Length { said: 48, got: 40 }));
    }

    #[test]
    fn arguments_split_at_nul() {
        let texts =
            |bytes: &[u8]| arguments(bytes).iter().map(|text| text.as_str().to_owned()).collect::<Vec<_>>();
        assert_eq!(texts(b"sh\0-c\0id\0"), ["sh", "-c", "id"]);
        assert_eq!(texts(b"sh\0\0cut"), ["sh", "", "cut"]);
        assert!(texts(b"").is_empty());
    }
}
