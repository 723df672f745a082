//! Bad input: each kind gives one clear line and a documented exit code, or a degraded, visible status.

use std::{
    fs,
    net::TcpListener,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};

use crate::{Node, agent, work_dir};

fn run(bin: &Path, arguments: &[&str]) -> Result<Output> {
    Command::new(bin).args(arguments).env_clear().output().context("cannot start the agent")
}

fn expect(output: &Output, code: i32, word: &str) -> Result<()> {
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "ended with {}, not {code}: {errors}", output.status);
    ensure!(errors.contains(word), "does not speak of `{word}`: {errors}");
    ensure!(!errors.contains("panicked"), "{errors}");
    Ok(())
}

#[test]
fn wrong_usage_is_64_and_tells_of_every_mistake() -> Result<()> {
    let Some(bin) = agent("wrong_usage")? else { return Ok(()) };
    expect(&run(&bin, &["run", "--no-such-flag"])?, 64, "--no-such-flag")?;
    let file = work_dir().join("bad.yaml");
    fs::write(&file, "entry_grace: soon\nlisten: nowhere\ncolour: red\n")?;
    let output = run(&bin, &["check-config", "--config", &file.display().to_string()])?;
    for word in ["entry_grace", "listen", "colour"] {
        expect(&output, 64, word)?;
    }
    let missing = run(&bin, &["run", "--config", "/nowhere/config.yaml"])?;
    expect(&missing, 66, "/nowhere/config.yaml")
}

#[test]
fn without_root_it_says_so() -> Result<()> {
    let Some(bin) = agent("without_root")? else { return Ok(()) };
    // a copy where everyone may execute it
    let copy = std::env::temp_dir().join(format!("userns-agent-{}", std::process::id()));
    fs::copy(&bin, &copy)?;
    let output = Command::new(&copy).arg("run").uid(65_534).gid(65_534).current_dir("/").output();
    fs::remove_file(&copy)?;
    expect(&output?, 77, "root")
}

#[test]
fn a_port_in_use_is_named() -> Result<()> {
    let Some(node) = Node::new("a_port_in_use")? else { return Ok(()) };
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let output = run(&node.bin, &["run", "--listen", &address])?;
    expect(&output, 71, &address)
}

#[test]
fn missing_sources_degrade_visibly() -> Result<()> {
    let Some(node) = Node::new("missing_sources")? else { return Ok(()) };
    let agent = node.agent(&["--pods-file", "/nowhere/pods.yaml", "--kubelet-root", "/nowhere/kubelet"]);
    // the lab gives its own --kubelet-root first: the flag may not be given twice
    ensure!(agent.is_err(), "a flag given twice was taken");
    let agent = node.agent(&["--pods-file", "/nowhere/pods.yaml"])?;
    let status = agent.http_get("/status")?;
    ensure!(status.status == 200 && status.body.contains("/nowhere/pods.yaml"), "{}", status.body);
    let metrics = agent.http_get("/metrics")?.body;
    ensure!(metrics.contains("userns_source_up{source=\"pods_file\"} 0"), "the metric does not tell");
    Ok(())
}

#[test]
fn a_missing_kubelet_folder_shows_and_heals() -> Result<()> {
    let Some(node) = Node::new("a_missing_kubelet_folder")? else { return Ok(()) };
    let away = node.lab.kubelet_root().with_extension("away");
    fs::rename(node.lab.kubelet_root(), &away)?;
    let agent = node.agent(&["--sweep-interval", "1s"]);
    let up = |agent: &xtask::lab::Agent| -> Result<f64> {
        Ok(crate::metric(&agent.http_get("/metrics")?.body, "userns_source_up", &[("source", "kubelet")]))
    };
    let missing = agent.as_ref().ok().map(up);
    fs::rename(&away, node.lab.kubelet_root())?;
    let agent = agent?;
    ensure!(matches!(missing, Some(Ok(0.0))), "the missing folder does not show: {missing:?}");
    std::thread::sleep(std::time::Duration::from_secs(4));
    ensure!(up(&agent)? > 0.0, "the folder came back unnoticed");
    Ok(())
}

#[test]
fn without_btf_it_says_what_to_do() -> Result<()> {
    let Some(node) = Node::new("without_btf")? else { return Ok(()) };
    let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" run --listen 127.0.0.1:0";
    let output = Command::new("unshare").args(["-m", "sh", "-c", script]).arg(&node.bin).output()?;
    expect(&output, 69, "CONFIG_DEBUG_INFO_BTF")
}

#[test]
fn version_and_ps_work() -> Result<()> {
    let Some(node) = Node::new("version_and_ps")? else { return Ok(()) };
    let version = run(&node.bin, &["version"])?;
    ensure!(String::from_utf8_lossy(&version.stdout).contains("embedded"), "{version:?}");
    let kubelet = node.lab.kubelet_root().display().to_string();
    let cgroups = node.lab.cgroup_root().display().to_string();
    let flags = ["--no-agent", "--kubelet-root", &kubelet, "--cgroup-root", &cgroups];
    let range = xtask::lab::IdRange::nth(45_000);
    let spec = xtask::lab::PodSpec { name: "p".into(), record: Some(range), ..Default::default() };
    let pod = node.lab.pod(spec)?;
    let sound =
        pod.run(xtask::lab::ContainerSpec { mapping: Some(range.mapping()), ..Default::default() })?;
    let good = run(&node.bin, &[&["ps", "--output", "json"], &flags[..]].concat())?;
    let text = String::from_utf8_lossy(&good.stdout).into_owned();
    ensure!(
        good.status.code() == Some(0) && text.contains("honoured") && text.contains(sound.id()),
        "{text}"
    );
    let ignored = pod.run(xtask::lab::ContainerSpec::default())?;
    let bad = run(&node.bin, &[&["ps"], &flags[..]].concat())?;
    let text = String::from_utf8_lossy(&bad.stdout).into_owned();
    ensure!(bad.status.code() == Some(1) && text.contains("ignored"), "{text}");
    drop(ignored);
    Ok(())
}
