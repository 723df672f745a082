//! What a cgroup directory is, by its own name and its parent's role.
//!
//! The eBPF program at `cgroup_mkdir` and the agent's walk of cgroupfs take the same decision with the same
//! code, so a container made by a kubelet is watched before its first process is moved in, whoever sees it first.
//!
//! Names are those of kubelet (pkg/kubelet/cm/pod_container_manager_linux.go): `pod<uid>` under the cgroupfs
//! driver, `<parents>-pod<uid with '_' for '-'>.slice` under systemd. The uid is a UUID or, for static pods,
//! 32 hex digits. The pod component may stand anywhere in a path; the first one from the root counts.
//!
//! A runtime that was told a systemd slice but makes directories itself (kubelet and runtime disagree about the driver)
//! uses what systemd would have been told as one directory's name: `<slice>.slice:cri-containerd:<id>`.

use crate::limits::CGROUP_NAME_LEN;

/// Role of a cgroup directory; the value of the watched-cgroup table.
pub mod role {
    /// Not part of a pod.
    pub const NONE: u32 = 0;
    /// A pod's own directory.
    pub const POD: u32 = 1;
    /// A container's directory, directly below the pod's.
    pub const CONTAINER: u32 = 2;
    /// Below a container's directory: made by a runtime (`container`, `exec`) or by the workload.
    pub const NESTED: u32 = 3;
    /// A runtime's monitor (`crio-conmon-*`, `libpod-conmon-*`) directly below the pod's directory.
    pub const MONITOR: u32 = 4;
}

/// A directory name as the kernel programs hold it: a fixed buffer and the length used.
pub type Name = [u8; CGROUP_NAME_LEN];

const UUID: usize = 36;
const HASH: usize = 32;
const POD: &[u8; 4] = b"-pod";
const SLICE: &[u8; 6] = b".slice";
const ID: usize = 64;
const MONITORS: [&[u8]; 2] = [b"crio-conmon-", b"libpod-conmon-"];

/// The role of a directory called `name[..len]` whose parent has role `parent`.
#[inline(always)]
#[must_use]
pub fn classify(parent: u32, name: &Name, len: usize) -> u32 {
    match parent {
        role::NONE => {
            if pod_uid(name, len).is_some() {
                role::POD
            } else if unsplit(name, len).is_some() {
                role::CONTAINER
            } else {
                role::NONE
            }
        }
        role::POD => {
            if MONITORS.iter().any(|monitor| starts_with(name, len, monitor)) {
                role::MONITOR
            } else {
                role::CONTAINER
            }
        }
        role::MONITOR => role::MONITOR,
        _ => role::NESTED,
    }
}

/// Where the pod uid stands in a pod's directory name, as (start, length); `None` if this is no pod's name.
#[inline(always)]
#[must_use]
pub fn pod_uid(name: &Name, len: usize) -> Option<(usize, usize)> {
    if len > CGROUP_NAME_LEN {
        return None;
    }
    if len == 3 + UUID && starts_with(name, len, b"pod") && is_uid(name, 3, UUID) {
        return Some((3, UUID));
    }
    if len == 3 + HASH && starts_with(name, len, b"pod") && is_uid(name, 3, HASH) {
        return Some((3, HASH));
    }
    systemd_uid(name, len, UUID).or_else(|| systemd_uid(name, len, HASH))
}

/// A container's directory whose name is pod and container at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsplit {
    /// Where the pod's uid stands, as (start, length).
    pub uid: (usize, usize),
    /// Where the CRI implementation's name begins: it ends one byte before the id.
    pub prefix: usize,
    /// Where the container's id begins, which goes to the end.
    pub id: usize,
}

/// What `<parents>-pod<uid>.slice:<prefix>:<id>` says; `None` if the name is not of that form. The prefix is
/// `cri-containerd` or `crio`, the id 64 hexadecimal digits.
#[inline(always)]
#[must_use]
pub fn unsplit(name: &Name, len: usize) -> Option<Unsplit> {
    let id = before(len, ID)?;
    if !is_uid(name, id, ID) {
        return None;
    }
    unsplit_by(name, id, b":cri-containerd:").or_else(|| unsplit_by(name, id, b":crio:"))
}

#[inline(always)]
fn unsplit_by(name: &Name, id: usize, infix: &[u8]) -> Option<Unsplit> {
    let slice = before(id, infix.len())?;
    if !matches_at(name, slice, infix) {
        return None;
    }
    let uid = systemd_uid(name, slice, UUID).or_else(|| systemd_uid(name, slice, HASH))?;
    Some(Unsplit { uid, prefix: slice + 1, id })
}

#[inline(always)]
fn systemd_uid(name: &Name, len: usize, uid: usize) -> Option<(usize, usize)> {
    let pod = before(len, POD.len() + uid + SLICE.len())?;
    let start = pod + POD.len();
    let matches = matches_at(name, pod, POD) && matches_at(name, start + uid, SLICE);
    // something has to stand before it; asked last, or it becomes one check of a range, as below
    (matches && is_uid(name, start, uid) && pod > 0).then_some((start, uid))
}

/// `len - bytes`, unless there are fewer. The compiler may not know what it is made of: Linux 6.1 has to see the very
/// number checked that bytes are read at.
#[inline(always)]
fn before(len: usize, bytes: usize) -> Option<usize> {
    let start = core::hint::black_box(len.wrapping_sub(bytes));
    (start <= CGROUP_NAME_LEN - bytes).then_some(start)
}

#[inline(always)]
fn is_uid(name: &Name, start: usize, len: usize) -> bool {
    let mut index = 0;
    while index < len {
        let Some(byte) = name.get(start + index) else { return false };
        let dash = len == UUID && matches!(index, 8 | 13 | 18 | 23);
        let ok = if dash { matches!(byte, b'-' | b'_') } else { byte.is_ascii_hexdigit() };
        if !ok {
            return false;
        }
        index += 1;
    }
    true
}

#[inline(always)]
fn starts_with(name: &Name, len: usize, prefix: &[u8]) -> bool {
    len >= prefix.len() && matches_at(name, 0, prefix)
}

#[inline(always)]
fn matches_at(name: &Name, start: usize, what: &[u8]) -> bool {
    let mut index = 0;
    while index < what.len() {
        if name.get(start + index) != what.get(index) {
            return false;
        }
        index += 1;
    }
    true
}

/// Copies a name into the fixed buffer; `None` if it is longer than any name that matters.
#[must_use]
pub fn to_name(bytes: &[u8]) -> Option<(Name, usize)> {
    let mut name = [0; CGROUP_NAME_LEN];
    name.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some((name, bytes.len()))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::String;

    const ID: &str = "0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11";

    fn classified(parent: u32, name: &str) -> u32 {
        let (buffer, len) = to_name(name.as_bytes()).unwrap();
        classify(parent, &buffer, len)
    }

    fn uid_of(name: &str) -> Option<String> {
        let (buffer, len) = to_name(name.as_bytes()).unwrap();
        pod_uid(&buffer, len).map(|(start, len)| name[start..start + len].into())
    }

    #[test]
    fn knows_both_drivers_and_static_pods() {
        let underscored = ID.replace('-', "_");
        for (name, uid) in [
            (std::format!("pod{ID}"), ID),
            (std::format!("kubepods-besteffort-pod{underscored}.slice"), underscored.as_str()),
            (std::format!("kubepods-pod{underscored}.slice"), underscored.as_str()),
            (std::format!("kubelet-kubepods-burstable-pod{underscored}.slice"), underscored.as_str()),
            ("pod51bd78aa51bd78aa51bd78aa51bd78aa".into(), "51bd78aa51bd78aa51bd78aa51bd78aa"),
            (
                "kubepods-burstable-pod51bd78aa51bd78aa51bd78aa51bd78aa.slice".into(),
                "51bd78aa51bd78aa51bd78aa51bd78aa",
            ),
        ] {
            assert_eq!(uid_of(&name).as_deref(), Some(uid), "{name}");
            assert_eq!(classified(role::NONE, &name), role::POD, "{name}");
        }
    }

    #[test]
    fn refuses_lookalikes() {
        for name in [
            "pod",
            "podman",
            "pods.slice",
            "kubepods.slice",
            "kubepods",
            "burstable",
            "",
            "pod0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c1",
            "pod0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c1g",
            "-pod51bd78aa51bd78aa51bd78aa51bd78aa.slice",
            "xpod0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11",
        ] {
            assert_eq!(classified(role::NONE, name), role::NONE, "{name}");
        }
    }

    #[test]
    fn roles_follow_depth() {
        assert_eq!(classified(role::POD, "cri-containerd-abc.scope"), role::CONTAINER);
        let underscored = ID.replace('-', "_");
        let container = std::format!("kubepods-pod{underscored}.slice:cri-containerd:{:064x}", 5);
        assert_eq!(classified(role::NONE, &container), role::CONTAINER);
        assert_eq!(classified(role::CONTAINER, &container), role::NESTED);
        assert_eq!(classified(role::POD, "crio-conmon-abc.scope"), role::MONITOR);
        assert_eq!(classified(role::CONTAINER, "container"), role::NESTED);
        // a workload that may make cgroups cannot pose as a monitor or as another pod
        assert_eq!(classified(role::CONTAINER, "crio-conmon-abc.scope"), role::NESTED);
        assert_eq!(classified(role::NESTED, &std::format!("pod{ID}")), role::NESTED);
    }

    #[test]
    fn names_too_long_for_the_buffer_are_refused() {
        assert!(to_name(&[b'a'; CGROUP_NAME_LEN + 1]).is_none());
        assert_eq!(pod_uid(&[b'a'; CGROUP_NAME_LEN], CGROUP_NAME_LEN + 1), None);
    }
}
