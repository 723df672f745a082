//! Mounts that tasks work in.

use core::ffi::c_void;

use userns_common::kind::place;

use super::{Reader, Task, UserNs, follow, read, read_ptr};
use crate::maps::{opaque, setting};

/// Error numbers as pointers begin here (include/linux/err.h): the kernel's own mounts have one for a namespace
/// (fs/mount.h, `MNT_NS_INTERNAL`).
const ERRORS: u64 = 0u64.wrapping_sub(4095);
/// Inode number of every namespace of detached mounts from Linux 6.18 on (include/uapi/linux/nsfs.h, `MNT_NS_ANON_INO`).
/// Before, they have none.
const DETACHED: u32 = 0xefff_fff7;

/// Larger numbers of open files are taken for smaller ones.
const MAX_FD: u32 = (1 << 20) - 1;

/// A `struct vfsmount`.
#[derive(Clone, Copy)]
struct Mount(*const c_void);

impl Mount {
    /// Address of the mount namespace that it is attached in; 0 for the kernel's own and those that were detached.
    #[inline(always)]
    fn namespace(self) -> u64 {
        let whole = self.0.wrapping_byte_sub(setting!(offsets.mount_mnt) as usize);
        let namespace: u64 = read(whole, setting!(offsets.mount_mnt_ns));
        if namespace < ERRORS { namespace } else { 0 }
    }
}

impl Task {
    /// An open file, by its number; null if it is closed by now.
    #[inline(always)]
    pub(super) fn open_file(self, reader: &mut Reader, number: u64) -> *const c_void {
        let files = reader.ptr(self.0, setting!(offsets.task_files));
        let table = reader.ptr(files, setting!(offsets.files_fdt));
        let open = reader.ptr(table, setting!(offsets.fdtable_fd));
        let number = number as u32 & MAX_FD;
        reader.ptr(open, number * size_of::<u64>() as u32)
    }

    /// The user namespace that the file system belongs to which an open file is of.
    #[inline(always)]
    pub(crate) fn owner_of_file_system(self, number: u64) -> Option<UserNs<false>> {
        let mut reader = Reader::new();
        let file = self.open_file(&mut reader, number);
        if file.is_null() {
            return None;
        }
        let inode = reader.ptr(file, setting!(offsets.file_inode));
        let sb = reader.ptr(inode, setting!(offsets.inode_sb));
        let owner = reader.ptr(sb, setting!(offsets.sb_user_ns));
        reader.done();
        (!owner.is_null()).then(|| UserNs::from_arg(owner))
    }

    /// What it works in mounts by, as bits of [`place`]: those that are attached in another mount namespace than its
    /// own, of which `is_foreign` holds for the owner.
    #[inline(always)]
    pub(crate) fn places_where(self, program: bool, is_foreign: impl Fn(UserNs<false>) -> bool) -> u32 {
        // SAFETY: typed pointers, offsets from BTF; a fault reads as null.
        let (own, fs, directory, root) = unsafe {
            let proxy: *const c_void = follow(self.0, setting!(offsets.task_nsproxy));
            let fs: *const c_void = follow(self.0, setting!(offsets.task_fs));
            if proxy.is_null() || fs.is_null() {
                return 0;
            }
            let own: u64 = follow(proxy, setting!(offsets.nsproxy_mnt));
            let directory = Mount(follow(fs, setting!(offsets.fs_pwd_mnt)));
            (own, fs, directory, Mount(follow(fs, setting!(offsets.fs_root_mnt))))
        };
        let bit = |mount: Mount, bit: u32| {
            if mount.0.is_null() {
                return 0;
            }
            let namespace = mount.namespace();
            if namespace == 0 || namespace == own {
                return 0;
            }
            let at = namespace as *const c_void;
            let inum: u32 = read(at, setting!(offsets.mnt_inum));
            let owner = UserNs::<false>::from_arg(read_ptr(at, setting!(offsets.mnt_user_ns)));
            if inum == 0 || inum == DETACHED || !is_foreign(owner) {
                return 0;
            }
            // another task's may have gone away while it was looked at
            let same = mount.namespace() == namespace && read_ptr(self.0, setting!(offsets.task_fs)) == fs;
            opaque(if same { bit } else { 0 })
        };
        let file = if program { self.exe_file() } else { core::ptr::null() };
        let executable = if file.is_null() { file } else { read_ptr(file, setting!(offsets.file_mnt)) };
        bit(directory, place::DIRECTORY) | bit(root, place::ROOT) | bit(Mount(executable), place::EXECUTABLE)
    }
}

/// Whether what a `struct linux_binprm` runs is the very file given to execve, rather than an interpreter. Those that an
/// administrator registered (binfmt_misc, flag `F`) are opened in the host's mount namespace, once for all.
#[inline(always)]
pub(crate) fn is_program(bprm: *const c_void) -> bool {
    read_ptr(bprm, setting!(offsets.bprm_interp)) == read_ptr(bprm, setting!(offsets.bprm_filename))
}
