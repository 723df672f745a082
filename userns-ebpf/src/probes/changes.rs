//! Functions that replace a task's credentials or namespaces: whoever calls them, by whatever way it came there.
//!
//! Prototypes: `int commit_creds(struct cred *new)` (kernel/cred.c), `void switch_task_namespaces(struct task_struct *p,
//! struct nsproxy *new)` (kernel/nsproxy.c), at their returns. The task is the running one in both.

use aya_ebpf::macros::{fexit, kretprobe};
use aya_ebpf::programs::{FExitContext, RetProbeContext};
use userns_common::kind::Hook;

use crate::lineage;
use crate::task::Task;

macro_rules! changes {
    ($($hook:expr => $fexit:ident, $kretprobe:ident;)+) => {$(
        #[fexit]
        fn $fexit(_ctx: FExitContext) -> i32 {
            changed($hook);
            0
        }

        #[kretprobe]
        fn $kretprobe(_ctx: RetProbeContext) -> u32 {
            changed($hook);
            0
        }
    )+};
}

changes! {
    Hook::CommitCreds => commit_creds_fexit, commit_creds_kretprobe;
    Hook::SwitchNamespaces => switch_task_namespaces_fexit, switch_task_namespaces_kretprobe;
}

#[inline(always)]
fn changed(hook: Hook) {
    let task = Task::current();
    let Some(lineage) = task.lineage() else { return };
    let found = lineage::inspect(task, lineage);
    lineage::tell(task, lineage, found, hook);
}
