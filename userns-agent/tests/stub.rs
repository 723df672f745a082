//! A build without eBPF programs starts nothing and says why.

use std::process::Command;

#[test]
fn a_build_without_programs_says_how_to_get_them() {
    let agent = || Command::new(env!("CARGO_BIN_EXE_userns-agent"));
    let version = agent().arg("version").output().unwrap();
    let embedded = !String::from_utf8_lossy(&version.stdout).contains("missing");
    if embedded || !rustix::process::geteuid().is_root() {
        return;
    }
    let run = agent().args(["run", "--listen", "127.0.0.1:0"]).output().unwrap();
    assert_eq!(run.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&run.stderr).contains("cargo xtask build"), "{run:?}");
}
