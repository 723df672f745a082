//! Patterns of names: `*` stands for any characters, everything else for itself.

/// Whether all of `text` is what `pattern` describes.
#[must_use]
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let Some((beginning, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(beginning) else { return false };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    // the first place for each part is as good as any later one
    for part in middle.split('*') {
        let Some((_, behind)) = text.split_once(part) else { return false };
        text = behind;
    }
    text.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_characters() {
        for (pattern, text) in [
            ("a", "a"),
            ("", ""),
            ("*", ""),
            ("*", "a/b"),
            ("a*", "a"),
            ("kube-*", "kube-system"),
            ("*/tools/*", "registry.example/tools/debug:1"),
            ("registry.example/*:1.*", "registry.example/a/b:1.2"),
            ("a*b*b", "abb"),
            ("a**b", "axb"),
            ("*a*a*", "aa"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("a", "ab"),
            ("", "a"),
            ("a*", "ba"),
            ("kube-*", "kube"),
            ("a*b", "abc"),
            ("a*a", "a"),
            ("a*b*b", "ab"),
            ("*a*a*", "a"),
            ("[a]", "a"),
            ("a?", "ab"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }
}
