//! What an earlier run of the agent told, as remembered in the state directory.

use super::{CgroupId, Nanos, Operation};

/// A finding that is known to have been told on this boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The finding's identity, which is the same in every run of one boot.
    pub id: u64,
    /// The container it is about: with that, the memory of it goes.
    pub container: CgroupId,
    /// When the first of what was counted happened.
    pub first: Nanos,
    /// When the last of it happened.
    pub last: Nanos,
    /// How often.
    pub count: u64,
    /// Rank of its severity, from 0 for the lowest.
    pub severity: u8,
    /// Capabilities used or denied.
    pub capabilities: Vec<ToldCapability>,
    /// Namespace operations.
    pub calls: Vec<ToldCall>,
}

/// One capability that was told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToldCapability {
    /// Number.
    pub capability: u32,
    /// Whether it was granted.
    pub granted: bool,
    /// How often.
    pub count: u64,
    /// A system call that it was checked in.
    pub syscall: Option<u32>,
}

/// One namespace operation that was told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToldCall {
    /// What it was.
    pub operation: Operation,
    /// Negative errno of the first, 0 if it succeeded.
    pub ret: i32,
    /// How often.
    pub count: u64,
}
