//! Which labs exist on this machine, so that the next one can remove what a killed one left behind.
//!
//! `/run/userns-lab/<lab>/lab.json` names the lab's directory and cgroup root. The lab holds a file lock on it
//! as long as it lives: an entry without that lock is a left-over.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::{cgroup, ids};

const REGISTRY: &str = "/run/userns-lab";
const ENTRY: &str = "lab.json";
/// In the lab's directory: the ID of the lab that owns it.
const MARKER: &str = ".userns-lab";

/// One lab's entry; dropping it takes the lab's cgroups and directory away.
#[derive(Debug)]
pub(super) struct Claim {
    lab_id: String,
    entry: Entry,
    _lock: File,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    dir: PathBuf,
    cgroup_root: PathBuf,
}

impl Claim {
    /// Removes the left-overs of killed labs, then claims `dir` (new or empty) for a new one.
    pub(super) fn new(dir: &Path, cgroup_root: &Path) -> Result<Self> {
        let _registry = lock_registry()?;
        remove_left_overs()?;
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let dir = fs::canonicalize(dir).with_context(|| format!("cannot resolve {}", dir.display()))?;
        empty(&dir)?;
        let lab_id = ids::lab_id()?;
        let entry = Entry { dir, cgroup_root: cgroup_root.to_owned() };
        let place = run_dir(&lab_id);
        fs::create_dir(&place).with_context(|| format!("cannot create {}", place.display()))?;
        let path = place.join(ENTRY);
        let mut file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        file.write_all(&serde_json::to_vec(&entry)?)
            .and_then(|()| fs::write(entry.dir.join(MARKER), &lab_id))
            .with_context(|| format!("cannot claim {}", entry.dir.display()))?;
        Ok(Self { lab_id, entry, _lock: file })
    }

    pub(super) fn lab_id(&self) -> &str {
        &self.lab_id
    }

    /// The lab's directory, absolute.
    pub(super) fn dir(&self) -> &Path {
        &self.entry.dir
    }

    pub(super) fn cgroup_root(&self) -> &Path {
        &self.entry.cgroup_root
    }

    /// A directory of the lab's own that every user may enter, whatever the modes above the lab's directory.
    pub(super) fn run_dir(&self) -> PathBuf {
        run_dir(&self.lab_id)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let registry = lock_registry();
        match remove(&self.lab_id, &self.entry) {
            // With the last lab; it fails while there are others.
            Ok(()) if registry.is_ok() => drop(fs::remove_dir(REGISTRY)),
            Ok(()) => {}
            // An entry without a lock, once this returns.
            Err(error) => eprintln!("the next lab has to remove left-overs of this one: {error:#}"),
        }
    }
}

fn run_dir(lab_id: &str) -> PathBuf {
    Path::new(REGISTRY).join(lab_id)
}

/// Creates the registry if need be and locks it, so that labs come and go one at a time.
fn lock_registry() -> Result<File> {
    loop {
        fs::create_dir_all(REGISTRY).with_context(|| format!("cannot create {REGISTRY}"))?;
        let Ok(directory) = File::open(REGISTRY) else { continue };
        directory.lock().with_context(|| format!("cannot lock {REGISTRY}"))?;
        let held = directory.metadata().with_context(|| format!("cannot inspect {REGISTRY}"))?.ino();
        // The last lab removes the directory: then the lock is on something that is no longer there.
        if fs::metadata(REGISTRY).is_ok_and(|current| current.ino() == held) {
            return Ok(directory);
        }
    }
}

fn remove_left_overs() -> Result<()> {
    for place in fs::read_dir(REGISTRY).with_context(|| format!("cannot list {REGISTRY}"))?.flatten() {
        let path = place.path().join(ENTRY);
        let is_alive = File::open(&path).is_ok_and(|file| file.try_lock().is_err());
        if is_alive {
            continue;
        }
        let lab_id = place.file_name().to_string_lossy().into_owned();
        match fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Entry>(&text).ok()) {
            Some(entry) => remove(&lab_id, &entry).with_context(|| format!("left-overs of lab {lab_id}"))?,
            // Killed before the entry was written, so before anything else was made.
            None => remove_dir(&place.path())?,
        }
    }
    Ok(())
}

/// Removes what the lab `lab_id` made outside its mount namespace, its entry last.
fn remove(lab_id: &str, entry: &Entry) -> Result<()> {
    for pod in cgroup::owned_by(&entry.cgroup_root, lab_id) {
        cgroup::kill_and_remove(&pod)?;
        cgroup::remove_empty_ancestors(&entry.cgroup_root, &pod);
    }
    if fs::read_to_string(entry.dir.join(MARKER)).is_ok_and(|owner| owner == lab_id) {
        remove_dir(&entry.dir)?;
    }
    remove_dir(&run_dir(lab_id))
}

/// Makes sure that `dir` is empty: only what a lab that no longer exists left there is removed.
fn empty(dir: &Path) -> Result<()> {
    if let Ok(owner) = fs::read_to_string(dir.join(MARKER)) {
        if run_dir(&owner).exists() {
            bail!("{} belongs to the running lab {owner}", dir.display());
        }
        remove_dir(dir)?;
        fs::create_dir(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let mut entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    if entries.next().is_some() {
        bail!("{} is not empty: a lab needs a directory of its own", dir.display());
    }
    Ok(())
}

fn remove_dir(path: &Path) -> Result<()> {
    fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))
}
