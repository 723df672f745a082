//! OCI bundles: `config.json` and the `process.json` of an exec, with the defaults containerd gives to pods.
//!
//! No resource limits are set: they would need controllers in the v2 hierarchy and rights over rlimits that a
//! test machine need not have.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{major, minor};
use serde_json::{Value, json};

use super::ids::IdMapping;

/// containerd's default set.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// In the order of their numbers.
const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The capabilities of a process in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Capabilities {
    /// What containerd gives to a container that asks for nothing.
    #[default]
    RuntimeDefault,
    /// Every one the lab's own process may hand on, as `privileged: true` gives.
    All,
    /// These, by their names (`CAP_SYS_ADMIN`).
    Only(Vec<String>),
}

impl Capabilities {
    fn names(&self) -> Vec<String> {
        match self {
            Self::RuntimeDefault => DEFAULT_CAPABILITIES.map(str::to_owned).to_vec(),
            Self::All => held(bounding_set()),
            Self::Only(names) => names.clone(),
        }
    }
}

/// A mount of the OCI runtime specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Path in the container.
    pub destination: String,
    /// Host path or device.
    pub source: String,
    /// File system type; `bind` for host paths.
    pub kind: String,
    /// Options in the words of `mount(8)`, such as `rbind` and `ro`.
    pub options: Vec<String>,
}

impl Mount {
    /// The host directory or file `source`, at `destination`.
    #[must_use]
    pub fn bind(source: &Path, destination: &str) -> Self {
        let source = source.display().to_string();
        let options = vec!["rbind".to_owned(), "rprivate".to_owned()];
        Self { destination: destination.to_owned(), source, kind: "bind".to_owned(), options }
    }

    fn new(destination: &str, kind: &str, options: &[&str]) -> Self {
        Self {
            destination: destination.to_owned(),
            source: kind.to_owned(),
            kind: kind.to_owned(),
            options: options.iter().copied().map(str::to_owned).collect(),
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "destination": self.destination,
            "type": self.kind,
            "source": self.source,
            "options": self.options,
        })
    }
}

/// A character device that a container may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    path: PathBuf,
    major: u32,
    minor: u32,
}

impl Device {
    /// The device at `path` on the host.
    pub(super) fn find(path: &Path) -> Result<Self> {
        let data = fs::metadata(path).with_context(|| format!("there is no device {}", path.display()))?;
        ensure!(data.file_type().is_char_device(), "{} is no character device", path.display());
        let (major, minor) = (major(data.rdev()), minor(data.rdev()));
        Ok(Self { path: path.to_owned(), major, minor })
    }

    fn to_json(&self) -> Value {
        json!({ "path": self.path, "type": "c", "major": self.major, "minor": self.minor, "fileMode": 0o666 })
    }

    fn rule(&self) -> Value {
        json!({ "allow": true, "type": "c", "major": self.major, "minor": self.minor, "access": "rwm" })
    }
}

/// What runs in a container: its entrypoint or an exec.
#[derive(Debug, Clone, Default)]
pub struct ProcessSpec {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Capabilities in the container's user namespace.
    pub capabilities: Capabilities,
    /// User and group ID as the container sees them.
    pub user: u32,
    /// A file or directory of the host's that is left open to it as [`ProcessSpec::LEAKED`].
    pub leaked: Option<PathBuf>,
}

impl ProcessSpec {
    /// The number of what is left open.
    pub const LEAKED: i32 = 3;

    /// `args` as root of the container, with the runtime's default capabilities.
    #[must_use]
    pub fn new(args: &[&str]) -> Self {
        Self { args: args.iter().copied().map(str::to_owned).collect(), ..Self::default() }
    }

    pub(super) fn to_json(&self) -> Value {
        let names = if self.user == 0 { self.capabilities.names() } else { Vec::new() };
        let bounding = self.capabilities.names();
        json!({
            "terminal": false,
            "user": { "uid": self.user, "gid": self.user },
            "args": self.args,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"],
            "cwd": "/",
            "capabilities": { "bounding": bounding, "effective": names, "permitted": names },
            "noNewPrivileges": false,
        })
    }
}

/// What `config.json` says beyond the defaults.
#[derive(Debug)]
pub(super) struct BundleConfig<'a> {
    pub(super) process: &'a ProcessSpec,
    pub(super) hostname: &'a str,
    pub(super) rootfs: &'a Path,
    pub(super) cgroups_path: &'a str,
    /// `None`: no user namespace.
    pub(super) mapping: Option<&'a [IdMapping]>,
    pub(super) host_pid_namespace: bool,
    /// The sandbox whose namespaces are shared.
    pub(super) sandbox: Option<u32>,
    pub(super) mounts: &'a [Mount],
    pub(super) devices: &'a [Device],
}

impl BundleConfig<'_> {
    pub(super) fn to_json(&self) -> Value {
        let mounts = self.default_mounts().iter().chain(self.mounts).map(Mount::to_json).collect::<Vec<_>>();
        let mut linux = json!({
            "cgroupsPath": self.cgroups_path,
            "namespaces": self.namespaces(),
            "maskedPaths": [
                "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        });
        if !self.devices.is_empty() {
            linux["devices"] = self.devices.iter().map(Device::to_json).collect();
            linux["resources"] =
                json!({ "devices": self.devices.iter().map(Device::rule).collect::<Vec<_>>() });
        }
        if let Some(mapping) = self.mapping {
            linux["uidMappings"] = json!(mapping);
            linux["gidMappings"] = json!(mapping);
        }
        let mut config = json!({
            "ociVersion": "1.0.2",
            "process": self.process.to_json(),
            "root": { "path": self.rootfs },
            "mounts": mounts,
            "linux": linux,
        });
        if self.sandbox.is_none() {
            config["hostname"] = json!(self.hostname);
        }
        config
    }

    fn namespaces(&self) -> Vec<Value> {
        let own = |kind: &str| json!({ "type": kind });
        // As the CRI has it: these belong to the sandbox, the others to each container.
        let shared = |kind: &str, file: &str| match self.sandbox {
            Some(pid) => json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") }),
            None => own(kind),
        };
        let mut namespaces = vec![own("mount"), own("cgroup")];
        namespaces.extend((!self.host_pid_namespace).then(|| own("pid")));
        namespaces.extend([shared("network", "net"), shared("ipc", "ipc"), shared("uts", "uts")]);
        namespaces.extend(self.mapping.map(|_| shared("user", "user")));
        namespaces
    }

    fn default_mounts(&self) -> Vec<Mount> {
        let proc = if self.host_pid_namespace && self.mapping.is_some() {
            // A process file system can only be mounted by the owner of its PID namespace.
            Mount::bind(Path::new("/proc"), "/proc")
        } else {
            Mount::new("/proc", "proc", &["nosuid", "noexec", "nodev"])
        };
        let shm = &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
        let pts = &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
        vec![
            proc,
            Mount::new("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            Mount::new("/dev/pts", "devpts", pts),
            Mount::new("/dev/shm", "tmpfs", shm),
            Mount::new("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            Mount::new("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            Mount::new("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ]
    }
}

fn held(bounding_set: u64) -> Vec<String> {
    let names = ALL_CAPABILITIES.iter().enumerate();
    names.filter(|(number, _)| bounding_set >> number & 1 == 1).map(|(_, name)| (*name).to_owned()).collect()
}

/// `CapBnd` of this process; everything, when that cannot be read.
fn bounding_set() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::IdRange;

    const MAPPING: [IdMapping; 1] = [IdMapping { container_id: 0, host_id: 65536, length: 65536 }];

    fn config(mapping: Option<&[IdMapping]>, host_pid_namespace: bool, sandbox: Option<u32>) -> Value {
        let process = &ProcessSpec::new(&["sleep", "60"]);
        let (rootfs, cgroups_path) = (Path::new("/rootfs"), "/kubepods/podx/0a");
        let mounts = &[Mount::bind(Path::new("/srv"), "/data")];
        let devices = &[Device::find(Path::new("/dev/null")).unwrap()];
        BundleConfig {
            process,
            hostname: "web",
            rootfs,
            cgroups_path,
            mapping,
            host_pid_namespace,
            sandbox,
            mounts,
            devices,
        }
        .to_json()
    }

    fn namespaces(config: &Value) -> Vec<&str> {
        let list = config["linux"]["namespaces"].as_array().unwrap();
        list.iter().map(|namespace| namespace["type"].as_str().unwrap()).collect()
    }

    #[test]
    fn a_pod_with_a_user_namespace() {
        let config = config(Some(&IdRange::nth(0).mapping()), false, None);
        let mapping = json!([{ "containerID": 0, "hostID": 65536, "size": 65536 }]);
        assert_eq!(config["linux"]["uidMappings"], mapping);
        assert_eq!(config["linux"]["gidMappings"], mapping);
        assert_eq!(namespaces(&config), ["mount", "cgroup", "pid", "network", "ipc", "uts", "user"]);
        assert_eq!(config["linux"]["cgroupsPath"], "/kubepods/podx/0a");
        assert_eq!(config["hostname"], "web");
        assert_eq!(config["mounts"][7]["destination"], "/data");
        assert_eq!(config["process"]["capabilities"]["effective"].as_array().unwrap().len(), 14);
        assert_eq!(config["linux"]["devices"][0]["path"], "/dev/null");
        assert_eq!(config["linux"]["resources"]["devices"][0]["minor"], 3);
    }

    #[test]
    fn a_runtime_that_ignored_the_promise() {
        let config = config(None, false, None);
        assert!(!namespaces(&config).contains(&"user"));
        assert_eq!(config["linux"].get("uidMappings"), None);
    }

    #[test]
    fn the_sandbox_shares_what_the_cri_shares() {
        let config = config(Some(&MAPPING), false, Some(7));
        let list = config["linux"]["namespaces"].as_array().unwrap();
        let shared: Vec<&str> = list.iter().filter_map(|namespace| namespace["path"].as_str()).collect();
        assert_eq!(shared, ["/proc/7/ns/net", "/proc/7/ns/ipc", "/proc/7/ns/uts", "/proc/7/ns/user"]);
        assert_eq!(config.get("hostname"), None);
    }

    #[test]
    fn the_host_pid_namespace_brings_its_proc_along() {
        assert_eq!(config(None, true, None)["mounts"][0]["type"], "proc");
        let with_user_namespace = config(Some(&MAPPING), true, None);
        assert_eq!(with_user_namespace["mounts"][0]["source"], "/proc");
        assert!(!namespaces(&with_user_namespace).contains(&"pid"));
    }

    #[test]
    fn capabilities_by_user_and_bounding_set() {
        assert_eq!(held(1 << 21 | 1), ["CAP_CHOWN", "CAP_SYS_ADMIN"]);
        assert_eq!(held(u64::MAX).len(), 41);
        let only = Capabilities::Only(vec!["CAP_SYS_ADMIN".to_owned()]);
        let process = ProcessSpec { capabilities: only, user: 1000, ..ProcessSpec::new(&["id"]) }.to_json();
        assert_eq!(process["capabilities"]["bounding"], json!(["CAP_SYS_ADMIN"]));
        assert_eq!(process["capabilities"]["effective"], json!([]));
    }
}
