//! What the agent itself uses.

use rustix::param::page_size;
use rustix::time::{ClockId, clock_gettime};

/// Use of the processor so far, and of memory now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Usage {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: u64,
}

/// Reads both of the running process; what cannot be read is zero.
pub(super) fn usage() -> Usage {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    Usage {
        cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
        resident_bytes: pages.saturating_mul(page_size() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_process_uses_something() {
        let usage = usage();
        assert!(usage.cpu_seconds > 0.0 && usage.cpu_seconds < 3600.0, "{usage:?}");
        assert!(usage.resident_bytes > 500_000 && usage.resident_bytes < 16 << 30, "{usage:?}");
    }
}
