//! User namespaces and their maps.

use core::ffi::c_void;

use userns_common::limits::{MAX_EXTENTS, MAX_USERNS_DEPTH};
use userns_common::record::{Extent, IdMap, UserNs as UserNsData};

use super::{Reader, follow, read};
use crate::maps::setting;

/// A `struct user_namespace`. `TYPED`: the verifier knows that it is one.
#[derive(Clone, Copy)]
pub(crate) struct UserNs<const TYPED: bool = true>(*const c_void);

impl<const TYPED: bool> UserNs<TYPED> {
    /// Takes an argument of a probe.
    #[inline(always)]
    pub(crate) fn from_arg(pointer: *const c_void) -> Self {
        Self(pointer)
    }

    /// Its address, to compare.
    #[inline(always)]
    pub(crate) fn address(self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    fn field(self, offset: u32) -> u32 {
        // SAFETY: typed pointer, offset from BTF.
        if TYPED { unsafe { follow(self.0, offset) } } else { read(self.0, offset) }
    }

    /// Depth; 0 is the initial one.
    #[inline(always)]
    pub(crate) fn level(self) -> u32 {
        self.field(setting!(offsets.userns_level))
    }

    /// Inode number.
    #[inline(always)]
    pub(crate) fn inum(self) -> u32 {
        self.field(setting!(offsets.userns_inum))
    }
}

impl UserNs<false> {
    /// As for a typed one.
    #[inline(always)]
    pub(crate) fn ancestor_at(self, level: u32) -> Self {
        let mut reader = Reader::new();
        let mut ns = self.0;
        for _ in 0..MAX_USERNS_DEPTH {
            if reader.read::<u32>(ns, setting!(offsets.userns_level)) <= level {
                break;
            }
            ns = reader.ptr(ns, setting!(offsets.userns_parent));
        }
        reader.done();
        Self(ns)
    }
}

impl UserNs {
    /// The one above; not to be asked of the initial one.
    #[inline(always)]
    pub(crate) fn parent(self) -> Self {
        // SAFETY: typed pointer, offset from BTF.
        Self(unsafe { follow::<*const c_void>(self.0, setting!(offsets.userns_parent)) })
    }

    /// The ancestor at `level`, itself if it is not deeper.
    #[inline(always)]
    pub(crate) fn ancestor_at(self, level: u32) -> Self {
        let mut ns = self;
        for _ in 0..MAX_USERNS_DEPTH {
            // the initial namespace's null parent is never reached: its level is 0, and null would read as 0 too
            if ns.level() <= level {
                break;
            }
            ns = ns.parent();
        }
        ns
    }

    /// Its map of user ids.
    #[inline(always)]
    pub(crate) fn uid_map(self) -> Map {
        Map(self.0.wrapping_byte_add(setting!(offsets.userns_uid_map) as usize))
    }

    /// Its map of group ids.
    #[inline(always)]
    pub(crate) fn gid_map(self) -> Map {
        Map(self.0.wrapping_byte_add(setting!(offsets.userns_gid_map) as usize))
    }

    #[inline(always)]
    pub(super) fn snapshot(self, reader: &mut Reader, to: &mut UserNsData) {
        to.inum = self.inum();
        to.level = self.level();
        reader.copy(&mut to.owner, self.0, setting!(offsets.userns_owner));
        to.parent_inum = self.parent().inum();
        self.uid_map().snapshot(reader, &mut to.uid_map);
        self.gid_map().snapshot(reader, &mut to.gid_map);
    }
}

/// A `struct uid_gid_map`.
#[derive(Clone, Copy)]
pub(crate) struct Map(*const c_void);

impl Map {
    /// How many extents it has.
    #[inline(always)]
    pub(crate) fn len(self) -> u32 {
        read(self.0, setting!(offsets.idmap_nr_extents))
    }

    /// The extents stored inline.
    #[inline(always)]
    pub(crate) fn extents(self) -> [Extent; MAX_EXTENTS] {
        read(self.0, setting!(offsets.idmap_extent))
    }

    #[inline(always)]
    fn snapshot(self, reader: &mut Reader, to: &mut IdMap) {
        reader.copy(&mut to.nr_extents, self.0, setting!(offsets.idmap_nr_extents));
        reader.copy(&mut to.extents, self.0, setting!(offsets.idmap_extent));
    }
}
