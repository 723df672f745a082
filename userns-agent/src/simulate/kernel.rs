//! Techniques that ask for capabilities over the kernel itself.

use std::fs;

use rustix::io::Errno;

use super::call::{allowed_if, raw};
use super::place::Ground;
use super::technique::{Attempt, Detection, Outcome, Sign, Stopped, Technique};
use crate::core::rules::RuleId;

const ESCAPE: (&str, &str) = ("T1611", "Escape to Host");

/// include/uapi/linux/bpf.h
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
/// `mov64 r0, 0` and `exit` (struct bpf_insn).
const NOTHING: [u64; 2] = [0xb7, 0x95];
/// include/linux/syslog.h: how much of the log was not read yet.
const SYSLOG_ACTION_SIZE_UNREAD: libc::c_long = 9;
/// More than KEXEC_SEGMENT_MAX, and flags that are none: looked at after the permission (kernel/kexec.c).
const NO_SEGMENTS: libc::c_long = 1 << 30;
const NO_FLAGS: libc::c_long = 0x7ff8;

pub(super) const TECHNIQUES: &[Technique] = &[
    Technique {
        name: "kernel-module",
        title: "Load a kernel module",
        known: "finit_module",
        attack: ("T1547.006", "Boot or Logon Autostart Execution: Kernel Modules and Extensions"),
        attempts: "Asks to load a module from descriptor -1, with flags that do not exist.",
        stopped: Stopped::Yes,
        with_userns: "EPERM: it takes CAP_SYS_MODULE over the host",
        without_userns: "allowed with CAP_SYS_MODULE, as privileged pods have",
        detection: Detection::By(RuleId::I11, &[Sign::Capability("CAP_SYS_MODULE")]),
        harmless: true,
        run: kernel_module,
    },
    Technique {
        name: "kexec",
        title: "Load another kernel",
        known: "kexec_load",
        attack: ESCAPE,
        attempts: "Asks to load a kernel of more segments than there may be, with flags that do not exist.",
        stopped: Stopped::Yes,
        with_userns: "EPERM: it takes CAP_SYS_BOOT over the host",
        without_userns: "allowed with CAP_SYS_BOOT, as privileged pods have",
        detection: Detection::By(RuleId::I11, &[Sign::Capability("CAP_SYS_BOOT")]),
        harmless: true,
        run: kexec,
    },
    Technique {
        name: "bpf-program",
        title: "Load an eBPF program for the kernel's functions",
        known: "bpf(BPF_PROG_LOAD)",
        attack: ESCAPE,
        attempts: "Loads a program of two instructions of the type for kprobes, attaches it to nothing and closes it.",
        stopped: Stopped::Yes,
        with_userns: "EPERM: it takes CAP_BPF and CAP_PERFMON over the host",
        without_userns: "allowed with both or CAP_SYS_ADMIN, as privileged pods have",
        detection: Detection::Nobody(
            "denied CAP_BPF over the host is left out: systemd and container engines ask for it and do without",
        ),
        harmless: true,
        run: bpf_program,
    },
    Technique {
        name: "perf-event",
        title: "Measure the whole machine",
        known: "perf_event_open",
        attack: ESCAPE,
        attempts: "Opens a counter of processor time for all processes of processor 0, switched off, and closes it.",
        stopped: Stopped::Yes,
        with_userns: "EACCES: it takes CAP_PERFMON over the host, unless the sysctl kernel.perf_event_paranoid is below 1",
        without_userns: "allowed with CAP_PERFMON or CAP_SYS_ADMIN, as privileged pods have",
        // Debian's kernels ask for the one, the others for the other
        detection: Detection::By(
            RuleId::I11,
            &[Sign::Capability("CAP_PERFMON"), Sign::During("CAP_SYS_ADMIN", "perf_event_open")],
        ),
        harmless: true,
        run: perf_event,
    },
    Technique {
        name: "kernel-log",
        title: "Read the kernel's log",
        known: "dmesg",
        attack: ("T1082", "System Information Discovery"),
        attempts: "Asks with syslog how much of the kernel's log was not read yet.",
        stopped: Stopped::Yes,
        with_userns: "EPERM: it takes CAP_SYSLOG over the host",
        without_userns: "allowed with CAP_SYSLOG, as privileged pods have",
        detection: Detection::By(RuleId::I11, &[Sign::Capability("CAP_SYSLOG")]),
        harmless: true,
        run: kernel_log,
    },
    Technique {
        name: "io-ports",
        title: "Use the machine's ports",
        known: "iopl",
        attack: ESCAPE,
        attempts: "Asks with iopl for all input and output ports, for a process that uses none and ends.",
        stopped: Stopped::Yes,
        with_userns: "EPERM: it takes CAP_SYS_RAWIO over the host",
        without_userns: "allowed with CAP_SYS_RAWIO, as privileged pods have",
        detection: Detection::By(RuleId::I11, &[Sign::Capability("CAP_SYS_RAWIO")]),
        harmless: true,
        run: io_ports,
    },
];

fn kernel_module(_: &Ground) -> Attempt {
    let options = c"";
    let arguments = [-1, options.as_ptr() as libc::c_long, 0x4000, 0, 0, 0];
    // SAFETY: the text outlives the call; there is no module to load.
    let loaded = unsafe { raw(libc::SYS_finit_module, arguments) };
    allowed_if(loaded, "finit_module", &[Errno::INVAL, Errno::BADF])
}

fn kexec(_: &Ground) -> Attempt {
    // SAFETY: no pointers; the number of segments is refused before they are looked at.
    let loaded = unsafe { raw(libc::SYS_kexec_load, [0, NO_SEGMENTS, 0, NO_FLAGS, 0, 0]) };
    allowed_if(loaded, "kexec_load", &[Errno::INVAL])
}

/// The part of union bpf_attr that BPF_PROG_LOAD needs (include/uapi/linux/bpf.h).
#[repr(C)]
struct ProgramLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
}

fn bpf_program(_: &Ground) -> Attempt {
    let load = ProgramLoad {
        kind: BPF_PROG_TYPE_KPROBE,
        count: 2,
        instructions: NOTHING.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
    };
    let size = size_of::<ProgramLoad>() as libc::c_long;
    let arguments = [BPF_PROG_LOAD, (&raw const load) as libc::c_long, size, 0, 0, 0];
    // SAFETY: all pointers are to what lives until the end of the function. The program is freed with this process.
    allowed_if(unsafe { raw(libc::SYS_bpf, arguments) }, "bpf", &[])
}

/// The first fields of struct perf_event_attr, as of its first version (include/uapi/linux/perf_event.h).
#[repr(C)]
#[derive(Default)]
struct PerfEvent {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    bp_addr: u64,
}

fn perf_event(_: &Ground) -> Attempt {
    let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
    if paranoid.trim().parse::<i32>().is_ok_and(|level| level < 1) {
        let why = "kernel.perf_event_paranoid lets everyone on this node measure".to_owned();
        return Err(Outcome::Unsupported(why));
    }
    // software event 0 is the clock of a processor; bit 0 of the flags: switched off
    let size = size_of::<PerfEvent>() as u32;
    let event = PerfEvent { kind: 1, size, flags: 1, ..PerfEvent::default() };
    let arguments = [(&raw const event) as libc::c_long, -1, 0, -1, 0, 0];
    // SAFETY: the structure is as long as it says and outlives the call. The counter goes with this process.
    allowed_if(unsafe { raw(libc::SYS_perf_event_open, arguments) }, "perf_event_open", &[])
}

fn kernel_log(_: &Ground) -> Attempt {
    // SAFETY: this action takes no buffer.
    allowed_if(unsafe { raw(libc::SYS_syslog, [SYSLOG_ACTION_SIZE_UNREAD, 0, 0, 0, 0, 0]) }, "syslog", &[])
}

#[cfg(target_arch = "x86_64")]
fn io_ports(_: &Ground) -> Attempt {
    // SAFETY: no pointers; the right ends with this process.
    allowed_if(unsafe { raw(libc::SYS_iopl, [3, 0, 0, 0, 0, 0]) }, "iopl", &[])
}

#[cfg(not(target_arch = "x86_64"))]
fn io_ports(_: &Ground) -> Attempt {
    Err(Outcome::Unsupported("this processor has no ports".to_owned()))
}
