//! The eBPF programs of userns-agent: attributes and module list, no logic.
//!
//! The crate also builds for the host, as an empty program, so that lints, documentation and tests cover it on
//! a plain toolchain.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(target_arch = "bpf", expect(internal_features, reason = "atomic addition"))]
#![cfg_attr(not(target_arch = "bpf"), expect(dead_code, reason = "on the host nothing calls the programs"))]

mod emit;
mod lineage;
mod maps;
mod probes;
mod task;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // the verifier proves that no panic is reachable
    loop {}
}

/// Helpers such as bpf_probe_read_kernel and the BTF-typed ones are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
