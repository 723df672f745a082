//! Paths of cgroups, arbitrarily changed.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| userns_fuzz::cgroup_path(data));
