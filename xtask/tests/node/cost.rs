//! What the agent costs processes that are no business of its.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::Agent;

use crate::{Node, metric, slowdown};

const CHECKS: u32 = 1_000_000;
const BPF_STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// One capability check and nothing else: sethostname looks at the capability first and at the length next.
fn check() {
    // SAFETY: a null name with a negative length is refused before it is looked at.
    unsafe { libc::sethostname(std::ptr::null(), usize::MAX) };
}

fn count() -> u32 {
    CHECKS / slowdown()
}

fn checks() -> Duration {
    let started = Instant::now();
    for _ in 0..count() {
        check();
    }
    started.elapsed()
}

/// A system call that asks for nothing: what tracing any system call costs all others.
fn calls() -> Duration {
    let started = Instant::now();
    for _ in 0..count() {
        // SAFETY: no arguments, no effect. The raw call, since libc may remember the answer.
        unsafe { libc::syscall(libc::SYS_getppid) };
    }
    started.elapsed()
}

/// Messages and watched checks up to now.
fn sent(agent: &Agent) -> Result<f64> {
    std::thread::sleep(Duration::from_millis(1500));
    let metrics = agent.http_get("/metrics")?.body;
    let of = |counter| metric(&metrics, "userns_kernel_counter_total", &[("counter", counter)]);
    let counters =
        ["evidence_sent", "bulk_sent", "checks_overridden", "checks_accounting", "checks_aggregated"];
    Ok(counters.map(of).iter().sum())
}

/// Holds that checks by processes outside of pods are no message to `agent`, however many they are.
pub(crate) fn unrelated_checks_are_no_message(agent: &Agent) -> Result<()> {
    let before = sent(agent)?;
    let took = checks();
    let after = sent(agent)?;
    ensure!(before.to_bits() == after.to_bits(), "{} messages were sent", after - before);
    println!("{} unrelated checks in {took:.1?}, no message", count());
    Ok(())
}

#[test]
fn a_million_unrelated_checks_cost_no_message() -> Result<()> {
    let Some(node) = Node::new("a_million_unrelated_checks")? else { return Ok(()) };
    let without = (checks().min(checks()), calls().min(calls()));
    let agent = node.agent(&[])?;
    let before = sent(&agent)?;
    let with = (checks().min(checks()), calls().min(calls()));
    let after = sent(&agent)?;
    ensure!(before.to_bits() == after.to_bits(), "{} messages were sent", after - before);
    let stats = Stats::enable()?;
    let own = stats.measure();
    drop(stats);
    let per_check = |time: Duration| time.as_secs_f64() * 1e9 / f64::from(count());
    println!(
        "per check by an unrelated process: {:.0} ns without the agent, {:.0} ns with it{}",
        per_check(without.0),
        per_check(with.0),
        own.map_or_else(String::new, |ns| format!("; the program itself {ns:.0} ns"))
    );
    println!("per getppid: {:.0} ns without, {:.0} ns with", per_check(without.1), per_check(with.1));
    Ok(())
}

/// `kernel.bpf_stats_enabled`, switched on for as long as this lives.
struct Stats(String);

impl Stats {
    fn enable() -> Result<Self> {
        let before = fs::read_to_string(BPF_STATS).context("cannot read bpf_stats_enabled")?;
        fs::write(BPF_STATS, "1").context("cannot switch bpf_stats on")?;
        Ok(Self(before))
    }

    /// Nanoseconds per run of the program at `cap_capable`, as the kernel counts them, if `bpftool`'s source of
    /// that, fdinfo, can be read. Switching the statistics on adds about as much again to each run.
    fn measure(&self) -> Option<f64> {
        let before = totals();
        checks();
        let after = totals();
        let (runs, nanos) = (after?.0 - before?.0, after?.1 - before?.1);
        (runs > 0.0).then_some(nanos / runs)
    }
}

impl Drop for Stats {
    fn drop(&mut self) {
        let _ = fs::write(BPF_STATS, self.0.trim());
    }
}

/// Runs and nanoseconds of the busiest BPF program: with a million checks it is the one at `cap_capable`.
fn totals() -> Option<(f64, f64)> {
    let field = |text: &str, name: &str| -> Option<f64> {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim_start_matches(':').trim().parse().ok())
    };
    let mut best: Option<(f64, f64)> = None;
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Ok(infos) = fs::read_dir(process.path().join("fdinfo")) else { continue };
        for info in infos.flatten() {
            let text = fs::read_to_string(info.path()).unwrap_or_default();
            let (Some(runs), Some(nanos)) = (field(&text, "run_cnt"), field(&text, "run_time_ns")) else {
                continue;
            };
            if best.is_none_or(|(most, _)| runs > most) {
                best = Some((runs, nanos));
            }
        }
    }
    best
}
