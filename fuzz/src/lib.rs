//! What is tried with arbitrary input: for each parser of hostile text, that it neither panics nor hangs, and what
//! must hold of whatever it accepts. The fuzz targets call these, and so does `cargo test` with a fixed seed
//! (userns-agent/tests/mutations.rs).

use std::path::Path;
use std::time::{Duration, SystemTime};

use userns_agent::cgroup;
use userns_agent::config;
use userns_agent::core::finding::Severity;
use userns_agent::core::rules::{RuleId, rule};
use userns_agent::core::{Limits, Output};
use userns_agent::decode::decode;
use userns_agent::event::{Input, Reference, Text, role};
use userns_agent::host::{kubelet, pods_file, proc};
use userns_agent::policy;
use userns_agent::recording::{Ended, Entry, Header, Reader, Writer};
use userns_agent::sink::WallClock;
use userns_agent::sink::json::Renderer;

/// A cgroup path: no pod is named that the path does not name.
pub fn cgroup_path(data: &[u8]) {
    let _ = proc::parse_cgroup(data);
    let text = Text::from_bytes(data);
    let path = text.as_str();
    let roles = path.split('/').filter(|name| !name.is_empty()).scan(role::NONE, |parent, name| {
        *parent = cgroup::role_of(*parent, name.as_bytes());
        Some(*parent)
    });
    let is_pod = roles.into_iter().any(|role| matches!(role, role::POD | role::CONTAINER));
    let found = cgroup::parse(path);
    assert_eq!(found.is_some(), is_pod, "the roles of the components say otherwise");
    let Some(found) = found else { return };
    let uid = found.uid.as_str();
    assert!(path.to_ascii_lowercase().replace('_', "-").contains(uid), "{uid} does not stand in it");
    if let Some(container) = found.container {
        assert!(
            !container.id.is_empty() && path.contains(&container.id),
            "{} does not stand in it",
            container.id
        );
    }
}

/// The text of /proc/PID/uid_map: what is accepted reads the same when it is written as the kernel writes it.
pub fn id_map(data: &[u8]) {
    let Ok(extents) = proc::parse_id_map(&String::from_utf8_lossy(data)) else { return };
    let line = |it: &userns_agent::event::Extent| {
        format!("{:>10} {:>10} {:>10}\n", it.first, it.lower_first, it.count)
    };
    let written: String = extents.iter().map(line).collect();
    assert_eq!(proc::parse_id_map(&written).as_ref(), Ok(&extents));
    assert_eq!(proc::to_id_map(&extents).nr_extents as usize, extents.len());
}

/// The other files of /proc/PID.
pub fn procfs(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = proc::parse_status(&text);
    let _ = proc::parse_start(data);
    let _ = proc::parse_mount_devices(data);
    let arguments = proc::parse_cmdline(data);
    assert!(arguments.len() <= data.len());
    assert_ne!(proc::parse_namespace(&text), Some(0));
}

/// Kubelet's record: what is accepted maps something.
pub fn kubelet_record(data: &[u8]) {
    let Ok(record) = kubelet::parse_record(data) else { return };
    for mappings in [&record.uid_mappings, &record.gid_mappings] {
        assert!(!mappings.is_empty() && mappings.iter().all(|extent| extent.count > 0));
    }
}

/// The pods file: what is accepted has names and UIDs.
pub fn pods_file(data: &[u8]) {
    match pods_file::parse_pods(data) {
        Ok(pods) => {
            for pod in pods {
                assert!(!pod.name.is_empty());
                assert_eq!(cgroup::parse(&format!("/pod{}", pod.uid)).map(|it| it.uid), Some(pod.uid));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A rules file: what is accepted silences nothing by accident, and is reported in comments of YAML.
pub fn rules_file(data: &[u8]) {
    let path = Path::new("rules.yaml");
    let rules = match policy::parse(path, data) {
        Ok(rules) => rules,
        Err(error) => return assert!(error.to_string().contains("rules.yaml")),
    };
    for setting in rules.rules.iter().filter(|setting| setting.rule == RuleId::I1) {
        assert!(setting.enabled && setting.severity.is_none_or(|severity| severity == Severity::Critical));
    }
    let nothing = policy::Identities::new();
    let policy = rules.policy(WallClock { boot: 0 }, &nothing);
    for (exception, compiled) in rules.exceptions.iter().zip(&policy.exceptions) {
        assert!(!exception.reason.is_empty() && !exception.rules.is_empty());
        assert_eq!(exception.rules.contains(&RuleId::I1), exception.silences_credential_escape);
        let lists = [&compiled.namespaces, &compiled.images, &compiled.service_accounts];
        let selects = lists.iter().any(|list| !list.is_empty()) || !compiled.labels.is_empty();
        assert!(selects || compiled.executables.is_some(), "an exception for everything");
    }
    let report =
        policy::report::report(path, &rules, &nothing, Err("nobody is asked"), SystemTime::UNIX_EPOCH);
    assert!(report.lines().all(|line| line.starts_with("# ")), "{report}");
}

/// A configuration file: what is accepted reads the same when it is printed.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let parse = |text: &str| config::parse(Some((Path::new("agent.yaml"), text)), &[]);
    match parse(&text) {
        Ok(loaded) => match parse(&loaded.show()) {
            Ok(again) => assert_eq!(again.config, loaded.config),
            Err(error) => panic!("{error}"),
        },
        Err(error) => assert!(error.to_string().contains("agent.yaml")),
    }
}

fn header() -> Header {
    Header {
        agent: "0".into(),
        kernel: "6".into(),
        node: "n".into(),
        boot: 0,
        limits: Limits {
            grace: Duration::from_secs(2),
            enrich_wait: Duration::ZERO,
            containers: 16,
            processes: 16,
        },
        unobservable: Vec::new(),
        reference: Reference::default(),
    }
}

/// Reads all there is; what was read is read again when it is written.
fn replayed(bytes: &[u8]) {
    let Ok(mut reader) = Reader::new(bytes) else { return };
    let mut writer = Writer::new(Vec::new(), u64::MAX, reader.header()).unwrap();
    let mut inputs = Vec::new();
    while let Ok(Some(entry)) = reader.next() {
        if let Entry::Input(input) = entry {
            writer.input(&input).unwrap();
            inputs.push(input);
        }
    }
    let written = writer.end(Ended::Stopped).unwrap();
    let (mut again, mut engine, mut out) =
        (Reader::new(&written[..]).unwrap(), header().engine(), Vec::new());
    for input in inputs {
        assert_eq!(again.next().unwrap(), Some(Entry::Input(input.clone())));
        engine.handle(input, &mut out);
    }
    engine.flush(&mut out);
    render(&out);
}

fn render(out: &[Output]) {
    let renderer = Renderer::new("n".to_owned());
    for output in out {
        if let Output::Finding(finding) = output {
            let line = renderer.finding(finding, rule(finding.rule), WallClock { boot: 0 }).unwrap();
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        }
    }
}

/// A recording: as a file, and as what is in the frame of one, behind checksums that are right.
pub fn recording(data: &[u8]) {
    replayed(data);
    let mut writer = Writer::new(Vec::new(), u64::MAX, &header()).unwrap();
    writer.put(data).unwrap();
    replayed(&writer.end(Ended::Stopped).unwrap());
}

/// Bytes of a ring: what is decoded can be recorded, judged and told.
pub fn record(data: &[u8]) {
    let Ok(event) = decode(data) else { return };
    let mut writer = Writer::new(Vec::new(), u64::MAX, &header()).unwrap();
    writer.input(&Input::Event(event)).unwrap();
    replayed(&writer.end(Ended::Stopped).unwrap());
}
