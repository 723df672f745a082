//! Rules files, arbitrarily changed.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| userns_fuzz::rules_file(data));
