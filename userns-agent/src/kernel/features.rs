//! What the running kernel offers, with the settings that the programs need from it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use thiserror::Error;
use userns_common::caps::ATTEMPTS;
use userns_common::settings::{Offsets, Registers, Settings, SyscallSet};

use super::btf::{Btf, BtfError};
use super::hooks::HOOKS;
use super::plan::{Features, Mechanism};

const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";
/// There with CONFIG_KPROBE_EVENTS; links are made through it.
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe";
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Why the kernel cannot be looked at.
#[derive(Debug, Error)]
pub enum FeatureError {
    /// No type information.
    #[error(
        "cannot read {BTF_PATH}: {source}; the kernel must be built with CONFIG_DEBUG_INFO_BTF=y, and /sys mounted"
    )]
    NoBtf {
        /// The error.
        source: std::io::Error,
    },
    /// Type information is broken or lacks something the programs read.
    #[error("type information of this kernel does not fit: {0}")]
    Btf(#[from] BtfError),
    /// A kernel from before task-local storage for tracing programs.
    #[error(
        "this kernel, Linux {release}, has no task-local storage for tracing programs (`task_struct.bpf_storage`), which \
         came with Linux 5.13: run the agent on Linux 5.15 or newer"
    )]
    TooOld {
        /// What `uname -r` tells.
        release: String,
    },
    /// An architecture without a table.
    #[error("architecture {0} is not supported: x86_64 and aarch64 are")]
    Architecture(&'static str),
}

/// Everything known of the kernel.
#[derive(Debug)]
pub struct Kernel {
    /// For the plan.
    pub features: Features,
    /// For the programs.
    pub offsets: Offsets,
    /// For the programs.
    pub registers: Registers,
}

/// Looks at the running kernel. Mounts tracefs if it is not mounted and may be.
///
/// # Errors
///
/// [`FeatureError`] if there is no usable type information.
pub fn probe() -> Result<Kernel, FeatureError> {
    let bytes = std::fs::read(BTF_PATH).map_err(|source| FeatureError::NoBtf { source })?;
    let btf = Btf::parse(&bytes)?;
    check_task_storage(&btf)?;
    let mut features =
        Features { events: events(), kprobes: Path::new(KPROBES).is_dir(), ..Features::default() };
    for candidate in HOOKS.iter().flat_map(|wanted| wanted.candidates) {
        match candidate.mechanism {
            Mechanism::TpBtf => {
                if let Some(found) = btf.tracepoint(candidate.target) {
                    features.typed_tracepoints.insert(candidate.target.to_owned(), found);
                }
            }
            Mechanism::FExit | Mechanism::KProbe => {
                if let Some(found) = btf.function(candidate.target) {
                    features.functions.insert(candidate.target.to_owned(), found);
                }
            }
            Mechanism::Iterator => {
                if btf.has_function(&format!("bpf_iter_{}", candidate.target)) {
                    features.iterators.insert(candidate.target.to_owned());
                }
            }
            Mechanism::Tracepoint => {}
        }
    }
    Ok(Kernel { features, offsets: btf.offsets()?, registers: registers(&btf)? })
}

/// The programs keep what they know of a task in its own storage. The member came with the change that opened that
/// storage to tracing programs (a10787e6d58c, "bpf: Enable task local storage for tracing programs"); kernels that
/// have the map type alone, 5.11 and 5.12, let only LSM programs use it.
fn check_task_storage(btf: &Btf<'_>) -> Result<(), FeatureError> {
    match btf.offset("task_struct", "bpf_storage") {
        Err(BtfError::NoMember { .. }) => {
            let release = rustix::system::uname().release().to_string_lossy().into_owned();
            Err(FeatureError::TooOld { release })
        }
        found => Ok(found.map(drop)?),
    }
}

/// Which of the wanted events tracefs has; `None` if it cannot be read.
fn events() -> Option<BTreeSet<String>> {
    let root = TRACEFS
        .iter()
        .map(|root| Path::new(root).join("events"))
        .find(|root| root.is_dir())
        .or_else(mount_tracefs)?;
    let targets = HOOKS.iter().flat_map(|wanted| wanted.candidates).map(|candidate| candidate.target);
    Some(
        targets
            .filter(|target| target.contains('/') && root.join(target).is_dir())
            .map(str::to_owned)
            .collect(),
    )
}

fn mount_tracefs() -> Option<std::path::PathBuf> {
    use rustix::mount::{MountFlags, mount};
    let at = TRACEFS[0];
    mount("tracefs", at, "tracefs", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)
        .ok()?;
    tracing::info!("mounted tracefs at {at}");
    let events = Path::new(at).join("events");
    events.is_dir().then_some(events)
}

fn registers(btf: &Btf<'_>) -> Result<Registers, FeatureError> {
    let at = |member: &str| btf.offset("pt_regs", member);
    match std::env::consts::ARCH {
        "x86_64" => Ok(Registers {
            number: at("orig_ax")?,
            args: [at("di")?, at("si")?, at("dx")?, at("r10")?, at("r8")?],
        }),
        "aarch64" => {
            let first = at("regs")?;
            Ok(Registers {
                number: at("syscallno")?,
                args: [at("orig_x0")?, first + 8, first + 16, first + 24, first + 32],
            })
        }
        other => Err(FeatureError::Architecture(other)),
    }
}

/// System calls during which a `CAP_SYS_ADMIN` check is memory accounting: mmap, mprotect, brk, mremap, shmget,
/// shmat, remap_file_pages, clone, fork, vfork, execve, execveat, clone3, exit, exit_group; and those that grow a
/// file in memory: write, pwrite64, writev, sendfile, ftruncate, splice, fallocate, pwritev, pwritev2, memfd_create,
/// copy_file_range, io_uring_enter.
#[cfg(target_arch = "x86_64")]
const ACCOUNTING: &[u32] = &[
    9, 10, 12, 25, 29, 30, 216, 56, 57, 58, 59, 322, 435, 60, 231, // memory and processes
    1, 18, 20, 40, 77, 275, 285, 296, 328, 319, 326, 426, // files
];
/// readlink, readlinkat, stat, lstat, newfstatat, statx, getdents64, read, pread64.
#[cfg(target_arch = "x86_64")]
const LISTING: &[u32] = &[89, 267, 4, 6, 262, 332, 217, 0, 17];
/// bpf, seccomp, prctl, setsockopt; setxattr to fremovexattr, setxattrat to removexattrat.
#[cfg(target_arch = "x86_64")]
const EVERYDAY: &[u32] =
    &[321, 317, 157, 54, 188, 189, 190, 191, 192, 193, 194, 195, 196, 197, 198, 199, 463, 464, 465, 466];
/// open, openat, openat2.
#[cfg(target_arch = "x86_64")]
const OPENING: &[u32] = &[2, 257, 437];
#[cfg(target_arch = "x86_64")]
const SETNS: u32 = 308;
/// As above, by the generic table (include/uapi/asm-generic/unistd.h).
#[cfg(not(target_arch = "x86_64"))]
const ACCOUNTING: &[u32] = &[
    222, 226, 214, 216, 194, 196, 234, 220, 221, 281, 435, 93, 94, // memory and processes
    64, 68, 66, 71, 46, 76, 47, 70, 287, 279, 285, 426, // files
];
#[cfg(not(target_arch = "x86_64"))]
const LISTING: &[u32] = &[78, 79, 291, 61, 63, 67];
#[cfg(not(target_arch = "x86_64"))]
const EVERYDAY: &[u32] = &[280, 277, 167, 208, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 463, 464, 465, 466];
#[cfg(not(target_arch = "x86_64"))]
const OPENING: &[u32] = &[56, 437];
#[cfg(not(target_arch = "x86_64"))]
const SETNS: u32 = 268;

/// What counts as the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Inode number of its user namespace.
    pub userns: u32,
    /// Level of that.
    pub level: u32,
    /// Inode number of its mount namespace.
    pub mnt: u32,
}

/// The globals for this kernel.
#[must_use]
pub fn settings(kernel: &Kernel, host: Host, grace: Duration, container_budget: u64) -> Settings {
    Settings {
        offsets: kernel.offsets,
        registers: kernel.registers,
        host_level: host.level,
        host_userns_inum: host.userns,
        host_mnt_inum: host.mnt,
        setns: SETNS,
        grace_ns: u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX),
        container_budget,
        attempt_caps: ATTEMPTS,
        accounting: SyscallSet::new(ACCOUNTING),
        listing: SyscallSet::new(LISTING),
        everyday: SyscallSet::new(EVERYDAY),
        opening: SyscallSet::new(OPENING),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type information of `struct task_struct` with one member, an integer.
    fn task_struct_with(member: &str) -> Vec<u8> {
        let strings = format!("\0int\0task_struct\0{member}\0");
        // each a name, kind and length, size; then the integer's encoding and the member's name, type and offset
        let types: [u32; 10] = [1, 1 << 24, 4, 32, 5, 4 << 24 | 1, 4, 17, 1, 0];
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        let length = size_of_val(&types) as u32;
        let header = [24, 0, length, length, strings.len() as u32];
        bytes.extend(header.iter().chain(&types).flat_map(|word| word.to_le_bytes()));
        bytes.extend(strings.as_bytes());
        bytes
    }

    #[test]
    fn a_kernel_without_task_storage_for_tracing_is_refused_in_one_clear_line() {
        let new = task_struct_with("bpf_storage");
        assert!(check_task_storage(&Btf::parse(&new).unwrap()).is_ok());
        let old = task_struct_with("security");
        let error = check_task_storage(&Btf::parse(&old).unwrap()).unwrap_err().to_string();
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        for part in [&release, "task-local storage", "Linux 5.13", "5.15 or newer"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn the_running_kernel_fits_if_it_has_btf() {
        if !Path::new(BTF_PATH).exists() {
            return;
        }
        let kernel = probe().unwrap();
        assert_ne!(kernel.offsets.task_real_cred, 0);
        assert_ne!(kernel.registers.number, 0);
    }
}
