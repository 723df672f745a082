//! How long a container was there before it was known by name.

use std::time::Duration;

use super::{Engine, Output};
use crate::event::{CgroupId, Nanos};

impl Engine {
    /// The kernel told that this container's cgroup was made.
    pub(super) fn was_made(&mut self, id: CgroupId, at: Nanos) {
        if let Some(container) = self.state.container_mut(id).filter(|container| !container.id.is_empty()) {
            container.unnamed_since = Some(at);
        }
    }

    /// Tells how long it took until a container that was seen being made is known by name, if it is now.
    pub(super) fn attribute(&mut self, id: CgroupId, out: &mut Vec<Output>) {
        let context = self.context(Some(id));
        let Some(container) = context.container else { return };
        let Some(since) = container.unnamed_since else { return };
        let Some((_, pod)) = context.pod.filter(|(_, pod)| pod.described().is_some()) else { return };
        let Some(known) = pod.container(&container.id) else { return };
        let took = Duration::from_nanos(self.now.0.saturating_sub(since.0));
        out.push(Output::Attributed(known.kind, took));
        if let Some(container) = self.state.container_mut(id) {
            container.unnamed_since = None;
        }
    }
}
