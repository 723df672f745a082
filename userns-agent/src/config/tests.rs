//! Configuration: every key, every mistake, every origin.

use super::*;

const NAME: &str = "agent.yaml";

fn from_file(text: &str) -> Result<Loaded, ConfigError> {
    parse(Some((Path::new(NAME), text)), &[])
}

fn mistakes(text: &str) -> Vec<String> {
    match from_file(text) {
        Err(ConfigError::Invalid { mistakes }) => mistakes.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

fn flag(key: &'static str, text: &str) -> Override {
    Override { key, text: text.into(), origin: Origin::Flag }
}

#[test]
fn nothing_given_means_defaults() {
    for text in ["", "# only a comment\n", "---\n", "{}"] {
        assert_eq!(from_file(text).unwrap(), Loaded::default(), "{text:?}");
    }
}

#[test]
fn later_sources_win() {
    let overrides = [
        Override { key: "listen", text: "[::]:1".into(), origin: Origin::Environment },
        flag("listen", "[::]:2"),
    ];
    let loaded = parse(Some((Path::new(NAME), "listen: 0.0.0.0:3\nentry_grace: 500ms")), &overrides).unwrap();
    assert_eq!(loaded.config.listen, "[::]:2".parse().unwrap());
    assert_eq!(loaded.config.entry_grace, Duration::from_millis(500));
    assert_eq!(loaded.origins["listen"], Origin::Flag);
    assert_eq!(loaded.origins["entry_grace"], Origin::File { path: NAME.into(), line: 2 });
}

#[test]
fn a_full_file_is_read() {
    let text = "
kubelet_root: /k
pods_file: pods.yaml
rules_file: rules.yaml
cri_socket: off
api_server: off
kubeconfig: admin.conf
credentials_dir: /s
node_name: node-1.example
kubelet_api: https://127.0.0.1:10250
kubelet_ca: ca.crt
kubelet_api_interval: 30s
proc_root: /p
cgroup_root: /c
host_root: /h
runtime_paths: [/a, /b c]
listen: 0.0.0.0:1
entry_grace: 1m
enrich_wait: 1s
sweep_interval: 1h
output: live
output_file: /var/log/x
output_file_max_bytes: 1048576
output_file_keep: 0
state_dir: none
socket: none
log_level: trace
max_containers: 64
max_processes: 1024
reference_userns: 17
unobservable_runtimes: [wasm, kata-*]
container_budget: 7
probe_mechanism: fexit
";
    let config = from_file(text).unwrap().config;
    assert_eq!((config.container_budget, config.probe_mechanism), (7, Some(Mechanism::FExit)));
    assert_eq!((config.cgroup_root, config.state_dir), (Some("/c".into()), None));
    assert_eq!((config.cri_socket, config.rules_file), (Socket::Off, Some("rules.yaml".into())));
    assert_eq!((config.api_server, config.kubeconfig), (ApiServer::Off, Some("admin.conf".into())));
    assert_eq!(config.node_name.as_deref(), Some("node-1.example"));
    assert_eq!(config.kubelet_api, Some("https://127.0.0.1:10250".parse().unwrap()));
    assert_eq!(config.runtime_paths, [PathBuf::from("/a"), "/b c".into()]);
    assert_eq!((config.output, config.log_level), (Output::Live, LogLevel::Trace));
    assert_eq!((config.output_file_max_bytes, config.output_file_keep), (1 << 20, 0));
    assert_eq!(config.unobservable_runtimes, ["wasm", "kata-*"]);
    assert_eq!(mistakes("unobservable_runtimes: [a, '*']").len(), 1);
    assert_eq!(config.reference_userns, ReferenceUserns::Process(17));
    assert_eq!(KEYS.len(), text.lines().filter(|line| !line.is_empty()).count(), "a key is missing here");
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let text =
        "listen: 9477\nentri_grace: 1s\nsweep_interval: 5\nentry_grace: 10ms\nruntime_paths: [/a, b]\n";
    assert_eq!(
        mistakes(text),
        [
            "agent.yaml:1: listen: found the number 9477; allowed is an IP address and port, such as \
             127.0.0.1:9477 or [::]:9477",
            "agent.yaml:2: entri_grace: found a key that does not exist; allowed is entry_grace, if that was meant",
            "agent.yaml:3: sweep_interval: found the number 5; allowed is a time from 1s to 1h",
            "agent.yaml:4: entry_grace: found \"10ms\"; allowed is a time from 100ms to 1m",
            "agent.yaml:5: runtime_paths[1]: found \"b\"; allowed is an absolute path",
        ]
    );
}

#[test]
fn mistakes_in_flags_and_environment_are_named_as_such() {
    let mut wrong = vec![flag("runtime_paths", "/a,b"), flag("output_file_keep", "-1")];
    wrong.push(Override { key: "log_level", text: String::new(), origin: Origin::Environment });
    let error = parse(None, &wrong).unwrap_err().to_string();
    assert_eq!(
        error,
        "the configuration has 3 mistakes:\
         \n  flag --runtime-paths[1]: found \"b\"; allowed is an absolute path\
         \n  flag --output-file-keep: found \"-1\"; allowed is a whole number from 0 to 100\
         \n  environment variable USERNS_AGENT_LOG_LEVEL: found nothing; allowed is one of `error`, `warn`, \
         `info`, `debug`, `trace`"
    );
}

#[test]
fn every_key_refuses_every_wrong_type() {
    for key in KEYS {
        for wrong in ["{a: 1}", "true", "1.5", "-1", "''", "[[1]]", "9999999999999999999999", "relative,"] {
            if matches!(key.slot, value::Slot::File(_)) && wrong == "relative," {
                continue;
            }
            let found = mistakes(&format!("{}: {wrong}", key.name));
            assert_eq!(found.len(), 1, "{} {wrong}", key.name);
        }
    }
}

#[test]
fn limits_are_inclusive() {
    for (key, good, bad) in [
        ("entry_grace", ["100ms", "60s"], ["99ms", "61s"]),
        ("sweep_interval", ["1s", "60m"], ["999ms", "3601s"]),
        ("output_file_max_bytes", ["1MiB", "16 GiB"], ["1048575", "16385MiB"]),
        ("output_file_keep", ["0", "100"], ["-1", "101"]),
        ("kubelet_api_interval", ["1s", "10m"], ["999ms", "601s"]),
        ("kubelet_api", ["off", "https://[::1]:10250"], ["http://127.0.0.1:10255", "127.0.0.1:10250"]),
        ("node_name", ["node-1.example", "1"], ["Node", "a/b"]),
        ("max_containers", ["64", "65536"], ["63", "65537"]),
        ("max_processes", ["1024", "1048576"], ["1023", "1048577"]),
    ] {
        for text in good {
            assert!(parse(None, &[flag(key, text)]).is_ok(), "{key} {text}");
        }
        for text in bad {
            assert!(parse(None, &[flag(key, text)]).is_err(), "{key} {text}");
        }
    }
}

#[test]
fn what_is_no_mapping_is_refused() {
    for text in ["[1]", "a", "a: [", "listen: 1\nlisten: 2", "a: b\n---\nc: d\n", "1: 2\n? [a]\n: b"] {
        assert!(matches!(from_file(text), Err(ConfigError::Syntax { .. })), "{text:?}");
    }
}

#[test]
fn syntax_errors_say_where() {
    let error = from_file("listen: [\n\nlisten: 2\n").unwrap_err().to_string();
    assert!(error.contains(NAME) && error.contains("line ") && error.lines().count() == 1, "{error}");
}

#[test]
fn alias_bombs_are_refused_quickly() {
    let mut text = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let alias = format!("*a{}", level - 1);
        text.push_str(&format!("b{level}: &a{level} [{}]\n", [alias.as_str(); 10].join(", ")));
    }
    let begin = std::time::Instant::now();
    assert!(matches!(from_file(&text), Err(ConfigError::Syntax { .. })));
    // expanded, it would take hours
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[test]
fn the_printed_configuration_reads_back() {
    for socket in ["off", "auto", "/run/a b.sock"] {
        let overrides = [
            flag("pods_file", "/a: b # \"c\".yaml"),
            flag("output_file_max_bytes", "1048577"),
            flag("kubelet_api", "https://127.0.0.1:10250"),
            flag("node_name", "1"),
            flag("cri_socket", socket),
        ];
        let loaded = parse(None, &overrides).unwrap();
        assert_eq!(from_file(&loaded.show()).unwrap().config, loaded.config);
    }
    assert_eq!(from_file(&Loaded::default().show()).unwrap().config, Config::default());
}

#[test]
fn keys_are_named_consistently() {
    for key in KEYS {
        assert!(key.name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{}", key.name);
        assert!(!key.help.ends_with('.') && key.help.starts_with(char::is_uppercase), "{}", key.name);
        assert!(keys::reference().contains(&format!("### `{}`", key.name)));
        // Kubernetes gives every pod such variables for each service of its namespace; one may be called userns-agent
        let name = keys::env_name(key.name);
        assert!(
            !name.starts_with("USERNS_AGENT_PORT") && !name.starts_with("USERNS_AGENT_SERVICE"),
            "{name}"
        );
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = load(Some(Path::new("/nonexistent/agent.yaml")), &[]).unwrap_err();
    assert!(matches!(&error, ConfigError::Read { .. }));
    assert!(error.to_string().contains("/nonexistent/agent.yaml"), "{error}");
    assert!(matches!(load(Some(Path::new("/")), &[]), Err(ConfigError::Read { .. })));
    // has no end
    assert!(matches!(load(Some(Path::new("/dev/zero")), &[]), Err(ConfigError::Read { .. })));
}
