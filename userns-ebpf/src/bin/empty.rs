//! Programs that do nothing, at each kind of hook on capability checks: what a hook costs before the agent's own
//! program runs. `cargo xtask bench` loads them; the agent does not contain them.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::macros::{btf_tracepoint, fexit, kprobe, kretprobe, tracepoint};
    use aya_ebpf::programs::{
        BtfTracePointContext, FExitContext, ProbeContext, RetProbeContext, TracePointContext,
    };

    #[btf_tracepoint(function = "cap_capable")]
    fn empty_tp_btf(_: BtfTracePointContext) -> i32 {
        0
    }

    #[fexit(function = "cap_capable")]
    fn empty_fexit(_: FExitContext) -> i32 {
        0
    }

    #[kprobe]
    fn empty_kprobe(_: ProbeContext) -> u32 {
        0
    }

    #[kretprobe]
    fn empty_kretprobe(_: RetProbeContext) -> u32 {
        0
    }

    #[tracepoint]
    fn empty_tracepoint(_: TracePointContext) -> u32 {
        0
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        // the verifier proves that no panic is reachable
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
