//! Pod and container cgroups: the paths kubelet gives them, and how they come and go.
//!
//! Every cgroup the lab makes carries an extended attribute with its owner, so that clean-up never touches
//! what a real kubelet or another lab made in the same place.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::{
    fs::{XattrFlags, getxattr, setxattr, statfs},
    io::Errno,
};

const CGROUP2_MAGIC: u64 = 0x6367_7270;
const MOUNT_POINTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
const OWNER: &str = "trusted.userns-lab";
const SHARED: &str = "shared";
/// Above all pods, by either driver.
const TOP_LEVEL: [&str; 2] = ["kubepods", "kubepods.slice"];
const EMPTY_TIMEOUT: Duration = Duration::from_secs(10);

/// The quality-of-service class of a pod; it decides the cgroup above the pod's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum QosClass {
    /// Limits equal requests: directly below `kubepods`.
    Guaranteed,
    /// Some requests.
    Burstable,
    /// Neither requests nor limits.
    #[default]
    BestEffort,
}

/// Which of kubelet's cgroup drivers the paths look like.
///
/// The lab creates both kinds through the cgroup file system: a systemd-shaped path is just a path here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CgroupDriver {
    /// `/kubepods/besteffort/pod<uid>/<id>`
    #[default]
    Cgroupfs,
    /// `/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod<uid>.slice/cri-containerd-<id>.scope`
    Systemd,
}

/// The components of a pod's cgroup path below the root of the hierarchy.
pub(super) fn pod_components(driver: CgroupDriver, qos: QosClass, pod_uid: &str) -> Vec<String> {
    let level = match qos {
        QosClass::Guaranteed => None,
        QosClass::Burstable => Some("burstable"),
        QosClass::BestEffort => Some("besteffort"),
    };
    match driver {
        CgroupDriver::Cgroupfs => ["kubepods".to_owned()]
            .into_iter()
            .chain(level.map(str::to_owned))
            .chain([format!("pod{pod_uid}")])
            .collect(),
        CgroupDriver::Systemd => {
            let parent = level.map_or_else(|| "kubepods".to_owned(), |level| format!("kubepods-{level}"));
            let pod = format!("{parent}-pod{}.slice", pod_uid.replace('-', "_"));
            let slice = level.map(|_| format!("{parent}.slice"));
            ["kubepods.slice".to_owned()].into_iter().chain(slice).chain([pod]).collect()
        }
    }
}

/// The last component of a container's cgroup path, as containerd names it.
pub(super) fn container_component(driver: CgroupDriver, container_id: &str) -> String {
    match driver {
        CgroupDriver::Cgroupfs => container_id.to_owned(),
        CgroupDriver::Systemd => format!("cri-containerd-{container_id}.scope"),
    }
}

/// Where the machine has the cgroup v2 hierarchy mounted.
pub(super) fn find_mount() -> Result<PathBuf> {
    MOUNT_POINTS
        .iter()
        .find(|point| statfs(**point).is_ok_and(|found| u64::try_from(found.f_type) == Ok(CGROUP2_MAGIC)))
        .map(PathBuf::from)
        .ok_or_else(|| anyhow!("no cgroup v2 hierarchy is mounted at any of {}", MOUNT_POINTS.join(", ")))
}

/// Creates the pod cgroup `components` below `root` for the lab `lab_id`.
pub(super) fn create_pod(root: &Path, components: &[String], lab_id: &str) -> Result<PathBuf> {
    // Another lab may remove a common ancestor, empty until now, between two of these steps.
    for _ in 0..100 {
        match try_create_pod(root, components, lab_id) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other.with_context(|| format!("cannot create the cgroup {components:?}")),
        }
    }
    bail!("the ancestors of the cgroup {components:?} keep disappearing")
}

fn try_create_pod(root: &Path, components: &[String], lab_id: &str) -> io::Result<PathBuf> {
    let mut path = root.to_owned();
    for (index, component) in components.iter().enumerate() {
        path.push(component);
        let is_pod = index + 1 == components.len();
        match fs::create_dir(&path) {
            Ok(()) => {
                let owner = if is_pod { lab_id } else { SHARED };
                setxattr(&path, OWNER, owner.as_bytes(), XattrFlags::empty())?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !is_pod => {}
            Err(error) => return Err(error),
        }
    }
    Ok(path)
}

/// The cgroup's ID: the number that `bpf_get_current_cgroup_id` and `cgroup.id` fields carry.
pub(super) fn id(cgroup: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = fs::metadata(cgroup).with_context(|| format!("no cgroup {}", cgroup.display()))?;
    Ok(metadata.ino())
}

/// Moves the process `pid` into `cgroup`.
pub(super) fn attach(pid: u32, cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), pid.to_string())
        .with_context(|| format!("cannot move process {pid} into {}", cgroup.display()))
}

/// Kills every process in `cgroup` and below.
pub(super) fn kill(cgroup: &Path) -> Result<()> {
    match fs::write(cgroup.join("cgroup.kill"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !cgroup.exists() => Ok(()),
        other => other.with_context(|| format!("cannot kill the processes in {}", cgroup.display())),
    }
}

/// Waits until no process is left in `cgroup` and below; a cgroup that is gone counts as empty.
pub(super) fn wait_empty(cgroup: &Path) -> Result<()> {
    let events = cgroup.join("cgroup.events");
    poll(|| match fs::read_to_string(&events) {
        Ok(text) => text.lines().any(|line| line == "populated 0"),
        Err(_) => true,
    })
    .with_context(|| format!("processes remain in {}", cgroup.display()))
}

/// Kills what runs in `cgroup`, then removes it with everything below.
pub(super) fn kill_and_remove(cgroup: &Path) -> Result<()> {
    kill(cgroup)?;
    wait_empty(cgroup)?;
    // The last processes leave a little later than `populated 0` tells.
    poll(|| !matches!(remove_tree(cgroup), Err(Errno::BUSY)))
        .with_context(|| format!("the cgroup {} stays busy", cgroup.display()))?;
    if cgroup.exists() {
        bail!("cannot remove the cgroup {}", cgroup.display());
    }
    Ok(())
}

fn remove_tree(cgroup: &Path) -> Result<(), Errno> {
    for child in children(cgroup) {
        remove_tree(&child)?;
    }
    match rustix::fs::rmdir(cgroup) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Removes the lab-made ancestors of `pod_cgroup` up to `root` that are empty by now.
pub(super) fn remove_empty_ancestors(root: &Path, pod_cgroup: &Path) {
    for ancestor in pod_cgroup.ancestors().skip(1).take_while(|ancestor| *ancestor != root) {
        if owner(ancestor).as_deref() != Some(SHARED) || fs::remove_dir(ancestor).is_err() {
            break;
        }
    }
}

/// The pod cgroups below `root` that the lab `lab_id` made.
pub(super) fn owned_by(root: &Path, lab_id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = TOP_LEVEL.map(|name| root.join(name)).to_vec();
    while let Some(cgroup) = pending.pop() {
        if owner(&cgroup).as_deref() == Some(lab_id) {
            found.push(cgroup);
        } else {
            pending.extend(children(&cgroup));
        }
    }
    found
}

fn owner(cgroup: &Path) -> Option<String> {
    let mut value = [0; 64];
    let length = getxattr(cgroup, OWNER, &mut value).ok()?;
    String::from_utf8(value.get(..length)?.to_vec()).ok()
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(cgroup) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Waits until `done`, looking every millisecond.
pub(super) fn poll(mut done: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > EMPTY_TIMEOUT {
            bail!("gave up after {} s", EMPTY_TIMEOUT.as_secs());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "1b4e28ba-2fa1-41d2-883f-0016d3cca427";

    fn joined(driver: CgroupDriver, qos: QosClass) -> String {
        pod_components(driver, qos, UID).join("/")
    }

    #[test]
    fn cgroupfs_paths() {
        let driver = CgroupDriver::Cgroupfs;
        assert_eq!(joined(driver, QosClass::BestEffort), format!("kubepods/besteffort/pod{UID}"));
        assert_eq!(joined(driver, QosClass::Burstable), format!("kubepods/burstable/pod{UID}"));
        assert_eq!(joined(driver, QosClass::Guaranteed), format!("kubepods/pod{UID}"));
        assert_eq!(container_component(driver, "0a"), "0a");
    }

    #[test]
    fn systemd_paths() {
        let driver = CgroupDriver::Systemd;
        let uid = "1b4e28ba_2fa1_41d2_883f_0016d3cca427";
        assert_eq!(
            joined(driver, QosClass::BestEffort),
            format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid}.slice")
        );
        assert_eq!(joined(driver, QosClass::Guaranteed), format!("kubepods.slice/kubepods-pod{uid}.slice"));
        assert_eq!(container_component(driver, "0a"), "cri-containerd-0a.scope");
    }
}
