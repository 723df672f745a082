//! The Rust compiler in use and the LLVM inside it.

use std::{fmt, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::process;

/// What `rustc -vV` and `--print sysroot` say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rustc {
    /// Version number, such as `1.95.0`.
    pub release: String,
    /// Target triple of this machine.
    pub host: String,
    /// Version of LLVM, such as `22.1.2`.
    pub llvm: String,
    /// Where the toolchain is installed.
    pub sysroot: PathBuf,
}

impl Rustc {
    /// Asks the `rustc` on the path.
    ///
    /// # Errors
    ///
    /// When there is none or its answer is not understood.
    pub fn detect() -> Result<Self> {
        let hint = "rustc does not work: install Rust with rustup";
        let version = process::stdout(Command::new("rustc").arg("-vV")).context(hint)?;
        let sysroot = process::stdout(Command::new("rustc").args(["--print", "sysroot"])).context(hint)?;
        Self::parse(&version, sysroot.trim_end())
    }

    /// The directory of rustc's own shared libraries, LLVM among them.
    #[must_use]
    pub fn lib_dir(&self) -> PathBuf {
        self.sysroot.join("lib")
    }

    fn parse(version: &str, sysroot: &str) -> Result<Self> {
        let field = |key: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
                .map(str::to_owned)
                .with_context(|| format!("rustc -vV has no line {key:?}:\n{version}"))
        };
        Ok(Self {
            release: field("release")?,
            host: field("host")?,
            llvm: field("LLVM version")?,
            sysroot: PathBuf::from(sysroot),
        })
    }
}

impl fmt::Display for Rustc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rustc {} with LLVM {} for {}", self.release, self.llvm, self.host)
    }
}

/// The first number of a dotted version.
#[must_use]
pub fn major(version: &str) -> &str {
    version.split('.').next().unwrap_or(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\n\
                          host: x86_64-unknown-linux-gnu\nrelease: 1.95.0\nLLVM version: 22.1.2\n";

    #[test]
    fn fields_are_found() {
        let rustc = Rustc::parse(ANSWER, "/toolchain").expect("the answer is complete");
        assert_eq!(rustc.to_string(), "rustc 1.95.0 with LLVM 22.1.2 for x86_64-unknown-linux-gnu");
        assert_eq!(major(&rustc.llvm), "22");
    }

    #[test]
    fn a_missing_field_is_named() {
        let error = Rustc::parse("release: 1.95.0\n", "/toolchain").expect_err("host is missing");
        assert!(error.to_string().contains("host"), "{error}");
    }
}
