//! Rust source taken apart as far as the rules need: code, comments, imports.

/// A source text twice: its code and its comments, the other part blanked, literals blanked in both.
///
/// Lines stay where they are.
pub(crate) struct Source {
    pub(crate) code: String,
    pub(crate) comments: String,
}

enum Kind {
    Code,
    Comment,
    Literal,
}

impl Source {
    pub(crate) fn new(text: &str) -> Self {
        let (mut code, mut comments) = (String::new(), String::new());
        let mut rest = text;
        while !rest.is_empty() {
            let (kind, length) = token(rest);
            let (piece, tail) = rest.split_at(length);
            let blank = piece.chars().map(|c| if c == '\n' { '\n' } else { ' ' });
            match kind {
                Kind::Code => {
                    code.push_str(piece);
                    comments.extend(blank);
                }
                Kind::Comment => {
                    comments.push_str(piece);
                    code.extend(blank);
                }
                Kind::Literal => {
                    code.extend(blank.clone());
                    comments.extend(blank);
                }
            }
            rest = tail;
        }
        Self { code, comments }
    }

    /// The lines of code with their numbers, `use` declarations replaced by one line per imported path.
    pub(crate) fn statements(&self) -> Vec<(usize, String)> {
        let mut statements = Vec::new();
        let mut lines = self.code.lines().enumerate();
        while let Some((index, line)) = lines.next() {
            let Some(tree) = import(line) else {
                statements.push((index + 1, line.to_owned()));
                continue;
            };
            let mut tree = tree.to_owned();
            while !tree.contains(';') {
                let Some((_, next)) = lines.next() else { break };
                tree.push(' ');
                tree.push_str(next);
            }
            let mut paths = Vec::new();
            expand("", tree.split(';').next().unwrap_or_default(), &mut paths);
            statements.extend(paths.into_iter().map(|path| (index + 1, path)));
        }
        statements
    }
}

/// Whether `text` has `word` with no identifier character on either side.
pub(crate) fn has_word(text: &str, word: &str) -> bool {
    let identifier = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(start, _)| {
        !text[..start].ends_with(identifier) && !text[start + word.len()..].starts_with(identifier)
    })
}

fn token(rest: &str) -> (Kind, usize) {
    let to = |end: &str, from: usize| rest[from..].find(end).map_or(rest.len(), |at| from + at + end.len());
    if rest.starts_with("//") {
        return (Kind::Comment, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (Kind::Comment, to("*/", 2));
    }
    if let Some(raw) = rest.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            return (Kind::Literal, to(&format!("\"{}", "#".repeat(hashes)), hashes + 2));
        }
    }
    if rest.starts_with('"') {
        return (Kind::Literal, string_length(rest));
    }
    if let Some(length) = char_length(rest) {
        return (Kind::Literal, length);
    }
    // A whole word at once, so that an `r` inside it starts no raw string.
    let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    let raw_identifier_or_string = rest.starts_with('r') || rest.starts_with("br");
    let single = rest.chars().next().map_or(1, char::len_utf8);
    (Kind::Code, if word > 1 && !(raw_identifier_or_string && word <= 2) { word } else { single })
}

fn string_length(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of a character literal; `None` for a lifetime.
fn char_length(rest: &str) -> Option<usize> {
    let inner = rest.strip_prefix('\'')?;
    if let Some(escape) = inner.strip_prefix('\\') {
        let skipped = escape.chars().next()?.len_utf8();
        return Some(2 + skipped + escape[skipped..].find('\'')? + 1);
    }
    let c = inner.chars().next()?;
    inner[c.len_utf8()..].starts_with('\'').then_some(c.len_utf8() + 2)
}

/// What a `use` declaration that begins on this line imports, as far as the line goes.
fn import(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let unrestricted = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(')')?.1.trim_start(),
        Some(rest) => rest.trim_start(),
        None => line,
    };
    unrestricted.strip_prefix("use ")
}

fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let Some((head, group)) = tree.split_once('{') else {
        paths.push(format!("{prefix}{}", tree.split(" as ").next().unwrap_or_default().trim()));
        return;
    };
    let prefix = format!("{prefix}{}", head.trim());
    let group = group.rsplit_once('}').map_or(group, |(inner, _)| inner);
    let mut depth = 0;
    let parts = group.split(|c: char| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.filter(|part| !part.trim().is_empty()).for_each(|part| expand(&prefix, part, paths));
}

#[test]
fn code_comments_and_literals_come_apart() {
    let text = "let a = \"// no \\\" comment\"; // unsafe\nlet b = 'x'; /* HashMap\n */ fn f<'a>() {}\n\
                let r = r#\"todo!()\"#; let e = '\\''; let for_r\"x\" = br\"raw\";\n";
    let source = Source::new(text);
    assert_eq!(source.code.lines().count(), text.lines().count());
    for hidden in ["unsafe", "HashMap", "todo", "comment", "raw", "x"] {
        assert!(!has_word(&source.code, hidden), "{hidden} in {}", source.code);
    }
    assert!(source.code.contains("fn f<'a>() {}") && source.code.contains("let e ="), "{}", source.code);
    assert!(has_word(&source.comments, "unsafe") && has_word(&source.comments, "HashMap"));
    assert!(!source.comments.contains("fn f"));
}

#[test]
fn groups_of_imports_are_expanded() {
    let text = "use std::{\n    fs,\n    io::{self, Read as _},\n};\npub(crate) use crate::{event::Id, core};\nlet x = 1;\n";
    let statements = Source::new(text).statements();
    let paths: Vec<_> = statements.iter().map(|(line, path)| (*line, path.as_str())).collect();
    let expected = [
        (1, "std::fs"),
        (1, "std::io::self"),
        (1, "std::io::Read"),
        (5, "crate::event::Id"),
        (5, "crate::core"),
        (6, "let x = 1;"),
    ];
    assert_eq!(paths, expected);
}

#[test]
fn words_have_borders() {
    assert!(has_word("a unsafe {", "unsafe") && has_word("std::fs::read", "std::fs"));
    assert!(!has_word("forbid(unsafe_code)", "unsafe") && !has_word("std::fsync", "std::fs"));
}
