//! Capability checks: the hottest hook, several thousand a second on a busy node.
//!
//! Prototypes, by preference:
//! - tracepoint `cap_capable(const struct cred *cred, struct user_namespace *target_ns,
//!   struct user_namespace *capable_ns, int cap, int ret)` (include/trace/events/capability.h, Linux 6.14)
//! - function `int cap_capable(const struct cred *cred, struct user_namespace *target_ns, int cap,
//!   unsigned int opts)` (security/commoncap.c, Linux 5.1), at its return
//!
//! Order matters. A task in no pod leaves after one lookup of task-local storage. A check with credentials other
//! than the task's own (overlayfs and others swap in the mounter's) leaves next: it says nothing about the task.

use core::ffi::c_void;

use aya_ebpf::macros::{btf_tracepoint, fexit};
use aya_ebpf::programs::{BtfTracePointContext, FExitContext};
use userns_common::caps::{SYS_ADMIN, SYS_PTRACE, holds};
use userns_common::kind::{Counter, EventKind, Hook, Operation, Relation, lineage as flag, reason, state};
use userns_common::record::{AggregateKey, AggregateValue, Lineage};
use userns_common::settings::SyscallSet;

use crate::emit::{self, Report, Ring};
use crate::lineage;
use crate::maps::{self, AGGREGATES, SETTINGS, count, setting};
use crate::task::{Task, UserNs};

#[btf_tracepoint(function = "cap_capable")]
fn cap_capable(ctx: BtfTracePointContext) -> i32 {
    let task = Task::current();
    let Some(lineage) = task.lineage() else { return 0 };
    asked(task, lineage, ctx.arg(0), ctx.arg(1), ctx.arg(3), ctx.arg(4));
    0
}

#[fexit(function = "cap_capable")]
fn cap_capable_return(ctx: FExitContext) -> i32 {
    let task = Task::current();
    let Some(lineage) = task.lineage() else { return 0 };
    asked(task, lineage, ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg(4));
    0
}

#[inline(always)]
fn asked(
    task: Task,
    lineage: &mut Lineage,
    cred: *const c_void,
    target: *const c_void,
    capability: u32,
    ret: i32,
) {
    count(Counter::ChecksSeen);
    if cred != task.real_cred() {
        count(Counter::ChecksOverridden);
        return;
    }
    check(task, lineage, UserNs::from_arg(target), capability, ret);
}

#[inline(always)]
fn check(task: Task, lineage: &mut Lineage, target: UserNs, capability: u32, ret: i32) {
    if lineage.state == state::INSIDE {
        lineage::check_userns(task, lineage, Hook::Capable);
    } else {
        lineage::inspect(task, lineage, Hook::Capable);
    }
    let relation = relation(target, lineage);
    let over_host = relation as u32 == Relation::Host as u32;
    let syscall = if over_host && matches!(capability, SYS_ADMIN | SYS_PTRACE) { task.syscall() } else { -1 };
    if over_host && is_accounting(capability, syscall) {
        count(Counter::ChecksAccounting);
        return;
    }
    let key = AggregateKey {
        container: lineage.container,
        operation: Operation::Capability as u8,
        code: capability as u8,
        relation: relation as u8,
        denied: u8::from(ret != 0),
        state: lineage.state as u8,
        reserved: [0; 3],
    };
    let first = aggregate(&key, task, syscall);
    count(Counter::ChecksAggregated);
    let told = over_host
        && if ret == 0 {
            host_capability(lineage, capability)
        } else {
            first && is_attempt(lineage, capability, syscall)
        };
    if told {
        report(task, lineage, target, &key, ret);
    }
}

#[inline(always)]
fn relation(target: UserNs, lineage: &Lineage) -> Relation {
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
fn host_capability(lineage: &mut Lineage, capability: u32) -> bool {
    let bit = 1u64 << (capability & 63);
    let entering = lineage.state == state::ENTERING && lineage.flags & flag::WORKLOAD == 0;
    if lineage.told_caps & bit != 0 || (entering && !lineage::past_grace(lineage)) {
        return false;
    }
    lineage.told_caps |= bit;
    true
}

#[inline(always)]
fn is_attempt(lineage: &Lineage, capability: u32, syscall: i32) -> bool {
    lineage.state == state::INSIDE
        && holds(setting!(attempt_caps), capability)
        && !is_listing(capability, syscall)
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

/// Counts an operation; true if it is the first of its row.
#[inline(always)]
pub(crate) fn aggregate(key: &AggregateKey, task: Task, syscall: i32) -> bool {
    let now = emit::now();
    if let Some(row) = AGGREGATES.get_ptr_mut(key) {
        // SAFETY: rows are removed only when their container is gone; the count is added to atomically, the other
        // fields are single stores of whole words.
        unsafe {
            maps::add(&raw mut (*row).count, 1);
            (*row).last_ns = now;
            (*row).last_syscall = syscall;
            (*row).last_tgid = task.process().0;
        }
        return false;
    }
    let row = AggregateValue {
        count: 1,
        first_ns: now,
        last_ns: now,
        last_tgid: task.process().0,
        last_syscall: syscall,
    };
    if AGGREGATES.insert(key, row, 0).is_err() {
        count(Counter::AggregatesFull);
    }
    true
}

#[inline(always)]
fn report(task: Task, lineage: &Lineage, target: UserNs, key: &AggregateKey, ret: i32) {
    let (ring, reasons) = if ret == 0 { (Ring::Evidence, reason::HOST_CAPABILITY) } else { (Ring::Bulk, 0) };
    let mut report = Report::new(EventKind::Capability, Hook::Capable, ring, reasons);
    report.detail.operation = Operation::Capability as u32;
    report.detail.code = u32::from(key.code);
    report.detail.relation = u32::from(key.relation);
    report.detail.ret = ret;
    report.detail.target_inum = target.inum();
    report.detail.target_level = target.level();
    report.detail.syscall = task.syscall();
    emit::task(task, lineage, &report);
}
