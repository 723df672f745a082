//! The sweep of kernels without a task iterator: processes from procfs, their lineages from the map.
//!
//! What it finds is what the iterator finds, but later and of less:
//! - A lineage that begins here is ENTERING for the kernel, which alone knows the address of a user namespace. The
//!   process's next hook (a capability check, fork, exec, exit) brings it to INSIDE; until then this sweep is what
//!   judges it, by the inode number.
//! - Processes are judged by their first thread. Others get a lineage with it, if the kernel has pidfds of threads
//!   (`PIDFD_THREAD`, Linux 6.9), else at their next fork or exec.
//! - A process that has the host's user namespace is told of once the grace period is over, as its exact start, by
//!   which the record of its end would take that back, is not known here.
//! - Tasks that came into a pod's namespaces without coming into its cgroup are left to the hook on setns.
//! - Records that were lost are not made up for; moves out of a container's cgroup, and out of its mounts, are left to
//!   their hooks.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use thiserror::Error;
use userns_common::record::Tracked;

use crate::event::{
    Body, Cgroup, CgroupId, Event, Hook, Lineage, Nanos, ProcessId, TaskEvent, lineage, origin, reason, role,
    state,
};
use crate::host::cgroupfs::CgroupFs;
use crate::host::proc::{ProcError, ProcFs, Standing, boot_time};
use crate::kernel::lineages::Lineages;

/// A pidfd of a thread (include/uapi/linux/pidfd.h), which rustix has no name for.
const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(rustix::fs::OFlags::EXCL.bits());
/// Processes of one container that are looked for.
const MAX_PROCESSES: usize = 65_536;

/// What a sweep found.
#[derive(Debug, Default)]
pub struct Found {
    /// As the iterator would have told it.
    pub events: Vec<Event>,
    /// Processes visited.
    pub visited: u64,
    /// Of these, given a lineage because no hook had seen them enter.
    pub adopted: u64,
    /// Processes that could not be looked at, other than because they had ended.
    pub errors: u64,
    /// The first of these errors.
    pub first_error: Option<String>,
}

impl Found {
    fn count(&mut self, error: &VisitError) {
        if !matches!(error, VisitError::Proc(ProcError::Gone { .. })) {
            self.errors += 1;
            self.first_error.get_or_insert_with(|| error.to_string());
        }
    }

    fn tell(&mut self, reasons: u32, body: Body) {
        self.events.push(Event { time: boot_time(), hook: Hook::TaskIter, reasons, body });
    }
}

/// Why a process could not be looked at.
#[derive(Debug, Error)]
enum VisitError {
    #[error(transparent)]
    Proc(#[from] ProcError),
    #[error("cannot use the lineage of process {pid}: {source}")]
    Lineage { pid: u32, source: std::io::Error },
}

/// What a container has been told of: one process of each kind is enough.
#[derive(Debug, Default)]
struct Told {
    inside: bool,
    host: bool,
}

/// A process that was found with the host's user namespace.
#[derive(Debug)]
struct Entering {
    process: ProcessId,
    container: CgroupId,
    told: bool,
}

/// Visits every process by way of procfs.
#[derive(Debug)]
pub struct ProcSweep {
    proc: ProcFs,
    cgroups: CgroupFs,
    lineages: Lineages,
    host_mnt: u32,
    grace: Duration,
    told: BTreeMap<CgroupId, Told>,
    entering: BTreeMap<u32, Entering>,
}

impl ProcSweep {
    /// `host_mnt` is the mount namespace of the host's processes, `grace` how long a runtime may need to enter.
    #[must_use]
    pub fn new(proc: ProcFs, cgroups: CgroupFs, lineages: Lineages, host_mnt: u32, grace: Duration) -> Self {
        Self { proc, cgroups, lineages, host_mnt, grace, told: BTreeMap::new(), entering: BTreeMap::new() }
    }

    /// Visits every process once: learns those in `containers`, and checks those that have a lineage.
    ///
    /// # Errors
    ///
    /// [`ProcError`] if procfs cannot be listed. What fails for one process is counted.
    pub fn run(&mut self, containers: &[Cgroup]) -> Result<Found, ProcError> {
        let mut found = Found::default();
        self.told.retain(|id, _| containers.iter().any(|cgroup| cgroup.id == *id));
        let members = self.members(containers);
        let pids = self.proc.pids()?;
        self.let_go(&pids, &mut found);
        for pid in pids {
            found.visited += 1;
            if let Err(error) = self.visit(pid, members.get(&pid).copied(), &mut found) {
                found.count(&error);
            }
        }
        Ok(found)
    }

    /// The container that each process is in.
    fn members<'a>(&self, containers: &'a [Cgroup]) -> BTreeMap<u32, &'a Cgroup> {
        let mut members = BTreeMap::new();
        let mut add = |cgroup: &'a Cgroup, pids: Vec<u32>| {
            members.extend(pids.into_iter().map(|pid| (pid, cgroup)));
        };
        // a cgroup that is gone since it was walked has no processes
        for cgroup in containers {
            match cgroup.role {
                role::POD => {
                    add(cgroup, self.cgroups.own_processes(cgroup.path.as_str()).unwrap_or_default());
                }
                role::CONTAINER => add(
                    cgroup,
                    self.cgroups.processes(cgroup.path.as_str(), MAX_PROCESSES).unwrap_or_default(),
                ),
                _ => {}
            }
        }
        members
    }

    /// Takes back what was told of processes that have ended.
    fn let_go(&mut self, pids: &[u32], found: &mut Found) {
        let proc = &self.proc;
        self.entering.retain(|pid, entering| {
            let here = pids.binary_search(pid).is_ok() && proc.is(entering.process).unwrap_or(true);
            if !here {
                entering.leave(found);
            }
            here
        });
    }

    fn visit(&mut self, pid: u32, container: Option<&Cgroup>, found: &mut Found) -> Result<(), VisitError> {
        // everything that is read from here on is of this process, if it still runs when the lineage is written
        let Some(pidfd) = open(pid, PidfdFlags::empty()) else { return Ok(()) };
        let known = self.lineages.get(pidfd.as_fd()).map_err(of(pid))?;
        match (known, container) {
            (None, None) => Ok(()),
            (None, Some(container)) => self.adopt(pid, pidfd.as_fd(), container, found),
            (Some(tracked), _) if tracked.lineage.userns_inum != 0 => {
                self.entering.remove(&pid).into_iter().for_each(|entering| entering.leave(found));
                self.check(pid, pidfd.as_fd(), &tracked.lineage, found)
            }
            (Some(tracked), container) => self.check_grace(pid, &tracked.lineage, container, found),
        }
    }

    /// Begins the lineage of a process that was in a container before any hook saw it.
    fn adopt(
        &mut self,
        pid: u32,
        pidfd: BorrowedFd<'_>,
        container: &Cgroup,
        found: &mut Found,
    ) -> Result<(), VisitError> {
        let Some(standing) = self.proc.standing(pid)? else { return Ok(()) };
        let workload = self.proc.mount_namespace(pid)? != self.host_mnt;
        let pod = standing.pod();
        let new = Lineage {
            state: state::ENTERING,
            flags: if workload { lineage::WORKLOAD } else { 0 },
            origin: origin::ADOPTED,
            userns_inum: pod.map_or(0, |pod| pod.inum),
            container: container.id.0,
            entered_ns: boot_time().0,
            // those it has by now are so by the container's configuration
            foreign: pod.filter(|_| workload).map_or(0, |pod| standing.foreign(pod.inum)),
            ..Lineage::default()
        };
        let process = self.proc.process(pid)?;
        if !self.is_in(pid, container)? {
            return Ok(());
        }
        if !self.lineages.begin(pidfd, new).map_err(of(pid))? {
            return Ok(());
        }
        found.adopted += 1;
        self.adopt_threads(pid, new)?;
        let Some(pod) = pod else {
            self.entering.insert(pid, Entering { process, container: container.id, told: false });
            return Ok(());
        };
        let told = self.told.get(&container.id).is_some_and(|told| told.inside);
        if workload && pod.uid_map.nr_extents != 0 && !told {
            let event = self.describe(pid, &standing, &Lineage { state: state::INSIDE, ..new })?;
            self.told.entry(container.id).or_default().inside = true;
            found.tell(reason::FIRST_WORKLOAD, Body::Entry(Box::new(event)));
        }
        Ok(())
    }

    /// Begins the same lineage for the other threads of a process.
    fn adopt_threads(&self, pid: u32, new: Lineage) -> Result<(), VisitError> {
        for tid in self.proc.threads(pid)?.into_iter().filter(|tid| *tid != pid) {
            if let Some(pidfd) = open(tid, PIDFD_THREAD) {
                self.lineages.begin(pidfd.as_fd(), new).map_err(of(tid))?;
            }
        }
        Ok(())
    }

    /// Whether a process is still in the cgroup that it was listed in, or below. Paths of another cgroup namespace than
    /// the reader's begin with as many `/..` as lead to the root of that; the directory's name is in them all the same.
    fn is_in(&self, pid: u32, cgroup: &Cgroup) -> Result<bool, ProcError> {
        let name = cgroup.path.as_str().rsplit('/').next();
        let path = self.proc.cgroup(pid)?;
        Ok(path.is_some_and(|path| path.as_str().split('/').any(|part| Some(part) == name)))
    }

    /// Looks for what contradicts a lineage.
    fn check(
        &self,
        pid: u32,
        pidfd: BorrowedFd<'_>,
        known: &Lineage,
        found: &mut Found,
    ) -> Result<(), VisitError> {
        // one that may be a runtime's, still on its way in, is judged by a later sweep
        if known.origin == origin::ADOPTED && since_entry(known) <= self.grace {
            return Ok(());
        }
        let Some(standing) = self.proc.standing(pid)? else { return Ok(()) };
        if standing.contradicts(known).0 == 0 {
            return Ok(());
        }
        // a hook may have told it meanwhile
        let Some(now) = self.lineages.get(pidfd).map_err(of(pid))? else { return Ok(()) };
        let (reasons, foreign) = standing.contradicts(&now.lineage);
        if reasons == 0 {
            return Ok(());
        }
        let told = Lineage {
            told: now.lineage.told | reasons,
            foreign: now.lineage.foreign | foreign,
            ..now.lineage
        };
        let event = self.describe(pid, &standing, &Lineage { state: state::INSIDE, ..told })?;
        self.lineages.replace(pidfd, Tracked { lineage: told, ..now }).map_err(of(pid))?;
        found.tell(reasons, Body::Suspect(Box::new(TaskEvent { foreign, ..event })));
        Ok(())
    }

    /// Tells of a process that was adopted with the host's user namespace and still has it after the grace period.
    fn check_grace(
        &mut self,
        pid: u32,
        known: &Lineage,
        container: Option<&Cgroup>,
        found: &mut Found,
    ) -> Result<(), VisitError> {
        let waiting = self.entering.get(&pid).is_some_and(|entering| !entering.told);
        // one that was moved out again is none of the container's
        if !waiting
            || since_entry(known) <= self.grace
            || container.is_none_or(|cgroup| cgroup.id.0 != known.container)
        {
            return Ok(());
        }
        let Some(standing) = self.proc.standing(pid)? else { return Ok(()) };
        if standing.pod().is_some() {
            return Ok(());
        }
        let workload = known.flags & lineage::WORKLOAD != 0;
        let event = Box::new(self.describe(pid, &standing, known)?);
        if self.entering.get(&pid).is_none_or(|entering| entering.process != event.task.process) {
            // another one by now, with the same pid
            return Ok(());
        }
        let told = self.told.entry(CgroupId(known.container)).or_default();
        if workload && std::mem::replace(&mut told.host, true) {
            self.entering.remove(&pid);
            return Ok(());
        }
        if let Some(entering) = self.entering.get_mut(&pid) {
            entering.told = true;
        }
        if workload {
            found.tell(reason::HOST_WORKLOAD, Body::Entry(event));
        } else {
            found.tell(reason::PAST_GRACE, Body::Suspect(event));
        }
        Ok(())
    }

    fn describe(&self, pid: u32, standing: &Standing, lineage: &Lineage) -> Result<TaskEvent, ProcError> {
        let mut event = self.proc.describe(pid, standing)?;
        event.task.lineage = *lineage;
        event.task.cgroup = CgroupId(lineage.container);
        Ok(event)
    }
}

impl Entering {
    fn leave(&self, found: &mut Found) {
        if self.told {
            found.tell(0, Body::Left { process: self.process, container: self.container });
        }
    }
}

fn since_entry(lineage: &Lineage) -> Duration {
    boot_time().since(Nanos(lineage.entered_ns))
}

/// `None` if it has ended, or the kernel does not know the flags.
fn open(pid: u32, flags: PidfdFlags) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, flags).ok()
}

fn of(pid: u32) -> impl Fn(std::io::Error) -> VisitError {
    move |source| VisitError::Lineage { pid, source }
}
