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
//! | systemd told, cgroupfs done | containerd, CRI-O | `kubepods-burstable-pod<uid>.slice:cri-containerd:<id>`, all in one name |
//! | both | monitors | `crio-conmon-<id>[.scope]`, `libpod-conmon-<id>[.scope]` |
//!
//! Anything may stand before the pod's component (`kubelet.slice`, a node that is itself a container) and after
//! the container's. What a component is, is decided by [`userns_common::cgroup`], as in the kernel.

use userns_common::cgroup::{Unsplit, classify, pod_uid, role, to_name, unsplit};
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
        match role_of(role::NONE, component.as_bytes()) {
            role::POD => break component,
            role::CONTAINER => return parse_unsplit(component, components.count()),
            _ => parent = Some(component),
        }
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

/// Reads the name of a container's directory that names its pod as well.
fn parse_unsplit(component: &str, below: usize) -> Option<PodCgroup> {
    let (name, len) = to_name(component.as_bytes())?;
    let Unsplit { uid: (start, uid_len), prefix, id } = unsplit(&name, len)?;
    let said = component.get(prefix..id - 1)?;
    let runtime = PREFIXES.iter().find(|(prefix, _)| prefix.strip_suffix('-') == Some(said));
    Some(PodCgroup {
        uid: PodUid::parse(component.get(start..start + uid_len)?)?,
        qos: qos(component.get(..start)?.strip_suffix("-pod")?),
        driver: Driver::Cgroupfs,
        container: Some(ContainerId {
            id: component.get(id..)?.to_owned(),
            runtime: runtime.map(|(_, runtime)| *runtime),
        }),
        below,
        monitor: false,
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

    /// Real paths and hostile ones, with what they say: see the head of the file.
    const CORPUS: &str = include_str!("../tests/cgroup_paths.txt");

    /// What a line says of a path: `None` if it is no pod's.
    type Row = (String, Option<(PodCgroup, u32)>);

    fn corpus() -> Vec<Row> {
        let lines = CORPUS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(row).collect()
    }

    fn row(line: &str) -> Row {
        let columns: Vec<&str> = line.split(' ').collect();
        let path = fill(columns[0]);
        let [_, uid, id, runtime, role, qos, driver, below] = columns[..] else {
            assert_eq!(columns.len(), 1, "{line}");
            return (path, None);
        };
        let known = ["containerd", "cri-o", "docker", "podman"];
        let container = (id != "-").then(|| ContainerId {
            id: if id == "I" { ID.to_owned() } else { id.to_owned() },
            runtime: (runtime != "-").then(|| known.into_iter().find(|known| *known == runtime).unwrap()),
        });
        let says = PodCgroup {
            uid: PodUid::parse(if uid == "H" { HASH } else { UID }).unwrap(),
            qos: match qos {
                "guaranteed" => Qos::Guaranteed,
                "burstable" => Qos::Burstable,
                "besteffort" => Qos::BestEffort,
                _ => panic!("{line}"),
            },
            driver: match driver {
                "cgroupfs" => Driver::Cgroupfs,
                "systemd" => Driver::Systemd,
                _ => panic!("{line}"),
            },
            container,
            below: below.parse().unwrap(),
            monitor: role == "monitor",
        };
        let role = match role {
            "pod" => role::POD,
            "container" => role::CONTAINER,
            "nested" => role::NESTED,
            "monitor" => role::MONITOR,
            _ => panic!("{line}"),
        };
        (path, Some((says, role)))
    }

    fn fill(path: &str) -> String {
        path.replace("<U>", UID)
            .replace("<_>", UNDERSCORED)
            .replace("<H>", HASH)
            .replace("<I>", ID)
            .replace("\\n", "\n")
    }

    #[test]
    fn every_path_of_the_corpus_is_read_as_it_says() {
        for (path, says) in corpus() {
            assert_eq!(parse(&path), says.map(|(says, _)| says), "{path:?}");
        }
        assert!(parse("").is_none());
    }

    #[test]
    fn roles_agree_with_paths() {
        for (path, says) in corpus() {
            let components = path.split('/').filter(|name| !name.is_empty());
            let role = components.fold(role::NONE, |r, n| role_of(r, n.as_bytes()));
            assert_eq!(role, says.map_or(role::NONE, |(_, role)| role), "{path:?}");
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
        let unsplit = format!("/kubepods-pod{UNDERSCORED}.slice:cri-containerd:{ID}/");
        #[rustfmt::skip]
        let pieces = [
            "/", "/", "/", "pod", "-pod", ".slice", ".scope", "kubepods", "burstable", "besteffort", "crio-", "conmon-",
            UID, UNDERSCORED, HASH, ID, "..", "\n", "\\xff", "\u{1b}[31m", "π", "\0", " (deleted)", "-", "_", "a", "0",
            &pod, &slice, &unsplit, ":cri-containerd:", ":crio:", ":",
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
                    let unsplit = [":cri-containerd:", ":crio:"].into_iter().find_map(|infix| {
                        let (slice, id) = component.rsplit_once(infix)?;
                        is_id(id).then_some(slice)
                    });
                    let stem = match unsplit {
                        Some(slice) => Some(slice.strip_suffix(".slice")?),
                        None => component.strip_suffix(".slice"),
                    };
                    let uid = match stem {
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
