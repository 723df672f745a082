//! A reader of Prometheus' text format, as strict as `promtool check metrics`: what it accepts, Prometheus
//! does.

use std::collections::{BTreeMap, BTreeSet};

/// Samples by `name{label=value,...}`, labels in order.
pub(super) type Samples = BTreeMap<String, f64>;

#[derive(Default)]
struct Reader {
    samples: Samples,
    /// Types of the families begun; the last one is open.
    types: BTreeMap<String, String>,
    open: String,
    helped: BTreeSet<String>,
}

/// Reads everything or says what is wrong.
pub(super) fn parse(text: &str) -> Result<Samples, String> {
    if !text.ends_with('\n') {
        return Err("the last line has no end".to_owned());
    }
    let mut reader = Reader::default();
    for line in text.lines() {
        reader.line(line).map_err(|what| format!("{what}: {line}"))?;
    }
    reader.histograms()?;
    Ok(reader.samples)
}

fn is_name(name: &str) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    !name.is_empty() && name.chars().all(ok) && !name.starts_with(|c: char| c.is_ascii_digit())
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, help] if is_name(name) && !help.is_empty() => {
                if !self.helped.insert(name.to_owned()) {
                    return Err("a second HELP".to_owned());
                }
            }
            ["#", "TYPE", name, kind] if ["counter", "gauge", "histogram"].contains(&kind) => {
                if !self.helped.contains(name)
                    || self.types.insert(name.to_owned(), kind.to_owned()).is_some()
                {
                    return Err("a TYPE without HELP, or a second one".to_owned());
                }
                self.open = name.to_owned();
            }
            ["#", ..] => return Err("neither HELP nor TYPE".to_owned()),
            _ => self.sample(line)?,
        }
        Ok(())
    }

    fn sample(&mut self, line: &str) -> Result<(), String> {
        let (series, value) = line.rsplit_once(' ').ok_or("no value")?;
        let value: f64 = value.parse().map_err(|_| "the value is no number")?;
        let (name, labels) = match series.split_once('{') {
            None => (series, BTreeMap::new()),
            Some((name, rest)) => (name, labels(rest)?),
        };
        let kind = &self.types[&self.open];
        let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        let fits = name.strip_prefix(&self.open).is_some_and(|suffix| suffixes.contains(&suffix));
        if !is_name(name) || !fits {
            return Err(format!("no sample of {}", self.open));
        }
        if kind == "counter" && (value < 0.0 || !name.ends_with("_total")) {
            return Err("no counter".to_owned());
        }
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let series =
            if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) };
        if self.samples.insert(series, value).is_some() {
            return Err("a second sample of the same series".to_owned());
        }
        Ok(())
    }

    /// Buckets have to be cumulative and end with the count.
    fn histograms(&self) -> Result<(), String> {
        for (family, _) in self.types.iter().filter(|(_, kind)| *kind == "histogram") {
            let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
            for (name, count) in &self.samples {
                let Some(labels) = name.strip_prefix(&format!("{family}_bucket{{")) else { continue };
                let labels = labels.trim_end_matches('}').split(',');
                let (bound, others): (Vec<_>, Vec<_>) = labels.partition(|label| label.starts_with("le="));
                let bound = bound.first().and_then(|le| le[3..].parse().ok()).ok_or("no bound")?;
                series.entry(others.join(",")).or_default().push((bound, *count));
            }
            for (labels, mut buckets) in series {
                buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
                let count = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
                let count = self.samples.get(&format!("{family}_count{count}"));
                let cumulative = buckets.is_sorted_by(|a, b| a.1 <= b.1);
                let (last, total) = buckets.last().copied().unwrap_or_default();
                if !cumulative || last != f64::INFINITY || Some(&total) != count {
                    return Err(format!("{family}: buckets {buckets:?} and count {count:?} do not agree"));
                }
            }
        }
        Ok(())
    }
}

fn labels(rest: &str) -> Result<BTreeMap<String, String>, String> {
    let body = rest.strip_suffix('}').ok_or("the labels have no end")?;
    let mut labels = BTreeMap::new();
    for pair in body.split("\",") {
        let (name, value) = pair.split_once("=\"").ok_or("a label without value")?;
        let value = value.strip_suffix('"').unwrap_or(value);
        if !is_name(name) || value.contains(['"', '\\']) {
            return Err("a broken label".to_owned());
        }
        if labels.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err("a label twice".to_owned());
        }
    }
    Ok(labels)
}

#[test]
fn what_prometheus_refuses_is_refused() {
    let head = "# HELP a_total A\n# TYPE a_total counter\n";
    assert_eq!(parse(&format!("{head}a_total{{b=\"c\"}} 1\n")).unwrap()["a_total{b=c}"], 1.0);
    for (what, text) in [
        ("no end of line", "a_total 1"),
        ("a negative counter", "a_total -1\n"),
        ("no number", "a_total one\n"),
        ("another family", "b_total 1\n"),
        ("a second sample", "a_total 1\na_total 1\n"),
        ("a broken label", "a_total{b=c} 1\n"),
        ("a second type", "# TYPE a_total counter\n"),
        ("a comment", "# anything\n"),
    ] {
        assert!(parse(&format!("{head}{text}")).is_err(), "{what}");
    }
    let head = "# HELP h H\n# TYPE h histogram\n";
    let good = "h_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 2\n";
    parse(&format!("{head}{good}")).unwrap();
    assert!(parse(&format!("{head}{}", good.replace("h_count 2", "h_count 3"))).is_err());
    assert!(parse(&format!("{head}{}", good.replace("\"1\"} 1", "\"1\"} 5"))).is_err());
}
