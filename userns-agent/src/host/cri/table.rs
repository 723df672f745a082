//! What the runtime has told so far, and which of it is news. Pure: the time is given.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::{proto, sandbox};
use crate::event::{ContainerSpec, Fact, Sandbox};

/// How long a removed container stays with its sandbox: what was seen of it may be judged later.
const KEEP: Duration = Duration::from_secs(60);

/// Sandboxes and containers.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: BTreeMap<String, Row>,
    /// Sandboxes that are no pod's.
    strangers: BTreeSet<String>,
    /// Sandboxes of which something is to be told.
    changed: BTreeSet<String>,
    /// Sandboxes that went and were told.
    gone: Vec<String>,
}

#[derive(Debug)]
struct Row {
    /// Without its containers.
    sandbox: Sandbox,
    /// Whether its status was had, which does not change: a list says less.
    complete: bool,
    containers: BTreeMap<String, Held>,
}

#[derive(Debug)]
struct Held {
    spec: ContainerSpec,
    complete: bool,
    /// Since when the runtime has it no longer.
    gone: Option<Instant>,
}

/// What a list named and whose status is not known.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Missing {
    /// Ids of sandboxes.
    pub(super) sandboxes: Vec<String>,
    /// Ids of containers.
    pub(super) containers: Vec<String>,
}

impl Table {
    /// Sandboxes of pods.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Sandboxes that are no pod's.
    pub(super) fn strangers(&self) -> usize {
        self.strangers.len()
    }

    /// Whether there is nothing to ask about a container or sandbox.
    pub(super) fn knows(&self, id: &str) -> bool {
        self.strangers.contains(id)
            || self.rows.get(id).is_some_and(|row| row.complete)
            || self.rows.values().any(|row| row.containers.get(id).is_some_and(|held| held.complete))
    }

    /// Whether there is nothing to ask about a sandbox.
    pub(super) fn knows_sandbox(&self, id: &str) -> bool {
        self.strangers.contains(id) || self.rows.get(id).is_some_and(|row| row.complete)
    }

    /// Takes a full list: what is not on it is gone. Returns what is still to be asked.
    pub(super) fn list(
        &mut self,
        sandboxes: Vec<proto::PodSandbox>,
        containers: Vec<proto::Container>,
        now: Instant,
    ) -> Missing {
        let listed: BTreeSet<String> = sandboxes.iter().map(|item| item.id.clone()).collect();
        let gone: Vec<_> = self.rows.keys().filter(|id| !listed.contains(*id)).cloned().collect();
        gone.iter().for_each(|id| self.remove_sandbox(id));
        self.strangers.retain(|id| listed.contains(id));
        for item in sandboxes.into_iter().filter(|item| !item.id.is_empty()) {
            if !self.knows_sandbox(&item.id) {
                let id = item.id.clone();
                self.put(id, sandbox::from_item(item), false);
            }
        }
        let running: BTreeSet<&str> = containers.iter().map(|item| item.id.as_str()).collect();
        for (id, row) in &mut self.rows {
            let missing = row.containers.iter_mut().filter(|(id, _)| !running.contains(id.as_str()));
            missing.for_each(|(_, held)| held.gone = held.gone.or(Some(now)));
            let before = row.containers.len();
            row.containers.retain(|_, held| held.gone.is_none_or(|gone| now.duration_since(gone) < KEEP));
            if row.containers.len() != before {
                self.changed.insert(id.clone());
            }
        }
        for item in containers.into_iter().filter(|item| !item.id.is_empty()) {
            let of = item.pod_sandbox_id.clone();
            let known = self.rows.get(&of).and_then(|row| row.containers.get(&item.id));
            if known.is_none_or(|held| !held.complete) {
                self.put_container(&of, sandbox::container_of_item(item), false);
            }
        }
        self.missing()
    }

    fn missing(&self) -> Missing {
        let rows = self.rows.iter();
        let sandboxes = rows.clone().filter(|(_, row)| !row.complete).map(|(id, _)| id.clone());
        let containers = rows.flat_map(|(_, row)| &row.containers);
        let containers = containers.filter(|(_, held)| !held.complete && held.gone.is_none());
        Missing { sandboxes: sandboxes.collect(), containers: containers.map(|(id, _)| id.clone()).collect() }
    }

    /// Takes an event's statuses. True if the container, or sandbox, that it is about is known then, or no pod's.
    pub(super) fn happened(&mut self, event: proto::ContainerEventResponse) -> bool {
        let Some(status) = event.pod_sandbox_status else { return self.knows(&event.container_id) };
        let of = status.id.clone();
        self.add_sandbox(status);
        event.containers_statuses.into_iter().for_each(|status| self.add_container(&of, status));
        self.strangers.contains(&of) || self.knows(&event.container_id)
    }

    /// Takes a sandbox's status.
    pub(super) fn add_sandbox(&mut self, status: proto::PodSandboxStatus) {
        let id = status.id.clone();
        if !id.is_empty() && !self.knows_sandbox(&id) {
            self.put(id, sandbox::from_status(status), true);
        }
    }

    /// Takes the status of a container of this sandbox.
    pub(super) fn add_container(&mut self, of: &str, status: proto::ContainerStatus) {
        if !status.id.is_empty() {
            self.put_container(of, sandbox::container(status), true);
        }
    }

    /// Takes the status of a container that a list named.
    pub(super) fn complete_container(&mut self, status: proto::ContainerStatus) {
        let holding = self.rows.iter().find(|(_, row)| row.containers.contains_key(&status.id));
        if let Some(of) = holding.map(|(id, _)| id.clone()) {
            self.add_container(&of, status);
        }
    }

    fn put(&mut self, id: String, sandbox: Option<Sandbox>, complete: bool) {
        let Some(sandbox) = sandbox else {
            self.strangers.insert(id);
            return;
        };
        match self.rows.get_mut(&id) {
            Some(row) => {
                row.complete |= complete;
                if row.sandbox == sandbox {
                    return;
                }
                row.sandbox = sandbox;
            }
            None => {
                self.rows.insert(id.clone(), Row { sandbox, complete, containers: BTreeMap::new() });
            }
        }
        self.changed.insert(id);
    }

    fn put_container(&mut self, of: &str, spec: ContainerSpec, complete: bool) {
        let (Some(row), Some(id)) = (self.rows.get_mut(of), spec.id.clone()) else { return };
        let news = row.containers.get(&id).is_none_or(|held| held.spec != spec);
        row.containers.insert(id, Held { spec, complete, gone: None });
        if news {
            self.changed.insert(of.to_owned());
        }
    }

    /// A container or sandbox was removed.
    pub(super) fn remove(&mut self, id: &str, now: Instant) {
        self.strangers.remove(id);
        self.remove_sandbox(id);
        let held = self.rows.values_mut().find_map(|row| row.containers.get_mut(id));
        if let Some(held) = held {
            held.gone.get_or_insert(now);
        }
    }

    fn remove_sandbox(&mut self, id: &str) {
        if self.rows.remove(id).is_some() {
            self.changed.remove(id);
            self.gone.push(id.to_owned());
        }
    }

    /// Everything, as one fact.
    pub(super) fn all(&mut self) -> Fact {
        self.changed.clear();
        self.gone.clear();
        Fact::Sandboxes(self.rows.values().map(Row::whole).collect())
    }

    /// What has changed since it was told.
    pub(super) fn news(&mut self) -> Vec<Fact> {
        let gone = std::mem::take(&mut self.gone).into_iter().map(Fact::SandboxGone);
        let changed = std::mem::take(&mut self.changed);
        let changed = changed.iter().filter_map(|id| self.rows.get(id));
        gone.chain(changed.map(|row| Fact::Sandbox(Box::new(row.whole())))).collect()
    }
}

impl Row {
    fn whole(&self) -> Sandbox {
        let mut sandbox = self.sandbox.clone();
        sandbox.pod.containers = self.containers.values().map(|held| held.spec.clone()).collect();
        sandbox
    }
}
