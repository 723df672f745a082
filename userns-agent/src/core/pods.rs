//! What is known of a pod from several sources at once, merged by precedence.

use std::collections::{BTreeMap, BTreeSet};

use super::windows::KEEP_NS;
use crate::event::{
    CgroupId, ContainerKind, ContainerSpec, KubeletRecord, Nanos, PodSource, PodSpec, Sandbox, UsernsMode,
};

/// What a pod was promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// A user namespace: kubelet recorded one, `spec.hostUsers` is false, or kubelet asked the runtime for one.
    UserNamespace,
    /// The host's: `spec.hostUsers` is true or unset.
    HostUsers,
    /// No source says.
    Unknown,
}

/// Who says that there is to be a user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromisedBy {
    /// Kubelet's record.
    Record,
    /// `spec.hostUsers: false`, by the Pod object of this source.
    Spec(PodSource),
    /// What kubelet asked the container runtime for.
    Request,
}

/// What one source says of a pod.
#[derive(Clone, Debug)]
struct Said {
    spec: PodSpec,
    /// Since when the source has it no longer.
    gone: Option<Nanos>,
}

/// A pod.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// Kubelet's record. Kept when the file goes: containers outlive it by moments.
    pub record: Option<KubeletRecord>,
    /// Its containers' cgroups.
    pub containers: BTreeSet<CgroupId>,
    said: BTreeMap<PodSource, Said>,
    sandboxes: BTreeMap<String, Sandbox>,
    /// The one of these that the runtime has no longer: the last stays resolvable until there is another.
    left: Option<String>,
    /// When kubelet's record went.
    unrecorded: Option<Nanos>,
}

impl Pod {
    /// What it was promised. Whoever says that there is to be a user namespace wins, kubelet's record first: a
    /// component that ignores `hostUsers: false` is what is to be found.
    #[must_use]
    pub fn promise(&self) -> Promise {
        if self.promised_by().is_some() {
            return Promise::UserNamespace;
        }
        match (self.declared(), self.asked()) {
            (Some(_), _) | (None, UsernsMode::Node) => Promise::HostUsers,
            (None, UsernsMode::Unknown | UsernsMode::Pod) => Promise::Unknown,
        }
    }

    /// Who promised it a user namespace, the most telling first.
    #[must_use]
    pub fn promised_by(&self) -> Option<PromisedBy> {
        if self.record.is_some() {
            return Some(PromisedBy::Record);
        }
        match self.object() {
            Some((source, spec)) if spec.host_users == Some(false) => Some(PromisedBy::Spec(source)),
            _ => (self.asked() == UsernsMode::Pod).then_some(PromisedBy::Request),
        }
    }

    fn asked(&self) -> UsernsMode {
        self.sandbox().map_or(UsernsMode::Unknown, |sandbox| sandbox.userns_mode)
    }

    /// The description by the best source, with its name. A source that has the pod wins over one that had it.
    #[must_use]
    pub fn described(&self) -> Option<(PodSource, &PodSpec)> {
        let best = self.said.iter().min_by_key(|(source, said)| (said.gone.is_some(), **source));
        best.map(|(source, said)| (*source, &said.spec))
    }

    /// Its name, namespace, labels and so on, by the best source.
    #[must_use]
    pub fn spec(&self) -> Option<&PodSpec> {
        self.described().map(|(_, spec)| spec)
    }

    /// The Pod object, by the best source that has one.
    #[must_use]
    pub fn declared(&self) -> Option<&PodSpec> {
        self.object().map(|(_, spec)| spec)
    }

    fn object(&self) -> Option<(PodSource, &PodSpec)> {
        let objects = self.said.iter().filter(|(source, _)| **source != PodSource::Cri);
        let best = objects.min_by_key(|(source, said)| (said.gone.is_some(), **source));
        best.map(|(source, said)| (*source, &said.spec))
    }

    /// Its runtime class, and the runtime's handler, as far as sources tell.
    pub fn runtime_classes(&self) -> impl Iterator<Item = &str> {
        self.said.values().filter_map(|said| said.spec.runtime_class.as_deref())
    }

    /// Sources that describe it, the best first.
    pub fn sources(&self) -> impl Iterator<Item = PodSource> {
        self.said.keys().copied()
    }

    /// Its newest sandbox.
    #[must_use]
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.values().max_by_key(|sandbox| sandbox.created_at)
    }

    /// Every container of which a source has told the id.
    #[must_use]
    pub fn known_containers(&self) -> Vec<ContainerSpec> {
        let objects = self.said.values().flat_map(|said| &said.spec.containers);
        let sandboxes = self.sandboxes.values().flat_map(|sandbox| &sandbox.pod.containers);
        let ids = objects.chain(sandboxes).filter_map(|container| container.id.as_deref());
        let ids: BTreeSet<&str> = ids.chain(self.sandboxes.keys().map(String::as_str)).collect();
        ids.into_iter().filter_map(|id| self.container(id)).collect()
    }

    /// The sandbox that this container, which may be its own, is of.
    #[must_use]
    pub fn sandbox_of(&self, container: &str) -> Option<&Sandbox> {
        let own = self.sandboxes.get(container);
        own.or_else(|| self.sandboxes.values().find(|sandbox| sandbox.pod.container(container).is_some()))
    }

    /// The container with this id, by the first source that knows it.
    #[must_use]
    pub fn container(&self, id: &str) -> Option<ContainerSpec> {
        let sandboxes = self.sandboxes.values();
        let by_runtime = sandboxes.clone().find_map(|sandbox| sandbox.pod.container(id));
        let by_object = self.said.values().find_map(|said| said.spec.container(id));
        if let Some(known) = by_object.or(by_runtime) {
            let mut known = known.clone();
            if known.image_digest.is_none() {
                known.image_digest = by_runtime.and_then(|runtime| runtime.image_digest.clone());
            }
            return Some(known);
        }
        let is_sandbox = !id.is_empty() && self.sandboxes.contains_key(id);
        is_sandbox.then(|| ContainerSpec {
            kind: ContainerKind::Sandbox,
            id: Some(id.to_owned()),
            ..ContainerSpec::default()
        })
    }

    /// Takes kubelet's record; true if it says something new.
    pub(super) fn recorded(&mut self, record: Option<KubeletRecord>, now: Nanos) -> bool {
        let Some(record) = record else {
            self.unrecorded = Some(now);
            return false;
        };
        self.unrecorded = None;
        let record = Some(record);
        let news = self.record != record;
        self.record = record;
        news
    }

    /// Takes a description; true if it says something new.
    pub(super) fn say(&mut self, source: PodSource, spec: PodSpec) -> bool {
        let news = self.said.get(&source).is_none_or(|said| said.spec != spec);
        self.said.insert(source, Said { spec, gone: None });
        news
    }

    /// A source has it no longer: what it said stays for as long as the pod's containers, and a while.
    pub(super) fn unsay(&mut self, source: PodSource, now: Nanos) {
        if let Some(said) = self.said.get_mut(&source) {
            said.gone.get_or_insert(now);
        }
    }

    /// Takes a sandbox; true if it says something new.
    pub(super) fn add_sandbox(&mut self, sandbox: Sandbox) -> bool {
        let newest = self.sandbox().is_none_or(|newest| newest.created_at <= sandbox.created_at);
        let news = self.sandboxes.get(&sandbox.id) != Some(&sandbox);
        if let Some(left) = self.left.take() {
            self.sandboxes.remove(&left);
        }
        if newest {
            self.say(PodSource::Cri, sandbox.pod.clone());
        }
        self.sandboxes.insert(sandbox.id.clone(), sandbox);
        news
    }

    /// The runtime has this sandbox no longer.
    pub(super) fn remove_sandbox(&mut self, id: &str, now: Nanos) {
        if self.sandboxes.len() > 1 {
            self.sandboxes.remove(id);
        } else if self.sandboxes.contains_key(id) {
            self.left = Some(id.to_owned());
            self.unsay(PodSource::Cri, now);
        }
    }

    /// Whether nothing has spoken for it for long: it can be forgotten.
    pub(super) fn is_forgotten(&self, now: Nanos) -> bool {
        let long_ago = |since: Nanos| now.0.saturating_sub(since.0) > KEEP_NS;
        self.containers.is_empty()
            && (self.record.is_none() || self.unrecorded.is_some_and(long_ago))
            && self.said.values().all(|said| said.gone.is_some_and(long_ago))
    }

    /// Whether nothing on the node speaks for it, neither a cgroup nor kubelet's record nor a sandbox: it makes room
    /// when there are too many. The API server may have more pods for a node, ended ones foremost, than any node runs.
    pub(super) fn is_spare(&self) -> bool {
        let recorded = self.record.is_some() && self.unrecorded.is_none();
        let has_sandbox = !self.sandboxes.is_empty() && self.left.is_none();
        self.containers.is_empty() && !recorded && !has_sandbox
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sandboxes_of_a_pod_do_not_pile_up() {
        let mut pod = Pod::default();
        let sandbox = |n: i64| Sandbox { id: format!("s{n}"), created_at: n, ..Sandbox::default() };
        for n in 0..100 {
            pod.add_sandbox(sandbox(n));
            pod.remove_sandbox(&format!("s{n}"), Nanos(1));
            assert_eq!(pod.sandbox(), Some(&sandbox(n)), "the last is still known");
        }
        pod.add_sandbox(sandbox(100));
        assert_eq!(pod.sandboxes.len(), 1);
    }
}
