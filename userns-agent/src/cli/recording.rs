//! Arguments of `record` and `replay`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{AllKeys, InspectOutput, Settings};
use crate::recording;

pub(super) const RECORD_HELP: &str = "\
Exit codes are those of `run`; 73 also if the recording cannot be made, or is there already.

Examples:
  userns-agent record node-7.rec --duration 10m
  userns-agent record node-7.rec --max-size 512 --rules-file rules.yaml";

pub(super) const REPLAY_HELP: &str = "\
The same recording and the same version give the same lines, byte for byte.

Exit codes:
   0  replayed
  64  a flag or a rules file is wrong
  65  the recording is cut, damaged, of another version, or none; what came before was replayed
  66  the recording or a rules file cannot be read
  74  writing to standard output failed

Examples:
  userns-agent replay node-7.rec
  userns-agent replay node-7.rec --output json | jq .finding.why
  userns-agent replay node-7.rec --rules new.yaml
  userns-agent replay node-7.rec --diff old.yaml new.yaml";

/// Arguments of `record`.
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// The recording; it must not be there yet.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// End after this time, such as 90s or 10m.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub duration: Option<Duration>,
    /// End the recording, and not the watch, at this size.
    #[arg(long, value_name = "MEBIBYTES", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub max_size: u64,
    /// Settings.
    #[command(flatten)]
    pub settings: Settings<AllKeys>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| format!("{error}: such as 90s or 10m"))?;
    if duration.is_zero() { Err("longer than nothing: such as 90s or 10m".to_owned()) } else { Ok(duration) }
}

/// Arguments of `replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The recording (`-`: standard input).
    #[arg(value_name = "RECORDING")]
    pub recording: PathBuf,
    /// Form of the output.
    #[arg(long, value_enum, default_value_t = InspectOutput::Text)]
    pub output: InspectOutput,
    /// Go by this rules file instead of what was recorded of one. Exceptions for programs match nothing, as there are no
    /// files to know them by.
    #[arg(long, value_name = "FILE", conflicts_with = "diff")]
    pub rules: Option<PathBuf>,
    /// Replay with each of two rules files, and print the findings that differ.
    #[arg(long, value_names = ["OLD", "NEW"], num_args = 2, conflicts_with = "output")]
    pub diff: Vec<PathBuf>,
}

impl From<ReplayArgs> for recording::Arguments {
    fn from(arguments: ReplayArgs) -> Self {
        let ReplayArgs { recording, output, rules, diff } = arguments;
        let rules = rules.into_iter().chain(diff).collect();
        Self { recording, rules, json: output == InspectOutput::Json }
    }
}
