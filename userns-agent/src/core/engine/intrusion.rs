//! Who is in a pod's namespaces and comes from elsewhere.

use userns_common::kind::origin;

use super::Engine;
use crate::event::{CgroupId, Nanos, TaskEvent, reason};

impl Engine {
    /// Takes note of a task that came into the namespaces of a container from elsewhere: from no pod, or from another.
    /// Returns that container.
    pub(super) fn intrusion(
        &mut self,
        event: &TaskEvent,
        time: Nanos,
        hook: &'static str,
        reasons: u32,
    ) -> Option<CgroupId> {
        let own = CgroupId(event.task.lineage.container);
        let late = reasons & reason::PAST_GRACE != 0;
        if event.task.lineage.origin == origin::FOREIGN {
            self.state.intruding(own, event, time, hook, late);
            return Some(own);
        }
        let joined = event.call.as_ref().filter(|_| reasons & reason::FOREIGN_ENTRY != 0);
        // credentials of another namespace than that of the lineage were replaced: another matter
        let own_ns = event.task.pod_userns.filter(|ns| ns.inum == event.task.lineage.userns_inum);
        let inum = joined.map(|call| call.target_inum).or(own_ns.map(|ns| ns.inum))?;
        let owner = self.state.owner_of(inum, own)?;
        let promised = |id| self.context(Some(id)).promised();
        if joined.is_none() && promised(own) && !promised(owner) {
            // the other way round: the other's program was met first
            let first = self.state.disown(owner)?;
            self.state.intruding(own, &first, time, hook, false);
            return Some(own);
        }
        self.state.intruding(owner, event, time, hook, late);
        Some(owner)
    }
}
