//! The API server fails in every way at once, each for an agent of its own: findings come as ever, without names, and
//! get them afterwards.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::lab::{
    Agent, Container, ContainerSpec, IdRange, Line, Pod, PodSpec,
    apiserver::{self, ApiServer, NODE, Replaced, Trouble},
};

use crate::{Node, losses, metric, slowdown, told};

const PODS_OF_A_SLOW_LIST: u32 = 10_000;
/// What critical findings may take, and what others may besides waiting for names: the runtime's start is in it.
const AT_ONCE: Duration = Duration::from_secs(1);
const ENRICH_WAIT: Duration = Duration::from_millis(300);
/// How long the agent waits for a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Until it asks again: pauses double, up to half a minute.
const RECOVERY: Duration = Duration::from_secs(40);

/// What becomes of the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Killed,
    Silent,
    Expired,
    OtherCertificate,
    ExpiredToken,
    /// It is asked for the first time, and takes its time with ten thousand pods.
    Slow,
}

const FAILURES: [Failure; 6] = [
    Failure::Killed,
    Failure::Silent,
    Failure::Expired,
    Failure::OtherCertificate,
    Failure::ExpiredToken,
    Failure::Slow,
];

impl Failure {
    /// What the agent says of it.
    fn says(self) -> &'static [&'static str] {
        match self {
            Self::Killed => &["cannot connect", "refused", "of before stay in force"],
            Self::Silent => &["did not take a connection within 10s", "of before stay in force"],
            Self::Expired => &["410", "of before stay in force"],
            Self::OtherCertificate => &["no valid certificate", "ca.crt", "of before stay in force"],
            Self::ExpiredToken => &["401", "the token has expired", "of before stay in force"],
            Self::Slow => &["its pods are being read for the first time", " so far"],
        }
    }
}

/// What is planted: a container, and the rule that must tell of it.
struct Planted {
    rule: &'static str,
    pod: Pod,
    container: Container,
    /// How late it may be told.
    limit: Duration,
}

impl Planted {
    /// I7: a range that wraps around to the host's root, which is critical.
    fn wrapped(node: &Node) -> Result<Self> {
        let zero = IdRange { first: 0, length: 65_536 };
        Self::new(node, "wrapped", zero, Some(zero), "I7", AT_ONCE)
    }

    /// I3: the runtime ignores the promise, which is not.
    fn ignored(node: &Node, name: &str, nth: u16) -> Result<Self> {
        Self::new(node, name, IdRange::nth(nth), None, "I3", ENRICH_WAIT + AT_ONCE)
    }

    fn new(
        node: &Node,
        name: &str,
        record: IdRange,
        mapping: Option<IdRange>,
        rule: &'static str,
        limit: Duration,
    ) -> Result<Self> {
        let pod = node.lab.pod(PodSpec { name: name.into(), record: Some(record), ..PodSpec::default() })?;
        let mapping = mapping.map(IdRange::mapping);
        let container = pod.container(ContainerSpec { mapping, ..ContainerSpec::default() })?;
        container.create()?;
        Ok(Self { rule, pod, container, limit })
    }

    /// The pod as the API server has it.
    fn object(&self) -> Value {
        let mut object = apiserver::pod(0);
        object["metadata"]["uid"] = self.pod.uid().into();
        object["metadata"]["name"] = self.pod.name().into();
        object["status"]["containerStatuses"][0]["containerID"] =
            format!("containerd://{}", self.container.id()).into();
        object
    }

    /// Records of its finding with this status.
    fn lines(&self, agent: &Agent, status: &str) -> Vec<Line> {
        let mut lines = agent.findings();
        lines.retain(|line| self.is_told(line, status));
        lines
    }

    /// How often it was told again for what has become known of the pod, rather than for more evidence.
    fn learnt(&self, agent: &Agent) -> usize {
        let unknown = |line: &Line| line.json["finding"]["unknown"].clone();
        let first = self.lines(agent, "opened").first().map(unknown);
        self.lines(agent, "amended").iter().filter(|line| Some(unknown(line)) != first).count()
    }

    fn is_told(&self, line: &Line, status: &str) -> bool {
        line.is_event("finding")
            && line.text("/finding/rule/id") == Some(self.rule)
            && line.text("/finding/status") == Some(status)
            && line.text("/pod/uid") == Some(self.pod.uid())
    }

    /// Holds that a record has all that the API server knows.
    fn is_named(&self, line: &Line) -> Result<()> {
        for (pointer, expected) in [
            ("/pod/namespace", "default"),
            ("/pod/name", self.pod.name()),
            ("/pod/source", "api"),
            ("/pod/owner/kind", "ReplicaSet"),
            ("/pod/owner/name", "web-5d4f"),
            ("/pod/service_account", "default"),
            ("/pod/labels/app", "web"),
            ("/container/name", "web"),
            ("/container/image", "registry.example/web:1"),
        ] {
            ensure!(line.text(pointer) == Some(expected), "{pointer} is not {expected}: {}", line.json);
        }
        Ok(())
    }
}

/// An agent, and the API server that it asks.
struct Side {
    failure: Failure,
    server: ApiServer,
    agent: Agent,
    /// What has to be published for the certificate to be valid.
    replaced: Option<Replaced>,
}

impl Side {
    fn start(node: &Node, failure: Failure) -> Result<Self> {
        let dir = node.lab.dir().join(format!("api-{failure:?}"));
        fs::create_dir(&dir)?;
        let server = ApiServer::start(&dir)?;
        let is_slow = failure == Failure::Slow;
        let pods = if is_slow { PODS_OF_A_SLOW_LIST / slowdown() } else { 3 };
        (1..=pods).for_each(|number| server.put(apiserver::pod(number)));
        server.trouble(if is_slow { Trouble::Slow } else { Trouble::None });
        let kubeconfig = dir.join("kubeconfig");
        // JSON is YAML too
        let text = json!({
            "current-context": "lab",
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "agent"}}],
            "clusters": [{"name": "lab", "cluster": {
                "server": format!("https://{}", server.address()), "certificate-authority": "ca.crt"}}],
            "users": [{"name": "agent", "user": {"tokenFile": "token"}}],
        });
        fs::write(&kubeconfig, text.to_string())?;
        let (kubeconfig, socket) = (kubeconfig.display().to_string(), dir.join("agent.sock"));
        let socket = socket.display().to_string();
        let wait = format!("{}ms", ENRICH_WAIT.as_millis());
        let agent = node.agent(&[
            "--kubeconfig",
            &kubeconfig,
            "--node-name",
            NODE,
            "--cri-socket",
            "off",
            "--socket",
            &socket,
            "--enrich-wait",
            &wait,
        ])?;
        Ok(Self { failure, server, agent, replaced: None })
    }

    fn fail(&mut self) -> Result<()> {
        match self.failure {
            Failure::Killed => self.server.kill(),
            Failure::Silent => self.server.trouble(Trouble::Silent),
            Failure::Expired => self.server.trouble(Trouble::Expired),
            Failure::OtherCertificate => self.replaced = Some(self.server.change_ca()?),
            Failure::ExpiredToken => drop(self.server.expire_token()),
            Failure::Slow => {}
        }
        if matches!(self.failure, Failure::Silent | Failure::OtherCertificate | Failure::ExpiredToken) {
            // watches that are open would go on
            self.server.cut();
        }
        Ok(())
    }

    fn heal(&mut self) -> Result<()> {
        match self.failure {
            Failure::Killed => self.server.revive(),
            Failure::Silent | Failure::Expired | Failure::Slow => {
                self.server.trouble(Trouble::None);
                Ok(())
            }
            Failure::OtherCertificate => {
                let replaced = self.replaced.take().context("the certificate was not changed")?;
                self.server.publish_ca(&replaced)
            }
            Failure::ExpiredToken => self.server.rotate_token(),
        }
    }

    /// What `/status` says of the source.
    fn source(&self) -> Result<Value> {
        let status: Value = serde_json::from_str(&self.agent.http_get("/status")?.body)?;
        let mut sources = status["sources"].as_array().into_iter().flatten();
        sources.find(|source| source["name"] == "api").cloned().context("/status has no such source")
    }

    /// Waits until `/status` says of the source what `wanted` accepts.
    fn wait_for_source(&self, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Result<()> {
        let started = Instant::now();
        loop {
            let source = self.source()?;
            if wanted(&source) {
                return Ok(());
            }
            ensure!(started.elapsed() < limit * slowdown(), "/status says {source}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn is_up(&self) -> Result<()> {
        self.wait_for_source(RECOVERY, |source| source["up"] == true && source["error"].is_null())
    }

    /// The agent says, and counts, that the source fails, and why.
    fn says_what_is_missing(&self) -> Result<()> {
        let says = |source: &Value| {
            let error = source["error"].as_str().unwrap_or_default();
            source["up"] == false && self.failure.says().iter().all(|part| error.contains(part))
        };
        self.wait_for_source(CONNECT + Duration::from_secs(5), says)?;
        let metrics = self.agent.http_get("/metrics")?.body;
        let of = |name| metric(&metrics, name, &[("source", "api")]);
        let (up, errors) = (of("userns_source_up"), of("userns_source_errors_total"));
        // that it is slow is no error
        let counted = (errors > 0.0) == (self.failure != Failure::Slow);
        ensure!(up == 0.0 && counted, "userns_source_up is {up}, userns_source_errors_total {errors}");
        let ready = self.agent.http_get("/readyz")?.status;
        ensure!(ready == 200, "it detects all it can without names, and /readyz answers {ready}");
        Ok(())
    }

    /// The finding comes in time, with what is known without the API server; returns how late it was.
    fn tells(&self, planted: &Planted, act: Instant) -> Result<Duration> {
        let limit = planted.limit * slowdown();
        let opened =
            self.agent.wait_for(|line| planted.is_told(line, "opened"), limit + Duration::from_secs(5))?;
        let delay = opened.at.saturating_duration_since(act);
        ensure!(delay < limit, "{} was told after {delay:?}", planted.rule);
        ensure!(opened.text("/pod/name").is_none(), "whence the name? {}", opened.json);
        let unknown = opened.json["finding"]["unknown"].to_string();
        ensure!(unknown.contains("pod name, namespace and labels: no source has told them"), "{unknown}");
        Ok(delay)
    }

    /// The same finding has names now.
    fn amends(&self, planted: &Planted) -> Result<()> {
        let is_it = |line: &Line| planted.is_told(line, "amended") && line.text("/pod/name").is_some();
        let amended = self.agent.wait_for(is_it, RECOVERY * slowdown())?;
        planted.is_named(&amended)?;
        let opened = planted.lines(&self.agent, "opened");
        let [opened] = opened.as_slice() else { bail!("opened {} times", opened.len()) };
        ensure!(opened.text("/finding/id") == amended.text("/finding/id"), "amended as another finding");
        Ok(())
    }

    /// Nothing but what was planted was told, each thing once, and nothing was lost.
    fn adds_up(&self, during: &[Planted], later: &Planted) -> Result<()> {
        for planted in during {
            let amended = planted.learnt(&self.agent);
            ensure!(amended == 1, "{} was amended {amended} times", planted.rule);
        }
        ensure!(later.learnt(&self.agent) == 0, "there was nothing to amend");
        let findings = self.agent.findings();
        let opened = findings.iter().filter(|line| line.text("/finding/status") == Some("opened")).count();
        ensure!(opened == during.len() + 1, "{opened} findings{}", told(&self.agent));
        let metrics = self.agent.http_get("/metrics")?.body;
        ensure!(losses(&metrics).is_empty(), "{:?}", losses(&metrics));
        let up = metric(&metrics, "userns_source_up", &[("source", "api")]);
        ensure!(up == 1.0, "userns_source_up is {up}");
        Ok(())
    }
}

/// The same of every side at the same time.
fn all(sides: &[Side], what: impl Fn(&Side) -> Result<()>) -> Result<()> {
    sides.iter().try_for_each(|side| what(side).with_context(|| format!("{:?}", side.failure)))
}

#[test]
fn outages_of_the_api_server_cost_names_for_a_while_and_no_finding() -> Result<()> {
    let Some(node) = Node::new("outages_of_the_api_server")? else { return Ok(()) };
    let began = Instant::now();
    let start = |failure| Side::start(&node, failure).with_context(|| format!("{failure:?}"));
    let mut sides = FAILURES.into_iter().map(start).collect::<Result<Vec<_>>>()?;
    all(&sides, |side| if side.failure == Failure::Slow { Ok(()) } else { side.is_up() })?;
    println!("{} agents with API servers are up after {:.1?}", sides.len(), began.elapsed());

    sides.iter_mut().try_for_each(Side::fail)?;
    let during = [Planted::wrapped(&node)?, Planted::ignored(&node, "ignored", 47_000)?];
    for planted in &during {
        sides.iter().for_each(|side| side.server.put(planted.object()));
        let act = Instant::now();
        planted.container.start()?;
        all(&sides, |side| {
            let delay = side.tells(planted, act)?;
            println!("{:?}: {} after {delay:.1?}", side.failure, planted.rule);
            Ok(())
        })?;
    }
    all(&sides, Side::says_what_is_missing)?;
    println!("every agent says what it is missing after {:.1?}", began.elapsed());

    sides.iter_mut().try_for_each(Side::heal)?;
    all(&sides, |side| {
        side.is_up()?;
        during.iter().try_for_each(|planted| side.amends(planted))?;
        println!("{:?}: amended after {:.1?}", side.failure, began.elapsed());
        Ok(())
    })?;

    let later = Planted::ignored(&node, "later", 47_001)?;
    sides.iter().for_each(|side| side.server.put(later.object()));
    later.container.start()?;
    all(&sides, |side| {
        let limit = (later.limit + Duration::from_secs(5)) * slowdown();
        let opened = side.agent.wait_for(|line| later.is_told(line, "opened"), limit)?;
        later.is_named(&opened)
    })?;
    // longer than an amendment, or a finding that waits for names, would take
    std::thread::sleep(Duration::from_secs(1));
    all(&sides, |side| side.adds_up(&during, &later))?;
    println!("outages_of_the_api_server: {} failures in {:.1?}", sides.len(), began.elapsed());
    Ok(())
}
