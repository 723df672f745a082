//! Real pipes and files, slow and broken ones.

use std::io::{BufRead as _, BufReader, PipeReader, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Mutex;

use serde_json::Value;

use super::*;
use crate::core::finding::FindingId;
use crate::sink::report::AgentState;
use crate::sink::sample;

const LONG: Duration = Duration::from_secs(30);

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new().unwrap())
}

fn value(metrics: &Metrics, series: &str) -> f64 {
    let text = String::from_utf8(metrics.render().unwrap()).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
    line.unwrap_or_else(|| panic!("no {series}")).parse().unwrap()
}

type Targets = Vec<(SinkKind, Form, Box<dyn Target>)>;

/// A standard output whose other end is the reader.
fn piped(form: Form) -> (PipeReader, Targets) {
    let (reader, writer) = io::pipe().unwrap();
    let stream = Stream::new(OwnedFd::from(writer).into());
    (reader, vec![(SinkKind::Stdout, form, Box::new(stream))])
}

fn filed(path: &Path) -> (SinkKind, Form, Box<dyn Target>) {
    let options = file::Options { path: path.to_owned(), max_bytes: 1 << 30, keep: 1 };
    (SinkKind::File, Form::Json, Box::new(LogFile::open(options).unwrap()))
}

fn sinks(targets: Targets, metrics: &Arc<Metrics>) -> Sinks {
    Sinks::with_targets("node-1".to_owned(), Limits::default(), targets, Arc::clone(metrics)).unwrap()
}

fn numbered(number: u64, severity: Severity) -> Finding {
    Finding { id: FindingId(number), count: number, severity, time: boot_now(), ..sample::finding() }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_output_gets_every_line_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.jsonl");
    let metrics = metrics();
    let (mut reader, mut targets) = piped(Form::Json);
    targets.push(filed(&path));
    let reading = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    let sinks = sinks(targets, &metrics);
    sinks.agent(&sample::agent(AgentState::Ready), sample::CLOCK);
    for number in 0..200 {
        sinks.finding(&numbered(number, Severity::Low), sample::CLOCK);
    }
    sinks.suppressed(&sample::suppressed(), sample::CLOCK);
    assert_eq!(sinks.drain(LONG), Drained { lost: 0 });
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(reading.join().unwrap(), text);
    let lines = lines(&text);
    assert_eq!(lines.len(), 202);
    assert_eq!((&lines[0]["event"], &lines[201]["event"]), (&"agent".into(), &"suppressed".into()));
    assert!(lines[1..201].iter().enumerate().all(|(number, line)| line["finding"]["count"] == number));
    for sink in ["stdout", "file"] {
        assert_eq!(value(&metrics, &format!("userns_sink_written_total{{sink=\"{sink}\"}}")), 202.0);
        assert_eq!(value(&metrics, &format!("userns_sink_queue_bytes{{sink=\"{sink}\"}}")), 0.0);
        assert_eq!(value(&metrics, &format!("userns_event_delay_seconds_count{{sink=\"{sink}\"}}")), 200.0);
    }
}

#[test]
fn a_finding_is_remembered_when_the_slowest_output_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = metrics();
    let open = || Memory::open(&dir.path().join("state"), "boot", Arc::clone(&metrics)).unwrap();
    let (reader, mut targets) = piped(Form::Json);
    targets.push(filed(&dir.path().join("out.jsonl")));
    let sinks = sinks(targets, &metrics).remembering(Some(Arc::new(open().0)));
    // more than a pipe holds, so that standard output is stuck with most of them
    for number in 0..100 {
        sinks.finding(&numbered(number, Severity::High), sample::CLOCK);
    }
    let start = Instant::now();
    while value(&metrics, "userns_sink_written_total{sink=\"file\"}") < 100.0 && start.elapsed() < LONG {
        thread::sleep(Duration::from_millis(5));
    }
    let Drained { lost } = sinks.drain(Duration::from_millis(100));
    let written = value(&metrics, "userns_sink_written_total{sink=\"stdout\"}");
    assert!(lost > 50 && written > 1.0, "{lost} {written}");
    drop((sinks, reader));
    // the stuck writer ends with the pipe, and with it the lock on the directory
    while Memory::open(&dir.path().join("state"), "boot", Arc::clone(&metrics)).is_err() {
        assert!(start.elapsed() < LONG);
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(open().1.len() as f64, written);
}

#[test]
fn the_live_view_tells_updates_as_such() {
    let metrics = metrics();
    let (reader, targets) = piped(Form::Live { color: false });
    let sinks = sinks(targets, &metrics);
    let finding = Finding { status: Status::Updated, ..numbered(7, Severity::High) };
    sinks.finding(&finding, sample::CLOCK);
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).unwrap();
    assert!(line.contains("HIGH") && line.contains("(update, 7 in all)"), "{line}");
}

#[test]
fn a_stuck_pipe_stalls_nothing_and_loses_nothing_critical() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.jsonl");
    let metrics = metrics();
    let (mut reader, mut targets) = piped(Form::Json);
    targets.push(filed(&path));
    let sinks = sinks(targets, &metrics);
    let start = Instant::now();
    for number in 0..2000 {
        sinks.finding(&numbered(number, Severity::Low), sample::CLOCK);
    }
    for number in 0..500 {
        sinks.finding(&numbered(number, Severity::Critical), sample::CLOCK);
        let update = Finding { status: Status::Updated, ..numbered(7, Severity::Critical) };
        sinks.finding(&update, sample::CLOCK);
    }
    assert!(start.elapsed() < LONG, "telling waited for a reader: {:?}", start.elapsed());
    let dropped = value(&metrics, "userns_sink_dropped_total{severity=\"low\",sink=\"stdout\"}");
    assert!(dropped > 1000.0 && dropped < 2000.0, "{dropped}");
    assert_eq!(value(&metrics, "userns_sink_dropped_total{severity=\"critical\",sink=\"stdout\"}"), 0.0);
    let superseded = value(&metrics, "userns_sink_superseded_total{sink=\"stdout\"}");
    assert_eq!(superseded, 499.0);

    let reading = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    while value(&metrics, "userns_sink_queue_bytes{sink=\"stdout\"}") > 0.0 && start.elapsed() < LONG {
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(sinks.drain(LONG), Drained { lost: 0 });
    drop(sinks);
    let written = lines(&reading.join().unwrap());
    let of = |severity: &str| {
        let is = |line: &&Value| line["finding"]["rule"]["severity"] == severity;
        written.iter().filter(is).count()
    };
    assert_eq!((of("critical"), of("low") as f64), (501, 2000.0 - dropped));
    let last = written.last().unwrap();
    assert_eq!((&last["event"], &last["severity"]), (&"suppressed".into(), &"low".into()));
    assert_eq!(last["count"].as_f64(), Some(dropped));
    let filed = lines(&std::fs::read_to_string(&path).unwrap());
    let updates = filed.iter().filter(|line| line["finding"]["status"] == "updated").count();
    let superseded = value(&metrics, "userns_sink_superseded_total{sink=\"file\"}");
    assert_eq!((filed.len() - updates, updates as f64), (2500, 500.0 - superseded));
}

#[test]
fn a_reader_that_goes_is_noticed_and_what_follows_is_counted() {
    let metrics = metrics();
    let (reader, targets) = piped(Form::Json);
    let sinks = sinks(targets, &metrics);
    drop(reader);
    sinks.finding(&numbered(1, Severity::High), sample::CLOCK);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LONG, sinks.stdout_gone()).await }).unwrap();
    sinks.finding(&numbered(2, Severity::High), sample::CLOCK);
    assert_eq!(value(&metrics, "userns_sink_dropped_total{severity=\"high\",sink=\"stdout\"}"), 2.0);
    assert_eq!(sinks.drain(LONG), Drained { lost: 0 });
}

#[test]
fn draining_a_stuck_pipe_ends_in_time_and_counts_what_is_left() {
    let metrics = metrics();
    let (_reader, targets) = piped(Form::Json);
    let sinks = sinks(targets, &metrics);
    for number in 0..100 {
        sinks.finding(&numbered(number, Severity::High), sample::CLOCK);
    }
    let start = Instant::now();
    let Drained { lost } = sinks.drain(Duration::from_millis(100));
    assert!(start.elapsed() < LONG);
    let written = value(&metrics, "userns_sink_written_total{sink=\"stdout\"}");
    assert!(lost > 50 && lost as f64 + written == 100.0, "{lost} {written}");
    let dropped = value(&metrics, "userns_sink_dropped_total{severity=\"high\",sink=\"stdout\"}");
    assert_eq!(dropped, lost as f64);
}

/// Fails as often as it is told to, then keeps what it gets.
struct Flaky {
    failures: u32,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Target for Flaky {
    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.failures > 0 {
            self.failures -= 1;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.written.lock().unwrap().extend_from_slice(line);
        Ok(())
    }
}

#[test]
fn a_full_disk_is_counted_and_costs_no_line() {
    let metrics = metrics();
    let written = Arc::<Mutex<Vec<u8>>>::default();
    let target = Flaky { failures: 1, written: Arc::clone(&written) };
    let sinks = sinks(vec![(SinkKind::File, Form::Json, Box::new(target))], &metrics);
    for number in 0..10 {
        sinks.finding(&numbered(number, Severity::Low), sample::CLOCK);
    }
    assert_eq!(sinks.drain(LONG), Drained { lost: 0 });
    assert_eq!(lines(std::str::from_utf8(&written.lock().unwrap()).unwrap()).len(), 10);
    assert_eq!(value(&metrics, "userns_sink_errors_total{sink=\"file\"}"), 1.0);
}

#[test]
fn a_disk_that_stays_full_does_not_hold_the_agent_up() {
    let metrics = metrics();
    let target = Flaky { failures: u32::MAX, written: Arc::default() };
    let sinks = sinks(vec![(SinkKind::File, Form::Json, Box::new(target))], &metrics);
    for number in 0..10 {
        sinks.finding(&numbered(number, Severity::Medium), sample::CLOCK);
    }
    assert_eq!(sinks.drain(Duration::from_millis(100)), Drained { lost: 10 });
}

#[test]
fn a_file_rotated_by_another_program_is_opened_afresh() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.jsonl");
    let sinks = sinks(vec![filed(&path)], &metrics());
    std::fs::rename(&path, dir.path().join("old")).unwrap();
    sinks.reopen();
    let start = Instant::now();
    while !path.exists() && start.elapsed() < LONG {
        thread::sleep(Duration::from_millis(5));
    }
    sinks.finding(&numbered(1, Severity::Low), sample::CLOCK);
    assert_eq!(sinks.drain(LONG), Drained { lost: 0 });
    assert_eq!(lines(&std::fs::read_to_string(&path).unwrap()).len(), 1);
    assert_eq!(std::fs::read_to_string(dir.path().join("old")).unwrap(), "");
}
