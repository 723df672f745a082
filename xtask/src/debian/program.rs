//! Programs that the machine may lack, run out of unpacked packages with their own libraries.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{DebianMirror, package_tree};

/// The only architecture whose packages are run here.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";

/// A program of this machine, or of a package that is not installed.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    tree: Option<PathBuf>,
}

impl Program {
    /// A program of this machine, found on the `PATH` or where only root's `PATH` leads.
    #[must_use]
    pub fn on_machine(name: &str) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
        let path = dirs.map(|dir| dir.join(name)).find(|file| file.is_file())?;
        Some(Self { path, tree: None })
    }

    /// The file `name` of `package`, in a tree `dest` of it and of those packages it depends on that `needed`
    /// accepts. The loader and the C library are the suite's too, so the suite need not be the machine's.
    ///
    /// # Errors
    ///
    /// When a package cannot be fetched, or the program is not in it.
    pub fn packaged(
        cache: &Path,
        suite: &str,
        package: &str,
        needed: impl Fn(&str) -> bool,
        (dest, name): (&Path, &str),
    ) -> Result<Self> {
        let mut packages = DebianMirror::new(cache)?.closure(suite, &[package])?;
        packages.retain(|name| name == package || needed(name));
        let names: Vec<&str> = packages.iter().map(String::as_str).collect();
        package_tree(cache, suite, &names, dest)?;
        let path = ["usr/bin", "usr/sbin", "bin", "sbin"]
            .iter()
            .map(|dir| dest.join(dir).join(name))
            .find(|path| path.is_file())
            .with_context(|| format!("the package {package} of {suite} has no {name}"))?;
        Ok(Self { path, tree: Some(dest.to_owned()) })
    }

    /// Where the packages of the program are unpacked, if they are.
    #[must_use]
    pub fn tree(&self) -> Option<&Path> {
        self.tree.as_deref()
    }

    /// The directories of `tree` with shared libraries.
    #[must_use]
    pub fn library_dirs(tree: &Path) -> Vec<PathBuf> {
        let mut dirs: Vec<_> = ["usr", ""].map(|prefix| tree.join(prefix).join(LIBRARIES)).into();
        dirs.retain(|dir| dir.is_dir());
        dirs
    }

    /// The command that starts the program.
    ///
    /// # Errors
    ///
    /// When its packages have no dynamic loader.
    pub fn command(&self) -> Result<Command> {
        let Some(tree) = &self.tree else { return Ok(Command::new(&self.path)) };
        let dirs = Self::library_dirs(tree);
        let loader = dirs
            .iter()
            .map(|dir| dir.join(LOADER))
            .find(|loader| loader.is_file())
            .with_context(|| format!("no {LOADER} below {}", tree.display()))?;
        let path = dirs.iter().map(|dir| dir.as_os_str()).collect::<Vec<_>>().join(OsStr::new(":"));
        let mut command = Command::new(loader);
        command.arg("--library-path").arg(path).arg(&self.path);
        Ok(command)
    }
}
