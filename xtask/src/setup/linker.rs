//! `bpf-linker`: must work and use the same LLVM major version as rustc, or it cannot read rustc's bitcode.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};

use super::rustc::{Rustc, major};
use crate::{process, workspace::Workspace};

const VERSION: &str = "0.10.3";
/// Releases that know the flags passed here.
const SERIES: &str = "0.10.";
/// The LLVM versions bpf-linker `VERSION` can be built for.
const LLVM_MAJORS: [&str; 3] = ["20", "21", "22"];

/// A `bpf-linker` that fits rustc.
#[derive(Debug)]
pub struct Linker {
    /// The executable.
    pub path: PathBuf,
    version: String,
    llvm: String,
}

impl Linker {
    /// The linker on the path if it fits, else our own, which is built on first use.
    ///
    /// # Errors
    ///
    /// When building fails, or its result does not work.
    pub fn find_or_install(workspace: &Workspace, rustc: &Rustc) -> Result<Self> {
        if let Some(path) = on_path("bpf-linker") {
            match Self::probe(&path, rustc) {
                Ok(linker) => return Ok(linker),
                Err(error) => println!("    not using {}: {error:#}", path.display()),
            }
        }
        let llvm = major(&rustc.llvm);
        let root = workspace.tools().join(format!("bpf-linker-{VERSION}-llvm{llvm}"));
        let path = root.join("bin/bpf-linker");
        if !path.exists() {
            install(workspace, llvm, &root)?;
        }
        Self::probe(&path, rustc).with_context(|| {
            format!("the installed bpf-linker does not work: remove {} and try again", root.display())
        })
    }

    fn probe(path: &Path, rustc: &Rustc) -> Result<Self> {
        let answer = process::stdout(Command::new(path).arg("--version"))?;
        let version = answer.trim().trim_start_matches("bpf-linker ").to_owned();
        if !version.starts_with(SERIES) {
            bail!("it is version {version}, and {SERIES}x is needed");
        }
        // LLVM answers --version itself, before any input is read.
        let mut ask = Command::new(path);
        ask.args(["--llvm-args=--version", "--output=/dev/null", "/dev/null"]);
        let answer = process::stdout(ask.env("LD_LIBRARY_PATH", rustc.lib_dir()).env("RUST_BACKTRACE", "0"))
            .context("it cannot load LLVM")?;
        let llvm =
            llvm_version(&answer).ok_or_else(|| anyhow!("it does not tell its LLVM version: {answer}"))?;
        if major(&llvm) != major(&rustc.llvm) {
            bail!("it uses LLVM {llvm}, and rustc LLVM {}", rustc.llvm);
        }
        Ok(Self { path: path.to_owned(), version, llvm })
    }
}

impl fmt::Display for Linker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bpf-linker {} with LLVM {}: {}", self.version, self.llvm, self.path.display())
    }
}

fn install(workspace: &Workspace, llvm: &str, root: &Path) -> Result<()> {
    if !LLVM_MAJORS.contains(&llvm) {
        bail!(
            "bpf-linker {VERSION} knows LLVM {LLVM_MAJORS:?}, and rustc uses LLVM {llvm}: use the pinned toolchain"
        );
    }
    println!("    building bpf-linker {VERSION} for LLVM {llvm}, about a minute");
    let feature = format!("rust-llvm-{llvm}");
    let mut cargo = workspace.cargo("install");
    cargo.args(["--quiet", "--locked", "--no-track", "--version", VERSION, "--no-default-features"]);
    cargo.args(["--features", &feature, "--root"]).arg(root).arg("bpf-linker");
    // Its own build directory: cargo removes a temporary one by itself.
    process::run(cargo.env_remove("CARGO_TARGET_DIR")).with_context(|| {
        format!(
            "bpf-linker {VERSION} cannot be built here: put a bpf-linker {SERIES}x made for LLVM {llvm} on the PATH"
        )
    })
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

fn llvm_version(answer: &str) -> Option<String> {
    let version = answer.lines().find_map(|line| line.trim().strip_prefix("LLVM version "))?;
    Some(version.split('-').next().unwrap_or(version).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_tells_its_version() {
        let answer =
            "LLVM (http://llvm.org/):\n  LLVM version 22.1.2-rust-1.95.0-stable\n  Optimized build.\n";
        assert_eq!(llvm_version(answer).as_deref(), Some("22.1.2"));
        assert_eq!(llvm_version("usage: bpf-linker"), None);
    }
}
