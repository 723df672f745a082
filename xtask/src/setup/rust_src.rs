//! The source of Rust's standard library, of exactly the compiler's version.
//!
//! Sought in this order: the toolchain, an earlier fetch, `rustup`, the `rust-src` package of a Debian suite. A
//! fetched copy stays below the build directory and the toolchain is left alone: `cargo` is pointed at the copy
//! with a variable made for its own test suite (`library_env`).

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow};

use super::rustc::Rustc;
use crate::{
    debian::{self, DebianMirror},
    process,
    workspace::Workspace,
};

/// Suites that carry newer compilers than a stable release, tried after the machine's own.
const SUITES: [&str; 4] = ["trixie-backports", "forky", "sid", "experimental"];

/// Where `library/` is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// In the toolchain, where cargo looks by itself.
    Toolchain(PathBuf),
    /// In a directory of ours.
    Private(PathBuf),
}

impl Source {
    /// Finds the source, or fetches it.
    ///
    /// # Errors
    ///
    /// When no place has this version; the message says what to install.
    pub fn find_or_fetch(workspace: &Workspace, rustc: &Rustc) -> Result<Self> {
        let _lock = debian::lock(&workspace.tools())?;
        let toolchain = rustc.sysroot.join("lib/rustlib/src/rust/library");
        if is_library(&toolchain) {
            return Ok(Self::Toolchain(toolchain));
        }
        let private = workspace.tools().join(format!("rust-src-{}", rustc.release));
        if is_library(&private.join("library")) {
            return Ok(Self::Private(private.join("library")));
        }
        println!("    {} is missing", toolchain.display());
        println!(
            "    asking rustup to add it to the toolchain (undo with: rustup component remove rust-src)"
        );
        let rustup = process::stdout(Command::new("rustup").args(["component", "add", "rust-src"]));
        if rustup.is_ok() && is_library(&toolchain) {
            return Ok(Self::Toolchain(toolchain));
        }
        println!("    rustup cannot; looking for Debian's package rust-src {}", rustc.release);
        fetch(workspace, rustc, &private).with_context(|| {
            format!(
                "the source of the standard library of Rust {} is needed: install it with \
                 `rustup component add rust-src`, or put its directory `library` at {}",
                rustc.release,
                private.join("library").display()
            )
        })?;
        Ok(Self::Private(private.join("library")))
    }

    /// The environment variable, if any, that makes cargo's `-Z build-std` find the source.
    #[must_use]
    pub fn library_env(&self) -> Option<(&'static str, &Path)> {
        match self {
            Self::Toolchain(_) => None,
            Self::Private(library) => Some(("__CARGO_TESTS_ONLY_SRC_ROOT", library)),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Toolchain(path) => write!(f, "the toolchain's: {}", path.display()),
            Self::Private(path) => write!(f, "a private copy: {}", path.display()),
        }
    }
}

fn fetch(workspace: &Workspace, rustc: &Rustc, dest: &Path) -> Result<()> {
    let mirror = DebianMirror::new(&workspace.tools().join("apt"))?;
    let (suite, version) = find_suite(&mirror, &rustc.release)?;
    println!("    downloading rust-src {version} of {suite}");
    let deb = mirror.fetch(&suite, "rust-src", &version)?;
    let unpacked = debian::fresh_sibling(dest, "unpacked")?;
    debian::unpack(&deb, &unpacked)?;
    let library = ["usr/src/rustc-VERSION/library", "usr/lib/rustlib/src/rust/library"]
        .map(|place| unpacked.join(place.replace("VERSION", &rustc.release)))
        .into_iter()
        .find(|library| is_library(library))
        .ok_or_else(|| anyhow!("{} holds no library/", deb.display()))?;
    let partial = debian::fresh_sibling(dest, "partial")?;
    fs::rename(&library, partial.join("library"))
        .with_context(|| format!("cannot move {}", library.display()))?;
    debian::publish(&partial, dest)?;
    // The rest of the compiler's source, six times as large.
    fs::remove_dir_all(&unpacked).with_context(|| format!("cannot remove {}", unpacked.display()))
}

fn find_suite(mirror: &DebianMirror, release: &str) -> Result<(String, String)> {
    let own = debian::own_suite()?;
    let mut suites = vec![own.clone(), format!("{own}-backports")];
    suites.extend(SUITES.map(str::to_owned).into_iter().filter(|suite| *suite != format!("{own}-backports")));
    let mut seen = Vec::new();
    for suite in suites {
        match mirror.versions(&suite, "rust-src") {
            Ok(versions) => {
                if let Some(version) = versions.iter().find(|version| is_release(version, release)) {
                    return Ok((suite, version.clone()));
                }
                seen.push(format!("{suite} has {}", versions.join(", ")));
            }
            Err(error) => {
                let cause = error.root_cause().to_string();
                seen.push(format!("{suite}: {}", cause.lines().last().unwrap_or_default()));
            }
        }
    }
    Err(anyhow!("no Debian suite has rust-src {release}\n  {}", seen.join("\n  ")))
}

/// Whether a package version such as `1.95.0+dfsg1-2` packs this release.
fn is_release(version: &str, release: &str) -> bool {
    version.strip_prefix(release).is_some_and(|rest| rest.starts_with(['+', '-']))
}

fn is_library(path: &Path) -> bool {
    path.join("core/Cargo.toml").is_file() && path.join("Cargo.lock").is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_release_fits() {
        assert!(is_release("1.95.0+dfsg1-2~bpo13+1", "1.95.0"));
        assert!(is_release("1.95.0-1", "1.95.0"));
        assert!(!is_release("1.95.01-1", "1.95.0"));
        assert!(!is_release("1.96.0+dfsg1-1", "1.95.0"));
    }

    #[test]
    fn cargo_is_told_about_a_private_copy_only() {
        let path = PathBuf::from("/tools/library");
        assert_eq!(Source::Toolchain(path.clone()).library_env(), None);
        assert!(Source::Private(path).library_env().is_some());
    }
}
