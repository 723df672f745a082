//! The eBPF object embedded at build time.

/// The object's bytes, aligned for the ELF parser; empty if the build had none.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/userns.o"));

/// Whether this build has eBPF programs.
#[must_use]
pub fn embedded() -> bool {
    !OBJECT.is_empty()
}

/// The object, if there is one.
#[must_use]
pub fn bytes() -> Option<&'static [u8]> {
    embedded().then_some(OBJECT)
}
