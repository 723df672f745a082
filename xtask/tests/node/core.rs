//! What depends on the kernel and on how hooks are attached, with one agent: under emulation its start takes longer
//! than most of this, for the kernel verifies its programs.

use anyhow::{Result, ensure};
use xtask::lab::{CgroupDriver, RuntimeName};

use crate::{Node, cell, cost, day, losses, rounds};

/// Of each runtime. Hundreds of them are tests of their own.
const ROUNDS: u32 = 20;

#[test]
fn every_rule_is_told_and_honest_work_is_not() -> Result<()> {
    let Some(node) = Node::new("every_rule_is_told")? else { return Ok(()) };
    let agent = node.agent(&[])?;
    if cell::report(&agent)? != cell::Offer::Own {
        return Ok(());
    }
    for (runtime, range) in RuntimeName::ALL.into_iter().zip(44_000..) {
        let took = rounds::live(&node, runtime, ROUNDS, range)?;
        println!("{ROUNDS} rounds of {runtime} in {took:.1?}");
    }
    rounds::nothing_but_seen(&agent, 2 * ROUNDS)?;
    day::work_on_an_overlay(&node, &agent)?;
    cost::unrelated_checks_are_no_message(&agent)?;
    for runtime in RuntimeName::ALL {
        day::day(&node, &agent, runtime, CgroupDriver::Cgroupfs)?;
    }
    let metrics = agent.http_get("/metrics")?.body;
    ensure!(losses(&metrics).is_empty(), "{:?}", losses(&metrics));
    let stopped = agent.stop()?;
    ensure!(stopped.status.code() == Some(0), "SIGTERM ended it with {}", stopped.status);
    Ok(())
}
