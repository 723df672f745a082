//! A pod with a container in which actors wait for their cue, and an agent that watches them.

use std::{
    cell::Cell,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::{Agent, Container, ContainerSpec, IdRange, Pod, PodSpec, RuntimeName};

use crate::setting::{Node, slowdown};

/// The program, see `xtask/src/vm/tamper/actor.c`.
const ACTOR: &str = "USERNS_ACTOR";
const DEVICE: &str = "/dev/tamper";
const RANGE: IdRange = IdRange::nth(44_000);
/// Starts an actor for each line it is sent.
const SCRIPT: &str = "mkfifo /root/orders; exec 3<>/root/orders; \
                      while read -r order <&3; do /root/actor $order & done";
/// What a step that others wait for may take on a processor.
const PATIENCE: Duration = Duration::from_secs(2);

/// What an actor is to do: the word for the device, the thread, and what that does next.
pub(crate) type Part = (&'static str, &'static str, &'static str);

/// Fields in the order in which they go away.
pub(crate) struct Stage {
    pub(crate) agent: Agent,
    pub(crate) container: Container,
    pub(crate) pod: Pod,
    /// The container's root directory, seen from the host.
    root: PathBuf,
    orders: Cell<u32>,
    node: Node,
}

/// A process of the container.
pub(crate) struct Actor {
    pub(crate) part: Part,
    /// On the host.
    pub(crate) pid: u32,
    cue: PathBuf,
}

impl Stage {
    /// `None`, with a loud word, where nothing may be tampered with.
    pub(crate) fn new(test: &str, runtime: RuntimeName) -> Result<Option<Self>> {
        let Some(actor) = std::env::var_os(ACTOR) else {
            println!("SKIPPED: {test}: {ACTOR} is not set; `cargo xtask vm` runs it");
            return Ok(None);
        };
        ensure!(
            Path::new(DEVICE).exists(),
            "the kernel has no {DEVICE}: see its log for what became of the module"
        );
        let Some(node) = Node::new(test)? else { return Ok(None) };
        let start = Instant::now();
        let agent = node.agent(&["--sweep-interval", "1s"])?;
        println!("agent ready {:?}", start.elapsed());
        let pod =
            node.lab.pod(PodSpec { name: "stage".into(), record: Some(RANGE), ..PodSpec::default() })?;
        let container = pod.run(ContainerSpec {
            runtime,
            mapping: Some(RANGE.mapping()),
            args: ["sh", "-c", SCRIPT].map(str::to_owned).to_vec(),
            devices: vec![DEVICE.into()],
            ..ContainerSpec::default()
        })?;
        let root = PathBuf::from(format!("/proc/{}/root/root", container.pid()?));
        wait("the container takes no orders", || Ok(root.join("orders").exists().then_some(())))?;
        fs::copy(actor, root.join("actor")).context("cannot bring the actor")?;
        fs::set_permissions(root.join("actor"), fs::Permissions::from_mode(0o755))?;
        println!("container ready {:?}", start.elapsed());
        Ok(Some(Self { agent, container, pod, root, orders: Cell::new(0), node }))
    }

    /// Starts an actor, which then waits.
    pub(crate) fn actor(&self, part: Part) -> Result<Actor> {
        self.orders.set(self.orders.get() + 1);
        let name = format!("cue-{}", self.orders.get());
        let mut orders = File::options().write(true).open(self.root.join("orders"))?;
        let (word, thread, then) = part;
        writeln!(orders, "{word} {thread} {then} /root/{name}")?;
        let pid = wait("the actor does not come", || self.find(&format!("/root/{name}")))?;
        Ok(Actor { part, pid, cue: self.root.join(name) })
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

    /// Moves an actor out of all of the pod's cgroups.
    pub(crate) fn move_out(&self, actor: &Actor) -> Result<()> {
        fs::write(self.node.lab.cgroup_root().join("cgroup.procs"), actor.pid.to_string())?;
        let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", actor.pid))?;
        ensure!(cgroups.lines().any(|line| line == "0::/"), "it is still in {cgroups}");
        Ok(())
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
        wait("the actor does not end", || Ok((!self.is_alive()).then_some(())))
    }

    /// Whether the process has not ended.
    pub(crate) fn is_alive(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
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
