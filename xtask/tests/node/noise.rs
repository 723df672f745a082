//! Ordinary software in user-namespaced containers: whatever it does, nothing is found that anyone has to look at.
//!
//! What is always run takes a minute; `USERNS_NOISE=all` adds what takes longer to fetch or to run. docs/noise.md says
//! what there is and which low findings are right.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use xtask::{
    debian::{DebianMirror, own_suite, package_tree},
    lab::{Capabilities, Container, ContainerSpec, IdRange, PodSpec, ProcessSpec, RuntimeName},
    quality::Sample,
};

use crate::{Node, losses, metric, work_dir};

/// How much is run: `all`, or what always is.
const AMOUNT: &str = "USERNS_NOISE";
const SETUP: &str = include_str!("noise/setup.sh");
const DOCS: &str = include_str!("../../../docs/noise.md");
/// What a container of `software` needs besides its own packages.
const BASE: &[&str] = &[
    "base-files",
    "bash",
    "coreutils",
    "dash",
    "diffutils",
    "findutils",
    "gawk",
    "grep",
    "gzip",
    "iproute2",
    "libc-bin",
    "login",
    "mawk",
    "mount",
    "passwd",
    "procps",
    "sed",
    "tar",
    "util-linux",
];

/// A kind of software.
struct Software {
    name: &'static str,
    /// Run by a shell as root of the container.
    script: &'static str,
    /// Debian packages beyond the base.
    packages: &'static [&'static str],
    /// Whether it is run each time.
    always: bool,
    /// Rules that tell of it, below medium, as docs/noise.md explains.
    tells: &'static [&'static str],
}

macro_rules! software {
    ($($name:literal: $always:literal, $packages:expr, $tells:expr;)+) => {
        &[$(Software {
            name: $name,
            script: include_str!(concat!("noise/", $name, ".sh")),
            packages: &$packages,
            always: $always,
            tells: &$tells,
        }),+]
    };
}

const SOFTWARE: &[Software] = software! {
    "packages": true, ["dpkg", "apt"], [];
    "pip": true, ["python3", "python3-pip", "python3-setuptools", "python3-wheel"], [];
    "python": true, ["python3"], [];
    "compile": true, ["gcc", "libc6-dev", "make", "git", "perl"], [];
    "redis": true, ["redis-server", "redis-tools"], [];
    "nginx": true, ["nginx-light", "python3"], [];
    "sshd": true, ["openssh-server", "openssh-client", "sudo"], [];
    "cron": true, ["cron"], [];
    "sandbox": true, ["bubblewrap"], ["I10"];
    "observers": true, ["lsof", "strace", "libcap2-bin"], ["I11"];
    "files": true, ["attr", "acl", "libcap2-bin", "e2fsprogs"], [];
    "storm": true, [], [];
    "postgresql": true, ["postgresql-15"], [];
    "node": false, ["nodejs"], [];
    "java": false, ["openjdk-17-jdk-headless"], [];
    "cargo": false, ["cargo", "gcc", "libc6-dev"], [];
    "mariadb": false, ["mariadb-server", "mariadb-client"], [];
};

#[test]
fn every_kind_of_software_is_documented() {
    for Software { name, tells, .. } in SOFTWARE {
        let row = DOCS.lines().find(|line| line.starts_with(&format!("| {name} |")));
        let row = row.unwrap_or_else(|| panic!("docs/noise.md has no row for {name}"));
        for rule in *tells {
            assert!(row.contains(rule), "docs/noise.md does not say that {name} has {rule}");
        }
    }
}

#[test]
fn ordinary_software_raises_nothing() -> Result<()> {
    let Some(node) = Node::new("ordinary_software")? else { return Ok(()) };
    let all = std::env::var(AMOUNT).is_ok_and(|amount| amount == "all");
    let software: Vec<&Software> = SOFTWARE.iter().filter(|software| all || software.always).collect();
    let image = image(&software, if all { "noise-all" } else { "noise" })?;
    let agent = node.agent(&[])?;
    let started = Instant::now();
    let mut containers = BTreeMap::new();
    let mut ranges = (45_000..).map(IdRange::nth);
    for software in &software {
        // each runtime with the capabilities that a container has by default, and with all
        let ways = RuntimeName::ALL
            .into_iter()
            .zip([Capabilities::RuntimeDefault, Capabilities::All])
            .zip(&mut ranges);
        for ((runtime, capabilities), range) in ways {
            let begun = Instant::now();
            let container = run(&node, software, runtime, &capabilities, &image, range, all)
                .with_context(|| format!("{} with {runtime}", software.name))?;
            println!("{} with {runtime}: {:.1?}", software.name, begun.elapsed());
            let about = (software, runtime, begun.elapsed(), BTreeMap::<String, u64>::new());
            containers.insert(container.id().to_owned(), (about, container));
        }
    }
    agent.settle(Duration::from_secs(6))?;
    let mut wrong = Vec::new();
    for line in agent.findings() {
        let text = |pointer| line.text(pointer).unwrap_or("?");
        let about = containers.get_mut(text("/container/id")).map(|(about, _)| about);
        let (rule, severity) = (text("/finding/rule/id"), text("/finding/rule/severity"));
        let name = about.as_ref().map_or("?", |(software, ..)| software.name);
        let what = format!("{name}: {rule} ({severity}) {}", text("/finding/why"));
        println!("{what}");
        let explained = about.is_some_and(|(software, _, _, findings)| {
            *findings.entry(severity.to_owned()).or_default() += 1;
            software.tells.contains(&rule) && ["info", "low"].contains(&severity)
        });
        if !explained {
            wrong.push(format!("{what} {} {}", line.json["operation"], line.json["capabilities"]));
        }
    }
    for ((software, runtime, took, findings), _) in containers.into_values() {
        let (name, runtime, seconds) = (software.name.to_owned(), runtime.to_string(), took.as_secs_f64());
        Sample::Noise { name, runtime, seconds, findings }.tell();
    }
    let metrics = agent.http_get("/metrics")?.body;
    let programs = metric(&metrics, "userns_events_total", &[("kind", "exec")]);
    println!("{} kinds of software in {:.0?}, {programs} programs told", software.len(), started.elapsed());
    ensure!(wrong.is_empty(), "told of ordinary software:\n{}", wrong.join("\n"));
    ensure!(losses(&metrics).is_empty(), "{:?}", losses(&metrics));
    Ok(())
}

/// A root file system with the packages that the software needs.
fn image(software: &[&Software], name: &str) -> Result<PathBuf> {
    let cache = work_dir().join("cache");
    let suite = own_suite()?;
    let wanted: Vec<&str> =
        BASE.iter().chain(software.iter().flat_map(|software| software.packages)).copied().collect();
    let closure = DebianMirror::new(&cache)?.closure(&suite, &wanted)?;
    let names: Vec<&str> = closure.iter().map(String::as_str).collect();
    let dest = cache.join(name);
    package_tree(&cache, &suite, &names, &dest)?;
    Ok(dest)
}

fn run(
    node: &Node,
    software: &Software,
    runtime: RuntimeName,
    capabilities: &Capabilities,
    image: &Path,
    range: IdRange,
    long: bool,
) -> Result<Container> {
    let spec = PodSpec { name: software.name.into(), record: Some(range), ..PodSpec::default() };
    let container = node.lab.pod(spec)?.run(ContainerSpec {
        runtime,
        mapping: Some(range.mapping()),
        image: Some(image.to_owned()),
        ..ContainerSpec::default()
    })?;
    execute(&container, SETUP, Capabilities::All)?;
    let script = if long { format!("LONG=1\n{}", software.script) } else { software.script.to_owned() };
    execute(&container, &script, capabilities.clone())?;
    Ok(container)
}

fn execute(container: &Container, script: &str, capabilities: Capabilities) -> Result<()> {
    let mut process = ProcessSpec::new(&["/bin/sh", "-c", script]);
    process.capabilities = capabilities;
    let output = container.exec_process(&process)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    let tail: String = said.chars().rev().take(2000).collect::<Vec<_>>().into_iter().rev().collect();
    ensure!(output.status.success(), "{}\n{tail}\n{errors}", output.status);
    Ok(())
}
