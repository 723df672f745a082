//! Asks the agent whether it saw what was tried.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::statfs;
use serde_json::Value;

use super::technique::{Detection, Sign};
use crate::cgroup;
use crate::ps::known::{self, AskError, Known};

/// How often the agent is asked.
const PAUSE: Duration = Duration::from_millis(100);
/// Time for an answer by HTTP.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most that is read of an answer or at a time of a file.
const MAX_BYTES: u64 = 16 << 20;
/// `CGROUP2_SUPER_MAGIC` (include/uapi/linux/magic.h).
const CGROUP2: u64 = 0x6367_7270;
/// Where a container has its cgroups, version 2 alone or beside version 1.
const CGROUP_ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// Names the pod, by the downward API.
const POD_UID: &str = "POD_UID";

/// Where the agent tells what it found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Its local socket, which answers the agent's own user only.
    Socket(PathBuf),
    /// The file that it writes its JSON lines to.
    File(PathBuf),
    /// `/metrics`, which tells of the node and not of a container: host and port, and the path.
    Metrics(String, String),
}

impl Source {
    /// A file's path, or a URL of the agent's `/metrics`.
    ///
    /// # Errors
    ///
    /// What is wrong with a URL.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("http://") {
            let (host, path) = rest.split_once('/').unwrap_or((rest, "metrics"));
            return match host.rsplit_once(':') {
                Some((_, port)) if port.parse::<u16>().is_ok() => {
                    Ok(Self::Metrics(host.to_owned(), format!("/{path}")))
                }
                _ => Err("name host and port, such as http://10.0.0.7:9477/metrics".to_owned()),
            };
        }
        if text.contains("://") {
            return Err("a file, or a URL that begins with http://".to_owned());
        }
        Ok(Self::File(text.into()))
    }
}

/// Why the agent cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// The file cannot be read.
    #[error("cannot read findings from {}: {source}; mount it so that this user may read it", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket does not answer.
    #[error("{0}; the socket answers the agent's own user, so never a pod with a user namespace")]
    Socket(#[from] AskError),
    /// There is no answer by HTTP.
    #[error("cannot ask http://{host}{path}: {why}")]
    Http {
        /// Host and port.
        host: String,
        /// The path.
        path: String,
        /// Why.
        why: String,
    },
    /// It is not known which container this is.
    #[error(
        "cannot tell which findings are about this container: set {POD_UID} to the pod's UID (fieldRef metadata.uid)"
    )]
    Nobody,
}

/// Whether the agent saw a technique.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nobody was asked.
    NotAsked,
    /// Nothing is to be seen: what became of it leaves no sign, or no rule looks for it.
    Nothing,
    /// A finding about this container lists it.
    Seen,
    /// There is a finding of the rule, which does not say by what.
    Rule,
    /// No finding came in time.
    NotSeen,
}

impl Seen {
    /// As printed in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotAsked => "not_asked",
            Self::Nothing => "nothing_to_see",
            Self::Seen => "seen",
            Self::Rule => "rule_seen",
            Self::NotSeen => "not_seen",
        }
    }
}

/// This container, as findings name it; what is not known is not compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Own {
    cgroup: Option<u64>,
    container: Option<String>,
    pod: Option<String>,
}

impl Own {
    /// From inside: cgroups are those below the own one where there is a cgroup namespace.
    fn find() -> Self {
        let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").to_owned();
        let of_pod = cgroup::parse(&path);
        let id = |root: &&str| {
            let dir = Path::new(root);
            let is_v2 = statfs(dir).is_ok_and(|stat| stat.f_type.cast_unsigned() == CGROUP2);
            fs::metadata(dir.join(path.trim_start_matches('/'))).ok().filter(|_| is_v2).map(|stat| stat.ino())
        };
        let container = of_pod.as_ref().and_then(|found| found.container.as_ref());
        Self {
            cgroup: CGROUP_ROOTS.iter().find_map(id),
            container: container.map(|container| container.id.clone()),
            pod: std::env::var(POD_UID).ok().or_else(|| of_pod.map(|found| found.uid.to_string())),
        }
    }

    /// Whether a line of the agent's is about this container.
    fn is_meant(&self, line: &Value) -> bool {
        let text = |pointer: &str| line.pointer(pointer).and_then(Value::as_str);
        let same = |own: &Option<String>, told: Option<&str>| own.is_some() && own.as_deref() == told;
        self.cgroup.is_some() && self.cgroup == line.pointer("/container/cgroup/id").and_then(Value::as_u64)
            || same(&self.container, text("/container/id"))
            || same(&self.pod, text("/pod/uid"))
    }
}

/// What findings of a rule say, as far as the source tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Told {
    /// How much: whatever grows when there is more.
    amount: u64,
    /// What is listed; `None` if the source does not tell.
    signs: Option<Vec<Listed>>,
}

/// A capability or a call that a finding lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Listed {
    name: String,
    /// The system call that the capability was asked for in, if that is known.
    syscall: Option<String>,
    denied: bool,
}

/// What is known of the agent's findings about this container.
#[derive(Debug)]
pub struct Witness {
    source: Source,
    own: Own,
    file: Option<File>,
    rest: Vec<u8>,
    before: BTreeMap<String, Told>,
    now: BTreeMap<String, Told>,
}

impl Witness {
    /// Takes note of what was told before anything is tried.
    ///
    /// # Errors
    ///
    /// [`WitnessError`], if there is nobody to be asked.
    pub fn new(source: Source) -> Result<Self, WitnessError> {
        Self::about(source, Own::find())
    }

    fn about(source: Source, own: Own) -> Result<Self, WitnessError> {
        let (before, now) = (BTreeMap::new(), BTreeMap::new());
        let known = match &source {
            Source::Metrics(..) => true,
            Source::Socket(_) => own.container.is_some() || own.pod.is_some(),
            Source::File(_) => own != Own::default(),
        };
        if !known {
            return Err(WitnessError::Nobody);
        }
        let mut witness = Self { source, own, file: None, rest: Vec::new(), before, now };
        if let Source::File(path) = &witness.source {
            let opened = File::open(path).and_then(|mut file| file.seek(SeekFrom::End(0)).map(|_| file));
            let file = opened.map_err(|source| WitnessError::File { path: path.clone(), source })?;
            witness.file = Some(file);
        }
        witness.look()?;
        witness.before = std::mem::take(&mut witness.now);
        Ok(witness)
    }

    /// Says of each technique whether the agent told of it since the beginning; waits for what is missing, `limit` at
    /// most.
    ///
    /// # Errors
    ///
    /// [`WitnessError`], if the agent cannot be asked any more.
    pub fn ask(&mut self, techniques: &[&Detection], limit: Duration) -> Result<Vec<Seen>, WitnessError> {
        let started = Instant::now();
        loop {
            self.look()?;
            let seen: Vec<_> = techniques.iter().map(|detection| self.seen(detection)).collect();
            let complete = seen.iter().all(|seen| matches!(seen, Seen::Seen | Seen::Nothing));
            if complete || started.elapsed() >= limit {
                return Ok(seen);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn seen(&self, detection: &Detection) -> Seen {
        let Some(rule) = detection.rule_id() else { return Seen::Nothing };
        let Some(told) = self.now.get(rule) else { return Seen::NotSeen };
        if self.before.get(rule).is_some_and(|before| before.amount >= told.amount) {
            return Seen::NotSeen;
        }
        match &told.signs {
            None => Seen::Rule,
            Some(told) => {
                let listed = |sign: &Sign| match sign {
                    Sign::Finding => true,
                    Sign::Done(name) => told.iter().any(|it| it.name == *name && !it.denied),
                    Sign::Capability(name) | Sign::Call(name) => {
                        told.iter().any(|it| it.name == *name && it.denied)
                    }
                    Sign::During(name, during) => told
                        .iter()
                        .any(|it| it.name == *name && it.denied && it.syscall.as_deref() == Some(during)),
                };
                if detection.signs().iter().any(listed) { Seen::Seen } else { Seen::NotSeen }
            }
        }
    }

    fn look(&mut self) -> Result<(), WitnessError> {
        match &self.source {
            Source::Socket(path) => self.now = self.open_findings(&known::ask(path)?),
            Source::Metrics(host, path) => {
                let text = get(host, path).map_err(|why| {
                    let (host, path) = (host.clone(), path.clone());
                    WitnessError::Http { host, path, why }
                })?;
                self.now = counted(&text);
            }
            Source::File(path) => {
                let path = path.clone();
                self.read_on().map_err(|source| WitnessError::File { path, source })?;
            }
        }
        Ok(())
    }

    /// Findings about this container that the agent has open.
    fn open_findings(&self, pods: &[Known]) -> BTreeMap<String, Told> {
        let mut told = BTreeMap::new();
        for pod in pods {
            let own_pod = self.own.pod.as_deref() == Some(pod.uid.as_str());
            for finding in &pod.findings {
                let own = self.own.container.is_some() && self.own.container == finding.container;
                if own || own_pod {
                    let entry: &mut Told = told.entry(finding.rule.clone()).or_default();
                    entry.amount += finding.count;
                }
            }
        }
        told
    }

    /// Reads the lines that came since.
    fn read_on(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        io::Read::by_ref(file).take(MAX_BYTES).read_to_end(&mut self.rest)?;
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return Ok(()) };
        let lines: Vec<u8> = self.rest.drain(..=end).collect();
        for line in lines.split(|byte| *byte == b'\n') {
            // a line that is none is the agent's affair
            if let Ok(line) = serde_json::from_slice::<Value>(line) {
                self.hear(&line);
            }
        }
        Ok(())
    }

    fn hear(&mut self, line: &Value) {
        let Some(rule) = line.pointer("/finding/rule/id").and_then(Value::as_str) else { return };
        if !self.own.is_meant(line) {
            return;
        }
        let told = self.now.entry(rule.to_owned()).or_default();
        told.amount += 1;
        let list = |name: &str| line[name].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let capabilities = list("capabilities").into_iter().map(|used| (used["granted"] == false, used));
        let calls = list("calls").into_iter().map(|used| (used["ret"].as_i64() < Some(0), used));
        let signs = capabilities.chain(calls).filter_map(|(denied, used)| {
            Some(Listed { name: text(&used["name"])?, syscall: text(&used["syscall"]["name"]), denied })
        });
        told.signs.get_or_insert_default().extend(signs);
    }
}

/// Findings of each rule since the agent's start, on the whole node.
fn counted(metrics: &str) -> BTreeMap<String, Told> {
    let mut told: BTreeMap<String, Told> = BTreeMap::new();
    for line in metrics.lines().filter_map(|line| line.strip_prefix("userns_findings_total{")) {
        let Some((labels, value)) = line.split_once("} ") else { continue };
        let rule = labels.split(',').find_map(|label| label.strip_prefix("rule=\"")?.strip_suffix('"'));
        if let (Some(rule), Ok(count)) = (rule, value.trim().parse::<u64>()) {
            told.entry(rule.to_owned()).or_default().amount += count;
        }
    }
    told
}

/// The body of the answer to one request.
fn get(host: &str, path: &str) -> Result<String, String> {
    let io = |error: io::Error| error.to_string();
    let address = host.to_socket_addrs().map_err(io)?.next().ok_or("the name has no address")?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(io)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
    let request = format!("GET {path} HTTP/1.0\r\nhost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(io)?;
    let mut answer = String::new();
    stream.take(MAX_BYTES).read_to_string(&mut answer).map_err(io)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer is cut")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status == "200" { Ok(body.to_owned()) } else { Err(format!("it answers {status}")) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use serde_json::json;

    use super::*;
    use crate::core::rules::RuleId;

    const PTRACE: Detection = Detection::By(RuleId::I11, &[Sign::Capability("CAP_SYS_PTRACE")]);
    const SETNS: Detection = Detection::By(RuleId::I11, &[Sign::Call("setns")]);
    const MOUNT: Detection = Detection::By(RuleId::I11, &[Sign::During("CAP_SYS_ADMIN", "mount")]);
    const PERF: Detection = Detection::By(RuleId::I11, &[Sign::During("CAP_SYS_ADMIN", "perf_event_open")]);
    const MADE: Detection = Detection::By(RuleId::I11, &[Sign::Done("unshare")]);
    const REFUSED: Detection = Detection::By(RuleId::I11, &[Sign::Call("unshare")]);
    const ANY: Detection = Detection::By(RuleId::I11, &[Sign::Finding]);
    const OTHER: Detection = Detection::By(RuleId::I10, &[Sign::Finding]);
    const NOBODY: Detection = Detection::Nobody("x");

    fn own() -> Own {
        Own { cgroup: Some(7), container: None, pod: None }
    }

    fn line(cgroup: u64, rule: &str) -> String {
        let line = json!({
            "finding": {"rule": {"id": rule}},
            "container": {"id": "c", "cgroup": {"id": cgroup}},
            "pod": {"uid": "p"},
            "capabilities": [
                {"name": "CAP_SYS_PTRACE", "granted": false}, {"name": "CAP_SYSLOG", "granted": true},
                {"name": "CAP_SYS_ADMIN", "granted": false, "syscall": {"number": 165, "name": "mount"}},
            ],
            "calls": [{"name": "unshare", "ret": 0}],
        });
        format!("{line}\n")
    }

    #[test]
    fn sources_are_files_and_metrics() {
        assert_eq!(Source::parse("/x/y"), Ok(Source::File("/x/y".into())));
        let metrics = |path: &str| Ok(Source::Metrics("a:1".into(), path.into()));
        assert_eq!(Source::parse("http://a:1/metrics"), metrics("/metrics"));
        assert_eq!(Source::parse("http://a:1"), metrics("/metrics"));
        for wrong in ["https://a:1/", "http://a/metrics", "http://a:x/"] {
            assert!(Source::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn lines_about_this_container_that_come_later_are_heard() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        fs::write(&path, line(7, "I11")).unwrap();
        let mut witness = Witness::about(Source::File(path.clone()), own()).unwrap();
        let mut ask = |text: &str| {
            let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            witness.ask(&[&PTRACE, &SETNS, &NOBODY], Duration::ZERO).unwrap()
        };
        // of before, of another container, of another rule, and half a line
        assert_eq!(ask(""), [Seen::NotSeen, Seen::NotSeen, Seen::Nothing]);
        let (whole, other) = (line(7, "I11"), line(8, "I11") + &line(7, "I5") + "no json\n");
        let (half, rest) = whole.split_at(20);
        assert_eq!(ask(&(other + half)), [Seen::NotSeen, Seen::NotSeen, Seen::Nothing]);
        assert_eq!(ask(rest), [Seen::Seen, Seen::NotSeen, Seen::Nothing]);
        assert_eq!(witness.ask(&[&MOUNT, &PERF], Duration::ZERO).unwrap(), [Seen::Seen, Seen::NotSeen]);
        assert_eq!(witness.ask(&[&MADE, &REFUSED], Duration::ZERO).unwrap(), [Seen::Seen, Seen::NotSeen]);
        assert_eq!(witness.ask(&[&ANY, &OTHER], Duration::ZERO).unwrap(), [Seen::Seen, Seen::NotSeen]);
    }

    #[test]
    fn a_container_is_known_by_any_of_its_names() {
        let told: Value = serde_json::from_str(&line(7, "I11")).unwrap();
        let of = |cgroup, container: Option<&str>, pod: Option<&str>| {
            Own { cgroup, container: container.map(Into::into), pod: pod.map(Into::into) }.is_meant(&told)
        };
        assert!(of(Some(7), None, None) && of(Some(8), Some("c"), None) && of(None, None, Some("p")));
        assert!(!of(None, None, None) && !of(Some(8), Some("d"), Some("q")));
        assert!(matches!(Witness::about(Source::Socket("/x".into()), own()), Err(WitnessError::Nobody)));
    }

    #[test]
    fn counts_of_the_node_say_no_more_than_the_rule() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            for severities in [1, 2] {
                let mut stream = listener.accept().unwrap().0;
                let mut request = [0; 512];
                let _ = stream.read(&mut request).unwrap();
                let sample =
                    |severity| format!("userns_findings_total{{rule=\"I11\",severity=\"{severity}\"}} 2\n");
                let body: String = (0..severities).map(sample).collect();
                stream.write_all(format!("HTTP/1.1 200 OK\r\n\r\n{body}").as_bytes()).unwrap();
            }
        });
        let source = Source::Metrics(host.clone(), "/metrics".into());
        let mut witness = Witness::about(source, Own::default()).unwrap();
        assert_eq!(witness.ask(&[&PTRACE, &NOBODY], Duration::ZERO).unwrap(), [Seen::Rule, Seen::Nothing]);
        server.join().unwrap();
        let error = Witness::about(Source::Metrics(host, "/".into()), own()).unwrap_err();
        assert!(error.to_string().contains("cannot ask http://127.0.0.1"), "{error}");
    }

    #[test]
    fn open_findings_that_grew_are_news() {
        let witness = |pod: &str| {
            let own = Own { pod: Some(pod.into()), ..Own::default() };
            let (before, now) = (BTreeMap::new(), BTreeMap::new());
            Witness { source: Source::Socket("/x".into()), own, file: None, rest: Vec::new(), before, now }
        };
        let finding = known::KnownFinding { rule: "I11".into(), count: 3, ..Default::default() };
        let pods = [Known { uid: "p".into(), findings: vec![finding], ..Known::default() }];
        let mut own = witness("p");
        own.now = own.open_findings(&pods);
        assert_eq!(own.seen(&PTRACE), Seen::Rule);
        own.before = own.now.clone();
        assert_eq!(own.seen(&PTRACE), Seen::NotSeen);
        assert_eq!(witness("q").open_findings(&pods), BTreeMap::new());
    }
}
