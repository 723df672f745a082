//! What the kernel tells of the loaded programs.

use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::Ebpf;

/// A loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its name in the object.
    pub name: String,
    /// Instructions that the verifier went through for it, on all paths together: what decides over start-up time,
    /// and about being refused when it reaches the kernel's limit of a million. `None` of kernels before 5.16.
    pub verified: Option<u64>,
    /// Times that the kernel did not run it, because it was preempted on the same CPU while it ran for another task
    /// (`recursion_misses`, kernel/bpf/trampoline.c). What was missed is found at the task's next hook or by the sweep.
    pub missed: u64,
}

/// Every loaded program.
#[must_use]
pub fn loaded(ebpf: &Ebpf) -> Vec<Program> {
    let info = |program: &aya::programs::Program| {
        let fd = program.fd().ok()?.as_fd().as_raw_fd();
        std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()
    };
    ebpf.programs().filter_map(|(name, program)| Some(parse(name, &info(program)?))).collect()
}

/// Reads `/proc/PID/fdinfo/FD` of a program (kernel/bpf/syscall.c, `bpf_prog_show_fdinfo`).
fn parse(name: &str, info: &str) -> Program {
    let field = |name: &str| {
        let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.and_then(|value| value.trim().parse().ok())
    };
    Program {
        name: name.to_owned(),
        verified: field("verified_insns"),
        missed: field("recursion_misses").unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_by_name() {
        let info = "pos:\t0\nprog_type:\t26\nrun_cnt:\t9\nrecursion_misses:\t3\nverified_insns:\t164\n";
        let program = parse("x", info);
        assert_eq!((program.verified, program.missed), (Some(164), 3));
        assert_eq!(parse("x", "prog_type:\t26\n").verified, None);
    }
}
