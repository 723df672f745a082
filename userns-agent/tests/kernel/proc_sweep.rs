//! The sweep of kernels without a task iterator, with processes in the cgroup of a pod's container.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use userns_agent::app::proc_sweep::{Found, ProcSweep};
use userns_agent::event::{Cgroup, CgroupId, ProcessId, origin, role};
use userns_agent::host::cgroupfs::CgroupFs;
use userns_agent::host::proc::ProcFs;
use userns_common::record::WatchedCgroup;

use super::*;

const CONTAINER: &str = "3f1c0f5e8a7d4b2c9e6f1a0b5d8c7e4f3a2b1c0d9e8f7a6b5c4d3e2f1a0b9c8d";

/// A container's cgroup, which is there before the programs are.
pub(crate) struct Container {
    top: PathBuf,
    pub(crate) cgroup: Cgroup,
    cgroups: CgroupFs,
}

impl Container {
    pub(crate) fn new() -> Self {
        Self::of_pod(0)
    }

    /// That of the pod with this number.
    pub(crate) fn of_pod(pod: u32) -> Self {
        let cgroups = CgroupFs::find(None).unwrap();
        let name = format!("/userns-agent-test-{}-{pod}", std::process::id());
        let path = format!("{name}/pod0f4b5b7e-6f1d-4f3e-9d5c-{pod:012}/{CONTAINER}");
        let directory = cgroups.root().join(path.trim_start_matches('/'));
        std::fs::create_dir_all(&directory).unwrap();
        let id = CgroupId(directory.metadata().unwrap().ino());
        let top = cgroups.root().join(name.trim_start_matches('/'));
        Self { top, cgroup: Cgroup { id, role: role::CONTAINER, path: path.as_str().into() }, cgroups }
    }

    fn directory(&self) -> PathBuf {
        self.cgroups.root().join(self.cgroup.path.as_str().trim_start_matches('/'))
    }

    fn take(&self, child: &Child) {
        self.take_pid(child.id());
    }

    pub(crate) fn take_pid(&self, pid: u32) {
        std::fs::write(self.directory().join("cgroup.procs"), pid.to_string()).unwrap();
    }

    pub(crate) fn watch(&self, kernel: &mut Kernel) {
        let watched = WatchedCgroup { role: role::CONTAINER, told: 0, container: self.cgroup.id.0 };
        kernel.loaded.watch(self.cgroup.id, watched).unwrap();
    }

    fn sweep(&self, kernel: &Kernel, grace: Duration) -> ProcSweep {
        let proc = ProcFs::new("/proc");
        let host_mnt = proc.mount_namespace(std::process::id()).unwrap();
        ProcSweep::new(proc, self.cgroups.clone(), kernel.loaded.lineages().unwrap(), host_mnt, grace)
    }

    fn run(&self, sweep: &mut ProcSweep) -> Found {
        let found = sweep.run(std::slice::from_ref(&self.cgroup)).unwrap();
        assert_eq!(found.first_error, None);
        found
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let pod = self.directory().parent().map(std::path::Path::to_owned);
        for directory in [Some(self.directory()), pod, Some(self.top.clone())].into_iter().flatten() {
            // a process that ends is in its cgroup for a moment longer
            for _ in 0..100 {
                if std::fs::remove_dir(&directory).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// As [`shell`], in namespaces of its own that `command` makes.
pub(crate) fn apart(command: &[&str], then: &str) -> Child {
    let script = format!("read line; {then}");
    let mut words = command.iter().copied().chain(["/bin/sh", "-c", &script]);
    let child = Command::new(words.next().unwrap()).args(words).stdin(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    child
}

/// As [`apart`], with the host's ids in a user namespace that does not map them: as a runtime's child is for a moment.
fn unmapped() -> Child {
    let child = apart(&["unshare", "-Um"], "exit 0");
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{}/{map}", child.id()), "0 3000000000 65536\n").unwrap();
    }
    child
}

/// The programs without the iterator. For tests that are [`wanted`].
fn without_iterator() -> Kernel {
    let kernel = start_with("", |features| features.iterators.clear()).unwrap();
    let iterator = kernel.loaded.probes.iter().find(|probe| probe.hook == Hook::TaskIter).unwrap();
    assert!(matches!(iterator.state, State::Degraded { .. }) && iterator.without.contains("/proc"));
    kernel
}

fn pid_of(event: &Event) -> u32 {
    event.body.task().unwrap().task.process.pid
}

#[test]
fn processes_from_before_the_agent_are_adopted_from_procfs() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !wanted("processes_from_before_the_agent") {
        return;
    }
    let container = Container::new();
    let mut child = apart(&["unshare", "-Urm"], "exec /bin/true");
    let mut nested = apart(&["unshare", "-Urm", "unshare", "-Ur"], "exec /bin/true");
    container.take(&child);
    container.take(&nested);
    let mut kernel = without_iterator();
    container.watch(&mut kernel);
    let userns = ProcFs::new("/proc").user_namespace(child.id()).unwrap();

    let mut sweep = container.sweep(&kernel, Duration::ZERO);
    let first = container.run(&mut sweep);
    assert_eq!((first.adopted, first.events.len()), (2, 1), "{first:#?}");
    let event = &first.events[0];
    assert_eq!(
        (event.hook, event.reasons, pid_of(event)),
        (Hook::TaskIter, reason::FIRST_WORKLOAD, child.id())
    );
    let Body::Entry(task) = &event.body else { panic!("{event:?}") };
    let lineage = task.task.lineage;
    assert_eq!(
        (lineage.state, lineage.origin, lineage.userns_inum),
        (state::INSIDE, origin::ADOPTED, userns)
    );
    assert_eq!(
        task.task.pod_userns.map(|ns| (ns.inum, ns.level, ns.uid_map.nr_extents)),
        Some((userns, 1, 1))
    );
    assert_eq!(task.ancestors.first().map(|parent| parent.process.pid), Some(std::process::id()));
    for _ in 0..2 {
        let again = container.run(&mut sweep);
        assert_eq!((again.adopted, again.events.as_slice()), (0, &[][..]));
    }

    // the next hook takes the lineage over, for the nested one with the pod's user namespace
    let outer = ProcFs::new("/proc").ancestry(nested.id()).unwrap().unwrap().pod(0).unwrap().inum;
    for (child, expected) in [(&mut child, userns), (&mut nested, outer)] {
        go(child);
        let pid = child.id();
        let taken = |event: &Event| matches!(event.body, Body::Exec(_)) && pid_of(event) == pid;
        let mut bulk_or_evidence = kernel.either(taken);
        child.wait().unwrap();
        let Some(Body::Exec(task)) = bulk_or_evidence.pop().map(|event| event.body) else { panic!() };
        let lineage = task.task.lineage;
        let inside = (state::INSIDE, expected, container.cgroup.id.0);
        assert_eq!((lineage.state, lineage.userns_inum, lineage.container), inside);
        assert_ne!(lineage.userns, 0);
    }
    let reasons = reason::LEFT_USERNS | reason::ID_OUTSIDE_MAP | reason::FOREIGN_NAMESPACE;
    while let Some(item) = kernel.rings.evidence.next() {
        assert_eq!(decode(&item).unwrap().reasons & reasons, 0);
    }
}

#[test]
fn threads_are_adopted_with_their_process() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !wanted("threads_are_adopted") {
        return;
    }
    let container = Container::new();
    let mut kernel = without_iterator();
    let me = rustix::thread::gettid();
    assert_ne!(me, rustix::process::getpid(), "tests run beside the first thread");
    // PIDFD_THREAD
    let flags = PidfdFlags::from_bits_retain(rustix::fs::OFlags::EXCL.bits());
    let Ok(pidfd) = pidfd_open(me, flags) else {
        println!("SKIPPED: threads_are_adopted: this kernel has no pidfds of threads");
        return;
    };
    let lineages = kernel.loaded.lineages().unwrap();
    let lineage = || lineages.get(pidfd.as_fd()).unwrap().map(|tracked| tracked.lineage);
    let home = ProcFs::new("/proc").cgroup(std::process::id()).unwrap().unwrap();
    let home = container.cgroups.root().join(home.as_str().trim_start_matches('/')).join("cgroup.procs");
    let myself = std::process::id().to_string();
    // in before the cgroup is watched: no hook takes note
    std::fs::write(container.directory().join("cgroup.procs"), &myself).unwrap();
    let mut sweep = container.sweep(&kernel, Duration::from_secs(60));
    let before = lineage();
    container.watch(&mut kernel);
    let found = container.run(&mut sweep);
    let after = lineage();
    std::fs::write(home, &myself).unwrap();
    assert_eq!((before, found.adopted), (None, 1));
    let after = after.unwrap();
    assert_eq!((after.origin, after.container), (origin::ADOPTED, container.cgroup.id.0));
}

impl Kernel {
    /// Waits for a record in either ring; it is the last one returned.
    fn either(&mut self, wanted: impl Fn(&Event) -> bool) -> Vec<Event> {
        let started = Instant::now();
        let mut seen = Vec::new();
        while started.elapsed() < Duration::from_secs(5) {
            for ring in [&mut self.rings.evidence, &mut self.rings.bulk] {
                while let Some(item) = ring.next() {
                    seen.push(decode(&item).unwrap());
                    if seen.last().is_some_and(&wanted) {
                        return seen;
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("no such record: {seen:#?}");
    }
}

#[test]
fn replaced_credentials_are_found_by_way_of_procfs_and_told_once() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !wanted("replaced_credentials_by_procfs") {
        return;
    }
    let mut kernel = without_iterator();
    let container = Container::new();
    let mut child = shell("exec /bin/true");
    kernel.claim(&child);
    let mut sweep = container.sweep(&kernel, Duration::ZERO);
    let found = container.run(&mut sweep);
    let [event] = found.events.as_slice() else { panic!("{found:#?}") };
    assert_eq!((event.hook, event.reasons, pid_of(event)), (Hook::TaskIter, reason::LEFT_USERNS, child.id()));
    let limits =
        Limits { grace: Duration::from_secs(2), enrich_wait: Duration::ZERO, containers: 16, processes: 16 };
    let mut out = Vec::new();
    Engine::new(limits).handle(Input::Event(event.clone()), &mut out);
    assert!(matches!(out.as_slice(), [Output::Finding(finding)] if finding.rule == RuleId::I1), "{out:?}");

    assert_eq!(container.run(&mut sweep).events, []);
    go(&mut child);
    child.wait().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    while let Some(item) = kernel.rings.evidence.next() {
        let event = decode(&item).unwrap();
        assert_eq!(event.reasons & reason::LEFT_USERNS, 0, "told twice: {event:?}");
    }
}

#[test]
fn a_host_process_in_a_container_is_told_after_the_grace_period_and_taken_back() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !wanted("a_host_process_in_a_container") {
        return;
    }
    let container = Container::new();
    let mut child = shell("exit 0");
    container.take(&child);
    let mut kernel = without_iterator();
    container.watch(&mut kernel);
    let mut sweep = container.sweep(&kernel, Duration::from_millis(200));
    let first = container.run(&mut sweep);
    assert_eq!((first.adopted, first.events.len()), (1, 0), "{first:#?}");
    std::thread::sleep(Duration::from_millis(250));
    let late = container.run(&mut sweep);
    let [event] = late.events.as_slice() else { panic!("{late:#?}") };
    let Body::Suspect(task) = &event.body else { panic!("{event:?}") };
    assert_eq!((event.reasons, pid_of(event)), (reason::PAST_GRACE, child.id()));
    assert_eq!((task.task.lineage.state, task.task.userns.level), (state::ENTERING, 0));
    assert_eq!(container.run(&mut sweep).events, []);
    let process: ProcessId = task.task.process;
    go(&mut child);
    child.wait().unwrap();
    let after = container.run(&mut sweep);
    let left: Vec<_> = after.events.iter().map(|event| event.body.clone()).collect();
    assert_eq!(left, [Body::Left { process, container: container.cgroup.id }]);
}

#[test]
fn ids_of_a_process_that_was_found_are_judged_after_the_grace_period() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !wanted("ids_of_a_process_that_was_found") {
        return;
    }
    let container = Container::new();
    let mut child = unmapped();
    container.take(&child);
    let mut kernel = start("").unwrap();
    container.watch(&mut kernel);
    let outside = |event: &Event| event.reasons & reason::ID_OUTSIDE_MAP != 0;
    // adopted by the first, and looked at by the second
    for _ in 0..2 {
        kernel.loaded.sweep().unwrap().run().unwrap();
    }
    let adopted = kernel.wait(|event| matches!(event.body, Body::Entry(_)) && pid_of(event) == child.id());
    assert!(!adopted.iter().any(outside), "{adopted:#?}");
    std::thread::sleep(GRACE);
    kernel.loaded.sweep().unwrap().run().unwrap();
    let late: Vec<_> = kernel.wait(outside).into_iter().filter(outside).collect();
    assert_eq!(late.iter().map(pid_of).collect::<Vec<_>>(), [child.id()]);
    go(&mut child);
    child.wait().unwrap();
}

#[test]
fn ids_of_a_process_that_was_found_by_way_of_procfs_are_judged_after_the_grace_period() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !wanted("ids_of_a_process_by_procfs") {
        return;
    }
    let container = Container::new();
    let mut child = unmapped();
    container.take(&child);
    let mut kernel = without_iterator();
    container.watch(&mut kernel);
    let mut sweep = container.sweep(&kernel, GRACE);
    let outside =
        |found: &Found| found.events.iter().any(|event| event.reasons & reason::ID_OUTSIDE_MAP != 0);
    assert_eq!(container.run(&mut sweep).adopted, 1);
    assert!(!outside(&container.run(&mut sweep)));
    std::thread::sleep(GRACE);
    assert!(outside(&container.run(&mut sweep)));
    go(&mut child);
    child.wait().unwrap();
}
