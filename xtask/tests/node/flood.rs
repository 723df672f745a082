//! A pod that does all it can to blind the agent: others' findings come, and every record is accounted for.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use xtask::bench::attempts::Attempts;
use xtask::bench::churn::{self, Plan};
use xtask::lab::{Agent, ContainerSpec, IdRange, Line, PodSpec, RuntimeName};

use crate::{Node, metric, slowdown, work_dir};

/// Names the statically linked program that containers run.
const PROGRAM: &str = "USERNS_BENCH_BIN";
/// Enough to last for longer than a runtime needs to start a container.
const ATTEMPTS: u32 = 4_000_000;
const PROGRAMS: u32 = 3_000;
/// What may be asked of the agent while a pod floods it: seconds of one CPU, at once and per second, and MiB.
const MOST_CPU: (f64, f64) = (0.3, 0.1);
const MOST_GROWTH: f64 = 8.0;
/// What is gone is kept for a minute: MiB for each pod that started.
const MOST_FOR_EACH_POD: f64 = 0.02;
/// Percent of one processor while 50 pods start in a second.
const MOST_OF_A_PROCESSOR: f64 = 20.0;

/// A directory that containers may enter.
struct Open(PathBuf);

impl Open {
    fn new() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("userns-flood-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        Ok(Self(dir))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What the agent counts, once it has read all there is.
struct Counts(String);

impl Counts {
    /// Counts are fetched once a second.
    fn settled(agent: &Agent) -> Result<Self> {
        let read = || Ok::<_, anyhow::Error>(Self(agent.http_get("/metrics")?.body));
        let started = Instant::now();
        let mut last = read()?;
        loop {
            std::thread::sleep(Duration::from_millis(2500));
            let next = read()?;
            if next.generated() == last.generated() && next.delivered() == last.delivered() {
                return Ok(next);
            }
            ensure!(started.elapsed() < Duration::from_secs(30), "the counts do not settle");
            last = next;
        }
    }

    fn counter(&self, name: &str) -> u64 {
        metric(&self.0, "userns_kernel_counter_total", &[("counter", name)]) as u64
    }

    fn generated(&self) -> u64 {
        self.counter("evidence_generated") + self.counter("bulk_generated")
    }

    fn delivered(&self) -> u64 {
        let decoded = metric(&self.0, "userns_events_total", &[]);
        (decoded + metric(&self.0, "userns_decode_errors_total", &[])) as u64
    }

    fn suppressed(&self) -> u64 {
        self.counter("bulk_suppressed")
    }

    fn lost(&self) -> u64 {
        let of = |counter| metric(&self.0, "userns_kernel_loss_total", &[("counter", counter)]);
        (of("evidence_ring_full") + of("bulk_ring_full")) as u64
    }

    /// Holds that nothing went missing without a count.
    fn add_up(&self) -> Result<()> {
        let (generated, delivered, suppressed, lost) =
            (self.generated(), self.delivered(), self.suppressed(), self.lost());
        ensure!(
            generated == delivered + suppressed + lost,
            "{generated} generated, {delivered} delivered, {suppressed} suppressed, {lost} lost"
        );
        let critical = metric(&self.0, "userns_kernel_loss_total", &[("counter", "evidence_ring_full")]);
        ensure!(critical == 0.0, "{critical} records of evidence were lost");
        Ok(())
    }
}

/// CPU seconds and MiB resident.
fn usage(pid: u32) -> Result<(f64, f64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("no name")?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok());
    let cpu = ticks(11).context("no utime")? + ticks(12).context("no stime")?;
    let pages = ticks(21).context("no rss")?;
    Ok((cpu / 100.0, pages * 4.0 / 1024.0))
}

#[test]
fn millions_of_denied_attempts_hide_nothing() -> Result<()> {
    let Some(node) = Node::new("millions_of_denied_attempts")? else { return Ok(()) };
    let program = std::env::var_os(PROGRAM).with_context(|| format!("{PROGRAM} is not set"))?;
    let open = Open::new()?;
    let (noisy, quiet) = (IdRange::nth(44_100), IdRange::nth(44_101));
    let pod = |name: &str, range| {
        node.lab.pod(PodSpec { name: name.into(), record: Some(range), ..PodSpec::default() })
    };
    let (noisy_pod, quiet_pod) = (pod("noisy", noisy)?, pod("quiet", quiet)?);
    let mut attempts = Attempts::new(program.as_ref(), &open.0.join("worker"), &noisy_pod, noisy)?;
    // what a task keeps to itself is counted by the sweep at the latest
    let agent = node.agent(&["--sweep-interval", "1s"])?;
    let count = ATTEMPTS / slowdown();
    let (cpu, resident) = usage(agent.pid())?;

    // something breaks out, in a sense, of another pod meanwhile: host root at work in it
    let spec = ContainerSpec { runtime: RuntimeName::Crun, mapping: None, ..ContainerSpec::default() };
    let broken = quiet_pod.container(spec)?;
    broken.create()?;
    let uid = quiet_pod.uid().to_owned();
    let is_it = |line: &Line| line.is_event("finding") && line.text("/pod/uid") == Some(&uid);

    let started = Instant::now();
    attempts.begin(count)?;
    let act = Instant::now();
    broken.start()?;
    let limit = Duration::from_secs(1) * slowdown();
    let line = agent.wait_for(is_it, limit).context("the other pod's finding did not come")?;
    attempts.finish()?;
    let took = started.elapsed();
    ensure!(line.at < started + took, "the attempts were over before the finding came");
    ensure!(took < Duration::from_secs(30) * slowdown(), "the attempts took {took:?}");
    let delay = line.at - act;
    let (cpu, peak) = (usage(agent.pid())?.0 - cpu, usage(agent.pid())?.1);

    Counts::settled(&agent)?.add_up()?;
    // updates of a finding come ten seconds apart
    let attempted = |line: &Line| {
        let uses = line.json.pointer("/capabilities").and_then(|uses| uses.as_array()).into_iter().flatten();
        let counts = uses.filter(|used| used["name"] == "CAP_SYS_ADMIN" && used["granted"] == false);
        let of_pod = line.is_event("finding") && line.text("/pod/uid") == Some(noisy_pod.uid());
        of_pod && counts.filter_map(|used| used["count"].as_u64()).sum::<u64>() >= u64::from(count)
    };
    let line = agent.wait_for(attempted, Duration::from_secs(30)).context("not every attempt was counted")?;
    let exact = line.json.pointer("/capabilities/0/count").and_then(serde_json::Value::as_u64);
    ensure!(exact == Some(count.into()), "{exact:?} of {count} attempts were counted");
    println!(
        "millions_of_denied_attempts: {count} in {took:.1?}, the other pod's finding after {delay:.1?}; {cpu:.2} s of \
         CPU time, {resident:.1} MiB resident before and {peak:.1} MiB after"
    );
    ensure!(cpu < MOST_CPU.0 + MOST_CPU.1 * took.as_secs_f64(), "{cpu:.2} s of CPU time in {took:.1?}");
    ensure!(peak - resident < MOST_GROWTH, "grew from {resident:.1} to {peak:.1} MiB");
    Ok(())
}

#[test]
fn what_a_storm_of_programs_may_not_tell_is_told_as_a_number() -> Result<()> {
    let Some(node) = Node::new("a_storm_of_programs")? else { return Ok(()) };
    let range = IdRange::nth(44_102);
    let agent = node.agent(&["--container-budget", "20"])?;
    let pod = node.lab.pod(PodSpec { name: "storm".into(), record: Some(range), ..PodSpec::default() })?;
    let programs = PROGRAMS / slowdown();
    let script = format!("i=0; while [ $i -lt {programs} ]; do /bin/true; i=$((i+1)); done; exec sleep 600");
    let args = vec!["/bin/sh".to_owned(), "-c".to_owned(), script];
    let spec = ContainerSpec {
        runtime: RuntimeName::Crun,
        mapping: Some(range.mapping()),
        args,
        ..ContainerSpec::default()
    };
    let container = pod.run(spec)?;
    let after = Counts::settled(&agent)?;
    after.add_up()?;
    let suppressed = after.suppressed();
    let told = || -> u64 {
        let lines = agent.lines();
        let of_pod = lines
            .iter()
            .filter(|line| line.is_event("suppressed") && line.text("/pod/uid") == Some(pod.uid()));
        of_pod.filter_map(|line| line.json["count"].as_u64()).sum()
    };
    let started = Instant::now();
    while told() < suppressed && started.elapsed() < Duration::from_secs(15) {
        std::thread::sleep(Duration::from_millis(200));
    }
    ensure!(told() == suppressed, "{} of {suppressed} withheld records were told", told());
    // an exec and an exit each; the budget is for both
    let withheld = u64::from(programs) * 2;
    ensure!(suppressed > withheld / 2 && suppressed <= withheld + 2, "{suppressed} of {withheld} withheld");
    println!("a_storm_of_programs: {programs} programs, {suppressed} records withheld and told");
    container.kill()?;
    Ok(())
}

#[test]
fn pods_that_come_and_go_leave_nothing() -> Result<()> {
    let Some(node) = Node::new("pods_that_come_and_go")? else { return Ok(()) };
    let program = std::env::var_os(PROGRAM).with_context(|| format!("{PROGRAM} is not set"))?;
    let (cache, place) = (work_dir().join("cache"), work_dir().join("churn"));
    let plan = Plan { pods: 100, rate: 50 / slowdown().min(50), time: Duration::from_secs(10) };
    let churn = churn::run(&place, &cache, &node.bin, program.as_ref(), plan)?;
    let percent = churn.cpu_percent();
    println!("pods_that_come_and_go: {churn:.1?}, {percent:.1} % of a processor");
    ensure!(churn.findings == 0 && churn.lost == 0.0, "{churn:?}");
    let kept = f64::from(churn.started) * MOST_FOR_EACH_POD;
    ensure!(churn.resident[1] - churn.resident[0] < MOST_GROWTH + kept, "memory grew: {:?}", churn.resident);
    ensure!(percent < MOST_OF_A_PROCESSOR * f64::from(slowdown()), "{percent:.1} % of a processor");
    Ok(())
}
