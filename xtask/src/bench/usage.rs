//! What a process uses, as the kernel tells it.

use std::{
    fs, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};

const SAMPLING: Duration = Duration::from_millis(20);

/// CPU time of all threads, those that ended included.
///
/// # Errors
///
/// When the process is gone.
pub(super) fn cpu_time(pid: u32) -> Result<Duration> {
    let pid = libc::pid_t::try_from(pid).context("no process number")?;
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both calls fill in what they are given.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid, &raw mut clock) != 0 || libc::clock_gettime(clock, &raw mut time) != 0
    };
    if failed {
        return Err(io::Error::last_os_error()).with_context(|| format!("no CPU clock of process {pid}"));
    }
    let nanoseconds = u32::try_from(time.tv_nsec).context("a clock with odd nanoseconds")?;
    Ok(Duration::new(time.tv_sec.unsigned_abs(), nanoseconds))
}

/// Resident memory in MiB.
///
/// # Errors
///
/// When the process is gone.
pub(super) fn resident(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    kibibytes(&text, "VmRSS:").map(|size| size / 1024.0).with_context(|| format!("{path} has no VmRSS"))
}

/// Memory of the BPF maps that a process holds, in MiB.
///
/// # Errors
///
/// When the process is gone.
pub(super) fn map_memory(pid: u32) -> Result<f64> {
    let infos = fdinfos(pid)?;
    let maps = infos.iter().filter(|text| text.contains("map_id:"));
    Ok(maps.filter_map(|text| number(text, "memlock:")).sum::<f64>() / (1024.0 * 1024.0))
}

/// A BPF program as its descriptor tells of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ProgramUse {
    pub(super) id: u32,
    pub(super) runs: f64,
    /// In all runs.
    pub(super) nanoseconds: f64,
    /// Instructions that the verifier went through.
    pub(super) verified: f64,
}

/// The BPF programs that a process holds.
///
/// # Errors
///
/// When the process is gone.
pub(super) fn programs(pid: u32) -> Result<Vec<ProgramUse>> {
    let mut programs: Vec<_> = fdinfos(pid)?.iter().filter_map(|text| program(text)).collect();
    programs.sort_by_key(|program| program.id);
    programs.dedup_by_key(|program| program.id);
    Ok(programs)
}

fn program(text: &str) -> Option<ProgramUse> {
    Some(ProgramUse {
        id: id(text)?,
        runs: number(text, "run_cnt:")?,
        nanoseconds: number(text, "run_time_ns:")?,
        verified: number(text, "verified_insns:").unwrap_or_default(),
    })
}

/// The tracepoints that a process's programs are attached to. The kernel cuts the names of programs at 15 letters.
///
/// # Errors
///
/// When the process is gone.
pub(super) fn tracepoints(pid: u32) -> Result<Vec<(u32, String)>> {
    let infos = fdinfos(pid)?;
    let tracepoint = |text: &String| {
        let name = text.lines().find_map(|line| line.strip_prefix("tp_name:"))?;
        Some((id(text)?, name.trim().to_owned()))
    };
    Ok(infos.iter().filter_map(tracepoint).collect())
}

fn id(text: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())
}

fn fdinfos(pid: u32) -> Result<Vec<String>> {
    let dir = PathBuf::from(format!("/proc/{pid}/fdinfo"));
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    // a descriptor may be closed meanwhile
    Ok(entries.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok()).collect())
}

fn number(text: &str, key: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

fn kibibytes(text: &str, key: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB")?.parse().ok())
}

/// Watches resident memory for its peak.
#[derive(Debug)]
pub(super) struct Peak {
    end: Arc<AtomicBool>,
    kibibytes: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Peak {
    pub(super) fn of(pid: u32) -> Self {
        let (end, kibibytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stop, highest) = (Arc::clone(&end), Arc::clone(&kibibytes));
        let thread = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let now = (resident(pid).unwrap_or_default() * 1024.0) as u64;
                highest.fetch_max(now, Ordering::Relaxed);
                thread::sleep(SAMPLING);
            }
        });
        Self { end, kibibytes, thread }
    }

    /// The highest in MiB.
    ///
    /// # Errors
    ///
    /// When the watcher panicked.
    pub(super) fn end(self) -> Result<f64> {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_panic| anyhow!("the watcher of memory panicked"))?;
        Ok(self.kibibytes.load(Ordering::Relaxed) as f64 / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let pid = std::process::id();
        let peak = Peak::of(pid);
        let before = cpu_time(pid).unwrap();
        while cpu_time(pid).unwrap() == before {
            std::hint::black_box(resident(pid).unwrap());
        }
        thread::sleep(2 * SAMPLING);
        assert!(peak.end().unwrap() > 1.0);
        assert!(cpu_time(u32::MAX).is_err());
    }

    #[test]
    fn figures_are_read_from_the_kernels_words() {
        let info = "pos:\t0\nprog_id:\t77\nrun_time_ns:\t1234\nrun_cnt:\t10\nverified_insns:\t5\n";
        let expected = ProgramUse { id: 77, runs: 10.0, nanoseconds: 1234.0, verified: 5.0 };
        assert_eq!(program(info), Some(expected));
        assert_eq!(program("link_type:\traw_tracepoint\nprog_id:\t77\n"), None);
        assert_eq!(number(info, "memlock:"), None);
        assert_eq!(kibibytes("VmHWM:\t   9 kB\nVmRSS:\t  2048 kB\n", "VmRSS:"), Some(2048.0));
    }
}
