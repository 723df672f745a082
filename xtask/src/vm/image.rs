//! The guest's disk: an ext4 file system made from a directory, without mounting anything.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::kernels::{Kernel, KernelFiles};
use crate::{
    debian::{self, DebianMirror, Program},
    process,
};

const INIT: &str = include_str!("init.sh");
const TESTS: &str = include_str!("tests.sh");
const BENCH: &str = include_str!("bench.sh");
const FLOOR: &str = include_str!("floor.sh");
/// Programs of the guest; what they link against is fetched with them, and serves the agent too.
const PACKAGES: [&str; 4] = ["busybox-static", "crun", "libgcc-s1", "runc"];
/// Put where the tests look for the runtimes, and nothing else.
const RUNTIMES: [&str; 3] = ["runc", "crun", "busybox"];
const DIRECTORIES: [&str; 12] = [
    "dev",
    "etc",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr/bin",
    "usr/lib",
    "usr/lib64",
    "usr/sbin",
    "var/lib",
];
/// Directories that live below `/usr`, whichever way a package spells them.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];
/// Room for what the tests write.
const FREE_MB: u64 = 1024;

/// What a guest is to run.
#[derive(Debug)]
pub(super) struct Content<'a> {
    /// Files, and their names in the guest's `/vm`.
    pub(super) files: &'a [(&'a Path, &'a str)],
    /// Debian packages beside those that every guest has.
    pub(super) packages: &'a [&'a str],
    /// Directories of unpacked packages, and where the guest has their programs and libraries.
    pub(super) trees: &'a [(&'a Path, &'a str)],
    /// Shell variables of the job's script.
    pub(super) settings: Vec<(&'static str, String)>,
}

/// Makes `<dir>/disk.ext4`, one for all `kernels`, and returns its path.
///
/// # Errors
///
/// When a package cannot be fetched, or a file not be made.
pub(super) fn make(
    cache: &Path,
    dir: &Path,
    content: &Content<'_>,
    kernels: &[(Kernel, KernelFiles)],
) -> Result<PathBuf> {
    let tree = packages(cache, dir, content.packages)?;
    let root = debian::fresh_sibling(&dir.join("disk"), "root")?;
    lay_out(&tree, &root)?;
    let vm = root.join("vm");
    fs::create_dir(&vm).with_context(|| format!("cannot create {}", vm.display()))?;
    for (source, name) in content.files {
        fs::copy(source, vm.join(name)).with_context(|| format!("cannot copy {}", source.display()))?;
    }
    for (tree, place) in content.trees {
        add_tree(tree, &root.join(place))?;
    }
    for (text, name) in [
        (INIT, "init"),
        (TESTS, "tests.sh"),
        (FLOOR, "floor.sh"),
        (BENCH, "bench.sh"),
        (&settings(&content.settings), "settings"),
    ] {
        write(&vm.join(name), text)?;
    }
    fs::set_permissions(vm.join("init"), fs::Permissions::from_mode(0o755)).context("cannot set a mode")?;
    for (kernel, files) in kernels {
        let modules = vm.join("modules").join(&kernel.release);
        fs::create_dir_all(&modules).with_context(|| format!("cannot create {}", modules.display()))?;
        for module in &files.modules {
            add_module(module, &modules)?;
        }
    }
    let disk = dir.join("disk.ext4");
    format(cache, dir, &root, &disk)?;
    fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    Ok(disk)
}

/// The guest's packages: of the machine's suite, because the tests were linked against its C library.
fn packages(cache: &Path, dir: &Path, more: &[&str]) -> Result<PathBuf> {
    let suite = debian::own_suite()?;
    let packages = DebianMirror::new(cache)?.closure(&suite, &[&PACKAGES, more].concat())?;
    let names: Vec<&str> = packages.iter().map(String::as_str).collect();
    let tree = dir.join([&["guest", &suite], more].concat().join("-"));
    debian::package_tree(cache, &suite, &names, &tree)?;
    Ok(tree)
}

fn lay_out(tree: &Path, root: &Path) -> Result<()> {
    for name in DIRECTORIES {
        let path = root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    for name in MERGED {
        for source in [tree.join(name), tree.join("usr").join(name)] {
            if source.is_dir() && !source.is_symlink() {
                let to = root.join("usr").join(name);
                process::run(Command::new("cp").arg("-a").arg(source.join(".")).arg(to))?;
            }
        }
        let link = root.join(name);
        symlink(format!("usr/{name}"), &link).with_context(|| format!("cannot link {}", link.display()))?;
    }
    let bin = root.join("usr/bin");
    let listing = process::stdout(Command::new(bin.join("busybox")).arg("--list"))?;
    for applet in listing.lines().filter(|applet| !bin.join(applet).exists()) {
        symlink("busybox", bin.join(applet)).with_context(|| format!("cannot link {applet}"))?;
    }
    let runtimes = root.join("opt/runtimes/usr/bin");
    fs::create_dir_all(&runtimes).with_context(|| format!("cannot create {}", runtimes.display()))?;
    for name in RUNTIMES {
        let found = ["usr/sbin", "usr/bin"].map(|dir| root.join(dir).join(name));
        let source = found.iter().find(|path| path.is_file()).with_context(|| format!("no {name}"))?;
        fs::copy(source, runtimes.join(name)).with_context(|| format!("cannot copy {name}"))?;
    }
    write(&root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    write(&root.join("etc/group"), "root:x:0:\n")?;
    write(&root.join("etc/hosts"), "127.0.0.1 localhost\n")
}

fn add_tree(tree: &Path, place: &Path) -> Result<()> {
    let to = place.join("usr");
    fs::create_dir_all(&to).with_context(|| format!("cannot create {}", to.display()))?;
    for name in MERGED.map(|name| tree.join("usr").join(name)).into_iter().filter(|dir| dir.is_dir()) {
        process::run(Command::new("cp").arg("-a").arg(name).arg(&to))?;
    }
    Ok(())
}

/// The modules of newer kernels are compressed.
fn add_module(module: &Path, dir: &Path) -> Result<()> {
    let name = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some(plain) = name.strip_suffix(".xz") else {
        fs::copy(module, dir.join(&name)).with_context(|| format!("cannot copy {}", module.display()))?;
        return Ok(());
    };
    let to = dir.join(plain);
    let file = fs::File::create(&to).with_context(|| format!("cannot create {}", to.display()))?;
    let mut command = Command::new("xz");
    process::run(command.args(["--decompress", "--stdout"]).arg(module).stdin(Stdio::null()).stdout(file))
        .context("cannot unpack a kernel module: is the package xz-utils installed?")
}

fn format(cache: &Path, dir: &Path, root: &Path, disk: &Path) -> Result<()> {
    let program = match Program::on_machine("mke2fs") {
        Some(program) => program,
        None => {
            let suite = debian::own_suite()?;
            let place = dir.join("e2fsprogs");
            let is_library = |package: &str| package.starts_with("lib");
            Program::packaged(cache, &suite, "e2fsprogs", is_library, (&place, "mke2fs"))?
        }
    };
    let size = size_mb(root)? + FREE_MB;
    if disk.exists() {
        fs::remove_file(disk).with_context(|| format!("cannot remove {}", disk.display()))?;
    }
    let mut command = program.command()?;
    command.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0", "-d"]);
    process::stdout(command.arg(root).arg(disk).arg(format!("{size}M"))).map(drop)
}

fn size_mb(root: &Path) -> Result<u64> {
    let text = process::stdout(Command::new("du").args(["--summarize", "--block-size=1M"]).arg(root))?;
    let Some(size) = text.split_whitespace().next().and_then(|word| word.parse().ok()) else {
        bail!("du tells no size: {text}");
    };
    Ok(size)
}

/// As assignments of a shell, quoted.
fn settings(settings: &[(&str, String)]) -> String {
    settings.iter().map(|(name, value)| format!("{name}='{}'\n", value.replace('\'', r"'\''"))).collect()
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_quoted_for_a_shell() {
        let text = settings(&[("FILTER", "it's; $x".to_owned()), ("TEST_LIMIT", "5".to_owned())]);
        assert_eq!(text, "FILTER='it'\\''s; $x'\nTEST_LIMIT='5'\n");
    }
}
