//! Every map and global: who writes it, who reads it.

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE};
use aya_ebpf::btf_maps::{HashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use userns_common::kind::{COUNTERS, Counter};
use userns_common::limits::{
    BULK_RING_BYTES, EVIDENCE_RING_BYTES, MAX_AGGREGATES, MAX_BUDGETS, MAX_CGROUPS, MAX_USERNS,
};
use userns_common::record::{
    AggregateKey, AggregateValue, Budget, TaskRecord, Tracked, WatchedCgroup, WatchedUserNs,
};
use userns_common::settings::Settings;

/// Written by the loader before verification. Read with [`setting!`], one field at a time.
#[unsafe(no_mangle)]
// SAFETY: the struct holds integers and arrays of integers only, for which all-zero is a value.
pub(crate) static SETTINGS: Settings = unsafe { core::mem::zeroed() };

/// Reads one field of [`SETTINGS`].
macro_rules! setting {
    ($($field:tt)+) => {
        $crate::maps::load(&$crate::maps::SETTINGS.$($field)+)
    };
}
pub(crate) use setting;

/// Volatile, because the compiler sees only zeros where the loader writes other values.
#[inline(always)]
pub(crate) fn load<T: Copy>(field: &'static T) -> T {
    // SAFETY: a reference is valid and aligned, and nothing writes the globals while programs run.
    unsafe { core::ptr::read_volatile(field) }
}

/// A number that the verifier does not know, as programs could change it.
struct Unknown(core::cell::UnsafeCell<u32>);

// SAFETY: nothing writes it.
unsafe impl Sync for Unknown {}

static ZERO: Unknown = Unknown(core::cell::UnsafeCell::new(0));

/// The same number, but unknown to the verifier. It walks through what follows once, not once for each value that the
/// number was seen to have.
#[inline(always)]
pub(crate) fn opaque(number: u32) -> u32 {
    // SAFETY: nothing writes it.
    number ^ unsafe { core::ptr::read_volatile(ZERO.0.get()) }
}

/// Evidence for findings: written by all probes, read by the agent.
#[btf_map]
pub(crate) static EVIDENCE: RingBuf<TaskRecord, { EVIDENCE_RING_BYTES as usize }> = RingBuf::new();

/// Everything else, so that a busy pod cannot push evidence out.
#[btf_map]
pub(crate) static BULK: RingBuf<TaskRecord, { BULK_RING_BYTES as usize }> = RingBuf::new();

/// Cgroups of pods: written by the agent's walk and by the cgroup probes, read by the probes.
#[btf_map]
pub(crate) static CGROUPS: HashMap<u64, WatchedCgroup, { MAX_CGROUPS as usize }> = HashMap::new();

/// User namespaces that programs of pods run in: written by the probes, pruned by the agent.
#[btf_map]
pub(crate) static USERNS: HashMap<u64, WatchedUserNs, { MAX_USERNS as usize }> = HashMap::new();

/// Rows of counted operations: written by probes, read and pruned by the agent.
#[btf_map]
pub(crate) static AGGREGATES: HashMap<AggregateKey, AggregateValue, { MAX_AGGREGATES as usize }> =
    HashMap::new();

/// What each container has sent of its everyday life: written by probes, read and pruned by the agent.
#[btf_map]
pub(crate) static BUDGETS: HashMap<u64, Budget, { MAX_BUDGETS as usize }> = HashMap::new();

/// Counters, one slot per [`Counter`]: written by probes, read by the agent.
#[btf_map]
pub(crate) static COUNTS: PerCpuArray<u64, { COUNTERS as usize }> = PerCpuArray::new();

/// Lineage of each task in a pod. Task-local storage: it lives and dies with the task, never outlives a pid, and a
/// lookup for a task that has none returns at once.
#[btf_map]
pub(crate) static LINEAGES: TaskStorage<Tracked> = TaskStorage::new();

/// A map of type `BPF_MAP_TYPE_TASK_STORAGE`, laid out as the loader expects of a BTF map definition.
#[repr(C)]
pub(crate) struct TaskStorage<T> {
    r#type: *const [i32; BPF_MAP_TYPE_TASK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the fields are placeholders that the loader replaces; no program follows them.
unsafe impl<T> Sync for TaskStorage<T> {}

impl<T> TaskStorage<T> {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// The map as helpers want it.
    #[inline(always)]
    pub(crate) fn as_ptr(&self) -> *mut core::ffi::c_void {
        (&raw const *self).cast_mut().cast()
    }
}

/// Counts one.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    count_many(counter, 1);
}

/// Counts several. Atomically: a program can be preempted by another on the same CPU.
#[inline(always)]
pub(crate) fn count_many(counter: Counter, many: u64) {
    if let Some(slot) = COUNTS.get_ptr_mut(counter as u32) {
        // SAFETY: a slot of the array.
        unsafe { add(slot, many) };
    }
}

// Core offers no atomic operations for this target, whose instruction set has them; hence the intrinsics.

/// Adds to a map value that others add to as well.
///
/// # Safety
///
/// `to` must point to a live map value.
#[inline(always)]
pub(crate) unsafe fn add(to: *mut u64, what: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: upheld by the caller.
    unsafe {
        use core::intrinsics::{AtomicOrdering, atomic_xadd};
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(to, what);
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: upheld by the caller.
    unsafe {
        core::sync::atomic::AtomicU64::from_ptr(to).fetch_add(what, core::sync::atomic::Ordering::Relaxed);
    }
}

/// Replaces a map value and returns what it was.
///
/// # Safety
///
/// `at` must point to a live map value.
#[inline(always)]
pub(crate) unsafe fn exchange(at: *mut u64, new: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: upheld by the caller.
    unsafe {
        use core::intrinsics::{AtomicOrdering, atomic_xchg};
        atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(at, new)
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: upheld by the caller.
    unsafe {
        core::sync::atomic::AtomicU64::from_ptr(at).swap(new, core::sync::atomic::Ordering::SeqCst)
    }
}

/// Replaces a map value that is `old`; false if it was another.
///
/// # Safety
///
/// `at` must point to a live map value.
#[inline(always)]
pub(crate) unsafe fn replace(at: *mut u64, old: u64, new: u64) -> bool {
    #[cfg(target_arch = "bpf")]
    // SAFETY: upheld by the caller.
    unsafe {
        use core::intrinsics::{AtomicOrdering, atomic_cxchg};
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(at, old, new).1
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: upheld by the caller.
    unsafe {
        use core::sync::atomic::{AtomicU64, Ordering};
        AtomicU64::from_ptr(at).compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}
