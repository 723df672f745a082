//! What the engine knows of the pods at a moment, for whoever asks.

use std::collections::BTreeMap;

use super::finding::{Finding, PodRef};
use super::pods::{Pod, Promise};
use crate::event::{ContainerSpec, Extent, PodSource, PodUid, UsernsMode};

/// A pod with what is open about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// Who it is.
    pub pod: PodRef,
    /// Everyone who has told of it, the best source first.
    pub sources: Vec<PodSource>,
    /// What it was promised.
    pub promise: Promise,
    /// What kubelet asked the runtime for, with the map of user ids.
    pub asked: Option<(UsernsMode, Vec<Extent>)>,
    /// Its containers, as far as a source has told their ids.
    pub containers: Vec<ContainerSpec>,
    /// Open findings, the worst first.
    pub findings: Vec<Finding>,
}

/// Puts together what is known of the pods, and the findings by pod.
pub(super) fn view<'a>(
    pods: impl Iterator<Item = (&'a PodUid, &'a Pod)>,
    mut findings: BTreeMap<PodUid, Vec<Finding>>,
    reference: impl Fn(&PodUid, &Pod) -> PodRef,
) -> Vec<PodView> {
    let one = |(uid, pod): (&PodUid, &Pod)| {
        let mut findings = findings.remove(uid).unwrap_or_default();
        findings.sort_by_key(|finding| (std::cmp::Reverse(finding.severity), finding.first));
        PodView {
            pod: reference(uid, pod),
            sources: pod.sources().collect(),
            promise: pod.promise(),
            asked: pod.sandbox().map(|sandbox| (sandbox.userns_mode, sandbox.uid_mappings.clone())),
            containers: pod.known_containers(),
            findings,
        }
    };
    pods.map(one).collect()
}
