//! One output's thread: takes lines from its queue and writes each whole, however long that takes.

use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::SinkKind;
use super::file::LogFile;
use super::metrics::Metrics;
use super::queue::{About, Line, Next, Queue};
use super::report::boot_now;

/// Pause before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Pause while a non-blocking stream takes no more.
const FULL: Duration = Duration::from_millis(10);
/// Time between two log messages about the same output.
const COMPLAIN: Duration = Duration::from_secs(60);

/// Something that takes lines.
pub(super) trait Target: Send {
    /// Writes a line. After an error it is called again with the same line, or not at all.
    fn write_line(&mut self, line: &[u8]) -> io::Result<()>;

    /// Opens the output afresh, where that means anything.
    fn reopen(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream, such as standard output.
#[derive(Debug)]
pub(super) struct Stream {
    stream: fs::File,
    /// Bytes of the current line that are written.
    sent: usize,
}

impl Stream {
    pub(super) fn new(stream: fs::File) -> Self {
        Self { stream, sent: 0 }
    }
}

impl Target for Stream {
    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        while let Some(rest) = line.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.sent = 0;
        Ok(())
    }
}

impl Target for LogFile {
    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        LogFile::write_line(self, line)
    }

    fn reopen(&mut self) -> io::Result<()> {
        LogFile::reopen(self).map_err(io::Error::other)
    }
}

/// What became of a line.
enum Written {
    Whole,
    /// Nobody reads the output any more.
    Never,
    /// The queue was closed and its time is up.
    NotInTime,
}

/// The thread's state.
pub(super) struct Writer {
    pub(super) kind: SinkKind,
    pub(super) queue: Arc<Queue>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) target: Box<dyn Target>,
    /// Called once, when nobody will read the output any more.
    pub(super) on_gone: Box<dyn Fn() + Send>,
    pub(super) complained: Option<Instant>,
}

impl Writer {
    pub(super) fn run(mut self) {
        loop {
            match self.queue.next() {
                Next::Write(line) => match self.write(&line) {
                    Written::Whole => {
                        self.queue.done();
                        self.metrics.sink_queue_bytes(self.kind, self.queue.bytes());
                    }
                    Written::Never => {
                        self.queue.done();
                        return;
                    }
                    // who closes the queue counts this line among those that are left
                    Written::NotInTime => return,
                },
                Next::Reopen => self.reopen(),
                Next::End => return,
            }
        }
    }

    /// Writes a line, trying again as long as that can help.
    fn write(&mut self, line: &Line) -> Written {
        loop {
            let Err(error) = self.target.write_line(&line.bytes) else {
                self.wrote(line);
                return Written::Whole;
            };
            if error.kind() == ErrorKind::BrokenPipe && self.kind == SinkKind::Stdout {
                self.gone(line, &error);
                return Written::Never;
            }
            let pause = if error.kind() == ErrorKind::WouldBlock {
                FULL
            } else {
                self.metrics.sink_error(self.kind);
                self.complain("cannot write", &error);
                RETRY
            };
            if !self.queue.wait_to_retry(pause) {
                return Written::NotInTime;
            }
            if self.queue.take_reopen() {
                self.reopen();
            }
        }
    }

    fn wrote(&self, line: &Line) {
        let delay = match line.about {
            About::Opened(time, _) => Some(boot_now().since(time)),
            About::Updated(..) | About::Agent => None,
        };
        self.metrics.sink_written(self.kind, delay);
        if let Some(receipt) = &line.receipt {
            receipt.written();
        }
    }

    fn gone(&mut self, line: &Line, error: &io::Error) {
        self.metrics.sink_error(self.kind);
        self.metrics.sink_dropped(self.kind, line.about.severity(), 1);
        for (severity, count) in self.queue.kill() {
            self.metrics.sink_dropped(self.kind, severity, count);
        }
        self.complain("nobody reads the output any more", error);
        (self.on_gone)();
    }

    fn reopen(&mut self) {
        match self.target.reopen() {
            Ok(()) => tracing::info!(sink = self.kind.name(), "opened afresh"),
            Err(error) => {
                self.metrics.sink_error(self.kind);
                self.complain("cannot open afresh, the old file stays in use", &error);
            }
        }
    }

    fn complain(&mut self, what: &str, error: &io::Error) {
        if self.complained.is_none_or(|last| last.elapsed() >= COMPLAIN) {
            self.complained = Some(Instant::now());
            tracing::error!(sink = self.kind.name(), %error, "{what}");
        }
    }
}
