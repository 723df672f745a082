//! What the guests' tests tamper with credentials by: a kernel module for each kernel, and a program that uses it.
//!
//! Debian keeps old kernels longer than their headers, whose build tools are programs of the suite that they are
//! from. So no headers are used: the type information (BTF) inside of the kernel's image is the same declarations
//! and laid out by the same configuration. The kernels are configured to load a module without checksums of
//! symbols (`CONFIG_MODULE_FORCE_LOAD`), and say that they are tainted by it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::kernels::{Kernel, KernelFiles};
use crate::{
    debian::{self, Program},
    process,
};

const MODULE: &str = include_str!("tamper/tamper.c");
const ACTOR: &str = include_str!("tamper/actor.c");
/// Of the kernel's own flags (arch/x86/Makefile) those that the result depends on. The kernel's structs have members
/// without a name, which `-fms-extensions` is for, and attributes that not every compiler knows.
const MODULE_FLAGS: [&str; 17] = [
    "-c",
    "-O2",
    "-std=gnu11",
    "-fms-extensions",
    "-ffreestanding",
    "-fno-pie",
    "-fno-strict-aliasing",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    "-mcmodel=kernel",
    "-mno-red-zone",
    "-mgeneral-regs-only",
    "-Wall",
    "-Werror",
    "-Wno-attributes",
    "-Wno-unknown-pragmas",
];
/// Containers have no libraries.
const ACTOR_FLAGS: [&str; 6] = ["-static", "-pthread", "-O2", "-Wall", "-Wextra", "-Werror"];
/// Its bpftool reads the type information of every kernel there is until now.
const BPFTOOL_SUITE: &str = "trixie";

/// The module for `kernel`, built below `dir` unless it is there already.
///
/// # Errors
///
/// When a tool cannot be had, the kernel's image is not as expected, or the module does not compile for it.
pub(super) fn module(cache: &Path, dir: &Path, kernel: &Kernel, files: &KernelFiles) -> Result<PathBuf> {
    let place = dir.join("tamper").join(&kernel.release);
    let (header, module) = (place.join("vmlinux.h"), place.join("tamper.ko"));
    let image = fs::metadata(&files.image).and_then(|data| Ok((data.len(), data.modified()?)));
    let image = format!("{:?}", image.with_context(|| format!("cannot read {}", files.image.display()))?);
    let sources = format!("{image}\n{MODULE_FLAGS:?}\n{MODULE}");
    once(&header, &image, || declarations(cache, dir, &files.image, &header))
        .and_then(|()| {
            once(&module, &sources, || compile(&MODULE_FLAGS, (&place.join("tamper.c"), MODULE), &module))
        })
        .with_context(|| format!("no module for {}", kernel.release))?;
    Ok(module)
}

/// The program, built below `dir` unless it is there already.
///
/// # Errors
///
/// When it does not compile.
pub(super) fn actor(dir: &Path) -> Result<PathBuf> {
    let place = dir.join("tamper");
    let actor = place.join("actor");
    let sources = format!("{ACTOR_FLAGS:?}\n{ACTOR}");
    once(&actor, &sources, || compile(&ACTOR_FLAGS, (&place.join("actor.c"), ACTOR), &actor))?;
    Ok(actor)
}

/// Makes `file`, unless that was done before out of the same `sources`.
fn once(file: &Path, sources: &str, make: impl FnOnce() -> Result<()>) -> Result<()> {
    let stamp = file.with_extension("sources");
    if file.is_file() && fs::read_to_string(&stamp).is_ok_and(|made_of| made_of == sources) {
        return Ok(());
    }
    let place = file.parent().with_context(|| format!("{} is in no directory", file.display()))?;
    fs::create_dir_all(place).with_context(|| format!("cannot create {}", place.display()))?;
    println!("    building {}", file.display());
    make()?;
    fs::write(&stamp, sources).with_context(|| format!("cannot write {}", stamp.display()))
}

fn compile(flags: &[&str], (source, text): (&Path, &str), to: &Path) -> Result<()> {
    fs::write(source, text).with_context(|| format!("cannot write {}", source.display()))?;
    let mut cc = Command::new("cc");
    process::run(cc.args(flags).arg("-o").arg(to).arg(source))
        .context("no compiler that works: are the packages gcc and libc6-dev installed?")
}

/// How a kernel's image may be compressed: how it begins, the program for it, and that program's package.
const COMPRESSIONS: [(&[u8], &str, &str); 4] = [
    (b"\x1f\x8b", "gzip", "gzip"),
    (b"\xfd7zXZ", "xz", "xz-utils"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd"),
    (b"\x02\x21\x4c\x18", "lz4", "lz4"),
];

/// Takes the ELF file out of a kernel's boot image.
fn unpack(cache: &Path, dir: &Path, image: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    let payload = payload(&bytes).with_context(|| format!("{} is no boot image", image.display()))?;
    let known = COMPRESSIONS.iter().find(|(magic, ..)| payload.starts_with(magic));
    let Some((_, name, package)) = known else {
        bail!("{} is compressed in a way this does not know: {:02x?}", image.display(), payload.get(..6));
    };
    let packed = to.with_extension("packed");
    fs::write(&packed, payload).with_context(|| format!("cannot write {}", packed.display()))?;
    let program = match Program::on_machine(name) {
        Some(program) => program,
        None => {
            let is_library = |package: &str| package.starts_with("lib");
            let place = dir.join("tools").join(name);
            Program::packaged(cache, &debian::own_suite()?, package, is_library, (&place, name))?
        }
    };
    let input = File::open(&packed).with_context(|| format!("cannot open {}", packed.display()))?;
    process::run(program.command()?.arg("-dc").stdin(input).stdout(create(to)?))?;
    fs::remove_file(&packed).with_context(|| format!("cannot remove {}", packed.display()))
}

/// The compressed kernel in a boot image: Documentation/arch/x86/boot.rst, of the setup header `setup_sects`,
/// `payload_offset` and `payload_length`. Its last four bytes are the length it unpacks to.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    image.get(0x202..).filter(|header| header.starts_with(b"HdrS"))?;
    let setup_sects = usize::from(*image.get(0x1f1)?);
    let start = (setup_sects + 1) * 512 + word(0x248)?;
    image.get(start..start + word(0x24c)?.checked_sub(4)?)
}

/// Writes the type information in a kernel's boot image as declarations of C.
fn declarations(cache: &Path, dir: &Path, image: &Path, to: &Path) -> Result<()> {
    let is_library = |package: &str| package.starts_with("lib") || package == "zlib1g";
    let place = dir.join("tools/bpftool");
    let bpftool = Program::packaged(cache, BPFTOOL_SUITE, "bpftool", is_library, (&place, "bpftool"))?;
    let vmlinux = to.with_extension("elf");
    unpack(cache, dir, image, &vmlinux)?;
    let mut command = bpftool.command()?;
    command.args(["btf", "dump", "file"]).arg(&vmlinux).args(["format", "c"]);
    process::run(command.stdin(Stdio::null()).stdout(create(to)?))
        .with_context(|| format!("cannot read the type information of {}", image.display()))?;
    fs::remove_file(&vmlinux).with_context(|| format!("cannot remove {}", vmlinux.display()))
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot create {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_where_the_setup_header_says() {
        let mut image = vec![0; 4096];
        image[0x1f1] = 3;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248] = 16;
        image[0x24c] = 12;
        image[4 * 512 + 16..4 * 512 + 24].copy_from_slice(b"compress");
        assert_eq!(payload(&image), Some(&b"compress"[..]));
        image[0x24e] = 1;
        assert_eq!(payload(&image), None, "it ends before its payload does");
        image[0x202] = 0;
        assert_eq!(payload(&image), None, "it has no setup header");
    }

    #[test]
    fn what_was_made_of_the_same_sources_is_kept() {
        let dir = std::env::temp_dir().join(format!("userns-vm-{}-once", std::process::id()));
        let file = dir.join("made");
        let make = |sources: &str| {
            let mut made = false;
            let result = once(&file, sources, || {
                made = true;
                Ok(fs::write(&file, "")?)
            });
            result.map(|()| made).unwrap()
        };
        assert_eq!([make("a"), make("a"), make("b"), make("b")], [true, false, true, false]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
