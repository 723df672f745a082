//! The formats of procfs. Pure.

use std::fmt;

use crate::event::{CapSets, Extent, IdMap, Ids, Text};
use userns_common::limits::MAX_EXTENTS;

/// A file of procfs that does not look as the kernel writes it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: expected {expected}")]
pub struct ParseError {
    /// The line, from 1.
    pub line: usize,
    /// What should be there.
    pub expected: &'static str,
}

/// What `/proc/PID/status` says. Ids are those of the reader's user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Process id, in the pid namespace of the procfs.
    pub tgid: u32,
    /// Its parent's.
    pub ppid: u32,
    /// Ids.
    pub ids: Ids,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Capability sets.
    pub caps: CapSets,
    /// Process ids from the procfs's pid namespace down to its own.
    pub ns_pids: Vec<u32>,
    /// Seccomp mode, if the kernel has any.
    pub seccomp: Option<u32>,
    /// Whether no_new_privs is set.
    pub no_new_privs: Option<bool>,
}

/// Reads `/proc/PID/uid_map` or `gid_map`.
///
/// The second number of a line is an id of the *reader's* user namespace (of its parent, if the reader is in the
/// very namespace that is mapped); 4294967295 stands for an id that has none there.
///
/// # Errors
///
/// A line is not three numbers below 2^32.
pub fn parse_id_map(text: &str) -> Result<Vec<Extent>, ParseError> {
    text.lines().enumerate().map(|(index, line)| extent(line, index + 1)).collect()
}

fn extent(text: &str, line: usize) -> Result<Extent, ParseError> {
    let wrong = ParseError { line, expected: "three numbers" };
    let mut numbers = text.split_ascii_whitespace().map(number);
    let mut next = || numbers.next().flatten().ok_or(wrong.clone());
    let extent = Extent { first: next()?, lower_first: next()?, count: next()? };
    if numbers.next().is_none() { Ok(extent) } else { Err(wrong) }
}

/// Digits only: `u32::from_str` would take a sign too.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// The map as the kernel's records have it: of more extents than it keeps inline, only the number.
#[must_use]
pub fn to_id_map(extents: &[Extent]) -> IdMap {
    let mut map = IdMap { nr_extents: u32::try_from(extents.len()).unwrap_or(u32::MAX), ..IdMap::default() };
    if extents.len() <= MAX_EXTENTS {
        map.extents.iter_mut().zip(extents).for_each(|(slot, extent)| *slot = *extent);
    }
    map
}

/// The path in the unified hierarchy from `/proc/PID/cgroup`; `None` if the kernel has only version 1 ones.
///
/// It is relative to the reader's cgroup namespace: from another one it begins with `/..`.
#[must_use]
pub fn parse_cgroup(bytes: &[u8]) -> Option<Text> {
    let path = bytes.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::"))?;
    // appended while a process is still in a cgroup that has been removed
    Some(Text::from_bytes(path.strip_suffix(b" (deleted)").unwrap_or(path)))
}

/// Reads `/proc/PID/status`.
///
/// # Errors
///
/// A line that is there is not as the kernel writes it, or one of the lines needed is missing.
pub fn parse_status(text: &str) -> Result<Status, ParseError> {
    let mut status = Status::default();
    let mut seen = 0;
    for (index, line) in text.lines().enumerate() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let known = read_status_line(&mut status, key, value.trim_ascii());
        let expected = "a status line as the kernel writes it";
        seen += usize::from(known.ok_or(ParseError { line: index + 1, expected })?);
    }
    let complete = seen == 4;
    if complete {
        Ok(status)
    } else {
        Err(ParseError { line: 1, expected: "Tgid, PPid, Uid and Gid, once each" })
    }
}

/// Whether the line is one of those needed; `None` if it is malformed.
fn read_status_line(status: &mut Status, key: &str, value: &str) -> Option<bool> {
    let numbers = || value.split_ascii_whitespace().map(number).collect::<Option<Vec<_>>>();
    match key {
        "Tgid" => status.tgid = number(value)?,
        "PPid" => status.ppid = number(value)?,
        "Uid" => {
            let [uid, euid, suid, fsuid] = numbers()?.try_into().ok()?;
            status.ids = Ids { uid, euid, suid, fsuid, ..status.ids };
        }
        "Gid" => {
            let [gid, egid, sgid, fsgid] = numbers()?.try_into().ok()?;
            status.ids = Ids { gid, egid, sgid, fsgid, ..status.ids };
        }
        _ => return read_optional_line(status, key, value).map(|()| false),
    }
    Some(true)
}

fn read_optional_line(status: &mut Status, key: &str, value: &str) -> Option<()> {
    let set = || u64::from_str_radix(value, 16).ok();
    match key {
        "Groups" => status.groups = value.split_ascii_whitespace().map(number).collect::<Option<_>>()?,
        "NSpid" => status.ns_pids = value.split_ascii_whitespace().map(number).collect::<Option<_>>()?,
        "CapInh" => status.caps.inheritable = set()?,
        "CapPrm" => status.caps.permitted = set()?,
        "CapEff" => status.caps.effective = set()?,
        "CapBnd" => status.caps.bounding = set()?,
        "CapAmb" => status.caps.ambient = set()?,
        "Seccomp" => status.seccomp = Some(number(value)?),
        "NoNewPrivs" => status.no_new_privs = Some(number(value)? != 0),
        _ => {}
    }
    Some(())
}

/// The start time in clock ticks since boot from `/proc/PID/stat`.
#[must_use]
pub fn parse_start(bytes: &[u8]) -> Option<u64> {
    // the command name, second and in parentheses, may itself hold anything
    let end = bytes.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(bytes.get(end + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The arguments from `/proc/PID/cmdline`.
#[must_use]
pub fn parse_cmdline(bytes: &[u8]) -> Vec<Text> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes.split(|byte| *byte == 0).map(Text::from_bytes).collect()
}

/// The inode number from a link in `/proc/PID/ns`, `user:[4026531837]`.
#[must_use]
pub fn parse_namespace(link: &str) -> Option<u32> {
    number(link.split_once(":[")?.1.strip_suffix(']')?).filter(|number| *number != 0)
}

/// The device of each mount from `/proc/PID/mountinfo`, as (mount id, device). Unlike what stat(2) says it is the
/// super block's also on btrfs, which shows a device of its own for each subvolume.
#[must_use]
pub fn parse_mount_devices(bytes: &[u8]) -> Vec<(u64, Device)> {
    let line = |line: &[u8]| {
        let text = std::str::from_utf8(line.get(..line.len().min(64))?);
        let text =
            text.or_else(|error| std::str::from_utf8(line.get(..error.valid_up_to()).unwrap_or_default()));
        let mut fields = text.ok()?.split(' ');
        let id = fields.next()?.parse().ok()?;
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        Some((id, Device::new(number(major)?, number(minor)?)?))
    };
    bytes.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// A device number as the kernel keeps it (`MKDEV`): 12 bits major, 20 bits minor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device(pub u32);

impl Device {
    const MINOR_BITS: u32 = 20;

    /// From its parts; `None` if one is out of range.
    #[must_use]
    pub fn new(major: u32, minor: u32) -> Option<Self> {
        (major < 1 << 12 && minor < 1 << Self::MINOR_BITS).then_some(Self(major << Self::MINOR_BITS | minor))
    }

    /// From `st_dev`, in which the minor number's upper bits stand above the major number (`new_encode_dev`).
    #[must_use]
    pub fn from_st_dev(st_dev: u64) -> Option<Self> {
        Self::new(rustix::fs::major(st_dev), rustix::fs::minor(st_dev))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0 >> Self::MINOR_BITS, self.0 & ((1 << Self::MINOR_BITS) - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_maps_cover_all_of_u32() {
        let text = "         0          0 4294967295\n";
        let whole = Extent { first: 0, lower_first: 0, count: u32::MAX };
        assert_eq!(parse_id_map(text), Ok(vec![whole]));
        let pod = "         0 3841261568      65536\n     65536 4294967295          1\n";
        let extents = parse_id_map(pod).unwrap();
        assert_eq!(extents[0], Extent { first: 0, lower_first: 3_841_261_568, count: 65_536 });
        assert_eq!(extents[1].lower_first, u32::MAX);
        assert_eq!(parse_id_map(""), Ok(vec![]));
    }

    #[test]
    fn malformed_id_maps_are_refused() {
        let lines = [
            "0 0",
            "0 0 1 2",
            "0 0 4294967296",
            "a b c",
            "+0 0 1",
            "-1 0 1",
            "0x0 0 1",
            "",
            " ",
            "0 0 1\n\n",
        ];
        for line in lines {
            let text = format!("0 0 1\n{line}\n");
            let expected = if line.ends_with('\n') { 3 } else { 2 };
            assert_eq!(parse_id_map(&text).map_err(|error| error.line), Err(expected), "{line:?}");
        }
    }

    #[test]
    fn long_maps_keep_their_number_only() {
        let extent = Extent { first: 1, lower_first: 2, count: 3 };
        assert_eq!(to_id_map(&[extent; 5]).extents, [extent; 5]);
        let long = to_id_map(&[extent; 6]);
        assert_eq!((long.nr_extents, long.extents), (6, Default::default()));
    }

    #[test]
    fn the_unified_path_is_found_among_version_1_lines() {
        let path = |text: &str| parse_cgroup(text.as_bytes()).map(|path| path.as_str().to_owned());
        assert_eq!(path("0::/kubepods/x\n").as_deref(), Some("/kubepods/x"));
        assert_eq!(path("9:name=systemd:/a\n8:pids:/b:0::/c\n0::/d:e\n").as_deref(), Some("/d:e"));
        assert_eq!(path("0::/gone (deleted)\n").as_deref(), Some("/gone"));
        assert_eq!(path("9:name=systemd:/a\n10::/x\n"), None);
        assert_eq!(path(""), None);
        assert_eq!(parse_cgroup(b"0::/a\xffb\n").unwrap().as_str(), "/a\\xffb");
    }

    const STATUS: &str = "Name:\tpause\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t812\nNgid:\t0\nPid:\t812\nPPid:\t790\n\
        TracerPid:\t0\nUid:\t3841327103\t3841261568\t0\t4294967295\nGid:\t1\t2\t3\t4\nFDSize:\t64\n\
        Groups:\t3841327103 \nNStgid:\t812\t1\nNSpid:\t812\t7\t1\nCapInh:\t0000000000000000\n\
        CapPrm:\t00000000a80425fb\nCapEff:\t000001ffffffffff\nCapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\n\
        NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";

    #[test]
    fn status_is_read() {
        let status = parse_status(STATUS).unwrap();
        assert_eq!((status.tgid, status.ppid), (812, 790));
        let Ids { uid, euid, suid, fsuid, gid, egid, sgid, fsgid } = status.ids;
        assert_eq!([uid, euid, suid, fsuid], [3_841_327_103, 3_841_261_568, 0, u32::MAX]);
        assert_eq!([gid, egid, sgid, fsgid], [1, 2, 3, 4]);
        assert_eq!(status.caps.effective, 0x1ff_ffff_ffff);
        assert_eq!(status.ns_pids, [812, 7, 1]);
        assert_eq!((status.seccomp, status.no_new_privs), (Some(2), Some(true)));
    }

    #[test]
    fn incomplete_or_malformed_status_is_refused() {
        for line in ["Tgid:\t812\n", "PPid:\t790\n", "Gid:\t1\t2\t3\t4\n"] {
            assert!(parse_status(&STATUS.replace(line, "")).is_err(), "{line}");
            assert!(parse_status(&STATUS.replace(line, &line.repeat(2))).is_err(), "{line}");
        }
        assert_eq!(parse_status(&STATUS.replace("\t3\t4", "\t3")).unwrap_err().line, 10);
        assert!(parse_status(&STATUS.replace("000001ff", "x")).is_err());
    }

    #[test]
    fn start_times_survive_hostile_names() {
        let rest = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 987654 20";
        for name in ["sh", "a) b", ") S 1 2 (", "\u{fffd}", ""] {
            assert_eq!(parse_start(format!("12 ({name}){rest}").as_bytes()), Some(987_654), "{name}");
        }
        assert_eq!(parse_start(b"12 (\xff\xfe) S 1"), None);
        assert_eq!(parse_start(b"12 sh"), None);
    }

    #[test]
    fn arguments_are_split() {
        let texts = |list: &[&str]| list.iter().map(|text| Text::from(*text)).collect::<Vec<_>>();
        assert_eq!(parse_cmdline(b"sh\0-c\0\0"), texts(&["sh", "-c", ""]));
        assert_eq!(parse_cmdline(b"cut at"), texts(&["cut at"]));
        assert_eq!(parse_cmdline(b""), []);
    }

    #[test]
    fn namespace_links_are_read() {
        assert_eq!(parse_namespace("user:[4026531837]"), Some(4_026_531_837));
        for link in ["user:[]", "user:[0]", "user:4026531837", "user:[99999999999]", "/etc", "user:[1]x"] {
            assert_eq!(parse_namespace(link), None, "{link}");
        }
    }

    #[test]
    fn devices_are_as_the_kernel_keeps_them() {
        // new_encode_dev: minor bits 0-7, major bits 8-19, minor bits 8-19 from bit 20
        for (major, minor, st_dev) in [
            (8, 1, 0x801),
            (259, 7, 0x1_0307),
            (0, 0x123, 0x10_0023),
            (0xfff, 0xf_ffff, 0xffff_ffff_u64),
            (0, 0, 0),
        ] {
            let device = Device::new(major, minor).unwrap();
            assert_eq!(device.0, major << 20 | minor);
            assert_eq!(Device::from_st_dev(st_dev), Some(device), "{st_dev:#x}");
            assert_eq!(device.to_string(), format!("{major}:{minor}"));
        }
        assert_eq!(Device::new(1 << 12, 0), None);
    }

    #[test]
    fn mount_devices_are_read() {
        let text = b"22 1 259:7 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p7 rw\n\
            23 22 0:45 /@/usr /usr\\040x rw - btrfs /dev/sda2 rw,subvol=/@/usr\n\xff\n24 22 x\n\
            25 22 0:7 /\xff\xfe\xff / rw - tmpfs x rw\n";
        let devices = parse_mount_devices(text);
        let device = |major, minor| Device::new(major, minor).unwrap();
        assert_eq!(devices, [(22, device(259, 7)), (23, device(0, 45)), (25, device(0, 7))]);
    }
}
