//! The table of keys.

use std::time::Duration;

use super::Config;
use super::value::Slot;

/// A key of the configuration.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its name in the file.
    pub name: &'static str,
    /// What it is for, in one sentence.
    pub help: &'static str,
    /// Whether `userns-agent ps` uses it too.
    pub ps: bool,
    /// Its type, limits and place.
    pub slot: Slot,
}

impl Key {
    /// Its value in `config`, as YAML.
    #[must_use]
    pub fn show(&self, config: &Config) -> String {
        self.slot.show(config)
    }

    /// Its default, for people.
    #[must_use]
    pub fn default_text(&self) -> String {
        match self.show(&Config::default()).as_str() {
            "null" => "none".to_owned(),
            text => text.replace('"', ""),
        }
    }
}

/// Every key, in the order in which help and documentation list them.
pub static KEYS: &[Key] = &[
    Key {
        name: "kubelet_root",
        help: "Root directory of kubelet; pods/*/userns below it says which pods were given a user namespace",
        ps: true,
        slot: Slot::Directory(|config| &mut config.kubelet_root),
    },
    Key {
        name: "pods_file",
        help: "File of Pod objects (YAML or JSON, a list or one after another) for names, labels and \
               spec.hostUsers; read again when it changes",
        ps: true,
        slot: Slot::File(|config| &mut config.pods_file),
    },
    Key {
        name: "rules_file",
        help: "File of rules to turn off or to rank otherwise, and of exceptions (docs/rules-file.md); read again when it \
               changes",
        ps: false,
        slot: Slot::File(|config| &mut config.rules_file),
    },
    Key {
        name: "cri_socket",
        help: "Socket of the container runtime's CRI (containerd, CRI-O), which tells pods, containers, images and the \
               user namespaces that kubelet asked for; `auto` looks below host_root where runtimes have theirs. Who \
               may write to it can do anything on the host; the agent only asks",
        ps: false,
        slot: Slot::Socket(|config| &mut config.cri_socket),
    },
    Key {
        name: "api_server",
        help: "Whether the API server tells pods of this node: `auto` asks it where kubeconfig is given, or in a cluster \
               with the service account of the agent's pod, which needs get, list and watch on pods",
        ps: false,
        slot: Slot::ApiServer(|config| &mut config.api_server),
    },
    Key {
        name: "kubeconfig",
        help: "Kubeconfig file whose current context says where the API server is and as whom to ask it, instead of \
               the service account; certificates and tokens only, no programs are run",
        ps: false,
        slot: Slot::File(|config| &mut config.kubeconfig),
    },
    Key {
        name: "credentials_dir",
        help: "Volume of the service account, with token and ca.crt; both are read again for each connection",
        ps: false,
        slot: Slot::Directory(|config| &mut config.credentials_dir),
    },
    Key {
        name: "node_name",
        help: "Name of this node in the cluster: whose pods to ask for, and what outputs call it. Without it, that of \
               the environment variable NODE_NAME, or the host's name",
        ps: false,
        slot: Slot::Name(|config| &mut config.node_name),
    },
    Key {
        name: "kubelet_api",
        help: "URL of kubelet, whose /pods is then asked for with the service account's token, which needs get on \
               nodes/pods; with a loopback address its certificate has to be for node_name",
        ps: false,
        slot: Slot::Url(|config| &mut config.kubelet_api),
    },
    Key {
        name: "kubelet_ca",
        help: "File of the authorities (PEM) that may have signed kubelet's serving certificate; without it, those of \
               the service account",
        ps: false,
        slot: Slot::File(|config| &mut config.kubelet_ca),
    },
    Key {
        name: "kubelet_api_interval",
        help: "Time between two questions to kubelet_api, varied by a tenth",
        ps: false,
        slot: Slot::Time(
            |config| &mut config.kubelet_api_interval,
            Duration::from_secs(1)..=Duration::from_secs(600),
        ),
    },
    Key {
        name: "proc_root",
        help: "Where procfs is mounted, of the host's pid namespace",
        ps: true,
        slot: Slot::Directory(|config| &mut config.proc_root),
    },
    Key {
        name: "cgroup_root",
        help: "Where the unified (version 2) cgroup hierarchy is mounted; `auto` looks at /sys/fs/cgroup and \
               /sys/fs/cgroup/unified",
        ps: true,
        slot: Slot::AutoDirectory(|config| &mut config.cgroup_root),
    },
    Key {
        name: "host_root",
        help: "The host's root directory, in which runtime_paths are looked up; / is used if it cannot be opened",
        ps: false,
        slot: Slot::Directory(|config| &mut config.host_root),
    },
    Key {
        name: "runtime_paths",
        help: "Executables of container runtimes on the host, or directories to search for the known ones; such \
               an executable may be run as host root in a container's cgroup while the container is being made",
        ps: false,
        slot: Slot::Paths(|config| &mut config.runtime_paths),
    },
    Key {
        name: "listen",
        help: "Address of the HTTP endpoint for metrics, health and status",
        ps: false,
        slot: Slot::Address(|config| &mut config.listen),
    },
    Key {
        name: "entry_grace",
        help: "How long a process may stay host root in a container's cgroup before it counts as a finding; \
               runtimes need milliseconds",
        ps: false,
        slot: Slot::Time(
            |config| &mut config.entry_grace,
            Duration::from_millis(100)..=Duration::from_secs(60),
        ),
    },
    Key {
        name: "enrich_wait",
        help: "How long a finding that is not critical may wait for the names of its pod and container, where a source \
               is configured that could tell them; it is then told with what is known, and amended later",
        ps: false,
        slot: Slot::Time(|config| &mut config.enrich_wait, Duration::ZERO..=Duration::from_secs(10)),
    },
    Key {
        name: "sweep_interval",
        help: "Time between two sweeps over all processes, cgroups and kubelet's records, which find what an \
               event would have told but was lost",
        ps: false,
        slot: Slot::Time(
            |config| &mut config.sweep_interval,
            Duration::from_secs(1)..=Duration::from_secs(3600),
        ),
    },
    Key {
        name: "output",
        help: "What goes to standard output: `json` (an object a line), `live` (a view for people), or `auto` \
               (live on a terminal, else json)",
        ps: false,
        slot: Slot::Output(|config| &mut config.output),
    },
    Key {
        name: "output_file",
        help: "File that findings are appended to as JSON, besides standard output",
        ps: false,
        slot: Slot::File(|config| &mut config.output_file),
    },
    Key {
        name: "output_file_max_bytes",
        help: "Size at which output_file is renamed to FILE.1 and a new one begun",
        ps: false,
        slot: Slot::Bytes(|config| &mut config.output_file_max_bytes, (1 << 20)..=(16 << 30)),
    },
    Key {
        name: "output_file_keep",
        help: "How many renamed files are kept",
        ps: false,
        slot: Slot::Number(|config| &mut config.output_file_keep, 0..=100),
    },
    Key {
        name: "state_dir",
        help: "Directory in which the agent remembers what it told, so that after a restart it does not tell a known \
               finding as new; made with mode 0700, and refused if others may write to it. It need not outlive a \
               boot, but must outlive the agent's container",
        ps: false,
        slot: Slot::OptionalDirectory(|config| &mut config.state_dir),
    },
    Key {
        name: "socket",
        help: "Unix socket on which the agent tells root what it knows of the pods, for `userns-agent ps`, `inspect` and `explain`; \
               its directory is made with mode 0700, and refused if others may write to it",
        ps: true,
        slot: Slot::OptionalFile(|config| &mut config.socket),
    },
    Key {
        name: "log_level",
        help: "How much the agent logs to standard error about itself",
        ps: true,
        slot: Slot::Level(|config| &mut config.log_level),
    },
    Key {
        name: "max_containers",
        help: "Containers tracked at a time; the least recently seen ones are forgotten beyond that, and counted",
        ps: false,
        slot: Slot::Number(|config| &mut config.max_containers, 64..=65_536),
    },
    Key {
        name: "max_processes",
        help: "Processes tracked at a time; the least recently seen ones are forgotten beyond that, and counted",
        ps: false,
        slot: Slot::Number(|config| &mut config.max_processes, 1024..=1_048_576),
    },
    Key {
        name: "reference_userns",
        help: "The user namespace that counts as the host's, one level above those of pods: `auto` takes kubelet's, which is \
               not the initial one on a node that runs in a user namespace itself, `initial` the initial one, a number that \
               of the process with this pid. The agent itself runs in the initial one in any case",
        ps: false,
        slot: Slot::Reference(|config| &mut config.reference_userns),
    },
    Key {
        name: "unobservable_runtimes",
        help: "Runtime classes, or the runtime's handlers, whose pods run in a virtual machine or on a kernel of their own \
               (a name that ends in `*` stands for all that begin so): nothing but I1 is told of them, and what was not \
               told is counted",
        ps: true,
        slot: Slot::Names(|config| &mut config.unobservable_runtimes),
    },
    Key {
        name: "container_budget",
        help: "Executed programs and ended processes that the kernel tells of each container in a second; what is \
               beyond that is counted and told as `suppressed`. Evidence for findings knows no budget",
        ps: false,
        slot: Slot::Number(|config| &mut config.container_budget, 1..=1_000_000),
    },
    Key {
        name: "probe_mechanism",
        help: "How to attach to the hooks that offer a choice; `auto` takes the best that the kernel has. For tests \
               and for finding out what goes wrong",
        ps: false,
        slot: Slot::Mechanism(|config| &mut config.probe_mechanism),
    },
];

/// The key of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The flag of a key, without the leading dashes.
#[must_use]
pub fn flag_name(key: &str) -> String {
    key.replace('_', "-")
}

/// The environment variable of a key.
#[must_use]
pub fn env_name(key: &str) -> String {
    format!("USERNS_AGENT_{}", key.to_ascii_uppercase())
}

/// The table as Markdown, the body of docs/config.md.
#[must_use]
pub fn reference() -> String {
    let mut text = String::new();
    for key in KEYS {
        let Key { name, help, slot, .. } = key;
        let default = key.default_text();
        text.push_str(&format!("### `{name}`\n\n{help}.\n\n"));
        text.push_str(&format!("- Allowed: {}\n- Default: `{default}`\n", slot.allowed()));
        text.push_str(&format!("- Flag: `--{}`, environment: `{}`\n", flag_name(name), env_name(name)));
        if key.ps {
            text.push_str("- Also used by `userns-agent ps`\n");
        }
        text.push('\n');
    }
    text
}
