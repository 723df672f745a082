//! Findings that are open: what is news, what repeats, what is told again.

mod closing;
mod withholding;

use std::collections::{BTreeMap, VecDeque};

pub(super) use closing::Fate;

use super::earlier::{self, Earlier};
use super::finding::{CallUse, CapabilityUse, Confidence, Finding, FindingId, Severity, Status};
use super::policy::Why;
use super::rules::RuleId;
use super::windows::UPDATE_NS;
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

#[derive(Debug)]
struct Open {
    finding: Finding,
    dirty: bool,
    told: Nanos,
    container: Option<CgroupId>,
    /// What earlier runs told of it: its counts go on from there.
    earlier: Option<Box<Told>>,
    /// Not told yet: it waits for what is not known.
    held: bool,
    /// How much was not known when it was last told.
    missing: usize,
    /// Told by this run.
    was_told: bool,
    /// What it was about is gone: nothing of it is told any more.
    closed: bool,
    /// It outlives its container.
    stays: bool,
    /// Why it is not told, or nothing more of it; `held` says whether it ever was.
    withheld: Option<Why>,
}

/// A finding that was told a moment ago.
#[derive(Debug)]
struct Fresh {
    told: Nanos,
    key: Key,
    /// What happened until then led to it.
    until: Nanos,
}

/// Names an open finding.
pub(super) type Key = (RuleId, Scope);

/// Findings that wait for what is not known, at most; others are told without.
const MAX_HELD: usize = 64;

/// The open findings.
#[derive(Debug)]
pub(super) struct OpenFindings {
    limit: usize,
    open: BTreeMap<Key, Open>,
    /// Findings not told yet, and until when, the earliest first.
    held: VecDeque<(Nanos, Key)>,
    /// What earlier runs told.
    pub(super) earlier: Earlier,
    /// Detections that were folded into an open finding.
    pub(super) repeated: u64,
    /// Open findings that fell out because there were too many.
    pub(super) evicted: u64,
    /// Findings told a moment ago, the earliest first.
    fresh: VecDeque<Fresh>,
    /// Findings with evidence, the one that got it first at the front.
    proven: VecDeque<Key>,
    /// Steps of evidence that are kept.
    evidence: usize,
    /// Findings whose evidence fell out because there was too much.
    pub(super) evidence_evicted: u64,
}

impl OpenFindings {
    /// None open, at most `limit` to be.
    #[must_use]
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            open: BTreeMap::new(),
            held: VecDeque::new(),
            earlier: Earlier::default(),
            repeated: 0,
            evicted: 0,
            fresh: VecDeque::new(),
            proven: VecDeque::new(),
            evidence: 0,
            evidence_evicted: 0,
        }
    }

    /// How many are open.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.told().count()
    }

    /// Every open finding that is not withheld, and the container it is about.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Finding, Option<CgroupId>)> {
        self.told().map(|open| (&open.finding, open.container))
    }

    /// Takes what a rule says. Returns the finding's key if it is news; a repetition is kept for an update. What an
    /// earlier run told is news only as far as there is more to it now.
    pub(super) fn take(
        &mut self,
        rule: RuleId,
        detection: Detection,
        container: Option<CgroupId>,
    ) -> Option<Key> {
        let key = (rule, detection.scope.clone());
        if self.repeat(rule, &detection) {
            let grave = |open: &Open| open.held && open.finding.severity == Severity::Critical;
            return self.open.get(&key).is_some_and(grave).then_some(key);
        }
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
            from: None,
            task: detection.task,
            hook: detection.hook,
            capabilities: detection.capabilities,
            calls: detection.calls,
            unknown: Vec::new(),
            evidence: Vec::new(),
            evidence_omitted: 0,
            resolved: None,
        };
        let told_at = finding.time;
        let open = Open {
            told: told_at,
            finding,
            dirty: false,
            container,
            earlier: told,
            held: false,
            missing: 0,
            was_told: false,
            closed: false,
            stays: false,
            withheld: None,
        };
        let open = self.open.entry(key.clone()).or_insert(open);
        if resumed.is_some_and(|detection| !open.resume(&detection)) {
            self.repeated += 1;
            return None;
        }
        Some(key)
    }

    /// The finding and the container it is about.
    #[must_use]
    pub(super) fn get(&self, key: &Key) -> Option<(&Finding, Option<CgroupId>)> {
        self.open.get(key).map(|open| (&open.finding, open.container))
    }

    /// Takes note that a finding is told now, with so much not known.
    pub(super) fn telling(&mut self, key: &Key, missing: usize, now: Nanos) {
        let Some(open) = self.open.get_mut(key) else { return };
        open.missing = missing;
        if !std::mem::replace(&mut open.was_told, true) {
            self.fresh.push_back(Fresh { told: now, key: key.clone(), until: open.finding.time });
        }
        if std::mem::take(&mut open.held) {
            open.dirty = false;
            self.held.retain(|(_, held)| held != key);
        }
    }

    /// Keeps a finding back until then; false if too many are kept back already.
    pub(super) fn hold(&mut self, key: &Key, until: Nanos) -> bool {
        let Some(open) = self.open.get_mut(key).filter(|_| self.held.len() < MAX_HELD) else { return false };
        if !std::mem::replace(&mut open.held, true) {
            self.held.push_back((until, key.clone()));
        }
        true
    }

    /// Findings kept back for long enough, or all of them.
    #[must_use]
    pub(super) fn overdue(&self, now: Option<Nanos>) -> Vec<Key> {
        let over = self.held.iter().take_while(|(until, _)| now.is_none_or(|now| *until <= now));
        over.map(|(_, key)| key.clone()).collect()
    }

    /// Findings about this container that were told with something not known, or wait to be told.
    #[must_use]
    pub(super) fn incomplete(&self, container: CgroupId) -> Vec<Key> {
        let of = |open: &Open| {
            open.container == Some(container) && open.is_told_of() && (open.held || open.missing > 0)
        };
        self.open.iter().filter(|(_, open)| of(open)).map(|(key, _)| key.clone()).collect()
    }

    /// How much was not known when a finding was told; `None` if it was not told yet.
    #[must_use]
    pub(super) fn missing(&self, key: &Key) -> Option<usize> {
        self.open.get(key).filter(|open| !open.held).map(|open| open.missing)
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
        let told = self.open.iter().filter(|(_, open)| !open.held || open.withheld.is_some());
        let oldest = told.min_by_key(|(_, open)| {
            (!open.closed, open.withheld.is_none(), open.finding.severity, open.told)
        });
        if let Some((key, closed)) = oldest.map(|(key, open)| (key.clone(), open.closed)) {
            self.drop_finding(&key);
            self.evicted += u64::from(!closed);
        }
    }

    /// Updates that are due.
    pub(super) fn due(&mut self, now: Nanos) -> Vec<Key> {
        let due = self
            .open
            .iter_mut()
            .filter(|(_, open)| open.dirty && !open.held && open.is_told_of())
            .filter(|(_, open)| now.0.saturating_sub(open.told.0) >= UPDATE_NS);
        due.map(|(key, open)| {
            open.dirty = false;
            open.told = now;
            open.finding.status = Status::Updated;
            key.clone()
        })
        .collect()
    }

    /// Forgets findings about containers that are gone.
    pub(super) fn forget(&mut self, containers: &[CgroupId]) {
        if containers.is_empty() {
            return;
        }
        let is_gone = |open: &Open| open.container.is_some_and(|container| containers.contains(&container));
        self.open.retain(|_, open| open.stays || !is_gone(open));
        self.evidence = self.open.values().map(|open| open.finding.evidence.len()).sum();
        self.proven.retain(|key| self.open.contains_key(key));
        self.held.retain(|(_, key)| self.open.contains_key(key));
        self.earlier.forget(containers);
    }
}

impl Open {
    /// Whether there is anything to tell of it: it has not ended and is not withheld.
    fn is_told_of(&self) -> bool {
        !self.closed && self.withheld.is_none()
    }

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
