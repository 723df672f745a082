//! Real connections: what is asked, what is answered, and what a hostile client gets.

mod text_format;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use serde_json::Value;
use tokio::runtime::Runtime;

use super::*;
use crate::core::ExceptionView;
use crate::core::finding::Severity;
use crate::core::rules::RuleId;
use crate::event::Nanos;
use crate::sink::metrics::Metrics;
use crate::sink::report::{ProbeReport, Readiness, SourceReport, Status, TableReport};

struct Running {
    address: SocketAddr,
    source: Arc<StatusSource>,
    metrics: Arc<Metrics>,
    _runtime: Runtime,
}

fn start_with(stuck: Duration) -> Running {
    let metrics = Arc::new(Metrics::new().unwrap());
    let source = Arc::new(StatusSource::new(Arc::clone(&metrics), Status::default()).with_limit(stuck));
    let server = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = server.address();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.spawn(serve(server, Arc::clone(&source)));
    Running { address, source, metrics, _runtime: runtime }
}

fn start() -> Running {
    start_with(Duration::from_secs(3600))
}

#[derive(Debug)]
struct Answer {
    code: u16,
    head: String,
    body: String,
}

impl Running {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// Sends anything and reads until the other side closes.
    fn send(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        // the other side may have had enough before everything is sent
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn ask(&self, method: &str, path: &str) -> Answer {
        let answer = self.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {answer:?}"));
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { code, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    /// Waits until a series has at least this value: a client sees the end of its connection before the
    /// server has counted it.
    fn reaches(&self, series: &str, value: f64) -> bool {
        let start = Instant::now();
        while self.value(series) < value {
            if start.elapsed() > Duration::from_secs(30) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    fn value(&self, series: &str) -> f64 {
        let text = String::from_utf8(self.metrics.render().unwrap()).unwrap();
        let line =
            text.lines().find_map(|line| Some(line.strip_prefix(series)?.strip_prefix(' ')?.to_owned()));
        line.map_or(0.0, |line| line.parse().unwrap())
    }
}

#[test]
fn the_index_lists_what_there_is() {
    let running = start();
    let index = running.ask("GET", "/");
    assert_eq!(index.code, 200);
    for path in ["/metrics", "/healthz", "/readyz", "/status"] {
        assert!(index.body.contains(path), "{}", index.body);
    }
    assert_eq!(running.ask("GET", "/metrics?x=1").code, 200);
    assert_eq!(running.ask("GET", "/nothing").code, 404);
    assert_eq!(running.ask("GET", "/metrics/").code, 404);
}

#[test]
fn head_has_no_body_and_other_methods_are_refused() {
    let running = start();
    let (get, head) = (running.ask("GET", "/healthz"), running.ask("HEAD", "/healthz"));
    assert_eq!((get.code, get.body.as_str(), head.code, head.body.as_str()), (200, "ok\n", 200, ""));
    assert!(head.head.contains("content-length: 3"), "{}", head.head);
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"] {
        let answer = running.ask(method, "/metrics");
        assert_eq!(answer.code, 405, "{method}");
        assert!(answer.head.contains("allow: get, head"), "{}", answer.head);
    }
    assert_eq!(running.value("userns_http_requests_total{code=\"405\",path=\"/metrics\"}"), 6.0);
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let running = start();
    running.metrics.finding(RuleId::I1, Severity::Critical);
    running.metrics.sweep(Duration::from_millis(3));
    running.metrics.event("exec");
    running.ask("GET", "/nothing");
    let answer = running.ask("GET", "/metrics");
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
    let samples = text_format::parse(&answer.body).unwrap();
    let sample = |series: &str| samples.get(series).copied();
    assert_eq!(sample("userns_findings_total{rule=I1,severity=critical}"), Some(1.0));
    assert_eq!(sample("userns_http_requests_total{code=404,path=other}"), Some(1.0));
    assert_eq!(sample("userns_sweep_seconds_bucket{le=0.005}"), Some(1.0));
    assert_eq!(sample("userns_sweep_seconds_count"), Some(1.0));
    assert!(sample("process_resident_memory_bytes").unwrap() > 0.0);
    assert!(samples.len() > 80, "{}", samples.len());
}

#[test]
fn health_follows_the_event_loop() {
    let running = start_with(Duration::from_millis(500));
    running.source.beat();
    assert_eq!(running.ask("GET", "/healthz").code, 200);
    std::thread::sleep(Duration::from_millis(600));
    let answer = running.ask("GET", "/healthz");
    assert_eq!(answer.code, 503);
    assert!(answer.body.starts_with("the event loop was last heard of 0."), "{}", answer.body);
    running.source.beat();
    assert_eq!(running.ask("GET", "/healthz").code, 200);
}

#[test]
fn readiness_has_a_reason() {
    let running = start();
    let answer = running.ask("GET", "/readyz");
    assert_eq!((answer.code, answer.body.as_str()), (503, "not ready: starting\n"));
    running.source.update(|status| status.readiness = Readiness::Ready);
    let answer = running.ask("GET", "/readyz");
    assert_eq!((answer.code, answer.body.as_str()), (200, "ready\n"));
}

#[test]
fn status_tells_everything() {
    let running = start();
    running.source.update(|status| {
        status.kernel = "6.18.0".to_owned();
        status.probes = vec![ProbeReport {
            hook: "setns",
            mechanism: None,
            state: "degraded",
            reason: Some("tracefs is not readable".to_owned()),
            without: "setns is not explained",
        }];
        let broken = SourceReport {
            name: "pods_file",
            up: false,
            error: Some("line 1: \u{1b}".to_owned()),
            detail: None,
            last_success: Some(Nanos(0)),
        };
        let runtime = Some("containerd 2.1.9".to_owned());
        status.sources =
            vec![broken, SourceReport { name: "cri", up: true, detail: runtime, ..SourceReport::default() }];
        let exception = |name: &str, expired: bool, matched| ExceptionView {
            name: name.to_owned(),
            rules: vec![RuleId::I2, RuleId::I12],
            expires: expired.then_some(Nanos(0)),
            expired,
            matched,
            last: None,
        };
        status.exceptions =
            vec![exception("used", false, 3), exception("unused", false, 0), exception("old", true, 3)];
        status.tables = vec![TableReport { name: "containers", used: 3, capacity: 8192 }];
    });
    running.metrics.decode_error("truncated");
    let answer = running.ask("GET", "/status");
    assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
    let status: Value = serde_json::from_str(&answer.body).unwrap();
    for (pointer, expected) in [
        ("/schema", Value::from("userns-agent/status/v1")),
        ("/version", env!("CARGO_PKG_VERSION").into()),
        ("/kernel", "6.18.0".into()),
        ("/ready", false.into()),
        ("/reason", "starting".into()),
        ("/event_loop/alive", true.into()),
        ("/probes/0/reason", "tracefs is not readable".into()),
        ("/sources/0/error", "line 1: \u{1b}".into()),
        ("/sources/0/detail", Value::Null),
        ("/sources/1/detail", "containerd 2.1.9".into()),
        ("/exceptions/0/rules/1", "I12".into()),
        ("/exceptions/0/matched", 3.into()),
        ("/exceptions/0/state", "matched".into()),
        ("/exceptions/1/state", "unmatched".into()),
        ("/exceptions/1/expires", Value::Null),
        ("/exceptions/2/state", "expired".into()),
        ("/losses/0/metric", "userns_decode_errors_total".into()),
        ("/losses/0/labels/reason", "truncated".into()),
        ("/losses/0/count", 1.into()),
        ("/tables/0/capacity", 8192.into()),
    ] {
        assert_eq!(status.pointer(pointer), Some(&expected), "{pointer}");
    }
    assert!(status["uptime_seconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn garbage_gets_an_error_or_nothing() {
    let running = start();
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(20_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(500));
    for request in [
        &b"\r\n\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\0\0\0",
        b"GET /\0\xff HTTP/1.1\r\n\r\n",
        &[0xff; 100_000],
        long.as_bytes(),
        many.as_bytes(),
    ] {
        let mut stream = running.connect();
        let _ = stream.write_all(request);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{request:?}: {answer}");
    }
    let refused = running.send(long.as_bytes());
    assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 431") || refused.starts_with("HTTP/1.1 414"));
    assert_eq!(running.ask("GET", "/healthz").code, 200);
    assert!(running.reaches("userns_http_rejected_total{reason=\"malformed\"}", 5.0));
}

#[test]
fn a_slow_client_is_cut_off() {
    let running = start();
    let mut slow = running.connect();
    let start = Instant::now();
    let mut rest = Vec::new();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX-").unwrap();
    while start.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(200));
        slow.write_all(b"a").unwrap();
    }
    let _ = slow.read_to_end(&mut rest);
    let elapsed = start.elapsed();
    assert!(elapsed >= Duration::from_secs(4) && elapsed < Duration::from_secs(9), "{elapsed:?}");
    assert!(running.reaches("userns_http_rejected_total{reason=\"timeout\"}", 1.0));
}

#[test]
fn a_client_that_holds_connections_keeps_nobody_out() {
    let running = start();
    let held: Vec<_> = (0..3 * MAX_CONNECTIONS).map(|_| running.connect()).collect();
    let start = Instant::now();
    for _ in 0..5 {
        assert_eq!(running.ask("GET", "/healthz").code, 200);
    }
    assert!(start.elapsed() < HEAD_TIMEOUT, "{:?}", start.elapsed());
    assert!(running.reaches("userns_http_rejected_total{reason=\"limit\"}", 2.0 * MAX_CONNECTIONS as f64));
    drop(held);
}

#[test]
fn many_may_scrape_at_once() {
    let running = start();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let answer = running.ask("GET", "/metrics");
                    assert_eq!(answer.code, 200);
                    assert!(answer.body.ends_with('\n'));
                }
            });
        }
    });
    assert_eq!(running.value("userns_http_requests_total{code=\"200\",path=\"/metrics\"}"), 160.0);
}

#[test]
fn an_address_that_cannot_be_had_is_named_with_what_to_do() {
    let running = start();
    let error = bind(running.address).unwrap_err().to_string();
    let expected = format!("cannot listen on {}: ", running.address);
    assert!(error.starts_with(&expected) && error.contains("set another address with --listen"), "{error}");
    let error = bind("192.0.2.1:9477".parse().unwrap()).unwrap_err().to_string();
    assert!(error.contains("set an address of this node"), "{error}");
}
