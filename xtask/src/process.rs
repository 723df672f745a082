//! Child processes whose failure names the whole command line.

use std::{
    io::{self, BufRead as _, BufReader},
    path::Path,
    process::{Command, ExitStatus, Output, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Runs `command` with its output on this terminal.
///
/// # Errors
///
/// When the program cannot be started or exits with another status than 0.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", line(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", line(command));
    }
    Ok(())
}

/// Runs `command` and returns what it wrote to its standard output.
///
/// # Errors
///
/// When the program cannot be started or exits with another status than 0; the message then holds what it
/// wrote to its standard error.
pub fn stdout(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", line(command)))?;
    if !status.success() {
        bail!("{} failed: {status}\n{}", line(command), String::from_utf8_lossy(&stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// The command as one would type it, for messages.
#[must_use]
pub fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    std::iter::once(program.file_name().unwrap_or(program.as_os_str()))
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs `command` and hands each line of its output, standard error included, to `each` as it comes.
///
/// # Errors
///
/// When the program cannot be started or its output not read; an exit status is returned, whatever it is.
pub fn lines(command: &mut Command, mut each: impl FnMut(&str)) -> Result<ExitStatus> {
    let name = line(command);
    let (output, writer) = io::pipe().context("cannot create a pipe")?;
    let errors = writer.try_clone().context("cannot duplicate a pipe")?;
    let child = command.stdin(Stdio::null()).stdout(writer).stderr(errors).spawn();
    // The command holds the pipe's writing ends, and reading ends only when all of them are closed.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.with_context(|| format!("cannot start {name}"))?;
    let mut output = BufReader::new(output);
    let mut bytes = Vec::new();
    while output.read_until(b'\n', &mut bytes).with_context(|| format!("cannot read the output of {name}"))?
        > 0
    {
        each(String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']));
        bytes.clear();
    }
    child.wait().with_context(|| format!("cannot wait for {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_of_both_outputs_arrive_in_order() {
        let mut seen = Vec::new();
        let status = lines(&mut shell("echo one; echo two >&2; printf three; exit 3"), |line| {
            seen.push(line.to_owned());
        });
        assert_eq!(status.expect("sh starts").code(), Some(3));
        assert_eq!(seen, ["one", "two", "three"]);
    }

    #[test]
    fn failures_name_the_command() {
        let error = stdout(&mut shell("echo oops >&2; exit 1")).expect_err("it exits with 1");
        let text = error.to_string();
        assert!(text.contains("sh -c") && text.contains("oops"), "{text}");
        let error = run(&mut Command::new("no-such-program")).expect_err("it does not exist");
        assert!(error.to_string().contains("no-such-program"), "{error}");
    }
}
