//! How much work the programs were for the kernel's verifier.

use aya::Ebpf;

/// Each loaded program with the number of instructions that the verifier went through for it, on all paths together:
/// what decides over start-up time, and about being refused when it reaches the kernel's limit of a million.
/// Kernels before 5.16 do not tell, and programs that are not loaded have none.
#[must_use]
pub fn instructions(ebpf: &Ebpf) -> Vec<(String, u32)> {
    let count = |program: &aya::programs::Program| program.info().ok()?.verified_instruction_count();
    ebpf.programs().filter_map(|(name, program)| Some((name.to_owned(), count(program)?))).collect()
}
