//! Fills records in ring memory and sends them; counts what could not be sent.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use userns_common::kind::{Counter, EventKind, Hook};
use userns_common::record::{Budget, CgroupRecord, Detail, ExitRecord, Header, Lineage, TaskRecord};

use crate::lineage::Found;
use crate::maps::{self, BUDGETS, BULK, EVIDENCE, count, setting};
use crate::task::{self, Task};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Which ring.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Ring {
    /// Findings rest on it.
    Evidence,
    /// Helps to explain.
    Bulk,
}

/// What to send about a task. Small enough for the stack, passed by reference.
pub(crate) struct Report {
    pub(crate) kind: EventKind,
    pub(crate) hook: Hook,
    pub(crate) ring: Ring,
    pub(crate) reasons: u32,
    /// `struct linux_binprm` at exec, else null.
    pub(crate) bprm: *const c_void,
    pub(crate) detail: Detail,
}

impl Report {
    #[inline(always)]
    pub(crate) fn new(kind: EventKind, hook: Hook, ring: Ring, reasons: u32) -> Self {
        Self {
            kind,
            hook,
            ring,
            reasons,
            bprm: core::ptr::null(),
            detail: Detail {
                operation: 0,
                code: 0,
                relation: 0,
                ret: 0,
                target_inum: 0,
                target_level: 0,
                syscall: -1,
                foreign: 0,
                flags: 0,
                fd: 0,
            },
        }
    }

    /// Evidence of what was found.
    #[inline(always)]
    pub(crate) fn of(found: Found, kind: EventKind, hook: Hook) -> Self {
        let mut report = Self::new(kind, hook, Ring::Evidence, found.reasons());
        report.detail.foreign = found.foreign();
        report
    }
}

/// What happens in containers all the time.
#[derive(Clone, Copy)]
pub(crate) enum Everyday {
    /// A program was executed.
    Exec,
    /// A process ended.
    Exit,
}

/// Whether the container may still send a bulk record this second. What it may not is counted, by kind.
#[inline(always)]
pub(crate) fn affordable(container: u64, kind: Everyday) -> bool {
    let now = now();
    let Some(budget) = BUDGETS.get_ptr_mut(container) else {
        let first = Budget { since_ns: now, used: 1, withheld_execs: 0, withheld_exits: 0 };
        if BUDGETS.insert(container, first, 0).is_err() {
            count(Counter::BudgetsFull);
        }
        return true;
    };
    // SAFETY: a row of the table. What is counted is added atomically; two CPUs that begin a second at once can at
    // worst let some records more through.
    unsafe {
        if now.wrapping_sub((*budget).since_ns) > NANOS_PER_SECOND {
            (*budget).since_ns = now;
            (*budget).used = 0;
        }
        if (*budget).used < setting!(container_budget) {
            maps::add(&raw mut (*budget).used, 1);
            return true;
        }
        let withheld = match kind {
            Everyday::Exit => &raw mut (*budget).withheld_exits,
            Everyday::Exec => &raw mut (*budget).withheld_execs,
        };
        maps::add(withheld, 1);
    }
    count(Counter::BulkMade);
    count(Counter::BulkSuppressed);
    false
}

/// Nanoseconds of `CLOCK_BOOTTIME`.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Sends a record about `task`; false if it was lost. A function of its own, so that the program's size does not grow with each call.
#[inline(never)]
pub(crate) fn task(task: Task, lineage: &Lineage, report: &Report) -> bool {
    let (made, sent, lost) = match report.ring {
        Ring::Evidence => (Counter::EvidenceMade, Counter::EvidenceSent, Counter::EvidenceLost),
        Ring::Bulk => (Counter::BulkMade, Counter::BulkSent, Counter::BulkLost),
    };
    count(made);
    let entry = match report.ring {
        Ring::Evidence => EVIDENCE.reserve(0),
        Ring::Bulk => BULK.reserve(0),
    };
    let Some(mut entry) = entry else {
        count(lost);
        return false;
    };
    // SAFETY: ring memory is initialised from the verifier's view and any bytes are a valid TaskRecord.
    let record = unsafe { &mut *entry.as_mut_ptr() };
    fill(record, task, lineage, report);
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        (),
        "record of kind {} at hook {}: task {}, lineage {}, reasons {}",
        record.header.kind,
        record.header.hook,
        record.task.tid,
        lineage.state,
        report.reasons
    );
    entry.submit(0);
    count(sent);
    true
}

#[inline(always)]
fn fill(record: &mut TaskRecord, task: Task, lineage: &Lineage, report: &Report) {
    record.header = header::<TaskRecord>(report.kind, report.hook, report.reasons);
    record.detail = report.detail;
    task.snapshot(&mut record.task);
    record.task.lineage = *lineage;
    record.nr_ancestors = task.ancestors(&mut record.ancestors);
    record.path_len = if report.bprm.is_null() {
        task.exe_name(&mut record.path)
    } else {
        task::exec_path(report.bprm, &mut record.path)
    };
    // user memory can be read of the running task only
    let own = !matches!(report.hook, Hook::TaskIter | Hook::NewTask | Hook::CgroupAttach);
    (record.args_len, record.args_total) = if own { task.arguments(&mut record.args) } else { (0, 0) };
}

#[inline(always)]
fn header<T>(kind: EventKind, hook: Hook, reasons: u32) -> Header {
    Header { kind: kind as u32, len: size_of::<T>() as u32, time_ns: now(), hook: hook as u32, reasons }
}

/// Sends word that a process ended, or left before it was inside.
#[inline(always)]
pub(crate) fn gone(kind: EventKind, hook: Hook, task: Task, container: u64) {
    count(Counter::BulkMade);
    let Some(mut entry) = BULK.reserve_untyped::<ExitRecord>(0) else {
        count(Counter::BulkLost);
        return;
    };
    let (tgid, start_ns) = task.process();
    entry.write(ExitRecord {
        header: header::<ExitRecord>(kind, hook, 0),
        tgid,
        reserved: 0,
        start_ns,
        container,
    });
    entry.submit(0);
    count(Counter::BulkSent);
}

/// Sends word of a pod's or container's cgroup.
#[inline(always)]
pub(crate) fn cgroup(kind: EventKind, hook: Hook, id: u64, role: u32, path: *const c_void) {
    count(Counter::EvidenceMade);
    let Some(mut entry) = EVIDENCE.reserve_untyped::<CgroupRecord>(0) else {
        count(Counter::EvidenceLost);
        return;
    };
    // SAFETY: as in `task`.
    let record = unsafe { &mut *entry.as_mut_ptr() };
    record.header = header::<CgroupRecord>(kind, hook, 0);
    record.id = id;
    record.role = role;
    record.path_len = task::read_str(path, &mut record.path);
    entry.submit(0);
    count(Counter::EvidenceSent);
}
