//! Writes recordings beside the agent's work, never in its way.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use lz4_flex::frame::{BlockSize, FrameEncoder, FrameInfo};

use super::codec::Code as _;
use super::{Ended, Entry, Header, MAGIC, VERSION, append};
use crate::event::{Input, Nanos};
use crate::sink::Metrics;

/// Bytes that are handed on at once, uncompressed.
const CHUNK: usize = 64 << 10;
/// Chunks that wait to be written.
pub(super) const QUEUE: usize = 64;
/// What came is handed on after so long, whether there is a chunk of it or not.
const FLUSH_NS: u64 = 1_000_000_000;

/// What is recorded where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The file, which must not be there.
    pub path: PathBuf,
    /// Bytes that it may have, nearly.
    pub max_bytes: u64,
}

/// Why there is no recording.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the recording {}: {source}", path.display())]
pub struct RecordError {
    path: PathBuf,
    source: io::Error,
}

/// Inputs of one chunk.
struct Chunk {
    bytes: Vec<u8>,
    inputs: u64,
}

/// Takes inputs on the way to the core.
#[derive(Debug)]
pub struct Recorder {
    /// Gone once nothing more is taken.
    chunks: Option<SyncSender<Chunk>>,
    thread: Option<JoinHandle<()>>,
    bytes: Vec<u8>,
    entry: Vec<u8>,
    inputs: u64,
    /// Inputs that are missing before the next chunk.
    missing: u64,
    handed: Nanos,
    metrics: Arc<Metrics>,
}

impl Recorder {
    /// Makes the file, which only its owner may read: inputs hold command lines.
    ///
    /// # Errors
    ///
    /// [`RecordError`]
    pub fn start(options: &Options, header: &Header, metrics: Arc<Metrics>) -> Result<Self, RecordError> {
        let failed = |source| RecordError { path: options.path.clone(), source };
        let file = create(&options.path).map_err(failed)?;
        let writer = Writer::new(file, options.max_bytes, header).map_err(failed)?;
        Self::on(writer, &options.path, metrics).map_err(failed)
    }

    pub(super) fn on<W: Write + Send + 'static>(
        writer: Writer<W>,
        path: &Path,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let (sender, chunks) = sync_channel(QUEUE);
        let write = {
            let (path, metrics) = (path.to_owned(), Arc::clone(&metrics));
            move || {
                if let Err(error) = writer.write_all(&chunks, &metrics) {
                    metrics.recording_error();
                    tracing::error!("the recording {} ends here: {error}", path.display());
                }
            }
        };
        let thread = std::thread::Builder::new().name("recording".to_owned()).spawn(write)?;
        Ok(Self {
            chunks: Some(sender),
            thread: Some(thread),
            bytes: Vec::with_capacity(2 * CHUNK),
            entry: Vec::new(),
            inputs: 0,
            missing: 0,
            handed: Nanos(0),
            metrics,
        })
    }

    /// Takes one input.
    pub fn take(&mut self, input: &Input, now: Nanos) {
        if self.chunks.is_none() {
            return;
        }
        input_entry(input, &mut self.entry, &mut self.bytes);
        self.inputs += 1;
        if self.bytes.len() >= CHUNK || now.0.saturating_sub(self.handed.0) >= FLUSH_NS {
            self.handed = now;
            self.hand_on();
        }
    }

    fn chunk(&mut self) -> Chunk {
        Chunk { bytes: std::mem::take(&mut self.bytes), inputs: std::mem::take(&mut self.inputs) }
    }

    fn hand_on(&mut self) {
        let chunk = self.chunk();
        let Some(chunks) = &self.chunks else { return };
        match chunks.try_send(chunk) {
            Ok(()) => self.missing = 0,
            Err(TrySendError::Full(chunk)) => {
                self.metrics.recording_dropped(chunk.inputs);
                self.missing += chunk.inputs;
                append(&encode(&Entry::Gap(self.missing)), &mut self.bytes);
            }
            // full, or failed, which is told already
            Err(TrySendError::Disconnected(_)) => self.chunks = None,
        }
    }

    /// Writes what is left, and what is missing, and waits for that.
    pub fn finish(mut self) {
        let last = self.chunk();
        if let Some(chunks) = self.chunks.take() {
            // full, or failed, which is told already
            let _ = chunks.send(last);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn create(path: &Path) -> io::Result<std::fs::File> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.map_err(|error| {
        let exists = error.kind() == io::ErrorKind::AlreadyExists;
        if exists { io::Error::new(error.kind(), "it is there already; name another file") } else { error }
    })
}

fn encode(entry: &Entry) -> Vec<u8> {
    let mut bytes = Vec::new();
    entry.write(&mut bytes);
    bytes
}

/// Counts what is written.
struct Counted<W> {
    to: W,
    written: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Writes a recording to wherever.
pub struct Writer<W: Write> {
    frame: FrameEncoder<Counted<W>>,
    max_bytes: u64,
    entry: Vec<u8>,
    bytes: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Writes what comes before the first input. It is full from `max_bytes` on.
    ///
    /// # Errors
    ///
    /// Those of the target.
    pub fn new(mut to: W, max_bytes: u64, header: &Header) -> io::Result<Self> {
        to.write_all(&MAGIC)?;
        to.write_all(&VERSION.to_le_bytes())?;
        let info =
            FrameInfo::new().block_size(BlockSize::Max64KB).block_checksums(true).content_checksum(true);
        let frame = FrameEncoder::with_frame_info(info, Counted { to, written: 0 });
        let mut writer = Self { frame, max_bytes, entry: Vec::new(), bytes: Vec::new() };
        let mut bytes = Vec::new();
        append(&header.encode(), &mut bytes);
        writer.put(&bytes)?;
        Ok(writer)
    }

    /// Writes one input.
    ///
    /// # Errors
    ///
    /// Those of the target.
    pub fn input(&mut self, input: &Input) -> io::Result<()> {
        self.bytes.clear();
        input_entry(input, &mut self.entry, &mut self.bytes);
        self.frame.write_all(&self.bytes)
    }

    /// Writes entries as they stand in the frame, so that whatever becomes of the process, they are in the file.
    ///
    /// # Errors
    ///
    /// Those of the target.
    pub fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.frame.write_all(bytes)?;
        self.frame.flush()
    }

    fn is_full(&self) -> bool {
        self.frame.get_ref().written >= self.max_bytes
    }

    /// Writes the end.
    ///
    /// # Errors
    ///
    /// Those of the target.
    pub fn end(mut self, how: Ended) -> io::Result<W> {
        let mut bytes = Vec::new();
        append(&encode(&Entry::End(how)), &mut bytes);
        self.put(&bytes)?;
        let mut counted = self.frame.finish().map_err(io::Error::other)?;
        counted.flush()?;
        Ok(counted.to)
    }

    fn write_all(mut self, chunks: &Receiver<Chunk>, metrics: &Metrics) -> io::Result<()> {
        for chunk in chunks {
            self.put(&chunk.bytes)?;
            metrics.recorded(chunk.inputs);
            if self.is_full() {
                tracing::warn!("the recording has the size it was given, and ends here");
                return self.end(Ended::Full).map(drop);
            }
        }
        self.end(Ended::Stopped).map(drop)
    }
}

/// Appends `Entry::Input` of an input that stays where it is.
fn input_entry(input: &Input, entry: &mut Vec<u8>, out: &mut Vec<u8>) {
    entry.clear();
    super::codec::number(0, entry);
    input.write(entry);
    append(entry, out);
}
