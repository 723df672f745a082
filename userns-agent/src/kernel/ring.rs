//! Rings as asynchronous sources of raw records.

use std::io;

use aya::maps::{MapData, RingBuf};
use tokio::io::unix::AsyncFd;

/// A ring.
pub struct Ring(AsyncFd<RingBuf<MapData>>);

impl Ring {
    /// Registers a ring with the runtime.
    ///
    /// # Errors
    ///
    /// When the runtime cannot watch its descriptor.
    pub fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        // SAFETY: the ring owns its descriptor and keeps the same one until it is dropped, with the AsyncFd.
        Ok(Self(unsafe { AsyncFd::register(ring) }?))
    }

    /// Waits until there may be records.
    ///
    /// # Errors
    ///
    /// When the runtime cannot watch the descriptor any more.
    pub async fn ready(&mut self) -> io::Result<()> {
        self.0.readable_mut().await?.clear_ready();
        Ok(())
    }

    /// Hands up to `most` records to `take`; returns whether there may be more.
    pub fn drain(&mut self, most: usize, mut take: impl FnMut(&[u8])) -> bool {
        let ring = self.0.get_mut();
        for _ in 0..most {
            let Some(item) = ring.next() else { return false };
            take(&item);
        }
        true
    }
}
