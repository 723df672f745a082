//! Identifiers and identity mappings: pod UIDs, container IDs, ranges of user and group IDs.

use std::{fs::File, io::Read as _};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// A mapping of user or group IDs into a user namespace, as the OCI runtime specification has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct IdMapping {
    /// First ID inside the user namespace.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// The ID on the host that it stands for.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many IDs follow each other.
    #[serde(rename = "size")]
    pub length: u32,
}

/// The host IDs that kubelet sets aside for one pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First host ID; it is root inside the pod.
    pub first: u32,
    /// How many IDs: kubelet's `idsPerPod`, by default 65536.
    pub length: u32,
}

impl IdRange {
    /// The `index`th of kubelet's default ranges: 0 starts at host ID 65536.
    #[must_use]
    pub const fn nth(index: u16) -> Self {
        Self { first: (index as u32).saturating_add(1) << 16, length: 1 << 16 }
    }

    /// The one mapping kubelet asks the runtime for.
    #[must_use]
    pub fn mapping(self) -> Vec<IdMapping> {
        vec![IdMapping { container_id: 0, host_id: self.first, length: self.length }]
    }
}

/// A random (version 4) UUID, as the API server gives to pods.
pub(super) fn pod_uid() -> Result<String> {
    let mut bytes: [u8; 16] = random()?;
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let digits = hex(&bytes);
    let groups = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    Ok(groups.join("-"))
}

/// 64 random hexadecimal digits, the form of a container ID.
pub(super) fn container_id() -> Result<String> {
    Ok(hex(&random::<32>()?))
}

/// 16 random hexadecimal digits, naming one lab or what belongs to one agent.
pub(super) fn lab_id() -> Result<String> {
    Ok(hex(&random::<8>()?))
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_uid_is_a_version_4_uuid() {
        let uid = pod_uid().unwrap();
        assert_eq!(uid.len(), 36);
        assert_eq!(uid.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert_eq!(&uid[14..15], "4");
        assert!(matches!(&uid[19..20], "8" | "9" | "a" | "b"));
        assert_ne!(uid, pod_uid().unwrap());
    }

    #[test]
    fn a_container_id_is_64_hex_digits() {
        let id = container_id().unwrap();
        assert_eq!(id.len(), 64);
        assert!(id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }

    #[test]
    fn default_ranges_are_multiples_of_their_length() {
        assert_eq!(IdRange::nth(0), IdRange { first: 65536, length: 65536 });
        assert_eq!(IdRange::nth(65534).first, 4_294_901_760);
        let mapping = IdMapping { container_id: 0, host_id: 131_072, length: 65536 };
        assert_eq!(IdRange::nth(1).mapping(), [mapping]);
    }
}
