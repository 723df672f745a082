//! The agent compiles for the other architecture that nodes have. Nothing is linked, so no C toolchain is needed.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{process, setup::Toolchain, steps::Steps, workspace::Workspace};

const TARGET: &str = "aarch64-unknown-linux-gnu";

/// Checks what runs on nodes for 64-bit ARM.
///
/// The target's standard library is asked of `rustup`. Where there is none, it is compiled from source, as other
/// distributors' copies are of compilers of their own.
///
/// # Errors
///
/// When something does not compile.
pub(super) fn check(steps: &mut Steps, workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    steps.step("aarch64", "the agent compiles for 64-bit ARM", || {
        let library = toolchain.rustc.sysroot.join("lib/rustlib").join(TARGET).join("lib");
        if !library.is_dir() {
            println!("    asking rustup to add {TARGET} (undo with: rustup target remove {TARGET})");
            // What it says does not matter: whether the library is there does.
            let _ = process::stdout(Command::new("rustup").args(["target", "add", TARGET]));
        }
        let mut cargo = workspace.cargo("check");
        cargo.args(["--package", "userns-agent", "--package", "userns-common", "--target", TARGET]);
        // A library has parts in C and assembly. As nothing is linked, nothing has to come of compiling them.
        for tool in ["CC", "AR"] {
            cargo.env(format!("{tool}_{}", TARGET.replace('-', "_")), "true");
        }
        if !library.is_dir() {
            println!("    rustup cannot; compiling the standard library as well");
            cargo.arg("-Zbuild-std").env("RUSTC_BOOTSTRAP", "1").envs(toolchain.source.library_env());
        }
        process::run(&mut cargo).with_context(|| format!("the agent does not compile for {TARGET}"))
    })
}
