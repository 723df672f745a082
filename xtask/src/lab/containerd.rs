//! containerd with its runtimes, as a node runs it: told by the CRI what to do, in the host's user namespace.
//!
//! It runs out of unpacked Debian packages in mount, PID, network, IPC and UTS namespaces of its own, whose root is
//! memory: when process 1 of them ends, by whatever death of the lab, the kernel takes everything away. Cgroups
//! are the machine's, so pods are where a kubelet puts them; they belong to the lab like those of its other pods.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
        mount_change, mount_remount, unmount,
    },
    process::{chdir, pivot_root},
    thread::{UnshareFlags, unshare_unsafe},
};

use super::{
    Inner, Lab,
    cri::{
        Cri,
        messages::{
            Empty, ImageSpec, ImageStatusRequest, ImageStatusResponse, StatusResponse, VersionResponse,
        },
    },
    namespace::{self, MountNamespace},
    rootfs,
    runtimes::Runtimes,
};
use crate::{
    debian::{self, DebianMirror},
    process,
};

/// Names a directory with the tree of packages, for machines that cannot fetch them.
pub const CONTAINERD: &str = "USERNS_CONTAINERD";

/// The first suite whose containerd does user namespaces, for containerd 2 and runtimes that can.
const SUITE: &str = "forky";
/// What runs pods and, for those that are given the packages, what runs in them.
const PACKAGES: [&str; 8] =
    ["busybox-static", "conmon", "containerd", "crun", "podman", "runc", "systemd", "uidmap"];
pub(super) const IMAGE: &str = "localhost/busybox:1";
const LOG: &str = "containerd.log";
/// `/applets` is what `init.sh` makes.
const SEARCH_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/applets";
/// Emulated processors take a minute.
const START_TIMEOUT: Duration = Duration::from_secs(120);
const END_TIMEOUT: Duration = Duration::from_secs(10);
const LOG_TAIL: usize = 30;

const DIRECTORIES: [&str; 14] = [
    "cgroup",
    "dev",
    "etc/cni",
    "etc/containerd",
    "image",
    "opt/cni",
    "opt/oci",
    "proc",
    "root",
    "run",
    "sys",
    "usr",
    "var/lib/containerd",
    "var/lib/kubelet",
];
/// Below `/usr`, where Debian has them.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];
const NETWORK: &str = r#"{"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "lab"}]}"#;
const FILES: [(&str, &str); 4] = [
    ("etc/cni/lab.conflist", NETWORK),
    ("etc/containerd/config.toml", include_str!("containerd/config.toml")),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    ("etc/resolv.conf", ""),
];
const PROGRAMS: [(&str, &str); 3] = [
    ("init", include_str!("containerd/init.sh")),
    ("opt/cni/lab", include_str!("containerd/cni.sh")),
    ("opt/oci/oci.sh", include_str!("containerd/oci.sh")),
];
/// What `oci.sh` is called by.
const RUNTIMES: [&str; 3] = ["crun", "ignoring", "runc"];

/// A running containerd. It ends with the last of its pods, or when the lab's process does.
#[derive(Debug, Clone)]
pub struct Containerd {
    pub(super) daemon: Arc<Daemon>,
}

/// Fields in the order in which they go away.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) cri: Cri,
    init: Init,
    pub(super) lab: Arc<Inner>,
}

/// Process 1 of the namespaces, ended with its value.
#[derive(Debug)]
struct Init(Child);

impl Containerd {
    /// Fetches containerd and its runtimes below `cache`; a [`Lab`] made with them can [`start`](Self::start) it.
    ///
    /// Where the environment variable [`CONTAINERD`] names a directory, the tree of packages in there is taken, and
    /// nothing is fetched.
    ///
    /// # Errors
    ///
    /// When a package cannot be fetched, a runtime does not run, or the caller is not root.
    pub fn provision(cache: &Path) -> Result<Runtimes> {
        if let Some(tree) = std::env::var_os(CONTAINERD) {
            return Runtimes::open(Path::new(&tree));
        }
        let tree = cache.join("containerd");
        Self::fetch(cache, &tree)?;
        Runtimes::open(&fs::canonicalize(&tree).with_context(|| format!("no {}", tree.display()))?)
    }

    /// Unpacks containerd, the runtimes and all that they link against into the directory `tree`.
    pub(crate) fn fetch(cache: &Path, tree: &Path) -> Result<()> {
        let packages = DebianMirror::new(cache)?.closure(SUITE, &PACKAGES)?;
        let names: Vec<&str> =
            packages.iter().map(String::as_str).filter(|package| is_needed(package)).collect();
        debian::package_tree(cache, SUITE, &names, tree)
    }

    /// Starts containerd in `lab`, and waits until it can run pods.
    ///
    /// # Errors
    ///
    /// When the lab's runtimes are not those of [`Containerd::provision`], or containerd does not come up; the
    /// message then has the end of its log.
    pub fn start(lab: &Lab) -> Result<Self> {
        let log = lab.file(LOG);
        let output = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let init = Init(spawn(lab, output)?);
        let root = PathBuf::from(format!("/proc/{}/root", init.0.id()));
        let cri = Cri::new(&root.join("run/containerd/containerd.sock"))?;
        let mut daemon = Daemon { cri, init, lab: Arc::clone(&lab.inner) };
        daemon.wait_until_up(&root).map_err(|error| daemon.explain(error))?;
        Ok(Self { daemon: Arc::new(daemon) })
    }

    /// Name and version, as it tells them.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn version(&self) -> Result<String> {
        let answer: VersionResponse = self.daemon.call("RuntimeService/Version", Empty {})?;
        Ok(format!("{} {}", answer.runtime_name, answer.runtime_version))
    }

    /// The handlers that say they do user namespaces.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn handlers_with_user_namespaces(&self) -> Result<Vec<String>> {
        let answer: StatusResponse = self.daemon.call("RuntimeService/Status", Empty {})?;
        let able = answer
            .runtime_handlers
            .into_iter()
            .filter(|handler| handler.features.as_ref().is_some_and(|features| features.user_namespaces));
        let mut names: Vec<_> = able.map(|handler| handler.name).collect();
        names.sort();
        Ok(names)
    }

    /// Its CRI socket, as the host sees it.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.on_host("run/containerd/containerd.sock")
    }

    /// Where the host finds what is at `path` in containerd's own root.
    #[must_use]
    pub fn on_host(&self, path: &str) -> PathBuf {
        self.daemon.on_host(path)
    }

    /// Imports the OCI image called `name` out of `archive`, as one does on a node without a registry.
    ///
    /// # Errors
    ///
    /// When `ctr` fails, or the CRI does not come to know the image.
    pub fn import(&self, archive: &Path, name: &str) -> Result<()> {
        let inside = "/tmp/import.tar";
        let copy = self.on_host(inside);
        fs::copy(archive, &copy).with_context(|| format!("cannot copy {}", archive.display()))?;
        let arguments = ["--namespace", "k8s.io", "images", "import", inside];
        process::stdout(self.command("ctr").args(arguments))?;
        fs::remove_file(&copy).with_context(|| format!("cannot remove {}", copy.display()))?;
        self.daemon.wait_for_image(name)
    }

    /// `program` in containerd's namespaces, with the host's user and cgroup namespaces: a process of the node.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.env_clear().env("PATH", SEARCH_PATH).env("HOME", "/root").env("LC_ALL", "C");
        command.args(["-t", &self.pid().to_string(), "-m", "-u", "-i", "-n", "-p", "--", program]);
        command
    }

    /// Host PID of process 1 of its namespaces.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.init.0.id()
    }
}

impl Daemon {
    /// Calls `method`, and shows containerd's log when it fails.
    pub(super) fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        self.cri.call(method, request).map_err(|error| self.explain(error))
    }

    fn wait_until_up(&mut self, root: &Path) -> Result<()> {
        let start = Instant::now();
        let mut wait = |failure: &str| {
            if let Some(status) = self.init.0.try_wait().context("cannot wait for containerd")? {
                bail!("its first process ended: {status}");
            }
            if start.elapsed() > START_TIMEOUT {
                bail!("{failure} after {} s", START_TIMEOUT.as_secs());
            }
            thread::sleep(Duration::from_millis(5));
            Ok(())
        };
        while !root.join("run/ready").exists() {
            wait("it has no image")?;
        }
        self.wait_for_image(IMAGE)
    }

    /// Waits until the CRI knows an image, which it does a moment after the image has been imported.
    fn wait_for_image(&self, name: &str) -> Result<()> {
        let start = Instant::now();
        let image = || ImageStatusRequest { image: Some(ImageSpec { image: name.to_owned() }) };
        while self.call::<_, ImageStatusResponse>("ImageService/ImageStatus", image())?.image.is_none() {
            if start.elapsed() > START_TIMEOUT {
                bail!("containerd's CRI has no image {name} after {} s", START_TIMEOUT.as_secs());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Where the host finds what is at `path` in containerd's own root.
    pub(super) fn on_host(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init.0.id())).join(path.trim_start_matches('/'))
    }

    /// The mounts of the node that containerd thinks it is on.
    pub(super) fn mounts(&self) -> Result<MountNamespace> {
        MountNamespace::of(self.init.0.id())
    }

    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let log = fs::read_to_string(self.lab.claim.dir().join(LOG)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n");
        error.context(format!("containerd, whose log ends with:\n{tail}\n"))
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        // The end of its input is the end of process 1.
        drop(self.0.stdin.take());
        let start = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) {
            if start.elapsed() > END_TIMEOUT {
                // It fails only for a process that was already waited for.
                let _ = self.0.kill();
                let _ = self.0.wait();
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Starts process 1. Namespaces belong to a thread, and the one that they are made for has this one child.
fn spawn(lab: &Lab, output: File) -> Result<Child> {
    let errors = output.try_clone().context("cannot duplicate a descriptor")?;
    namespace::in_thread(|| {
        // SAFETY: the flag leaves the table of file descriptors shared with the other threads.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("cannot create a mount namespace")?;
        let quiet = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", quiet).context("cannot keep mounts from propagating to the host")?;
        let root = lab.file("containerd");
        make_root(lab, &root).with_context(|| format!("cannot make a root in {}", root.display()))?;
        enter(&root).with_context(|| format!("cannot make {} the root", root.display()))?;
        // The next child is process 1, so there must be none between this and that.
        let others =
            UnshareFlags::NEWPID | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
        // SAFETY: as above.
        unsafe { unshare_unsafe(others) }.context("cannot create namespaces")?;
        let mut command = Command::new("/usr/bin/busybox");
        command.args(["sh", "/init"]).env_clear();
        command.stdin(Stdio::piped()).stdout(output).stderr(errors);
        command.spawn().context("cannot start process 1 of containerd's namespaces")
    })
}

/// Of all that is depended on, what is linked against: without, podman makes no networks and checks no signatures.
fn is_needed(package: &str) -> bool {
    PACKAGES.contains(&package) || package.starts_with("lib") || package == "zlib1g"
}

fn make_root(lab: &Lab, root: &Path) -> Result<()> {
    fs::create_dir(root)?;
    mount("tmpfs", root, "tmpfs", MountFlags::empty(), c"mode=755").context("tmpfs")?;
    for name in DIRECTORIES {
        fs::create_dir_all(root.join(name)).with_context(|| name)?;
    }
    fs::create_dir(root.join("tmp"))?;
    let usr = root.join("usr");
    mount_bind(lab.runtimes().tree.join("usr"), &usr).context("the packages")?;
    let read_only = MountFlags::BIND | MountFlags::RDONLY;
    mount_remount(&usr, read_only, c"").context("the packages")?;
    mount_bind_recursive("/dev", root.join("dev")).context("/dev")?;
    mount_bind(lab.cgroup_root(), root.join("cgroup")).context("cgroups")?;
    mount_bind(lab.kubelet_root(), root.join("var/lib/kubelet")).context("kubelet's directory")?;
    for name in MERGED {
        symlink(format!("usr/{name}"), root.join(name)).with_context(|| name)?;
    }
    for (name, text) in FILES.into_iter().chain(PROGRAMS) {
        fs::write(root.join(name), text).with_context(|| name)?;
    }
    for (name, _) in PROGRAMS {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755)).with_context(|| name)?;
    }
    for name in RUNTIMES {
        symlink("oci.sh", root.join("opt/oci").join(name)).with_context(|| name)?;
    }
    rootfs::make_image(&lab.runtimes().busybox()?, &root.join("image"))
}

fn enter(root: &Path) -> io::Result<()> {
    chdir(root)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(chdir("/")?)
}
