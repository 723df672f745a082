//! Capability numbers and sets (include/uapi/linux/capability.h).

/// Names by number, index 21 is `CAP_SYS_ADMIN`.
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// `CAP_SYS_PTRACE`.
pub const SYS_PTRACE: u32 = 19;
/// `CAP_SYS_ADMIN`.
pub const SYS_ADMIN: u32 = 21;

/// Capabilities whose denial over the host's user namespace is an attempt rather than everyday software: a
/// bit per capability. Left out are those that ordinary programs ask for and do without (`CAP_SYS_NICE`,
/// `CAP_SYS_RESOURCE`, `CAP_NET_ADMIN`, `CAP_KILL`, `CAP_MKNOD` by package managers and systemd, `CAP_BPF` by systemd
/// and container managers, which see whether a cgroup can have a filter, ...).
pub const ATTEMPTS: u64 = bit(2) // DAC_READ_SEARCH: open_by_handle_at
    | bit(16) // SYS_MODULE
    | bit(17) // SYS_RAWIO
    | bit(SYS_PTRACE)
    | bit(SYS_ADMIN)
    | bit(22) // SYS_BOOT: kexec, reboot
    | bit(25) // SYS_TIME
    | bit(34) // SYSLOG
    | bit(38); // PERFMON

const fn bit(capability: u32) -> u64 {
    1 << capability
}

/// Whether `set` holds `capability`; numbers above 63 are in no set.
#[must_use]
pub const fn holds(set: u64, capability: u32) -> bool {
    capability < 64 && set & (1 << capability) != 0
}

/// The name of a capability, or `None` for one newer than this list.
#[must_use]
pub fn name(capability: u32) -> Option<&'static str> {
    NAMES.get(capability as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_numbers() {
        assert_eq!(name(SYS_ADMIN), Some("CAP_SYS_ADMIN"));
        assert_eq!(name(SYS_PTRACE), Some("CAP_SYS_PTRACE"));
        assert_eq!(name(39), Some("CAP_BPF"));
        assert_eq!(name(41), None);
        assert!(
            holds(ATTEMPTS, SYS_ADMIN)
                && !holds(ATTEMPTS, 24)
                && !holds(ATTEMPTS, 39)
                && !holds(u64::MAX, 64)
        );
    }
}
