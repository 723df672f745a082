//! The table against the code that uses it, and the text against the format's rules.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::table::FIELDS;
use super::*;

fn rendered(metrics: &Metrics) -> String {
    String::from_utf8(metrics.render().unwrap()).unwrap()
}

/// The value of a series, as `name{labels}`.
fn value(metrics: &Metrics, series: &str) -> Option<f64> {
    let text = rendered(metrics);
    let line =
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned))?;
    line.parse().ok()
}

fn is_in(path: &Path, part: &str) -> bool {
    path.to_string_lossy().contains(part)
}

/// The agent's source but this module and tests, comments left out.
fn sources(dir: &Path, text: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if !["/sink/metrics/", "/tests.rs", "/tests/"].iter().any(|part| is_in(&path, part)) {
            let source = fs::read_to_string(&path).unwrap();
            let code = source.lines().map(str::trim).filter(|line| !line.starts_with("//"));
            // without white space, as a long chain of calls goes over several lines
            text.extend(code.flat_map(str::split_whitespace));
        }
    }
}

fn is_called(method: &str, code: &str) -> bool {
    ["metrics.", "metrics()."].iter().any(|on| code.contains(&format!("{on}{method}(")))
}

#[test]
fn every_declared_metric_is_used() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let own = fs::read_to_string(dir.join("sink/metrics/mod.rs")).unwrap();
    let unused: Vec<_> = FIELDS.iter().filter(|field| !own.contains(&format!("families.{field}"))).collect();
    assert!(unused.is_empty(), "declared, but without a method: {unused:?}");
    let mut others = String::new();
    sources(&dir, &mut others);
    let methods = own.lines().filter_map(|line| line.trim().strip_prefix("pub")?.split_once("fn "));
    let methods = methods.filter_map(|(_, rest)| rest.split_once("(&self")).map(|(name, _)| name);
    let methods: BTreeSet<_> = methods.collect();
    assert!(methods.len() > 20, "{methods:?}");
    let uncalled: Vec<_> = methods.iter().filter(|method| !is_called(method, &others)).collect();
    assert!(uncalled.is_empty(), "methods that nothing calls, so their metrics stay at zero: {uncalled:?}");
}

#[test]
fn the_table_keeps_the_rules_of_naming() {
    let names: BTreeSet<_> = TABLE.iter().map(|declared| declared.name).collect();
    assert_eq!(names.len(), TABLE.len());
    for Declared { name, kind, help, labels, buckets, is_loss } in TABLE {
        assert!(name.starts_with("userns_") || name.starts_with("process_"), "{name}");
        assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        assert_eq!(!buckets.is_empty(), *kind == Kind::Histogram, "{name}");
        assert!(buckets.is_sorted(), "{name}");
        assert!(!help.ends_with('.') && help.starts_with(|c: char| !c.is_lowercase()), "{name}: {help}");
        assert!(*kind == Kind::Counter || !is_loss, "{name}");
        let forbidden = ["pod", "container", "namespace", "pid", "comm"];
        assert!(labels.iter().all(|label| !forbidden.contains(&label.name)), "{name}");
    }
}

#[test]
fn what_can_be_known_beforehand_exists_at_zero() {
    let metrics = Metrics::new().unwrap();
    for series in [
        "userns_findings_total{rule=\"I1\",severity=\"critical\"}",
        "userns_sink_dropped_total{severity=\"high\",sink=\"stdout\"}",
        "userns_kernel_loss_total{counter=\"evidence_ring_full\"}",
        "userns_kernel_counter_total{counter=\"evidence_sent\"}",
        "userns_capability_checks_total{relation=\"host\",verdict=\"denied\"}",
        "userns_sink_errors_total{sink=\"file\"}",
        "userns_http_rejected_total{reason=\"timeout\"}",
        "userns_state_errors_total{operation=\"write\"}",
        "userns_records_unattributed_total",
    ] {
        assert_eq!(value(&metrics, series), Some(0.0), "{series}");
    }
    assert_eq!(metrics.losses(), []);
}

#[test]
fn totals_kept_elsewhere_only_grow() {
    let metrics = Metrics::new().unwrap();
    for (total, expected) in [(5, 5.0), (3, 5.0), (6, 6.0)] {
        metrics.kernel_counter(Counter::BulkLost, total);
        assert_eq!(value(&metrics, "userns_kernel_loss_total{counter=\"bulk_ring_full\"}"), Some(expected));
    }
    metrics.sink_dropped(SinkKind::File, Severity::Low, 2);
    let losses: Vec<_> = metrics.losses().into_iter().map(|loss| (loss.metric, loss.count)).collect();
    let expected = [("userns_kernel_loss_total".to_owned(), 6), ("userns_sink_dropped_total".to_owned(), 2)];
    assert_eq!(losses, expected);
}

#[test]
fn a_probe_is_in_one_state() {
    let metrics = Metrics::new().unwrap();
    let mut probe =
        ProbeReport { hook: "h", mechanism: Some("iter"), state: "active", ..ProbeReport::default() };
    for state in ProbeReport::STATES {
        probe.state = state;
        metrics.probe(&probe);
        let text = rendered(&metrics);
        let on = text.lines().filter(|line| line.starts_with("userns_probe_state{") && line.ends_with(" 1"));
        let on: Vec<_> = on.collect();
        assert_eq!(on, [format!("userns_probe_state{{hook=\"h\",mechanism=\"iter\",state=\"{state}\"}} 1")]);
    }
}
