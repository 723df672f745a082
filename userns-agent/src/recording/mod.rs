//! Recordings: everything the core took in, in order, so that any version of the rules can be run over it again.
//!
//! A file is [`MAGIC`], [`VERSION`] as two bytes, the lower first, and an LZ4 frame (lz4_Frame_format.md) whose blocks
//! have checksums. In the frame are entries, each with its length before it: a [`Header`], then [`Entry`]s. What cannot
//! be kept up with is left out and told of by [`Entry::Gap`]; a recording that was not cut ends with [`Entry::End`].
//! docs/recordings.md says it for users.

mod codec;
mod reader;
mod replay;
#[cfg(test)]
mod tests;
mod writer;

use crate::core::{Engine, Limits};
use crate::event::{Input, Reference};
use crate::sink::WallClock;
use codec::{Bytes, Code, Malformed};

pub use reader::{Reader, RecordingError};
pub use replay::{Arguments, ReplayError, replay};
pub use writer::{Options, RecordError, Recorder, Writer};

/// What a recording begins with.
pub const MAGIC: [u8; 8] = *b"USERNSRC";
/// Version of the format. A recording of another one is refused.
pub const VERSION: u16 = 1;

/// What the inputs were recorded under: what the core was made with, and what its findings are told with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version of the agent.
    pub agent: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Name of the node.
    pub node: String,
    /// Nanoseconds of Unix time at which `CLOCK_BOOTTIME` was zero, when the recording began.
    pub boot: u64,
    /// Bounds and delays of the core.
    pub limits: Limits,
    /// Runtime classes that are not observable.
    pub unobservable: Vec<String>,
    /// The user namespace that counts as the host's.
    pub reference: Reference,
}

impl Header {
    /// A core that knows nothing yet.
    #[must_use]
    pub fn engine(&self) -> Engine {
        Engine::new(self.limits).under(self.reference.clone()).without(self.unobservable.clone())
    }

    /// Where the node's boot lay in civil time.
    #[must_use]
    pub fn clock(&self) -> WallClock {
        WallClock { boot: self.boot }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let Self { agent, kernel, node, boot, limits, unobservable, reference } = self;
        agent.write(&mut out);
        kernel.write(&mut out);
        node.write(&mut out);
        boot.write(&mut out);
        limits.write(&mut out);
        unobservable.write(&mut out);
        reference.write(&mut out);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        whole(bytes, |bytes| {
            Ok(Self {
                agent: Code::read(bytes)?,
                kernel: Code::read(bytes)?,
                node: Code::read(bytes)?,
                boot: Code::read(bytes)?,
                limits: Code::read(bytes)?,
                unobservable: Code::read(bytes)?,
                reference: Code::read(bytes)?,
            })
        })
    }
}

/// Why a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The agent did.
    Stopped,
    /// It had the size that it was given.
    Full,
}

/// What follows the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The core took this in.
    Input(Input),
    /// So many inputs are missing here: the file could not be written as fast as they came.
    Gap(u64),
    /// The recording is whole.
    End(Ended),
}

impl Code for Entry {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Input(input) => {
                codec::number(0, out);
                input.write(out);
            }
            Self::Gap(count) => {
                codec::number(1, out);
                count.write(out);
            }
            Self::End(Ended::Stopped) => codec::number(2, out),
            Self::End(Ended::Full) => codec::number(3, out),
        }
    }

    fn read(bytes: &mut Bytes<'_>) -> Result<Self, Malformed> {
        Ok(match u64::read(bytes)? {
            0 => Self::Input(Code::read(bytes)?),
            1 => Self::Gap(Code::read(bytes)?),
            2 => Self::End(Ended::Stopped),
            3 => Self::End(Ended::Full),
            other => return Err(Malformed::Unknown(other)),
        })
    }
}

/// Reads a value that takes all of the bytes.
fn whole<T>(bytes: &[u8], read: impl FnOnce(&mut Bytes<'_>) -> Result<T, Malformed>) -> Result<T, Malformed> {
    let mut bytes = Bytes::new(bytes);
    let value = read(&mut bytes)?;
    if bytes.0.is_empty() { Ok(value) } else { Err(Malformed::Trailing) }
}

/// An entry as it stands in the frame.
fn append(entry: &[u8], out: &mut Vec<u8>) {
    codec::number(entry.len() as u64, out);
    out.extend_from_slice(entry);
}
