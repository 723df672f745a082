//! Capability checks: the hottest hook, several thousand a second on a busy node.
//!
//! Prototypes, by preference:
//! - tracepoint `cap_capable(const struct cred *cred, struct user_namespace *target_ns,
//!   struct user_namespace *capable_ns, int cap, int ret)` (include/trace/events/capability.h, Linux 6.14)
//! - function `int cap_capable(const struct cred *cred, struct user_namespace *target_ns, int cap,
//!   unsigned int opts)` (security/commoncap.c, Linux 5.1), at its return; or at entry and return
//!
//! Order matters. A task in no pod leaves after one look at its task-local storage. A check with credentials other
//! than the task's own (overlayfs and others swap in the mounter's) leaves next: it says nothing about the task. A
//! check like the one before is kept with the task, and no table is asked.

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::{btf_tracepoint, fexit, kprobe, kretprobe};
use aya_ebpf::programs::{BtfTracePointContext, FExitContext, ProbeContext, RetProbeContext};
use userns_common::caps::{SYS_ADMIN, SYS_PTRACE, SYSLOG, holds};
use userns_common::kind::{
    Counter, EventKind, Hook, Operation, Relation, lineage as flag, reason, state, verdict,
};
use userns_common::limits::{MAX_PENDING_CHECKS, PENDING_JIFFIES};
use userns_common::record::{AggregateKey, AggregateValue, Lineage, Tracked};
use userns_common::settings::SyscallSet;

use crate::emit::{self, Report, Ring};
use crate::lineage;
use crate::maps::{self, AGGREGATES, SETTINGS, count, count_many, setting};
use crate::task::{self, Task, UserNs};

#[btf_tracepoint(function = "cap_capable")]
fn cap_capable(ctx: BtfTracePointContext) -> i32 {
    let task = Task::current();
    let Some(tracked) = task.tracked() else { return 0 };
    asked(task, tracked, ctx.arg(0), UserNs::<true>::from_arg(ctx.arg(1)), ctx.arg(3), ctx.arg(4));
    0
}

#[fexit(function = "cap_capable")]
fn cap_capable_fexit(ctx: FExitContext) -> i32 {
    let task = Task::current();
    let Some(tracked) = task.tracked() else { return 0 };
    asked(task, tracked, ctx.arg(0), UserNs::<true>::from_arg(ctx.arg(1)), ctx.arg(2), ctx.arg(4));
    0
}

#[kprobe]
fn cap_capable_kprobe(ctx: ProbeContext) -> u32 {
    let Some(tracked) = Task::current().tracked() else { return 0 };
    tracked.asked_cred = ctx.arg(0).unwrap_or(0);
    tracked.asked_target = ctx.arg(1).unwrap_or(0);
    tracked.asked_capability = ctx.arg(2).unwrap_or(0);
    0
}

#[kretprobe]
fn cap_capable_kretprobe(ctx: RetProbeContext) -> u32 {
    let task = Task::current();
    let Some(tracked) = task.tracked() else { return 0 };
    let (cred, target) = (tracked.asked_cred as *const c_void, tracked.asked_target as *const c_void);
    // the lineage began between entry and return
    if cred.is_null() {
        return 0;
    }
    let capability = tracked.asked_capability as u32;
    asked(task, tracked, cred, UserNs::<false>::from_arg(target), capability, ctx.ret());
    0
}

/// A capability check, as one number: what is counted apart within a container.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind(u32);

impl Kind {
    const PRESENT: u32 = 1 << 31;

    #[inline(always)]
    fn new(capability: u32, relation: Relation, ret: i32, everyday: bool, lineage: &Lineage) -> Self {
        let workload = u32::from(lineage.flags & flag::WORKLOAD != 0);
        let of_task = (lineage.state & 7) << 24 | workload << 27 | u32::from(everyday) << 28;
        Self(Self::PRESENT | of_task | u32::from(ret != 0) << 16 | (relation as u32) << 8 | capability & 0xff)
    }

    #[inline(always)]
    fn key(self, container: u64) -> AggregateKey {
        AggregateKey {
            container,
            operation: Operation::Capability as u8,
            code: self.0 as u8,
            relation: (self.0 >> 8) as u8,
            verdict: (self.0 >> 16) as u8 & verdict::DENIED,
            state: (self.0 >> 24) as u8 & 7,
            workload: (self.0 >> 27) as u8 & 1,
            everyday: (self.0 >> 28) as u8 & 1,
            reserved: 0,
        }
    }
}

#[inline(always)]
fn asked<const TYPED: bool>(
    task: Task,
    tracked: &mut Tracked,
    cred: *const c_void,
    target: UserNs<TYPED>,
    capability: u32,
    ret: i32,
) {
    let asked = Asked { target: target.address(), capability: capability | u32::from(ret != 0) << 8 };
    if put_off(task, tracked, cred, asked) {
        return;
    }
    if cred != task.real_cred() {
        count(Counter::ChecksOverridden);
        return;
    }
    let lineage = &mut tracked.lineage;
    let found = if lineage.state == state::INSIDE {
        lineage::check_userns(task, lineage)
    } else {
        lineage::inspect(task, lineage)
    };
    let relation = relation(target, lineage);
    let over_host = relation as u32 == Relation::Host as u32;
    let syscall =
        if over_host && matches!(capability, SYS_ADMIN | SYS_PTRACE | SYSLOG) { task.syscall() } else { -1 };
    let accounting = over_host && is_accounting(capability, syscall);
    if accounting {
        count(Counter::ChecksAccounting);
        if found.is_nothing() {
            return;
        }
    }
    let granted_over_host = over_host && ret == 0 && !accounting && is_use(lineage, capability);
    let everyday = over_host && (is_listing(capability, syscall) || is_everyday(task, capability, syscall));
    let kind = Kind::new(capability, relation, ret, everyday, lineage);
    let first = !accounting && counted(task, tracked, kind, syscall);
    // what setns is given is not among what a check is told from the next by
    if !accounting && !granted_over_host && found.is_nothing() && syscall != setting!(setns) as i32 {
        put_off_the_next(task, tracked, kind, asked, syscall);
    }
    let attempt = first && over_host && ret != 0 && !everyday && is_attempt(&tracked.lineage, capability);
    let told = granted_over_host || attempt;
    if !told {
        lineage::tell(task, &mut tracked.lineage, found, Hook::Capable);
        return;
    }
    let mut report = Report::of(found, EventKind::Capability, Hook::Capable);
    if granted_over_host {
        report.reasons |= reason::HOST_CAPABILITY;
    } else if !found.is_evidence(&tracked.lineage) {
        report.ring = Ring::Bulk;
    }
    report.detail.operation = Operation::Capability as u32;
    report.detail.code = capability;
    report.detail.relation = relation as u32;
    report.detail.ret = ret;
    report.detail.target_inum = target.inum();
    report.detail.target_level = target.level();
    report.detail.syscall = task.syscall();
    let lineage = &mut tracked.lineage;
    if emit::task(task, lineage, &report) {
        lineage::told(lineage, found);
        if granted_over_host {
            lineage.told_caps |= 1 << (capability & 63);
        }
    }
}

/// Whose user namespace `target` is, as the task sees it.
#[inline(always)]
pub(crate) fn relation<const TYPED: bool>(target: UserNs<TYPED>, lineage: &Lineage) -> Relation {
    if target.address() == lineage.userns {
        return Relation::Pod;
    }
    let host_level = setting!(host_level);
    let level = target.level();
    if level <= host_level {
        Relation::Host
    } else if level > host_level + 1 {
        Relation::Nested
    } else {
        Relation::Other
    }
}

/// Whether this use of a capability over the host is the first of its lineage that no runtime explains.
#[inline(always)]
fn is_use(lineage: &Lineage, capability: u32) -> bool {
    let entering = lineage.state == state::ENTERING && lineage.flags & flag::WORKLOAD == 0;
    lineage.told_caps & 1 << (capability & 63) == 0 && (!entering || lineage::past_grace(lineage))
}

#[inline(always)]
fn is_attempt(lineage: &Lineage, capability: u32) -> bool {
    lineage.state == state::INSIDE && holds(setting!(attempt_caps), capability)
}

/// Memory accounting asks for `CAP_SYS_ADMIN` over the host at every allocation (`cap_vm_enough_memory`).
#[inline(always)]
fn is_accounting(capability: u32, syscall: i32) -> bool {
    capability == SYS_ADMIN && (syscall < 0 || contains(&SETTINGS.accounting, syscall))
}

/// `ps` and its like ask for `CAP_SYS_PTRACE` over processes they merely list.
#[inline(always)]
fn is_listing(capability: u32, syscall: i32) -> bool {
    capability == SYS_PTRACE && contains(&SETTINGS.listing, syscall)
}

/// What programs ask for whether they have it or not, and the kernel to choose what it does.
#[inline(always)]
fn is_everyday(task: Task, capability: u32, syscall: i32) -> bool {
    let setns = syscall == setting!(setns) as i32;
    match capability {
        SYS_ADMIN => contains(&SETTINGS.everyday, syscall) || setns && task.joins_time_namespace(),
        SYSLOG => contains(&SETTINGS.opening, syscall),
        _ => false,
    }
}

/// Whether a set holds a system call's number.
#[inline(always)]
fn contains(set: &'static SyscallSet, number: i32) -> bool {
    let number = number as u32;
    if number >= 64 * SyscallSet::WORDS as u32 {
        return false;
    }
    // hides where the index comes from: the compiler would fold the bound into a form the verifier cannot follow
    let word = core::hint::black_box(number / 64) as usize % SyscallSet::WORDS;
    maps::load(&set.words[word]) >> (number % 64) & 1 != 0
}

/// What distinguishes a check from the one before.
#[derive(Clone, Copy)]
struct Asked {
    target: u64,
    /// With the verdict in the ninth bit.
    capability: u32,
}

/// Keeps a check with the task if it is like the one before, by a task whose credentials are as they should be: no
/// message, no table. False if it has to be looked at.
#[inline(always)]
fn put_off(task: Task, tracked: &mut Tracked, cred: *const c_void, asked: Asked) -> bool {
    let pending = tracked.pending;
    if pending == 0
        || tracked.last_capability != asked.capability
        || tracked.last_target != asked.target
        || pending as u32 >= MAX_PENDING_CHECKS
        || !task.acts_as(cred, tracked.last_userns)
        || tracked.last_syscall >= 0 && tracked.last_syscall != task.syscall()
        || task::jiffies().wrapping_sub(tracked.moved) > PENDING_JIFFIES
    {
        return false;
    }
    // SAFETY: a live value. The sweep may have taken the pending ones meanwhile: then it is no longer what it was.
    unsafe { maps::replace(&raw mut tracked.pending, pending, pending + 1) }
}

/// Has checks like this one kept with the task from now on. Not those of a runtime at work, which changes.
#[inline(always)]
fn put_off_the_next(task: Task, tracked: &mut Tracked, kind: Kind, asked: Asked, syscall: i32) {
    if tracked.lineage.flags & (flag::WORKLOAD | flag::ENDING) != flag::WORKLOAD {
        return;
    }
    tracked.moved = task::jiffies();
    tracked.last_userns = task.user_ns().address();
    tracked.last_target = asked.target;
    tracked.last_capability = asked.capability;
    tracked.last_syscall = syscall;
    // SAFETY: a live value.
    unsafe { maps::exchange(&raw mut tracked.pending, u64::from(kind.0) << 32) };
}

/// Counts a check in the table, after those kept until now; true if it is the first of its row.
#[inline(always)]
fn counted(task: Task, tracked: &mut Tracked, kind: Kind, syscall: i32) -> bool {
    settle(task, tracked);
    let first = aggregate(&kind.key(tracked.lineage.container), 1, task, syscall);
    count(Counter::ChecksAggregated);
    first
}

/// Moves the checks kept with a task to the table.
#[inline(always)]
pub(crate) fn settle(task: Task, tracked: &mut Tracked) {
    // SAFETY: a live value.
    let pending = unsafe { maps::exchange(&raw mut tracked.pending, 0) };
    let many = pending & 0xffff_ffff;
    if many != 0 {
        let kind = Kind((pending >> 32) as u32);
        aggregate(&kind.key(tracked.lineage.container), many, task, -1);
        count_many(Counter::ChecksAggregated, many);
    }
}

/// Adds operations to a row of the table; true if they are the first of it. `syscall` is not known (-1) of most.
#[inline(never)]
pub(crate) fn aggregate(key: &AggregateKey, many: u64, task: Task, syscall: i32) -> bool {
    let now = emit::now();
    if let Some(row) = AGGREGATES.get_ptr_mut(key) {
        // SAFETY: rows are removed only when their container is gone; the count is added to atomically, the other
        // fields are single stores of whole words.
        unsafe {
            maps::add(&raw mut (*row).count, many);
            (*row).last_ns = now;
            if syscall >= 0 {
                (*row).last_syscall = syscall;
            }
            (*row).last_tgid = task.process().0;
        }
        return false;
    }
    let row = AggregateValue {
        count: many,
        first_ns: now,
        last_ns: now,
        last_tgid: task.process().0,
        last_syscall: syscall,
    };
    // two CPUs at once: the second one adds to the first one's row
    if AGGREGATES.insert(key, row, u64::from(BPF_NOEXIST)).is_err() {
        match AGGREGATES.get_ptr_mut(key) {
            // SAFETY: as above.
            Some(row) => unsafe { maps::add(&raw mut (*row).count, many) },
            None => count_many(Counter::AggregatesFull, many),
        }
        return false;
    }
    true
}
