//! I8: ids for files alone outside the pod's range.

use super::i4_ids::{self, Kind};
use super::{Observed, Rule};
use crate::core::context::Context;
use crate::core::finding::Severity;
use crate::core::open::Detection;

pub(super) const RULE: Rule = Rule {
    id: "I8",
    name: "files_outside_range",
    title: "Ids for files outside the pod's range",
    severity: Severity::Critical,
    technique: ("T1068", "Exploitation for Privilege Escalation"),
    tactic: ("TA0004", "Privilege Escalation"),
    proves: "A program in a pod's user namespace looks like the pod's by all its ids but those that decide over files \
             (`fsuid`, `fsgid`), which are not in the range the pod was given: it reads and writes files as another user, \
             and what it makes is that user's. Critical and high are told apart as for I4.",
    evidence: "As for I4, of which this is the case that `ps` and `id` do not show.",
    exceptions: "Those of I4. The kernel swaps other credentials in for work on files (overlayfs); `real_cred`, which is \
                 looked at, stays as it is then.",
    respond: "As for I4: critical means that the credentials were overwritten inside the kernel. Look for files of that owner \
              that were changed.",
};

pub(super) fn on_task(observed: &Observed<'_>, context: &Context<'_>) -> Vec<Detection> {
    i4_ids::outside_range(observed, context, Kind::FilesAlone)
}
