//! `simulate` in real containers, with the agent watching: the user namespace holds, what the table promises to be seen is
//! seen, and the machine is the same afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use xtask::lab::{
    Agent, Capabilities, Container, ContainerSpec, IdRange, Line, Mount, PodSpec, ProcessSpec, RuntimeName,
};
use xtask::quality::Sample;

use crate::{Node, rounds, slowdown, told};

const PROGRAM: &str = "/userns-agent";
const FINDINGS: &str = "/findings";
/// An open finding tells what is new of it after ten seconds.
const PATIENCE: u32 = 15;

/// A node whose agent writes its lines where containers may read them.
struct Watched {
    agent: Agent,
    node: Node,
    lines: PathBuf,
}

impl Watched {
    fn new(test: &str) -> Result<Option<Self>> {
        let Some(node) = Node::new(test)? else { return Ok(None) };
        let lines = node.lab.dir().join("lines");
        fs::create_dir_all(&lines)?;
        let file = lines.join("agent.jsonl");
        let agent = node.agent(&["--output-file", &file.display().to_string()])?;
        // the file is the agent's user's alone
        fs::set_permissions(&lines, fs::Permissions::from_mode(0o755))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
        Ok(Some(Self { agent, node, lines }))
    }

    fn container(&self, spec: ContainerSpec, record: Option<IdRange>) -> Result<(String, Container)> {
        let pod = self.node.lab.pod(PodSpec { name: "p".into(), record, ..PodSpec::default() })?;
        let bind = |source: &Path, destination: &str| Mount {
            options: ["rbind", "rprivate", "ro"].map(str::to_owned).to_vec(),
            ..Mount::bind(source, destination)
        };
        let mounts = vec![bind(&self.node.bin, PROGRAM), bind(&self.lines, FINDINGS)];
        let container = pod.run(ContainerSpec { mounts, ..spec })?;
        // its program runs
        rounds::exec(&container, &ProcessSpec::new(&["true"]))?;
        Ok((pod.uid().to_owned(), container))
    }
}

/// Tries everything in a container; returns the exit code and the report.
fn simulate(
    uid: &str,
    container: &Container,
    capabilities: Capabilities,
    target: Option<u32>,
) -> Result<(Option<i32>, Value)> {
    rehearse("--all", uid, container, capabilities, target, None)
}

/// [`simulate`] with one technique, or `--all`, and this of the host's left open.
fn rehearse(
    what: &str,
    uid: &str,
    container: &Container,
    capabilities: Capabilities,
    target: Option<u32>,
    leaked: Option<&Path>,
) -> Result<(Option<i32>, Value)> {
    let (uid, wait) = (format!("POD_UID={uid}"), (PATIENCE * slowdown()).min(60).to_string());
    let file = format!("{FINDINGS}/agent.jsonl");
    let mut process = ProcessSpec::new(&["env", &uid, PROGRAM, "simulate", "run", what, "--output", "json"]);
    process.args.extend(leaked.map(|_| format!("--leaked-fd={}", ProcessSpec::LEAKED)));
    process.leaked = leaked.map(Path::to_owned);
    process.args.extend(["--findings", &file, "--wait", &wait].map(str::to_owned));
    process.args.extend(target.map(|pid| format!("--target-pid={pid}")));
    process.capabilities = capabilities;
    let output = container.exec_process(&process)?;
    let report = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("no report: {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok((output.status.code(), report))
}

/// Name, kind of outcome, and what is said of the agent.
fn rows(report: &Value) -> Result<Vec<(&str, &str, &str)>> {
    let rows = report["techniques"].as_array().context("the report has no techniques")?;
    let read = |value| (word(value, "/name"), word(value, "/outcome/kind"), word(value, "/agent"));
    Ok(rows.iter().map(read).collect())
}

fn word<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("?")
}

/// What must become of a technique for a rule to see it.
fn shows_when(rule: &str) -> &'static str {
    if rule == "I10" { "allowed" } else { "denied" }
}

/// Tells of each technique that left what its rule looks for whether it was seen.
fn tell(report: &Value, runtime: RuntimeName) {
    for row in report["techniques"].as_array().into_iter().flatten() {
        let rule = word(row, "/detection/rule");
        let seen = word(row, "/agent");
        let sure = row["detection"]["reservation"].is_null() || seen == "seen";
        if rule != "?" && sure && word(row, "/outcome/kind") == shows_when(rule) {
            let (name, rule, runtime) = (word(row, "/name").into(), rule.into(), runtime.to_string());
            Sample::Technique { name, rule, runtime, seen: seen == "seen" }.tell();
        }
    }
}

/// Holds that nothing got out, and that the agent told of all that the table promises.
fn held(report: &Value, code: Option<i32>, promised: &[&str]) -> Result<()> {
    let rows = rows(report)?;
    ensure!(code == Some(0) && report["broken"] == false, "ended with {code:?}: {report:#}");
    ensure!(word(report, "/place/standing") == "user_namespace", "{report:#}");
    for row in report["techniques"].as_array().into_iter().flatten() {
        let sure = row["detection"]["rule"].is_string() && row["detection"]["reservation"].is_null();
        let shows = word(row, "/outcome/kind") == shows_when(word(row, "/detection/rule"));
        ensure!(!(sure && shows) || word(row, "/agent") == "seen", "not seen: {row:#}");
    }
    for name in promised {
        let row = rows.iter().find(|row| row.0 == *name).with_context(|| format!("no technique {name}"))?;
        ensure!(row.1 == "denied", "{row:?} is not denied");
    }
    Ok(())
}

/// What must be the same afterwards.
fn machine() -> BTreeMap<&'static str, String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let modules = read("/proc/modules");
    let modules = modules.lines().filter_map(|line| line.split(' ').next());
    let hierarchies = read("/proc/cgroups");
    let hierarchies = hierarchies.lines().map(|line| line.split('\t').take(2).collect::<Vec<_>>().join(" "));
    BTreeMap::from([
        ("mounts", read("/proc/self/mountinfo")),
        ("core pattern", read("/proc/sys/kernel/core_pattern")),
        ("modprobe", read("/proc/sys/kernel/modprobe")),
        ("kexec", read("/sys/kernel/kexec_loaded")),
        ("modules", modules.collect::<Vec<_>>().join(" ")),
        ("hierarchies", hierarchies.collect::<Vec<_>>().join(", ")),
    ])
}

/// In a pod as kubelet makes it, and in one with every capability and the host's processes in sight.
fn in_pods(runtime: RuntimeName, first: u16, test: &str) -> Result<()> {
    let Some(watched) = Watched::new(test)? else { return Ok(()) };
    let before = machine();
    let range = IdRange::nth(first);
    let spec = ContainerSpec { runtime, mapping: Some(range.mapping()), ..ContainerSpec::default() };
    let (uid, container) = watched.container(spec, Some(range))?;
    let (code, report) = simulate(&uid, &container, Capabilities::RuntimeDefault, None)?;
    let denied = ["proc-namespaces", "mount-namespace", "idmapped-mount", "file-handle", "kernel-log"];
    println!("{runtime}, a pod: {:?}", rows(&report)?);
    held(&report, code, &denied)?;

    let range = IdRange::nth(first + 1);
    let spec = ContainerSpec {
        runtime,
        mapping: Some(range.mapping()),
        capabilities: Capabilities::All,
        host_pid_namespace: true,
        ..ContainerSpec::default()
    };
    let (uid, container) = watched.container(spec, Some(range))?;
    // process 1 may have more to protect it than its user
    let target = watched.node.lab.host_process()?;
    let (code, report) = simulate(&uid, &container, Capabilities::All, Some(target.pid()))?;
    let denied =
        ["ptrace-seize", "process-root", "process-vm-read", "pidfd-getfd", "mount-disk", "device-node"];
    println!("{runtime}, every capability: {:?}", rows(&report)?);
    held(&report, code, &denied)?;

    watched.agent.settle(Duration::from_secs(1))?;
    Sample::tell_delays(&watched.agent);
    let low = |line: &Line| {
        let severity = line.text("/finding/rule/severity");
        severity == Some(if line.text("/finding/rule/id") == Some("I10") { "info" } else { "low" })
    };
    ensure!(watched.agent.findings().iter().all(low), "{}", told(&watched.agent));
    ensure!(machine() == before, "before {before:#?}, after {:#?}", machine());
    Ok(())
}

#[test]
fn escapes_rehearsed_in_pods_of_runc_are_stopped_and_seen() -> Result<()> {
    in_pods(RuntimeName::Runc, 46_000, "escapes_rehearsed_in_pods_of_runc")
}

#[test]
fn escapes_rehearsed_in_pods_of_crun_are_stopped_and_seen() -> Result<()> {
    in_pods(RuntimeName::Crun, 46_010, "escapes_rehearsed_in_pods_of_crun")
}

/// In a container of its own no technique is taken for another one that leaves the same sign.
fn each_alone(runtime: RuntimeName, first: u16, test: &str) -> Result<()> {
    let Some(watched) = Watched::new(test)? else { return Ok(()) };
    let list = Command::new(&watched.node.bin).args(["simulate", "list", "--output", "json"]).output()?;
    let list: Value = serde_json::from_slice(&list.stdout).context("no list of techniques")?;
    let target = watched.node.lab.host_process()?;
    let shadow = watched.lines.join("etc/shadow");
    fs::create_dir_all(watched.lines.join("etc"))?;
    fs::write(&shadow, "")?;
    fs::set_permissions(&shadow, fs::Permissions::from_mode(0o600))?;
    let leaked = |name| match name {
        "leaked-directory" => Some(watched.lines.as_path()),
        "leaked-namespace" => Some(Path::new("/proc/self/ns/mnt")),
        _ => None,
    };
    let (mut seen, mut without_signs) = (Vec::new(), Vec::new());
    let techniques = list["techniques"].as_array().context("the list has no techniques")?;
    for (range, technique) in (first..).zip(techniques) {
        if technique["detection"]["rule"].is_null() {
            continue;
        }
        let (name, range) = (word(technique, "/name"), IdRange::nth(range));
        // what is seen only sometimes is so in pods that may mount
        let everything = technique["detection"]["reservation"].is_string();
        let capabilities = if everything { Capabilities::All } else { Capabilities::RuntimeDefault };
        let spec = ContainerSpec {
            runtime,
            mapping: Some(range.mapping()),
            capabilities: capabilities.clone(),
            host_pid_namespace: true,
            ..ContainerSpec::default()
        };
        let (uid, container) = watched.container(spec, Some(range))?;
        let (_, report) = rehearse(name, &uid, &container, capabilities, Some(target.pid()), leaked(name))?;
        tell(&report, runtime);
        let [(_, kind, agent)] = rows(&report)?[..] else { bail!("not one technique: {report:#}") };
        if kind == shows_when(word(technique, "/detection/rule")) {
            ensure!(agent == "seen", "{agent}: {report:#}");
            seen.push(name);
        } else {
            without_signs.push(name);
        }
    }
    Sample::tell_delays(&watched.agent);
    println!("{runtime}, seen alone: {seen:?}; without a sign on this kernel: {without_signs:?}");
    ensure!(seen.len() >= 10, "only {seen:?}");
    Ok(())
}

#[test]
fn each_escape_is_seen_by_itself_with_runc() -> Result<()> {
    each_alone(RuntimeName::Runc, 46_020, "each_escape_is_seen_by_itself_with_runc")
}

#[test]
fn each_escape_is_seen_by_itself_with_crun() -> Result<()> {
    each_alone(RuntimeName::Crun, 46_080, "each_escape_is_seen_by_itself_with_crun")
}

#[test]
fn without_a_user_namespace_only_what_is_harmless_is_tried() -> Result<()> {
    let Some(watched) = Watched::new("without_a_user_namespace_only_what_is_harmless")? else {
        return Ok(());
    };
    let before = machine();
    for runtime in [RuntimeName::Runc, RuntimeName::Crun] {
        let spec = ContainerSpec { runtime, capabilities: Capabilities::All, ..ContainerSpec::default() };
        let (uid, container) = watched.container(spec, None)?;
        let (code, report) = simulate(&uid, &container, Capabilities::All, None)?;
        ensure!(code == Some(0) && word(&report, "/place/standing") == "host_users", "{code:?} {report:#}");
        let rows = rows(&report)?;
        println!("{runtime}, no user namespace: {rows:?}");
        let kind = |name: &str| rows.iter().find(|row| row.0 == name).map_or("?", |row| row.1);
        ensure!(kind("ptrace-seize") == "skipped", "{rows:?}");
        // maps the host's root, as engines and browsers do who are root in the pod
        rounds::exec(
            &container,
            &ProcessSpec { capabilities: Capabilities::All, ..ProcessSpec::new(&["unshare", "-r", "true"]) },
        )?;
        // nothing stops these here, which is what a user namespace is for
        for name in ["device-node", "kernel-log", "unmapped-user", "map-foreign-id", "mount-tmpfs"] {
            ensure!(kind(name) == "allowed", "{name}: {rows:?}");
        }
    }
    // a container with the host's processes in sight is the host as far as can be told
    let spec = ContainerSpec { host_pid_namespace: true, ..ContainerSpec::default() };
    let (_, container) = watched.container(spec, None)?;
    let output = container.exec(&[PROGRAM, "simulate", "run", "--all"])?;
    ensure!(output.status.code() == Some(77) && output.stdout.is_empty(), "{output:?}");
    ensure!(watched.agent.findings().is_empty(), "{}", told(&watched.agent));
    ensure!(machine() == before, "before {before:#?}, after {:#?}", machine());
    Ok(())
}
