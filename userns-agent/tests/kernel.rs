//! The programs' own checks on the running kernel, for states that no honest system call leads to.
//!
//! Credentials that left their pod's user namespace cannot be had without breaking into the kernel. The other half of
//! the comparison can be changed instead: a host process is given the lineage of a pod, and from then on its quite
//! ordinary credentials are those of one that got away.
//!
//! Needs root and an agent library built with its eBPF object: `cargo xtask test` sees to both.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "skips are for who runs the tests")]

#[path = "kernel/foreign.rs"]
mod foreign;
#[path = "kernel/made.rs"]
mod made;
#[path = "kernel/nested.rs"]
mod nested;
#[path = "kernel/places.rs"]
mod places;
#[path = "kernel/proc_sweep.rs"]
mod proc_sweep;

use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use userns_agent::core::rules::RuleId;
use userns_agent::core::{Engine, Limits, Output};
use userns_agent::decode::decode;
use userns_agent::event::{Body, Event, Hook, INITIAL_USERNS, Input, Lineage, lineage, reason, state};
use userns_agent::kernel::features::Host;
use userns_agent::kernel::load::{Loaded, Rings, load};
use userns_agent::kernel::plan::Features;
use userns_agent::kernel::sizes::{Machine, Sizes};
use userns_agent::kernel::status::State;
use userns_agent::kernel::{features, object, plan};
use userns_common::record::Tracked;

/// One at a time: each loads programs that see the others' processes.
static TURN: Mutex<()> = Mutex::new(());
/// How long a runtime may need to enter.
const GRACE: Duration = Duration::from_secs(2);
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;

struct Kernel {
    loaded: Loaded,
    rings: Rings,
}

fn start(test: &str) -> Option<Kernel> {
    start_with(test, |_| {})
}

/// Whether tests are to run on this kernel; says so if not.
fn wanted(test: &str) -> bool {
    let wanted = std::env::var("USERNS_NODE_TESTS").unwrap_or_default();
    if wanted == "later" {
        return false;
    }
    if wanted.is_empty() || !object::embedded() {
        println!(
            "SKIPPED: {test}: USERNS_NODE_TESTS is not set or there is no eBPF object; `cargo xtask test` runs it"
        );
        return false;
    }
    true
}

/// Starts as on a kernel that lacks what `without` takes away.
fn start_with(test: &str, without: impl FnOnce(&mut Features)) -> Option<Kernel> {
    start_under(test, Host { userns: INITIAL_USERNS, ..Host::default() }, without)
}

/// Starts where `host` is what counts as the host's.
fn start_under(test: &str, host: Host, without: impl FnOnce(&mut Features)) -> Option<Kernel> {
    if !wanted(test) {
        return None;
    }
    let mut kernel = features::probe().unwrap();
    without(&mut kernel.features);
    let settings = features::settings(&kernel, host, GRACE, 100);
    let sizes = Sizes::new(Machine { memory: 1 << 30, cpus: 1 }, 1024);
    let plan = plan::plan(&kernel.features, None);
    let (loaded, rings) = load(object::bytes(), &settings, &sizes, &plan).unwrap();
    Some(Kernel { loaded, rings })
}

impl Kernel {
    /// Gives a process the lineage of a pod's workload.
    fn claim(&self, child: &Child) {
        self.claim_pid(Pid::from_child(child));
    }

    fn claim_pid(&self, pid: Pid) {
        let lineage = Lineage {
            state: state::INSIDE,
            flags: lineage::WORKLOAD,
            userns_inum: 7,
            userns: 0xffff_0000_dead_0000,
            container: 4711,
            // its namespaces are the host's, and are not what is looked at here
            foreign: u32::MAX,
            ..Lineage::default()
        };
        let made_up = Tracked { lineage, ..Tracked::default() };
        let ours = |info: &aya::maps::MapInfo| info.name_as_str() == Some("LINEAGES");
        // the newest: another agent's on this machine is older
        let map = aya::maps::loaded_maps().flatten().filter(ours).last().unwrap();
        let map = map.fd().unwrap();
        let pidfd: OwnedFd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let key: i32 = pidfd.as_raw_fd();
        // union bpf_attr of BPF_MAP_UPDATE_ELEM: map_fd, key, value, flags (include/uapi/linux/bpf.h)
        let attribute: [u64; 4] =
            [map.as_fd().as_raw_fd() as u64, (&raw const key) as u64, (&raw const made_up) as u64, 0];
        // SAFETY: key and value are as large as the map's and live until the call returns.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_ELEM, attribute.as_ptr(), size_of_val(&attribute))
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    /// Waits for records until `wanted` accepts one.
    fn wait(&mut self, wanted: impl Fn(&Event) -> bool) -> Vec<Event> {
        let started = Instant::now();
        let mut seen = Vec::new();
        while started.elapsed() < Duration::from_secs(5) {
            while let Some(item) = self.rings.evidence.next() {
                seen.push(decode(&item).unwrap());
            }
            if seen.iter().any(&wanted) {
                return seen;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("no such record: {seen:#?}");
    }
}

/// A shell that waits for a line, then does `then`.
fn shell(then: &str) -> Child {
    let script = format!("read line; {then}");
    let child = Command::new("/bin/sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
    // past its own exec, asleep in read
    std::thread::sleep(Duration::from_millis(100));
    child
}

fn go(child: &mut Child) {
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
}

fn escapes(events: &[Event]) -> Vec<&Event> {
    events.iter().filter(|event| event.reasons & reason::LEFT_USERNS != 0).collect()
}

/// Runs one variant: claims the shell, lets it act, and expects one escape seen at one of `hooks`.
fn variant(test: &str, then: &str, hooks: &[Hook]) {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(mut kernel) = start(test) else { return };
    let mut child = shell(then);
    kernel.claim(&child);
    go(&mut child);
    let pid = child.id();
    child.wait().unwrap();
    let mut events = kernel.wait(|event| event.reasons & reason::LEFT_USERNS != 0);
    std::thread::sleep(Duration::from_millis(50));
    while let Some(item) = kernel.rings.evidence.next() {
        events.push(decode(&item).unwrap());
    }
    let found = escapes(&events);
    assert_eq!(found.len(), 1, "told once a lineage: {found:#?}");
    let event = found[0].clone();
    assert!(hooks.contains(&event.hook), "{:?}", event.hook);
    let Body::Suspect(task) = &event.body else { panic!("{event:?}") };
    assert_eq!((task.task.process.pid, task.task.lineage.container), (pid, 4711));
    assert_eq!((task.task.userns.level, task.task.pod_userns), (0, None));
    assert_eq!(task.ancestors.first().map(|parent| parent.process.pid), Some(std::process::id()));

    let limits =
        Limits { grace: Duration::from_secs(2), enrich_wait: Duration::ZERO, containers: 16, processes: 16 };
    let mut out = Vec::new();
    Engine::new(limits).handle(Input::Event(event), &mut out);
    assert!(matches!(out.as_slice(), [Output::Finding(finding)] if finding.rule == RuleId::I1), "{out:?}");
}

// a shell asks for CAP_SYS_ADMIN whenever it allocates, so the capability hook is often first

#[test]
fn replaced_credentials_are_seen_when_the_process_executes() {
    variant("replaced_credentials_exec", "exec /bin/true", &[Hook::Exec, Hook::Capable]);
}

#[test]
fn replaced_credentials_are_seen_when_the_process_forks() {
    variant("replaced_credentials_fork", "(:); :", &[Hook::NewTask, Hook::Capable]);
}

#[test]
fn replaced_credentials_are_seen_when_the_process_ends() {
    variant("replaced_credentials_exit", "exit 0", &[Hook::Exit, Hook::Capable]);
}

#[test]
fn the_sweep_sees_replaced_credentials_of_a_process_that_does_nothing() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(mut kernel) = start("the_sweep_sees_replaced_credentials") else { return };
    let mut child = shell("exit 0");
    kernel.claim(&child);
    kernel.loaded.sweep().unwrap().run().unwrap();
    let events = kernel.wait(|event| event.reasons & reason::LEFT_USERNS != 0);
    assert_eq!(escapes(&events)[0].hook, Hook::TaskIter);
    kernel.loaded.sweep().unwrap().run().unwrap();
    go(&mut child);
    child.wait().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(kernel.rings.evidence.next().is_none(), "told twice");
}

#[test]
fn every_program_is_accepted_and_attached() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(kernel) = start("every_program_is_accepted") else { return };
    for probe in &kernel.loaded.probes {
        // a kernel may not offer what a hook needs; a program that it finds fault with is a bug
        assert!(!matches!(probe.state, State::Failed { .. }), "{:?}: {:?}", probe.hook, probe.state);
    }
}
