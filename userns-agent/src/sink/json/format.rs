//! JSON on one line, whatever it holds.

use std::io;

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

use crate::sink::text::is_deceptive;

/// Like the compact form, but with every character escaped that a terminal, log viewer or line splitter might
/// take for more than text.
struct OneLine;

impl Formatter for OneLine {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        // what is below 0x80 and needs escaping does not come here, but for DEL
        if fragment.bytes().all(|byte| byte < 0x7f) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut plain = 0;
        for (at, c) in fragment.char_indices().filter(|(_, c)| is_deceptive(*c)) {
            writer.write_all(fragment.get(plain..at).unwrap_or_default().as_bytes())?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            plain = at + c.len_utf8();
        }
        writer.write_all(fragment.get(plain..).unwrap_or_default().as_bytes())
    }

    fn write_char_escape<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        serde_json::ser::CompactFormatter.write_char_escape(writer, escape)
    }
}

/// A typical finding's length.
const CAPACITY: usize = 12 << 10;

/// `value` and an end of line.
pub(super) fn line<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut out = Vec::with_capacity(CAPACITY);
    value.serialize(&mut Serializer::with_formatter(&mut out, OneLine))?;
    out.push(b'\n');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_stays_on_its_line_and_comes_back() {
        let all: String = (0..0x11_0000).filter_map(char::from_u32).collect();
        let line = line(&[&all]).unwrap();
        let text = std::str::from_utf8(&line).unwrap();
        let body = text.strip_suffix('\n').unwrap();
        assert!(!body.contains(is_deceptive));
        assert_eq!(serde_json::from_str::<Vec<String>>(body).unwrap(), [all]);
    }

    #[test]
    fn escapes_are_those_of_json() {
        let line = line(&["\"\\\n\u{1}\u{7f}é\u{2028}x\u{e0041}"]).unwrap();
        let expected = "[\"\\\"\\\\\\n\\u0001\\u007fé\\u2028x\\udb40\\udc41\"]\n";
        assert_eq!(std::str::from_utf8(&line).unwrap(), expected);
    }
}
