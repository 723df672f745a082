//! `cargo xtask setup`: finds or fetches what a build needs, below the build directory.
//!
//! Nothing of the machine is changed, except that a missing `rust-src` is first asked of `rustup`.

use std::process::Command;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::{process, steps::Steps, workspace::Workspace};

pub mod linker;
pub mod rust_src;
pub mod rustc;

/// What the tools are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Purpose {
    /// Building the eBPF programs and the agent.
    Build,
    /// Building, and every check of `cargo xtask test`.
    Test,
}

/// What building eBPF programs takes.
#[derive(Debug)]
pub struct Toolchain {
    /// The compiler.
    pub rustc: rustc::Rustc,
    /// Links LLVM bitcode into a BPF object.
    pub linker: linker::Linker,
    /// Where the source of `core` is.
    pub source: rust_src::Source,
}

/// Finds or fetches every tool; a second run only verifies.
///
/// # Errors
///
/// When a tool can neither be found nor fetched; the message says what to install.
pub fn setup(steps: &mut Steps, workspace: &Workspace, purpose: Purpose) -> Result<Toolchain> {
    let rustc = steps.step("rustc", "compiles everything; its LLVM decides which linker fits", || {
        let rustc = rustc::Rustc::detect()?;
        println!("    {rustc}");
        Ok(rustc)
    })?;
    let linker = steps.step("bpf-linker", "links the eBPF programs with rustc's LLVM version", || {
        let linker = linker::Linker::find_or_install(workspace, &rustc)?;
        println!("    {linker}");
        Ok(linker)
    })?;
    let source = steps.step("rust-src", "BPF targets ship no libcore: it is compiled from source", || {
        let source = rust_src::Source::find_or_fetch(workspace, &rustc)?;
        println!("    {source}");
        Ok(source)
    })?;
    if purpose == Purpose::Test {
        steps.step("test tools", "format, lint and fuzzing need them", || check_test_tools(workspace))?;
    }
    Ok(Toolchain { rustc, linker, source })
}

fn check_test_tools(workspace: &Workspace) -> Result<()> {
    for (tool, hint) in [("fmt", "rustup component add rustfmt"), ("clippy", "rustup component add clippy")] {
        process::stdout(workspace.cargo(tool).arg("--version"))
            .with_context(|| format!("cargo {tool} is missing: {hint}"))?;
    }
    process::stdout(Command::new("c++").arg("--version"))
        .context("no C++ compiler, which libFuzzer is built with: install g++ or clang")?;
    Ok(())
}
