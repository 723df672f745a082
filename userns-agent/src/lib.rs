//! userns-agent: checks at run time that Kubernetes user namespaces hold.
//!
//! ```text
//! kernel probes ═ring═► kernel ─► decode ─► Event ┐
//! /proc, cgroupfs, kubelet ─► host ───────► Fact  ├─► core::Engine ─► Finding ─► sink
//! timer ──────────────────────────────────► Tick  ┘
//! ```
//!
//! `core`, `decode`, `event` and `cgroup` are pure: no I/O, no clock, no eBPF library, nothing unordered. `app` is the
//! only module that sees both ends.

pub mod cgroup;
pub mod event;

pub mod kernel;

pub mod decode;

pub mod host;

pub mod core;

pub mod sink;

pub mod app;
pub mod cli;
pub mod config;
pub mod docs;
pub mod explain;
pub mod policy;
pub mod ps;
pub mod recording;
pub mod simulate;
