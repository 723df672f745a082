//! The format of kubelet's records. Pure.

use serde::Deserialize;

use crate::event::{Extent, KubeletRecord};
use crate::host::brief;

/// Largest record that is read. Kubelet's own are about 130 bytes.
pub const MAX_RECORD_BYTES: usize = 64 * 1024;
/// Most extents the kernel takes in a map (`UID_GID_MAP_MAX_EXTENTS`, include/linux/user_namespace.h).
const MAX_EXTENTS: usize = 340;

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It is too long to be one.
    #[error("it is larger than {MAX_RECORD_BYTES} bytes")]
    TooLarge,
    /// It is not the JSON that kubelet writes.
    #[error("it is not what kubelet writes: {}", brief(&source.to_string()))]
    Json {
        /// What the parser says, with line and column.
        #[from]
        source: serde_json::Error,
    },
    /// A mapping maps nothing, or there are more than the kernel takes.
    #[error("{key} {reason}")]
    Mappings {
        /// Which ones.
        key: &'static str,
        /// What is wrong with them.
        reason: &'static str,
    },
}

#[derive(Deserialize)]
struct Record {
    #[serde(rename = "uidMappings")]
    uid_mappings: Vec<Mapping>,
    #[serde(rename = "gidMappings")]
    gid_mappings: Vec<Mapping>,
}

#[derive(Deserialize)]
struct Mapping {
    #[serde(rename = "hostId")]
    host_id: u32,
    #[serde(rename = "containerId")]
    container_id: u32,
    length: u32,
}

/// Reads the text of a record.
///
/// Types and ranges are checked, unknown keys are passed over. Whether the ids are a pod's is not decided here:
/// a record that kubelet should not have written has to be seen as it is.
///
/// # Errors
///
/// [`RecordError`]
pub fn parse_record(bytes: &[u8]) -> Result<KubeletRecord, RecordError> {
    if bytes.len() > MAX_RECORD_BYTES {
        return Err(RecordError::TooLarge);
    }
    let record: Record = serde_json::from_slice(bytes)?;
    Ok(KubeletRecord {
        uid_mappings: extents("uidMappings", &record.uid_mappings)?,
        gid_mappings: extents("gidMappings", &record.gid_mappings)?,
    })
}

fn extents(key: &'static str, mappings: &[Mapping]) -> Result<Vec<Extent>, RecordError> {
    if mappings.is_empty() || mappings.len() > MAX_EXTENTS {
        return Err(RecordError::Mappings { key, reason: "are none or more than 340" });
    }
    if mappings.iter().any(|mapping| mapping.length == 0) {
        return Err(RecordError::Mappings { key, reason: "hold one of length 0" });
    }
    let extent = |it: &Mapping| Extent { first: it.container_id, lower_first: it.host_id, count: it.length };
    Ok(mappings.iter().map(extent).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As kubelet 1.36.2 writes it.
    const REAL: &str = r#"{"uidMappings":[{"hostId":3841261568,"containerId":0,"length":65536}],"gidMappings":[{"hostId":3841261568,"containerId":0,"length":65536}]}"#;

    #[test]
    fn kubelets_own_text_is_read() {
        let extents = vec![Extent { first: 0, lower_first: 3_841_261_568, count: 65_536 }];
        let expected = KubeletRecord { uid_mappings: extents.clone(), gid_mappings: extents };
        assert_eq!(parse_record(REAL.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn unknown_keys_and_space_are_passed_over() {
        let text = REAL.replace('{', "{ \"new\": [{\"x\": null}],\n").replace("65536", "65536 ");
        assert_eq!(parse_record(text.as_bytes()).unwrap(), parse_record(REAL.as_bytes()).unwrap());
    }

    #[test]
    fn ids_that_no_pod_should_have_are_seen_as_they_are() {
        for id in ["0", "65535", "4294901760", "4294967295"] {
            assert!(parse_record(REAL.replace("3841261568", id).as_bytes()).is_ok(), "{id}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for (from, to) in [
            ("3841261568", "4294967296"),
            ("3841261568", "-1"),
            ("3841261568", "1.0"),
            ("3841261568", "\"1\""),
            ("3841261568", "null"),
            ("65536", "0"),
            ("hostId", "hostID"),
            ("\"containerId\":0,", ""),
            ("\"containerId\":0,", "\"containerId\":0,\"containerId\":0,"),
            ("gidMappings", "gids"),
            ("[{", "[[{"),
            ("]}", "]}x"),
            ("]}", "]"),
        ] {
            let text = REAL.replace(from, to);
            assert!(parse_record(text.as_bytes()).is_err(), "{text}");
        }
        for text in ["", "{}", "[]", "null", "\0", r#"{"uidMappings":[],"gidMappings":[]}"#] {
            assert!(parse_record(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse_record(&REAL.as_bytes()[..100]).is_err());
    }

    #[test]
    fn long_and_deep_texts_are_refused() {
        let spaces = " ".repeat(MAX_RECORD_BYTES + 1 - REAL.len());
        assert!(matches!(parse_record(format!("{REAL}{spaces}").as_bytes()), Err(RecordError::TooLarge)));
        assert!(parse_record(format!("{REAL}{}", &spaces[1..]).as_bytes()).is_ok());
        assert!(parse_record(format!("{{\"x\":{}", "[".repeat(60_000)).as_bytes()).is_err());
        let many = format!("[{}]", vec![r#"{"hostId":1,"containerId":0,"length":1}"#; 341].join(","));
        assert!(
            parse_record(format!(r#"{{"uidMappings":{many},"gidMappings":{many}}}"#).as_bytes()).is_err()
        );
    }
}
