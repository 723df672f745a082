//! The user namespace that counts as the host's.
//!
//! It is kubelet's: the initial one, but for a node that runs in a user namespace itself (rootless, or a container with
//! one). Pods' user namespaces lie one level below it, and kubelet's records are in its ids.

use userns_common::limits::MAX_EXTENTS;
use userns_common::record::{Extent, IdMap};

/// The user namespace that counts as the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Inode number.
    pub inum: u32,
    /// Depth; the initial one is 0.
    pub level: u32,
    /// Its map of user ids, to those of the initial namespace.
    pub uid_map: Vec<Extent>,
    /// Its map of group ids.
    pub gid_map: Vec<Extent>,
}

/// Inode number of the initial user namespace (`PROC_USER_INIT_INO`, include/linux/proc_ns.h).
pub const INITIAL_USERNS: u32 = 0xEFFF_FFFD;
const ALL_IDS: Extent = Extent { first: 0, lower_first: 0, count: u32::MAX };

impl Default for Reference {
    /// The initial one.
    fn default() -> Self {
        Self { inum: INITIAL_USERNS, level: 0, uid_map: vec![ALL_IDS], gid_map: vec![ALL_IDS] }
    }
}

impl Reference {
    /// Whether it is the initial one, whose ids are the kernel's.
    #[must_use]
    pub fn is_initial(&self) -> bool {
        self.level == 0
    }

    /// A kernel's user id as the reference has it; `None` if it has none there.
    #[must_use]
    pub fn user(&self, kernel: u32) -> Option<u32> {
        up(&self.uid_map, kernel, 1)
    }

    /// A kernel's group id likewise.
    #[must_use]
    pub fn group(&self, kernel: u32) -> Option<u32> {
        up(&self.gid_map, kernel, 1)
    }

    /// A map of user ids of a namespace below, to the reference's ids instead of the kernel's.
    #[must_use]
    pub fn users(&self, map: &IdMap) -> IdMap {
        if self.is_initial() { *map } else { translated(&self.uid_map, map) }
    }

    /// A map of group ids likewise.
    #[must_use]
    pub fn groups(&self, map: &IdMap) -> IdMap {
        if self.is_initial() { *map } else { translated(&self.gid_map, map) }
    }

    /// Recorded extents of user ids, to the kernel's ids instead of the reference's. What the reference does not map
    /// is left out.
    #[must_use]
    pub fn kernel_users(&self, recorded: &[Extent]) -> Vec<Extent> {
        if self.is_initial() { recorded.to_vec() } else { down(&self.uid_map, recorded) }
    }

    /// Recorded extents of group ids likewise.
    #[must_use]
    pub fn kernel_groups(&self, recorded: &[Extent]) -> Vec<Extent> {
        if self.is_initial() { recorded.to_vec() } else { down(&self.gid_map, recorded) }
    }
}

/// The id in the namespace of `map` for a kernel's id, if `count` from there on stand together.
fn up(map: &[Extent], kernel: u32, count: u32) -> Option<u32> {
    map.iter().find_map(|extent| {
        let offset = kernel.checked_sub(extent.lower_first)?;
        let fits = u64::from(offset) + u64::from(count) <= u64::from(extent.count);
        fits.then(|| extent.first.wrapping_add(offset))
    })
}

/// The kernel maps an extent within one of the parent's or not at all (map_id_range_down, kernel/user_namespace.c).
fn translated(map: &[Extent], of: &IdMap) -> IdMap {
    let mut seen = *of;
    let used = if of.nr_extents as usize <= MAX_EXTENTS { of.nr_extents as usize } else { 0 };
    for extent in seen.extents.iter_mut().take(used) {
        extent.lower_first = up(map, extent.lower_first, extent.count).unwrap_or(extent.lower_first);
    }
    seen
}

/// Recorded extents in the kernel's ids, cut where the reference's map is.
fn down(map: &[Extent], recorded: &[Extent]) -> Vec<Extent> {
    let mut found = Vec::new();
    for extent in recorded {
        for own in map {
            let first = u64::from(extent.lower_first.max(own.first));
            let end = |first: u32, count: u32| u64::from(first) + u64::from(count);
            let end = end(extent.lower_first, extent.count).min(end(own.first, own.count));
            let cut = |offset: u64, base: u32| u32::try_from(offset + u64::from(base)).ok();
            let Some(count) = end.checked_sub(first).and_then(|count| u32::try_from(count).ok()) else {
                continue;
            };
            let inside = cut(first - u64::from(extent.lower_first), extent.first);
            let lower = cut(first - u64::from(own.first), own.lower_first);
            if let (Some(first), Some(lower_first), 1..) = (inside, lower, count) {
                found.push(Extent { first, lower_first, count });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn extent(first: u32, lower_first: u32, count: u32) -> Extent {
        Extent { first, lower_first, count }
    }

    /// A rootless user's namespace: root is user 1000, the rest subordinate ids.
    fn rootless() -> Reference {
        let map = vec![extent(0, 1000, 1), extent(1, 100_000, 200_000)];
        Reference { inum: 7, level: 1, uid_map: map.clone(), gid_map: map }
    }

    #[test]
    fn ids_are_translated_both_ways() {
        let reference = rootless();
        assert_eq!(
            (reference.user(1000), reference.user(100_000), reference.user(0)),
            (Some(0), Some(1), None)
        );
        assert_eq!(reference.group(299_999), Some(200_000));
        assert_eq!(reference.group(300_000), None);
        let recorded = [extent(0, 65_536, 65_536)];
        let kernel = reference.kernel_users(&recorded);
        assert_eq!(kernel, [extent(0, 165_535, 65_536)]);
        let mut map = IdMap { nr_extents: 1, ..IdMap::default() };
        map.extents[0] = kernel[0];
        assert_eq!(reference.users(&map).extents[0], recorded[0]);
        assert_eq!(reference.groups(&map).extents[0], recorded[0]);
    }

    #[test]
    fn what_the_reference_does_not_map_is_left_out_or_as_it_was() {
        let reference = rootless();
        assert_eq!(reference.kernel_groups(&[extent(0, 0, 3)]), [extent(0, 1000, 1), extent(1, 100_000, 2)]);
        assert_eq!(reference.kernel_users(&[extent(0, 4_294_901_760, 65_535)]), []);
        let mut outside = IdMap { nr_extents: 1, ..IdMap::default() };
        outside.extents[0] = extent(0, 50, 10);
        assert_eq!(reference.users(&outside), outside);
    }

    #[test]
    fn the_initial_one_changes_nothing() {
        let reference = Reference::default();
        let recorded = [extent(0, u32::MAX - 65_536, 65_536), extent(5, 0, 1)];
        assert_eq!(reference.kernel_users(&recorded), recorded);
        assert_eq!(reference.user(4_000_000_000), Some(4_000_000_000));
    }
}
