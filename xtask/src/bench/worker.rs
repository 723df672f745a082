//! A process that repeats operations when told to: outside of pods, or as a container's first process.
//!
//! It is told through named pipes in a directory that containers have mounted, so that one and the same process is
//! measured with the agent and without it.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::{fs::PermissionsExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    fs::{CWD, Mode, mkfifoat},
    process::{Signal, set_parent_process_death_signal},
};
use serde::{Deserialize, Serialize};

use super::operation::Operation;
use crate::lab::{Container, ContainerSpec, Mount, Pod};

const ASK: &str = "ask";
const ANSWER: &str = "answer";
const PROGRAM: &str = "bench";
/// Where a container finds the directory.
const MOUNTED: &str = "/bench";
/// An operation that takes longer than this has no answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// An order to the worker.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    operation: Operation,
    count: u32,
}

/// The worker's side: obeys until nobody can ask any more.
///
/// # Errors
///
/// When a pipe is missing or an operation fails.
pub(super) fn obey(dir: &Path) -> Result<()> {
    let open = |name: &str, write: bool| {
        let path = dir.join(name);
        let file = File::options().read(!write).write(write).open(&path);
        file.with_context(|| format!("cannot open {}", path.display()))
    };
    let orders = BufReader::new(open(ASK, false)?);
    let mut answers = open(ANSWER, true)?;
    for line in orders.lines() {
        let order: Order = serde_json::from_str(&line.context("cannot read an order")?)?;
        let spent = order.operation.repeat(order.count)?;
        writeln!(answers, "{}", spent.as_nanos()).context("cannot answer")?;
    }
    Ok(())
}

/// The other side; the process ends when this is dropped.
#[derive(Debug)]
pub(super) struct Worker {
    ask: File,
    answer: BufReader<File>,
    /// The one or the other, held for its end.
    _child: Option<HostChild>,
    _container: Option<Container>,
    dir: PathBuf,
}

#[derive(Debug)]
struct HostChild(Child);

impl Drop for HostChild {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Worker {
    /// Starts the executable `program` as a process of the host, with a new directory `dir`.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made, or the program not be started.
    pub(super) fn on_host(program: &Path, dir: &Path) -> Result<Self> {
        prepare(program, dir)?;
        let mut command = Command::new(dir.join(PROGRAM));
        command.arg("worker").arg(dir);
        // SAFETY: between fork and exec the closure only makes one system call.
        unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
        let child = command.spawn();
        let child = child.with_context(|| format!("cannot start {}", program.display()))?;
        Self::open(dir, Some(HostChild(child)), None)
    }

    /// Starts it as the first process of a container of `pod`, which is otherwise as `spec` says. All ancestors of
    /// `dir` must be open to every user.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made, or the container not be run.
    pub(super) fn in_pod(program: &Path, dir: &Path, pod: &Pod, spec: ContainerSpec) -> Result<Self> {
        prepare(program, dir)?;
        let args = [format!("{MOUNTED}/{PROGRAM}"), "worker".to_owned(), MOUNTED.to_owned()];
        let mounts = vec![Mount::bind(dir, MOUNTED)];
        let container = pod.run(ContainerSpec { args: args.to_vec(), mounts, ..spec })?;
        Self::open(dir, None, Some(container))
    }

    fn open(dir: &Path, child: Option<HostChild>, container: Option<Container>) -> Result<Self> {
        // With both ends open neither opening nor reading depends on the other side.
        let open = |name: &str| {
            let path = dir.join(name);
            let file = File::options().read(true).write(true).open(&path);
            file.with_context(|| format!("cannot open {}", path.display()))
        };
        let (ask, answer) = (open(ASK)?, BufReader::new(open(ANSWER)?));
        Ok(Self { ask, answer, _child: child, _container: container, dir: dir.to_owned() })
    }

    /// Has `operation` repeated, and returns the CPU time that took.
    ///
    /// # Errors
    ///
    /// When the worker does not answer.
    pub(super) fn repeat(&mut self, operation: Operation, count: u32) -> Result<Duration> {
        self.begin(operation, count)?;
        self.finish()
    }

    /// Has `operation` repeated, and does not wait.
    ///
    /// # Errors
    ///
    /// When the worker cannot be asked.
    pub(super) fn begin(&mut self, operation: Operation, count: u32) -> Result<()> {
        let order = serde_json::to_string(&Order { operation, count })?;
        writeln!(self.ask, "{order}").context("cannot ask the worker")
    }

    /// Waits for the end of what was begun, and returns the CPU time it took.
    ///
    /// # Errors
    ///
    /// When the worker does not answer.
    pub(super) fn finish(&mut self) -> Result<Duration> {
        let mut wait =
            libc::pollfd { fd: self.answer.get_ref().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let patience = i32::try_from(PATIENCE.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one valid entry, for as long as the call lasts.
        let ready = unsafe { libc::poll(&raw mut wait, 1, patience) };
        ensure!(ready == 1, "the worker does not answer within {PATIENCE:?}");
        let mut line = String::new();
        self.answer.read_line(&mut line).context("cannot read the worker's answer")?;
        match line.trim().parse() {
            Ok(nanoseconds) => Ok(Duration::from_nanos(nanoseconds)),
            Err(error) => bail!("the worker answers {line:?}: {error}"),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Makes the directory with a copy of the program and the pipes, for users of any namespace.
fn prepare(program: &Path, dir: &Path) -> Result<()> {
    let open_to_all = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .with_context(|| format!("cannot open {} to all", path.display()))
    };
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    open_to_all(dir, 0o755)?;
    let copy = dir.join(PROGRAM);
    fs::copy(program, &copy).with_context(|| format!("cannot copy {}", program.display()))?;
    open_to_all(&copy, 0o755)?;
    for name in [ASK, ANSWER] {
        let pipe = dir.join(name);
        mkfifoat(CWD, &pipe, Mode::from_raw_mode(0o666))
            .with_context(|| format!("cannot create {}", pipe.display()))?;
        open_to_all(&pipe, 0o666)?;
    }
    Ok(())
}
