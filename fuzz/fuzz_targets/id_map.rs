//! Text of uid_map, arbitrarily changed.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| userns_fuzz::id_map(data));
