//! What a cgroup path says: pod, container, runtime. Pure.
//!
//! | driver | runtime | path below the QoS group |
//! |---|---|---|
//! | systemd | containerd | `kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope` |
//! | systemd | CRI-O | `kubepods-pod<uid>.slice/crio-<id>.scope[/container]` |
//! | systemd | Docker | `kubepods-pod<uid>.slice/docker-<id>.scope` |
//! | systemd | Podman | `kubepods-pod<uid>.slice/libpod-<id>.scope[/container]` |
//! | cgroupfs | containerd, Docker | `pod<uid>/<id>` |
//! | cgroupfs | CRI-O | `pod<uid>/crio-<id>` |
//! | both | monitors | `crio-conmon-<id>[.scope]`, `libpod-conmon-<id>[.scope]` |
//!
//! Anything may stand before the pod's component (`kubelet.slice`, a node that is itself a container) and after
//! the container's. What a component is, is decided by [`userns_common::cgroup`], as in the kernel.

use userns_common::cgroup::{classify, pod_uid, role, to_name};
use userns_common::limits::CGROUP_NAME_LEN;

use crate::event::PodUid;

/// A pod's cgroup, or one below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodCgroup {
    /// The pod.
    pub uid: PodUid,
    /// Its quality of service class.
    pub qos: Qos,
    /// Kubelet's cgroup driver.
    pub driver: Driver,
    /// The container, or what a monitor monitors; `None` for the pod's own cgroup.
    pub container: Option<ContainerId>,
    /// Levels below the container's cgroup.
    pub below: usize,
    /// Whether it is, or lies below, a runtime's monitor.
    pub monitor: bool,
}

/// Quality of service class, which is the pod's parent group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Qos {
    /// Every container has limits that equal its requests.
    Guaranteed,
    /// Some requests.
    Burstable,
    /// No requests.
    BestEffort,
}

/// Kubelet's cgroup driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Driver {
    /// Directories made by kubelet and the runtime.
    Cgroupfs,
    /// Slices and scopes made by systemd.
    Systemd,
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerId {
    /// Its id; the whole name if that has no known form.
    pub id: String,
    /// The runtime or CRI implementation that the name shows.
    pub runtime: Option<&'static str>,
}

/// Longest first where one is the beginning of another.
const PREFIXES: [(&str, &str); 8] = [
    ("cri-containerd-", "containerd"),
    ("crio-conmon-", "cri-o"),
    ("crio-", "cri-o"),
    ("docker-", "docker"),
    ("libpod-conmon-", "podman"),
    ("libpod-payload-", "podman"),
    ("libpod-", "podman"),
    ("nerdctl-", "containerd"),
];

const LONGEST_NAME: usize = CGROUP_NAME_LEN - 2;

/// The role of a directory called `name` whose parent has role `parent`.
#[must_use]
pub fn role_of(parent: u32, name: &[u8]) -> u32 {
    // The kernel side keeps a terminating NUL, and takes a name that leaves no room after it for one that was cut.
    match to_name(name).filter(|_| name.len() <= LONGEST_NAME) {
        Some((buffer, len)) => classify(parent, &buffer, len),
        None if parent == role::NONE => role::NONE,
        None => {
            let (buffer, len) =
                to_name(name.get(..CGROUP_NAME_LEN).unwrap_or_default()).unwrap_or(([0; _], 0));
            classify(parent, &buffer, len)
        }
    }
}

/// Reads a path from the root of the unified hierarchy; `None` if no component is a pod's.
#[must_use]
pub fn parse(path: &str) -> Option<PodCgroup> {
    let mut components = path.split('/').filter(|component| !component.is_empty());
    let mut parent = None;
    let pod = loop {
        let component = components.next()?;
        if role_of(role::NONE, component.as_bytes()) == role::POD {
            break component;
        }
        parent = Some(component);
    };
    let (name, len) = to_name(pod.as_bytes())?;
    let (start, uid_len) = pod_uid(&name, len)?;
    let uid = PodUid::parse(pod.get(start..start + uid_len)?)?;
    let driver = if start == "pod".len() { Driver::Cgroupfs } else { Driver::Systemd };
    let parent = match driver {
        Driver::Cgroupfs => parent.unwrap_or_default(),
        Driver::Systemd => pod.get(..start)?.strip_suffix("-pod")?,
    };
    let container = components.next();
    Some(PodCgroup {
        uid,
        qos: qos(parent),
        driver,
        container: container.map(container_id),
        below: components.count(),
        monitor: container.is_some_and(|name| role_of(role::POD, name.as_bytes()) == role::MONITOR),
    })
}

fn qos(parent: &str) -> Qos {
    if parent.ends_with("besteffort") {
        Qos::BestEffort
    } else if parent.ends_with("burstable") {
        Qos::Burstable
    } else {
        Qos::Guaranteed
    }
}

fn container_id(name: &str) -> ContainerId {
    let stem = name.strip_suffix(".scope").unwrap_or(name);
    for (prefix, runtime) in PREFIXES {
        if let Some(id) = stem.strip_prefix(prefix).filter(|id| !id.is_empty()) {
            return ContainerId { id: id.to_owned(), runtime: Some(runtime) };
        }
    }
    let last = stem.rsplit('-').next().unwrap_or(stem);
    let id = if is_id(last) { last } else { name };
    ContainerId { id: id.to_owned(), runtime: None }
}

/// Whether it is what every runtime uses for an id: 64 hex digits.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11";
    const UNDERSCORED: &str = "0f4b5b7e_6f1d_4f3e_9d5c_2f1f4f1a7c11";
    const HASH: &str = "51bd78aa51bd78aa51bd78aa51bd78aa";
    const ID: &str = "5a2f0c9be7d14c3f8a61b2e4d0937f5ac1b8e6d2470f93ab5c6d7e8f90a1b2c3";

    /// A path with `U`, `_`, `H` and `I` for uid, underscored uid, hash and id, and what it says.
    type Row =
        (&'static str, &'static str, Qos, Driver, Option<(&'static str, Option<&'static str>)>, usize, bool);

    #[rustfmt::skip]
    const CORPUS: &[Row] = {
        use Driver::{Cgroupfs, Systemd};
        use Qos::{BestEffort, Burstable, Guaranteed};
        const CONTAINERD: Option<(&str, Option<&str>)> = Some((ID, Some("containerd")));
        const CRIO: Option<(&str, Option<&str>)> = Some((ID, Some("cri-o")));
        const DOCKER: Option<(&str, Option<&str>)> = Some((ID, Some("docker")));
        const PODMAN: Option<(&str, Option<&str>)> = Some((ID, Some("podman")));
        const PLAIN: Option<(&str, Option<&str>)> = Some((ID, None));
        &[
            // kubelet with the systemd driver
            ("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<_>.slice", UID, Burstable, Systemd, None, 0, false),
            ("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<_>.slice/cri-containerd-<I>.scope", UID, Burstable, Systemd, CONTAINERD, 0, false),
            ("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod<_>.slice/cri-containerd-<I>.scope", UID, BestEffort, Systemd, CONTAINERD, 0, false),
            ("/kubepods.slice/kubepods-pod<_>.slice/cri-containerd-<I>.scope", UID, Guaranteed, Systemd, CONTAINERD, 0, false),
            ("/kubepods.slice/kubepods-pod<_>.slice/crio-<I>.scope", UID, Guaranteed, Systemd, CRIO, 0, false),
            ("/kubepods.slice/kubepods-pod<_>.slice/crio-<I>.scope/container", UID, Guaranteed, Systemd, CRIO, 1, false),
            ("/kubepods.slice/kubepods-pod<_>.slice/crio-<I>.scope/container/exec", UID, Guaranteed, Systemd, CRIO, 2, false),
            ("/kubepods.slice/kubepods-pod<_>.slice/crio-<I>.scope/exec", UID, Guaranteed, Systemd, CRIO, 1, false),
            ("/kubepods.slice/kubepods-pod<_>.slice/crio-conmon-<I>.scope", UID, Guaranteed, Systemd, CRIO, 0, true),
            ("/kubepods.slice/kubepods-pod<_>.slice/docker-<I>.scope", UID, Guaranteed, Systemd, DOCKER, 0, false),
            ("/kubepods.slice/kubepods-pod<_>.slice/libpod-<I>.scope/container", UID, Guaranteed, Systemd, PODMAN, 1, false),
            ("/kubepods.slice/kubepods-pod<_>.slice/libpod-conmon-<I>.scope", UID, Guaranteed, Systemd, PODMAN, 0, true),
            ("/kubepods.slice/kubepods-pod<_>.slice/runtime-of-tomorrow-<I>.scope", UID, Guaranteed, Systemd, PLAIN, 0, false),
            ("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod<_>.slice/cri-containerd-<I>.scope", UID, BestEffort, Systemd, CONTAINERD, 0, false),
            // kubelet with the cgroupfs driver
            ("/kubepods/burstable/pod<U>", UID, Burstable, Cgroupfs, None, 0, false),
            ("/kubepods/burstable/pod<U>/<I>", UID, Burstable, Cgroupfs, PLAIN, 0, false),
            ("/kubepods/besteffort/pod<U>/<I>", UID, BestEffort, Cgroupfs, PLAIN, 0, false),
            ("/kubepods/pod<U>/<I>", UID, Guaranteed, Cgroupfs, PLAIN, 0, false),
            ("/kubepods/pod<U>/crio-<I>", UID, Guaranteed, Cgroupfs, CRIO, 0, false),
            ("/kubepods/pod<U>/crio-conmon-<I>", UID, Guaranteed, Cgroupfs, CRIO, 0, true),
            ("/kubepods/besteffort/pod<U>/libpod-<I>", UID, BestEffort, Cgroupfs, PODMAN, 0, false),
            ("/custom/root/kubepods/burstable/pod<U>/<I>/container", UID, Burstable, Cgroupfs, PLAIN, 1, false),
            // static pods
            ("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<H>.slice/cri-containerd-<I>.scope", HASH, Burstable, Systemd, CONTAINERD, 0, false),
            ("/kubepods/burstable/pod<H>/<I>", HASH, Burstable, Cgroupfs, PLAIN, 0, false),
            // nodes that are containers: kind, minikube, k3d; and a reader in a cgroup namespace of its own
            ("/system.slice/docker-<I>.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod<_>.slice/cri-containerd-<I>.scope", UID, Guaranteed, Systemd, CONTAINERD, 0, false),
            ("/docker/<I>/kubelet/kubepods/besteffort/pod<U>/<I>", UID, BestEffort, Cgroupfs, PLAIN, 0, false),
            ("/docker/<I>/kubepods/besteffort/pod<U>/<I>", UID, BestEffort, Cgroupfs, PLAIN, 0, false),
            ("/machine.slice/libpod-<I>.scope/container/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod<_>.slice/crio-<I>.scope", UID, Burstable, Systemd, CRIO, 0, false),
            ("/../../kubepods/besteffort/pod<U>/<I>", UID, BestEffort, Cgroupfs, PLAIN, 0, false),
            // what workloads make of it: the first pod component counts
            ("/kubepods/pod<U>/<I>/kubepods/burstable/pod<H>/<I>", UID, Guaranteed, Cgroupfs, PLAIN, 4, false),
            ("/kubepods/pod<U>/<I>/crio-conmon-<I>.scope", UID, Guaranteed, Cgroupfs, PLAIN, 1, false),
            ("/kubepods/pod<U>/<I>/system.slice/nginx.service", UID, Guaranteed, Cgroupfs, PLAIN, 2, false),
            ("/kubepods/pod<U>/crio-conmon-<I>/x/y", UID, Guaranteed, Cgroupfs, CRIO, 2, true),
            ("/kubepods/pod<U>/anything", UID, Guaranteed, Cgroupfs, Some(("anything", None)), 0, false),
            ("/kubepods/pod<U>/crio-", UID, Guaranteed, Cgroupfs, Some(("crio-", None)), 0, false),
            ("kubepods//pod<U>///<I>/", UID, Guaranteed, Cgroupfs, PLAIN, 0, false),
        ]
    };

    fn fill(path: &str) -> String {
        path.replace("<U>", UID).replace("<_>", UNDERSCORED).replace("<H>", HASH).replace("<I>", ID)
    }

    #[test]
    fn every_known_form_is_read() {
        for (path, uid, qos, driver, container, below, monitor) in CORPUS {
            let container = container.map(|(id, runtime)| ContainerId { id: id.into(), runtime });
            let (qos, driver, below, monitor) = (*qos, *driver, *below, *monitor);
            let expected =
                PodCgroup { uid: PodUid::parse(uid).unwrap(), qos, driver, container, below, monitor };
            assert_eq!(parse(&fill(path)), Some(expected), "{path}");
        }
    }

    #[test]
    fn the_host_is_no_pod() {
        for path in [
            "",
            "/",
            "/init.scope",
            "/system.slice/containerd.service",
            "/kubepods.slice",
            "/kubepods.slice/kubepods-burstable.slice",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/libpod-<I>.scope",
            "/system.slice/crio-conmon-<I>.scope",
            "/kubepods/podman/<I>",
            "/kubepods/pod<U>x/<I>",
            "/kubepods/xpod<U>/<I>",
            "/-pod<H>.slice/<I>",
            "/kubepods-pod<U>.slice.d/<I>",
            "/kubepods/pod<U>\n/<I>",
            "/kubepods/pod<U>\\x00/<I>",
        ] {
            assert_eq!(parse(&fill(path)), None, "{path:?}");
        }
    }

    #[test]
    fn roles_agree_with_paths() {
        for (path, _, _, _, container, below, monitor) in CORPUS {
            let path = fill(path);
            let role = path
                .split('/')
                .filter(|name| !name.is_empty())
                .fold(role::NONE, |r, n| role_of(r, n.as_bytes()));
            let expected = match (container, monitor, below) {
                (None, ..) => role::POD,
                (_, true, _) => role::MONITOR,
                (_, _, 0) => role::CONTAINER,
                (..) => role::NESTED,
            };
            assert_eq!(role, expected, "{path}");
        }
    }

    #[test]
    fn long_names_keep_their_place() {
        let long = "a".repeat(4096);
        assert_eq!(role_of(role::NONE, long.as_bytes()), role::NONE);
        assert_eq!(role_of(role::POD, long.as_bytes()), role::CONTAINER);
        assert_eq!(role_of(role::POD, format!("crio-conmon-{long}").as_bytes()), role::MONITOR);
        assert_eq!(role_of(role::NONE, format!("{long}-pod{HASH}.slice").as_bytes()), role::NONE);
        let slice = |len: usize| format!("{}-pod{HASH}.slice", "a".repeat(len - HASH.len() - 10));
        assert_eq!(role_of(role::NONE, slice(LONGEST_NAME).as_bytes()), role::POD);
        assert_eq!(role_of(role::NONE, slice(LONGEST_NAME + 1).as_bytes()), role::NONE);
        let found = parse(&format!("/{long}/pod{UID}/{long}/{long}")).unwrap();
        assert_eq!((found.container.unwrap().id, found.below), (long, 1));
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, end: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 >> 33).unwrap() % end
        }
    }

    /// Paths put together from real pieces, pieces of pieces and junk.
    fn random_path(random: &mut Random) -> String {
        let (pod, slice) = (format!("/pod{UID}/"), format!("/kubepods-pod{HASH}.slice/"));
        #[rustfmt::skip]
        let pieces = [
            "/", "/", "/", "pod", "-pod", ".slice", ".scope", "kubepods", "burstable", "besteffort", "crio-", "conmon-",
            UID, UNDERSCORED, HASH, ID, "..", "\n", "\\xff", "\u{1b}[31m", "π", "\0", " (deleted)", "-", "_", "a", "0",
            &pod, &slice,
        ];
        let mut path = String::new();
        for _ in 0..random.below(24) {
            let piece = pieces[random.below(pieces.len())];
            let cut = if random.below(8) == 0 { random.below(piece.len() + 1) } else { piece.len() };
            path.push_str(piece.get(..cut).unwrap_or(piece));
        }
        if random.below(50) == 0 {
            path.push_str(&"x".repeat(4096));
        }
        path
    }

    #[test]
    fn no_path_is_attributed_to_a_pod_it_does_not_name() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut pods = 0;
        for _ in 0..200_000 {
            let path = random_path(&mut random);
            let Some(found) = parse(&path) else { continue };
            pods += 1;
            let named =
                path.split('/').filter(|component| component.len() <= LONGEST_NAME).find_map(|component| {
                    let uid = match component.strip_suffix(".slice") {
                        Some(stem) => stem.rsplit_once("-pod").filter(|(before, _)| !before.is_empty())?.1,
                        None => component.strip_prefix("pod")?,
                    };
                    PodUid::parse(uid)
                });
            assert_eq!(named, Some(found.uid), "{path:?}");
            if let Some(container) = found.container {
                assert!(!container.id.is_empty() && path.contains(&container.id), "{path:?}");
            }
        }
        assert!(pods > 1000, "the generator makes too few pods: {pods}");
    }
}
