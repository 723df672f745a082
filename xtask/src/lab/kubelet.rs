//! What kubelet keeps on disk, and what the API server says about the same pods.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{ids, ids::IdRange};

const RECORD: &str = "userns";

/// kubelet's root directory, `/var/lib/kubelet` on a node.
#[derive(Debug)]
pub(super) struct KubeletRoot {
    path: PathBuf,
}

impl KubeletRoot {
    pub(super) fn new(path: PathBuf) -> Result<Self> {
        let pods = path.join("pods");
        fs::create_dir_all(&pods).with_context(|| format!("cannot create {}", pods.display()))?;
        Ok(Self { path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directories every pod has.
    pub(super) fn add_pod(&self, pod_uid: &str) -> Result<()> {
        for part in ["volumes", "plugins", "containers"] {
            let path = self.pod_dir(pod_uid).join(part);
            fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        }
        Ok(())
    }

    /// Writes which host IDs the pod got, in the way kubelet does: a new file, synced, renamed into place.
    pub(super) fn record(&self, pod_uid: &str, range: IdRange) -> Result<()> {
        let pod_dir = self.pod_dir(pod_uid);
        let temporary = pod_dir.join(format!(".{}", ids::lab_id()?));
        let write = || {
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(record_text(range).as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, pod_dir.join(RECORD))?;
            File::open(&pod_dir)?.sync_all()
        };
        write().with_context(|| format!("cannot write the record of {}", pod_dir.display()))
    }

    /// Removes the record, as kubelet does when the pod has ended.
    pub(super) fn release(&self, pod_uid: &str) -> Result<()> {
        let path = self.pod_dir(pod_uid).join(RECORD);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    pub(super) fn remove_pod(&self, pod_uid: &str) -> Result<()> {
        let path = self.pod_dir(pod_uid);
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    fn pod_dir(&self, pod_uid: &str) -> PathBuf {
        self.path.join("pods").join(pod_uid)
    }
}

fn record_text(range: IdRange) -> String {
    let mappings = format!(r#"[{{"hostId":{},"containerId":0,"length":{}}}]"#, range.first, range.length);
    format!(r#"{{"uidMappings":{mappings},"gidMappings":{mappings}}}"#)
}

/// A pod as the API server knows it.
#[derive(Debug)]
pub(super) struct PodObject<'a> {
    pub(super) uid: &'a str,
    pub(super) name: &'a str,
    pub(super) namespace: &'a str,
    pub(super) labels: &'a [(String, String)],
    pub(super) host_users: Option<bool>,
    /// Names and IDs.
    pub(super) containers: Vec<(String, String)>,
}

impl PodObject<'_> {
    /// Without `kind` and `apiVersion`, which items of a list do not have.
    pub(super) fn to_json(&self) -> Value {
        let labels: serde_json::Map<_, _> =
            self.labels.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        let (specs, statuses): (Vec<_>, Vec<_>) = self
            .containers
            .iter()
            .map(|(name, id)| {
                let id = format!("containerd://{id}");
                (json!({ "name": name, "image": "busybox" }), json!({ "name": name, "containerID": id }))
            })
            .unzip();
        let mut pod = json!({
            "metadata": {
                "name": self.name, "namespace": self.namespace, "uid": self.uid, "labels": labels,
            },
            "spec": { "containers": specs },
            "status": { "containerStatuses": statuses },
        });
        if let Some(host_users) = self.host_users {
            pod["spec"]["hostUsers"] = json!(host_users);
        }
        pod
    }
}

/// Writes a Kubernetes `PodList` to `path`, so that a reader sees the old list or the new one.
pub(super) fn write_pod_list(path: &Path, pods: &[Value]) -> Result<()> {
    let list = json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods });
    let temporary = path.with_extension("partial");
    let text = serde_json::to_string_pretty(&list).context("cannot write a pod list as JSON")?;
    fs::write(&temporary, text)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_what_kubelet_writes() {
        let range = IdRange { first: 3_841_261_568, length: 65536 };
        assert_eq!(
            record_text(range),
            "{\"uidMappings\":[{\"hostId\":3841261568,\"containerId\":0,\"length\":65536}],\
             \"gidMappings\":[{\"hostId\":3841261568,\"containerId\":0,\"length\":65536}]}"
        );
    }

    #[test]
    fn an_unset_host_users_is_absent() {
        let labels = [("app".to_owned(), "web".to_owned())];
        let containers = vec![("main".to_owned(), "0a".to_owned())];
        let mut pod =
            PodObject { uid: "u", name: "n", namespace: "ns", labels: &labels, host_users: None, containers };
        let object = pod.to_json();
        assert_eq!(object["metadata"], json!({"name":"n","namespace":"ns","uid":"u","labels":{"app":"web"}}));
        assert_eq!(object["spec"].get("hostUsers"), None);
        assert_eq!(object["status"]["containerStatuses"][0]["containerID"], "containerd://0a");
        pod.host_users = Some(false);
        assert_eq!(pod.to_json()["spec"]["hostUsers"], false);
    }
}
