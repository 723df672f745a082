//! An attempt in a process of its own, with a limit of time: whatever becomes of it, this process goes on.

use std::ffi::CString;
use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, WaitStatus, kill_process, set_parent_process_death_signal,
    setrlimit, waitpid,
};

use super::technique::{Attempt, Outcome};

/// Time for a killed process to end; what sleeps in the kernel for longer is left to itself.
const DEATH: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(1);
/// Longest name of a process.
const MAX_NAME: usize = 15;

/// Runs `attempt` in a child called `name` and waits for its end, `limit` at most. Call it while there is one thread.
pub(super) fn run(name: &str, limit: Duration, attempt: impl FnOnce() -> Attempt) -> Outcome {
    let (mut reader, writer) = match std::io::pipe() {
        Ok(pipe) => pipe,
        Err(error) => return Outcome::Unsupported(format!("pipe: {error}")),
    };
    // SAFETY: the child has one thread, as this process has, and never returns from here.
    match unsafe { libc::fork() } {
        -1 => Outcome::Unsupported(format!("fork: {}", std::io::Error::last_os_error())),
        0 => {
            drop(reader);
            let outcome = prepare(name).and_then(|()| attempt());
            say(writer, &outcome.err().unwrap_or(Outcome::Allowed))
        }
        child => {
            drop(writer);
            match Pid::from_raw(child) {
                Some(child) => end(child, &mut reader, limit),
                None => Outcome::Unsupported("fork: no process".to_owned()),
            }
        }
    }
}

/// A child that is killed by seccomp must not make the node dump a core.
fn prepare(name: &str) -> Attempt {
    let unprepared =
        |what: &'static str| move |error: rustix::io::Errno| Outcome::Unsupported(format!("{what}: {error}"));
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(unprepared("prctl"))?;
    // 1 and not 0: the kernel runs no handler of core dumps either (fs/coredump.c)
    let none = Rlimit { current: Some(1), maximum: Some(1) };
    setrlimit(Resource::Core, none).map_err(unprepared("setrlimit"))?;
    // findings name the process
    if let Some(Ok(name)) = name.get(..name.len().min(MAX_NAME)).map(CString::new) {
        rustix::thread::set_name(&name).map_err(unprepared("prctl"))?;
    }
    Ok(())
}

fn say(mut writer: PipeWriter, outcome: &Outcome) -> ! {
    // one who is not heard has ended without a word
    let _ = writer.write_all(&outcome.encode());
    // SAFETY: ends this process, and runs nothing of its parent's.
    unsafe { libc::_exit(0) }
}

fn end(child: Pid, reader: &mut PipeReader, limit: Duration) -> Outcome {
    let heard = listen(reader, limit);
    if heard.is_none() {
        // it may just have ended
        let _ = kill_process(child, Signal::KILL);
    }
    let status = wait(child);
    let Some(heard) = heard else { return Outcome::TimedOut };
    let signal = status.and_then(WaitStatus::terminating_signal);
    match (Outcome::decode(&heard), signal) {
        (Some(outcome), _) => outcome,
        (None, Some(signal)) => Outcome::Killed { signal },
        (None, None) => Outcome::Unsupported("its process ended without a word".to_owned()),
    }
}

/// What a child says until it closes the pipe; `None` if it does not in time.
fn listen(reader: &mut PipeReader, limit: Duration) -> Option<Vec<u8>> {
    let started = Instant::now();
    let (mut heard, mut buffer) = (Vec::new(), [0; 512]);
    loop {
        let left = Timespec::try_from(limit.checked_sub(started.elapsed())?).ok()?;
        let ready = poll(&mut [PollFd::new(&*reader, PollFlags::IN)], Some(&left));
        match ready {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => match reader.read(&mut buffer) {
                Ok(0) | Err(_) => return Some(heard),
                Ok(count) => heard.extend(buffer.iter().take(count)),
            },
            Err(_) => return Some(heard),
        }
    }
}

fn wait(child: Pid) -> Option<WaitStatus> {
    let started = Instant::now();
    loop {
        match waitpid(Some(child), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => return Some(status),
            Ok(None) | Err(rustix::io::Errno::INTR) if started.elapsed() < DEATH => std::thread::sleep(PAUSE),
            Ok(None) | Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn what_a_child_says_is_heard() {
        assert_eq!(run("a", LONG, || Ok(())), Outcome::Allowed);
        let denied = Outcome::Denied { errno: 1, call: "mount of a thing".into() };
        assert_eq!(run("a-name-that-is-too-long", LONG, || Err(denied.clone())), denied);
    }

    #[test]
    fn a_death_is_an_outcome() {
        for signal in [libc::SIGSYS, libc::SIGKILL] {
            let outcome = run("dies", LONG, || {
                // SAFETY: ends the child alone.
                unsafe { libc::kill(libc::getpid(), signal) };
                std::thread::sleep(LONG);
                Ok(())
            });
            assert_eq!(outcome, Outcome::Killed { signal });
        }
    }

    #[test]
    fn a_hang_is_an_outcome() {
        let started = Instant::now();
        let outcome = run("hangs", Duration::from_millis(50), || {
            std::thread::sleep(LONG);
            Ok(())
        });
        assert_eq!(outcome, Outcome::TimedOut);
        assert!(started.elapsed() < LONG / 2);
    }

    #[test]
    fn every_outcome_survives_the_pipe() {
        let text = || "a b: c".to_owned();
        for outcome in [
            Outcome::Allowed,
            Outcome::Denied { errno: 13, call: text() },
            Outcome::Killed { signal: 31 },
            Outcome::TimedOut,
            Outcome::Unsupported(text()),
            Outcome::OutOfReach(text()),
            Outcome::Skipped(text()),
        ] {
            assert_eq!(Outcome::decode(&outcome.encode()), Some(outcome));
        }
        for cut in ["", "denied", "denied 1", "denied x y", "maybe 1 x"] {
            assert_eq!(Outcome::decode(cut.as_bytes()), None, "{cut}");
        }
    }
}
