//! Processes of containers that nobody else waits for, and processes of the host as subjects of experiments.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use rustix::{
    io::Errno,
    process::{Pid, WaitOptions, getpid, set_child_subreaper, waitpid},
};

use super::cgroup;

/// Makes the containers' processes children of this one once their runtime has exited, as containerd's shim
/// does. Whether and when the machine's process 1 waits for them then does not matter: until someone does, a
/// container's PID namespace does not end.
pub(super) fn adopt_orphans() -> Result<()> {
    set_child_subreaper(Some(getpid())).context("cannot become the parent of orphans")
}

/// Waits until the process `pid`, which was killed, has ended.
pub(super) fn wait_for_end(pid: u32) -> Result<()> {
    cgroup::poll(|| has_ended(pid)).with_context(|| format!("process {pid} does not end"))
}

fn has_ended(pid: u32) -> bool {
    let Some(child) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return true };
    match waitpid(Some(child), WaitOptions::NOHANG) {
        Ok(status) => status.is_some(),
        // Not a child: waited for before, or made by a lab in another process.
        Err(Errno::CHILD) => is_gone_or_zombie(pid),
        Err(_) => false,
    }
}

fn is_gone_or_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the command name, which may itself contain a parenthesis.
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// A process outside every container; dropping it kills it.
#[derive(Debug)]
pub struct HostProcess {
    child: Child,
}

impl HostProcess {
    /// Ten minutes of sleep: no longer, should the lab be killed.
    pub(super) fn sleep(busybox: &Path) -> Result<Self> {
        let child = Command::new(busybox)
            .args(["sleep", "600"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", busybox.display()))?;
        Ok(Self { child })
    }

    /// A shell that has given itself the name `name`, which the kernel cuts to 15 bytes, and waits for its input.
    pub(super) fn named(busybox: &Path, name: &str) -> Result<Self> {
        let child = Command::new(busybox)
            .args(["sh", "-c", "printf %s \"$0\" >/proc/self/comm; read -r _", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", busybox.display()))?;
        let named = Self { child };
        let comm = format!("/proc/{}/comm", named.pid());
        cgroup::poll(|| fs::read_to_string(&comm).is_ok_and(|comm| name.starts_with(comm.trim_end())))
            .with_context(|| format!("a shell does not take the name {name}"))?;
        Ok(named)
    }

    /// Its PID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        // Both fail only for a process that was already waited for, which cannot be.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_children_and_strangers() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(!has_ended(child.id()));
        assert!(!is_gone_or_zombie(child.id()));
        child.kill().unwrap();
        wait_for_end(child.id()).unwrap();
        assert!(has_ended(child.id()));
        assert!(child.wait().is_err(), "it was waited for");
        assert!(!has_ended(1));
    }
}
