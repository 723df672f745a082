//! `cargo xtask image`: the agent as an OCI image, without a container engine.
//!
//! The archive is an OCI image layout in a tar file, as `ctr images import`, `podman load` and `skopeo copy
//! oci-archive:` take it. The same files give the same bytes.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::{
    build, process, run,
    steps::Steps,
    workspace::{Profile, Workspace},
};

/// The image's name, as deploy/ has it.
pub const NAME: &str = concat!("localhost/userns-agent:", env!("CARGO_PKG_VERSION"));
const PROGRAM: &str = "usr/bin/userns-agent";
/// Where the DaemonSet mounts something: a read-only root file system cannot grow mount points.
const MOUNT_POINTS: [&str; 8] =
    ["dev", "etc/userns-agent", "host/cgroup", "host/kubelet/pods", "proc", "run/userns-agent", "sys", "tmp"];

/// What to make.
#[derive(Debug, Args)]
pub struct Options {
    /// The root file system alone, in target/image/root
    #[arg(long)]
    root_only: bool,
}

/// Builds the agent and makes the image.
///
/// # Errors
///
/// When the agent does not build, needs files that are not in the image, or a file cannot be written.
pub fn image(steps: &mut Steps, workspace: &Workspace, options: &Options) -> Result<()> {
    let agent = build::all(steps, workspace, Profile::Release)?;
    let dir = workspace.target().join("image");
    if options.root_only {
        root(steps, &agent, &dir).map(drop)
    } else {
        archive(steps, &agent, &dir).map(drop)
    }
}

/// Makes the image of `agent` in `dir`, and returns the archive's path.
///
/// # Errors
///
/// When the agent needs files that are not in the image, or a file cannot be written.
pub fn archive(steps: &mut Steps, agent: &Path, dir: &Path) -> Result<PathBuf> {
    let root = root(steps, agent, dir)?;
    steps.step("archive", "writes the root file system as an OCI image", || {
        let output = dir.join("userns-agent.oci.tar");
        let file = File::create(&output).with_context(|| format!("cannot create {}", output.display()))?;
        write(&root, file).with_context(|| format!("cannot write {}", output.display()))?;
        println!("    {}, which is {NAME}", output.display());
        println!("    import it on a node: ctr --namespace k8s.io images import {}", output.display());
        Ok(output)
    })
}

fn root(steps: &mut Steps, agent: &Path, dir: &Path) -> Result<PathBuf> {
    steps.step("root", "assembles the image's root file system", || assemble(agent, &dir.join("root")))
}

/// The root file system: the agent, and where things are mounted.
fn assemble(agent: &Path, root: &Path) -> Result<PathBuf> {
    if root.exists() {
        fs::remove_dir_all(root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    let program = root.join(PROGRAM);
    for dir in MOUNT_POINTS.map(|dir| root.join(dir)).iter().map(PathBuf::as_path).chain(program.parent()) {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    fs::copy(agent, &program).with_context(|| format!("cannot copy {}", agent.display()))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).context("cannot make it executable")?;
    if run::is_root()? {
        // nothing but what is in it, so that a library that is missing is noticed now
        let mut version = Command::new("chroot");
        version.arg(root).arg(format!("/{PROGRAM}")).arg("version");
        let said = process::stdout(&mut version).context(
            "the agent does not run with this root file system alone: one that `cargo xtask build` made does",
        )?;
        println!("    {}", said.lines().next().unwrap_or_default());
    }
    Ok(root.to_owned())
}

/// Writes the image of `root` to `out`.
fn write(root: &Path, out: impl Write) -> Result<()> {
    let layer = Blob::new("layer.v1.tar", layer(root)?);
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let labels = json!({
        "org.opencontainers.image.title": "userns-agent",
        "org.opencontainers.image.description": "Checks at run time that Kubernetes user namespaces hold",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
        "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
    });
    let config = json!({
        "architecture": arch,
        "os": "linux",
        "config": {
            "User": "0:0",
            "Entrypoint": [format!("/{PROGRAM}")],
            "Cmd": ["run"],
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        "history": [{"created_by": "cargo xtask image"}],
    });
    let config = Blob::new("config.v1+json", config.to_string().into_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor(),
        "layers": [layer.descriptor()],
    });
    let blob = Blob::new("manifest.v1+json", manifest.to_string().into_bytes());
    let mut manifest = blob.descriptor();
    manifest["platform"] = json!({"architecture": arch, "os": "linux"});
    manifest["annotations"] = json!({
        "io.containerd.image.name": NAME,
        "org.opencontainers.image.ref.name": env!("CARGO_PKG_VERSION"),
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    layout(&[layer, config, blob], &index, out).context("cannot write the archive")
}

/// A part of the image, known by its digest, which takes a while to compute.
struct Blob {
    kind: &'static str,
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(kind: &'static str, bytes: Vec<u8>) -> Self {
        Self { kind, digest: digest(&bytes), bytes }
    }

    fn descriptor(&self) -> Value {
        json!({
            "mediaType": format!("application/vnd.oci.image.{}", self.kind),
            "digest": self.digest,
            "size": self.bytes.len(),
        })
    }
}

fn layout(blobs: &[Blob], index: &Value, out: impl Write) -> io::Result<()> {
    let mut tar = Builder::new(out);
    file(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    file(&mut tar, "index.json", 0o644, index.to_string().as_bytes())?;
    for blob in blobs {
        let name = blob.digest.replace(':', "/");
        file(&mut tar, &format!("blobs/{name}"), 0o644, &blob.bytes)?;
    }
    tar.into_inner()?.flush()
}

/// The files below `root` as root's, in the order of their names and with no time.
fn layer(root: &Path) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    add(&mut tar, root, Path::new(""))?;
    tar.into_inner().context("cannot write the layer")
}

fn add(tar: &mut Builder<Vec<u8>>, root: &Path, below: &Path) -> Result<()> {
    let dir = root.join(below);
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    for name in names {
        let (path, inside) = (dir.join(&name), below.join(&name));
        let text = inside.to_str().with_context(|| format!("{} is no UTF-8", inside.display()))?;
        if path.is_dir() {
            let mut header = header(EntryType::Directory, 0o755, 0);
            tar.append_data(&mut header, text, io::empty()).context("cannot write the layer")?;
            add(tar, root, &inside)?;
        } else {
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            file(tar, text, path.metadata()?.permissions().mode() & 0o777, &bytes)?;
        }
    }
    Ok(())
}

fn file(tar: &mut Builder<impl Write>, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
    tar.append_data(&mut header(EntryType::Regular, mode, bytes.len() as u64), name, bytes)
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read as _};

    use super::*;

    fn entries(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(bytes);
        let entry = |entry: io::Result<tar::Entry<'_, _>>| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (entry.path().unwrap().display().to_string(), bytes)
        };
        archive.entries().unwrap().map(entry).collect()
    }

    #[test]
    fn the_archive_is_a_consistent_layout_and_the_same_each_time() {
        let dir = std::env::temp_dir().join(format!("userns-image-{}", std::process::id()));
        let root = dir.join("root");
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::create_dir_all(root.join("run/empty")).unwrap();
        fs::write(root.join(PROGRAM), "program").unwrap();
        fs::set_permissions(root.join(PROGRAM), fs::Permissions::from_mode(0o755)).unwrap();
        let image = || {
            let mut bytes = Vec::new();
            write(&root, &mut bytes).unwrap();
            bytes
        };
        let first = image();
        File::options()
            .append(true)
            .open(root.join(PROGRAM))
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH)
            .unwrap();
        assert!(first == image(), "the time of a file is in the archive");
        fs::remove_dir_all(&dir).unwrap();

        let files = entries(&first);
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let blob = |descriptor: &Value| {
            let name = descriptor["digest"].as_str().unwrap();
            let bytes = &files[&format!("blobs/{}", name.replace(':', "/"))];
            assert_eq!(
                (digest(bytes).as_str(), descriptor["size"].as_u64()),
                (name, Some(bytes.len() as u64))
            );
            bytes.clone()
        };
        let index = json(&files["index.json"]);
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], NAME);
        let manifest = json(&blob(&index["manifests"][0]));
        let config = json(&blob(&manifest["config"]));
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&layer));
        let inside = entries(&layer);
        assert_eq!(inside[PROGRAM], b"program");
        assert!(inside.contains_key("run/empty"), "{:?}", inside.keys());
        assert_eq!(files.len(), 5);
    }
}
