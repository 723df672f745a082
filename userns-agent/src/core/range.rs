//! What is wrong with the id range of a pod's user namespace.
//!
//! Kubelet gives each pod one mapping of `idsPerPod` ids (65536 unless configured) that starts at a multiple of
//! that length, at 65536 or above, the same for users and groups, disjoint from all other pods'
//! (KEP-127; pkg/kubelet/userns/userns_manager.go). Anything else breaks what the pod was promised.

use super::finding::extents;
use crate::event::{Extent, IdMap, KubeletRecord, Sandbox};

/// Ids below this belong to the host's own users; kubelet never hands them out.
pub const FIRST_POD_ID: u32 = 65_536;

/// Something wrong with a range.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// Host id 0 is mapped: root in the pod is root on the host.
    HostRoot {
        /// The id inside that stands for it.
        inside: u32,
    },
    /// Ids below [`FIRST_POD_ID`] are mapped.
    HostIds {
        /// The offending extent.
        extent: Extent,
    },
    /// The kernel's map is not what kubelet recorded.
    DiffersFromRecord {
        /// "user" or "group".
        kind: &'static str,
        /// What kubelet recorded.
        recorded: Vec<Extent>,
        /// What the kernel has.
        actual: Vec<Extent>,
    },
    /// The kernel's map is not what kubelet asked the runtime for, though nothing says so of kubelet's record.
    DiffersFromRequest {
        /// "user" or "group".
        kind: &'static str,
        /// What kubelet asked for.
        requested: Vec<Extent>,
        /// What the kernel has.
        actual: Vec<Extent>,
    },
    /// Kubelet's record itself holds ids that are not a pod's.
    UnsafeRecord {
        /// The offending extent.
        extent: Extent,
    },
}

/// Checks one map as the kernel has it.
#[must_use]
pub fn check_map(map: &IdMap) -> Option<Problem> {
    extents(map).iter().find_map(check_extent)
}

fn check_extent(extent: &Extent) -> Option<Problem> {
    if extent.count == 0 || extent.lower_first >= FIRST_POD_ID {
        return None;
    }
    Some(if extent.lower_first == 0 {
        Problem::HostRoot { inside: extent.first }
    } else {
        Problem::HostIds { extent: *extent }
    })
}

/// Checks what kubelet recorded.
#[must_use]
pub fn check_record(record: &KubeletRecord) -> Option<Problem> {
    let all = record.uid_mappings.iter().chain(&record.gid_mappings);
    let mut bad = all.filter(|extent| check_extent(extent).is_some() || ends_past_u32(extent));
    bad.next().map(|extent| Problem::UnsafeRecord { extent: *extent })
}

fn ends_past_u32(extent: &Extent) -> bool {
    u64::from(extent.lower_first) + u64::from(extent.count) > u64::from(u32::MAX)
}

/// Everything wrong with a pod's namespace, worst first. Maps that are still empty say nothing, and neither does a
/// request without mappings: the runtime may choose then.
#[must_use]
pub fn problems(
    uid_map: &IdMap,
    gid_map: &IdMap,
    record: Option<&KubeletRecord>,
    request: Option<&Sandbox>,
) -> Vec<Problem> {
    let mut found: Vec<Problem> = [uid_map, gid_map].into_iter().filter_map(check_map).collect();
    let recorded = record.map(|record| [&record.uid_mappings, &record.gid_mappings]);
    let requested = request.map(|sandbox| [&sandbox.uid_mappings, &sandbox.gid_mappings]);
    for (at, (kind, map)) in [("user", uid_map), ("group", gid_map)].into_iter().enumerate() {
        let differs_from = |lists: Option<[&Vec<Extent>; 2]>| differs(lists?.get(at)?, map);
        if let Some((recorded, actual)) = differs_from(recorded) {
            found.push(Problem::DiffersFromRecord { kind, recorded, actual });
        } else if let Some((requested, actual)) =
            differs_from(requested).filter(|(asked, _)| !asked.is_empty())
        {
            found.push(Problem::DiffersFromRequest { kind, requested, actual });
        }
    }
    found.extend(record.and_then(check_record));
    found.sort();
    found.dedup();
    found
}

/// What was promised and what the kernel has, if they differ.
fn differs(promised: &[Extent], map: &IdMap) -> Option<(Vec<Extent>, Vec<Extent>)> {
    if map.nr_extents == 0 {
        return None;
    }
    let actual = extents(map);
    let sorted = |list: &[Extent]| {
        let mut list = list.to_vec();
        list.sort_by_key(|extent| extent.first);
        list
    };
    let (promised, actual) = (sorted(promised), sorted(actual));
    (promised != actual).then_some((promised, actual))
}

/// The first host ids that two maps share, as (first, last); `None` if they are disjoint.
#[must_use]
pub fn overlap(a: &IdMap, b: &IdMap) -> Option<(u32, u32)> {
    extents(a).iter().find_map(|left| extents(b).iter().find_map(|right| intersect(left, right)))
}

fn intersect(a: &Extent, b: &Extent) -> Option<(u32, u32)> {
    let last = |extent: &Extent| Some(extent.lower_first.saturating_add(extent.count.checked_sub(1)?));
    let (first, last) = (a.lower_first.max(b.lower_first), last(a)?.min(last(b)?));
    (first <= last).then_some((first, last))
}

/// Prints an extent as `0→3841261568+65536`.
#[must_use]
pub fn show(extent: &Extent) -> String {
    format!("{}→{}+{}", extent.first, extent.lower_first, extent.count)
}

/// Prints a list of extents.
#[must_use]
pub fn show_all(list: &[Extent]) -> String {
    if list.is_empty() {
        return "none".to_owned();
    }
    list.iter().map(show).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(list: &[(u32, u32, u32)]) -> IdMap {
        let mut map = IdMap { nr_extents: u32::try_from(list.len()).unwrap(), ..IdMap::default() };
        for (slot, (first, lower_first, count)) in map.extents.iter_mut().zip(list) {
            *slot = Extent { first: *first, lower_first: *lower_first, count: *count };
        }
        map
    }

    fn record(list: &[(u32, u32, u32)]) -> KubeletRecord {
        let list = extents(&map(list)).to_vec();
        KubeletRecord { uid_mappings: list.clone(), gid_mappings: list }
    }

    #[test]
    fn kubelets_own_ranges_are_fine() {
        for first in [65_536, 3_841_261_568, 4_294_836_224] {
            let map = map(&[(0, first, 65_536)]);
            assert_eq!(problems(&map, &map, Some(&record(&[(0, first, 65_536)])), None), [], "{first}");
        }
    }

    #[test]
    fn host_ids_are_found_wherever_they_stand() {
        assert_eq!(check_map(&map(&[(0, 0, 65_536)])), Some(Problem::HostRoot { inside: 0 }));
        assert!(matches!(check_map(&map(&[(0, 1000, 1)])), Some(Problem::HostIds { .. })));
        let second = map(&[(0, 131_072, 65_536), (65_536, 0, 1)]);
        assert_eq!(check_map(&second), Some(Problem::HostRoot { inside: 65_536 }));
    }

    #[test]
    fn differences_from_the_record_are_found() {
        let actual = map(&[(0, 131_072, 65_536)]);
        let found = problems(&actual, &actual, Some(&record(&[(0, 196_608, 65_536)])), None);
        assert_eq!(found.len(), 2);
        assert!(
            problems(&IdMap::default(), &IdMap::default(), Some(&record(&[(0, 196_608, 65_536)])), None)
                .is_empty()
        );
    }

    #[test]
    fn a_request_is_asked_about_where_the_record_says_nothing() {
        let (actual, other) = (map(&[(0, 131_072, 65_536)]), [(0, 196_608, 65_536)]);
        let request = |list: &[(u32, u32, u32)]| {
            let KubeletRecord { uid_mappings, gid_mappings } = record(list);
            Sandbox { uid_mappings, gid_mappings, ..Sandbox::default() }
        };
        let found = |recorded: Option<&[(u32, u32, u32)]>, asked: &[(u32, u32, u32)]| {
            problems(&actual, &actual, recorded.map(record).as_ref(), Some(&request(asked)))
        };
        let of_request = |problem: &Problem| matches!(problem, Problem::DiffersFromRequest { .. });
        let same = [(0, 131_072, 65_536)];
        for recorded in [None, Some(&same[..])] {
            assert_eq!((found(recorded, &same), found(recorded, &[])), (vec![], vec![]));
            let found = found(recorded, &other);
            assert!(found.len() == 2 && found.iter().all(of_request), "{found:?}");
        }
        let found = found(Some(&other), &other);
        assert!(found.len() == 2 && !found.iter().any(of_request), "it is said once: {found:?}");
    }

    #[test]
    fn a_wrapped_record_is_unsafe() {
        assert!(matches!(check_record(&record(&[(0, 0, 65_536)])), Some(Problem::UnsafeRecord { .. })));
        assert!(matches!(
            check_record(&record(&[(0, 4_294_901_760, 65_536)])),
            Some(Problem::UnsafeRecord { .. })
        ));
    }

    #[test]
    fn overlaps_are_exact() {
        let a = map(&[(0, 131_072, 65_536)]);
        assert_eq!(overlap(&a, &map(&[(0, 196_608, 65_536)])), None);
        assert_eq!(overlap(&a, &map(&[(0, 196_607, 65_536)])), Some((196_607, 196_607)));
        assert_eq!(overlap(&a, &IdMap::default()), None);
    }
}
