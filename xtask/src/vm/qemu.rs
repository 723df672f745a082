//! QEMU: the machine's own if it is new enough, else Debian's in a directory of its own.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{debian::Program, process};

const NAME: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
/// Has QEMU 10.0.
const SUITE: &str = "trixie";
/// See docs/kernels.md for what older ones do.
const OLDEST: (u32, u32) = (8, 2);
const MEMORY: &str = "2048";
/// One, so that as many guests run at a time as the machine has processors, and neither waits for the other.
const CPUS: &str = "1";
/// All that QEMU emulates, but fast string instructions: kernels copy and clear memory by them where they are said to
/// be fast, and QEMU goes through them byte by byte. Without, the agent starts in three quarters of the time.
const TCG_CPU: &str = "max,la57=off,-erms,-fsrm,-fzrm,-fsrs,-fsrc";
/// `panic=-1` with `-no-reboot` makes a panic the end of QEMU. Without `ibt=off` a processor that tracks indirect
/// branches would stop the module that tampers.
const PARAMETERS: &str = "console=ttyS0 root=/dev/nvme0n1 rw rootfstype=ext4 init=/vm/init loglevel=5 \
    mitigations=off ibt=off nokaslr no_timer_check tsc=reliable oops=panic panic=-1";

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// QEMU itself: slow, and works everywhere
    #[default]
    Tcg,
    /// The processor, if a trial boot shows that it does
    Kvm,
    /// QEMU itself on one processor, whose clock ticks once an instruction
    #[value(skip)]
    Counted,
}

impl Accel {
    /// How many times slower than the machine's processor a guest's is, roughly.
    pub(super) const fn slowdown(self) -> u32 {
        match self {
            Self::Tcg | Self::Counted => 10,
            Self::Kvm => 1,
        }
    }
}

/// A QEMU that fits.
#[derive(Debug)]
pub(super) struct Qemu {
    program: Program,
    version: (u32, u32),
    accel: Accel,
}

/// What a guest starts from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Boot<'a> {
    pub(super) kernel: &'a Path,
    pub(super) disk: &'a Path,
    /// Where the kernel's console goes.
    pub(super) console: &'a Path,
    /// Where QEMU keeps what the guest writes to its disk.
    pub(super) scratch: &'a Path,
    pub(super) job: &'a str,
}

impl Qemu {
    /// Takes the machine's QEMU, or fetches one below `dir`.
    ///
    /// # Errors
    ///
    /// When a package cannot be fetched, or QEMU does not start.
    pub(super) fn find(cache: &Path, dir: &Path, accel: Accel) -> Result<Self> {
        if let Some(program) = Program::on_machine(NAME) {
            match Self::probe(program, accel) {
                Ok(qemu) => return Ok(qemu),
                Err(error) => println!("    not using this machine's QEMU: {error:#}"),
            }
        }
        let program = Program::packaged(cache, SUITE, PACKAGE, is_needed, (&dir.join("qemu"), NAME))?;
        Self::probe(program, accel).with_context(|| format!("{PACKAGE} of {SUITE} does not work here"))
    }

    fn probe(program: Program, accel: Accel) -> Result<Self> {
        let answer = process::stdout(program.command()?.arg("--version"))?;
        let version = version(&answer).with_context(|| format!("it tells no version: {answer}"))?;
        if version < OLDEST {
            bail!("it is {}.{}, and {}.{} is needed", version.0, version.1, OLDEST.0, OLDEST.1);
        }
        Ok(Self { program, version, accel })
    }

    /// The command that boots a guest, with its second serial port on standard output.
    pub(super) fn command(&self, boot: Boot<'_>) -> Result<Command> {
        let mut command = self.program.command()?;
        if let Some(tree) = self.program.tree() {
            let mut places = Program::library_dirs(tree).into_iter().map(|dir| dir.join("qemu"));
            command.env("QEMU_MODULE_DIR", places.find(|dir| dir.is_dir()).unwrap_or_default());
            for data in ["qemu", "seabios"] {
                command.arg("-L").arg(tree.join("usr/share").join(data));
            }
        }
        let (accel, cpu, cpus) = match self.accel {
            Accel::Tcg => ("tcg,thread=multi", TCG_CPU, CPUS),
            Accel::Kvm => ("kvm", "host", CPUS),
            Accel::Counted => ("tcg,thread=single", TCG_CPU, "1"),
        };
        command.args(["-accel", accel, "-cpu", cpu, "-smp", cpus, "-m", MEMORY]);
        if self.accel == Accel::Counted {
            command.args(["-icount", "shift=0"]);
        }
        command.args(["-machine", "q35,usb=off,vmport=off,smm=off", "-nodefaults", "-no-user-config"]);
        command.args(["-display", "none", "-no-reboot", "-device", "virtio-rng-pci"]);
        command.arg("-kernel").arg(boot.kernel);
        command.arg("-append").arg(format!("{PARAMETERS} userns_job={}", boot.job));
        let disk = option_value(boot.disk)?;
        command.args([
            "-drive",
            &format!("file={disk},format=raw,if=none,id=root,cache=unsafe,snapshot=on"),
            "-device",
            "nvme,drive=root,serial=root",
        ]);
        command.args(["-serial", &format!("file:{}", option_value(boot.console)?), "-serial", "stdio"]);
        command.env("TMPDIR", boot.scratch);
        Ok(command)
    }
}

impl fmt::Display for Qemu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = if self.program.tree().is_some() { "Debian's, unpacked" } else { "this machine's" };
        write!(f, "QEMU {}.{}, {origin}", self.version.0, self.version.1)
    }
}

/// The two first numbers of `QEMU emulator version 10.0.13 (Debian …)`.
fn version(answer: &str) -> Option<(u32, u32)> {
    let (_, rest) = answer.split_once("version ")?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Of what QEMU's package depends on, what a guest without network and display uses.
fn is_needed(package: &str) -> bool {
    package.starts_with("lib")
        || ["zlib1g", "qemu-system-common", "qemu-system-data", "seabios"].contains(&package)
}

/// A path inside one of QEMU's comma-separated options.
fn option_value(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.replace(',', ",,"))
}

/// Makes the directory for what guests write.
pub(super) fn scratch(dir: &Path) -> Result<PathBuf> {
    let scratch = dir.join("scratch");
    fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    Ok(scratch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_tells_its_version() {
        let answer =
            "QEMU emulator version 10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)\nCopyright (c) 2003-2025\n";
        assert_eq!(version(answer), Some((10, 0)));
        assert_eq!(version("qemu: not found"), None);
    }

    #[test]
    fn qemu_needs_its_libraries_and_no_accounts() {
        for (package, needed) in
            [("libc6", true), ("zlib1g", true), ("seabios", true), ("adduser", false), ("ipxe-qemu", false)]
        {
            assert_eq!(is_needed(package), needed, "{package}");
        }
    }
}
