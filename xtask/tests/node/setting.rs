//! What tests with the real agent work with: a lab, the agent under test, and what it said.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use prometheus_parse::{Sample, Scrape, Value};
use xtask::lab::{Agent, Lab, Line, Runtimes};

/// The agent's default, in seconds.
const ENTRY_GRACE: u32 = 2;
/// The mechanism of each hook that the agent chooses by itself.
pub(crate) const DEFAULT: &str = "default";

/// What a test works with. One at a time: agents would see each other's containers.
pub(crate) struct Node {
    pub(crate) lab: Lab,
    pub(crate) bin: PathBuf,
    test: String,
    _turn: MutexGuard<'static, ()>,
}

impl Node {
    /// `None`, with a loud word, where the node tests are not to run.
    pub(crate) fn new(test: &str) -> Result<Option<Self>> {
        Self::with(test, Lab::provision)
    }

    /// [`Node::new`] with other runtimes, which are fetched below a directory.
    pub(crate) fn with(
        test: &str,
        provision: impl FnOnce(&Path) -> Result<Runtimes>,
    ) -> Result<Option<Self>> {
        static TURN: Mutex<()> = Mutex::new(());
        let Some(bin) = agent(test)? else { return Ok(None) };
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let work = work_dir();
        let lab = Lab::new(provision(&work.join("cache"))?, &work.join("node"))?;
        Ok(Some(Self { lab, bin, test: test.to_owned(), _turn: turn }))
    }

    /// Where this agent's run is recorded: a file of its own in `USERNS_RECORD_DIR`, if that is set.
    fn recording(&self) -> Option<PathBuf> {
        let dir = PathBuf::from(std::env::var_os("USERNS_RECORD_DIR")?);
        let file = |number: u32| dir.join(format!("{}-{number}.rec", self.test));
        (1..).map(file).find(|path| !path.exists())
    }

    pub(crate) fn agent(&self, arguments: &[&str]) -> Result<Agent> {
        let grace = format!("{}s", ENTRY_GRACE * slowdown());
        let slow = ["--entry-grace", &grace];
        let slow: &[&str] = if slowdown() > 1 { &slow } else { &[] };
        let mechanism = mechanism();
        let forced = ["--probe-mechanism", &mechanism];
        let forced: &[&str] = if mechanism == DEFAULT { &[] } else { &forced };
        let arguments = [slow, forced, arguments].concat();
        match self.recording() {
            Some(path) => Agent::record(&self.bin, &self.lab, &path, &arguments),
            None => Agent::start(&self.bin, &self.lab, &arguments),
        }
    }
}

/// How hooks are to be attached: `USERNS_NODE_MECHANISM`, or as the agent chooses.
pub(crate) fn mechanism() -> String {
    std::env::var("USERNS_NODE_MECHANISM").unwrap_or_else(|_| DEFAULT.to_owned())
}

/// Where the tests may write: `USERNS_NODE_DIR`, for where cargo's directory does not exist.
pub(crate) fn work_dir() -> PathBuf {
    std::env::var_os("USERNS_NODE_DIR").unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into()).into()
}

/// How many times slower than a processor this one is: `USERNS_NODE_SLOWDOWN`, for emulated ones. Limits of time
/// grow by that, and repetitions shrink.
pub(crate) fn slowdown() -> u32 {
    std::env::var("USERNS_NODE_SLOWDOWN")
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|by| *by > 0)
        .unwrap_or(1)
}

/// The agent under test; `None`, with a loud word, where there is none.
pub(crate) fn agent(test: &str) -> Result<Option<PathBuf>> {
    if std::env::var_os("USERNS_NODE_TESTS").is_none() {
        println!("SKIPPED: {test}: USERNS_NODE_TESTS is not set; `cargo xtask test` runs it");
        return Ok(None);
    }
    let bin = std::env::var_os("USERNS_AGENT_BIN").context("USERNS_AGENT_BIN is not set: which agent?")?;
    let bin = PathBuf::from(bin);
    ensure!(bin.is_file(), "{} is no file", bin.display());
    Ok(Some(bin))
}

/// Each finding in a line that one can read.
pub(crate) fn told(agent: &Agent) -> String {
    let line = |finding: &Line| {
        let [rule, why, pod, origin] =
            ["/finding/rule/id", "/finding/why", "/pod/uid", "/process/lineage/origin"]
                .map(|pointer| finding.text(pointer).unwrap_or("?"));
        format!("\n{rule} {why} (pod {pod}, {origin}, operation {})", finding.json["operation"])
    };
    agent.findings().iter().map(line).collect()
}

/// The samples of a scrape, read as Prometheus would.
pub(crate) fn samples(text: &str) -> Vec<Sample> {
    let lines = text.lines().map(|line| Ok(line.to_owned()));
    Scrape::parse(lines).map(|scrape| scrape.samples).unwrap_or_default()
}

pub(crate) fn value(sample: &Sample) -> f64 {
    match &sample.value {
        Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => *value,
        Value::Histogram(_) | Value::Summary(_) => 0.0,
    }
}

/// Everything the agent counts as lost; empty if nothing was. A lineage that could not be allocated is no loss by
/// itself: the next sweep makes up for it.
pub(crate) fn losses(metrics: &str) -> Vec<String> {
    const LOSSES: [&str; 4] = [
        "userns_kernel_loss_total",
        "userns_decode_errors_total",
        "userns_sink_dropped_total",
        "userns_sink_errors_total",
    ];
    let lost = |sample: &&Sample| {
        LOSSES.contains(&sample.metric.as_str())
            && sample.labels.get("counter") != Some("lineage_alloc")
            && value(sample) > 0.0
    };
    samples(metrics).iter().filter(lost).map(|sample| format!("{sample:?}")).collect()
}
