//! A node in a user namespace: real ones, one below the other, with that of the node for the reference.

use userns_agent::event::Reference;
use userns_agent::host::proc::ProcFs;

use super::proc_sweep::{Container, apart};
use super::*;

fn userns(child: &Child) -> u32 {
    ProcFs::new("/proc").user_namespace(child.id()).unwrap()
}

fn limits() -> Limits {
    Limits { grace: Duration::from_secs(2), enrich_wait: Duration::ZERO, containers: 16, processes: 16 }
}

fn end(mut child: Child) {
    go(&mut child);
    child.wait().unwrap();
}

/// What the first program of a process in the container is told with.
fn first_program(kernel: &mut Kernel, pid: u32) -> Event {
    kernel.loaded.sweep().unwrap().run().unwrap();
    let of = |event: &Event| event.body.task().is_some_and(|task| task.task.process.pid == pid);
    let mut seen = kernel.wait(of);
    seen.retain(of);
    seen.remove(0)
}

#[test]
fn pods_lie_one_level_below_the_nodes_own_namespace() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !wanted("pods_lie_one_level_below_the_nodes") {
        return;
    }
    let node = apart(&["unshare", "-Urm"], "exit 0");
    // -Urm within the node's: the pod's, at level 2
    let target = node.id().to_string();
    let pod = apart(&["nsenter", "-t", &target, "-U", "unshare", "-Urm"], "exec /bin/true");
    let of_node = apart(&["nsenter", "-t", &target, "-U", "unshare", "-m"], "exit 0");
    let beside = apart(&["unshare", "-Ur", "unshare", "-Urm"], "exit 0");
    let container = Container::of_pod(2);
    for child in [&pod, &of_node, &beside] {
        container.take_pid(child.id());
    }
    let host = Host { userns: userns(&node), level: 1, mnt: 0 };
    let mut kernel = start_under("", host, |_| {}).unwrap();
    container.watch(&mut kernel);

    let event = first_program(&mut kernel, pod.id());
    let task = &event.body.task().unwrap().task;
    assert_eq!((task.lineage.state, task.lineage.userns_inum), (state::INSIDE, userns(&pod)));
    let seen = task.pod_userns.unwrap();
    assert_eq!((seen.inum, seen.level, seen.parent_inum), (userns(&pod), 2, userns(&node)));
    // who has the node's own namespace is a host process there; so is who is below another namespace than the node's
    let lineages = kernel.loaded.lineages().unwrap();
    for child in [&of_node, &beside] {
        let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
        let lineage = lineages.get(pidfd.as_fd()).unwrap().unwrap().lineage;
        assert_eq!((lineage.state, lineage.userns_inum), (state::ENTERING, 0));
    }
    // the pod's program goes on, stays where it is and is no evidence
    end(pod);
    std::thread::sleep(Duration::from_millis(50));
    while let Some(item) = kernel.rings.evidence.next() {
        assert_eq!(decode(&item).unwrap().reasons & reason::LEFT_USERNS, 0);
    }
    [node, of_node, beside].into_iter().for_each(end);
}

#[test]
fn credentials_of_the_nodes_namespace_are_an_escape_there() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !wanted("credentials_of_the_nodes_namespace") {
        return;
    }
    let node = apart(&["unshare", "-Ur"], "exec /bin/true");
    let inum = userns(&node);
    let mut kernel = start_under("", Host { userns: inum, level: 1, mnt: 0 }, |_| {}).unwrap();
    kernel.claim(&node);
    let pid = node.id();
    end(node);
    let escaped = |event: &Event| event.reasons & reason::LEFT_USERNS != 0;
    let event = kernel.wait(escaped).into_iter().find(escaped).unwrap();
    let task = &event.body.task().unwrap().task;
    assert_eq!(
        (task.process.pid, task.userns.inum, task.userns.level, task.pod_userns),
        (pid, inum, 1, None)
    );
    let reference = Reference { inum, level: 1, ..Reference::default() };
    let mut out = Vec::new();
    Engine::new(limits()).under(reference).handle(Input::Event(event), &mut out);
    let [Output::Finding(finding)] = out.as_slice() else { panic!("{out:#?}") };
    assert_eq!(finding.rule, RuleId::I1);
    assert!(finding.why.contains(&format!("the host's user namespace {inum}")), "{}", finding.why);
}
