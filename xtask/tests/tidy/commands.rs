//! Commands that the documentation tells one to type.

use clap::{Parser as _, error::ErrorKind};
use xtask::cli::Cli;

use crate::files::File;

/// `cargo xtask` commands that the tool would not accept.
///
/// A command with placeholders, such as `fuzz [TARGET]`, and one in running text are checked by their first word.
pub(crate) fn unknown(file: &File) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut fenced = false;
    for (number, line) in (1..).zip(file.text.lines()) {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        for (at, _) in line.match_indices("cargo xtask ") {
            let quoted = fenced || line[..at].matches('`').count() % 2 == 1;
            let command =
                line[at..].split(['`', '#', '&', '|', ';', '(', ')', '"']).next().unwrap_or_default();
            if let Err(error) = parse(command, quoted) {
                wrong.push(file.at(number, &format!("`{}`: {error}", command.trim_end())));
            }
        }
    }
    wrong
}

fn parse(command: &str, whole: bool) -> Result<(), String> {
    let mut words: Vec<_> = command.split_whitespace().skip(2).collect();
    let Some(first) = words.first() else { return Ok(()) };
    let placeholder =
        |word: &&str| word.contains(['<', '[', '…']) || word.contains("...") || is_capitals(word);
    if !whole || words.iter().any(placeholder) {
        let word = first.trim_end_matches(['.', ',', ':', '?', '!']);
        words = vec![word, "--help"];
    }
    match Cli::try_parse_from(std::iter::once("cargo xtask").chain(words)) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => Ok(()),
        Err(error) => Err(error.to_string().lines().next().unwrap_or_default().to_owned()),
    }
}

fn is_capitals(word: &str) -> bool {
    word.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Vec<String> {
        unknown(&File::sample("README.md", text))
    }

    #[test]
    fn commands_that_work_pass() {
        let text = "Run `cargo xtask test --quick`, then `cargo xtask fuzz [TARGET]`.\n```sh\n\
                    cargo xtask setup --for test   # tools\ncargo xtask build && sudo true\n\
                    cargo xtask run -- --config x\n```\nIn text, cargo xtask test runs everything.\n";
        assert_eq!(check(text), [""; 0]);
    }

    #[test]
    fn commands_that_do_not_exist_are_caught() {
        let text = "`cargo xtask tset`\n`cargo xtask test --fast`\n```\ncargo xtask build --optimised\n```\n\
                    Say cargo xtask deploy, please.\n`cargo xtask tset <X>`\n";
        assert_eq!(check(text).len(), 5, "{:?}", check(text));
    }
}
