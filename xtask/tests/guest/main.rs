//! What needs a kernel that may be tampered with, so it runs in the guests of `cargo xtask vm` only.
//!
//! There `USERNS_ACTOR` names the program that tampers, and the kernel has the module for it. Elsewhere every test
//! here says that it was skipped.
#![expect(clippy::print_stdout, reason = "skips and figures are for who runs the tests")]

#[path = "../node/setting.rs"]
mod setting;
mod stage;
mod tamper;
