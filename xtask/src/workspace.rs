//! Where things are, and `cargo` as the steps call it.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

/// Names the eBPF object the agent's build script embeds.
pub const EBPF_OBJECT: &str = "USERNS_EBPF_OBJECT";

/// The checkout and its build directory.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

/// How the agent is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Optimised, as it is deployed.
    Release,
    /// Unoptimised, with the debug logs of the eBPF programs.
    Debug,
}

impl Workspace {
    /// The workspace this program was built from; `CARGO_TARGET_DIR` overrides its `target`.
    ///
    /// # Errors
    ///
    /// When `CARGO_TARGET_DIR` cannot be made absolute.
    pub fn locate() -> Result<Self> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = package.parent().context("the package xtask lies in a workspace")?.to_owned();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => std::path::absolute(dir).context("cannot resolve CARGO_TARGET_DIR")?,
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// The directory of the workspace's `Cargo.toml`.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The build directory.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Tools fetched by `setup`, and caches of downloads.
    #[must_use]
    pub fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// Build directory of the eBPF programs, apart because their flags differ.
    #[must_use]
    pub fn ebpf_target(&self) -> PathBuf {
        self.target.join("bpf")
    }

    /// The agent's executable.
    #[must_use]
    pub fn agent(&self, profile: Profile) -> PathBuf {
        let dir = match profile {
            Profile::Release => "release",
            Profile::Debug => "debug",
        };
        self.target.join(dir).join("userns-agent")
    }

    /// `cargo <subcommand>` in the workspace's root.
    ///
    /// Without [`EBPF_OBJECT`], whatever the caller's environment holds: only a build step sets it.
    #[must_use]
    pub fn cargo(&self, subcommand: &str) -> Command {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let mut command = Command::new(cargo);
        command
            .arg(subcommand)
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", &self.target)
            .env_remove(EBPF_OBJECT);
        command
    }
}
