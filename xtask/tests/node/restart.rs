//! The agent is killed at every point of an attack and started again: the finding still comes, and once.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, Permissions},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use xtask::lab::{
    Agent, Container, ContainerSpec, HostProcess, IdRange, Line, Pod, PodSpec, ProcessSpec, RuntimeName,
};

use crate::{Node, metric, rounds, slowdown, told};

const PATIENCE: Duration = Duration::from_secs(5);
/// Longer than evidence waits for its container, and than a tick of the agent.
const QUIET: Duration = Duration::from_millis(700);

/// What is done to the node, by the rule that must tell of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attack {
    /// I3: the runtime ignores the promise.
    Ignored,
    /// I7: the range wrapped around to host id 0.
    Wrapped,
    /// I2: a host process is moved into the container's cgroup.
    Moved,
    /// I11: a shell in the container tries to get out. It leaves nothing that could be found later.
    Tried,
}

/// Where the agent dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    BeforeTheContainer,
    BetweenCreateAndAct,
    /// It is stopped during the act: the kernel has told it, it has told nobody.
    BeforeItCouldTell,
    AtOnceAfterTheAct,
    AfterTheFinding,
    /// As the last, but by SIGTERM.
    Stopped,
}

const POINTS: [Point; 6] = [
    Point::BeforeTheContainer,
    Point::BetweenCreateAndAct,
    Point::BeforeItCouldTell,
    Point::AtOnceAfterTheAct,
    Point::AfterTheFinding,
    Point::Stopped,
];

impl Attack {
    fn rule(self) -> &'static str {
        match self {
            Self::Ignored => "I3",
            Self::Wrapped => "I7",
            Self::Moved => "I2",
            Self::Tried => "I11",
        }
    }
}

/// An attack under way.
struct Scene<'a> {
    node: &'a Node,
    attack: Attack,
    pod: Pod,
    container: Container,
    intruder: Option<HostProcess>,
}

impl<'a> Scene<'a> {
    /// The container is there, and nothing is wrong yet.
    fn set(node: &'a Node, attack: Attack, runtime: RuntimeName, nth: u16) -> Result<Self> {
        let own = IdRange::nth(nth);
        let (record, mapping) = match attack {
            Attack::Ignored => (own, None),
            Attack::Wrapped => {
                let zero = IdRange { first: 0, length: 65_536 };
                (zero, Some(zero.mapping()))
            }
            Attack::Moved | Attack::Tried => (own, Some(own.mapping())),
        };
        let pod = node.lab.pod(PodSpec { name: "p".into(), record: Some(record), ..PodSpec::default() })?;
        let container = pod.container(ContainerSpec { runtime, mapping, ..ContainerSpec::default() })?;
        container.create()?;
        if matches!(attack, Attack::Moved | Attack::Tried) {
            container.start()?;
        }
        Ok(Self { node, attack, pod, container, intruder: None })
    }

    fn act(&mut self) -> Result<()> {
        match self.attack {
            Attack::Ignored | Attack::Wrapped => self.container.start(),
            Attack::Moved => {
                let intruder = self.node.lab.host_process()?;
                self.node.lab.move_into_cgroup(intruder.pid(), &self.container)?;
                self.intruder = Some(intruder);
                Ok(())
            }
            Attack::Tried => {
                let shell = ProcessSpec::new(&["sh", "-c", "unshare -m true; true"]);
                rounds::exec(&self.container, &shell)
            }
        }
    }

    fn is_about(&self, line: &Line) -> bool {
        line.is_event("finding")
            && line.text("/finding/rule/id") == Some(self.attack.rule())
            && line.text("/pod/uid") == Some(self.pod.uid())
    }

    fn opened(&self, lines: &[Line]) -> usize {
        let opened = |line: &&Line| self.is_about(line) && line.text("/finding/status") == Some("opened");
        lines.iter().filter(opened).count()
    }
}

/// Ids of the findings that the state directory holds.
fn remembered(state: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(state.join("told.jsonl")).unwrap_or_default();
    let id = |line: &str| {
        let row: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(row.get("id")?.as_str()?.to_owned())
    };
    text.lines().filter_map(id).collect()
}

/// Plays an attack until the agent dies at `point`; returns what it wrote.
fn first_life<'a>(
    first: Agent,
    state: &Path,
    point: Point,
    set: impl FnOnce() -> Result<Scene<'a>>,
) -> Result<(Scene<'a>, Vec<Line>)> {
    if point == Point::BeforeTheContainer {
        let lines = first.kill()?.lines;
        let mut scene = set()?;
        scene.act()?;
        return Ok((scene, lines));
    }
    let mut scene = set()?;
    if point == Point::BetweenCreateAndAct {
        let lines = first.kill()?.lines;
        scene.act()?;
        return Ok((scene, lines));
    }
    if point == Point::BeforeItCouldTell {
        let pid = i32::try_from(first.pid()).ok().and_then(Pid::from_raw).context("the agent has no PID")?;
        kill_process(pid, Signal::STOP).context("cannot stop the agent")?;
        scene.act()?;
        return Ok((scene, first.kill()?.lines));
    }
    scene.act()?;
    if point == Point::AtOnceAfterTheAct {
        return Ok((scene, first.kill()?.lines));
    }
    let finding = first.wait_for(|line| scene.is_about(line), PATIENCE * slowdown())?;
    if point == Point::Stopped {
        return Ok((scene, first.stop()?.lines));
    }
    let id = finding.text("/finding/id").context("a finding without an id")?;
    let started = Instant::now();
    while !remembered(state).contains(id) {
        ensure!(started.elapsed() < PATIENCE * slowdown(), "finding {id} is not remembered");
    }
    Ok((scene, first.kill()?.lines))
}

/// What came of it.
#[derive(Debug, Default)]
struct Tally {
    /// Cases.
    played: u32,
    /// Findings that the first agent told and lived to remember.
    remembered: u32,
    /// Findings told twice, as the first agent died before it could remember them.
    twice: u32,
}

/// One attack, one death, one restart.
fn play(node: &Node, attack: Attack, point: Point, nth: u16, tally: &mut Tally) -> Result<()> {
    let state = node.lab.dir().join(format!("restart-{nth}"));
    let flags = ["--state-dir", &state.display().to_string()];
    let runtime = if nth.is_multiple_of(2) { RuntimeName::Runc } else { RuntimeName::Crun };
    let first = node.agent(&flags)?;
    let (mut scene, lines) =
        first_life(first, &state, point, || Scene::set(node, attack, runtime, 46_000 + nth))?;
    let told_before =
        lines.iter().find(|line| scene.is_about(line)).and_then(|line| line.text("/finding/id"));
    let known = told_before.is_some_and(|id| remembered(&state).contains(id));
    let sure = matches!(point, Point::AfterTheFinding | Point::Stopped);
    ensure!(known || !sure, "it was told, and is not remembered");
    let may_know = matches!(point, Point::AtOnceAfterTheAct | Point::AfterTheFinding | Point::Stopped);
    ensure!(may_know || told_before.is_none(), "an agent that could not know of it told it");

    let second = node.agent(&flags)?;
    if attack == Attack::Tried {
        scene.act()?;
    }
    if known {
        still_known(&second, &scene)?;
    } else {
        second.wait_for(|line| scene.is_about(line), PATIENCE * slowdown())?;
    }
    let later = second.stop()?.lines;
    let opened = (scene.opened(&lines), scene.opened(&later));
    let right = if known { opened == (1, 0) } else { opened.0 <= 1 && opened.1 == 1 };
    ensure!(right, "opened {opened:?} times, remembered: {known}");
    if !known && attack != Attack::Tried {
        let at = |wanted: &dyn Fn(&Line) -> bool| later.iter().position(wanted);
        let ready = at(&|line| line.text("/state") == Some("ready"));
        ensure!(at(&|line| scene.is_about(line)) < ready, "found, but not by the first sweep");
    }
    tally.played += 1;
    tally.remembered += u32::from(known);
    tally.twice += u32::from(opened == (1, 1));
    Ok(())
}

/// The agent recognises the finding, and speaks of it only if there is more to say.
fn still_known(agent: &Agent, scene: &Scene<'_>) -> Result<()> {
    if scene.attack == Attack::Tried {
        let more = agent.wait_for(|line| scene.is_about(line), PATIENCE * slowdown())?;
        ensure!(more.text("/finding/status") == Some("updated"), "{}", more.json);
        let counted = more.json.pointer("/calls/0/count").and_then(serde_json::Value::as_u64);
        ensure!(counted == Some(2), "both attempts are to be counted: {}", more.json);
        return Ok(());
    }
    std::thread::sleep(QUIET);
    ensure!(!agent.findings().iter().any(|line| scene.is_about(line)), "{}", told(agent));
    let started = Instant::now();
    loop {
        let metrics = agent.http_get("/metrics")?.body;
        ensure!(metric(&metrics, "userns_state_errors_total", &[]) == 0.0, "the state directory fails");
        if metric(&metrics, "userns_findings_recognised_total", &[]) > 0.0 {
            return Ok(());
        }
        ensure!(started.elapsed() < PATIENCE * slowdown(), "the finding was not found again");
        std::thread::sleep(QUIET / 4);
    }
}

/// Every point of one attack.
fn die_everywhere(attack: Attack, test: &str) -> Result<()> {
    let Some(node) = Node::new(test)? else { return Ok(()) };
    let mut tally = Tally::default();
    let started = Instant::now();
    for (nth, point) in (0..).zip(POINTS) {
        // each point with either runtime in some attack
        let nth = 11 * attack as u16 + nth;
        play(&node, attack, point, nth, &mut tally).with_context(|| format!("{attack:?}, {point:?}"))?;
    }
    println!("{test}: {tally:?} in {:.1?}", started.elapsed());
    Ok(())
}

#[test]
fn an_ignored_promise_is_found_wherever_the_agent_dies() -> Result<()> {
    die_everywhere(Attack::Ignored, "an_ignored_promise_is_found")
}

#[test]
fn a_wrapped_range_is_found_wherever_the_agent_dies() -> Result<()> {
    die_everywhere(Attack::Wrapped, "a_wrapped_range_is_found")
}

#[test]
fn a_moved_process_is_found_wherever_the_agent_dies() -> Result<()> {
    die_everywhere(Attack::Moved, "a_moved_process_is_found")
}

#[test]
fn attempts_are_found_wherever_the_agent_dies() -> Result<()> {
    die_everywhere(Attack::Tried, "attempts_are_found")
}

#[test]
fn a_state_directory_that_is_of_no_use_costs_no_finding() -> Result<()> {
    let Some(node) = Node::new("a_state_directory_of_no_use")? else { return Ok(()) };
    let file = node.lab.dir().join("no-directory");
    fs::write(&file, "")?;
    let foreign = node.lab.dir().join("foreign");
    fs::create_dir(&foreign)?;
    fs::set_permissions(&foreign, Permissions::from_mode(0o777))?;
    let garbled = node.lab.dir().join("garbled");
    DirBuilder::new().mode(0o700).create(&garbled)?;
    fs::write(garbled.join("told.jsonl"), [0xff; 4096])?;
    let mut scene = Scene::set(&node, Attack::Ignored, RuntimeName::Runc, 46_900)?;
    scene.act()?;
    for (state, errors) in [(file.as_path(), 1.0), (&foreign, 1.0), (&garbled, 1.0), (Path::new("none"), 0.0)]
    {
        let agent = node.agent(&["--state-dir", &state.display().to_string()])?;
        agent.wait_for(|line| scene.is_about(line), PATIENCE * slowdown())?;
        let metrics = agent.http_get("/metrics")?.body;
        let counted = metric(&metrics, "userns_state_errors_total", &[("operation", "read")]);
        ensure!((counted - errors).abs() < f64::EPSILON, "{}: {counted} errors", state.display());
        ensure!(scene.opened(&agent.stop()?.lines) == 1, "{}", state.display());
    }
    Ok(())
}
