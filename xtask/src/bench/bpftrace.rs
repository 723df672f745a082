//! A one-line script for bpftrace that prints both namespaces of each capability check: what one has without an agent.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

pub(super) const PROGRAM: &str = "bpftrace";
/// Its compiler takes a while under emulation.
const PATIENCE: Duration = Duration::from_secs(180);
/// The function's second argument, as older kernels and newer ones call it.
const ARGUMENT: [&str; 2] = ["targ_ns", "target_ns"];

/// In the words of older versions, which newer ones know too.
fn script(argument: &str) -> String {
    format!(
        "kfunc:cap_capable {{ printf(\"%u %u\\n\", args->cred->user_ns->ns.inum, args->{argument}->ns.inum); }}"
    )
}

/// A running bpftrace; it ends with the value.
pub(super) struct Bpftrace(Child);

impl Bpftrace {
    /// Starts it with output into the new file `output`, and waits until it prints what `provoke` makes happen.
    ///
    /// # Errors
    ///
    /// When it is not there, or prints nothing.
    pub(super) fn start(output: &Path, mut provoke: impl FnMut() -> Result<()>) -> Result<Self> {
        let [older, newer] = ARGUMENT;
        Self::try_start(&script(older), output, &mut provoke)
            .or_else(|_| Self::try_start(&script(newer), output, &mut provoke))
    }

    fn try_start(script: &str, output: &Path, mut provoke: impl FnMut() -> Result<()>) -> Result<Self> {
        let create = || File::create(output).with_context(|| format!("cannot create {}", output.display()));
        let mut command = Command::new(PROGRAM);
        command.args(["-B", "line", "-e", script]).stdin(Stdio::null()).stdout(create()?);
        let errors = output.with_extension("errors");
        command.stderr(File::create(&errors).with_context(|| format!("cannot create {}", errors.display()))?);
        let mut running = Self(command.spawn().with_context(|| format!("cannot start {PROGRAM}"))?);
        let start = Instant::now();
        loop {
            provoke()?;
            let text = fs::read_to_string(output).unwrap_or_default();
            if text.lines().any(is_pair) {
                return Ok(running);
            }
            if running.0.try_wait().context("cannot wait for bpftrace")?.is_some()
                || start.elapsed() > PATIENCE
            {
                let said = fs::read_to_string(&errors).unwrap_or_default();
                bail!("bpftrace prints nothing: {}", said.lines().next().unwrap_or_default());
            }
            thread::sleep(Duration::from_millis(500));
        }
    }
}

impl Drop for Bpftrace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a line is two inode numbers.
fn is_pair(line: &str) -> bool {
    let mut words = line.split(' ').map(str::parse::<u32>);
    matches!((words.next(), words.next(), words.next()), (Some(Ok(_)), Some(Ok(_)), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_script_prints_counts() {
        assert!(is_pair("4026531837 4026532198"));
        for line in ["Attaching 1 probe...", "4026531837", "1 2 3", ""] {
            assert!(!is_pair(line), "{line}");
        }
    }
}
