//! What is told of each rule, and what is left out: the rules file as the engine goes by it.
//!
//! A ruling is about one detection, on what is known of its pod, container and program at that moment; the engine asks
//! again when any of that, the policy or the time has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use userns_common::kind::lineage;

use super::finding::{ContainerRef, PodRef, Severity};
use super::pattern::matches;
use super::rules::{self, RuleId};
use crate::event::{Exception, Nanos, Policy, Task, TaskEvent};

/// Names of exceptions that are counted, at most: those in force, and some that are not any more.
const MAX_NAMES: usize = 1024;

/// Whether findings of a rule count uses, so that a threshold has a meaning.
#[must_use]
pub fn has_threshold(rule: RuleId) -> bool {
    matches!(rule, RuleId::I5 | RuleId::I10 | RuleId::I11)
}

/// Whether each finding of a rule is about a program of the host, judged anew with each program that its process
/// executes. The others are about a container, or are told once for a process and all that it makes: an exception for
/// one program would cover others.
#[must_use]
pub fn names_a_program(rule: RuleId) -> bool {
    matches!(rule, RuleId::I2 | RuleId::I12)
}

/// Why something is withheld, besides exceptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The rule is turned off.
    Disabled,
    /// There are too few uses yet.
    Threshold,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 2] = [Self::Disabled, Self::Threshold];

    /// The name used in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Threshold => "threshold",
        }
    }
}

/// Why a finding is withheld.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// By the rule's setting.
    Rule(Reason),
    /// By the exception of this name.
    Exception(Arc<str>),
}

/// What becomes of a detection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ruling {
    /// It is told.
    Tell,
    /// An exception may match once more is known; told if that takes too long.
    Wait,
    /// It is not.
    Withhold(Why),
}

/// What a ruling rests on.
#[derive(Clone, Copy, Debug)]
pub(super) struct About<'a> {
    pub(super) container: Option<&'a ContainerRef>,
    pub(super) pod: Option<&'a PodRef>,
    pub(super) task: Option<&'a TaskEvent>,
}

/// An exception, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExceptionView {
    /// Its name.
    pub name: String,
    /// The rules that it is from.
    pub rules: Vec<RuleId>,
    /// When it ends.
    pub expires: Option<Nanos>,
    /// Whether it has ended.
    pub expired: bool,
    /// What it has withheld since the agent started.
    pub matched: u64,
    /// When it last did.
    pub last: Option<Nanos>,
}

/// What was withheld, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// By rule and exception, those at zero and those of exceptions that are no more included.
    pub excepted: BTreeMap<(RuleId, Arc<str>), u64>,
    /// By rule and reason.
    pub withheld: BTreeMap<(RuleId, Reason), u64>,
}

#[derive(Clone, Copy, Debug)]
struct Setting {
    enabled: bool,
    severity: Option<Severity>,
    threshold: u64,
}

#[derive(Clone, Debug)]
struct Rule {
    name: Arc<str>,
    rules: BTreeSet<RuleId>,
    exception: Exception,
}

/// What holds for each rule. The default tells everything.
#[derive(Debug, Default)]
pub(super) struct Rulings {
    settings: BTreeMap<RuleId, Setting>,
    exceptions: Vec<Rule>,
    /// When the next exception expires.
    next: Option<Nanos>,
    tally: Tally,
    last: BTreeMap<Arc<str>, Nanos>,
}

/// The rule of that id.
fn find(id: &str) -> Option<RuleId> {
    RuleId::ALL.iter().copied().find(|rule| rules::rule(*rule).id == id)
}

impl Rulings {
    /// Goes by another policy from now on; the counts stay. Whatever it says, I1 is told as it is, but for an exception
    /// that says in so many words that it is about that.
    pub(super) fn set(&mut self, policy: Policy, now: Nanos) {
        let settings = policy.rules.iter().filter_map(|setting| {
            let rule = find(&setting.rule).filter(|rule| *rule != RuleId::I1)?;
            let severity = setting.severity.and_then(Severity::of_rank);
            let threshold = if has_threshold(rule) { setting.threshold } else { 0 };
            Some((rule, Setting { enabled: setting.enabled, severity, threshold }))
        });
        self.settings = settings.collect();
        let compile = |exception: Exception| {
            let covers = |rule: &RuleId| {
                (*rule != RuleId::I1 || exception.silences_credential_escape)
                    && (exception.executables.is_none() || names_a_program(*rule))
            };
            let rules = exception.rules.iter().filter_map(|id| find(id)).filter(covers).collect();
            Rule { name: exception.name.as_str().into(), rules, exception }
        };
        self.exceptions = policy.exceptions.into_iter().map(compile).collect();
        for exception in &self.exceptions {
            for rule in &exception.rules {
                self.tally.excepted.entry((*rule, Arc::clone(&exception.name))).or_default();
            }
        }
        if self.tally.excepted.len() > MAX_NAMES {
            let names: BTreeSet<&Arc<str>> =
                self.exceptions.iter().map(|exception| &exception.name).collect();
            self.tally.excepted.retain(|(_, name), _| names.contains(name));
            self.last.retain(|name, _| names.contains(name));
        }
        self.schedule(now);
    }

    /// Whether an exception has expired since the last time this was asked.
    pub(super) fn has_expired(&mut self, now: Nanos) -> bool {
        let due = self.next.is_some_and(|next| next <= now);
        if due {
            self.schedule(now);
        }
        due
    }

    fn schedule(&mut self, now: Nanos) {
        let ends = self.exceptions.iter().filter_map(|exception| exception.exception.expires);
        self.next = ends.filter(|end| *end > now).min();
    }

    /// Whether everything is told as it is.
    pub(super) fn is_default(&self) -> bool {
        self.settings.is_empty() && self.exceptions.is_empty()
    }

    /// Gives a detection the severity that is wanted.
    pub(super) fn rank(&self, rule: RuleId, severity: Severity) -> Severity {
        self.settings.get(&rule).and_then(|setting| setting.severity).unwrap_or(severity)
    }

    /// Uses from which on a finding is told.
    pub(super) fn threshold(&self, rule: RuleId) -> u64 {
        self.settings.get(&rule).map_or(0, |setting| setting.threshold)
    }

    /// What becomes of what a rule says; thresholds are not in it.
    pub(super) fn ruling(&self, rule: RuleId, about: About<'_>, now: Nanos) -> Ruling {
        if self.settings.get(&rule).is_some_and(|setting| !setting.enabled) {
            return Ruling::Withhold(Why::Rule(Reason::Disabled));
        }
        let mut ruling = Ruling::Tell;
        for Rule { name, rules, exception } in &self.exceptions {
            if !rules.contains(&rule) || exception.expires.is_some_and(|end| end <= now) {
                continue;
            }
            match applies(exception, about) {
                Some(true) => return Ruling::Withhold(Why::Exception(Arc::clone(name))),
                Some(false) => {}
                None => ruling = Ruling::Wait,
            }
        }
        ruling
    }

    /// Counts what was withheld.
    pub(super) fn count(&mut self, rule: RuleId, why: Why, now: Nanos) {
        match why {
            Why::Rule(reason) => *self.tally.withheld.entry((rule, reason)).or_default() += 1,
            Why::Exception(name) => {
                self.last.insert(Arc::clone(&name), now);
                *self.tally.excepted.entry((rule, name)).or_default() += 1;
            }
        }
    }

    /// What was withheld so far.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The exceptions, in their order.
    pub(super) fn exceptions(&self, now: Nanos) -> Vec<ExceptionView> {
        let matched = |name: &Arc<str>| {
            self.tally.excepted.iter().filter(|((_, of), _)| of == name).map(|(_, count)| count).sum()
        };
        let view = |it: &Rule| ExceptionView {
            name: it.name.to_string(),
            rules: it.rules.iter().copied().collect(),
            expires: it.exception.expires,
            expired: it.exception.expires.is_some_and(|end| end <= now),
            matched: matched(&it.name),
            last: self.last.get(&it.name).copied(),
        };
        self.exceptions.iter().map(view).collect()
    }
}

/// Whether an exception applies; `None` while what it asks for is not known.
fn applies(exception: &Exception, about: About<'_>) -> Option<bool> {
    let of_pod = |get: fn(&PodRef) -> Value<'_>| match about.pod {
        Some(pod) => get(pod),
        // its cgroup's path names none
        None if about.container.is_some() => Value::None,
        None => Value::Unknown,
    };
    let all = [
        listed(&exception.namespaces, of_pod(|pod| known(pod.namespace.as_deref(), false))),
        labels(exception, about),
        // the CRI knows no service accounts: only a Pod object says that there is none
        listed(
            &exception.service_accounts,
            of_pod(|pod| known(pod.service_account.as_deref(), pod.host_namespaces.is_some())),
        ),
        image(&exception.images, about),
        executable(exception, about.task),
    ];
    if all.contains(&Some(false)) { Some(false) } else { all.iter().all(Option::is_some).then_some(true) }
}

/// What an exception asks for.
#[derive(Clone, Copy)]
enum Value<'a> {
    Known(&'a str),
    /// It is known that there is none.
    None,
    Unknown,
}

fn known(value: Option<&str>, settled: bool) -> Value<'_> {
    match value {
        Some(value) => Value::Known(value),
        None if settled => Value::None,
        None => Value::Unknown,
    }
}

fn listed(patterns: &[String], value: Value<'_>) -> Option<bool> {
    match value {
        _ if patterns.is_empty() => Some(true),
        Value::Known(value) => Some(patterns.iter().any(|pattern| matches(pattern, value))),
        Value::None => Some(false),
        Value::Unknown => None,
    }
}

fn labels(exception: &Exception, about: About<'_>) -> Option<bool> {
    match about.pod {
        _ if exception.labels.is_empty() => Some(true),
        Some(pod) if pod.name.is_some() => {
            Some(exception.labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value)))
        }
        None if about.container.is_some() => Some(false),
        Some(_) | None => None,
    }
}

fn image(patterns: &[String], about: About<'_>) -> Option<bool> {
    let Some(container) = about.container else { return listed(patterns, Value::Unknown) };
    let named = listed(patterns, known(container.image.as_deref(), container.kind.is_some()));
    let digest = container.image_digest.as_ref();
    if digest.is_some_and(|digest| patterns.contains(digest)) { Some(true) } else { named }
}

/// Whether a process runs one of these programs of the host. One that has executed a program in the container's mount
/// namespace is at the workload's work, whichever file that was.
fn executable(exception: &Exception, task: Option<&TaskEvent>) -> Option<bool> {
    let Some(images) = &exception.executables else { return Some(true) };
    let task = task.map(|event| &event.task).filter(|task| task.lineage.flags & lineage::WORKLOAD == 0);
    let is = |task: &Task| {
        images
            .iter()
            .any(|image| image.ino != 0 && (image.dev, image.ino) == (task.image.dev, task.image.ino))
    };
    Some(task.is_some_and(is))
}
