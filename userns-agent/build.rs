//! Puts the eBPF object into the crate: the one `USERNS_EBPF_OBJECT` names, or an empty one without it.
//!
//! With the empty object everything compiles on a plain toolchain; the agent then refuses to start.

use std::{env, fs, io, path::PathBuf};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=USERNS_EBPF_OBJECT");
    let out = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo sets OUT_DIR"))?;
    let embedded = PathBuf::from(out).join("userns.o");
    let Some(object) = env::var_os("USERNS_EBPF_OBJECT").map(PathBuf::from) else {
        return fs::write(embedded, []);
    };
    println!("cargo::rerun-if-changed={}", object.display());
    match fs::copy(&object, embedded) {
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", object.display()))),
    }
}
