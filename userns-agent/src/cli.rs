//! The command line.
//!
//! Settings flags and their environment variables are made from the configuration's table of keys, and their
//! values are checked with it, so that a file and a command line are told of all their mistakes together.

mod recording;

use std::ffi::OsString;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::config::keys::{KEYS, Key, env_name, flag_name};
use crate::config::{self, ConfigError, Loaded, Origin, Override};
use crate::simulate::{self, Source, Wanted};
use recording::{RECORD_HELP, REPLAY_HELP};

pub use recording::{RecordArgs, ReplayArgs};

/// Checks at run time that Kubernetes user namespaces (`hostUsers: false`) hold.
#[derive(Debug, Parser)]
#[command(name = "userns-agent", version, after_help = EXAMPLES, max_term_width = 110)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  userns-agent ps                                    what holds for each pod right now
  userns-agent inspect shop/web-0                    everything about one of them
  userns-agent explain I3                            what a rule proves, and what to do
  userns-agent run                                   watch this node
  userns-agent run --pods-file pods.yaml --listen 0.0.0.0:9477
  userns-agent simulate run --all                    in a pod: what an intruder could do
  userns-agent check-config --config agent.yaml      what `run` would use, and what is wrong with it";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch this node and report broken promises.
    ///
    /// Loads the eBPF programs, follows every process that enters a pod, and writes findings to standard output
    /// and, if configured, to a file. Needs root, and in a container: the host's pid namespace and the
    /// capabilities that deploy/ grants. Ends on SIGTERM or SIGINT.
    #[command(after_long_help = RUN_HELP, after_help = RUN_HELP)]
    Run(Settings<AllKeys>),
    /// List the node's pods: for each, whether what was promised for it holds.
    ///
    /// Takes one process of each container from cgroupfs and compares its user namespace with kubelet's record and
    /// with what the pod declares. Names, declarations and findings are asked of the running agent by its local
    /// socket; without one, the pods file alone tells names. Loads nothing into the kernel. Needs root.
    #[command(after_long_help = PS_HELP, after_help = PS_HELP)]
    Ps(PsArgs),
    /// Show everything known about one pod, ids as the pod and as the host has them.
    #[command(after_long_help = INSPECT_HELP, after_help = INSPECT_HELP)]
    Inspect(InspectArgs),
    /// Explain a rule, or a finding as an incident report.
    ///
    /// A rule: what it proves, what that rests on, its legitimate causes and what to do. A finding: what happened where,
    /// how it came about step by step, and what to do, with the commands for it. Findings are asked of the running
    /// agent by its local socket, or read from the JSON that an agent wrote.
    #[command(after_long_help = EXPLAIN_HELP, after_help = EXPLAIN_HELP)]
    Explain(ExplainArgs),
    /// Watch this node as `run` does, and write all that the rules go by to a file.
    ///
    /// `replay` runs the rules over it again, those of another version or with another rules file as well. The file holds
    /// command lines and pods' names, and only its owner may read it. What cannot be written fast enough is left out,
    /// counted, and marked in the file; the watch goes on.
    #[command(after_long_help = RECORD_HELP, after_help = RECORD_HELP)]
    Record(RecordArgs),
    /// Run this version's rules over a recording, and print what is found.
    #[command(after_long_help = REPLAY_HELP, after_help = REPLAY_HELP)]
    Replay(ReplayArgs),
    /// Rehearse, inside a pod and without harm, what an intruder tries to reach the host.
    ///
    /// Says whether the user namespace stopped it, and whether the agent saw it. Refuses on the host.
    #[command(after_long_help = SIMULATE_HELP, after_help = SIMULATE_HELP, subcommand_required = true)]
    Simulate {
        /// What to do.
        #[command(subcommand)]
        command: SimulateCommand,
    },
    /// Check the configuration and print it, with defaults, as a file.
    ///
    /// Takes the flags and environment variables of `run`. All mistakes are reported together.
    #[command(after_long_help = CHECK_HELP, after_help = CHECK_HELP)]
    CheckConfig(Settings<AllKeys>),
    /// Print version, revision, and whether this build holds the eBPF programs.
    Version,
    /// Write the generated reference documentation.
    #[command(hide = true)]
    Docs {
        /// Directory to write it to.
        dir: PathBuf,
    },
}

const RUN_HELP: &str = "\
Configuration: defaults, then the file, then environment variables, then flags; later ones win.

Exit codes:
   0  ended by SIGTERM or SIGINT
  64  a flag, environment variable or configuration value is wrong; all are listed
  66  the configuration file cannot be read
  69  the kernel lacks something needed (BTF, a hook), or this build holds no eBPF programs
  70  an internal error
  71  the operating system refused something needed, such as the address to listen on
  73  the output file cannot be created
  74  writing failed: standard output or the output file
  77  not permitted: not root, or a capability is missing

Examples:
  userns-agent run --output json | jq .finding.why
  userns-agent run --config /etc/userns-agent/config.yaml
  USERNS_AGENT_LISTEN=0.0.0.0:9477 userns-agent run";

const PS_HELP: &str = "\
Verdicts:
  escaped               the agent found a process that left the pod's user namespace, namespaces, ids or cgroup
  honoured              in a user namespace of its own, with a range that is its own
  ignored               promised one (declared or recorded by kubelet), runs in the host's
  unsafe range          in one whose range holds host ids, differs from kubelet's record or overlaps another pod's
  host user namespace   runs in the host's; nothing else was promised
  not observable        its runtime (Kata, gVisor) runs it on a kernel of its own
  unknown               what was promised or what holds cannot be told; the reason says which

Exit codes:
   0  no pod's verdict is `escaped`, `ignored` or `unsafe range`
   1  a pod's verdict is
  64  a flag, environment variable or configuration value is wrong; all are listed
  66  the configuration file or the pods file cannot be read
  69  there is no unified cgroup hierarchy, or the agent does not answer
  74  writing to standard output failed

Examples:
  userns-agent ps
  kubectl get pods -A -o json | userns-agent ps --pods-file /dev/stdin
  userns-agent ps --output json | jq '.[] | select(.verdict != \"honoured\")'";

const INSPECT_HELP: &str = "\
Exit codes:
   0  the pod's verdict is not `escaped`, `ignored` or `unsafe range`
   1  it is
  64  several pods may be meant, or a flag is wrong
  66  no such pod, or a file cannot be read
  69  there is no unified cgroup hierarchy, or the agent does not answer

Examples:
  userns-agent inspect shop/web-0
  userns-agent inspect 0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11 --output json
  userns-agent inspect 5a2f0c9be7d1                  by the beginning of a container's id";

const EXPLAIN_HELP: &str = "\
Exit codes:
   0  explained
  64  the ids of several findings begin so, or a flag is wrong
  66  nothing has that name, or the file cannot be read or holds no finding
  69  the agent does not answer
  74  writing to standard output failed

Examples:
  userns-agent explain I3
  userns-agent explain cred_escape
  userns-agent explain 9f86d081                      an open finding, by the beginning of its id
  tail -n 1 findings.jsonl | userns-agent explain --file -
  userns-agent explain 9f86d081 --file findings.jsonl";

const SIMULATE_HELP: &str = "\
Verdicts:
  as promised           it was stopped
  not promised          it was allowed, and no user namespace stops it: the technique's own words say why
  NOT as promised       it was allowed, and a user namespace must stop it
  not tried             what it needs is not there; the last column says what
  no promise here       there is no user namespace; only what is harmless was tried

Exit codes:
   0  nothing was allowed that a user namespace must stop
   1  something was
  64  a flag is wrong, there is no such technique, or it cannot be told which container this is
  66  the file of findings cannot be read
  69  the agent does not answer
  74  writing to standard output failed
  77  this is the host, or it cannot be found out where this is: nothing was tried

Examples:
  userns-agent simulate list
  userns-agent simulate run proc-namespaces kexec
  userns-agent simulate run --all --findings http://10.0.0.7:9477/metrics
  userns-agent simulate run --all --output json | jq '.techniques[] | select(.outcome.kind == \"allowed\")'";

const CHECK_HELP: &str = "\
Exit codes:
   0  the configuration is right
  64  it is not; all mistakes are listed
  66  the file cannot be read";

/// Arguments of `ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Form of the output.
    #[arg(long, value_enum, default_value_t = PsOutput::Table)]
    pub output: PsOutput,
    /// Look again and again, every so many seconds.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", require_equals = true)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub watch: Option<u64>,
    /// Do not ask the running agent.
    #[arg(long)]
    pub no_agent: bool,
    /// Settings.
    #[command(flatten)]
    pub settings: Settings<PsKeys>,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Namespace/name, name, UID, or the beginning of a container's id.
    #[arg(value_name = "POD")]
    pub pod: String,
    /// Form of the output.
    #[arg(long, value_enum, default_value_t = InspectOutput::Text)]
    pub output: InspectOutput,
    /// Do not ask the running agent.
    #[arg(long)]
    pub no_agent: bool,
    /// Settings.
    #[command(flatten)]
    pub settings: Settings<PsKeys>,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// A rule's id or name, or the beginning of a finding's id; without it, all rules, or all findings of the file.
    #[arg(value_name = "RULE|FINDING")]
    pub name: Option<String>,
    /// Read findings from this file of JSON lines (`-`: standard input) instead of asking the agent.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Settings.
    #[command(flatten)]
    pub settings: Settings<SocketKey>,
}

/// Form of `inspect`'s output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InspectOutput {
    /// Lines, for people.
    Text,
    /// An object.
    Json,
}

/// Form of `ps`'s output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PsOutput {
    /// Columns, for people.
    Table,
    /// The same with UID, runtime class, sources and kubelet's record, and every reason.
    Wide,
    /// An array of objects.
    Json,
}

/// What `simulate` does.
#[derive(Debug, Subcommand)]
pub enum SimulateCommand {
    /// List the techniques: what each attempts, whether a user namespace stops it, and who sees it.
    List {
        /// Form of the output.
        #[arg(long, value_enum, default_value_t = SimulateOutput::Table)]
        output: SimulateOutput,
    },
    /// Try techniques, in a pod.
    #[command(after_long_help = SIMULATE_HELP, after_help = SIMULATE_HELP)]
    Run(SimulateArgs),
}

/// Arguments of `simulate run`.
#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// Names of techniques, as `simulate list` has them.
    #[arg(
        value_name = "NAME",
        required_unless_present = "all",
        conflicts_with = "all",
        hide_possible_values = true
    )]
    #[arg(value_parser = PossibleValuesParser::new(simulate::techniques().map(|technique| technique.name)))]
    pub names: Vec<String>,
    /// Try every technique.
    #[arg(long)]
    pub all: bool,
    /// Form of the output.
    #[arg(long, value_enum, default_value_t = SimulateOutput::Table)]
    pub output: SimulateOutput,
    /// Ask the agent by its local socket whether it saw it; it answers its own user only.
    #[arg(long, value_name = "PATH", conflicts_with = "findings")]
    pub agent_socket: Option<PathBuf>,
    /// Look for it in the agent's output file, or among its metrics (http://HOST:PORT/metrics), which count for the node.
    #[arg(long, value_name = "FILE|URL", value_parser = Source::parse)]
    pub findings: Option<Source>,
    /// How many seconds to wait for findings. What an open finding has more to tell is told after ten.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=60))]
    pub wait: u64,
    /// The process of the host to reach for, where any is in sight. By default the one with the lowest number.
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub target_pid: Option<i32>,
    /// A descriptor of a directory or namespace that was left open, for the techniques named leaked.
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(3..))]
    pub leaked_fd: Option<i32>,
}

impl From<SimulateArgs> for Wanted {
    fn from(arguments: SimulateArgs) -> Self {
        Self {
            names: arguments.names,
            target: arguments.target_pid,
            leaked: arguments.leaked_fd,
            source: arguments.agent_socket.map(Source::Socket).or(arguments.findings),
            wait: Duration::from_secs(arguments.wait),
        }
    }
}

/// Form of `simulate`'s output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SimulateOutput {
    /// Columns, for people.
    Table,
    /// An object.
    Json,
}

/// Which keys a command has flags for.
pub trait Selection {
    /// Whether it has one for `key`.
    fn has(key: &Key) -> bool;
}

/// All keys.
#[derive(Clone, Copy, Debug)]
pub struct AllKeys;

impl Selection for AllKeys {
    fn has(_: &Key) -> bool {
        true
    }
}

/// The keys that `ps` uses.
#[derive(Clone, Copy, Debug)]
pub struct PsKeys;

impl Selection for PsKeys {
    fn has(key: &Key) -> bool {
        key.ps
    }
}

/// The key that says where the agent is asked.
#[derive(Clone, Copy, Debug)]
pub struct SocketKey;

impl Selection for SocketKey {
    fn has(key: &Key) -> bool {
        key.name == "socket"
    }
}

/// The configuration file and everything given besides it; not checked yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings<S> {
    /// The configuration file.
    pub file: Option<PathBuf>,
    /// Flags and environment variables.
    pub overrides: Vec<Override>,
    selection: PhantomData<S>,
}

impl<S> Settings<S> {
    /// Reads the file and checks everything.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], with every mistake at once.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        config::load(self.file.as_deref(), &self.overrides)
    }
}

impl<S: Selection> Args for Settings<S> {
    fn augment_args(command: clap::Command) -> clap::Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .env("USERNS_AGENT_CONFIG")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Configuration file (YAML), with the keys of the flags below");
        KEYS.iter().filter(|key| S::has(key)).fold(command.arg(file), |command, key| {
            let (default, allowed) = (key.default_text(), key.slot.allowed());
            let long = format!("{}.\n\nAllowed: {allowed}. Default: {default}", key.help);
            let arg = Arg::new(key.name)
                .long(flag_name(key.name))
                .env(env_name(key.name))
                .value_name(key.slot.value_name())
                .help(format!("{} [default: {}]", key.help, shorten(&default)))
                .long_help(long)
                .hide_env_values(true);
            command.arg(arg)
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

/// A default that is too long for the short help stands in the long help only.
fn shorten(default: &str) -> &str {
    if default.len() <= 40 { default } else { "see --help" }
}

impl<S: Selection> FromArgMatches for Settings<S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let overrides = KEYS.iter().filter(|key| S::has(key)).filter_map(|key| {
            let text = matches.get_one::<String>(key.name)?.clone();
            let from_environment = matches.value_source(key.name)? == ValueSource::EnvVariable;
            let origin = if from_environment { Origin::Environment } else { Origin::Flag };
            Some(Override { key: key.name, text, origin })
        });
        let file = matches.get_one::<PathBuf>("config").cloned();
        Ok(Self { file, overrides: overrides.collect(), selection: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Reads a command line.
///
/// # Errors
///
/// Clap's error, also for `--help` and `--version`: print it and end with [`exit_code`] of it.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(arguments)
}

/// The exit code of [`parse`]'s error.
#[must_use]
pub fn exit_code(error: &clap::Error) -> ExitCode {
    if error.use_stderr() { ExitCode::Usage } else { ExitCode::Ok }
}

/// What `userns-agent version` prints; `embedded` says whether this build holds the eBPF programs.
#[must_use]
pub fn version(embedded: bool) -> String {
    let revision = option_env!("USERNS_AGENT_REVISION").unwrap_or("unknown");
    let compiler = option_env!("USERNS_AGENT_RUSTC").unwrap_or("unknown");
    let programs = if embedded { "embedded" } else { "missing (build with `cargo xtask build`)" };
    format!(
        "userns-agent {}\nrevision: {revision}\nrustc: {compiler}\neBPF programs: {programs}\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// Exit codes; names and numbers above 1 are those of sysexits.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ExitCode {
    /// All well.
    Ok = 0,
    /// `ps` found a pod whose promise does not hold, or `simulate` a way around it.
    BrokenPromise = 1,
    /// `EX_USAGE`: a flag, environment variable or configuration value is wrong.
    Usage = 64,
    /// `EX_DATAERR`: a recording is cut, damaged or of another version.
    Data = 65,
    /// `EX_NOINPUT`: a file that was named cannot be read.
    NoInput = 66,
    /// `EX_UNAVAILABLE`: the kernel lacks something, or this build holds no eBPF programs.
    Unavailable = 69,
    /// `EX_SOFTWARE`: an internal error.
    Software = 70,
    /// `EX_OSERR`: the operating system refused something, such as the address to listen on.
    OsError = 71,
    /// `EX_CANTCREAT`: the output file cannot be created.
    CannotCreate = 73,
    /// `EX_IOERR`: writing failed.
    Io = 74,
    /// `EX_NOPERM`: not root, a capability is missing, or `simulate` was run on the host.
    NotPermitted = 77,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

impl From<&ConfigError> for ExitCode {
    fn from(error: &ConfigError) -> Self {
        match error {
            ConfigError::Read { .. } => Self::NoInput,
            ConfigError::Syntax { .. } | ConfigError::Invalid { .. } => Self::Usage,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn command(line: &str) -> Result<Command, clap::Error> {
        parse(line.split(' ').map(OsString::from)).map(|cli| cli.command)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_become_overrides() {
        let Command::Run(settings) = command("userns-agent run --entry-grace 1s --config /x").unwrap() else {
            panic!("not run");
        };
        assert_eq!(settings.file, Some("/x".into()));
        let expected = Override { key: "entry_grace", text: "1s".into(), origin: Origin::Flag };
        assert_eq!(settings.overrides, [expected]);
    }

    #[test]
    fn ps_has_its_own_flags() {
        let Command::Ps(arguments) = command("userns-agent ps --output json --cgroup-root /c").unwrap()
        else {
            panic!("not ps");
        };
        assert_eq!(arguments.output, PsOutput::Json);
        assert_eq!(arguments.settings.overrides.len(), 1);
        assert!(command("userns-agent ps --listen 127.0.0.1:1").is_err());
    }

    #[test]
    fn wrong_usage_ends_with_64_and_help_with_0() {
        for (line, code) in [
            ("userns-agent", ExitCode::Usage),
            ("userns-agent run --no-such-flag", ExitCode::Usage),
            ("userns-agent jump", ExitCode::Usage),
            ("userns-agent --help", ExitCode::Ok),
            ("userns-agent run --help", ExitCode::Ok),
            ("userns-agent --version", ExitCode::Ok),
        ] {
            assert_eq!(exit_code(&command(line).unwrap_err()), code, "{line}");
        }
    }

    #[test]
    fn every_exit_code_is_in_the_help() {
        for code in [
            ExitCode::Ok,
            ExitCode::Usage,
            ExitCode::NoInput,
            ExitCode::Unavailable,
            ExitCode::Software,
            ExitCode::OsError,
            ExitCode::CannotCreate,
            ExitCode::Io,
            ExitCode::NotPermitted,
        ] {
            assert!(RUN_HELP.contains(&format!("\n  {:>2}  ", code as u8)), "{code:?}");
        }
    }

    #[test]
    fn version_says_whether_programs_are_embedded() {
        assert!(version(true).contains("eBPF programs: embedded\n"));
        assert!(version(false).contains("missing"));
    }
}
