//! What the rules file says, as values: what to tell of each rule, and what to leave out.

use std::collections::BTreeMap;

use super::{Image, Nanos};

/// Settings of rules and exceptions from them. The default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Rules that are not as built in.
    pub rules: Vec<RuleSetting>,
    /// What is left out.
    pub exceptions: Vec<Exception>,
}

/// How a rule is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSetting {
    /// Id of the rule, such as `I11`.
    pub rule: String,
    /// Whether it tells anything.
    pub enabled: bool,
    /// Rank of the severity (as in [`super::Told`]) that all its findings have; `None`: its own.
    pub severity: Option<u8>,
    /// A finding is told once it counts so many uses.
    pub threshold: u64,
}

/// Findings that are expected. Of each list that is not empty, one entry has to match; of the labels, all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exception {
    /// Its name.
    pub name: String,
    /// Ids of the rules that it is from.
    pub rules: Vec<String>,
    /// Namespaces, each perhaps with `*` for any characters.
    pub namespaces: Vec<String>,
    /// Labels that the pod has.
    pub labels: BTreeMap<String, String>,
    /// Images, likewise, or digests.
    pub images: Vec<String>,
    /// Service accounts, likewise.
    pub service_accounts: Vec<String>,
    /// Programs on the host; `None`: of any program.
    pub executables: Option<Vec<Image>>,
    /// Whether it may leave out I1, the proof that credentials were replaced inside the kernel.
    pub silences_credential_escape: bool,
    /// When it ends.
    pub expires: Option<Nanos>,
}
