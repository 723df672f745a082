//! Root file systems: one busybox image, and for each container an overlay of it that host root mounts.
//!
//! Overlays are what containerd uses, and their file operations run with the mounter's credentials, which an
//! agent that judges credentials must not mistake for the container's.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt as _, chown, lchown, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, anyhow};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use super::{
    idmap,
    ids::IdMapping,
    namespace::{MountNamespace, overlay},
};

const DIRECTORIES: [&str; 10] =
    ["bin", "sbin", "usr/bin", "usr/sbin", "etc", "proc", "sys", "dev", "root", "tmp"];
const BUSYBOX: &str = "bin/busybox";

/// The image and the overlays of it, mounted in one mount namespace.
#[derive(Debug)]
pub(super) struct RootfsStore {
    namespace: MountNamespace,
    image: PathBuf,
    area: PathBuf,
    lower_layers: Mutex<BTreeMap<(PathBuf, Vec<IdMapping>), PathBuf>>,
}

impl RootfsStore {
    /// Makes the image of `busybox` at `image`; the overlays go below the directory `area`, all of whose
    /// ancestors must be open to every user: a runtime's last steps run with the container's IDs.
    pub(super) fn new(
        namespace: MountNamespace,
        busybox: &Path,
        image: PathBuf,
        area: PathBuf,
    ) -> Result<Self> {
        make_image(busybox, &image)?;
        namespace.run(|| {
            mount("tmpfs", &area, "tmpfs", MountFlags::empty(), c"mode=755")
                .with_context(|| format!("cannot mount a tmpfs at {}", area.display()))?;
            let base = area.join("base");
            fs::create_dir(&base).with_context(|| format!("cannot create {}", base.display()))?;
            mount_bind(&image, &base).with_context(|| format!("cannot bind {}", image.display()))
        })?;
        Ok(Self { namespace, image, area, lower_layers: Mutex::default() })
    }

    /// Mounts the root file system of the container `id`, whose user namespace has `mapping`: of the directory
    /// `image`, or of the store's own.
    pub(super) fn mount(
        &self,
        id: &str,
        image: Option<&Path>,
        mapping: Option<&[IdMapping]>,
    ) -> Result<PathBuf> {
        let lower = self.lower_layer(image, mapping.unwrap_or_default())?;
        let place = self.area.join(id);
        let root = mapping.and_then(|mapping| mapping.iter().find(|range| range.container_id == 0));
        self.namespace.run(|| {
            let parts = ["upper", "work", "rootfs"].map(|part| place.join(part));
            for part in &parts {
                fs::create_dir_all(part).with_context(|| format!("cannot create {}", part.display()))?;
            }
            let [upper, work, rootfs] = parts;
            let owner = root.map(|range| range.host_id);
            chown(&upper, owner, owner).with_context(|| format!("cannot chown {}", upper.display()))?;
            let [lower, upper, work] = [lower, upper, work].map(|layer| layer.display().to_string());
            overlay(&format!("lowerdir={lower},upperdir={upper},workdir={work}"), &rootfs)?;
            Ok(rootfs)
        })
    }

    /// Takes the root file system of the container `id` away.
    pub(super) fn unmount(&self, id: &str) -> Result<()> {
        let place = self.area.join(id);
        self.namespace.run(|| {
            unmount(place.join("rootfs"), UnmountFlags::DETACH)
                .with_context(|| format!("cannot unmount the root file system of {id}"))?;
            fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))
        })
    }

    /// The image with the owners that `mapping` wants, kept for the next container with the same one.
    fn lower_layer(&self, image: Option<&Path>, mapping: &[IdMapping]) -> Result<PathBuf> {
        let base = image.map_or_else(|| self.area.join("base"), Path::to_owned);
        if mapping.is_empty() {
            return Ok(base);
        }
        let mut layers = self.lower_layers.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (base, mapping.to_vec());
        if let Some(layer) = layers.get(&key) {
            return Ok(layer.clone());
        }
        let target = self.area.join(format!("lower-{}", layers.len()));
        let mapped = self.namespace.run(|| {
            fs::create_dir(&target).with_context(|| format!("cannot create {}", target.display()))?;
            let mut sleeper = Command::new(self.image.join(BUSYBOX));
            idmap::mount_idmapped(&key.0, &target, mapping, sleeper.args(["sleep", "60"]))
        });
        match mapped {
            Err(error) if image.is_some() => return Err(error),
            // As containerd did before idmapped mounts: a copy with other owners.
            Err(_) => self.namespace.run(|| {
                make_image(&self.image.join(BUSYBOX), &target)?;
                let root = mapping.iter().find(|range| range.container_id == 0).map(|range| range.host_id);
                chown_tree(&target, root)
            })?,
            Ok(()) => {}
        }
        layers.insert(key, target.clone());
        Ok(target)
    }
}

fn chown_tree(path: &Path, owner: Option<u32>) -> Result<()> {
    lchown(path, owner, owner).with_context(|| format!("cannot chown {}", path.display()))?;
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
            chown_tree(&entry.with_context(|| format!("cannot list {}", path.display()))?.path(), owner)?;
        }
    }
    Ok(())
}

/// Makes the directory `image`: `busybox` with links for everything it can be, and accounts.
pub(super) fn make_image(busybox: &Path, image: &Path) -> Result<()> {
    for directory in DIRECTORIES {
        let path = image.join(directory);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    open(image, 0o755)
        .and_then(|()| open(&image.join("tmp"), 0o1777))
        .context("cannot open the image to all")?;
    fs::copy(busybox, image.join(BUSYBOX)).with_context(|| format!("cannot copy {}", busybox.display()))?;
    fs::write(
        image.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    )
    .and_then(|()| fs::write(image.join("etc/group"), "root:x:0:\nnobody:x:65534:\n"))
    .context("cannot write the image's accounts")?;
    let listing = Command::new(busybox).arg("--list-full").output().context("cannot run busybox")?;
    let applets = String::from_utf8(listing.stdout).context("busybox lists unreadable names")?;
    for applet in applets.lines().filter(|applet| *applet != BUSYBOX) {
        let link = image.join(applet);
        symlink("/bin/busybox", &link).with_context(|| format!("cannot link {}", link.display()))?;
    }
    if !image.join("bin/sh").is_symlink() {
        return Err(anyhow!("{} has no shell", busybox.display()));
    }
    Ok(())
}
