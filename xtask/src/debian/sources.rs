//! The texts apt reads and prints: source lists in both formats, `os-release`, `apt-cache madison`.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// One place packages come from, as an entry of a source list names it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Source {
    uri: String,
    suites: Vec<String>,
}

/// Every entry of `<etc>/sources.list` and `<etc>/sources.list.d`.
pub(super) fn read_all(etc: &Path) -> Result<Vec<Source>> {
    let mut files = vec![etc.join("sources.list")];
    let parts = etc.join("sources.list.d");
    if parts.is_dir() {
        for entry in fs::read_dir(&parts).with_context(|| format!("cannot list {}", parts.display()))? {
            files.push(entry.with_context(|| format!("cannot list {}", parts.display()))?.path());
        }
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let read = || fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()));
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => sources.extend(parse_deb822(&read()?)),
            Some("list") => sources.extend(parse_one_line(&read()?)),
            Some(_) | None => {}
        }
    }
    Ok(sources)
}

/// The address the suite `own` comes from, or else the one of a rolling name for it.
pub(super) fn mirror_uri(sources: &[Source], own: &str) -> Option<String> {
    [own, "stable", "oldstable", "testing", "unstable", "sid"].iter().find_map(|suite| {
        let source = sources.iter().find(|source| source.suites.iter().any(|named| named == suite))?;
        Some(source.uri.clone())
    })
}

/// `VERSION_CODENAME` of an `os-release` text, if it is Debian's.
pub(super) fn debian_codename(os_release: &str) -> Option<String> {
    let value = |key: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    if value("ID")? == "debian" { value("VERSION_CODENAME") } else { None }
}

/// The version column of `apt-cache madison`, in its order (newest first).
pub(super) fn madison_versions(table: &str) -> Vec<String> {
    table.lines().filter_map(|line| Some(line.split('|').nth(1)?.trim().to_owned())).collect()
}

/// The newest version of `package` in a table of several packages.
pub(super) fn madison_newest(table: &str, package: &str) -> Option<String> {
    let mut rows = table.lines().map(|line| line.split('|').map(str::trim));
    let mut row = rows.find(|row| row.clone().next() == Some(package))?;
    Some(row.nth(1)?.to_owned())
}

/// The packages `apt-cache depends --recurse` met, sorted; virtual ones stand in angle brackets.
pub(super) fn real_packages(tree: &str) -> Vec<String> {
    let mut names: Vec<_> =
        tree.lines().filter(|line| !line.starts_with([' ', '<'])).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

fn parse_deb822(text: &str) -> Vec<Source> {
    let uncommented = text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    uncommented.split("\n\n").filter_map(parse_stanza).collect()
}

fn parse_stanza(stanza: &str) -> Option<Source> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in stanza.lines() {
        if line.starts_with([' ', '\t']) {
            let (_, value) = fields.last_mut()?;
            value.push(' ');
            value.push_str(line.trim());
        } else if let Some((key, value)) = line.split_once(':') {
            fields.push((key.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let field = |key: &str| fields.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    if !field("types")?.split_whitespace().any(|kind| kind == "deb") || field("enabled") == Some("no") {
        return None;
    }
    let uri = field("uris")?.split_whitespace().next()?.to_owned();
    Some(Source { uri, suites: field("suites")?.split_whitespace().map(str::to_owned).collect() })
}

fn parse_one_line(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let entry = line.split('#').next()?.trim().strip_prefix("deb ")?.trim_start();
    let entry = match entry.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => entry,
    };
    let mut words = entry.split_whitespace();
    let uri = words.next().filter(|uri| !uri.starts_with("cdrom:"))?.to_owned();
    Some(Source { uri, suites: vec![words.next()?.to_owned()] })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
 http://other.example/debian
Suites: bookworm
 bookworm-updates
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm

Types: deb-src
URIs: http://src.example/debian
Suites: bookworm

Types: deb
URIs: http://security.example/debian-security
Suites: bookworm-security
";

    #[test]
    fn deb822_keeps_enabled_binary_stanzas() {
        let sources = parse_deb822(DEB822);
        let uris: Vec<_> = sources.iter().map(|source| source.uri.as_str()).collect();
        assert_eq!(uris, ["http://mirror.example/debian", "http://security.example/debian-security"]);
        assert_eq!(sources[0].suites, ["bookworm", "bookworm-updates"]);
    }

    #[test]
    fn one_line_entries_may_have_options() {
        let text = "deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian trixie main # note\n\
                    # deb http://commented.example/debian trixie main\n\
                    deb-src http://src.example/debian trixie main\n\
                    deb cdrom:[Debian]/ trixie main\n\
                    deb http://n.example/debian trixie-updates main\n";
        let expected = [("http://m.example/debian", "trixie"), ("http://n.example/debian", "trixie-updates")]
            .map(|(uri, suite)| Source { uri: uri.into(), suites: vec![suite.into()] });
        assert_eq!(parse_one_line(text), expected);
    }

    #[test]
    fn the_own_suite_decides_the_mirror() {
        let sources = parse_deb822(DEB822);
        assert_eq!(mirror_uri(&sources, "bookworm").as_deref(), Some("http://mirror.example/debian"));
        assert_eq!(mirror_uri(&sources, "trixie"), None);
    }

    #[test]
    fn only_debian_has_a_codename() {
        let debian = "ID=debian\nVERSION_CODENAME=bookworm\n";
        assert_eq!(debian_codename(debian).as_deref(), Some("bookworm"));
        assert_eq!(debian_codename("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
    }

    #[test]
    fn madison_lists_versions_in_order() {
        let table = " rust-src | 1.96.1-2 | uri suite/main\n rust-src | 1.95.0-2 | uri suite/main\n";
        assert_eq!(madison_versions(table), ["1.96.1-2", "1.95.0-2"]);
        let table = "  runc | 1.1.5 | uri\n  crun | 1.28 | uri\n  crun | 1.8.1 | uri\n";
        assert_eq!(madison_newest(table, "crun").as_deref(), Some("1.28"));
        assert_eq!(madison_newest(table, "run"), None);
    }

    #[test]
    fn virtual_packages_are_none_to_fetch() {
        let tree = "runc\n  Depends: libc6\n  Depends: <cgroups>\n    other\nlibc6\n<cgroups>\nlibc6\n";
        assert_eq!(real_packages(tree), ["libc6", "runc"]);
    }
}
