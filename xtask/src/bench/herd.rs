//! Pods by the hundred: a cgroup, a record and real processes in a user namespace each, made without a runtime.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use rustix::thread::{Gid, Uid, set_thread_gid, set_thread_uid};

use super::node::Node;
use crate::lab::{IdRange, Pod};

const READY: &str = "ready";
/// A process's threads have several mappings each, and the kernel limits those of a process.
const THREADS: u32 = 1_000;
const STACK: usize = 16 * 1024;

/// Processes and threads that do nothing, ended with the value.
#[derive(Debug, Default)]
pub(super) struct Herd {
    // in this order: members end before their pods
    inside: VecDeque<Member>,
    outside: Vec<Member>,
    pods: VecDeque<Pod>,
}

/// A process that has as many threads as it is told to.
#[derive(Debug)]
struct Member {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    threads: u32,
}

impl Herd {
    /// Adds pods, of one process each, until there are `count`.
    ///
    /// # Errors
    ///
    /// When a cgroup, a record or a process cannot be made.
    pub(super) fn pods(&mut self, node: &Node, count: usize) -> Result<()> {
        while self.pods.len() < count {
            self.pod(node)?;
        }
        Ok(())
    }

    /// Ends the oldest pod and adds another.
    ///
    /// # Errors
    ///
    /// As [`Self::pods`].
    pub(super) fn replace_oldest(&mut self, node: &Node) -> Result<()> {
        drop(self.inside.pop_front());
        drop(self.pods.pop_front());
        self.pod(node)
    }

    fn pod(&mut self, node: &Node) -> Result<()> {
        let (pod, range) = node.watched_pod()?;
        // the form of a container's id
        let container = pod.cgroup_dir().join(format!("{:064x}", range.first));
        fs::create_dir(&container).with_context(|| format!("cannot create {}", container.display()))?;
        self.pods.push_back(pod);
        let mut member = Member::start(node.bench(), &["member", &container.display().to_string()])?;
        member.map(range)?;
        self.inside.push_back(member);
        Ok(())
    }

    /// Brings the tasks in pods to about `count`, the same number in each.
    ///
    /// # Errors
    ///
    /// When threads cannot be started.
    pub(super) fn tasks_inside(&mut self, count: u32) -> Result<()> {
        let each = count / u32::try_from(self.inside.len()).unwrap_or(u32::MAX).max(1);
        self.inside.iter_mut().try_for_each(|member| member.grow(each))
    }

    /// Brings the tasks outside of pods to `count`, beside those of the node.
    ///
    /// # Errors
    ///
    /// When processes or threads cannot be started.
    pub(super) fn tasks_outside(&mut self, node: &Node, count: u32) -> Result<()> {
        for _ in 0..count.div_ceil(THREADS) {
            let mut member = Member::start(node.bench(), &["crowd"])?;
            member.expect_ready()?;
            member.grow(THREADS.min(count))?;
            self.outside.push(member);
        }
        Ok(())
    }

    /// Whether the pod with this UID is one of them.
    pub(super) fn has(&self, uid: &str) -> bool {
        self.pods.iter().any(|pod| pod.uid() == uid)
    }

    /// How many pods there are, and how many tasks in and outside of them.
    pub(super) fn size(&self) -> (usize, u32, u32) {
        let threads = |member: &Member| member.threads;
        (self.pods.len(), self.inside.iter().map(threads).sum(), self.outside.iter().map(threads).sum())
    }
}

impl Member {
    fn start(program: &Path, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let orders = child.stdin.take().context("no pipe to the process")?;
        let answers = BufReader::new(child.stdout.take().context("no pipe from the process")?);
        Ok(Self { child, orders, answers, threads: 1 })
    }

    /// Gives the process's user namespace its ids.
    fn map(&mut self, range: IdRange) -> Result<()> {
        self.expect_ready()?;
        for file in ["uid_map", "gid_map"] {
            let path = format!("/proc/{}/{file}", self.child.id());
            let text = format!("0 {} {}", range.first, range.length);
            fs::write(&path, text).with_context(|| format!("cannot write {path}"))?;
        }
        self.order("mapped")
    }

    fn grow(&mut self, threads: u32) -> Result<()> {
        let more = threads.saturating_sub(self.threads);
        if more > 0 {
            self.order(&more.to_string())?;
            self.threads = threads;
        }
        Ok(())
    }

    fn order(&mut self, order: &str) -> Result<()> {
        writeln!(self.orders, "{order}").context("cannot write to the process")?;
        self.expect_ready()
    }

    fn expect_ready(&mut self) -> Result<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line).context("cannot read from the process")?;
        ensure!(line.trim() == READY, "the process says {line:?}");
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process's side in a pod: into its cgroup, then into namespaces of its own, then another program.
///
/// # Errors
///
/// When one of these is refused.
pub(super) fn become_member(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0")
        .with_context(|| format!("cannot enter {}", cgroup.display()))?;
    // SAFETY: this process has one thread.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error()).context("cannot make a user namespace");
    }
    say_ready()?;
    // one byte at a time: what follows is for the next program
    let mut orders = File::open("/proc/self/fd/0").map(|file| BufReader::with_capacity(1, file))?;
    orders.read_line(&mut String::new()).context("nobody mapped ids")?;
    set_thread_gid(Gid::ROOT).context("cannot become the namespace's root group")?;
    set_thread_uid(Uid::ROOT).context("cannot become the namespace's root")?;
    // by its path: `/proc/self/exe` is in the mount namespace that this process has left
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    Err(Command::new(program).arg("crowd").exec()).context("cannot go on as a crowd")
}

/// The process's side: as many threads as it is told, until nobody can tell any more.
///
/// # Errors
///
/// When a thread cannot be started.
pub(super) fn be_crowd() -> Result<()> {
    say_ready()?;
    for line in io::stdin().lock().lines() {
        let more: u32 = line?.parse().context("no number of threads")?;
        for _ in 0..more {
            let idle = || loop {
                thread::park();
            };
            thread::Builder::new().stack_size(STACK).spawn(idle).context("cannot start a thread")?;
        }
        say_ready()?;
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the other side reads it")]
fn say_ready() -> Result<()> {
    println!("{READY}");
    io::stdout().flush().context("nobody listens")
}
