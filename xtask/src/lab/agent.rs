//! The agent under test: started against a lab, its output read line by line.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Lab, Response, http, ids};

/// Loading the programs takes their verification, which a slow machine feels.
const READY_TIMEOUT: Duration = Duration::from_secs(240);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// An agent that never falls silent would otherwise hold a test for ever.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// One line of the agent's output.
#[derive(Debug, Clone)]
pub struct Line {
    /// When it arrived here.
    pub at: Instant,
    /// The line as JSON; a string for a line that is none.
    pub json: Value,
}

impl Line {
    fn new(text: String) -> Self {
        Self { at: Instant::now(), json: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
    }

    /// The text at a JSON pointer such as `/pod/uid`.
    #[must_use]
    pub fn text(&self, pointer: &str) -> Option<&str> {
        self.json.pointer(pointer)?.as_str()
    }

    /// Whether the field `event` says `event`.
    #[must_use]
    pub fn is_event(&self, event: &str) -> bool {
        self.text("/event") == Some(event)
    }

    fn is_ready(&self) -> bool {
        self.is_event("agent") && self.text("/state") == Some("ready")
    }
}

/// What a stopped agent leaves.
#[derive(Debug)]
pub struct Stopped {
    /// How it ended.
    pub status: ExitStatus,
    /// Every line it wrote, from the first to the last.
    pub lines: Vec<Line>,
}

/// A running agent; dropping it stops it.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    output: Arc<AgentOutput>,
    reader: Option<JoinHandle<()>>,
    listen: Option<String>,
    errors: PathBuf,
}

#[derive(Debug, Default)]
struct AgentOutput {
    received: Mutex<Received>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Received {
    lines: Vec<Line>,
    ended: bool,
}

impl Agent {
    /// Starts `bin` against `lab` and waits until it says that it is ready. It remembers nothing of earlier agents,
    /// unless `extra_args` name a `--state-dir`;
    /// runtimes are the lab's unless they name others.
    ///
    /// # Errors
    ///
    /// When it cannot be started or does not become ready; the message has what it wrote.
    pub fn start(bin: &Path, lab: &Lab, extra_args: &[&str]) -> Result<Self> {
        Self::begin(bin, lab, &["run"], extra_args)
    }

    /// The same, with `record` and a file.
    ///
    /// # Errors
    ///
    /// As for [`Agent::start`].
    pub fn record(bin: &Path, lab: &Lab, recording: &Path, extra_args: &[&str]) -> Result<Self> {
        let recording = recording.to_str().context("the recording's path is no UTF-8")?;
        Self::begin(bin, lab, &["record", recording], extra_args)
    }

    fn begin(bin: &Path, lab: &Lab, what: &[&str], extra_args: &[&str]) -> Result<Self> {
        let mut command = Command::new(bin);
        command.args(what).args(["--output", "json", "--listen", "127.0.0.1:0"]);
        command.arg("--kubelet-root").arg(lab.kubelet_root()).arg("--cgroup-root").arg(lab.cgroup_root());
        // the lab's runtimes are in none of the places where a distribution puts them
        let runtimes =
            [&lab.runtimes().runc.path, &lab.runtimes().crun.path].map(|path| path.display().to_string());
        if !extra_args.contains(&"--runtime-paths") {
            command.arg("--runtime-paths").arg(runtimes.join(","));
        }
        if !extra_args.contains(&"--socket") {
            command.arg("--socket").arg(lab.file("agent.sock"));
        }
        if !extra_args.contains(&"--state-dir") {
            command.arg("--state-dir").arg(lab.file(&format!("state-{}", ids::lab_id()?)));
        }
        command.args(extra_args);
        // agents side by side would write into each other's
        let log = lab.file(&format!("agent-{}.log", ids::lab_id()?));
        Self::spawn(command, log, READY_TIMEOUT)
    }

    fn spawn(mut command: Command, errors: PathBuf, timeout: Duration) -> Result<Self> {
        let log = File::create(&errors).with_context(|| format!("cannot create {}", errors.display()))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", crate::process::line(&command)))?;
        let stdout = child.stdout.take().context("the agent has no standard output")?;
        let output = Arc::<AgentOutput>::default();
        let shared = Arc::clone(&output);
        let reader = Some(thread::spawn(move || shared.read(stdout)));
        let mut agent = Self { child, output, reader, listen: None, errors };
        let ready = agent.wait_for(Line::is_ready, timeout).context("the agent does not become ready")?;
        agent.listen = ready.text("/listen").map(str::to_owned);
        Ok(agent)
    }

    /// Its PID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Every line received until now.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.output.lock().lines.clone()
    }

    /// The findings received until now.
    #[must_use]
    pub fn findings(&self) -> Vec<Line> {
        self.lines().into_iter().filter(|line| line.is_event("finding")).collect()
    }

    /// Waits for a line that `wanted` accepts. Lines that came before count too.
    ///
    /// # Errors
    ///
    /// When none comes within `timeout` or the agent ends first; the message has what it wrote.
    pub fn wait_for(&self, wanted: impl Fn(&Line) -> bool, timeout: Duration) -> Result<Line> {
        let start = Instant::now();
        let mut received = self.output.lock();
        let mut seen = 0;
        loop {
            if let Some(line) = received.lines.iter().skip(seen).find(|line| wanted(line)) {
                return Ok(line.clone());
            }
            seen = received.lines.len();
            let why = match timeout.checked_sub(start.elapsed()) {
                _ if received.ended => anyhow!("the agent ended its output"),
                None => anyhow!("no such line within {timeout:?}"),
                Some(left) => {
                    received = self.output.wait(received, left);
                    continue;
                }
            };
            drop(received);
            return Err(self.explain(why));
        }
    }

    /// Waits until no line has come for the time `quiet`.
    ///
    /// # Errors
    ///
    /// When the agent does not fall silent within a minute.
    pub fn settle(&self, quiet: Duration) -> Result<()> {
        let start = Instant::now();
        let mut received = self.output.lock();
        loop {
            let count = received.lines.len();
            let silence = Instant::now();
            while received.lines.len() == count {
                let Some(left) = quiet.checked_sub(silence.elapsed()) else { return Ok(()) };
                received = self.output.wait(received, left);
            }
            if start.elapsed() > SETTLE_TIMEOUT {
                bail!("the agent goes on writing: {count} lines");
            }
        }
    }

    /// Requests `path` from the agent's own HTTP server.
    ///
    /// # Errors
    ///
    /// When it has none or does not answer. A status other than 200 is an answer.
    pub fn http_get(&self, path: &str) -> Result<Response> {
        let address = self.listen.as_deref().context("the agent's ready line has no field `listen`")?;
        http::get(address, path)
    }

    /// Kills the agent with SIGKILL, as a node does that is out of memory. What it wrote until then is complete.
    ///
    /// # Errors
    ///
    /// When it cannot be killed or waited for.
    pub fn kill(mut self) -> Result<Stopped> {
        self.child.kill().context("cannot kill the agent")?;
        self.child.wait().context("cannot wait for the agent")?;
        let status = self.end()?;
        Ok(Stopped { status, lines: self.lines() })
    }

    /// Ends the agent as a node does: SIGTERM, and SIGKILL if it has not ended after ten seconds.
    ///
    /// # Errors
    ///
    /// When it cannot be signalled or waited for.
    pub fn stop(mut self) -> Result<Stopped> {
        let status = self.end()?;
        Ok(Stopped { status, lines: self.lines() })
    }

    fn end(&mut self) -> Result<ExitStatus> {
        let pid = Pid::from_child(&self.child);
        let start = Instant::now();
        let mut status = self.child.try_wait().context("cannot wait for the agent")?;
        if status.is_none() {
            kill_process(pid, Signal::TERM).context("cannot signal the agent")?;
        }
        while status.is_none() {
            if start.elapsed() > STOP_TIMEOUT {
                self.child.kill().context("cannot kill the agent")?;
                status = Some(self.child.wait().context("cannot wait for the agent")?);
                break;
            }
            thread::sleep(Duration::from_millis(5));
            status = self.child.try_wait().context("cannot wait for the agent")?;
        }
        if let Some(reader) = self.reader.take() {
            reader.join().map_err(|_panic| anyhow!("the reader of the agent's output panicked"))?;
        }
        status.context("the agent has no exit status")
    }

    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let lines: Vec<String> = self.lines().iter().map(|line| line.json.to_string()).collect();
        let errors = fs::read_to_string(&self.errors).unwrap_or_default();
        let tail = |text: &str| {
            text.lines().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
        };
        error.context(format!("stdout:\n{}\nstderr:\n{}", tail(&lines.join("\n")), tail(&errors)))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.end().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl AgentOutput {
    fn lock(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, Received>, timeout: Duration) -> MutexGuard<'a, Received> {
        self.changed.wait_timeout(guard, timeout).unwrap_or_else(PoisonError::into_inner).0
    }

    fn read(&self, stdout: ChildStdout) {
        for text in BufReader::new(stdout).lines() {
            let Ok(text) = text else { break };
            self.lock().lines.push(Line::new(text));
            self.changed.notify_all();
        }
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY: &str = r#"echo '{"event":"agent","state":"ready","listen":"127.0.0.1:9"}'"#;
    const FINDING: &str = r#"echo '{"event":"finding","pod":{"uid":"u1"}}'"#;
    const SHORT: Duration = Duration::from_millis(300);

    fn fake(name: &str, script: &str) -> Result<Agent> {
        let errors = std::env::temp_dir().join(format!("userns-lab-{}-{name}", std::process::id()));
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let agent = Agent::spawn(command, errors.clone(), Duration::from_secs(20));
        fs::remove_file(errors).unwrap();
        agent
    }

    #[test]
    fn lines_arrive_in_order_and_the_end_is_collected() {
        let script = format!(
            "trap 'echo \"{{\\\"event\\\":\\\"agent\\\",\\\"state\\\":\\\"stopping\\\"}}\"; exit 3' TERM; \
             {READY}; echo no json; {FINDING}; while :; do sleep 0.02; done"
        );
        let agent = fake("order", &script).unwrap();
        let finding = agent.wait_for(|line| line.is_event("finding"), Duration::from_secs(20)).unwrap();
        assert_eq!(finding.text("/pod/uid"), Some("u1"));
        agent.settle(SHORT).unwrap();
        assert_eq!(agent.findings().len(), 1);
        assert_eq!(agent.listen.as_deref(), Some("127.0.0.1:9"));
        let stopped = agent.stop().unwrap();
        assert_eq!(stopped.status.code(), Some(3));
        let lines: Vec<&Value> = stopped.lines.iter().map(|line| &line.json).collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[1], "no json");
        assert_eq!(lines[3]["state"], "stopping");
        assert!(stopped.lines.windows(2).all(|pair| pair[0].at <= pair[1].at));
    }

    #[test]
    fn a_killed_agent_leaves_what_it_wrote() {
        let agent = fake("killed", &format!("trap '' TERM; {READY}; {FINDING}; exec sleep 60")).unwrap();
        agent.wait_for(|line| line.is_event("finding"), Duration::from_secs(20)).unwrap();
        let stopped = agent.kill().unwrap();
        assert_eq!((stopped.status.code(), stopped.lines.len()), (None, 2));
    }

    #[test]
    fn a_line_that_does_not_come_is_an_error() {
        let agent = fake("silent", &format!("{READY}; exec sleep 60")).unwrap();
        let error = agent.wait_for(|line| line.is_event("finding"), SHORT).unwrap_err();
        assert!(format!("{error:#}").contains("no such line"), "{error:#}");
        let stopped = agent.stop().unwrap();
        assert!(!stopped.status.success());
    }

    #[test]
    fn an_agent_that_fails_shows_its_errors() {
        let script =
            r#"echo '{"event":"agent","state":"starting"}'; echo no eBPF here >&2; sleep 0.2; exit 1"#;
        let errors = std::env::temp_dir().join(format!("userns-lab-{}-fails", std::process::id()));
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let error = Agent::spawn(command, errors.clone(), Duration::from_secs(20)).unwrap_err();
        fs::remove_file(errors).unwrap();
        let text = format!("{error:#}");
        assert!(text.contains("ended its output") && text.contains("no eBPF here"), "{text}");
    }
}
