//! Finds the user namespace that counts as the host's: kubelet's.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use thiserror::Error;

use super::proc::{ProcError, ProcFs};
use crate::cgroup;
use crate::config::ReferenceUserns;
use crate::event::Reference;

/// File names of executables that are kubelet or have it inside.
pub const KUBELETS: [&str; 6] = ["kubelet", "k3s", "k3s-server", "k3s-agent", "kubelite", "hyperkube"];

/// Why it is not known.
#[derive(Debug, Error)]
pub enum ReferenceError {
    /// The configured process tells nothing.
    #[error("reference_userns is {pid}, but {source}: name a process that runs, or `auto`")]
    Process {
        /// The process.
        pid: u32,
        /// Why.
        source: ProcError,
    },
    /// The configured process's user namespace is not below the agent's.
    #[error(
        "reference_userns is {pid}, whose user namespace does not lie below the agent's: run the agent further out"
    )]
    NotBelow {
        /// The process.
        pid: u32,
    },
}

/// The reference, and the process it was taken from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The user namespace.
    pub reference: Reference,
    /// Kubelet, or the configured process; `None` where none was looked for or found.
    pub pid: Option<u32>,
}

/// Takes the configured one, or kubelet's: of the processes that run a kubelet's executable outside of pods, with the
/// rights of the owner of `kubelet_root`, and that have that very directory at its place. If there is none, or one is
/// in the initial user namespace, that is it.
///
/// # Errors
///
/// [`ReferenceError`], for a configured process.
pub fn find(proc: &ProcFs, wanted: ReferenceUserns, kubelet_root: &Path) -> Result<Found, ReferenceError> {
    match wanted {
        ReferenceUserns::Initial => Ok(Found::default()),
        ReferenceUserns::Process(pid) => {
            let reference = of(proc, pid).map_err(|source| ReferenceError::Process { pid, source })?;
            let reference = reference.ok_or(ReferenceError::NotBelow { pid })?;
            Ok(Found { reference, pid: Some(pid) })
        }
        ReferenceUserns::Auto => Ok(kubelet(proc, kubelet_root)),
    }
}

fn kubelet(proc: &ProcFs, kubelet_root: &Path) -> Found {
    let mut found = Vec::new();
    for pid in proc.pids().unwrap_or_default() {
        // a process that ended, or that cannot be looked at, is none
        if is_kubelet(proc, pid, kubelet_root).unwrap_or(false)
            && let Ok(Some(reference)) = of(proc, pid)
        {
            found.push(Found { reference, pid: Some(pid) });
        }
    }
    found.into_iter().min_by_key(|found| (found.reference.level, found.pid)).unwrap_or_default()
}

fn is_kubelet(proc: &ProcFs, pid: u32, kubelet_root: &Path) -> Result<bool, ProcError> {
    let Some(executable) = proc.executable(pid)? else { return Ok(false) };
    let name = executable.path.as_str().rsplit('/').next().unwrap_or_default();
    if !KUBELETS.contains(&name)
        || proc.cgroup(pid)?.is_some_and(|path| cgroup::parse(path.as_str()).is_some())
    {
        return Ok(false);
    }
    let Some(seen) = proc.stat_as_seen_by(pid, kubelet_root) else { return Ok(false) };
    let ours = std::fs::metadata(kubelet_root).ok();
    let same = ours.is_some_and(|ours| (ours.dev(), ours.ino()) == (seen.dev(), seen.ino()));
    Ok(same && proc.status(pid)?.ids.euid == seen.uid())
}

/// The user namespace of a process; `None` if it does not lie below the reader's.
fn of(proc: &ProcFs, pid: u32) -> Result<Option<Reference>, ProcError> {
    let Some(ancestry) = proc.ancestry(pid)? else { return Ok(None) };
    let ns = ancestry.userns();
    if ns.level == 0 {
        return Ok(Some(Reference::default()));
    }
    let (uid_map, gid_map) = (proc.uid_map(pid)?, proc.gid_map(pid)?);
    Ok(Some(Reference { inum: ns.inum, level: ns.level, uid_map, gid_map }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initial_one_is_the_default_and_kubelets_wins() {
        let proc = ProcFs::new("/proc");
        let root = tempfile::tempdir().unwrap();
        assert_eq!(find(&proc, ReferenceUserns::Initial, root.path()).unwrap(), Found::default());
        // nobody has this directory for kubelet's
        assert_eq!(find(&proc, ReferenceUserns::Auto, root.path()).unwrap(), Found::default());
    }

    #[test]
    fn a_process_that_does_not_run_is_an_error_that_says_what_to_do() {
        let error =
            find(&ProcFs::new("/proc"), ReferenceUserns::Process(u32::MAX), Path::new("/")).unwrap_err();
        assert!(error.to_string().contains("4294967295") && error.to_string().contains("`auto`"), "{error}");
    }

    #[test]
    fn kubelet_is_known_by_executable_directory_and_owner() {
        let proc = ProcFs::new("/proc");
        let root = tempfile::tempdir().unwrap();
        let executable = root.path().join("kubelet");
        std::fs::copy("/bin/sleep", &executable).unwrap();
        let mut child = std::process::Command::new(&executable).arg("60").spawn().unwrap();
        let pid = child.id();
        // until it has executed
        while proc.executable(pid).unwrap().is_none_or(|it| !it.path.as_str().ends_with("/kubelet")) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let is = |pid, root: &Path| is_kubelet(&proc, pid, root).unwrap();
        let seen = (
            is(pid, root.path()),
            is(pid, &root.path().join("nowhere")),
            is(std::process::id(), root.path()),
        );
        let found = find(&proc, ReferenceUserns::Auto, root.path());
        let owned_by_another = rustix::process::geteuid().is_root().then(|| {
            std::os::unix::fs::chown(root.path(), Some(1), None).unwrap();
            is(pid, root.path())
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seen, (true, false, false));
        assert_ne!(owned_by_another, Some(true));
        // a reader outside of the initial namespace cannot tell where kubelet's lies
        if proc.user_namespace(std::process::id()).unwrap() == crate::event::INITIAL_USERNS {
            assert_eq!(found.unwrap().pid, Some(pid));
        }
    }
}
