//! Compile-time proof that shared structs hold no implicit padding and sit where they are expected.

use core::mem::{offset_of, size_of};

use crate::limits::{ARGS_LEN, CGROUP_PATH_LEN, COMM_LEN, MAX_ANCESTORS, MAX_EXTENTS, PATH_LEN};
use crate::record::{
    AggregateKey, AggregateValue, Ancestor, Budget, CapSets, CgroupRecord, Detail, ExitRecord, Extent,
    Header, IdMap, Ids, Image, Lineage, Namespaces, Task, TaskRecord, Tracked, UserNs, WatchedCgroup,
    WatchedUserNs,
};

const TASK: usize = 4 * 2
    + 8
    + 4 * 2
    + size_of::<Ids>()
    + size_of::<CapSets>()
    + 2 * size_of::<UserNs>()
    + size_of::<Namespaces>()
    + size_of::<Image>()
    + 8
    + size_of::<Lineage>()
    + COMM_LEN;

const _: () = {
    assert!(size_of::<Header>() == 24);
    assert!(size_of::<Extent>() == 12);
    assert!(size_of::<IdMap>() == 4 + 12 * MAX_EXTENTS);
    assert!(size_of::<UserNs>() == 16 + 2 * size_of::<IdMap>());
    assert!(size_of::<Ids>() == 32);
    assert!(size_of::<CapSets>() == 40);
    assert!(size_of::<Lineage>() == 64);
    assert!(size_of::<Tracked>() == size_of::<Lineage>() + 64);
    assert!(size_of::<Budget>() == 32);
    assert!(size_of::<Image>() == 16);
    assert!(size_of::<Namespaces>() == 24);
    assert!(size_of::<Task>() == TASK);
    assert!(size_of::<Ancestor>() == 32);
    assert!(size_of::<Detail>() == 48);
    assert!(size_of::<TaskRecord>() == 24 + TASK + 48 + 16 + MAX_ANCESTORS * 32 + PATH_LEN + ARGS_LEN);
    assert!(size_of::<ExitRecord>() == 48);
    assert!(size_of::<CgroupRecord>() == 40 + CGROUP_PATH_LEN);
    assert!(size_of::<WatchedCgroup>() == 16);
    assert!(size_of::<WatchedUserNs>() == 16);
    assert!(size_of::<AggregateKey>() == 16);
    assert!(size_of::<AggregateValue>() == 32);
    assert!(offset_of!(TaskRecord, header) == 0 && offset_of!(ExitRecord, header) == 0);
    assert!(offset_of!(CgroupRecord, header) == 0);
};
