//! `cargo xtask run`: builds the agent and becomes it.

use std::{convert::Infallible, fs, os::unix::fs::MetadataExt as _, os::unix::process::CommandExt as _};
use std::{ffi::OsString, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    build,
    steps::Steps,
    workspace::{Profile, Workspace},
};

/// Builds, then replaces this process with `userns-agent run <args>`, so that signals reach the agent.
///
/// # Errors
///
/// When the user is not root, or building or starting fails.
pub fn run(steps: &mut Steps, workspace: &Workspace, args: &[OsString]) -> Result<Infallible> {
    if !is_root()? {
        bail!(
            "loading eBPF programs needs root; build as yourself and start the agent as root:\n  \
             cargo xtask build && sudo {} run",
            workspace.agent(Profile::Release).display()
        );
    }
    let agent = build::all(steps, workspace, Profile::Release)?;
    steps.print_table();
    let mut command = Command::new(&agent);
    let error = command.arg("run").args(args).exec();
    Err(error).with_context(|| format!("cannot start {}", agent.display()))
}

/// Whether this process runs as root.
///
/// # Errors
///
/// When `/proc` is not mounted.
pub fn is_root() -> Result<bool> {
    let process = fs::metadata("/proc/self").context("cannot read /proc/self: is /proc mounted?")?;
    Ok(process.uid() == 0)
}
