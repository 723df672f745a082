//! The agent on nodes of different sizes: start-up, memory, and what a sweep costs.

use std::{
    fmt::Write as _,
    fs::{self, File},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{herd::Herd, node::Node, scrape::Scrape, stats::Spread, usage};
use crate::lab::http_get;

const STARTS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);
/// The agent sweeps once a second for so long.
const WATCHED: Duration = Duration::from_secs(6);
const TASKS: u32 = 20_000;

/// A node of one size.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Point {
    pub(super) pods: usize,
    pub(super) inside: u32,
    pub(super) outside: u32,
    /// Milliseconds from the start of the process until it answers over HTTP, which is when all is attached.
    pub(super) attached: Spread,
    /// Milliseconds until it is ready.
    pub(super) ready: Spread,
    /// Milliseconds of CPU time until then.
    pub(super) start: Spread,
    /// MiB.
    pub(super) resident: f64,
    pub(super) maps: f64,
    /// Milliseconds that a sweep takes.
    pub(super) sweep: f64,
    /// Milliseconds of CPU time for each sweep and all else that is done in a second.
    pub(super) cpu: f64,
}

/// Every size, smallest first.
///
/// # Errors
///
/// When pods cannot be made or the agent does not start.
pub(super) fn measure(node: &Node) -> Result<Vec<Point>> {
    let mut points = Vec::new();
    let mut herd = Herd::default();
    for pods in [0, 10, 110, 500] {
        herd.pods(node, pods)?;
        points.push(point(node, &herd)?);
    }
    for tasks in [TASKS / 4, TASKS] {
        herd.tasks_inside(tasks)?;
        points.push(point(node, &herd)?);
    }
    drop(herd);
    let mut herd = Herd::default();
    herd.tasks_outside(node, TASKS)?;
    points.push(point(node, &herd)?);
    Ok(points)
}

fn point(node: &Node, herd: &Herd) -> Result<Point> {
    let (pods, inside, outside) = herd.size();
    let mut started = Started::new(node)?;
    let mut times = vec![started.times];
    for _ in 1..STARTS {
        drop(started);
        started = Started::new(node)?;
        times.push(started.times);
    }
    let [attached, ready, start] =
        [0, 1, 2].map(|which| Spread::of(&times.iter().map(|times| times[which]).collect::<Vec<_>>()));
    let (before, used) = (started.scrape()?, usage::cpu_time(started.pid())?);
    thread::sleep(WATCHED);
    let (after, used) = (started.scrape()?, usage::cpu_time(started.pid())?.saturating_sub(used));
    let since = |name: &str| after.sum(name, "") - before.sum(name, "");
    let sweeps = since("userns_sweep_seconds_count");
    started.said_nothing_of(herd)?;
    let known = after.sum("userns_pods", "promise=\"user_namespace\"");
    ensure!(known.round() as usize == pods, "the agent knows {known} of {pods} pods");
    Ok(Point {
        pods,
        inside,
        outside,
        attached,
        ready,
        start,
        resident: usage::resident(started.pid())?,
        maps: usage::map_memory(started.pid())?,
        sweep: since("userns_sweep_seconds_sum") * 1e3 / sweeps,
        cpu: used.as_secs_f64() * 1e3 / sweeps,
    })
}

/// A running agent and how long it took; it ends with the value.
struct Started {
    child: Child,
    address: String,
    output: PathBuf,
    /// Milliseconds until all is attached, until it is ready, and of CPU time by then.
    times: [f64; 3],
}

impl Started {
    fn new(node: &Node) -> Result<Self> {
        // free a moment ago; the agent tells its choice of port only when it is ready
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.context("no free port")?.to_string();
        let mut command = Command::new(&node.agent);
        command.args(["run", "--output", "json", "--sweep-interval", "1s", "--listen", &address]);
        command.arg("--kubelet-root").arg(node.lab.kubelet_root());
        command.arg("--cgroup-root").arg(node.lab.cgroup_root());
        let output = node.lab.dir().join("scale.jsonl");
        let file = File::create(&output).with_context(|| format!("cannot create {}", output.display()))?;
        command.stdin(Stdio::null()).stdout(file).stderr(Stdio::null());
        let start = Instant::now();
        let child = command.spawn().context("cannot start the agent")?;
        let mut started = Self { child, address, output, times: [0.0; 3] };
        let passed = || start.elapsed().as_secs_f64() * 1e3;
        started.wait(|_| true)?;
        let attached = passed();
        started.wait(|status| status == 200)?;
        let ready = passed();
        started.times = [attached, ready, usage::cpu_time(started.pid())?.as_secs_f64() * 1e3];
        Ok(started)
    }

    fn wait(&mut self, enough: impl Fn(u16) -> bool) -> Result<()> {
        let start = Instant::now();
        while !http_get(&self.address, "/readyz").is_ok_and(|answer| enough(answer.status)) {
            if let Some(status) = self.child.try_wait().context("cannot wait for the agent")? {
                bail!("the agent ended with {status}");
            }
            if start.elapsed() > PATIENCE {
                bail!("the agent does not answer");
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// The herd keeps its promises; of other pods on this machine there may be things to say.
    fn said_nothing_of(&self, herd: &Herd) -> Result<()> {
        let text = fs::read_to_string(&self.output).context("cannot read the agent's output")?;
        let finding = text.lines().find(|line| is_finding_about(line, |uid| herd.has(uid)));
        finding.map_or(Ok(()), |line| bail!("a finding about a pod that keeps its promise: {line}"))
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn scrape(&self) -> Result<Scrape> {
        Ok(Scrape::new(http_get(&self.address, "/metrics")?.body))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_finding_about(line: &str, ours: impl Fn(&str) -> bool) -> bool {
    let Ok(json) = serde_json::from_str::<serde_json::Value>(line) else { return false };
    let text = |pointer| json.pointer(pointer).and_then(serde_json::Value::as_str);
    text("/event") == Some("finding") && text("/pod/uid").is_some_and(ours)
}

/// KiB resident for each pod: the slope of the straight line closest to nodes with one task a pod; `None` if there are
/// not two of them.
pub(super) fn memory_per_pod(points: &[Point]) -> Option<f64> {
    let mut nodes: Vec<&Point> = points.iter().filter(|point| point.pods > 0 && point.outside == 0).collect();
    // the first of a size has the fewest tasks
    nodes.dedup_by_key(|point| point.pods);
    let count = nodes.len() as f64;
    let pods = nodes.iter().map(|point| point.pods as f64).sum::<f64>() / count;
    let resident = nodes.iter().map(|point| point.resident).sum::<f64>() / count;
    let of = |value: &dyn Fn(&Point) -> f64| {
        nodes.iter().map(|point| (point.pods as f64 - pods) * value(point)).sum::<f64>()
    };
    let spread = of(&|point| point.pods as f64 - pods);
    (nodes.len() > 1 && spread > 0.0).then(|| 1024.0 * of(&|point| point.resident - resident) / spread)
}

/// A row for each size.
pub(super) fn table(points: &[Point]) -> String {
    let mut text = "| pods | tasks in them | further tasks | attached after | ready after | CPU time by then | resident | BPF maps | sweep | CPU time per sweep |\n\
                    | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        .to_owned();
    for point in points {
        let Point { pods, inside, outside, attached, ready, start, resident, maps, sweep, cpu } = point;
        let _ = writeln!(
            text,
            "| {pods} | {inside} | {outside} | {attached} ms | {ready} ms | {start} ms | {resident:.1} MiB | {maps:.1} MiB | \
             {sweep:.1} ms | {cpu:.1} ms |"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_per_pod_is_a_slope() {
        let point = |pods, inside, resident| Point { pods, inside, resident, ..Point::default() };
        let points = [point(0, 0, 9.0), point(10, 10, 10.5), point(110, 110, 15.5), point(500, 500, 35.0)];
        let further = [point(500, 5_000, 60.0), Point { outside: 20_000, ..point(0, 0, 9.0) }];
        let found = memory_per_pod(&[&points[..], &further[..]].concat()).unwrap();
        assert!((found - 51.2).abs() < 1e-6, "{found}");
        assert_eq!(memory_per_pod(&points[..2]), None);
    }

    #[test]
    fn only_findings_about_the_herd_count() {
        let ours = |uid: &str| uid == "a";
        assert!(is_finding_about(r#"{"event":"finding","pod":{"uid":"a"}}"#, ours));
        for line in [
            r#"{"event":"finding","pod":{"uid":"b"}}"#,
            r#"{"event":"agent","pod":{"uid":"a"}}"#,
            r#"{"event":"finding","pod":null}"#,
            "no json",
        ] {
            assert!(!is_finding_about(line, ours), "{line}");
        }
    }
}
