//! Containers, driven through their runtime's command line as containerd's shim does it.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    cgroup,
    ids::{self, IdMapping},
    oci::{BundleConfig, Capabilities, Device, Mount, ProcessSpec},
    pod::PodState,
    processes,
    runtimes::RuntimeName,
};

const LOG: &str = "log";
const RUNTIME_LOG: &str = "runtime.log";
const PID_FILE: &str = "pid";

/// What a container is to be like.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// Its name in the pod.
    pub name: String,
    /// Which runtime drives it.
    pub runtime: RuntimeName,
    /// The user namespace's mapping; `None`: the runtime ignored the promise and makes no user namespace.
    pub mapping: Option<Vec<IdMapping>>,
    /// The directory that its root file system shows; `None`: one with busybox.
    pub image: Option<PathBuf>,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Capabilities in its user namespace.
    pub capabilities: Capabilities,
    /// User and group ID as the container sees them.
    pub user: u32,
    /// Shares the host's PID namespace (`hostPID: true`).
    pub host_pid_namespace: bool,
    /// Host PID of a process whose network, IPC and UTS namespaces the container joins, and its user namespace
    /// if there is a `mapping`, which must then be that namespace's: what the CRI does with a pod's sandbox.
    pub sandbox: Option<u32>,
    /// Beyond those every container has.
    pub mounts: Vec<Mount>,
    /// Character devices of the host, by their paths, which are the same in the container: what a device plugin
    /// gives.
    pub devices: Vec<PathBuf>,
}

impl Default for ContainerSpec {
    /// A container that sleeps for an hour, under runc and without a user namespace.
    fn default() -> Self {
        Self {
            name: "main".to_owned(),
            runtime: RuntimeName::Runc,
            mapping: None,
            image: None,
            args: ["sleep", "3600"].map(str::to_owned).to_vec(),
            capabilities: Capabilities::RuntimeDefault,
            user: 0,
            host_pid_namespace: false,
            sandbox: None,
            mounts: Vec::new(),
            devices: Vec::new(),
        }
    }
}

/// One container with its bundle. Dropping it kills and deletes it.
///
/// After [`Container::delete`] it can be created again, with the same ID.
#[derive(Debug)]
pub struct Container {
    pod: Arc<PodState>,
    spec: ContainerSpec,
    id: String,
    bundle: PathBuf,
    cgroup: PathBuf,
    /// PIDs of [`Container::exec_detached`].
    detached: Mutex<Vec<u32>>,
}

impl Container {
    pub(super) fn new(pod: Arc<PodState>, spec: ContainerSpec) -> Result<Self> {
        let id = ids::container_id()?;
        let component = cgroup::container_component(pod.spec.driver, &id);
        let cgroups_path = format!("/{}/{component}", pod.cgroup_components.join("/"));
        let cgroup = pod.lab.claim.cgroup_root().join(&cgroups_path[1..]);
        let bundle = pod.lab.claim.dir().join("bundles").join(&id);
        fs::create_dir_all(&bundle).with_context(|| format!("cannot create {}", bundle.display()))?;
        let rootfs = pod.lab.rootfs.mount(&id, spec.image.as_deref(), spec.mapping.as_deref())?;
        pod.add_container(&spec.name, &id);
        // From here on dropping removes what there is.
        let container = Self { pod, spec, id, bundle, cgroup, detached: Mutex::default() };
        container.write_config(&rootfs, &cgroups_path)?;
        Ok(container)
    }

    /// Makes the container: its first process waits in its cgroup, before the entrypoint.
    ///
    /// # Errors
    ///
    /// When the runtime fails; the message has its own words.
    pub fn create(&self) -> Result<()> {
        let (bundle, pid_file) = (&self.bundle, self.bundle.join(PID_FILE));
        let mut command = self.runtime();
        command.arg("create").arg("--bundle").arg(bundle).arg("--pid-file").arg(pid_file).arg(&self.id);
        self.run_detached(command)
    }

    /// Lets the entrypoint run.
    ///
    /// # Errors
    ///
    /// When the runtime fails; the message has its own words.
    pub fn start(&self) -> Result<()> {
        let mut command = self.runtime();
        command.arg("start").arg(&self.id);
        self.run_detached(command)
    }

    /// Runs `args` in the container and waits for it: what an exec probe does.
    ///
    /// # Errors
    ///
    /// When the runtime cannot be started. A failure of the program shows in the status.
    pub fn exec(&self, args: &[&str]) -> Result<Output> {
        self.exec_process(&ProcessSpec::new(args))
    }

    /// [`Container::exec`] with a choice of user and capabilities.
    ///
    /// # Errors
    ///
    /// As for [`Container::exec`].
    pub fn exec_process(&self, process: &ProcessSpec) -> Result<Output> {
        let process_file = self.write_process(process)?;
        let mut command = self.runtime();
        command.arg("exec").arg("--process").arg(&process_file).stdin(Stdio::null());
        if let Some(path) = &process.leaked {
            let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            command.arg("--preserve-fds=1");
            // SAFETY: dup2 is async-signal-safe, and the descriptor is open in the child.
            unsafe {
                command.pre_exec(move || match libc::dup2(file.as_raw_fd(), ProcessSpec::LEAKED) {
                    -1 => Err(io::Error::last_os_error()),
                    _ => Ok(()),
                });
            }
        }
        command.arg(&self.id);
        let output = command.output().with_context(|| format!("cannot start {}", self.spec.runtime));
        fs::remove_file(&process_file)
            .with_context(|| format!("cannot remove {}", process_file.display()))?;
        output
    }

    /// Starts a process in the container that goes on by itself; returns its host PID. Its output goes to the
    /// container's log.
    ///
    /// # Errors
    ///
    /// When the runtime fails; the message has its own words.
    pub fn exec_detached(&self, process: &ProcessSpec) -> Result<u32> {
        let process_file = self.write_process(process)?;
        let pid_file = process_file.with_extension("pid");
        let mut command = self.runtime();
        command.args(["exec", "--detach", "--process"]).arg(&process_file);
        command.arg("--pid-file").arg(&pid_file).arg(&self.id);
        self.run_detached(command)?;
        let pid = read_pid(&pid_file)?;
        self.detached.lock().unwrap_or_else(PoisonError::into_inner).push(pid);
        for file in [process_file, pid_file] {
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
        Ok(pid)
    }

    /// Kills the container's processes and waits for their end.
    ///
    /// # Errors
    ///
    /// When it is not running, or processes survive.
    pub fn kill(&self) -> Result<()> {
        let mut command = self.runtime();
        command.args(["kill", &self.id, "KILL"]);
        self.run_detached(command)?;
        self.end_processes()
    }

    /// Removes the killed container: its cgroup and the runtime's state. The bundle stays for another `create`.
    ///
    /// # Errors
    ///
    /// When it is running; the message has the runtime's own words.
    pub fn delete(&self) -> Result<()> {
        let mut command = self.runtime();
        command.arg("delete").arg(&self.id);
        self.run_detached(command)
    }

    /// The container ID: 64 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Host PID of the first process.
    ///
    /// # Errors
    ///
    /// When the container is not created, or killed again.
    pub fn pid(&self) -> Result<u32> {
        read_pid(&self.bundle.join(PID_FILE))
    }

    /// The container's cgroup.
    #[must_use]
    pub fn cgroup_dir(&self) -> &Path {
        &self.cgroup
    }

    /// The cgroup's ID as eBPF programs see it.
    ///
    /// # Errors
    ///
    /// When the container does not exist at the moment.
    pub fn cgroup_id(&self) -> Result<u64> {
        cgroup::id(&self.cgroup)
    }

    /// What the container's processes wrote, those of [`Container::exec_process`] excepted.
    ///
    /// # Errors
    ///
    /// When the container was never created.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(self.bundle.join(LOG)).context("the container has no log")
    }

    fn runtime(&self) -> Command {
        let runtime = self.pod.lab.runtimes.get(self.spec.runtime);
        let mut command = self.pod.lab.namespace.command(&runtime.path);
        command.arg("--root").arg(self.state_root()).arg("--log").arg(self.bundle.join(RUNTIME_LOG));
        command
    }

    /// Where the runtime keeps its containers' states, in a directory for each.
    fn state_root(&self) -> PathBuf {
        self.pod.lab.claim.dir().join("state").join(self.spec.runtime.to_string())
    }

    /// Runs a runtime command whose standard streams the container's processes may inherit and keep open.
    fn run_detached(&self, mut command: Command) -> Result<()> {
        let path = self.bundle.join(LOG);
        let open = || File::options().append(true).create(true).open(&path);
        let (log, errors) = open()
            .and_then(|log| Ok((log.try_clone()?, log)))
            .with_context(|| format!("cannot open {}", path.display()))?;
        let status = command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .status()
            .with_context(|| format!("cannot start {}", self.spec.runtime))?;
        if !status.success() {
            let said = [RUNTIME_LOG, LOG]
                .map(|file| fs::read_to_string(self.bundle.join(file)).unwrap_or_default())
                .join("");
            bail!("{} failed: {status}\n{}", crate::process::line(&command), said.trim_end());
        }
        Ok(())
    }

    fn write_config(&self, rootfs: &Path, cgroups_path: &str) -> Result<()> {
        let spec = &self.spec;
        let process = ProcessSpec {
            args: spec.args.clone(),
            capabilities: spec.capabilities.clone(),
            user: spec.user,
            leaked: None,
        };
        let devices = spec.devices.iter().map(|path| Device::find(path)).collect::<Result<Vec<_>>>()?;
        let config = BundleConfig {
            process: &process,
            hostname: &self.pod.spec.name,
            rootfs,
            cgroups_path,
            mapping: spec.mapping.as_deref(),
            host_pid_namespace: spec.host_pid_namespace,
            sandbox: spec.sandbox,
            mounts: &spec.mounts,
            devices: &devices,
        };
        write_json(&self.bundle.join("config.json"), &config.to_json())
    }

    fn write_process(&self, process: &ProcessSpec) -> Result<PathBuf> {
        let path = self.bundle.join(format!("exec-{}.json", ids::lab_id()?));
        write_json(&path, &process.to_json())?;
        Ok(path)
    }

    /// Ends all processes: without a PID namespace of its own, the end of the first is not that of the others.
    fn end_processes(&self) -> Result<()> {
        cgroup::kill(&self.cgroup)?;
        cgroup::wait_empty(&self.cgroup)?;
        // A cgroup is empty a moment before its last process has ended, which `delete` insists on. The first
        // process comes last: it ends when every other one of its PID namespace was waited for.
        let mut pids = std::mem::take(&mut *self.detached.lock().unwrap_or_else(PoisonError::into_inner));
        pids.extend(self.pid());
        pids.into_iter().try_for_each(processes::wait_for_end)?;
        // The number may be another process's from now on.
        match fs::remove_file(self.bundle.join(PID_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context("the PID file stays"),
            _ => Ok(()),
        }
    }

    fn remove(&self) -> Result<()> {
        self.end_processes()?;
        // `delete --force` of runc waits until the zombie is gone, so it is only for what `delete` refuses.
        if self.state_root().join(&self.id).exists() && self.delete().is_err() {
            let mut command = self.runtime();
            command.args(["delete", "--force", &self.id]);
            self.run_detached(command)?;
        }
        cgroup::kill_and_remove(&self.cgroup)?;
        self.pod.lab.rootfs.unmount(&self.id)?;
        fs::remove_dir_all(&self.bundle).with_context(|| format!("cannot remove {}", self.bundle.display()))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.pod.remove_container(&self.id);
        // What fails here is tried again when the lab ends.
        let _ = self.remove();
    }
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, value.to_string()).with_context(|| format!("cannot write {}", path.display()))
}

fn read_pid(file: &Path) -> Result<u32> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    text.trim().parse().with_context(|| format!("{} holds no PID: {text:?}", file.display()))
}
