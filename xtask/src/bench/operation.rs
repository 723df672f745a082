//! What is repeated to be measured.

use std::{fmt, io, time::Duration};

use anyhow::{Context as _, Result, bail};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Something a process asks of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Operation {
    /// `sethostname(NULL, -1)`: one check of `CAP_SYS_ADMIN` over the owner of the caller's UTS namespace, and no more,
    /// because the length is refused next.
    OwnCheck,
    /// `swapoff(NULL)`: one check of `CAP_SYS_ADMIN` over the host, and no more where that is denied.
    HostCheck,
    /// `unshare(CLONE_NEWNS)`: denied in a container.
    DeniedUnshare,
    /// `getppid()`: nothing.
    Getppid,
    /// `open` and `close` of `/proc/self/exe`.
    Open,
    /// `mmap` and `munmap` of one page.
    Mmap,
    /// `fork`, `execve` of `/bin/true`, and waiting for its end.
    Exec,
}

impl Operation {
    /// What a container may do, in the order of the table.
    pub(super) const ALL: [Self; 7] = [
        Self::OwnCheck,
        Self::HostCheck,
        Self::DeniedUnshare,
        Self::Getppid,
        Self::Open,
        Self::Mmap,
        Self::Exec,
    ];

    /// How often to repeat it: enough to drown what else the process does, tens of milliseconds under emulation.
    pub(super) const fn count(self) -> u32 {
        match self {
            Self::OwnCheck | Self::HostCheck | Self::DeniedUnshare | Self::Getppid => 20_000,
            Self::Open | Self::Mmap => 5_000,
            Self::Exec => 50,
        }
    }

    /// Repeats it, and returns the CPU time that this process and its children spent.
    ///
    /// # Errors
    ///
    /// When the kernel refuses what it should grant.
    pub(super) fn repeat(self, count: u32) -> Result<Duration> {
        let before = cpu_time()?;
        let mut done = 0;
        while done < count {
            self.once()?;
            done += 1;
        }
        Ok(cpu_time()?.saturating_sub(before))
    }

    fn once(self) -> Result<()> {
        match self {
            // SAFETY: a null name with a negative length is refused before it is looked at.
            Self::OwnCheck => drop(unsafe { libc::sethostname(std::ptr::null(), usize::MAX) }),
            // SAFETY: a null path is refused.
            Self::HostCheck => drop(unsafe { libc::swapoff(std::ptr::null()) }),
            Self::DeniedUnshare => denied_unshare()?,
            // SAFETY: no arguments, no effect. The raw call, since libc may remember the answer.
            Self::Getppid => drop(unsafe { libc::syscall(libc::SYS_getppid) }),
            Self::Open => open()?,
            Self::Mmap => mmap()?,
            Self::Exec => exec()?,
        }
        Ok(())
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnCheck => "check over the own UTS namespace",
            Self::HostCheck => "check over the host",
            Self::DeniedUnshare => "unshare, denied",
            Self::Getppid => "getppid",
            Self::Open => "open + close",
            Self::Mmap => "mmap + munmap",
            Self::Exec => "fork + exec + wait",
        })
    }
}

fn denied_unshare() -> Result<()> {
    // SAFETY: it has no effect on memory.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0 {
        bail!("unshare was not denied");
    }
    Ok(())
}

fn open() -> Result<()> {
    // SAFETY: a constant path; the descriptor is closed at once.
    let done = unsafe {
        let fd = libc::open(c"/proc/self/exe".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        fd >= 0 && libc::close(fd) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()).context("cannot open /proc/self/exe") }
}

fn mmap() -> Result<()> {
    // SAFETY: a new private page that nothing refers to, unmapped at once.
    let done = unsafe {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let page = libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0);
        page != libc::MAP_FAILED && libc::munmap(page, 4096) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()).context("cannot map a page") }
}

fn exec() -> Result<()> {
    let arguments = [c"true".as_ptr(), std::ptr::null()];
    let mut status = 0;
    // SAFETY: this process has one thread; the child makes one call and leaves; all strings are constants.
    let done = unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::execv(c"/bin/true".as_ptr(), arguments.as_ptr());
            libc::_exit(127);
        }
        child > 0 && libc::waitpid(child, &raw mut status, 0) == child
    };
    if !done {
        return Err(io::Error::last_os_error()).context("cannot fork");
    }
    if status != 0 {
        bail!("/bin/true ended with status {status:#x}");
    }
    Ok(())
}

/// What this process and the children it waited for have spent.
fn cpu_time() -> Result<Duration> {
    let own = clock_gettime(ClockId::ProcessCPUTime);
    let own = Duration::try_from(own).context("the process's clock is wrong")?;
    let children = children_time()?;
    Ok(own + children)
}

fn children_time() -> Result<Duration> {
    // SAFETY: all-zero is a value of this struct of integers, and the kernel fills it in.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        if libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) != 0 {
            return Err(io::Error::last_os_error()).context("cannot read the children's time");
        }
        usage
    };
    let duration = |time: libc::timeval| {
        let seconds = Duration::from_secs(time.tv_sec.unsigned_abs());
        seconds + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    Ok(duration(usage.ru_utime) + duration(usage.ru_stime))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_take_time_and_travel_by_name() {
        for operation in [Operation::Getppid, Operation::Open, Operation::Mmap, Operation::OwnCheck] {
            assert!(operation.repeat(100).unwrap() > Duration::ZERO, "{operation}");
            let text = serde_json::to_string(&operation).unwrap();
            assert_eq!(serde_json::from_str::<Operation>(&text).unwrap(), operation);
        }
    }
}
