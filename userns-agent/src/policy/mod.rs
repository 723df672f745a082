//! The rules file: which rules tell what, and which findings are expected.
//!
//! It is read whole or not at all: everything that is wrong with it is reported at once, each mistake with its line. What
//! it says becomes a [`Policy`] of the core, with times on the kernel's clock and programs by their identity.

mod read;
pub mod report;
#[cfg(test)]
mod tests;
mod tree;
mod watch;

pub use watch::{RulesWatcher, Surroundings};

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::cli::ExitCode;
use crate::config::{Mistake, list};
use crate::core::finding::Severity;
use crate::core::rules::{self, RuleId};
use crate::event::{self, Image, Policy};
use crate::sink::WallClock;

/// `apiVersion` of the file.
pub const API_VERSION: &str = "userns-agent/v1alpha1";
/// `kind` of the file.
pub const KIND: &str = "RuleSet";
/// Largest rules file that is read.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Why there are no rules.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The file cannot be read.
    #[error("cannot read the rules file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no YAML.
    #[error("the rules file {} is no YAML: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        reason: String,
    },
    /// What it says is wrong.
    #[error("{}", list("the rules file", mistakes))]
    Invalid {
        /// All of it.
        mistakes: Vec<Mistake>,
    },
}

impl From<&RulesError> for ExitCode {
    fn from(error: &RulesError) -> Self {
        match error {
            RulesError::Read { .. } => Self::NoInput,
            RulesError::Syntax { .. } | RulesError::Invalid { .. } => Self::Usage,
        }
    }
}

/// What a rules file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSet {
    /// Rules that are not as built in.
    pub rules: Vec<Setting>,
    /// What is left out.
    pub exceptions: Vec<Exception>,
}

/// How a rule is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The rule.
    pub rule: RuleId,
    /// Whether it tells anything.
    pub enabled: bool,
    /// The severity of all its findings; `None`: their own.
    pub severity: Option<Severity>,
    /// Uses from which on a finding is told; `None`: from the first.
    pub threshold: Option<u64>,
}

/// An exception, as the file has it. See [`event::Exception`] for how lists are matched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exception {
    /// Its name.
    pub name: String,
    /// The rules that it is from.
    pub rules: Vec<RuleId>,
    /// Namespaces.
    pub namespaces: Vec<String>,
    /// Labels.
    pub match_labels: BTreeMap<String, String>,
    /// Images.
    pub images: Vec<String>,
    /// Programs, by path on the host.
    pub executables: Vec<PathBuf>,
    /// Service accounts.
    pub service_accounts: Vec<String>,
    /// Whether it may be from I1.
    pub silences_credential_escape: bool,
    /// Why it is there.
    pub reason: String,
    /// When it ends.
    pub expires: Option<SystemTime>,
}

/// Programs on the host, by path.
pub type Identities = BTreeMap<PathBuf, Image>;

impl RuleSet {
    /// Every program that it names.
    #[must_use]
    pub fn executables(&self) -> Vec<PathBuf> {
        let mut paths: Vec<_> =
            self.exceptions.iter().flat_map(|exception| &exception.executables).cloned().collect();
        paths.sort_unstable();
        paths.dedup();
        paths
    }

    /// What the core is to go by, where the clocks are so and these programs were found on the host.
    #[must_use]
    pub fn policy(&self, clock: WallClock, found: &Identities) -> Policy {
        let id = |rule: RuleId| rules::rule(rule).id.to_owned();
        let setting = |it: &Setting| event::RuleSetting {
            rule: id(it.rule),
            enabled: it.enabled,
            severity: it.severity.map(|severity| severity as u8),
            threshold: it.threshold.unwrap_or(0),
        };
        let exception = |it: &Exception| event::Exception {
            name: it.name.clone(),
            rules: it.rules.iter().copied().map(id).collect(),
            namespaces: it.namespaces.clone(),
            labels: it.match_labels.clone(),
            images: it.images.clone(),
            service_accounts: it.service_accounts.clone(),
            executables: (!it.executables.is_empty())
                .then(|| it.executables.iter().filter_map(|path| found.get(path).copied()).collect()),
            silences_credential_escape: it.silences_credential_escape,
            expires: it.expires.map(|time| clock.nanos(time)),
        };
        Policy {
            rules: self.rules.iter().map(setting).collect(),
            exceptions: self.exceptions.iter().map(exception).collect(),
        }
    }
}

/// Reads the file.
///
/// # Errors
///
/// [`RulesError`], with every mistake at once.
pub fn load(path: &Path) -> Result<RuleSet, RulesError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|source| RulesError::Read { path: path.to_owned(), source })?;
    parse(path, &bytes)
}

/// As [`load`], from a file's name and contents.
///
/// # Errors
///
/// [`RulesError`], with every mistake at once.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<RuleSet, RulesError> {
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let source =
            io::Error::new(ErrorKind::FileTooLarge, format!("it is larger than {MAX_FILE_BYTES} bytes"));
        return Err(RulesError::Read { path: path.to_owned(), source });
    }
    let syntax = |reason| RulesError::Syntax { path: path.to_owned(), reason };
    let text = std::str::from_utf8(bytes)
        .map_err(|error| syntax(format!("it is not UTF-8 from byte {} on", error.valid_up_to())))?;
    let document = tree::parse(text).map_err(syntax)?;
    read::read(path, &document).map_err(|mistakes| RulesError::Invalid { mistakes })
}
