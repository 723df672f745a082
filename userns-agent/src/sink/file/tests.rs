//! Real files, real limits.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

fn options(dir: &tempfile::TempDir, max_bytes: u64, keep: u32) -> Options {
    Options { path: dir.path().join("out.jsonl"), max_bytes, keep }
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

/// Every line of all files, oldest first.
fn all_lines(options: &Options) -> Vec<String> {
    let mut paths: Vec<_> = (1..=options.keep).rev().map(|n| numbered(&options.path, n)).collect();
    paths.push(options.path.clone());
    paths.retain(|path| path.exists());
    let lines = paths.iter().map(text);
    lines.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn a_new_file_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 1000, 1);
    let mut file = LogFile::open(options.clone()).unwrap();
    file.write_line(b"one\n").unwrap();
    assert_eq!(fs::metadata(&options.path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(file);
    LogFile::open(options.clone()).unwrap().write_line(b"two\n").unwrap();
    assert_eq!(text(&options.path), "one\ntwo\n");
}

#[test]
fn links_and_special_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| Options { path: dir.path().join(name), max_bytes: 1000, keep: 1 };
    fs::write(dir.path().join("target"), "").unwrap();
    symlink("target", at("link").path).unwrap();
    symlink("nowhere", at("dangling").path).unwrap();
    for name in ["link", "dangling"] {
        let error = LogFile::open(at(name)).unwrap_err();
        assert!(matches!(&error, FileError::Symlink { .. }), "{error:?}");
        assert!(error.to_string().contains("is a symbolic link"), "{error}");
    }
    let pipe = at("pipe").path;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    for path in [dir.path().to_owned(), pipe, "/dev/null".into()] {
        let error = LogFile::open(Options { path, max_bytes: 1, keep: 1 }).unwrap_err();
        assert!(matches!(&error, FileError::NotRegular { .. }), "{error:?}");
    }
    let error = LogFile::open(at("no/such/dir")).unwrap_err();
    assert!(error.to_string().starts_with("cannot open output file /"), "{error}");
}

#[test]
fn rotation_loses_and_splits_no_line() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 1000, 100);
    let mut file = LogFile::open(options.clone()).unwrap();
    let lines: Vec<String> = (0..1000).map(|n| format!("line {n} {}", "x".repeat(n % 90))).collect();
    for line in &lines {
        file.write_line(format!("{line}\n").as_bytes()).unwrap();
    }
    assert_eq!(all_lines(&options), lines);
    assert!(numbered(&options.path, 50).exists());
    for path in (1..).map(|n| numbered(&options.path, n)).take_while(|path| path.exists()) {
        let text = text(path);
        assert!(text.len() <= 1000 && text.len() > 900 && text.ends_with('\n'), "{}", text.len());
    }
}

#[test]
fn only_so_many_files_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    for keep in [0, 1, 3] {
        let options = Options { path: dir.path().join(format!("keep{keep}")), max_bytes: 10, keep };
        let mut file = LogFile::open(options.clone()).unwrap();
        for n in 0..9 {
            file.write_line(format!("line {n}\n").as_bytes()).unwrap();
        }
        let expected: Vec<_> = (8 - keep..9).map(|n| format!("line {n}")).collect();
        assert_eq!(all_lines(&options), expected);
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1 + 2 + 4);
}

#[test]
fn a_gap_stops_the_shift() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 10, 3);
    fs::write(numbered(&options.path, 1), "one\n").unwrap();
    fs::write(numbered(&options.path, 3), "three\n").unwrap();
    let mut file = LogFile::open(options.clone()).unwrap();
    for _ in 0..2 {
        file.write_line(b"0123456789\n").unwrap();
    }
    assert_eq!(text(numbered(&options.path, 2)), "one\n");
    assert_eq!(text(numbered(&options.path, 3)), "three\n");
}

#[test]
fn a_line_longer_than_a_file_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 4, 2);
    let mut file = LogFile::open(options.clone()).unwrap();
    for line in ["0123456789\n", "a\n"] {
        file.write_line(line.as_bytes()).unwrap();
    }
    assert_eq!(all_lines(&options), ["0123456789", "a"]);
}

#[test]
fn a_line_torn_by_a_crash_ends_before_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 1000, 1);
    fs::write(&options.path, "whole\n{\"to").unwrap();
    LogFile::open(options.clone()).unwrap().write_line(b"next\n").unwrap();
    assert_eq!(text(&options.path), "whole\n{\"to\nnext\n");
}

#[test]
fn a_full_disk_leaves_no_piece_of_a_line() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // a limit on file sizes cuts writes short as a full disk does; in a child, as it holds for the process
    if std::env::var_os("USERNS_TEST_LIMITED").is_none() {
        let test = "sink::file::tests::a_full_disk_leaves_no_piece_of_a_line";
        let mut child = std::process::Command::new("/bin/sh");
        child.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(std::env::current_exe().unwrap());
        let output = child.args(["--exact", test]).env("USERNS_TEST_LIMITED", "1").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 1000, 1);
    let mut file = LogFile::open(options.clone()).unwrap();
    let old = getrlimit(Resource::Fsize);
    file.write_line(b"first\n").unwrap();
    setrlimit(Resource::Fsize, Rlimit { current: Some(10), ..old }).unwrap();
    for _ in 0..2 {
        file.write_line(b"second\n").unwrap_err();
        assert_eq!(text(&options.path), "first\n");
    }
    setrlimit(Resource::Fsize, old).unwrap();
    file.write_line(b"second\n").unwrap();
    assert_eq!(text(&options.path), "first\nsecond\n");
}

#[test]
fn another_program_may_rotate_truncate_or_delete() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 1000, 1);
    let moved = dir.path().join("moved");
    let mut file = LogFile::open(options.clone()).unwrap();
    file.write_line(b"a\n").unwrap();
    fs::rename(&options.path, &moved).unwrap();
    file.write_line(b"b\n").unwrap();
    file.reopen().unwrap();
    file.write_line(b"c\n").unwrap();
    assert_eq!((text(&moved).as_str(), text(&options.path).as_str()), ("a\nb\n", "c\n"));
    fs::write(&options.path, "").unwrap();
    file.write_line(b"d\n").unwrap();
    assert_eq!(text(&options.path), "d\n");
    fs::remove_file(&options.path).unwrap();
    file.write_line(b"e\n").unwrap();
    assert_eq!(text(&options.path), "e\n");
}

#[test]
fn when_renaming_fails_the_file_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 80, 1);
    // a directory with something in it cannot be renamed over
    fs::create_dir_all(numbered(&options.path, 1).join("full")).unwrap();
    let mut file = LogFile::open(options.clone()).unwrap();
    for n in 0..30 {
        file.write_line(format!("line {n}\n").as_bytes()).unwrap();
    }
    assert_eq!(text(&options.path).lines().count(), 30);
    fs::remove_dir_all(numbered(&options.path, 1)).unwrap();
    for n in 30..33 {
        file.write_line(format!("line {n}\n").as_bytes()).unwrap();
    }
    assert_eq!(all_lines(&options).len(), 33);
    assert!(numbered(&options.path, 1).exists());
}

#[test]
fn when_no_new_file_can_be_made_lines_go_on_to_the_renamed_one() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 10, 1);
    let mut file = LogFile::open(options.clone()).unwrap();
    file.write_line(b"a\n").unwrap();
    file.rename().unwrap();
    file.renamed = true;
    symlink("elsewhere", &options.path).unwrap();
    file.write_line(b"b\n").unwrap();
    assert_eq!(text(numbered(&options.path, 1)), "a\nb\n");
    fs::remove_file(&options.path).unwrap();
    file.write_line(b"c\n").unwrap();
    assert_eq!(text(&options.path), "c\n");
    assert_eq!(text(numbered(&options.path, 1)), "a\nb\n");
}
