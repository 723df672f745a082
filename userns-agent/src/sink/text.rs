//! Text from workloads made harmless for terminals, log viewers and line splitters.

use std::fmt::Write as _;

/// Whether a character can move, hide or reorder what stands around it: controls, line and paragraph
/// separators, bidirectional and invisible formatting.
pub(crate) fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// Appends `text` with every deceptive character written out.
pub(super) fn escape_into(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if is_deceptive(c) => {
                // writing to a String cannot fail
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
}

/// `text` with every deceptive character written out.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    escape_into(&mut out, text);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_deceives_is_written_out() {
        for (text, escaped) in [
            ("plain ünïcode 模块", "plain ünïcode 模块"),
            ("a\nb\tc\rd\0e", "a\\nb\\tc\\rd\\u{0}e"),
            ("\x1b[31mred\x1b]0;title\x07", "\\u{1b}[31mred\\u{1b}]0;title\\u{7}"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("gpj.\u{202e}exe\u{2066}\u{2069}", "gpj.\\u{202e}exe\\u{2066}\\u{2069}"),
            ("a\u{2028}b\u{85}c\u{feff}\u{200d}", "a\\u{2028}b\\u{85}c\\u{feff}\\u{200d}"),
            ("\u{e0041}", "\\u{e0041}"),
        ] {
            assert_eq!(escape(text), escaped);
        }
    }
}
