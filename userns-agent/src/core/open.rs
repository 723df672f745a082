//! Findings that are open: what is news, what repeats, what is told again.

use std::collections::BTreeMap;

use super::earlier::{self, Earlier};
use super::finding::{CallUse, CapabilityUse, Confidence, Finding, FindingId, Severity, Status};
use super::rules::RuleId;
use crate::event::{CgroupId, Nanos, PodUid, ProcessId, TaskEvent, Told};

/// What a finding is about: the same rule on the same scope is the same finding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    /// One process, in one container.
    Process(CgroupId, ProcessId),
    /// One container.
    Container(CgroupId),
    /// One pod.
    Pod(PodUid),
    /// Two pods, in order.
    Pods(PodUid, PodUid),
}

impl Scope {
    fn text(&self) -> String {
        match self {
            Self::Process(container, process) => {
                format!("process {} {} {}", container.0, process.pid, process.start.0)
            }
            Self::Container(container) => format!("container {}", container.0),
            Self::Pod(uid) => format!("pod {uid}"),
            Self::Pods(one, other) => format!("pods {one} {other}"),
        }
    }
}

/// What a rule says.
#[derive(Clone, Debug)]
pub(super) struct Detection {
    /// What it is about.
    pub(super) scope: Scope,
    /// How bad.
    pub(super) severity: Severity,
    /// How sure.
    pub(super) confidence: Confidence,
    /// When.
    pub(super) time: Nanos,
    /// Why, in one sentence.
    pub(super) why: String,
    /// The process.
    pub(super) task: Option<Box<TaskEvent>>,
    /// The hook.
    pub(super) hook: Option<&'static str>,
    /// Capabilities.
    pub(super) capabilities: Vec<CapabilityUse>,
    /// Namespace operations.
    pub(super) calls: Vec<CallUse>,
}

/// How long an update waits for more.
const UPDATE_NS: u64 = 10_000_000_000;

#[derive(Debug)]
struct Open {
    finding: Finding,
    dirty: bool,
    told: Nanos,
    container: Option<CgroupId>,
    /// What earlier runs told of it: its counts go on from there.
    earlier: Option<Box<Told>>,
}

/// The open findings.
#[derive(Debug)]
pub(super) struct OpenFindings {
    limit: usize,
    open: BTreeMap<(RuleId, Scope), Open>,
    /// What earlier runs told.
    pub(super) earlier: Earlier,
    /// Detections that were folded into an open finding.
    pub(super) repeated: u64,
    /// Open findings that fell out because there were too many.
    pub(super) evicted: u64,
}

impl OpenFindings {
    /// None open, at most `limit` to be.
    #[must_use]
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, open: BTreeMap::new(), earlier: Earlier::default(), repeated: 0, evicted: 0 }
    }

    /// How many are open.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Takes what a rule says. Returns the finding if it is news; a repetition is kept for an update. What an
    /// earlier run told is news only as far as there is more to it now.
    pub(super) fn take(
        &mut self,
        rule: RuleId,
        detection: Detection,
        container: Option<CgroupId>,
    ) -> Option<&mut Finding> {
        if self.repeat(rule, &detection) {
            return None;
        }
        let key = (rule, detection.scope.clone());
        if self.open.len() >= self.limit {
            self.evict();
        }
        let id = identify(rule, &detection.scope);
        let told = self.earlier.recognise(id).map(Box::new);
        let resumed = told.is_some().then(|| detection.clone());
        let finding = Finding {
            id,
            status: Status::Opened,
            rule,
            severity: detection.severity,
            confidence: detection.confidence,
            time: detection.time,
            first: detection.time,
            count: 1,
            why: detection.why,
            pod: None,
            container: None,
            task: detection.task,
            hook: detection.hook,
            capabilities: detection.capabilities,
            calls: detection.calls,
            unknown: Vec::new(),
        };
        let open = Open { told: finding.time, finding, dirty: false, container, earlier: told };
        let open = self.open.entry(key).or_insert(open);
        if resumed.is_some_and(|detection| !open.resume(&detection)) {
            self.repeated += 1;
            return None;
        }
        Some(&mut open.finding)
    }

    /// Folds what a rule says into an open finding, if there is one; false if there is none.
    pub(super) fn repeat(&mut self, rule: RuleId, detection: &Detection) -> bool {
        let Some(open) = self.open.get_mut(&(rule, detection.scope.clone())) else { return false };
        if open.merge(detection) {
            self.repeated += 1;
        }
        true
    }

    fn evict(&mut self) {
        let oldest = self.open.iter().min_by_key(|(_, open)| (open.finding.severity, open.told));
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.open.remove(&key);
            self.evicted += 1;
        }
    }

    /// Updates that are due, with the container each is about.
    pub(super) fn due(&mut self, now: Nanos) -> Vec<(Finding, Option<CgroupId>)> {
        let due = self
            .open
            .values_mut()
            .filter(|open| open.dirty && now.0.saturating_sub(open.told.0) >= UPDATE_NS);
        due.map(|open| {
            open.dirty = false;
            open.told = now;
            open.finding.status = Status::Updated;
            (open.finding.clone(), open.container)
        })
        .collect()
    }

    /// Marks findings about a container for an update: something about its pod has become known.
    pub(super) fn amend(&mut self, container: CgroupId) {
        for open in self.open.values_mut().filter(|open| open.container == Some(container)) {
            open.dirty = true;
        }
    }

    /// Closes findings about containers that are gone.
    pub(super) fn forget(&mut self, containers: &[CgroupId]) {
        self.open.retain(|_, open| open.container.is_none_or(|container| !containers.contains(&container)));
        self.earlier.forget(containers);
    }
}

impl Open {
    /// Continues what an earlier run told; true if the detection says anything new.
    fn resume(&mut self, detection: &Detection) -> bool {
        if let Some(told) = &self.earlier {
            earlier::resume(&mut self.finding, told);
        }
        let news = self.merge(detection);
        self.dirty = false;
        news
    }

    /// Folds a repetition in; true if it says anything new.
    fn merge(&mut self, detection: &Detection) -> bool {
        let (finding, earlier) = (&mut self.finding, self.earlier.as_deref());
        let reworded = !detection.why.is_empty() && detection.why != finding.why;
        let mut grew = detection.severity > finding.severity;
        for new in &detection.capabilities {
            let count = new.count.saturating_add(earlier::capability_count(earlier, new));
            let same =
                |old: &&mut CapabilityUse| (old.capability, old.granted) == (new.capability, new.granted);
            match finding.capabilities.iter_mut().find(same) {
                Some(old) if old.count < count => (old.count, grew) = (count, true),
                Some(_) => {}
                None => {
                    finding.capabilities.push(new.clone());
                    grew = true;
                }
            }
        }
        for new in &detection.calls {
            let count = new.count.saturating_add(earlier::call_count(earlier, new));
            let same = |old: &&mut CallUse| (old.call, old.ret) == (new.call, new.ret);
            match finding.calls.iter_mut().find(same) {
                Some(old) if old.count < count => (old.count, grew) = (count, true),
                Some(_) => {}
                None => {
                    finding.calls.push(new.clone());
                    grew = true;
                }
            }
        }
        if grew {
            finding.count = finding.count.saturating_add(1);
            finding.time = finding.time.max(detection.time);
            finding.severity = finding.severity.max(detection.severity);
            if reworded {
                finding.why.clone_from(&detection.why);
            }
            self.dirty = true;
        }
        grew
    }
}

/// FNV-1a over rule and scope: the same after a restart of the agent, as long as the node runs.
fn identify(rule: RuleId, scope: &Scope) -> FindingId {
    let text = format!("{rule:?} {}", scope.text());
    FindingId(
        text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }),
    )
}
