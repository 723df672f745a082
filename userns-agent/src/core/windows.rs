//! How long things are waited for, put together and kept: every span of time that a reader of findings meets.
//!
//! docs/events.md is written from these.

/// How long repetitions of a finding are put together before it is told as `updated`.
pub const UPDATE_NS: u64 = 10_000_000_000;
/// How long after its container went a finding is told as `resolved`: what was under way by then counts as well.
pub const RESOLVE_NS: u64 = 5_000_000_000;
/// How long after a finding was told its evidence is looked at again: everyday records come by another ring.
pub const LOOK_BACK_NS: u64 = 300_000_000;
/// How long what is gone stays resolvable.
pub const KEEP_NS: u64 = 60_000_000_000;
/// How long the steps of an ended process are kept for those that it made, and for whoever made it.
pub const KEEP_STEPS_NS: u64 = 60_000_000_000;
/// How long counts of records that the kernel withheld are put together before they are told.
pub const COLLECT_NS: u64 = 10_000_000_000;
