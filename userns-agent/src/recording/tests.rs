//! What was written is read, and what is broken is told.

mod any;

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::replay::{Change, Findings, Said, diff};
use super::writer::QUEUE;
use any::Any;

use super::*;
use crate::core::Limits;
use crate::event::Nanos;
use crate::sink::Metrics;

fn header() -> Header {
    Header {
        agent: "0.1.0".into(),
        kernel: "6.18.1".into(),
        node: "node-1".into(),
        boot: 1_767_225_600_000_000_000,
        limits: Limits {
            grace: Duration::from_secs(2),
            enrich_wait: Duration::ZERO,
            containers: 64,
            processes: 1024,
        },
        unobservable: vec!["kata*".into()],
        reference: Reference::default(),
    }
}

/// A recording of these, with a block for each.
fn recorded(inputs: &[Input]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), u64::MAX, &header()).unwrap();
    for input in inputs {
        writer.input(input).unwrap();
        writer.put(&[]).unwrap();
    }
    writer.end(Ended::Stopped).unwrap()
}

/// Everything that can be read, and what ends it.
fn read(bytes: &[u8]) -> (Vec<Entry>, Option<RecordingError>) {
    let mut entries = Vec::new();
    let mut reader = match Reader::new(Cursor::new(bytes)) {
        Ok(reader) => reader,
        Err(error) => return (entries, Some(error)),
    };
    loop {
        match reader.next() {
            Ok(Some(entry)) => entries.push(entry),
            Ok(None) => return (entries, None),
            Err(error) => return (entries, Some(error)),
        }
    }
}

#[test]
fn every_input_is_read_as_it_was_written() {
    let mut any = Any(fastrand::Rng::with_seed(7));
    let inputs: Vec<Input> = (0..3000).map(|_| any.input()).collect();
    let bytes = recorded(&inputs);
    let reader = Reader::new(Cursor::new(&bytes)).unwrap();
    assert_eq!(*reader.header(), header());
    let (entries, error) = read(&bytes);
    assert!(error.is_none(), "{error:?}");
    let expected = inputs.into_iter().map(Entry::Input).chain([Entry::End(Ended::Stopped)]);
    assert!(entries.into_iter().eq(expected));
}

#[test]
fn of_a_recording_that_is_cut_anywhere_the_beginning_is_read() {
    let mut any = Any(fastrand::Rng::with_seed(8));
    let inputs: Vec<Input> = (0..12).map(|_| any.input()).collect();
    let bytes = recorded(&inputs);
    let whole: Vec<Entry> = read(&bytes).0;
    let mut longest = 0;
    for length in 0..bytes.len() {
        let (entries, error) = read(&bytes[..length]);
        assert!(whole.starts_with(&entries) && entries.len() >= longest, "{length} bytes");
        longest = entries.len();
        match error {
            Some(RecordingError::NoRecording) => assert!(length < 10),
            Some(RecordingError::Cut { entries: read }) => assert_eq!(read, entries.len() as u64),
            Some(RecordingError::Damaged { .. }) => {}
            // the frame's own end is missing, which nothing needs
            None => assert_eq!(entries.len(), whole.len()),
            other => panic!("{length} bytes: {other:?}"),
        }
    }
    assert!(longest >= whole.len() - 1);
}

#[test]
fn a_flipped_bit_is_told_and_what_came_before_it_is_read() {
    let mut any = Any(fastrand::Rng::with_seed(9));
    let inputs: Vec<Input> = (0..8).map(|_| any.input()).collect();
    let bytes = recorded(&inputs);
    let whole = read(&bytes).0;
    for at in 0..bytes.len() {
        let mut broken = bytes.clone();
        broken[at] ^= 1 << (at % 8);
        let (entries, error) = read(&broken);
        assert!(whole.starts_with(&entries), "byte {at}");
        // but for the end of the frame, which nothing needs
        assert!(error.is_some() || entries.len() == whole.len(), "byte {at}");
    }
}

#[test]
fn what_is_none_says_so() {
    assert!(matches!(read(b"").1, Some(RecordingError::NoRecording)));
    assert!(matches!(read(b"{\"schema\": \"userns-agent/v1\"}").1, Some(RecordingError::NoRecording)));
    let mut newer = recorded(&[]);
    newer[8] = 2;
    let error = read(&newer).1.unwrap();
    assert!(error.to_string().contains("version 2, and this agent reads version 1"), "{error}");
    assert_eq!(crate::cli::ExitCode::from(&ReplayError::Recording(error)), crate::cli::ExitCode::Data);
}

#[test]
fn a_length_takes_no_memory_that_is_not_there() {
    let mut writer = Writer::new(Vec::new(), u64::MAX, &header()).unwrap();
    let mut bytes = Vec::new();
    codec::number((64 << 20) - 1, &mut bytes);
    writer.put(&bytes).unwrap();
    let (entries, error) = read(&writer.end(Ended::Stopped).unwrap());
    assert!(entries.is_empty() && matches!(error, Some(RecordingError::Cut { entries: 0 })), "{error:?}");
    // a list of a billion pods in ten bytes
    let mut entry = vec![0, 1, 0, 3, 0];
    codec::number(1 << 30, &mut entry);
    assert_eq!(whole(&entry, Entry::read), Err(Malformed::Short));
    // names of rules that are all there and all empty: a byte each in the file, and 24 times that in memory
    let count = 60 << 20;
    let mut entry = vec![0, 1, 0, 14, 0, 1, 0];
    codec::number(count, &mut entry);
    entry.resize(entry.len() + usize::try_from(count).unwrap(), 0);
    assert_eq!(whole(&entry, Entry::read), Err(Malformed::Memory));
}

#[test]
fn a_recorder_writes_what_it_took_to_a_file_of_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { path: dir.path().join("a.rec"), max_bytes: u64::MAX };
    let metrics = Arc::new(Metrics::new().unwrap());
    let mut recorder = Recorder::start(&options, &header(), Arc::clone(&metrics)).unwrap();
    for second in 0..5 {
        let now = Nanos(second * 1_000_000_000);
        recorder.take(&Input::Tick(now), now);
    }
    recorder.finish();
    let (entries, error) = read(&std::fs::read(&options.path).unwrap());
    assert!(error.is_none() && entries.len() == 6, "{error:?} {entries:?}");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&options.path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let error = Recorder::start(&options, &header(), Arc::clone(&metrics)).unwrap_err();
    assert!(error.to_string().contains("is there already"), "{error}");

    let options = Options { path: "/dev/full".into(), max_bytes: 1 };
    assert!(Recorder::start(&options, &header(), metrics).is_err());
}

/// A disk that takes nothing until it is told to.
struct Slow {
    gate: std::sync::mpsc::Receiver<()>,
    file: Arc<std::sync::Mutex<Vec<u8>>>,
    /// Not before this.
    begun: Arc<AtomicBool>,
}

impl std::io::Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.begun.load(Ordering::Relaxed) {
            // until the other end is gone
            let _ = self.gate.recv();
        }
        self.file.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// How many inputs are told to be missing: the disk may have taken some between others.
fn marked(entries: &[Entry]) -> u64 {
    entries.iter().map(|entry| if let Entry::Gap(count) = entry { *count } else { 0 }).sum()
}

#[test]
fn what_a_slow_disk_does_not_take_is_marked_and_counted() {
    let (open, gate) = std::sync::mpsc::channel();
    let file = Arc::new(std::sync::Mutex::new(Vec::new()));
    let begun = Arc::<AtomicBool>::default();
    let slow = Slow { gate, file: Arc::clone(&file), begun: Arc::clone(&begun) };
    let metrics = Arc::new(Metrics::new().unwrap());
    let writer = Writer::new(slow, u64::MAX, &header()).unwrap();
    begun.store(true, Ordering::Relaxed);
    let mut recorder = Recorder::on(writer, Path::new("x"), Arc::clone(&metrics)).unwrap();
    let all = QUEUE as u64 + 50;
    for second in 1..=all {
        let now = Nanos(second * 2_000_000_000);
        recorder.take(&Input::Tick(now), now);
    }
    drop(open);
    // the queue has room again
    while Arc::strong_count(&file) > 1 && file.lock().unwrap().len() < 200 {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(50));
    recorder.finish();
    let (entries, error) = read(&file.lock().unwrap());
    assert!(error.is_none(), "{error:?}");
    let inputs = entries.iter().filter(|entry| matches!(entry, Entry::Input(_))).count() as u64;
    let missing = marked(&entries);
    assert!(missing >= 40, "{missing}");
    assert_eq!(inputs + missing, all);
    let text = String::from_utf8(metrics.render().unwrap()).unwrap();
    assert!(text.contains(&format!("userns_recording_dropped_total {missing}\n")), "{text}");
    assert!(text.contains(&format!("userns_recording_inputs_total {inputs}\n")), "{text}");
}

/// A disk that has not taken anything when the agent stops: what is missing at the end is marked as well.
#[test]
fn what_is_missing_at_the_end_is_marked() {
    let (open, gate) = std::sync::mpsc::channel();
    let file = Arc::new(std::sync::Mutex::new(Vec::new()));
    let begun = Arc::<AtomicBool>::default();
    let slow = Slow { gate, file: Arc::clone(&file), begun: Arc::clone(&begun) };
    let metrics = Arc::new(Metrics::new().unwrap());
    let writer = Writer::new(slow, u64::MAX, &header()).unwrap();
    begun.store(true, Ordering::Relaxed);
    let mut recorder = Recorder::on(writer, Path::new("x"), metrics).unwrap();
    let all = QUEUE as u64 + 50;
    for second in 1..=all {
        let now = Nanos(second * 2_000_000_000);
        recorder.take(&Input::Tick(now), now);
    }
    let opener = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(open);
    });
    recorder.finish();
    opener.join().unwrap();
    let (entries, error) = read(&file.lock().unwrap());
    assert!(error.is_none(), "{error:?}");
    let inputs = entries.iter().filter(|entry| matches!(entry, Entry::Input(_))).count() as u64;
    assert!(marked(&entries) >= 40 && inputs + marked(&entries) == all, "{inputs}");
    assert!(matches!(entries[entries.len() - 2..], [Entry::Gap(_), Entry::End(Ended::Stopped)]));
}

#[test]
fn a_recording_ends_at_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { path: dir.path().join("a.rec"), max_bytes: 1 };
    let mut recorder = Recorder::start(&options, &header(), Arc::new(Metrics::new().unwrap())).unwrap();
    for second in 1..4 {
        let now = Nanos(second * 2_000_000_000);
        recorder.take(&Input::Tick(now), now);
        std::thread::sleep(Duration::from_millis(20));
    }
    recorder.finish();
    let (entries, error) = read(&std::fs::read(&options.path).unwrap());
    let end = [Entry::Input(Input::Tick(Nanos(2_000_000_000))), Entry::End(Ended::Full)];
    assert!(error.is_none() && entries == end, "{error:?} {entries:?}");
}

#[test]
fn what_differs_between_two_sets_of_rules_is_told() {
    let said = |severity, count| Said { rule: "I11", severity, count, why: "x".into() };
    let findings = |list: &[(&str, Said)]| -> Findings {
        list.iter().map(|(id, said)| ((*id).to_owned(), said.clone())).collect()
    };
    let old = findings(&[("a", said("low", 1)), ("b", said("low", 1)), ("c", said("low", 1))]);
    let new = findings(&[("b", said("low", 1)), ("c", said("high", 1)), ("d", said("low", 2))]);
    let changes: Vec<_> = diff(&old, &new).into_iter().collect();
    assert_eq!(
        changes,
        [
            ("a".to_owned(), Change::Removed(said("low", 1))),
            ("c".to_owned(), Change::Changed(said("low", 1), said("high", 1))),
            ("d".to_owned(), Change::Added(said("low", 2))),
        ]
    );
    assert!(diff(&old, &old).is_empty());
}

#[test]
fn two_sets_of_rules_are_compared_as_far_as_a_recording_goes() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let rules = file("rules.yaml", b"apiVersion: userns-agent/v1alpha1\nkind: RuleSet\nrules: []\n");
    let mut writer = Writer::new(Vec::new(), u64::MAX, &header()).unwrap();
    let mut entries = Vec::new();
    append(&[1, 7], &mut entries);
    writer.put(&entries).unwrap();
    let whole = writer.end(Ended::Stopped).unwrap();
    // without the end: the last block with its sums, and the end of the frame
    let recording = file("cut.rec", &whole[..whole.len() - 12]);
    let arguments = Arguments { recording, rules: vec![rules.clone(), rules], json: false };
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let error = replay(&arguments, &mut out, &mut notes).unwrap_err();
    assert!(matches!(error, ReplayError::Recording(_)), "{error}");
    let [out, notes] = [out, notes].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(out.ends_with("0 findings with the old rules, 0 with the new; 0 differ\n"), "{out:?}");
    assert!(notes.contains("7 inputs are missing in 1 places"), "{notes:?}");
}

#[test]
fn what_cannot_be_opened_says_what() {
    let arguments = Arguments { recording: Path::new("/nowhere").into(), ..Arguments::default() };
    let error = replay(&arguments, &mut Vec::new(), &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("/nowhere"), "{error}");
    assert_eq!(crate::cli::ExitCode::from(&error), crate::cli::ExitCode::NoInput);
}
