//! Where a process stands in the world of user namespaces, and what of that contradicts its lineage. The checks are
//! those of the programs in the kernel (`lineage.rs` there), made from outside.

use rustix::io::Errno;
use userns_common::limits::{MAX_ANCESTORS, MAX_EXTENTS};

use super::{Ancestry, ProcError, ProcFs, Status, to_id_map};
use crate::event::{
    Ancestor, IdMap, Lineage, Namespaces, Task, TaskEvent, UserNs, lineage, namespace, reason,
};

/// Links in `/proc/PID/ns` by what stands for them.
const OWNED: [(u32, &str); 5] = [
    (namespace::MNT, "mnt"),
    (namespace::PID, "pid_for_children"),
    (namespace::NET, "net"),
    (namespace::IPC, "ipc"),
    (namespace::UTS, "uts"),
];

/// What a lineage is judged by.
#[derive(Clone, Debug)]
pub struct Standing {
    /// What `status` says.
    pub status: Status,
    /// Its user namespace.
    pub user: Ancestry,
    /// Level of the host's user namespace.
    pub host_level: u32,
    /// Map of user ids of that namespace.
    pub uid_map: IdMap,
    /// Map of group ids.
    pub gid_map: IdMap,
    /// User namespaces that own its other namespaces, by bits of [`namespace`]. What cannot be told is left out.
    pub owners: Vec<(u32, Ancestry)>,
}

impl Standing {
    /// Namespaces that are not owned by the user namespace `pod` or one below it: bits of [`namespace`].
    #[must_use]
    pub fn foreign(&self, pod: u32) -> u32 {
        let foreign = self.owners.iter().filter(|(_, owner)| !owner.holds(pod));
        foreign.fold(0, |bits, (bit, _)| bits | bit)
    }

    /// What contradicts the lineage and was not told yet: bits of [`reason`], and of [`namespace`] for foreign
    /// namespaces. A user namespace below the pod's is the pod's own business; ids in it are not judged, as they are
    /// to be compared with the map of the pod's.
    #[must_use]
    pub fn contradicts(&self, lineage: &Lineage) -> (u32, u32) {
        let pod = lineage.userns_inum;
        let untold = |bits| lineage.told & bits == 0;
        let mut reasons = 0;
        if pod == 0 {
            return (0, 0);
        }
        if !self.user.holds(pod) && untold(reason::LEFT_USERNS | reason::ACTS_OUTSIDE) {
            reasons |= reason::LEFT_USERNS;
        }
        if lineage.flags & lineage::WORKLOAD == 0 {
            return (reasons, 0);
        }
        if self.user.inum() == pod && untold(reason::ID_OUTSIDE_MAP) && self.ids_outside() {
            reasons |= reason::ID_OUTSIDE_MAP;
        }
        let foreign = self.foreign(pod) & !lineage.foreign;
        if foreign != 0 {
            reasons |= reason::FOREIGN_NAMESPACE;
        }
        (reasons, foreign)
    }

    /// The pod's user namespace; its maps only if the process is in that very namespace.
    #[must_use]
    pub fn pod(&self) -> Option<UserNs> {
        let pod = self.user.pod(self.host_level)?;
        if pod.inum != self.user.inum() {
            return Some(pod);
        }
        Some(UserNs { uid_map: self.uid_map, gid_map: self.gid_map, ..pod })
    }

    fn ids_outside(&self) -> bool {
        let ids = &self.status.ids;
        !holds(&self.uid_map, [ids.uid, ids.suid, ids.euid, ids.fsuid])
            || !holds(&self.gid_map, [ids.gid, ids.sgid, ids.egid, ids.fsgid])
    }
}

/// Whether the map holds all four ids. A map that is still empty, or of more extents than are kept, is left alone.
fn holds(map: &IdMap, ids: [u32; 4]) -> bool {
    let len = map.nr_extents as usize;
    let extents = map.extents.get(..len).unwrap_or_default();
    len == 0
        || len > MAX_EXTENTS
        || ids
            .iter()
            .all(|id| extents.iter().any(|extent| id.wrapping_sub(extent.lower_first) < extent.count))
}

impl ProcFs {
    /// Where a process stands; `None` if it has no memory of its own, or has changed its user namespace meanwhile, or
    /// procfs does not tell: then nothing can be concluded.
    ///
    /// # Errors
    ///
    /// [`ProcError`]
    pub fn standing(&self, pid: u32) -> Result<Option<Standing>, ProcError> {
        let Some(user) = self.ancestry(pid)? else { return Ok(None) };
        let mut owners = Vec::new();
        for (bit, kind) in OWNED {
            match self.owner(pid, kind) {
                Ok(owner) => owners.extend(owner.map(|owner| (bit, owner))),
                // a pid namespace for children has none before the first of them (pidns_for_children_get)
                Err(ProcError::Gone { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let status = self.status(pid)?;
        let (uid_map, gid_map) = (to_id_map(&self.uid_map(pid)?), to_id_map(&self.gid_map(pid)?));
        let same = self.user_namespace(pid)? == user.inum();
        let alive = self.has_memory(pid)?;
        Ok((same && alive).then_some(Standing {
            status,
            user,
            host_level: self.host_level,
            uid_map,
            gid_map,
            owners,
        }))
    }

    /// Whether it is neither a kernel thread nor a zombie.
    fn has_memory(&self, pid: u32) -> Result<bool, ProcError> {
        match std::fs::read_link(self.path(pid, "exe")) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(false),
            Err(source) => Err(super::error(pid, self.path(pid, "exe"), source)),
        }
    }

    /// Inode number of its mount namespace.
    ///
    /// # Errors
    ///
    /// [`ProcError`]
    pub fn mount_namespace(&self, pid: u32) -> Result<u32, ProcError> {
        self.namespace(pid, "mnt")
    }

    /// The process as the kernel's records have it, with neither lineage nor cgroup.
    ///
    /// # Errors
    ///
    /// [`ProcError`]
    pub fn describe(&self, pid: u32, standing: &Standing) -> Result<TaskEvent, ProcError> {
        let of = |kind| self.namespace(pid, kind).unwrap_or(0);
        let ns = Namespaces {
            mnt: of("mnt"),
            pid: of("pid_for_children"),
            net: of("net"),
            ipc: of("ipc"),
            uts: of("uts"),
            cgroup: of("cgroup"),
        };
        let Standing { status, uid_map, gid_map, .. } = standing;
        let executable = self.executable(pid)?.unwrap_or_default();
        let task = Task {
            process: self.process(pid)?,
            tid: pid,
            ns_pid: status.ns_pids.last().copied(),
            overridden: false,
            ids: status.ids,
            caps: status.caps,
            userns: UserNs { uid_map: *uid_map, gid_map: *gid_map, ..standing.user.userns() },
            pod_userns: standing.pod(),
            ns,
            image: executable.image,
            comm: self.comm(pid)?,
            ..Task::default()
        };
        Ok(TaskEvent {
            task,
            ancestors: self.ancestors(status.ppid),
            path: executable.path,
            args: self.cmdline(pid)?,
            ..TaskEvent::default()
        })
    }

    /// The processes from `pid` upwards, as far as they can be read.
    fn ancestors(&self, mut pid: u32) -> Vec<Ancestor> {
        let mut ancestors = Vec::new();
        while pid != 0 && ancestors.len() < MAX_ANCESTORS {
            let (Ok(status), Ok(process)) = (self.status(pid), self.process(pid)) else { break };
            let comm = self.comm(pid).unwrap_or_default();
            ancestors.push(Ancestor { process, euid: status.ids.euid, comm });
            pid = status.ppid;
        }
        ancestors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Extent, Ids};

    const POD: u32 = 4_026_532_000;
    const FIRST: u32 = 65_536;

    fn below(inums: &[u32]) -> Ancestry {
        Ancestry::new(inums.iter().map(|inum| (*inum, 0)).collect())
    }

    fn standing(user: &[u32], id: u32) -> Standing {
        let map = to_id_map(&[Extent { first: 0, lower_first: FIRST, count: 65_536 }]);
        let ids = Ids { uid: id, gid: id, suid: id, sgid: id, euid: id, egid: id, fsuid: id, fsgid: id };
        Standing {
            status: Status { ids, ..Status::default() },
            host_level: 0,
            user: below(user),
            uid_map: map,
            gid_map: map,
            owners: OWNED.iter().map(|(bit, _)| (*bit, below(&[POD]))).collect(),
        }
    }

    fn workload() -> Lineage {
        Lineage { userns_inum: POD, flags: lineage::WORKLOAD, ..Lineage::default() }
    }

    #[test]
    fn a_process_in_its_pods_namespace_or_below_it_contradicts_nothing() {
        for user in [&[POD][..], &[7, POD], &[8, 7, POD]] {
            assert_eq!(standing(user, FIRST).contradicts(&workload()), (0, 0), "{user:?}");
        }
        assert_eq!(standing(&[], 0).contradicts(&Lineage::default()), (0, 0), "its namespace is not known");
    }

    #[test]
    fn credentials_that_left_are_found_and_told_once() {
        for user in [&[][..], &[9], &[7, 9]] {
            let left = standing(user, FIRST);
            assert_eq!(left.contradicts(&workload()), (reason::LEFT_USERNS, 0), "{user:?}");
            for told in [reason::LEFT_USERNS, reason::ACTS_OUTSIDE] {
                let told = Lineage { told, ..workload() };
                assert_eq!(left.contradicts(&told), (0, 0), "{user:?}");
            }
        }
    }

    #[test]
    fn ids_are_judged_in_the_pods_own_namespace_once_a_program_runs() {
        for (id, user, expected) in [
            (0, &[POD][..], reason::ID_OUTSIDE_MAP),
            (FIRST - 1, &[POD], reason::ID_OUTSIDE_MAP),
            (FIRST + 65_535, &[POD], 0),
            (0, &[7, POD], 0),
        ] {
            assert_eq!(standing(user, id).contradicts(&workload()), (expected, 0), "{id} {user:?}");
        }
        let entering = Lineage { flags: 0, ..workload() };
        assert_eq!(standing(&[POD], 0).contradicts(&entering), (0, 0));
        let unwritten = Standing { uid_map: IdMap::default(), ..standing(&[POD], FIRST) };
        assert_eq!(unwritten.contradicts(&workload()), (0, 0));
    }

    #[test]
    fn namespaces_that_became_foreign_are_found() {
        let mut seen = standing(&[POD], FIRST);
        seen.owners = vec![
            (namespace::MNT, below(&[7, POD])),
            (namespace::NET, below(&[])),
            (namespace::UTS, below(&[9])),
        ];
        let foreign = namespace::NET | namespace::UTS;
        assert_eq!(seen.contradicts(&workload()), (reason::FOREIGN_NAMESPACE, foreign));
        let host_network = Lineage { foreign: namespace::NET, ..workload() };
        assert_eq!(seen.contradicts(&host_network), (reason::FOREIGN_NAMESPACE, namespace::UTS));
        let all = Lineage { foreign, ..workload() };
        assert_eq!(seen.contradicts(&all), (0, 0));
    }

    #[test]
    fn levels_owners_and_parents_are_those_of_the_kernels_records() {
        let nested = Ancestry::new(vec![(7, 65_536), (POD, 0)]);
        let (own, pod) = (nested.userns(), nested.pod(0).unwrap());
        assert_eq!((own.inum, own.level, own.owner, own.parent_inum), (7, 2, 65_536, POD));
        assert_eq!((pod.inum, pod.level, pod.parent_inum), (POD, 1, super::super::INITIAL_USERNS));
        let host = below(&[]);
        assert_eq!((host.userns().level, host.pod(0)), (0, None));
        // on a node that is in a user namespace itself
        assert_eq!(nested.pod(1).map(|ns| (ns.inum, ns.level)), Some((7, 2)));
        assert_eq!((nested.pod(2), below(&[POD]).pod(1)), (None, None));
    }
}
