//! Where this process is, and what may be tried there.

use std::fs;
use std::os::fd::RawFd;
use std::path::Path;

/// Inode numbers of initial namespaces (include/uapi/linux/nsfs.h).
const INITIAL_USER: u32 = 0xEFFF_FFFD;
const INITIAL_PID: u32 = 0xEFFF_FFFC;
const INITIAL_CGROUP: u32 = 0xEFFF_FFFB;

/// What is read of the place, before anything is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readings {
    /// Inode number of the user namespace.
    pub user: u32,
    /// Inode number of the PID namespace.
    pub pid: u32,
    /// Inode number of the cgroup namespace; 0 on a kernel without.
    pub cgroup: u32,
    /// `/proc/self/uid_map`: first id inside, first id of the parent, how many.
    pub uid_map: Vec<(u32, u32, u32)>,
    /// The type of the root file system.
    pub root: String,
}

/// What holds a process in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A user namespace that no root of its parent is mapped into: everything may be tried.
    UserNamespace,
    /// A user namespace that has its parent's root in it: only what is harmless may be tried.
    ParentsRoot,
    /// A container in the host's user namespace: only what is harmless may be tried.
    HostUsers,
}

impl Standing {
    /// As printed in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UserNamespace => "user_namespace",
            Self::ParentsRoot => "parents_root",
            Self::HostUsers => "host_users",
        }
    }

    /// For people.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::UserNamespace => "in a user namespace",
            Self::ParentsRoot => "in a user namespace into which its parent's root is mapped",
            Self::HostUsers => "in a container in the host's user namespace",
        }
    }

    /// Whether a user namespace is to stop anything.
    #[must_use]
    pub const fn is_promised(self) -> bool {
        !matches!(self, Self::HostUsers)
    }
}

/// Why nothing is tried.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// On the bare host.
    #[error(
        "this is the host, or a container that shares its {0}: run it in a pod (deploy/simulate/job.yaml is one); \
         nothing was tried"
    )]
    Host(&'static str),
    /// It cannot be found out where this is.
    #[error(
        "cannot find out where this is ({what}: {why}), so nothing was tried: mount /proc in the container"
    )]
    Unknown {
        /// What was read.
        what: String,
        /// Why not.
        why: String,
    },
}

/// What an attempt needs to know of where it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ground {
    /// What holds it in.
    pub standing: Standing,
    /// A process that is in sight and in none of this user namespace's.
    pub foreign: Option<i32>,
    /// A descriptor that was left open, as the caller says.
    pub leaked: Option<RawFd>,
}

impl Readings {
    /// Reads what there is below `proc`.
    ///
    /// # Errors
    ///
    /// [`Refusal::Unknown`] if something that matters cannot be read.
    pub fn take(proc: &Path) -> Result<Self, Refusal> {
        let namespace = |kind: &str| -> Result<u32, Refusal> {
            let path = proc.join("self/ns").join(kind);
            let link = fs::read_link(&path).map_err(|error| unknown(&path, &error))?;
            inode(&link.to_string_lossy()).ok_or_else(|| unknown(&path, &"it names no namespace"))
        };
        let text = |file: &str| {
            let path = proc.join(file);
            fs::read_to_string(&path).map_err(|error| unknown(&path, &error))
        };
        let (user, pid) = (namespace("user")?, namespace("pid")?);
        Ok(Self {
            user,
            pid,
            cgroup: namespace("cgroup").unwrap_or(0),
            uid_map: text("self/uid_map")?.lines().filter_map(extent).collect(),
            root: root_type(&text("self/mountinfo")?),
        })
    }

    /// Says what may be tried.
    ///
    /// In the initial user namespace nothing is tried unless the process is in a PID namespace of its own and has
    /// either a runtime's root file system or a cgroup namespace of its own.
    ///
    /// # Errors
    ///
    /// [`Refusal::Host`] on the bare host.
    pub fn standing(&self) -> Result<Standing, Refusal> {
        if self.user != INITIAL_USER {
            let parents_root = self.uid_map.iter().any(|(_, parent, count)| *parent == 0 && *count > 0);
            return Ok(if parents_root { Standing::ParentsRoot } else { Standing::UserNamespace });
        }
        if self.pid == INITIAL_PID {
            return Err(Refusal::Host("PID namespace"));
        }
        let own_cgroups = self.cgroup != 0 && self.cgroup != INITIAL_CGROUP;
        if !own_cgroups && self.root != "overlay" {
            return Err(Refusal::Host("root file system"));
        }
        Ok(Standing::HostUsers)
    }
}

fn unknown(path: &Path, why: &dyn std::fmt::Display) -> Refusal {
    Refusal::Unknown { what: path.display().to_string(), why: why.to_string() }
}

/// The number in `user:[4026531837]`.
fn inode(link: &str) -> Option<u32> {
    link.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

fn extent(line: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = line.split_ascii_whitespace().map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some((next()?, next()?, next()?))
}

/// The type of what is mounted at `/` last, in mountinfo.
fn root_type(mountinfo: &str) -> String {
    let roots = mountinfo.lines().filter(|line| line.split(' ').nth(4) == Some("/"));
    let kind = |line: &str| line.split_once(" - ")?.1.split(' ').next().map(str::to_owned);
    roots.filter_map(kind).next_back().unwrap_or_default()
}

/// A process below `proc` that may be seen and not be looked at, and whose user is none of this user namespace: one of the
/// host, or of another pod. The one that is `wanted`, or that with the lowest number.
pub(super) fn foreign(proc: &Path, wanted: Option<i32>) -> Option<i32> {
    let overflow = fs::read_to_string(proc.join("sys/kernel/overflowuid")).ok();
    let overflow = overflow.as_deref().map_or("65534", str::trim);
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<i32>().ok();
    let pids = fs::read_dir(proc).ok()?.flatten().filter_map(number);
    let is_foreign = |pid: &i32| {
        let dir = proc.join(pid.to_string());
        let hidden = fs::read_link(dir.join("ns/user")).is_err();
        let status = fs::read_to_string(dir.join("status")).unwrap_or_default();
        let user = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next());
        hidden && user == Some(overflow)
    };
    pids.filter(|pid| wanted.is_none_or(|wanted| wanted == *pid)).filter(is_foreign).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(user: u32, pid: u32, cgroup: u32, parent: u32, root: &str) -> Readings {
        Readings { user, pid, cgroup, uid_map: vec![(0, parent, 65_536)], root: root.into() }
    }

    #[test]
    fn the_bare_host_is_refused() {
        let host = |what| Err(Refusal::Host(what));
        let on_disk = |pid, cgroup| readings(INITIAL_USER, pid, cgroup, 0, "ext4").standing();
        assert_eq!(on_disk(INITIAL_PID, INITIAL_CGROUP), host("PID namespace"));
        // a container with hostPID, a service with a mount namespace of its own
        assert_eq!(readings(INITIAL_USER, INITIAL_PID, 7, 0, "overlay").standing(), host("PID namespace"));
        // `unshare --pid --fork` on the host
        assert_eq!(on_disk(7, INITIAL_CGROUP), host("root file system"));
        assert_eq!(on_disk(7, 0), host("root file system"));
    }

    #[test]
    fn containers_are_told_apart() {
        let of = |readings: Readings| readings.standing().unwrap();
        assert_eq!(of(readings(7, INITIAL_PID, INITIAL_CGROUP, 65_536, "ext4")), Standing::UserNamespace);
        assert_eq!(of(readings(7, 8, 9, 0, "overlay")), Standing::ParentsRoot);
        assert_eq!(of(readings(INITIAL_USER, 8, INITIAL_CGROUP, 0, "overlay")), Standing::HostUsers);
        assert_eq!(of(readings(INITIAL_USER, 8, 9, 0, "btrfs")), Standing::HostUsers);
        // nothing is mapped yet: nobody in there is anybody
        let unmapped = Readings { uid_map: Vec::new(), ..readings(7, 8, 9, 0, "overlay") };
        assert_eq!(of(unmapped), Standing::UserNamespace);
    }

    #[test]
    fn readings_are_those_of_proc() {
        let own = Readings::take(Path::new("/proc")).unwrap();
        assert!(own.user != 0 && own.pid != 0 && !own.root.is_empty() && !own.uid_map.is_empty(), "{own:?}");
        let dir = tempfile::tempdir().unwrap();
        let refusal = Readings::take(dir.path()).unwrap_err();
        assert!(refusal.to_string().contains("self/ns/user"), "{refusal}");
    }

    #[test]
    fn foreign_processes_are_those_that_nobody_here_owns() {
        let dir = tempfile::tempdir().unwrap();
        let add = |pid: &str, user: &str, readable: bool| {
            let dir = dir.path().join(pid);
            fs::create_dir_all(dir.join("ns")).unwrap();
            fs::write(dir.join("status"), format!("Name:\tx\nUid:\t{user}\t0\t0\t0\n")).unwrap();
            if readable {
                std::os::unix::fs::symlink("user:[4]", dir.join("ns/user")).unwrap();
            }
        };
        add("1", "0", true);
        add("2", "1000", false);
        add("self", "65534", false);
        assert_eq!(foreign(dir.path(), None), None);
        add("30", "65534", false);
        add("4", "65534", false);
        add("3", "65534", true);
        assert_eq!(foreign(dir.path(), None), Some(4));
        // no one else is taken for the one that is wanted
        assert_eq!((foreign(dir.path(), Some(30)), foreign(dir.path(), Some(1))), (Some(30), None));
    }

    #[test]
    fn the_root_is_what_is_mounted_there_last() {
        let mountinfo = "1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:3 / /proc rw - proc proc rw\n\
                         3 1 0:4 / / rw,relatime shared:1 - overlay overlay rw\n";
        assert_eq!((root_type(mountinfo).as_str(), root_type("").as_str()), ("overlay", ""));
    }
}
