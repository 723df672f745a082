//! Entries into a pod's namespaces from elsewhere: real ones, by setns(2) of real processes.

use userns_agent::event::{Call, ProcessId, TaskEvent, origin};

use super::proc_sweep::{Container, apart};
use super::*;

/// A pod whose program runs in namespaces of its own.
struct Pod {
    container: Container,
    /// The program's parent, which is of the host.
    outer: Child,
    /// The program.
    pid: u32,
}

impl Pod {
    fn new(number: u32) -> Self {
        let container = Container::of_pod(number);
        let command = ["unshare", "-Urpf", "unshare", "-m"];
        let outer = apart(&command, "exec /bin/sh -c 'read line; exit 0'");
        let children = format!("/proc/{0}/task/{0}/children", outer.id());
        let pid = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
        container.take_pid(pid);
        Self { container, outer, pid }
    }

    /// Has the programs learn it, by what it executes or by a sweep.
    fn known_to(&mut self, kernel: &mut Kernel) -> Vec<Event> {
        self.container.watch(kernel);
        self.outer.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        kernel.loaded.sweep().unwrap().run().unwrap();
        let pid = self.pid;
        kernel.wait(|event| event.reasons & reason::FIRST_WORKLOAD != 0 && pid_of(event) == Some(pid))
    }

    fn id(&self) -> u64 {
        self.container.cgroup.id.0
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // ends the program, and with it its parent
        drop(self.outer.stdin.take());
        let _ = self.outer.wait();
    }
}

fn task_of(event: &Event) -> Option<&TaskEvent> {
    event.body.task()
}

fn pid_of(event: &Event) -> Option<u32> {
    task_of(event).map(|task| task.task.process.pid)
}

/// A shell in the namespaces of `pod` that `flags` say, which waits for a line.
fn nsenter(pod: &Pod, flags: &[&str], then: &str) -> Child {
    let target = pod.pid.to_string();
    apart(&[&["nsenter", "-t", &target], flags].concat(), then)
}

fn end(mut child: Child) {
    go(&mut child);
    child.wait().unwrap();
}

/// All evidence about tasks other than the pod's own, and the one that made its namespaces and is in them.
fn told(kernel: &mut Kernel, pod: &Pod) -> Vec<Event> {
    std::thread::sleep(Duration::from_millis(50));
    let mut seen = Vec::new();
    while let Some(item) = kernel.rings.evidence.next() {
        seen.push(decode(&item).unwrap());
    }
    seen.retain(|event| pid_of(event).is_some_and(|pid| pid != pod.outer.id() && pid != pod.pid));
    seen
}

fn test(name: &str) -> Option<(std::sync::MutexGuard<'static, ()>, Kernel, Pod)> {
    let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut kernel = start(name)?;
    let mut pod = Pod::new(0);
    pod.known_to(&mut kernel);
    Some((turn, kernel, pod))
}

#[test]
fn a_host_process_that_joins_a_pods_user_namespace_is_told_and_followed() {
    // with the ids it is given there, and with those of the host
    for flags in [&["-U"][..], &["-U", "--preserve-credentials"]] {
        let Some((_turn, mut kernel, pod)) = test("a_host_process_joins_a_user_namespace") else { return };
        let child = nsenter(&pod, flags, "(:); exec /bin/true");
        let pid = child.id();
        let process: Option<ProcessId> = {
            let events = told(&mut kernel, &pod);
            let [entry, exec] = events.as_slice() else { panic!("{events:#?}") };
            let Body::Entry(task) = &entry.body else { panic!("{entry:#?}") };
            let lineage = task.task.lineage;
            assert_eq!(
                (entry.hook, task.task.process.pid, task.path.as_str()),
                (Hook::Setns, pid, "nsenter")
            );
            assert_eq!(
                (lineage.state, lineage.origin, lineage.container, lineage.flags),
                (state::INSIDE, origin::FOREIGN, pod.id(), 0)
            );
            assert_ne!(task.task.cgroup.0, pod.id());
            assert_eq!(task.task.pod_userns.map(|ns| ns.inum), Some(lineage.userns_inum));
            let Body::Exec(task) = &exec.body else { panic!("{exec:#?}") };
            assert_eq!((exec.reasons, task.path.as_str()), (reason::FIRST_WORKLOAD, "/bin/sh"));
            Some(task.task.process)
        };
        kernel.loaded.sweep().unwrap().run().unwrap();
        end(child);
        kernel.loaded.sweep().unwrap().run().unwrap();
        // neither its cgroup nor its ids are evidence, nor does it end its own pod's
        assert_eq!(told(&mut kernel, &pod), [], "{process:?}");
    }
}

#[test]
fn host_root_that_joins_a_pods_mount_and_pid_namespaces_is_told() {
    let Some((_turn, mut kernel, pod)) = test("host_root_joins_mount_and_pid_namespaces") else { return };
    let child = nsenter(&pod, &["-m", "-p"], "exit 0");
    let events = told(&mut kernel, &pod);
    let [entry, exec] = events.as_slice() else { panic!("{events:#?}") };
    let lineage = task_of(entry).unwrap().task.lineage;
    assert!(matches!(entry.body, Body::Entry(_)) && pid_of(entry) == Some(child.id()));
    assert_eq!(
        (lineage.state, lineage.origin, lineage.container),
        (state::ENTERING, origin::FOREIGN, pod.id())
    );
    // nsenter forks into the PID namespace: the program is its child's
    assert_eq!(exec.reasons, reason::HOST_WORKLOAD);
    let parents: Vec<u32> =
        task_of(exec).unwrap().ancestors.iter().map(|parent| parent.process.pid).collect();
    assert!(parents.contains(&child.id()), "{exec:#?}");
    end(child);
}

#[test]
fn what_does_not_lead_into_a_pod_is_not_told() {
    let Some((_turn, mut kernel, pod)) = test("what_does_not_lead_into_a_pod") else { return };
    // a user namespace that is no pod's, and other namespaces of the pod alone
    let other = apart(&["unshare", "-Urm"], "exit 0");
    let into_other = apart(&["nsenter", "-t", &other.id().to_string(), "-U"], "exit 0");
    let children = [nsenter(&pod, &["-m"], "exit 0"), nsenter(&pod, &["-p"], "exit 0"), into_other, other];
    kernel.loaded.sweep().unwrap().run().unwrap();
    assert_eq!(told(&mut kernel, &pod), []);
    children.into_iter().for_each(end);
}

#[test]
fn the_sweep_finds_who_entered_before() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !wanted("the_sweep_finds_who_entered_before") {
        return;
    }
    let mut pod = Pod::new(0);
    let inside = nsenter(&pod, &["-U"], "exit 0");
    let with_host_ids = nsenter(&pod, &["-m", "-p"], "exit 0");
    let mut kernel = start("").unwrap();
    let mut events = pod.known_to(&mut kernel);
    // the second pass meets those that were visited before the pod's own program
    kernel.loaded.sweep().unwrap().run().unwrap();
    kernel.loaded.sweep().unwrap().run().unwrap();
    events.extend(told(&mut kernel, &pod));
    let found = |pid, state| {
        events
            .iter()
            .filter(|event| {
                let lineage = task_of(event).unwrap().task.lineage;
                pid_of(event) == Some(pid)
                    && event.hook == Hook::TaskIter
                    && lineage.origin == origin::FOREIGN
                    && lineage.state == state
            })
            .count()
    };
    assert_eq!(found(inside.id(), state::INSIDE), 1, "{events:#?}");
    assert_eq!(found(with_host_ids.id(), state::ENTERING), 1, "{events:#?}");
    end(inside);
    end(with_host_ids);
}

#[test]
fn a_process_that_is_moved_in_after_it_joined_is_the_containers() {
    let Some((_turn, mut kernel, pod)) = test("a_process_that_is_moved_in_after_it_joined") else { return };
    let child = nsenter(&pod, &["-U"], "exec /bin/true");
    told(&mut kernel, &pod);
    let pid = child.id();
    pod.container.take_pid(pid);
    let events = told(&mut kernel, &pod);
    let [entry] = events.as_slice() else { panic!("{events:#?}") };
    let lineage = task_of(entry).unwrap().task.lineage;
    assert_eq!((entry.hook, pid_of(entry), lineage.flags), (Hook::CgroupAttach, Some(pid), 0));
    assert_eq!(
        (lineage.state, lineage.origin, lineage.container),
        (state::INSIDE, origin::ATTACHED, pod.id())
    );
    end(child);
    let events = told(&mut kernel, &pod);
    assert!(events.iter().any(|event| event.reasons & reason::FIRST_WORKLOAD != 0), "{events:#?}");
}

#[test]
fn a_program_of_another_pod_that_enters_is_told_by_evidence() {
    let Some((_turn, mut kernel, pod)) = test("a_program_of_another_pod_that_enters") else { return };
    let other = Container::of_pod(1);
    other.watch(&mut kernel);
    // in a mount namespace of its own: a program of its container, with the host's user namespace
    let target = pod.pid.to_string();
    for (flags, inside) in [(&["-U"][..], true), (&["-m", "-p"], false)] {
        let command = format!("nsenter -t {target} {} /bin/true", flags.join(" "));
        let mut shell = apart(&["unshare", "-m"], &format!("/bin/true; {command}; :"));
        other.take_pid(shell.id());
        go(&mut shell);
        shell.wait().unwrap();
        let events = told(&mut kernel, &pod);
        let entered = |event: &&Event| {
            let joined = event.reasons & reason::FOREIGN_ENTRY != 0;
            let arrived = task_of(event).is_some_and(|task| task.task.lineage.state == state::INSIDE);
            if inside { arrived && !joined } else { joined }
        };
        let found: Vec<_> = events.iter().filter(entered).collect();
        let [event] = found.as_slice() else { panic!("{flags:?}: {events:#?}") };
        let task = task_of(event).unwrap();
        let lineage = task.task.lineage;
        assert_eq!((lineage.container, lineage.origin), (other.cgroup.id.0, origin::ATTACHED));
        assert_ne!(lineage.flags & lineage::WORKLOAD, 0);
        let into = match &task.call {
            Some(Call { target_inum, .. }) if !inside => *target_inum,
            _ => lineage.userns_inum,
        };
        let bad = reason::FOREIGN_NAMESPACE | reason::ID_OUTSIDE_MAP | reason::LEFT_USERNS;
        assert!(events.iter().all(|event| event.reasons & bad == 0), "{events:#?}");
        assert_eq!(into, userns_agent::host::proc::ProcFs::new("/proc").user_namespace(pod.pid).unwrap());
    }
}
