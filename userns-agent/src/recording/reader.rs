//! Reads recordings, whatever became of them.

use std::io::{self, BufRead as _, BufReader, Read};

use lz4_flex::frame::FrameDecoder;

use super::codec::{Code as _, Malformed};
use super::{Entry, Header, MAGIC, VERSION, whole};

/// Largest entry that is read: a list of all pods of a large node is some megabytes.
const MAX_ENTRY: u64 = 64 << 20;
const BUFFER: usize = 64 << 10;

/// Why a recording cannot be read, or not any further.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// It cannot be read at all.
    #[error("cannot read the recording: {0}")]
    Io(io::Error),
    /// It is something else.
    #[error("this is no recording: it does not begin as one that `userns-agent record` made")]
    NoRecording,
    /// Its format is not this one.
    #[error(
        "the recording's format is version {found}, and this agent reads version {VERSION}: use the agent that made it"
    )]
    Version {
        /// The version it has.
        found: u16,
    },
    /// It ends before its end: the agent or the node was stopped meanwhile, or it was cut later.
    #[error("the recording is cut after {entries} entries: what it had until then was read")]
    Cut {
        /// Entries before.
        entries: u64,
    },
    /// It was changed, by a broken disk or by someone.
    #[error(
        "the recording is damaged after {entries} entries (byte {offset} of what is compressed): {why}; what it had until \
             then was read"
    )]
    Damaged {
        /// Entries before.
        entries: u64,
        /// Bytes before, uncompressed.
        offset: u64,
        /// What is wrong.
        why: String,
    },
}

/// Reads a recording entry by entry.
#[derive(Debug)]
pub struct Reader<R: Read> {
    stream: Stream<R>,
    header: Header,
    ended: bool,
}

/// What is in the frame.
#[derive(Debug)]
struct Stream<R: Read> {
    source: BufReader<FrameDecoder<R>>,
    entry: Vec<u8>,
    entries: u64,
    offset: u64,
}

impl<R: Read> Reader<R> {
    /// Reads what comes before the first input.
    ///
    /// # Errors
    ///
    /// [`RecordingError`]
    pub fn new(mut source: R) -> Result<Self, RecordingError> {
        let mut start = [0; 10];
        source.read_exact(&mut start).map_err(|error| {
            let short = error.kind() == io::ErrorKind::UnexpectedEof;
            if short { RecordingError::NoRecording } else { RecordingError::Io(error) }
        })?;
        let [magic @ .., low, high] = start;
        if magic != MAGIC {
            return Err(RecordingError::NoRecording);
        }
        let found = u16::from_le_bytes([low, high]);
        if found != VERSION {
            return Err(RecordingError::Version { found });
        }
        let source = BufReader::with_capacity(BUFFER, FrameDecoder::new(source));
        let mut stream = Stream { source, entry: Vec::new(), entries: 0, offset: 0 };
        stream.fill()?;
        let header = Header::decode(&stream.entry).map_err(|why| stream.damaged(why))?;
        Ok(Self { stream, header, ended: false })
    }

    /// What it was recorded under.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next entry; `None` after [`Entry::End`].
    ///
    /// # Errors
    ///
    /// [`RecordingError`]; nothing can be read after one.
    #[expect(clippy::should_implement_trait, reason = "it fails, and ends when it has failed")]
    pub fn next(&mut self) -> Result<Option<Entry>, RecordingError> {
        if self.ended {
            return Ok(None);
        }
        self.stream.fill()?;
        let entry = whole(&self.stream.entry, Entry::read).map_err(|why| self.stream.damaged(why))?;
        self.stream.entries += 1;
        self.ended = matches!(entry, Entry::End(_));
        Ok(Some(entry))
    }
}

impl<R: Read> Stream<R> {
    fn damaged(&self, why: impl ToString) -> RecordingError {
        RecordingError::Damaged { entries: self.entries, offset: self.offset, why: why.to_string() }
    }

    /// Reads the bytes of one entry.
    fn fill(&mut self) -> Result<(), RecordingError> {
        let length = self.length()?;
        if length > MAX_ENTRY {
            return Err(
                self.damaged(format!("an entry of {length} bytes, and none is longer than {MAX_ENTRY}"))
            );
        }
        self.entry.clear();
        // no more is taken than is there, whatever the length says
        let mut limited = io::Read::by_ref(&mut self.source).take(length);
        let read = limited.read_to_end(&mut self.entry);
        self.offset += self.entry.len() as u64;
        match read {
            Ok(read) if read as u64 == length => Ok(()),
            Ok(_) => Err(RecordingError::Cut { entries: self.entries }),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn length(&mut self) -> Result<u64, RecordingError> {
        let mut length = 0;
        for shift in (0..63).step_by(7) {
            let byte = match self.source.fill_buf() {
                Ok([]) => return Err(RecordingError::Cut { entries: self.entries }),
                Ok([byte, ..]) => *byte,
                Err(error) => return Err(self.failed(&error)),
            };
            self.source.consume(1);
            self.offset += 1;
            length |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(length);
            }
        }
        Err(self.damaged(Malformed::Range))
    }

    fn failed(&self, error: &io::Error) -> RecordingError {
        let short = error.kind() == io::ErrorKind::UnexpectedEof;
        if short { RecordingError::Cut { entries: self.entries } } else { self.damaged(error) }
    }
}
