//! `cargo xtask build-ebpf` and `build`: the eBPF object, then the agent with that object inside.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    process,
    setup::{self, Purpose, Toolchain},
    steps::Steps,
    workspace::{EBPF_OBJECT, Profile, Workspace},
};

const TARGET: &str = "bpfel-unknown-none";

/// Builds the eBPF object and returns its path.
///
/// # Errors
///
/// When a tool is missing or the programs do not compile.
pub fn ebpf(
    steps: &mut Steps,
    workspace: &Workspace,
    toolchain: &Toolchain,
    profile: Profile,
) -> Result<PathBuf> {
    steps.step("build-ebpf", "compiles the kernel side into one BPF object", || {
        process::run(&mut ebpf_command(workspace, toolchain, profile)?)?;
        let object = workspace.ebpf_target().join(TARGET).join("release/userns");
        let bytes = fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
        if !bytes.starts_with(b"\x7fELF") {
            bail!("{} is no ELF object", object.display());
        }
        println!("    {} ({} bytes)", object.display(), bytes.len());
        Ok(object)
    })
}

/// Builds the agent around `object` and returns its path. A release needs no library of the node that it runs on.
///
/// # Errors
///
/// When the agent does not compile.
pub fn agent(steps: &mut Steps, workspace: &Workspace, object: &Path, profile: Profile) -> Result<PathBuf> {
    steps.step("build agent", "compiles the user side and embeds the BPF object", || {
        let mut cargo = workspace.cargo("rustc");
        cargo.args(["--package", "userns-agent", "--bin", "userns-agent"]).env(EBPF_OBJECT, object);
        if profile == Profile::Release {
            cargo.args(["--release", "--", "-C", "target-feature=+crt-static"]);
        }
        process::run(&mut cargo)?;
        let agent = workspace.agent(profile);
        println!("    {}", agent.display());
        Ok(agent)
    })
}

/// All of it: tools, object, agent.
///
/// # Errors
///
/// Those of the steps.
pub fn all(steps: &mut Steps, workspace: &Workspace, profile: Profile) -> Result<PathBuf> {
    let toolchain = setup::setup(steps, workspace, Purpose::Build)?;
    let object = ebpf(steps, workspace, &toolchain, profile)?;
    agent(steps, workspace, &object, profile)
}

fn ebpf_command(workspace: &Workspace, toolchain: &Toolchain, profile: Profile) -> Result<Command> {
    let mut cargo = workspace.cargo("build");
    cargo.args(["--release", "--package", "userns-ebpf", "--bins", "--target", TARGET, "-Zbuild-std=core"]);
    cargo.arg("--target-dir").arg(workspace.ebpf_target());
    if profile == Profile::Debug {
        cargo.args(["--features", "log"]);
    }
    let arch = match env::consts::ARCH {
        arch @ ("x86_64" | "aarch64") => arch,
        other => bail!("no eBPF programs for {other}: x86_64 and aarch64 are supported"),
    };
    let linker = toolchain.linker.path.display();
    let flags = [
        &format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2",
        &format!("-Clinker={linker}"),
        "-Clink-arg=--btf",
    ];
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    // `-Z` on a stable compiler. On this one child only: build scripts elsewhere would take it for nightly.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    cargo.envs(toolchain.source.library_env());
    // bpf-linker loads LLVM from here.
    cargo.env("LD_LIBRARY_PATH", library_path(&toolchain.rustc.lib_dir())?);
    Ok(cargo)
}

fn library_path(first: &Path) -> Result<std::ffi::OsString> {
    let rest = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let dirs = std::iter::once(first.to_owned()).chain(env::split_paths(&rest));
    env::join_paths(dirs).context("a directory of LD_LIBRARY_PATH has a colon in its name")
}
