//! Lineages of tasks, from outside: a map of task storage is keyed by pidfd here (kernel/bpf/bpf_task_storage.c), for
//! which aya has no type.

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use aya::maps::{Map, MapData};
use rustix::io::Errno;
use userns_common::record::{Lineage, Tracked};

/// Commands and flags of bpf(2) (include/uapi/linux/bpf.h).
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_NOEXIST: u64 = 1;
const BPF_EXIST: u64 = 2;

/// The lineages that the programs keep.
#[derive(Debug)]
pub struct Lineages {
    map: OwnedFd,
}

impl Lineages {
    /// Those of a loaded object's map.
    ///
    /// # Errors
    ///
    /// When the map is missing or its descriptor cannot be duplicated.
    pub(super) fn of(map: Option<&Map>) -> std::io::Result<Self> {
        use std::os::fd::AsFd as _;
        let data: &MapData = match map {
            Some(Map::Unsupported(data)) => data,
            _ => return Err(std::io::Error::other("the embedded object has no map LINEAGES")),
        };
        Ok(Self { map: data.fd().as_fd().try_clone_to_owned()? })
    }

    /// What is kept of a process's first thread; `None` if nothing is, or it has ended.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn get(&self, pidfd: BorrowedFd<'_>) -> std::io::Result<Option<Tracked>> {
        let mut tracked = Tracked::default();
        match self.call(BPF_MAP_LOOKUP_ELEM, pidfd, &mut tracked, 0) {
            Ok(()) => Ok(Some(tracked)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Begins a lineage; false if there is one already, or the process has ended.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn begin(&self, pidfd: BorrowedFd<'_>, lineage: Lineage) -> std::io::Result<bool> {
        let mut tracked = Tracked { lineage, ..Tracked::default() };
        match self.call(BPF_MAP_UPDATE_ELEM, pidfd, &mut tracked, BPF_NOEXIST) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST | Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Replaces what is kept of a process. What a program notes at the same time can be lost.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn replace(&self, pidfd: BorrowedFd<'_>, mut tracked: Tracked) -> std::io::Result<()> {
        match self.call(BPF_MAP_UPDATE_ELEM, pidfd, &mut tracked, BPF_EXIST) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn call(
        &self,
        command: libc::c_long,
        pidfd: BorrowedFd<'_>,
        value: &mut Tracked,
        flags: u64,
    ) -> Result<(), Errno> {
        let key: i32 = pidfd.as_raw_fd();
        // union bpf_attr of both commands: map_fd, key, value, flags
        let attribute: [u64; 4] = [
            u64::from(self.map.as_raw_fd().unsigned_abs()),
            (&raw const key) as u64,
            (&raw mut *value) as u64,
            flags,
        ];
        // SAFETY: key and value are as large as the map's (a descriptor and `Tracked`, of which the map is made) and
        // live until the call returns; any bytes are a `Tracked`, which holds integers only.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_ptr(), size_of_val(&attribute)) };
        if result == 0 {
            Ok(())
        } else {
            let code = std::io::Error::last_os_error().raw_os_error().unwrap_or_default();
            Err(Errno::from_raw_os_error(code))
        }
    }
}
