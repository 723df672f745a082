//! The contract between the eBPF programs and the agent.
//!
//! Both halves are Rust, so there is one definition of every record, map value and global, and nothing to
//! keep in step. The rules that make the definitions safe to share:
//!
//! - every struct is `#[repr(C)]` and holds integers and byte arrays only: no `bool`, no `Option`, no enum,
//!   so that any bytes the kernel hands over are a valid value;
//! - padding is spelled out, so that no uninitialised byte crosses the boundary ([`layout`] asserts it);
//! - numbers that name things (event kinds, hooks, counters) are stable and appended to, never reused.
//!
//! Pure decisions that both halves take, such as what a cgroup directory name means, live here too and are
//! tested on the host.
#![no_std]
#![forbid(unsafe_code)]

pub mod caps;
pub mod cgroup;
pub mod kind;
pub mod layout;
pub mod limits;
pub mod record;
pub mod settings;
