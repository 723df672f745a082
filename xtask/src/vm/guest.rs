//! One guest from start to end: QEMU's child process, its two serial ports, and the time it has.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::watch::Watch;
use crate::process;

/// How often the console is looked at.
const TICK: Duration = Duration::from_millis(200);
/// What a guest that has reported its end may take to power off.
const POWER_OFF: Duration = Duration::from_secs(5);
/// After a panic the kernel still prints where it was.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long a guest may take, in all and until its first process has spoken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) boot: Duration,
    pub(super) total: Duration,
}

/// Why the runner stopped looking.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The guest told its status.
    Finished,
    /// QEMU ended, and the guest had told nothing.
    Vanished(String),
    /// It did not come up in time.
    NoBoot,
    /// It came up, and was not done in time.
    NotDone,
    /// The kernel is beyond hope.
    Crashed(String),
}

/// Files a guest leaves on the host.
#[derive(Debug)]
pub(super) struct Traces {
    /// The kernel's console.
    pub(super) console: PathBuf,
    /// What QEMU itself had to say.
    pub(super) qemu: PathBuf,
}

/// The child, killed with its value.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `command`, a guest with its second serial port on standard output, and hands on each line from there.
///
/// # Errors
///
/// When QEMU cannot be started or a file not be made; whatever happens in the guest is no error.
pub(super) fn run(
    mut command: Command,
    traces: &Traces,
    limits: Limits,
    mut show: impl FnMut(&str),
) -> Result<(Watch, End)> {
    let create =
        |path: &Path| File::create(path).with_context(|| format!("cannot create {}", path.display()));
    let mut console = Console::new(create(&traces.console).and_then(|_| open(&traces.console))?);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(create(&traces.qemu)?);
    // SAFETY: between fork and exec the closure only makes one system call.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
    let start = Instant::now();
    let child = command.spawn().with_context(|| format!("cannot start {}", process::line(&command)))?;
    let mut qemu = Qemu(child);
    let output = qemu.0.stdout.take().context("QEMU has no standard output")?;
    let lines = read_lines(output);
    let mut watch = Watch::default();
    let mut doomed = None;
    let end = loop {
        let closed = match lines.recv_timeout(TICK) {
            Ok(line) => {
                if watch.read(&line, start.elapsed()) {
                    show(&line);
                }
                false
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        console.lines(|line| watch.read_console(line));
        if let Some(end) = verdict(&watch, start.elapsed(), limits, &mut doomed, closed) {
            break end;
        }
    };
    if end == End::Finished {
        await_exit(&mut qemu.0);
    }
    drop(qemu);
    watch.end(start.elapsed());
    Ok((watch, vanished(end, traces)))
}

fn verdict(
    watch: &Watch,
    now: Duration,
    limits: Limits,
    doomed: &mut Option<Duration>,
    closed: bool,
) -> Option<End> {
    if watch.exit.is_some() {
        return Some(End::Finished);
    }
    if let Some(why) = watch.given_up() {
        let since = *doomed.get_or_insert(now);
        return (closed || now.saturating_sub(since) > LAST_WORDS).then_some(End::Crashed(why));
    }
    if closed {
        return Some(End::Vanished(String::new()));
    }
    if watch.booted.is_none() && now > limits.boot {
        return Some(End::NoBoot);
    }
    (now > limits.total).then_some(End::NotDone)
}

fn vanished(end: End, traces: &Traces) -> End {
    if matches!(end, End::Vanished(_)) { End::Vanished(tail(&traces.qemu, 5)) } else { end }
}

fn await_exit(child: &mut Child) {
    let start = Instant::now();
    while start.elapsed() < POWER_OFF && matches!(child.try_wait(), Ok(None)) {
        thread::sleep(Duration::from_millis(20));
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}

fn read_lines(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut bytes = Vec::new();
        while output.read_until(b'\n', &mut bytes).is_ok_and(|length| length > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
            if sender.send(line).is_err() {
                break;
            }
            bytes.clear();
        }
    });
    receiver
}

/// The last lines of a file, as far as it is there.
pub(super) fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A file that grows, read by whole lines.
struct Console {
    file: File,
    rest: Vec<u8>,
}

impl Console {
    const fn new(file: File) -> Self {
        Self { file, rest: Vec::new() }
    }

    fn lines(&mut self, mut each: impl FnMut(&str)) {
        // What cannot be read now is read at the next tick.
        let _ = self.file.read_to_end(&mut self.rest);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        String::from_utf8_lossy(&whole).lines().for_each(&mut each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { boot: Duration::from_secs(20), total: Duration::from_secs(20) };

    /// Runs a shell script in QEMU's place; `$1` is the console.
    fn fake(name: &str, script: &str, limits: Limits) -> (Watch, End, Vec<String>) {
        let place =
            |kind| std::env::temp_dir().join(format!("userns-vm-{}-{name}-{kind}", std::process::id()));
        let traces = Traces { console: place("console"), qemu: place("qemu") };
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(&traces.console);
        let mut shown = Vec::new();
        let (watch, end) = run(command, &traces, limits, |line| shown.push(line.to_owned())).unwrap();
        fs::remove_file(&traces.console).unwrap();
        fs::remove_file(&traces.qemu).unwrap();
        (watch, end, shown)
    }

    #[test]
    fn a_guest_that_finishes_is_told_by_its_exit() {
        let script = "echo userns-vm: booted 1.0; echo hello; echo userns-vm: exit 3";
        let (watch, end, shown) = fake("exit", script, LIMITS);
        assert_eq!((end, shown), (End::Finished, vec!["hello".to_owned()]));
        assert_eq!(watch.exit.map(|(status, _)| status), Some(3));
    }

    #[test]
    fn a_guest_that_hangs_is_killed() {
        let short = Duration::from_millis(300);
        let (_, end, _) = fake("boot", "exec sleep 60", Limits { boot: short, ..LIMITS });
        assert_eq!(end, End::NoBoot);
        let script = "echo userns-vm: booted 1.0; echo userns-vm: begin a; exec sleep 60";
        let (watch, end, _) = fake("hang", script, Limits { total: Duration::from_secs(1), ..LIMITS });
        assert_eq!((end, watch.tests.len()), (End::NotDone, 1));
    }

    #[test]
    fn a_panic_and_a_missing_qemu_are_told_apart() {
        let panic = "echo userns-vm: booted 1.0; echo 'Kernel panic - not syncing: x' >$1; exec sleep 60";
        let (_, end, _) = fake("panic", panic, LIMITS);
        assert_eq!(end, End::Crashed("Kernel panic - not syncing: x".into()));
        let (_, end, _) = fake("gone", "echo no such machine >&2; exit 1", LIMITS);
        assert_eq!(end, End::Vanished("no such machine".into()));
    }
}
