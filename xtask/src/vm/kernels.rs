//! The kernels there are to boot: Debian's, for clouds, of several suites.
//!
//! Those have what a guest needs to start built in (NVMe, ext4, serial ports), so they boot without an initial
//! RAM disk. Up to 6.18 one package holds kernel and modules; from 6.19 on it is empty and depends on two others.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::debian::{self, DebianMirror};

/// Where kernels are looked for. Between them they have every long-term line since 5.10 but 5.15, and
/// the newest.
const SUITES: [&str; 6] = ["bullseye", "bookworm", "trixie", "trixie-backports", "forky", "sid"];
const PREFIX: &str = "linux-image-";
const FLAVOUR: &str = "-cloud-amd64";
/// The packages with files that are needed, by the beginning of their names.
const PARTS: [&str; 3] = [PREFIX, "linux-binary-", "linux-modules-"];
/// What containers need and Debian does not build in.
const MODULES: [&str; 1] = ["overlay"];

/// A kernel line, such as 6.12.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    major: u32,
    minor: u32,
}

/// The newest kernel of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kernel {
    /// Its line.
    pub(super) line: Line,
    /// As `uname -r` tells it, such as `6.12.107+deb13-cloud-amd64`.
    pub(super) release: String,
    suite: String,
}

/// The files of an unpacked kernel.
#[derive(Debug, Clone)]
pub(super) struct KernelFiles {
    /// What QEMU loads.
    pub(super) image: PathBuf,
    /// The modules to load into it, each possibly compressed.
    pub(super) modules: Vec<PathBuf>,
}

/// The newest kernel of every line in `wanted`; of all lines for `all`.
///
/// # Errors
///
/// When a suite's package list cannot be had, or a line is nowhere.
pub(super) fn find(cache: &Path, wanted: &[String]) -> Result<Vec<Kernel>> {
    let mirror = DebianMirror::new(cache)?;
    let mut found = BTreeMap::new();
    for suite in SUITES {
        collect(suite, &mirror.names(suite, PREFIX)?, &mut found);
    }
    choose(wanted, &found)
}

impl Kernel {
    /// Fetches and unpacks the kernel below `dir`.
    ///
    /// # Errors
    ///
    /// When a package cannot be fetched or has not the files expected.
    pub(super) fn files(&self, cache: &Path, dir: &Path) -> Result<KernelFiles> {
        let package = format!("{PREFIX}{}", self.release);
        let mut packages = DebianMirror::new(cache)?.closure(&self.suite, &[&package])?;
        packages.retain(|name| PARTS.iter().any(|part| *name == format!("{part}{}", self.release)));
        let names: Vec<&str> = packages.iter().map(String::as_str).collect();
        let tree = dir.join(&self.release);
        debian::package_tree(cache, &self.suite, &names, &tree)?;
        let modules = ["usr/lib/modules", "lib/modules"]
            .map(|place| tree.join(place).join(&self.release))
            .into_iter()
            .find(|dir| dir.is_dir())
            .with_context(|| format!("{package} has no modules"))?;
        let image = [tree.join("boot").join(format!("vmlinuz-{}", self.release)), modules.join("vmlinuz")]
            .into_iter()
            .find(|path| path.is_file())
            .with_context(|| format!("{package} has no kernel"))?;
        let mut files = Vec::new();
        for name in MODULES {
            files.extend(module(&modules, name)?);
        }
        Ok(KernelFiles { image, modules: files })
    }
}

impl Line {
    pub(super) const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Adds the kernels among the package `names` of `suite`, keeping the newest of each line.
fn collect(suite: &str, names: &[String], found: &mut BTreeMap<Line, Kernel>) {
    for name in names {
        let Some(release) = name.strip_prefix(PREFIX).filter(|rest| rest.ends_with(FLAVOUR)) else {
            continue;
        };
        let version = numbers(release);
        let [major, minor, _, ..] = version[..] else { continue };
        let line = Line { major, minor };
        if found.get(&line).is_none_or(|known| numbers(&known.release) < version) {
            found.insert(line, Kernel { line, release: release.to_owned(), suite: suite.to_owned() });
        }
    }
}

fn choose(wanted: &[String], found: &BTreeMap<Line, Kernel>) -> Result<Vec<Kernel>> {
    if wanted.iter().any(|name| name == "all") {
        return Ok(found.values().cloned().collect());
    }
    let mut chosen: Vec<Kernel> = Vec::new();
    for name in wanted {
        let kernel = match name.as_str() {
            "newest" => found.values().next_back(),
            _ => found.values().find(|kernel| kernel.line.to_string() == *name),
        };
        let Some(kernel) = kernel else {
            let lines: Vec<_> = found.keys().map(Line::to_string).collect();
            bail!("Debian has no kernel {name}; it has {}", lines.join(", "));
        };
        if !chosen.contains(kernel) {
            chosen.push(kernel.clone());
        }
    }
    Ok(chosen)
}

/// The numbers before the flavour: enough to put the releases of one distribution in order.
fn numbers(release: &str) -> Vec<u32> {
    let version = release.strip_suffix(FLAVOUR).unwrap_or(release);
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// The file of the module `name`, if it is one in this kernel.
fn module(modules: &Path, name: &str) -> Result<Option<PathBuf>> {
    let mut pending = vec![modules.join("kernel")];
    let mut found = Vec::new();
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                pending.push(path);
            } else if file.split_once('.').is_some_and(|(stem, kind)| stem == name && kind.starts_with("ko"))
            {
                found.push(path);
            }
        }
    }
    found.sort_by_key(|path| Reverse(path.as_os_str().len()));
    Ok(found.pop())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> BTreeMap<Line, Kernel> {
        let mut found = BTreeMap::new();
        let bookworm = ["6.1.0-47-cloud-amd64", "6.1.0-50-cloud-amd64", "6.1.0-50-amd64", "cloud-amd64"];
        let backports =
            ["6.12.107+deb13-cloud-amd64", "6.12.94+deb13-cloud-amd64", "7.2.9+deb13-cloud-amd64"];
        for (suite, releases) in [("bookworm", &bookworm[..]), ("trixie", &backports)] {
            let names: Vec<_> = releases.iter().map(|release| format!("{PREFIX}{release}")).collect();
            collect(suite, &names, &mut found);
        }
        collect("sid", &[format!("{PREFIX}7.2.13+deb14-cloud-amd64")], &mut found);
        found
    }

    fn chosen(wanted: &[&str]) -> Result<Vec<(String, String)>> {
        let wanted: Vec<_> = wanted.iter().map(|name| (*name).to_owned()).collect();
        let kernels = choose(&wanted, &found())?;
        Ok(kernels.into_iter().map(|kernel| (kernel.release, kernel.suite)).collect())
    }

    fn pair(release: &str, suite: &str) -> (String, String) {
        (format!("{release}{FLAVOUR}"), suite.to_owned())
    }

    #[test]
    fn the_newest_of_a_line_is_taken_by_number() {
        let expected =
            [pair("6.1.0-50", "bookworm"), pair("6.12.107+deb13", "trixie"), pair("7.2.13+deb14", "sid")];
        assert_eq!(chosen(&["all"]).unwrap(), expected);
        assert_eq!(chosen(&["newest", "7.2", "6.1"]).unwrap(), [expected[2].clone(), expected[0].clone()]);
    }

    #[test]
    fn what_does_not_exist_is_named_with_what_does() {
        let error = chosen(&["6.5"]).unwrap_err().to_string();
        assert!(error.contains("6.5") && error.contains("6.1, 6.12, 7.2"), "{error}");
    }
}
