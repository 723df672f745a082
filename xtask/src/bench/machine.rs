//! The machine that was measured on, in general terms.

use std::fs;

/// Processor, number of processors, memory and kernel; nothing that names the machine.
pub(super) fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    description(&read("/proc/cpuinfo"), &read("/proc/meminfo"), &release)
}

fn description(cpuinfo: &str, meminfo: &str, release: &str) -> String {
    let value = |text: &str, key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim_start_matches([' ', '\t', ':']).trim().to_owned())
    };
    let model = value(cpuinfo, "model name").unwrap_or_else(|| "an unknown processor".to_owned());
    let count = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let memory = value(meminfo, "MemTotal").and_then(|text| text.strip_suffix(" kB")?.parse::<u64>().ok());
    let memory = memory.unwrap_or_default().div_ceil(1024 * 1024);
    // what follows the version names whoever built it
    let version = release.split(['-', '+']).next().unwrap_or_default();
    format!("{model}, {count} processors, {memory} GiB of memory, Linux {version}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_no_name() {
        let cpuinfo = "processor\t: 0\nmodel name\t: ACME 9\n\nprocessor\t: 1\nmodel name\t: ACME 9\n";
        let text = description(cpuinfo, "MemTotal:        8000000 kB\n", "6.18.44-build-7");
        assert_eq!(text, "ACME 9, 2 processors, 8 GiB of memory, Linux 6.18.44");
    }
}
