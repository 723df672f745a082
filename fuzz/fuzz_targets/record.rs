//! Records of the kernel's side, arbitrarily changed.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| userns_fuzz::record(data));
