//! Real files, good and bad ones.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use super::*;
use crate::core::finding::{FindingId, Severity};
use crate::sink::sample;

const BOOT: &str = "2f1f4f1a-7c11-4f3e-9d5c-0f4b5b7e6f1d";

struct Node {
    _dir: tempfile::TempDir,
    path: PathBuf,
    metrics: Arc<Metrics>,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        Self { path, _dir: dir, metrics: Arc::new(Metrics::new().unwrap()) }
    }

    fn open(&self) -> (Arc<Memory>, Vec<Told>) {
        let (memory, told) = Memory::open(&self.path, BOOT, Arc::clone(&self.metrics)).unwrap();
        (Arc::new(memory), told)
    }

    fn file(&self) -> PathBuf {
        self.path.join(directory::NAME)
    }

    fn errors(&self, operation: &str) -> u64 {
        let text = String::from_utf8(self.metrics.render().unwrap()).unwrap();
        let series = format!("userns_state_errors_total{{operation=\"{operation}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
    }
}

fn finding(id: u64, container: u64) -> Finding {
    let mut finding = Finding { id: FindingId(id), ..sample::finding() };
    finding.container.as_mut().unwrap().cgroup = CgroupId(container);
    finding
}

fn tell(memory: &Arc<Memory>, finding: &Finding) {
    Receipt::new(memory, finding, 1).unwrap().written();
}

fn ids(told: &[Told]) -> Vec<u64> {
    told.iter().map(|told| told.id).collect()
}

#[test]
fn what_was_told_is_known_to_the_next_run_to_the_last_detail() {
    let node = Node::new();
    let (memory, told) = node.open();
    assert_eq!(told, []);
    let first = finding(u64::MAX, 9001);
    tell(&memory, &first);
    tell(&memory, &finding(7, 9002));
    drop(memory);
    let (_memory, told) = node.open();
    assert_eq!(ids(&told), [7, u64::MAX]);
    let expected = line::told(&first).unwrap();
    assert_eq!(told[1], expected);
    assert_eq!((expected.capabilities.len(), expected.calls.len(), expected.severity), (2, 3, 4));
    assert_eq!((node.errors("read"), node.errors("write"), node.errors("full")), (0, 0, 0));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&node.path), mode(&node.file())), (0o700, 0o600));
}

#[test]
fn nothing_is_known_before_every_output_has_written_it() {
    let node = Node::new();
    let (memory, _) = node.open();
    let receipt = Receipt::new(&memory, &finding(1, 1), 2).unwrap();
    receipt.written();
    assert!(!fs::read_to_string(node.file()).unwrap().contains("\"id\""));
    receipt.written();
    assert!(fs::read_to_string(node.file()).unwrap().contains("\"id\":\"0000000000000001\""));
}

#[test]
fn the_line_that_says_the_most_is_kept_whatever_the_order() {
    let node = Node::new();
    let (memory, _) = node.open();
    let counted = |count, severity| Finding { count, severity, ..finding(1, 1) };
    for (count, severity) in [(5, Severity::Low), (4, Severity::Low), (2, Severity::High), (9, Severity::Low)]
    {
        tell(&memory, &counted(count, severity));
    }
    drop(memory);
    let (_memory, told) = node.open();
    assert_eq!((told.len(), told[0].count, told[0].severity), (1, 2, Severity::High as u8));
}

#[test]
fn another_boot_knows_nothing_and_that_is_no_fault() {
    let node = Node::new();
    let (memory, _) = node.open();
    tell(&memory, &finding(1, 1));
    drop(memory);
    let (memory, told) = Memory::open(&node.path, "another", Arc::clone(&node.metrics)).unwrap();
    assert_eq!((told, node.errors("read")), (Vec::new(), 0));
    drop(memory);
    assert_eq!(node.open().1, []);
}

#[test]
fn what_is_broken_is_left_out_and_counted() {
    let node = Node::new();
    let (memory, _) = node.open();
    for id in 1..=3 {
        tell(&memory, &finding(id, 1));
    }
    drop(memory);
    let good = fs::read_to_string(node.file()).unwrap();
    let rows: Vec<&str> = good.lines().collect();
    let cut = &good[..good.len() - 10];
    for (text, known, errors) in [
        (cut.to_owned(), vec![1, 2], 1),
        (good.replace("0000000000000002", "zz"), vec![1, 3], 1),
        (good.replacen("critical", "dreadful", 1), vec![2, 3], 1),
        (good.replacen("setns", "setnt", 1), vec![2, 3], 1),
        (format!("{}\n\u{0}\u{1}\nno json\n{{}}\n[1]\n{}\n", rows[0], rows[2]), vec![2], 4),
        (good.replacen("told/v1", "told/v2", 1), vec![], 1),
        (rows[1..].join("\n"), vec![], 1),
        ("x".repeat(1000), vec![], 1),
        (String::new(), vec![], 0),
        (format!("{}\n{}", rows[0], " ".repeat(17 << 20)), vec![], 1),
    ] {
        fs::write(node.file(), &text).unwrap();
        let before = node.errors("read");
        let (memory, told) = node.open();
        let shown = &text[..text.len().min(300)];
        assert_eq!((ids(&told), node.errors("read") - before), (known, errors), "{shown}");
        // and it works again from here on
        tell(&memory, &finding(4, 1));
        drop(memory);
        assert!(ids(&node.open().1).contains(&4), "{shown}");
        assert_eq!(node.errors("read") - before, errors);
    }
    assert_eq!(node.errors("write"), 0);
}

#[test]
fn bytes_that_are_no_text_are_refused_too() {
    let node = Node::new();
    drop(node.open());
    fs::write(node.file(), [0xff; 100]).unwrap();
    assert_eq!(node.open().1, []);
    assert_eq!(node.errors("read"), 1);
}

#[test]
fn a_directory_or_file_that_others_may_write_to_is_refused() {
    let node = Node::new();
    let (memory, _) = node.open();
    tell(&memory, &finding(1, 1));
    drop(memory);
    fs::set_permissions(node.file(), fs::Permissions::from_mode(0o622)).unwrap();
    assert_eq!((node.open().1, node.errors("read")), (Vec::new(), 1));
    fs::set_permissions(&node.path, fs::Permissions::from_mode(0o770)).unwrap();
    let error = Memory::open(&node.path, BOOT, Arc::clone(&node.metrics)).unwrap_err();
    assert!(matches!(error, DirectoryError::Foreign { .. }) && error.to_string().contains("0700"), "{error}");
}

#[test]
fn links_are_not_followed_and_what_is_no_directory_is_named() {
    let node = Node::new();
    drop(node.open());
    let open = |path: &Path| Memory::open(path, BOOT, Arc::clone(&node.metrics)).map(|(_, told)| told);
    let link = node.path.with_file_name("link");
    symlink(&node.path, &link).unwrap();
    assert!(matches!(open(&link), Err(DirectoryError::Open { .. })));
    assert!(open(&node.file()).unwrap_err().to_string().contains(directory::NAME));
    fs::rename(node.file(), node.path.join("away")).unwrap();
    symlink("away", node.file()).unwrap();
    assert_eq!((open(&node.path).unwrap(), node.errors("read")), (Vec::new(), 1));
    assert!(fs::symlink_metadata(node.file()).unwrap().is_file(), "the link was replaced");
}

#[test]
fn two_agents_do_not_share_a_directory() {
    let node = Node::new();
    let (memory, _) = node.open();
    let error = Memory::open(&node.path, BOOT, Arc::clone(&node.metrics)).unwrap_err();
    assert!(matches!(error, DirectoryError::InUse { .. }), "{error}");
    drop(memory);
    node.open();
}

#[test]
fn every_failed_write_is_counted_and_the_next_one_makes_up_for_it() {
    let node = Node::new();
    let (memory, _) = node.open();
    tell(&memory, &finding(1, 1));
    // not even root can write there
    fs::remove_dir_all(&node.path).unwrap();
    for id in 2..=3 {
        tell(&memory, &finding(id, 1));
    }
    assert_eq!(node.errors("write"), 2);
    // a directory in the place of the new file, as a stand-in for a full disk
    drop(memory);
    let (memory, _) = node.open();
    fs::create_dir(node.path.join("told.jsonl.new")).unwrap();
    fs::remove_file(node.file()).unwrap();
    tell(&memory, &finding(5, 1));
    assert_eq!(node.errors("write"), 3);
    fs::remove_dir(node.path.join("told.jsonl.new")).unwrap();
    tell(&memory, &finding(6, 1));
    assert_eq!(node.errors("write"), 3);
    drop(memory);
    assert_eq!(ids(&node.open().1), [5, 6]);
}

#[test]
fn what_is_told_of_containers_that_are_gone_is_forgotten() {
    let node = Node::new();
    let (memory, _) = node.open();
    tell(&memory, &finding(1, 100));
    tell(&memory, &finding(2, 200));
    memory.forget(CgroupId(100));
    tell(&memory, &finding(3, 300));
    assert_eq!(lock(&memory.state).live.keys().copied().collect::<Vec<_>>(), [2, 3]);
    drop(memory);
    // the file is not written for that alone; the core forgets them once more
    let (memory, _) = node.open();
    memory.forget(CgroupId(100));
    tell(&memory, &finding(4, 300));
    lock(&memory.state).rewrite().unwrap();
    drop(memory);
    assert_eq!(ids(&node.open().1), [2, 3, 4]);
}

#[test]
fn the_file_stays_bounded_however_much_is_told() {
    let node = Node::new();
    let (memory, _) = node.open();
    for count in 0..2000 {
        tell(&memory, &Finding { count, ..finding(count % 3, 1) });
    }
    let len = fs::metadata(node.file()).unwrap().len();
    assert!(len < 2 * SLACK as u64, "{len}");
    for id in 0..(MAX_ENTRIES as u64 + 10) {
        let time = crate::event::Nanos(1_000_000_000_000 + id);
        tell(&memory, &Finding { time, ..finding(1000 + id, 1) });
    }
    assert_eq!(lock(&memory.state).live.len(), MAX_ENTRIES);
    assert_eq!(node.errors("full"), 13);
    drop(memory);
    let (_memory, told) = node.open();
    assert_eq!((told.len(), told[0].id), (MAX_ENTRIES, 1010));
}

#[test]
fn what_has_ended_is_not_remembered() {
    use crate::core::finding::{Resolved, Status};
    let node = Node::new();
    let (memory, _) = node.open();
    tell(&memory, &finding(1, 1));
    tell(&memory, &finding(2, 1));
    let resolved = Some(Resolved { at: crate::event::Nanos(9), because: "the container is gone" });
    tell(&memory, &Finding { status: Status::Resolved, resolved, ..finding(1, 1) });
    assert_eq!(lock(&memory.state).live.keys().copied().collect::<Vec<_>>(), [2]);
    drop(memory);
    let (_memory, told) = node.open();
    assert_eq!((ids(&told), node.errors("read")), (vec![2], 0));
}
