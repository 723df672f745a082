//! runc and crun out of Debian packages, with the libraries this machine lacks and a busybox for the containers.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::namespace::MountNamespace;
use crate::{debian, process};

const PACKAGES: [&str; 3] = ["runc", "crun", "busybox-static"];
/// Each round finds what the libraries of the round before need themselves.
const LIBRARY_ROUNDS: usize = 5;

/// Which OCI runtime.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuntimeName {
    /// The reference implementation.
    #[default]
    Runc,
    /// The one written in C, that CRI-O uses.
    Crun,
}

impl RuntimeName {
    /// Both, in the order tests go through them.
    pub const ALL: [Self; 2] = [Self::Runc, Self::Crun];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
        }
    }
}

impl fmt::Display for RuntimeName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// One OCI runtime.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Which one.
    pub name: RuntimeName,
    /// As the program itself tells it, such as `1.1.5+ds1`.
    pub version: String,
    /// The executable. It may need the libraries beside it: a [`super::Lab`] arranges for that.
    pub path: PathBuf,
}

/// The runtimes of one Debian suite.
#[derive(Debug, Clone)]
pub struct Runtimes {
    /// runc.
    pub runc: Runtime,
    /// crun.
    pub crun: Runtime,
    /// The packages' files: executables and libraries below one root.
    pub(super) tree: PathBuf,
}

impl Runtimes {
    /// Fetches the runtimes of the Debian release `suite`, which need not be the machine's, below `cache`.
    ///
    /// # Errors
    ///
    /// When a package cannot be fetched, a runtime does not run, or the caller is not root.
    pub fn provision(cache: &Path, suite: &str) -> Result<Self> {
        fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
        let cache = fs::canonicalize(cache).with_context(|| format!("cannot resolve {}", cache.display()))?;
        let mut packages: BTreeSet<String> = PACKAGES.map(str::to_owned).into();
        for round in 0..LIBRARY_ROUNDS {
            let tree = cache.join("runtimes").join(format!("{suite}-{round}"));
            let names: Vec<&str> = packages.iter().map(String::as_str).collect();
            debian::package_tree(&cache, suite, &names, &tree)?;
            let namespace = MountNamespace::new(&tree)?;
            let missing = missing_packages(&namespace, &tree)?;
            if missing.is_empty() {
                return Self::in_tree(&namespace, tree);
            }
            if missing.is_subset(&packages) {
                bail!("the packages {missing:?} of {suite} do not satisfy the runtimes");
            }
            packages.extend(missing);
        }
        bail!("no end of the libraries that the runtimes of {suite} need: {packages:?}")
    }

    /// The runtimes whose packages are unpacked in `tree`; what libraries they need is there or on the machine.
    ///
    /// # Errors
    ///
    /// When one is missing or does not run, or the caller is not root.
    pub fn open(tree: &Path) -> Result<Self> {
        Self::in_tree(&MountNamespace::new(tree)?, tree.to_owned())
    }

    fn in_tree(namespace: &MountNamespace, tree: PathBuf) -> Result<Self> {
        let [runc, crun] = RuntimeName::ALL.map(|name| {
            let path = executable(&tree, name.as_str())?;
            let text = process::stdout(namespace.command(&path).arg("--version"))?;
            let version = version(&text).with_context(|| format!("{name} tells no version: {text:?}"))?;
            Ok::<_, anyhow::Error>(Runtime { name, version, path })
        });
        Ok(Self { runc: runc?, crun: crun?, tree })
    }

    /// The runtime called `name`.
    #[must_use]
    pub const fn get(&self, name: RuntimeName) -> &Runtime {
        match name {
            RuntimeName::Runc => &self.runc,
            RuntimeName::Crun => &self.crun,
        }
    }

    pub(super) fn busybox(&self) -> Result<PathBuf> {
        executable(&self.tree, "busybox")
    }
}

fn executable(tree: &Path, name: &str) -> Result<PathBuf> {
    ["usr/sbin", "usr/bin", "sbin", "bin"]
        .iter()
        .map(|directory| tree.join(directory).join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("no {name} below {}", tree.display()))
}

fn missing_packages(namespace: &MountNamespace, tree: &Path) -> Result<BTreeSet<String>> {
    let mut missing = BTreeSet::new();
    for name in RuntimeName::ALL {
        // Its exit status tells nothing here: 1 when a version is missing, 0 when a library is.
        let output = namespace
            .command("ldd")
            .arg(executable(tree, name.as_str())?)
            .output()
            .context("cannot run ldd: install the package libc-bin")?;
        missing.extend(missing_libraries(&String::from_utf8_lossy(&output.stdout)));
        missing.extend(missing_libraries(&String::from_utf8_lossy(&output.stderr)));
    }
    Ok(missing.iter().filter_map(|library| package_of(library)).collect())
}

/// The libraries that `ldd` found missing or too old.
fn missing_libraries(ldd: &str) -> BTreeSet<String> {
    ldd.lines()
        .filter(|line| line.contains("not found"))
        .filter_map(|line| {
            // `libyajl.so.2 => not found`, or `crun: /lib/libc.so.6: version `GLIBC_2.38' not found (required by …)`
            let library = match line.split_once(" => ") {
                Some((library, _)) => library,
                None => line.split(": ").nth(1)?,
            };
            Some(library.trim().rsplit('/').next()?.to_owned())
        })
        .collect()
}

/// The package of a shared library, by Debian's naming rule: `libfoo.so.2` is in `libfoo2`, `libfoo3.so.2` in
/// `libfoo3-2`.
fn package_of(library: &str) -> Option<String> {
    let (name, version) = library.split_once(".so.")?;
    let separator = if name.ends_with(|last: char| last.is_ascii_digit()) { "-" } else { "" };
    Some(format!("{name}{separator}{version}").to_lowercase().replace('_', "-"))
}

/// The last word of the first line of `--version`, as in `runc version 1.1.5+ds1`.
fn version(text: &str) -> Option<String> {
    Some(text.lines().next()?.split_whitespace().next_back()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_names_missing_and_outdated_libraries() {
        let ldd = "\tlinux-vdso.so.1 (0x00007fd0de850000)\n\
                   \tlibcap.so.2 => /lib/x86_64-linux-gnu/libcap.so.2 (0x00007fd0de6c9000)\n\
                   \tlibyajl.so.2 => not found\n\
                   ./crun: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by ./crun)\n";
        let expected = ["libc.so.6", "libyajl.so.2"].map(str::to_owned);
        assert_eq!(missing_libraries(ldd), BTreeSet::from(expected));
    }

    #[test]
    fn packages_follow_the_library_names() {
        for (library, package) in [
            ("libyajl.so.2", "libyajl2"),
            ("libjson-c.so.5", "libjson-c5"),
            ("libblake3.so.0", "libblake3-0"),
            ("libc.so.6", "libc6"),
        ] {
            assert_eq!(package_of(library).as_deref(), Some(package));
        }
    }

    #[test]
    fn versions_of_both_runtimes() {
        assert_eq!(version("runc version 1.1.5+ds1\nspec: 1.0.2-dev\n").as_deref(), Some("1.1.5+ds1"));
        assert_eq!(version("crun version 1.28\ncommit: 0\n").as_deref(), Some("1.28"));
    }
}
