//! What a rule may know besides the record at hand.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use userns_common::kind::lineage;

use super::pattern::matches;
use super::pods::{Pod, Promise};
use super::state::{Container, State};
use crate::event::{CgroupId, IdMap, Image, Nanos, PodUid, Reference, TaskEvent, UserNs};

/// The surroundings of a container or event. All of it is known already: a rule asks nothing of the outside.
#[derive(Debug)]
pub struct Context<'a> {
    /// When this is judged.
    pub now: Nanos,
    /// How long a runtime may need to enter.
    pub grace: Duration,
    /// The user namespace that counts as the host's.
    pub reference: &'a Reference,
    /// The container, if its cgroup is known.
    pub container: Option<&'a Container>,
    /// The pod, if the cgroup's path names one.
    pub pod: Option<(&'a PodUid, &'a Pod)>,
    pub(super) unobservable: &'a Unobservable,
    pub(super) runtimes: &'a Runtimes,
    pub(super) state: &'a State,
}

/// File names of executables that enter containers' cgroups before they join the user namespace.
const NAMES: [&str; 6] = ["runc", "crun", "youki", "conmon", "conmonrs", "crio"];

/// Container runtimes' executables.
#[derive(Clone, Debug, Default)]
pub(super) struct Runtimes {
    images: BTreeSet<(u32, u64)>,
    monitors: BTreeSet<(u32, u64)>,
}

fn identities(images: &[Image]) -> BTreeSet<(u32, u64)> {
    images.iter().map(|image| (image.dev, image.ino)).collect()
}

impl Runtimes {
    /// These are the executables.
    pub(super) fn set(&mut self, images: &[Image]) {
        self.images = identities(images);
    }

    /// These are those of monitors.
    pub(super) fn set_monitors(&mut self, images: &[Image]) {
        self.monitors = identities(images);
    }

    /// Whether a task is a runtime's monitor at its place: its executable is one for certain, it came in from the host,
    /// and it is still in the mount namespace that it came from.
    #[must_use]
    pub(super) fn is_monitor(&self, event: &TaskEvent) -> bool {
        let image = event.task.image;
        event.task.lineage.flags & lineage::WORKLOAD == 0 && self.monitors.contains(&(image.dev, image.ino))
    }

    /// Whether a task's executable is one of them for certain.
    #[must_use]
    pub(super) fn known(&self, event: &TaskEvent) -> bool {
        let image = event.task.image;
        self.images.contains(&(image.dev, image.ino))
    }

    /// Whether a task can be a runtime at work. Its command name is no evidence, as a process chooses it at will; its
    /// executable is: a known one, one that has no name any more (runc re-executes itself from a sealed memfd), or
    /// one with a runtime's file name (installed elsewhere, or the copy that runc mounts for itself alone). Being
    /// possible is worth the grace period and nothing more.
    #[must_use]
    pub(super) fn possible(&self, event: &TaskEvent) -> bool {
        let image = event.task.image;
        let path = event.path.as_str();
        let file_name = path.rsplit('/').next().unwrap_or_default();
        image.ino == 0
            || image.nlink == 0
            || self.known(event)
            || NAMES.contains(&file_name)
            || path.starts_with("/proc/self/fd/")
    }
}

/// Runtime classes and handlers whose pods run where this kernel does not see them: names, or beginnings that end in
/// `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unobservable(Vec<String>);

impl Unobservable {
    /// Those of the configuration.
    #[must_use]
    pub fn new(classes: Vec<String>) -> Self {
        Self(classes)
    }

    /// Whether this is such a class or handler.
    #[must_use]
    pub fn has(&self, class: &str) -> bool {
        self.0.iter().any(|pattern| matches(pattern, class))
    }

    /// Whether the pod has such a class or handler.
    #[must_use]
    pub(super) fn covers(&self, pod: &Pod) -> bool {
        pod.runtime_classes().any(|class| self.has(class))
    }
}

impl<'a> Context<'a> {
    /// What the pod was promised.
    #[must_use]
    pub fn promise(&self) -> Promise {
        self.pod.map_or(Promise::Unknown, |(_, pod)| pod.promise())
    }

    /// Whether a user namespace was promised.
    #[must_use]
    pub fn promised(&self) -> bool {
        self.promise() == Promise::UserNamespace
    }

    /// Whether a task can be a container runtime at work, judged by its executable and not by its name.
    #[must_use]
    pub fn may_be_runtime(&self, event: &TaskEvent) -> bool {
        self.runtimes.possible(event)
    }

    /// Whether a task's executable is a container runtime's, as installed on the host.
    #[must_use]
    pub fn is_runtime(&self, event: &TaskEvent) -> bool {
        self.runtimes.known(event)
    }

    /// The pod of another container, if that is another pod.
    #[must_use]
    pub fn other_pod(&self, container: u64) -> Option<&'a PodUid> {
        let other = self.state.container(CgroupId(container))?.pod.as_ref()?;
        self.pod.is_none_or(|(own, _)| own != other).then_some(other)
    }

    /// Whether a task is a runtime's monitor, which may stay.
    #[must_use]
    pub fn is_monitor(&self, event: &TaskEvent) -> bool {
        self.runtimes.is_monitor(event)
    }

    /// Whether the pod runs where this kernel does not see it, by its runtime class.
    #[must_use]
    pub fn is_unobservable(&self) -> bool {
        self.pod.is_some_and(|(_, pod)| self.unobservable.covers(pod))
    }

    /// Other pods of which a live container's user namespace maps one of these host user ids, with that namespace.
    #[must_use]
    pub fn sharing(&self, map: &IdMap) -> BTreeMap<&'a PodUid, &'a UserNs> {
        let own = self.pod.map(|(uid, _)| uid);
        let namespaces = self.state.sharing(map).filter_map(|container| {
            let uid = container.pod.as_ref().filter(|uid| Some(*uid) != own)?;
            Some((uid, container.userns.as_ref()?))
        });
        namespaces.collect()
    }
}
