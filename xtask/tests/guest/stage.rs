//! Pods with containers in which actors wait for their cue, and an agent that watches them.

use std::{
    cell::Cell,
    fmt,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::{Agent, Container, ContainerSpec, IdRange, Lab, Pod, PodSpec, RuntimeName};

use crate::setting::{Node, slowdown};

/// Names the program, see `xtask/src/vm/tamper/actor.c`.
const ACTOR: &str = "USERNS_ACTOR";
const DEVICE: &str = "/dev/tamper";
/// Starts an actor for each line it is sent.
const SCRIPT: &str = "mkfifo /root/orders; exec 3<>/root/orders; \
                      while read -r order <&3; do /root/actor $order & done";
/// What a step that others wait for may take on a processor.
const PATIENCE: Duration = Duration::from_secs(2);

/// What an actor is to do.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    /// The word for the device.
    pub(crate) word: &'static str,
    /// Which thread writes it.
    pub(crate) thread: &'static str,
    /// What that thread does next.
    pub(crate) next: &'static str,
    /// Whether the process is moved out of its cgroup before.
    pub(crate) moved: bool,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.moved { "outside of its cgroup" } else { "where it is" };
        write!(f, "{} by the {} thread {place}, then {}", self.word, self.thread, self.next)
    }
}

/// A container of each runtime, in pods of their own. Fields in the order in which they go away.
pub(crate) struct Stage {
    pub(crate) agent: Agent,
    pub(crate) casts: [Cast; 2],
    node: Node,
}

/// A container that starts actors.
pub(crate) struct Cast {
    pub(crate) runtime: RuntimeName,
    pub(crate) container: Container,
    pub(crate) pod: Pod,
    /// A directory of the container, seen from the host.
    dir: PathBuf,
    orders: Cell<u32>,
}

/// A process of a container.
pub(crate) struct Actor {
    /// On the host.
    pub(crate) pid: u32,
    cue: PathBuf,
}

impl Stage {
    /// `None`, with a loud word, where nothing may be tampered with.
    pub(crate) fn new(test: &str) -> Result<Option<Self>> {
        let Some(actor) = std::env::var_os(ACTOR) else {
            println!("SKIPPED: {test}: {ACTOR} is not set; `cargo xtask vm` runs it");
            return Ok(None);
        };
        let module = Path::new(DEVICE).exists();
        ensure!(module, "no {DEVICE}: the kernel's log says what became of its module");
        let Some(node) = Node::new(test)? else { return Ok(None) };
        let agent = node.agent(&["--sweep-interval", "1s"])?;
        let cast = |runtime, range| Cast::new(&node.lab, Path::new(&actor), runtime, IdRange::nth(range));
        let casts = [cast(RuntimeName::Runc, 44_000)?, cast(RuntimeName::Crun, 44_001)?];
        Ok(Some(Self { agent, casts, node }))
    }

    /// Starts an actor in `cast`, which then waits.
    pub(crate) fn actor(&self, cast: &Cast, part: Part) -> Result<Actor> {
        let actor = cast.start(part)?;
        if part.moved {
            fs::write(self.node.lab.cgroup_root().join("cgroup.procs"), actor.pid.to_string())?;
            let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", actor.pid))?;
            ensure!(cgroups.lines().any(|line| line == "0::/"), "it is still in {cgroups}");
        }
        Ok(actor)
    }
}

impl Cast {
    fn new(lab: &Lab, actor: &Path, runtime: RuntimeName, range: IdRange) -> Result<Self> {
        let pod = lab.pod(PodSpec { name: "stage".into(), record: Some(range), ..PodSpec::default() })?;
        let container = pod.run(ContainerSpec {
            runtime,
            mapping: Some(range.mapping()),
            args: ["sh", "-c", SCRIPT].map(str::to_owned).to_vec(),
            devices: vec![DEVICE.into()],
            ..ContainerSpec::default()
        })?;
        let dir = PathBuf::from(format!("/proc/{}/root/root", container.pid()?));
        wait("the container takes no orders", || Ok(dir.join("orders").exists().then_some(())))?;
        fs::copy(actor, dir.join("actor")).context("cannot bring the actor")?;
        fs::set_permissions(dir.join("actor"), fs::Permissions::from_mode(0o755))?;
        Ok(Self { runtime, container, pod, dir, orders: Cell::new(0) })
    }

    fn start(&self, part: Part) -> Result<Actor> {
        self.orders.set(self.orders.get() + 1);
        let name = format!("cue-{}", self.orders.get());
        let mut orders = File::options().write(true).open(self.dir.join("orders"))?;
        writeln!(orders, "{} {} {} /root/{name}", part.word, part.thread, part.next)?;
        let pid = wait("the actor does not come", || self.find(&format!("/root/{name}")))?;
        Ok(Actor { pid, cue: self.dir.join(name) })
    }

    /// The process of the container with this last argument.
    fn find(&self, argument: &str) -> Result<Option<u32>> {
        let processes = fs::read_to_string(self.container.cgroup_dir().join("cgroup.procs"))?;
        let is_it = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.starts_with(b"/root/actor\0") && line.ends_with(format!("\0{argument}\0").as_bytes())
        };
        Ok(processes.lines().filter_map(|pid| pid.parse().ok()).find(is_it))
    }
}

impl Actor {
    /// Gives the cue, and tells when.
    pub(crate) fn act(&self) -> Result<Instant> {
        let now = Instant::now();
        fs::write(&self.cue, "").context("cannot give the cue")?;
        Ok(now)
    }

    /// Waits until the process has ended, which it does only when all of its steps went well.
    pub(crate) fn end(&self) -> Result<()> {
        let ended = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
        };
        wait("the actor does not end", || Ok(ended().then_some(())))
    }
}

fn wait<T>(failure: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(start.elapsed() < PATIENCE * slowdown(), "{failure}");
        thread::sleep(Duration::from_millis(2));
    }
}
