//! Files out of Debian packages, without installing anything.
//!
//! apt does the work, with lists, cache and sources of its own below a cache directory, so the machine's
//! package state is neither read nor changed. Only the mirror's address, its network settings and the archive
//! keyring are the machine's.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::process;

mod program;
mod sources;

pub use program::Program;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const STAMP: &str = ".packages";
/// Names of the files a suite's private apt reads.
const SOURCES: &str = "mirror.sources";
const STATUS: &str = "status";

/// Unpacks `packages` of `suite` (exactly those: no dependency is resolved) into the new directory `dest`.
///
/// `dest` appears complete or not at all. Its file `.packages` lists suite, packages and versions; when that
/// already names the same suite and packages, nothing is done.
///
/// # Errors
///
/// When this is no Debian machine, or a package cannot be found, downloaded or unpacked.
pub fn package_tree(cache: &Path, suite: &str, packages: &[&str], dest: &Path) -> Result<()> {
    let _lock = lock(cache)?;
    if fs::read_to_string(dest.join(STAMP)).is_ok_and(|stamp| is_stamp_of(&stamp, suite, packages)) {
        return Ok(());
    }
    println!("    fetching Debian packages of {suite}: {}", packages.join(", "));
    let mirror = DebianMirror::new(cache)?;
    let versions = mirror.newest(suite, packages)?;
    let wanted: Vec<_> = packages.iter().copied().zip(versions.iter().map(String::as_str)).collect();
    let debs = mirror.fetch_all(suite, &wanted)?;
    let partial = fresh_sibling(dest, "partial")?;
    for deb in &debs {
        unpack(deb, &partial)?;
    }
    let lines: String = wanted.iter().map(|(package, version)| format!("{package} {version}\n")).collect();
    let stamp = format!("{suite}\n{lines}");
    fs::write(partial.join(STAMP), stamp).with_context(|| format!("cannot stamp {}", partial.display()))?;
    publish(&partial, dest)
}

/// The code name of the Debian release this machine runs, such as `bookworm`.
///
/// # Errors
///
/// When this is no Debian machine.
pub fn own_suite() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    sources::debian_codename(&release).ok_or_else(|| {
        anyhow!(
            "/etc/os-release describes no Debian release: this step takes files from Debian packages and needs \
             a Debian machine or container with apt-get, dpkg-deb and the package debian-archive-keyring"
        )
    })
}

/// Unpacks the package file `deb` into `dest`, over what is there.
///
/// # Errors
///
/// When `dpkg-deb` is missing or fails.
pub fn unpack(deb: &Path, dest: &Path) -> Result<()> {
    process::run(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(dest))
        .with_context(|| format!("cannot unpack {} into {}", deb.display(), dest.display()))
}

/// Moves the finished directory `partial` to `dest`, replacing an older one.
pub(crate) fn publish(partial: &Path, dest: &Path) -> Result<()> {
    if dest.exists() {
        fs::remove_dir_all(dest).with_context(|| format!("cannot remove the outdated {}", dest.display()))?;
    }
    fs::rename(partial, dest)
        .with_context(|| format!("cannot move {} to {}", partial.display(), dest.display()))
}

/// An empty directory beside `path`, so on its file system; what an interrupted run left there is removed.
pub(crate) fn fresh_sibling(path: &Path, suffix: &str) -> Result<PathBuf> {
    let name = path.file_name().with_context(|| format!("{} has no last component", path.display()))?;
    let sibling = path.with_file_name(format!("{}.{suffix}", name.to_string_lossy()));
    if sibling.exists() {
        fs::remove_dir_all(&sibling).with_context(|| format!("cannot remove {}", sibling.display()))?;
    }
    fs::create_dir_all(&sibling).with_context(|| format!("cannot create {}", sibling.display()))?;
    Ok(sibling)
}

/// Waits until no other process fetches into `dir`; the lock lasts as long as the returned file.
pub(crate) fn lock(dir: &Path) -> Result<File> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

fn is_stamp_of(stamp: &str, suite: &str, packages: &[&str]) -> bool {
    let mut lines = stamp.lines();
    let same_suite = lines.next() == Some(suite);
    same_suite && lines.map(|line| line.split(' ').next().unwrap_or_default()).eq(packages.iter().copied())
}

/// The Debian mirror this machine is configured for, read through private package lists.
#[derive(Debug)]
pub struct DebianMirror {
    cache: PathBuf,
    uri: String,
}

impl DebianMirror {
    /// A mirror that keeps its lists and downloads below `cache`.
    ///
    /// # Errors
    ///
    /// When this is no Debian machine, or a tool, the keyring or the mirror's address is missing.
    pub fn new(cache: &Path) -> Result<Self> {
        let suite = own_suite()?;
        for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
            process::stdout(Command::new(tool).arg("--version"))
                .with_context(|| format!("{tool} does not work: install the packages apt and dpkg"))?;
        }
        if !Path::new(KEYRING).exists() {
            bail!("{KEYRING} is missing: install the package debian-archive-keyring");
        }
        let uri =
            sources::mirror_uri(&sources::read_all(Path::new("/etc/apt"))?, &suite).ok_or_else(|| {
                anyhow!(
                    "no entry below /etc/apt names a mirror of the suite {suite}: add one to sources.list.d"
                )
            })?;
        fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
        let cache = fs::canonicalize(cache).with_context(|| format!("cannot resolve {}", cache.display()))?;
        Ok(Self { cache, uri })
    }

    /// The versions of `package` in `suite`, newest first; empty when it has none.
    ///
    /// # Errors
    ///
    /// When the suite's package list cannot be had.
    pub fn versions(&self, suite: &str, package: &str) -> Result<Vec<String>> {
        self.load(suite)?;
        let table = process::stdout(self.apt("apt-cache", suite)?.args(["madison", package]))?;
        Ok(sources::madison_versions(&table))
    }

    /// The path of the package file, downloaded when it is not in the cache yet.
    ///
    /// # Errors
    ///
    /// When the mirror does not have that version.
    pub fn fetch(&self, suite: &str, package: &str, version: &str) -> Result<PathBuf> {
        let [deb] = <[PathBuf; 1]>::try_from(self.fetch_all(suite, &[(package, version)])?)
            .map_err(|debs| anyhow!("one package became {} files", debs.len()))?;
        Ok(deb)
    }

    /// The package files of the `wanted` packages and versions, in that order; see [`Self::fetch`].
    fn fetch_all(&self, suite: &str, wanted: &[(&str, &str)]) -> Result<Vec<PathBuf>> {
        let debs = self.suite_dir(suite).join("debs");
        fs::create_dir_all(&debs).with_context(|| format!("cannot create {}", debs.display()))?;
        let names = wanted.iter().map(|(package, version)| format!("{package}={version}"));
        let names: Vec<String> = names.collect();
        let download = || {
            let mut apt = self.apt("apt-get", suite)?;
            process::stdout(apt.args(["download", "--quiet"]).args(&names).current_dir(&debs))
        };
        // A mirror drops superseded files: an index older than the mirror then leads to a 404.
        if download().is_err() {
            self.refresh(suite)?;
            download().with_context(|| format!("cannot download {} of {suite}", names.join(", ")))?;
        }
        let file = |(package, version): &(&str, &str)| {
            let prefix = format!("{package}_{}_", version.replace(':', "%3a"));
            find_file(&debs, &prefix)?
                .ok_or_else(|| anyhow!("apt-get download left no {prefix}*.deb in {}", debs.display()))
        };
        wanted.iter().map(file).collect()
    }

    /// The names of the packages of `suite` that begin with `prefix`.
    ///
    /// # Errors
    ///
    /// When the suite's package list cannot be had.
    pub fn names(&self, suite: &str, prefix: &str) -> Result<Vec<String>> {
        self.load(suite)?;
        let names = process::stdout(self.apt("apt-cache", suite)?.args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// `packages` of `suite` and all they depend on, taking the first of alternatives, in alphabetical order.
    ///
    /// # Errors
    ///
    /// When the suite has no such package, or its package list cannot be had.
    pub fn closure(&self, suite: &str, packages: &[&str]) -> Result<Vec<String>> {
        self.load(suite)?;
        let mut command = self.apt("apt-cache", suite)?;
        command.args(["depends", "--recurse", "--important", "--option", "APT::Cache::ShowOnlyFirstOr=true"]);
        Ok(sources::real_packages(&process::stdout(command.args(packages))?))
    }

    fn newest(&self, suite: &str, packages: &[&str]) -> Result<Vec<String>> {
        self.load(suite)?;
        let table = process::stdout(self.apt("apt-cache", suite)?.arg("madison").args(packages))?;
        let newest = |package: &&str| {
            sources::madison_newest(&table, package)
                .ok_or_else(|| anyhow!("the suite {suite} of {} has no package {package}", self.uri))
        };
        packages.iter().map(newest).collect()
    }

    /// Makes sure that there is a package list, of whatever age.
    fn load(&self, suite: &str) -> Result<()> {
        if self.index_stamp(suite).exists() { Ok(()) } else { self.refresh(suite) }
    }

    fn refresh(&self, suite: &str) -> Result<()> {
        process::stdout(self.apt("apt-get", suite)?.args(["update", "--quiet", "--error-on=any"]))
            .with_context(|| format!("cannot fetch the package list of {suite} from {}", self.uri))?;
        let stamp = self.index_stamp(suite);
        fs::write(&stamp, "").with_context(|| format!("cannot write {}", stamp.display()))
    }

    fn apt(&self, tool: &str, suite: &str) -> Result<Command> {
        let dir = self.suite_dir(suite);
        for part in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part)).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let config = dir.join("apt.conf");
        for (path, text) in [
            (&config, apt_config(&dir)),
            (&dir.join(SOURCES), source_entry(&self.uri, suite)),
            // Empty: a package that happens to be installed must not change the choice.
            (&dir.join(STATUS), String::new()),
        ] {
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let mut command = Command::new(tool);
        command.arg("--config-file").arg(config);
        Ok(command)
    }

    fn suite_dir(&self, suite: &str) -> PathBuf {
        self.cache.join(suite)
    }

    fn index_stamp(&self, suite: &str) -> PathBuf {
        self.suite_dir(suite).join("index-complete")
    }
}

/// Read after the machine's own settings, which stay in force otherwise: a proxy, for example.
fn apt_config(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"Dir::Etc::sourcelist "{dir}/{SOURCES}";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{dir}/state";
Dir::State::status "{dir}/{STATUS}";
Dir::Cache "{dir}/cache";
// Archived suites keep a Release file that expired long ago.
Acquire::Check-Valid-Until "false";
// apt's own user cannot enter a build directory below a private home.
APT::Sandbox::User "root";
// The machine's hooks clean up and announce updates of the machine's lists.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"#
    )
}

/// Asks for the package list only: no contents, translations or changelogs.
fn source_entry(uri: &str, suite: &str) -> String {
    format!(
        "Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\nTargets: Packages\nSigned-By: {KEYRING}\n"
    )
}

fn find_file(dir: &Path, prefix: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_stands_for_one_suite_and_list() {
        let stamp = "bookworm\nrunc 1.1.5\ncrun 1.8.1\n";
        assert!(is_stamp_of(stamp, "bookworm", &["runc", "crun"]));
        for (suite, packages) in
            [("trixie", &["runc", "crun"][..]), ("bookworm", &["runc"]), ("bookworm", &["crun", "runc"])]
        {
            assert!(!is_stamp_of(stamp, suite, packages), "{suite} {packages:?}");
        }
    }

    #[test]
    fn apt_is_kept_in_its_directory() {
        let config = apt_config(Path::new("/cache/sid"));
        for setting in ["Dir::State \"/cache/sid/state\";", "Dir::Cache \"/cache/sid/cache\";"] {
            assert!(config.contains(setting), "{config}");
        }
        assert!(source_entry("http://mirror.example/debian", "sid").contains("\nSuites: sid\n"));
    }
}
