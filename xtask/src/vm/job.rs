//! Jobs in a guest other than its tests: here, counting instructions.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::{CONSOLE_TAIL, End, Limits, Machine, Qemu, fetch, guest, image, qemu::Accel};
use crate::{debian, steps::Steps, workspace::Workspace};

/// Slower than with several threads, and everything else a job does besides.
const LIMITS: Limits = Limits { boot: Duration::from_secs(180), total: Duration::from_secs(900) };

/// What is to run in a guest.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// Kernel lines, as for the tests.
    pub(crate) kernels: &'a [String],
    /// The script `/vm/<name>.sh` that the guest runs.
    pub(crate) name: &'static str,
    /// Files, and their names in the guest's `/vm`.
    pub(crate) files: &'a [(&'a Path, &'a str)],
    /// Debian packages beside those that every guest has.
    pub(crate) packages: &'a [&'a str],
}

/// Runs `job` on every kernel in a guest with one processor and a clock that ticks once an instruction, and hands
/// each line it writes to `read`, with the kernel's release.
///
/// # Errors
///
/// When something cannot be fetched, or a guest does not end well.
pub(crate) fn count_instructions(
    steps: &mut Steps,
    workspace: &Workspace,
    job: &Job<'_>,
    mut read: impl FnMut(&str, &str),
) -> Result<()> {
    let dir = workspace.target().join("vm");
    let cache = dir.join("apt");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let _lock = debian::lock(&dir)?;
    let (qemu, kernels) = steps.step("kernels", "fetches kernels, and QEMU where it is missing", || {
        let kernels = fetch(&cache, &dir, job.kernels)?;
        Ok((Qemu::find(&cache, &dir, Accel::Counted)?, kernels))
    })?;
    let disk = steps.step("disk", "what is measured, on a file system for the guests", || {
        let content =
            image::Content { files: job.files, packages: job.packages, trees: &[], settings: Vec::new() };
        image::make(&cache, &dir, &content, &kernels)
    })?;
    let machine = Machine { qemu, disk, dir };
    for (kernel, files) in &kernels {
        let why = format!("counts instructions on {}", kernel.release);
        steps.step(&format!("{} {}", job.name, kernel.line), &why, || {
            let show = |line: &str| read(&kernel.release, line);
            let (watch, end, traces) = machine.run(kernel, files, job.name, LIMITS, show)?;
            match (end, watch.exit) {
                (End::Finished, Some((0, _))) => Ok(()),
                (end, exit) => {
                    println!("{}", guest::tail(&traces.console, CONSOLE_TAIL));
                    bail!("the guest ended with {end:?}, status {:?}", exit.map(|(status, _)| status))
                }
            }
        })?;
    }
    Ok(())
}
