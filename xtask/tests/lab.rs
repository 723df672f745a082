//! The lab on this kernel: real containers come up as kubelet would have them, and nothing of them stays.
//!
//! Needs root and fetches Debian packages; it runs when `USERNS_NODE_TESTS` is set. `USERNS_RUNTIME_SUITE`
//! names another Debian suite than the machine's to take the runtimes from.

#![expect(clippy::print_stdout, reason = "skips and timings are for who runs the tests")]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::{
    Agent, Capabilities, CgroupDriver, ContainerSpec, IdRange, Lab, Pod, PodSpec, ProcessSpec, QosClass,
    RuntimeName, Runtimes,
};

const RANGE: IdRange = IdRange::nth(40_000);
const ROUNDS: u32 = 20;
/// In the environment of the process that is to be killed: where its lab is.
const VICTIM: &str = "USERNS_LAB_VICTIM";
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// What a lab could leave behind, seen from the host.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    cgroups: BTreeSet<PathBuf>,
    mounts: Vec<String>,
    has_labs: bool,
    has_dir: bool,
}

/// What each test here works with. One at a time: they look for each other's traces.
struct Scene {
    runtimes: Runtimes,
    dir: PathBuf,
    cgroup_root: PathBuf,
    before: Traces,
    _turn: MutexGuard<'static, ()>,
}

impl Scene {
    fn new(test: &str) -> Result<Option<Self>> {
        static TURN: Mutex<()> = Mutex::new(());
        if std::env::var_os("USERNS_NODE_TESTS").is_none() {
            println!("SKIPPED: {test}: USERNS_NODE_TESTS is not set");
            return Ok(None);
        }
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let runtimes = runtimes()?;
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("lab-{test}"));
        // The first lab also removes what a killed run of these tests left.
        let cgroup_root = Lab::new(runtimes.clone(), &dir)?.cgroup_root().to_owned();
        let before = Traces::now(&dir, &cgroup_root)?;
        ensure!(!before.has_dir, "the directory stays: {before:?}");
        Ok(Some(Self { runtimes, dir, cgroup_root, before, _turn: turn }))
    }

    fn lab(&self) -> Result<Lab> {
        Lab::new(self.runtimes.clone(), &self.dir)
    }

    fn check_no_traces(&self) -> Result<()> {
        let after = Traces::now(&self.dir, &self.cgroup_root)?;
        ensure!(self.before == after, "left behind: {:?} {after:?}", self.before);
        Ok(())
    }
}

fn runtimes() -> Result<Runtimes> {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache");
    match std::env::var("USERNS_RUNTIME_SUITE") {
        Ok(suite) => Runtimes::provision(&cache, &suite),
        Err(_) => Lab::provision(&cache),
    }
}

impl Traces {
    fn now(lab_dir: &Path, cgroup_root: &Path) -> Result<Self> {
        let mut cgroups = BTreeSet::new();
        let mut pending = ["kubepods", "kubepods.slice"].map(|name| cgroup_root.join(name)).to_vec();
        while let Some(directory) = pending.pop() {
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            pending.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()));
            cgroups.insert(directory);
        }
        let places =
            [lab_dir.display().to_string(), "/run/userns-lab".to_owned(), " /sys/fs/cgroup ".to_owned()];
        let mounts = fs::read_to_string("/proc/self/mountinfo")?
            .lines()
            .filter(|line| places.iter().any(|place| line.contains(place)))
            .map(str::to_owned)
            .collect();
        let has_labs = Path::new("/run/userns-lab").exists();
        Ok(Self { cgroups, mounts, has_labs, has_dir: lab_dir.exists() })
    }
}

#[test]
fn containers_come_and_go() -> Result<()> {
    let Some(scene) = Scene::new("containers")? else { return Ok(()) };
    let start = Instant::now();
    let lab = scene.lab()?;
    println!("lab: {:.1?}", start.elapsed());
    for name in RuntimeName::ALL {
        let driver = if name == RuntimeName::Runc { CgroupDriver::Cgroupfs } else { CgroupDriver::Systemd };
        for record in [None, Some(RANGE)] {
            let spec = PodSpec { name: format!("{name}-pod"), driver, record, ..PodSpec::default() };
            check_container(&lab, &lab.pod(spec)?, name, record)
                .with_context(|| format!("{name} {record:?}"))?;
        }
        check_namespaces(&lab, name).with_context(|| format!("namespaces by {name}"))?;
        println!("{name} {}: {}", lab.runtimes().get(name).version, measure_rounds(&lab, name)?);
    }
    check_host_process(&lab)?;
    check_pods_file(&lab)?;
    check_agent_driver(&lab)?;
    drop(lab);
    scene.check_no_traces()
}

#[test]
fn a_panic_leaves_nothing() -> Result<()> {
    let Some(scene) = Scene::new("panic")? else { return Ok(()) };
    let ended = thread::scope(|scope| {
        let panics = || {
            let lab = scene.lab().unwrap();
            let _running = lab.pod(PodSpec::default()).unwrap().run(ContainerSpec::default()).unwrap();
            panic!("as intended");
        };
        scope.spawn(panics).join().is_err()
    });
    ensure!(ended);
    scene.check_no_traces()
}

#[test]
fn two_labs_do_not_mind_each_other() -> Result<()> {
    let Some(scene) = Scene::new("two")? else { return Ok(()) };
    let come_and_go = |name: &str| {
        for _ in 0..10 {
            let lab = Lab::new(scene.runtimes.clone(), &scene.dir.join(name))?;
            lab.pod(PodSpec::default())?.run(ContainerSpec::default())?;
        }
        Ok::<_, anyhow::Error>(())
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| come_and_go("a"));
        come_and_go("b")?;
        other.join().unwrap_or_else(|_| anyhow::bail!("panicked"))
    })?;
    fs::remove_dir(&scene.dir)?;
    scene.check_no_traces()
}

#[test]
fn the_next_lab_removes_what_a_killed_one_left() -> Result<()> {
    if let Some(dir) = std::env::var_os(VICTIM) {
        return wait_to_be_killed(Path::new(&dir));
    }
    let Some(scene) = Scene::new("victim")? else { return Ok(()) };
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", "--nocapture", "the_next_lab_removes_what_a_killed_one_left"])
        .env(VICTIM, &scene.dir)
        .stdout(Stdio::piped())
        .spawn()?;
    let output = victim.stdout.take().context("no output")?;
    let mut lines = BufReader::new(output).lines().map_while(Result::ok);
    let pid = lines.find_map(|line| line.rsplit_once("container is process ")?.1.parse::<u32>().ok());
    victim.kill()?;
    victim.wait()?;
    let pid = pid.context("the victim starts no container")?;
    ensure!(Path::new(&format!("/proc/{pid}")).exists(), "the container ended by itself");
    ensure!(Traces::now(&scene.dir, &scene.cgroup_root)? != scene.before);
    drop(scene.lab()?);
    scene.check_no_traces()
}

fn wait_to_be_killed(dir: &Path) -> Result<()> {
    let lab = Lab::new(runtimes()?, dir)?;
    let container = lab.pod(PodSpec::default())?.run(ContainerSpec::default())?;
    println!("container is process {}", container.pid()?);
    thread::sleep(Duration::from_secs(60));
    Ok(())
}

fn check_container(lab: &Lab, pod: &Pod, runtime: RuntimeName, record: Option<IdRange>) -> Result<()> {
    let mapping = record.map(IdRange::mapping);
    let container = pod.container(ContainerSpec { runtime, mapping, ..ContainerSpec::default() })?;
    container.create()?;
    container.start()?;
    let proc = PathBuf::from(format!("/proc/{}", container.pid()?));

    let map: Vec<u32> = fs::read_to_string(proc.join("uid_map"))?
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let expected = record.map_or([0, 0, u32::MAX], |range| [0, range.first, range.length]);
    ensure!(map == expected, "uid_map {map:?}");
    let cgroups = fs::read_to_string(proc.join("cgroup"))?;
    let path = Path::new("/").join(container.cgroup_dir().strip_prefix(lab.cgroup_root())?);
    ensure!(cgroups.lines().any(|line| line == format!("0::{}", path.display())), "{cgroups}");
    ensure!(container.cgroup_dir().starts_with(pod.cgroup_dir()));
    ensure!(container.cgroup_id()? > 1);

    let file = lab.kubelet_root().join("pods").join(pod.uid()).join("userns");
    ensure!(file.exists() == record.is_some(), "{} exists: {}", file.display(), file.exists());

    // Owned by root of the container, both below and above the overlay.
    let script = "touch /new && stat -c %u /bin/busybox /new && cat /proc/self/cgroup";
    let output = container.exec(&["sh", "-c", script])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.starts_with("0\n0\n") && text.contains("0::/\n"), "{text} {output:?}");
    ensure!(container.exec(&["sh", "-c", "exit 7"])?.status.code() == Some(7));
    let intruder = ProcessSpec { capabilities: Capabilities::All, ..ProcessSpec::new(&["sleep", "60"]) };
    ensure!(effective_capabilities(container.exec_detached(&intruder)?)? & CAP_SYS_ADMIN != 0);
    ensure!(effective_capabilities(container.pid()?)? & CAP_SYS_ADMIN == 0);

    container.kill()?;
    container.delete()?;
    ensure!(!container.cgroup_dir().exists(), "the cgroup stays");
    container.create()?;
    ensure!(container.cgroup_dir().exists(), "no cgroup for the second time");
    Ok(())
}

fn effective_capabilities(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let digits = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?;
    Ok(u64::from_str_radix(digits.trim(), 16)?)
}

/// Means over [`ROUNDS`] containers, a new one each time.
fn measure_rounds(lab: &Lab, runtime: RuntimeName) -> Result<String> {
    let pod = lab.pod(PodSpec { record: Some(RANGE), qos: QosClass::Guaranteed, ..PodSpec::default() })?;
    let mut times = [Duration::ZERO; 7];
    for _ in 0..ROUNDS {
        let mut last = Instant::now();
        let mut lap = |step: usize| times[step] += std::mem::replace(&mut last, Instant::now()).elapsed();
        let mapping = Some(RANGE.mapping());
        let container = pod.container(ContainerSpec { runtime, mapping, ..ContainerSpec::default() })?;
        lap(0);
        container.create()?;
        lap(1);
        container.start()?;
        lap(2);
        ensure!(container.exec(&["true"])?.status.success());
        lap(3);
        container.kill()?;
        lap(4);
        container.delete()?;
        lap(5);
        drop(container);
        lap(6);
    }
    let names = ["bundle", "create", "start", "exec", "kill", "delete", "drop"];
    let means = names.iter().zip(times).map(|(name, time)| format!("{name} {:.1?}", time / ROUNDS));
    let round = times.iter().sum::<Duration>() / ROUNDS;
    Ok(format!("{}; round {round:.1?}", means.collect::<Vec<_>>().join(", ")))
}

/// Sharing with a sandbox, whose pod the last container keeps, and with the host.
fn check_namespaces(lab: &Lab, runtime: RuntimeName) -> Result<()> {
    let link = |pid: u32, file: &str| fs::read_link(format!("/proc/{pid}/ns/{file}"));
    let pod = lab.pod(PodSpec { record: Some(RANGE), ..PodSpec::default() })?;
    let spec = ContainerSpec { runtime, mapping: Some(RANGE.mapping()), ..ContainerSpec::default() };
    let sandbox = pod.run(ContainerSpec { name: "sandbox".to_owned(), ..spec.clone() })?;
    let container = pod.run(ContainerSpec { sandbox: Some(sandbox.pid()?), ..spec.clone() })?;
    for (file, is_shared) in [("user", true), ("net", true), ("mnt", false), ("pid", false)] {
        let is_same = link(container.pid()?, file)? == link(sandbox.pid()?, file)?;
        ensure!(is_same == is_shared, "{file} is shared: {is_same}");
    }
    drop(pod);
    ensure!(container.exec(&["true"])?.status.success());

    let pod = lab.pod(PodSpec::default())?;
    for mapping in [None, Some(RANGE.mapping())] {
        let container = pod.run(ContainerSpec { host_pid_namespace: true, mapping, ..spec.clone() })?;
        ensure!(link(container.pid()?, "pid")? == link(std::process::id(), "pid")?);
    }

    // A range that wrapped around: the container's root is the host's.
    let mapping = Some(IdRange { first: 0, length: 65536 }.mapping());
    let container = pod.run(ContainerSpec { mapping, ..spec })?;
    let map = fs::read_to_string(format!("/proc/{}/uid_map", container.pid()?))?;
    ensure!(map.split_whitespace().eq(["0", "0", "65536"]), "{map}");
    Ok(())
}

fn check_host_process(lab: &Lab) -> Result<()> {
    let container = lab.pod(PodSpec::default())?.run(ContainerSpec::default())?;
    let intruder = lab.host_process()?;
    lab.move_into_cgroup(intruder.pid(), &container)?;
    let members = fs::read_to_string(container.cgroup_dir().join("cgroup.procs"))?;
    ensure!(members.lines().any(|pid| pid == intruder.pid().to_string()), "{members}");
    Ok(())
}

fn check_pods_file(lab: &Lab) -> Result<()> {
    let pod = lab.pod(PodSpec { name: "web".to_owned(), host_users: Some(false), ..PodSpec::default() })?;
    let file = lab.dir().join("pods.json");
    lab.write_pods_file(&file)?;
    let list: serde_json::Value = serde_json::from_slice(&fs::read(&file)?)?;
    ensure!(list["items"].as_array().is_some_and(|items| items.len() == 1), "{list}");
    ensure!(list["items"][0]["metadata"]["uid"] == pod.uid(), "{list}");
    ensure!(list["items"][0]["spec"]["hostUsers"] == false, "{list}");
    Ok(())
}

fn check_agent_driver(lab: &Lab) -> Result<()> {
    let fake = lab.dir().join("agent");
    let script = "#!/bin/sh\necho '{\"event\":\"agent\",\"state\":\"ready\"}'\n\
                  echo \"{\\\"event\\\":\\\"finding\\\",\\\"args\\\":\\\"$*\\\"}\"\nexec sleep 60\n";
    fs::write(&fake, script)?;
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755))?;
    let agent = Agent::start(&fake, lab, &["--extra"])?;
    let finding = agent.wait_for(|line| line.is_event("finding"), Duration::from_secs(10))?;
    let args = finding.text("/args").context("no arguments")?;
    let kubelet_root = format!("--kubelet-root {}", lab.kubelet_root().display());
    ensure!(args.contains(&kubelet_root) && args.ends_with(" --extra"), "{args}");
    ensure!(!agent.stop()?.status.success());
    Ok(())
}
