//! Rules about any file: documented, short, finished, and silent about where packages come from.

use crate::{
    files::File,
    source::{Source, has_word},
};

const MAX_FILE_LINES: usize = 600;
const MAX_FUNCTION_LINES: usize = 80;

/// In two parts, so that this file passes its own rule.
const REGISTRIES: [(&str, &str); 11] = [
    ("crates", ".io"),
    ("deb.", "debian.org"),
    ("security.", "debian.org"),
    ("snapshot.", "debian.org"),
    ("ftp.", "debian.org"),
    ("archive.", "ubuntu.com"),
    ("registry.", "npmjs.org"),
    ("py", "pi.org"),
    ("files.", "pythonhosted.org"),
    ("ruby", "gems.org"),
    ("proxy.", "golang.org"),
];

/// A Rust file that does not begin with its module's documentation.
pub(crate) fn lacks_module_doc(file: &File) -> Vec<String> {
    if file.text.starts_with("//!") {
        return Vec::new();
    }
    vec![file.at(1, "begin the file with a `//!` line that says what it is for")]
}

/// Files and functions that grew past their limit.
pub(crate) fn too_long(file: &File) -> Vec<String> {
    let mut wrong = Vec::new();
    let lines = file.text.lines().count();
    if lines > MAX_FILE_LINES {
        wrong.push(
            file.at(MAX_FILE_LINES, &format!("{lines} lines, of {MAX_FILE_LINES} at most: split the file")),
        );
    }
    let source = Source::new(&file.text);
    let code: Vec<_> = source.code.lines().collect();
    for (start, line) in code.iter().enumerate().filter(|(_, line)| opens_function(line)) {
        // rustfmt puts the closing brace below the first letter.
        let indent = line.len() - line.trim_start().len();
        let close = format!("{}}}", " ".repeat(indent));
        let length = code[start..].iter().position(|line| *line == close).map_or(0, |end| end + 1);
        if length > MAX_FUNCTION_LINES {
            let message = format!("a function of {length} lines, of {MAX_FUNCTION_LINES} at most: split it");
            wrong.push(file.at(start + 1, &message));
        }
    }
    wrong
}

/// Code that is missing, comments that promise it, tests that do not run.
pub(crate) fn unfinished(file: &File) -> Vec<String> {
    let source = Source::new(&file.text);
    let mut wrong = Vec::new();
    for (number, line) in (1..).zip(source.code.lines()) {
        for pattern in ["todo!(", "unimplemented!(", "#[ignore"] {
            if line.contains(pattern) {
                wrong.push(file.at(number, &format!("`{pattern}`: finish it or leave it out")));
            }
        }
    }
    for (number, line) in (1..).zip(source.comments.lines()) {
        for word in ["FIXME", "XXX"] {
            if has_word(line, word) {
                wrong.push(file.at(number, &format!("{word}: finish it or leave it out")));
            }
        }
    }
    wrong
}

/// The address of a package registry: which mirror serves packages is the machine's business.
pub(crate) fn names_a_registry(file: &File) -> Vec<String> {
    let mut wrong = Vec::new();
    for (number, line) in (1..).zip(file.text.lines()) {
        for (head, tail) in REGISTRIES {
            if line.contains(&format!("{head}{tail}")) {
                wrong.push(file.at(number, &format!("names the package registry {head}{tail}")));
            }
        }
    }
    wrong
}

fn opens_function(line: &str) -> bool {
    let line = line.trim();
    has_word(line, "fn") && !line.ends_with(['}', ';', ','])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rust(text: &str) -> File {
        File::sample("userns-agent/src/sample.rs", text)
    }

    #[test]
    fn a_missing_module_doc_is_caught() {
        assert_eq!(lacks_module_doc(&rust("//! What it is.\n")), [""; 0]);
        assert_eq!(lacks_module_doc(&rust("use std::fmt;\n//! Late.\n")).len(), 1);
    }

    #[test]
    fn length_is_caught() {
        let function =
            |lines: usize| format!("impl A {{\n    fn f(\n    ) {{\n{}    }}\n}}\n", "\n".repeat(lines));
        assert_eq!(too_long(&rust(&function(MAX_FUNCTION_LINES - 3))), [""; 0]);
        let found = too_long(&rust(&function(MAX_FUNCTION_LINES)));
        assert_eq!(found, ["userns-agent/src/sample.rs:2: a function of 83 lines, of 80 at most: split it"]);
        assert_eq!(too_long(&rust(&"\n".repeat(MAX_FILE_LINES + 1))).len(), 1);
    }

    #[test]
    fn loose_ends_are_caught() {
        let text =
            "fn f() { todo!() }\n// FIXME: later\n#[ignore = \"slow\"]\n/* XXX */\nunimplemented!(\"x\")\n";
        assert_eq!(unfinished(&rust(text)).len(), 5);
        assert_eq!(unfinished(&rust("let s = \"todo!( FIXME XXXXXX\"; // a template: XXXXXX\n")), [""; 0]);
    }

    #[test]
    fn registries_are_caught() {
        let (head, tail) = REGISTRIES[0];
        let sample = File::sample("README.md", &format!("see https://{head}{tail}/x\n"));
        assert_eq!(names_a_registry(&sample).len(), 1);
        assert_eq!(names_a_registry(&File::sample("README.md", "the crates in /home\n")), [""; 0]);
    }
}
