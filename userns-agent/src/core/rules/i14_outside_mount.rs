//! I14: a program works in a mount of the host's.

use userns_common::kind::{lineage, place, reason, state};

use super::{Observed, Rule, who};
use crate::core::finding::{Confidence, Severity};
use crate::core::open::Detection;

pub(super) const RULE: Rule = Rule {
    id: "I14",
    name: "outside_mount",
    title: "A program works in a mount of the host's",
    severity: Severity::High,
    technique: ("T1611", "Escape to Host"),
    tactic: ("TA0004", "Privilege Escalation"),
    proves: "The working directory, the root directory or the executable of a program in a pod's user namespace lies in a \
             mount that is attached in a mount namespace of the host's or of another pod, and not in its own. It came \
             there by an open directory of the host's that was left to it, as in CVE-2024-21626, where runc left one to \
             the container's first program. From there the whole file system of the host is in reach; the user namespace \
             still keeps from it what is not open to everyone.",
    evidence: "Of `task->fs` the mounts of both directories when a program is executed, when chdir and fchdir return, and \
               in the sweep; of the executable at exec. Told of is a mount whose namespace is neither the task's own nor \
               owned by the pod's user namespace or one below it. Sweeps by way of procfs do not see it.",
    exceptions: "Mounts in no namespace (sealed copies of runtimes, memfds, detached mounts) and those of nested containers \
                 are left out, as are interpreters, which an administrator may have registered for all containers \
                 (binfmt_misc), who came into the pod's namespaces from elsewhere (I12), and for the grace period \
                 processes that were found rather than seen to enter. A program of the host that hands an open directory \
                 to one in a pod, over a socket, for it to work in is reported.",
    respond: "At a container's first program: look at the image's working directory (`/proc/self/fd/…`) and update the \
              container runtime. Else find who passed the directory on. Look for files that were read or changed through \
              `/proc/<pid>/cwd` and `/proc/<pid>/root`.",
};

const NAMES: [(u32, &str); 3] = [
    (place::DIRECTORY, "working directory"),
    (place::ROOT, "root directory"),
    (place::EXECUTABLE, "executable"),
];

pub(super) fn on_task(observed: &Observed<'_>) -> Vec<Detection> {
    let task = &observed.event.task;
    let workload = task.lineage.flags & lineage::WORKLOAD != 0 && task.lineage.state == state::INSIDE;
    if observed.reasons & reason::OUTSIDE_MOUNT == 0 || !workload {
        return Vec::new();
    }
    let outside: Vec<&str> =
        NAMES.iter().filter(|(bit, _)| observed.event.foreign & bit != 0).map(|(_, name)| *name).collect();
    if outside.is_empty() {
        return Vec::new();
    }
    let why = format!(
        "process {} has its {} in a mount outside of the pod, in a mount namespace that is not owned by the pod's user \
         namespace {}",
        who(observed.event),
        outside.join(" and "),
        task.lineage.userns_inum
    );
    observed.about_the_process(Severity::High, Confidence::High, why)
}
