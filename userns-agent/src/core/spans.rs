//! Which containers are in which user namespace, and which host ids those map, so that a new one is not compared with
//! all others.

use std::collections::{BTreeMap, BTreeSet};

use super::finding::extents;
use crate::event::{CgroupId, Extent, IdMap, UserNs};

/// Host user ids of live containers, by where each extent of their maps begins.
#[derive(Debug, Default)]
pub(super) struct Spans {
    /// The last id of each extent.
    by_first: BTreeMap<(u32, CgroupId), u32>,
    /// How many extents there are of each width.
    widths: BTreeMap<u32, usize>,
    /// Containers by the inode number of their user namespace.
    by_inum: BTreeSet<(u32, CgroupId)>,
}

impl Spans {
    /// Takes in the user namespace of a container.
    pub(super) fn insert(&mut self, container: CgroupId, ns: &UserNs) {
        self.by_inum.insert((ns.inum, container));
        for (first, last) in extents(&ns.uid_map).iter().filter_map(bounds) {
            if self.by_first.insert((first, container), last).is_none() {
                *self.widths.entry(last - first).or_default() += 1;
            }
        }
    }

    /// Takes it out again.
    pub(super) fn remove(&mut self, container: CgroupId, ns: &UserNs) {
        self.by_inum.remove(&(ns.inum, container));
        for (first, _) in extents(&ns.uid_map).iter().filter_map(bounds) {
            let Some(last) = self.by_first.remove(&(first, container)) else { continue };
            if let Some(count) = self.widths.get_mut(&(last - first)) {
                *count -= 1;
                if *count == 0 {
                    self.widths.remove(&(last - first));
                }
            }
        }
    }

    /// Containers in the user namespace with this inode number.
    pub(super) fn within(&self, inum: u32) -> impl Iterator<Item = CgroupId> {
        self.by_inum.range((inum, CgroupId(0))..=(inum, CgroupId(u64::MAX))).map(|(_, container)| *container)
    }

    /// Containers that map one of the ids of this map: a few steps of the tree, as all pods' ranges are of one width.
    pub(super) fn sharing(&self, map: &IdMap) -> impl Iterator<Item = CgroupId> {
        let widest = self.widths.last_key_value().map_or(0, |(width, _)| *width);
        extents(map).iter().filter_map(bounds).flat_map(move |(first, last)| {
            let from = (first.saturating_sub(widest), CgroupId(0));
            let near = self.by_first.range(from..=(last, CgroupId(u64::MAX)));
            near.filter(move |(_, end)| **end >= first).map(|((_, container), _)| *container)
        })
    }
}

fn bounds(extent: &Extent) -> Option<(u32, u32)> {
    let last = extent.lower_first.saturating_add(extent.count.checked_sub(1)?);
    Some((extent.lower_first, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::range::overlap;

    fn map(ranges: &[(u32, u32)]) -> IdMap {
        let mut map = IdMap { nr_extents: u32::try_from(ranges.len()).unwrap(), ..IdMap::default() };
        for (extent, (lower_first, count)) in map.extents.iter_mut().zip(ranges) {
            *extent = Extent { first: 0, lower_first: *lower_first, count: *count };
        }
        map
    }

    #[test]
    fn those_that_share_ids_are_those_that_overlap() {
        // a small linear congruential generator: the test is the same each time
        let mut seed = 7_u32;
        let mut number = move |below: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) % below
        };
        let mut one = || (number(4000), number(300));
        let maps: Vec<IdMap> =
            (0..200).map(|n| if n % 3 == 0 { map(&[one(), one()]) } else { map(&[one()]) }).collect();
        let id = |index: usize| CgroupId(index as u64);
        let mut spans = Spans::default();
        let ns = |index: usize| UserNs { inum: index as u32 / 2, uid_map: maps[index], ..UserNs::default() };
        (0..200).for_each(|index| spans.insert(id(index), &ns(index)));
        assert_eq!(spans.within(7).collect::<Vec<_>>(), [id(14), id(15)]);
        (0..200).step_by(2).for_each(|index| spans.remove(id(index), &ns(index)));
        for wanted in &maps {
            let mut found: Vec<CgroupId> = spans.sharing(wanted).collect();
            found.sort_unstable();
            found.dedup();
            let rest = (1..200).step_by(2).filter(|index| overlap(wanted, &maps[*index]).is_some());
            assert_eq!(found, rest.map(id).collect::<Vec<_>>());
        }
        (1..200).step_by(2).for_each(|index| spans.remove(id(index), &ns(index)));
        assert!(spans.by_first.is_empty() && spans.widths.is_empty() && spans.by_inum.is_empty());
    }

    #[test]
    fn the_last_ids_there_are_do_not_wrap() {
        let mut spans = Spans::default();
        spans.insert(CgroupId(1), &UserNs { uid_map: map(&[(u32::MAX - 9, 65_536)]), ..UserNs::default() });
        assert_eq!(spans.sharing(&map(&[(u32::MAX, 1)])).count(), 1);
        assert_eq!(spans.sharing(&map(&[(0, 0), (0, 1)])).count(), 0);
    }
}
