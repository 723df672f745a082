//! Files of Pod objects, arbitrarily changed.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| userns_fuzz::pods_file(data));
