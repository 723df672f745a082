//! Configuration: defaults, then a YAML file, then environment variables and flags; later ones win.
//!
//! Everything is checked before anything starts, and everything that is wrong is reported at once: the file is
//! read into a tree of values and checked key by key against one table ([`keys::KEYS`]), which is also where
//! flags, environment variables, help texts and docs/config.md come from.

pub mod keys;
#[cfg(test)]
mod tests;
pub mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Uri;
use keys::{KEYS, Key};
use serde_json::Value;
use serde_saphyr::Spanned;
use value::{Mismatch, Raw};

use crate::kernel::plan::Mechanism;

/// Directories searched for the executables of container runtimes unless configured otherwise: distributions'
/// own, those of CRI-O's packages, and those of k3s, RKE2, k0s, MicroK8s and NixOS.
pub const RUNTIME_DIRECTORIES: &[&str] = &[
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/local/sbin",
    "/usr/libexec/crio",
    "/usr/libexec/podman",
    "/opt/bin",
    "/opt/containerd/bin",
    "/run/current-system/sw/bin",
    "/var/lib/rancher/k3s/data/current/bin",
    "/var/lib/rancher/rke2/bin",
    "/var/lib/k0s/bin",
    "/snap/microk8s/current/bin",
];

/// Largest configuration file that is read.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The configuration, every value within its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Root directory of kubelet.
    pub kubelet_root: PathBuf,
    /// Where procfs is mounted.
    pub proc_root: PathBuf,
    /// Where the unified cgroup hierarchy is mounted; `None`: found by looking.
    pub cgroup_root: Option<PathBuf>,
    /// The host's root directory.
    pub host_root: PathBuf,
    /// File of Pod objects.
    pub pods_file: Option<PathBuf>,
    /// File of what to tell of each rule, and what to leave out.
    pub rules_file: Option<PathBuf>,
    /// Socket of the container runtime.
    pub cri_socket: Socket,
    /// Whether to ask the API server.
    pub api_server: ApiServer,
    /// Kubeconfig that says where it is; `None`: that of the cluster the agent runs in.
    pub kubeconfig: Option<PathBuf>,
    /// The volume of the pod's service account.
    pub credentials_dir: PathBuf,
    /// The node's name; `None`: that of the environment or the kernel.
    pub node_name: Option<String>,
    /// URL of kubelet; `None`: it is not asked.
    pub kubelet_api: Option<Uri>,
    /// Authorities for kubelet's serving certificate; `None`: the service account's.
    pub kubelet_ca: Option<PathBuf>,
    /// Time between two questions to kubelet.
    pub kubelet_api_interval: Duration,
    /// Address of the HTTP endpoint.
    pub listen: SocketAddr,
    /// How long a runtime may take from entering a container's cgroup to leaving the host's user namespace.
    pub entry_grace: Duration,
    /// How long a finding may wait for names.
    pub enrich_wait: Duration,
    /// Time between two sweeps over all tasks, cgroups and kubelet's records.
    pub sweep_interval: Duration,
    /// What goes to standard output.
    pub output: Output,
    /// File that findings are appended to.
    pub output_file: Option<PathBuf>,
    /// Size at which that file is rotated.
    pub output_file_max_bytes: u64,
    /// Rotated files kept.
    pub output_file_keep: u64,
    /// Directory of what was told; `None`: nothing is remembered.
    pub state_dir: Option<PathBuf>,
    /// Where the agent tells root what it knows of the pods.
    pub socket: Option<PathBuf>,
    /// What the log on standard error holds.
    pub log_level: LogLevel,
    /// Executables of container runtimes, or directories to search for them.
    pub runtime_paths: Vec<PathBuf>,
    /// Containers tracked at a time.
    pub max_containers: u64,
    /// Processes tracked at a time.
    pub max_processes: u64,
    /// The user namespace that counts as the host's.
    pub reference_userns: ReferenceUserns,
    /// Runtime classes and handlers whose pods run where this kernel does not see them.
    pub unobservable_runtimes: Vec<String>,
    /// Everyday records that a container may send in a second.
    pub container_budget: u64,
    /// The only mechanism for hooks that have it; `None`: the best that the kernel takes.
    pub probe_mechanism: Option<Mechanism>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kubelet_root: "/var/lib/kubelet".into(),
            proc_root: "/proc".into(),
            cgroup_root: None,
            host_root: "/proc/1/root".into(),
            pods_file: None,
            rules_file: None,
            cri_socket: Socket::Auto,
            api_server: ApiServer::Auto,
            kubeconfig: None,
            credentials_dir: "/var/run/secrets/kubernetes.io/serviceaccount".into(),
            node_name: None,
            kubelet_api: None,
            kubelet_ca: None,
            kubelet_api_interval: Duration::from_secs(10),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9477)),
            entry_grace: Duration::from_secs(2),
            enrich_wait: Duration::from_millis(300),
            sweep_interval: Duration::from_secs(5),
            output: Output::Auto,
            output_file: None,
            output_file_max_bytes: 64 * 1024 * 1024,
            output_file_keep: 5,
            state_dir: Some("/run/userns-agent".into()),
            socket: Some("/run/userns-agent/agent.sock".into()),
            log_level: LogLevel::Info,
            runtime_paths: RUNTIME_DIRECTORIES.iter().map(PathBuf::from).collect(),
            max_containers: 8192,
            max_processes: 65_536,
            reference_userns: ReferenceUserns::Auto,
            unobservable_runtimes: ["kata*", "gvisor", "runsc*"].map(str::to_owned).to_vec(),
            container_budget: 500,
            probe_mechanism: None,
        }
    }
}

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Socket {
    /// Where something is found to connect to.
    Auto,
    /// Nowhere.
    Off,
    /// To this socket.
    Path(PathBuf),
}

/// Whether the API server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiServer {
    /// Where there is a kubeconfig or a service account.
    Auto,
    /// Never.
    Off,
}

/// Which user namespace counts as the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferenceUserns {
    /// Kubelet's, the initial one if no kubelet is found.
    Auto,
    /// The initial one.
    Initial,
    /// That of the process with this pid.
    Process(u32),
}

/// What goes to standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The live view on a terminal, JSON otherwise.
    Auto,
    /// A JSON object a line.
    Json,
    /// The live view.
    Live,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// What stops the agent or takes a part of it away.
    Error,
    /// And what may.
    Warn,
    /// And starts, stops and recoveries.
    Info,
    /// And decisions.
    Debug,
    /// And every record.
    Trace,
}

impl LogLevel {
    /// The directive that `tracing_subscriber` takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A line of the configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// The line; 0 if unknown.
        line: u64,
    },
    /// An environment variable.
    Environment,
    /// A flag.
    Flag,
}

/// A value from the environment or the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Name of the key, as in [`Key::name`].
    pub key: &'static str,
    /// Its text.
    pub text: String,
    /// [`Origin::Environment`] or [`Origin::Flag`].
    pub origin: Origin,
}

/// Something wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where it stands.
    pub origin: Origin,
    /// The key, with an index if it is a list's element.
    pub key: String,
    /// What was found there.
    pub found: String,
    /// What would be right.
    pub allowed: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, key, found, allowed } = self;
        let (name, index) = key.split_at(key.find('[').unwrap_or(key.len()));
        match origin {
            Origin::File { path, line: 0 } => write!(f, "{}: {key}", path.display())?,
            Origin::File { path, line } => write!(f, "{}:{line}: {key}", path.display())?,
            Origin::Environment => write!(f, "environment variable {}{index}", keys::env_name(name))?,
            Origin::Flag => write!(f, "flag --{}{index}", keys::flag_name(name))?,
        }
        write!(f, ": found {found}; allowed is {allowed}")
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no YAML mapping.
    #[error("the configuration file {} is not a YAML mapping of keys to values: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        reason: String,
    },
    /// Values are wrong.
    #[error("{}", list("the configuration", mistakes))]
    Invalid {
        /// All of them.
        mistakes: Vec<Mistake>,
    },
}

/// What is wrong with `what`, a line each.
pub(crate) fn list(what: &str, mistakes: &[Mistake]) -> String {
    let mut text = match mistakes.len() {
        1 => format!("{what} has a mistake:"),
        count => format!("{what} has {count} mistakes:"),
    };
    for mistake in mistakes {
        text.push_str(&format!("\n  {mistake}"));
    }
    text
}

/// A configuration and where each value that is not a default comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Origins by key.
    pub origins: BTreeMap<&'static str, Origin>,
}

impl Loaded {
    /// The configuration as a file that would give it, each value with its origin.
    #[must_use]
    pub fn show(&self) -> String {
        let mut text = String::new();
        for key in KEYS {
            let origin = match self.origins.get(key.name) {
                None => "default".to_owned(),
                Some(Origin::File { path, line }) => format!("{}:{line}", path.display()),
                Some(Origin::Environment) => keys::env_name(key.name),
                Some(Origin::Flag) => format!("--{}", keys::flag_name(key.name)),
            };
            text.push_str(&format!("{}: {} # {origin}\n", key.name, key.show(&self.config)));
        }
        text
    }
}

/// Reads the file, if one is given, and applies `overrides`.
///
/// # Errors
///
/// [`ConfigError`], with every mistake at once.
pub fn load(file: Option<&Path>, overrides: &[Override]) -> Result<Loaded, ConfigError> {
    let Some(path) = file else { return parse(None, overrides) };
    let text = read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(Some((path, &text)), overrides)
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::{Error, ErrorKind, Read as _};
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("it is larger than {MAX_FILE_BYTES} bytes")));
    }
    Ok(text)
}

/// As [`load`], from a file's name and text.
///
/// # Errors
///
/// [`ConfigError`], with every mistake at once.
pub fn parse(file: Option<(&Path, &str)>, overrides: &[Override]) -> Result<Loaded, ConfigError> {
    let mut loaded = Loaded::default();
    let mut mistakes = Vec::new();
    if let Some((path, text)) = file {
        for (name, entry) in entries(path, text)? {
            let origin = Origin::File { path: path.to_owned(), line: entry.referenced.line() };
            match keys::find(&name) {
                Some(key) => loaded.set(key, &Raw::Tree(&entry.value), origin, &mut mistakes),
                None => mistakes.push(unknown_key(&name, origin)),
            }
        }
    }
    for Override { key, text, origin } in overrides {
        if let Some(key) = keys::find(key) {
            loaded.set(key, &Raw::Text(text), origin.clone(), &mut mistakes);
        }
    }
    if mistakes.is_empty() { Ok(loaded) } else { Err(ConfigError::Invalid { mistakes }) }
}

impl Loaded {
    fn set(&mut self, key: &'static Key, raw: &Raw<'_>, origin: Origin, mistakes: &mut Vec<Mistake>) {
        match key.slot.set(&mut self.config, raw) {
            Ok(()) => {
                self.origins.insert(key.name, origin);
            }
            Err(Mismatch { index, found, allowed }) => {
                let index = index.map(|index| format!("[{index}]")).unwrap_or_default();
                mistakes.push(Mistake { origin, key: format!("{}{index}", key.name), found, allowed });
            }
        }
    }
}

type Entries = BTreeMap<String, Spanned<Value>>;

/// The file's entries in its own order.
fn entries(path: &Path, text: &str) -> Result<Vec<(String, Spanned<Value>)>, ConfigError> {
    // YAML 1.1's yes/no/on/off are text here, so that a value is reported as it was written
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_documents: 1, max_nodes: 10_000, max_events: 50_000, max_depth: 16 },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 10_000 },
        strict_booleans: true,
        with_snippet: false,
    };
    let entries = serde_saphyr::from_str_with_options::<Option<Entries>>(text, options).map_err(|error| {
        ConfigError::Syntax { path: path.to_owned(), reason: value::cut(&error.to_string(), 300) }
    })?;
    let mut entries: Vec<_> = entries.unwrap_or_default().into_iter().collect();
    entries.sort_by_key(|(_, entry)| entry.referenced.line());
    Ok(entries)
}

/// Of `names`, the one that was probably meant.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = name.to_lowercase().replace('-', "_");
    let distance = |known: &str| strsim::damerau_levenshtein(&wanted, &known.to_lowercase());
    let near = names.map(|known| (distance(known), known)).min()?;
    (near.0 <= 3).then_some(near.1)
}

fn unknown_key(name: &str, origin: Origin) -> Mistake {
    let allowed = match nearest(name, KEYS.iter().map(|key| key.name)) {
        Some(near) => format!("{near}, if that was meant"),
        None => format!("one of {}", KEYS.iter().map(|key| key.name).collect::<Vec<_>>().join(", ")),
    };
    let name = value::cut(name, value::SHOWN);
    Mistake { origin, key: name, found: "a key that does not exist".to_owned(), allowed }
}
