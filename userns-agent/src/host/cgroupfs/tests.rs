//! The walk of cgroupfs, over directories made for it.

use super::*;
use std::fs;

const POD: &str = "/kubepods/besteffort/pod0f4b5b7e-6f1d-4f3e-9d5c-2f1f4f1a7c11";
const SLICE: &str = "/kubepods.slice/kubepods-pod51bd78aa51bd78aa51bd78aa51bd78aa.slice";

fn tree(paths: &[&str]) -> (tempfile::TempDir, CgroupFs) {
    let dir = tempfile::tempdir().unwrap();
    for path in paths {
        fs::create_dir_all(dir.path().join(&path[1..])).unwrap();
    }
    let root = CgroupFs::at(dir.path());
    (dir, root)
}

fn walk(cgroups: &CgroupFs) -> (Vec<(String, u32)>, WalkStats) {
    let mut seen = Vec::new();
    let stats = cgroups.walk(|cgroup| seen.push((cgroup.path.as_str().to_owned(), cgroup.role))).unwrap();
    (seen, stats)
}

#[test]
fn pods_and_all_below_are_visited_from_the_top() {
    let (dir, cgroups) = tree(&[
        "/init.scope",
        "/system.slice/crio-conmon-x.scope",
        &format!("{POD}/id/nested/deeper"),
        &format!("{SLICE}/crio-conmon-x.scope/y"),
        &format!("{SLICE}/crio-x.scope/container"),
    ]);
    fs::write(dir.path().join("kubepods/cgroup.procs"), "").unwrap();
    let (seen, stats) = walk(&cgroups);
    let expected = [
        (POD.to_owned(), role::POD),
        (format!("{POD}/id"), role::CONTAINER),
        (format!("{POD}/id/nested"), role::NESTED),
        (format!("{POD}/id/nested/deeper"), role::NESTED),
        (SLICE.to_owned(), role::POD),
        (format!("{SLICE}/crio-conmon-x.scope"), role::MONITOR),
        (format!("{SLICE}/crio-conmon-x.scope/y"), role::MONITOR),
        (format!("{SLICE}/crio-x.scope"), role::CONTAINER),
        (format!("{SLICE}/crio-x.scope/container"), role::NESTED),
    ];
    let mut sorted = seen.clone();
    sorted.sort();
    assert_eq!(sorted, {
        let mut expected = expected.to_vec();
        expected.sort();
        expected
    });
    for (index, (path, _)) in seen.iter().enumerate() {
        let parent = path.rsplit_once('/').unwrap().0;
        assert!(!seen[index..].iter().any(|(later, _)| later == parent), "{path} came before its parent");
    }
    assert_eq!((stats.visited, stats.directories, stats.errors), (9, 15, 0));
}

#[test]
fn ids_are_inode_numbers() {
    use std::os::unix::fs::MetadataExt as _;
    let (dir, cgroups) = tree(&[POD]);
    let mut id = None;
    cgroups.walk(|cgroup| id = Some(cgroup.id)).unwrap();
    assert_eq!(id, Some(CgroupId(fs::metadata(dir.path().join(&POD[1..])).unwrap().ino())));
}

#[test]
fn what_is_made_during_a_visit_is_still_listed() {
    let (dir, cgroups) = tree(&[POD]);
    let mut seen = Vec::new();
    cgroups
        .walk(|cgroup| {
            if cgroup.role == role::POD {
                fs::create_dir(dir.path().join(&POD[1..]).join("late")).unwrap();
            }
            seen.push(cgroup.role);
        })
        .unwrap();
    assert_eq!(seen, [role::POD, role::CONTAINER]);
}

#[test]
fn what_vanishes_is_passed_over() {
    let (dir, cgroups) = tree(&[&format!("{POD}/a"), &format!("{POD}/b/c")]);
    let mut seen = 0;
    let stats = cgroups
        .walk(|cgroup| {
            seen += 1;
            if cgroup.path.as_str().ends_with("/a") {
                fs::remove_dir_all(dir.path().join(&POD[1..]).join("b")).unwrap();
            }
        })
        .unwrap();
    assert_eq!((seen, stats.vanished, stats.errors), (2, 1, 0));
}

#[test]
fn other_errors_are_counted_and_named() {
    let (dir, cgroups) = tree(&[POD]);
    let name = "n".repeat(255);
    let open = |at: &OwnedFd, name: &Path| openat(at, name, OFlags::DIRECTORY, Mode::empty()).unwrap();
    let root = OwnedFd::from(fs::File::open("/").unwrap());
    let mut deepest = open(&root, &dir.path().join(&POD[1..]));
    for _ in 0..20 {
        rustix::fs::mkdirat(&deepest, &name, Mode::RWXU).unwrap();
        deepest = open(&deepest, Path::new(&name));
    }
    let (seen, stats) = walk(&cgroups);
    assert!(seen.len() > 10 && stats.errors == 1, "{stats:?}");
    assert_eq!(stats.first_error.map(|(_, errno)| errno), Some(Errno::NAMETOOLONG));
}

#[test]
fn symbolic_links_are_not_followed() {
    let (dir, cgroups) = tree(&["/kubepods"]);
    std::os::unix::fs::symlink("/", dir.path().join("kubepods/pod51bd78aa51bd78aa51bd78aa51bd78aa")).unwrap();
    assert_eq!(walk(&cgroups).1.directories, 1);
}

#[test]
fn processes_of_all_levels_are_found() {
    let (dir, cgroups) = tree(&[&format!("{POD}/id/x")]);
    let write = |path: &str, text: &str| fs::write(dir.path().join(&POD[1..]).join(path), text).unwrap();
    write("cgroup.procs", "1\n");
    write("id/cgroup.procs", "0\n12\n");
    write("id/x/cgroup.procs", "13\n14\n");
    assert_eq!(cgroups.processes(&format!("{POD}/id"), 10).unwrap(), [12, 13, 14]);
    assert_eq!(cgroups.processes(&format!("{POD}/id"), 2).unwrap(), [12, 13]);
    assert!(cgroups.processes("/gone", 2).is_err());
    assert_eq!(cgroups.own_processes(&format!("{POD}/id")).unwrap(), [12]);
    assert!(cgroups.own_processes("/gone").is_err());
}

#[test]
fn what_is_no_hierarchy_is_refused() {
    let (dir, _) = tree(&[]);
    assert!(matches!(CgroupFs::find(Some(dir.path())), Err(CgroupFsError::NotCgroup2 { .. })));
    assert!(matches!(CgroupFs::find(Some(Path::new("/nonexistent"))), Err(CgroupFsError::Read { .. })));
    assert!(CgroupFs::at("/nonexistent").walk(drop).is_err());
}
