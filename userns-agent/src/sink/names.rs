//! Names for the kernel's numbers.

use userns_common::{caps, kind};

use crate::event::{Lineage, lineage, origin, reason, state};

/// Names of the capabilities in a set; `CAP_41` and so on for those newer than this agent.
pub(super) fn capabilities(set: u64) -> Vec<String> {
    (0..64).filter(|number| caps::holds(set, *number)).map(capability).collect()
}

/// Name of a capability.
pub(super) fn capability(number: u32) -> String {
    caps::name(number).map_or_else(|| format!("CAP_{number}"), str::to_owned)
}

/// Name of a system call of this architecture.
pub(super) fn syscall(number: u32) -> Option<&'static str> {
    syscalls::Sysno::new(number as usize).map(|syscall| syscall.name())
}

/// Name of the error in a return value; `None` for success and for errors that are told by nobody.
pub(crate) fn error(ret: i32) -> Option<&'static str> {
    Some(match ret.checked_neg()? {
        1 => "EPERM",
        2 => "ENOENT",
        3 => "ESRCH",
        5 => "EIO",
        6 => "ENXIO",
        9 => "EBADF",
        11 => "EAGAIN",
        12 => "ENOMEM",
        13 => "EACCES",
        14 => "EFAULT",
        16 => "EBUSY",
        19 => "ENODEV",
        20 => "ENOTDIR",
        22 => "EINVAL",
        24 => "EMFILE",
        26 => "ETXTBSY",
        28 => "ENOSPC",
        30 => "EROFS",
        36 => "ENAMETOOLONG",
        38 => "ENOSYS",
        40 => "ELOOP",
        75 => "EOVERFLOW",
        87 => "EUSERS",
        95 => "EOPNOTSUPP",
        116 => "ESTALE",
        _ => return None,
    })
}

/// State of a lineage.
pub(super) fn lineage_state(number: u32) -> &'static str {
    match number {
        state::ENTERING => "entering",
        state::INSIDE => "inside",
        _ => "outside",
    }
}

/// Origin of a lineage.
pub(super) fn lineage_origin(number: u32) -> Option<&'static str> {
    match number {
        origin::ATTACHED => Some("attached"),
        origin::BORN => Some("born"),
        origin::ADOPTED => Some("adopted"),
        origin::FOREIGN => Some("foreign"),
        _ => None,
    }
}

/// Flags of a lineage in the lower half, reasons told in the upper one.
const LINEAGE: &[(u64, &str)] = &[
    (lineage::WORKLOAD as u64, "workload"),
    (lineage::ENDING as u64, "ending"),
    (lineage::OWED as u64, "owed"),
    ((reason::LEFT_USERNS as u64) << 32, "told_left"),
    ((reason::ID_OUTSIDE_MAP as u64) << 32, "told_ids"),
    ((reason::PAST_GRACE as u64) << 32, "told_grace"),
    ((reason::FOREIGN_NAMESPACE as u64) << 32, "told_namespace"),
    ((reason::LEFT_CGROUP as u64) << 32, "told_cgroup"),
    ((reason::ACTS_OUTSIDE as u64) << 32, "told_acts"),
    ((reason::FOREIGN_ENTRY as u64) << 32, "told_entry"),
];

/// Flags of a lineage, and what was told of it.
pub(super) fn lineage_flags(lineage: &Lineage) -> Vec<String> {
    flag_names(u64::from(lineage.told) << 32 | u64::from(lineage.flags), LINEAGE)
}

/// include/uapi/linux/sched.h
const CLONE: &[(u64, &str)] = &[
    (0x80, "CLONE_NEWTIME"),
    (0x100, "CLONE_VM"),
    (0x200, "CLONE_FS"),
    (0x400, "CLONE_FILES"),
    (0x800, "CLONE_SIGHAND"),
    (0x1000, "CLONE_PIDFD"),
    (0x4000, "CLONE_VFORK"),
    (0x8000, "CLONE_PARENT"),
    (0x1_0000, "CLONE_THREAD"),
    (0x2_0000, "CLONE_NEWNS"),
    (0x4_0000, "CLONE_SYSVSEM"),
    (0x200_0000, "CLONE_NEWCGROUP"),
    (0x400_0000, "CLONE_NEWUTS"),
    (0x800_0000, "CLONE_NEWIPC"),
    (0x1000_0000, "CLONE_NEWUSER"),
    (0x2000_0000, "CLONE_NEWPID"),
    (0x4000_0000, "CLONE_NEWNET"),
    (0x2_0000_0000, "CLONE_INTO_CGROUP"),
];

/// include/uapi/linux/mount.h
const MOUNT: &[(u64, &str)] = &[
    (0x1, "MOUNT_ATTR_RDONLY"),
    (0x2, "MOUNT_ATTR_NOSUID"),
    (0x4, "MOUNT_ATTR_NODEV"),
    (0x8, "MOUNT_ATTR_NOEXEC"),
    (0x80, "MOUNT_ATTR_NODIRATIME"),
    (0x10_0000, "MOUNT_ATTR_IDMAP"),
    (0x20_0000, "MOUNT_ATTR_NOSYMFOLLOW"),
];

/// Flags of an operation.
pub(super) fn operation_flags(operation: kind::Operation, flags: u64) -> Vec<String> {
    match operation {
        kind::Operation::Capability => Vec::new(),
        kind::Operation::Setns
        | kind::Operation::Unshare
        | kind::Operation::CloneNewUser
        | kind::Operation::UnshareNewUser => flag_names(flags, CLONE),
        kind::Operation::MountSetattr | kind::Operation::OpenTreeAttr => flag_names(flags, MOUNT),
    }
}

/// The names of the flags that are set; what has no name comes last, as one hexadecimal number.
fn flag_names(flags: u64, names: &[(u64, &str)]) -> Vec<String> {
    let known = names.iter().filter(|(bit, _)| flags & bit != 0);
    let mut found: Vec<String> = known.clone().map(|(_, name)| (*name).to_owned()).collect();
    let rest = known.fold(flags, |rest, (bit, _)| rest & !bit);
    if rest != 0 {
        found.push(format!("{rest:#x}"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_names() {
        assert_eq!(capabilities(1 << 21 | 1 << 41), ["CAP_SYS_ADMIN", "CAP_41"]);
        assert_eq!(capabilities(u64::MAX).len(), 64);
        assert_eq!(error(-1), Some("EPERM"));
        assert_eq!((error(0), error(-4095), error(i32::MIN)), (None, None, None));
        assert_eq!((lineage_state(0), lineage_state(2)), ("outside", "inside"));
        let lineage =
            Lineage { flags: lineage::WORKLOAD, told: reason::ID_OUTSIDE_MAP, ..Lineage::default() };
        assert_eq!(lineage_flags(&lineage), ["workload", "told_ids"]);
    }

    #[test]
    fn system_calls_are_those_of_this_architecture() {
        let (setns, clone3) = if cfg!(target_arch = "x86_64") { (308, 435) } else { (268, 435) };
        assert_eq!(syscall(setns), Some("setns"));
        assert_eq!(syscall(clone3), Some("clone3"));
        assert_eq!(syscall(467), Some("open_tree_attr"));
        assert_eq!(syscall(100_000), None);
    }

    #[test]
    fn flags_are_named_as_the_call_means_them() {
        let flags = 0x1000_0000 | 0x2_0000 | 0x1;
        assert_eq!(operation_flags(kind::Operation::Unshare, flags), ["CLONE_NEWNS", "CLONE_NEWUSER", "0x1"]);
        assert_eq!(operation_flags(kind::Operation::MountSetattr, 0x10_0000), ["MOUNT_ATTR_IDMAP"]);
    }
}
