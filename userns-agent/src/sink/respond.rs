//! What to do about a finding, step by step, with its names filled in.
//!
//! Names come from pods, cgroups and workloads: each stands in a command as one quoted word, which no shell takes for
//! anything else, and never where an option could stand.

use crate::core::finding::{ContainerRef, Finding, PodRef, Severity, Status};
use crate::core::rules::{self, RuleId};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Action {
    /// What to do and why, in one sentence.
    pub(super) what: String,
    /// A command for it, if there is one; where it runs is said in `what`.
    pub(super) command: Option<String>,
}

/// What a case calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// The kernel was tampered with: nothing on the node can be trusted.
    NodeLost,
    /// A process is where it must not be, with the host's rights.
    PodLost,
    /// The pod does not hold what was promised; nobody need have made use of it.
    Misconfigured,
    /// Someone came from elsewhere, or tried something in vain.
    LookCloser,
    /// Nothing runs any more.
    Over,
}

fn case(finding: &Finding) -> Case {
    match (finding.status, finding.rule) {
        (Status::Resolved, _) => Case::Over,
        (_, RuleId::I1 | RuleId::I6) => Case::NodeLost,
        (_, RuleId::I4 | RuleId::I8 | RuleId::I9) if finding.severity == Severity::Critical => Case::NodeLost,
        (_, RuleId::I2 | RuleId::I5 | RuleId::I13 | RuleId::I14) => Case::PodLost,
        (_, RuleId::I3 | RuleId::I4 | RuleId::I7 | RuleId::I8) => Case::Misconfigured,
        (_, RuleId::I9 | RuleId::I10 | RuleId::I11 | RuleId::I12) => Case::LookCloser,
    }
}

/// What to do about a finding on the node of this name, in this order.
#[must_use]
pub(super) fn actions(finding: &Finding, node: &str) -> Vec<Action> {
    let case = case(finding);
    let mut actions = Actions { finding, node, list: Vec::new() };
    match case {
        Case::NodeLost => {
            actions.cordon();
            actions.freeze();
            actions.capture();
            actions.inspect();
            actions.drain();
            actions.secrets();
        }
        Case::PodLost => {
            actions.freeze();
            actions.capture();
            actions.inspect();
            if finding.severity >= Severity::High {
                actions.cordon();
            }
            actions.delete();
            actions.secrets();
        }
        Case::Misconfigured => {
            actions.inspect();
            actions.others();
            actions.delete();
        }
        Case::LookCloser => {
            actions.inspect();
            actions.capture();
        }
        Case::Over => actions.after(),
    }
    actions.explain();
    actions.list
}

struct Actions<'a> {
    finding: &'a Finding,
    node: &'a str,
    list: Vec<Action>,
}

impl Actions<'_> {
    fn add(&mut self, what: impl Into<String>, command: Option<String>) {
        self.list.push(Action { what: what.into(), command });
    }

    fn named(&self) -> Option<(&str, &str)> {
        let pod = self.finding.pod.as_ref()?;
        Some((pod.namespace.as_deref()?, pod.name.as_deref()?))
    }

    fn container(&self) -> Option<&ContainerRef> {
        self.finding.container.as_ref()
    }

    fn cordon(&mut self) {
        let command = format!("kubectl cordon -- {}", word(self.node));
        self.add("Keep further pods off the node.", Some(command));
    }

    fn drain(&mut self) {
        let node = word(self.node);
        let command = format!("kubectl drain --ignore-daemonsets --delete-emptydir-data -- {node}");
        self.add(
            "Once the evidence is safe, move the node's other pods elsewhere; keep the node for forensics and do not \
             put it back into service.",
            Some(command),
        );
    }

    fn freeze(&mut self) {
        let Some(container) = self.container().filter(|it| !it.cgroup_path.is_empty()) else { return };
        let file = word(&format!("/sys/fs/cgroup{}/cgroup.freeze", container.cgroup_path));
        self.add(
            "On the node, stop the container where it is; memory and processes stay for a look.",
            Some(format!("echo 1 > {file}")),
        );
    }

    fn capture(&mut self) {
        let Some(event) = self.finding.task.as_deref() else { return };
        let pid = event.task.process.pid;
        let command = format!(
            "d=$(mktemp -d) && for f in exe cmdline environ status maps mountinfo cgroup uid_map gid_map; do cat \
             /proc/{pid}/$f > \"$d/$f\"; done; ls -l /proc/{pid}/fd /proc/{pid}/ns > \"$d/links\"; echo \"$d\""
        );
        self.add(
            format!(
                "On the node, as long as process {pid} is there, keep its program and its state (its start time in the \
                 finding tells whether it is the same)."
            ),
            Some(command),
        );
    }

    fn inspect(&mut self) {
        let which = match (self.named(), &self.finding.pod) {
            (Some((namespace, name)), _) => format!("{namespace}/{name}"),
            (None, Some(PodRef { uid, .. })) => uid.as_str().to_owned(),
            (None, None) => return,
        };
        let command = format!("userns-agent inspect -- {}", word(&which));
        self.add("On the node, see the pod as a whole: ranges, ids and other findings.", Some(command));
        if let Some(id) = self.container().map(|it| it.id.as_str()).filter(|id| !id.is_empty()) {
            let command = format!("crictl inspect -- {}", word(id));
            self.add("On the node, see what the container runtime was asked for.", Some(command));
        }
    }

    fn others(&mut self) {
        self.add(
            "On the node, see which other pods are concerned: a component that ignores the promise ignores it for \
             all.",
            Some("userns-agent ps --output wide".to_owned()),
        );
    }

    fn delete(&mut self) {
        let Some((namespace, name)) = self.named() else {
            self.add("Delete the pod, once its name is known by its UID and the evidence is safe.", None);
            return;
        };
        let command = format!("kubectl delete pod --namespace={} -- {}", word(namespace), word(name));
        let owner = self.finding.pod.as_ref().and_then(|pod| pod.owner.as_ref());
        let what = match owner {
            Some(owner) => format!(
                "Once the evidence is safe, stop the pod; {} {} makes another.",
                owner.kind.escape_debug(),
                owner.name.escape_debug()
            ),
            None => "Once the evidence is safe, stop the pod.".to_owned(),
        };
        self.add(what, Some(command));
    }

    fn secrets(&mut self) {
        let named = self.named().map(|(namespace, _)| namespace.to_owned());
        let command = named.map(|namespace| format!("kubectl get secrets --namespace={}", word(&namespace)));
        let account = self.finding.pod.as_ref().and_then(|pod| pod.service_account.as_deref());
        let account = account.map_or_else(
            || "its service account".to_owned(),
            |account| format!("service account {}", account.escape_debug()),
        );
        self.add(
            format!(
                "Replace every secret that the pod or the node could read, {account}'s tokens among them."
            ),
            command,
        );
    }

    fn after(&mut self) {
        self.add(
            "Nothing of it runs any more, which undoes nothing that was done: if nobody has looked at it yet, look at \
             the evidence, and at what the pod's successors do.",
            None,
        );
    }

    fn explain(&mut self) {
        let rule = rules::rule(self.finding.rule).id;
        self.add(
            "What the finding proves, and its legitimate causes.",
            Some(format!("userns-agent explain {rule}")),
        );
    }
}

/// A text as one word of a POSIX shell. What a terminal would not show is left out, as no name has it that a command
/// could be of use for.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    let shown: String = text.chars().filter(|c| !super::text::is_deceptive(*c)).collect();
    format!("'{}'", shown.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests;
