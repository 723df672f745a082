//! One mechanism on one kernel: which hooks it gives, for whoever compares kernels (`cargo xtask vm`).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use prometheus_parse::Sample;
use serde_json::Value;
use xtask::lab::Agent;

use crate::{DEFAULT, mechanism, samples, value};

/// Without this hook most rules have nothing to go by.
const ESSENTIAL: &str = "cap_capable";

/// Hooks that are attached, with their mechanisms.
type Active = BTreeMap<String, String>;

/// What a kernel has to offer of a mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Hooks that the agent would attach by another mechanism, left to itself.
    Own,
    /// All hooks are as the agent attaches them by itself.
    AsDefault,
    /// No hook, or not the one that matters.
    None,
}

impl Offer {
    const fn word(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::AsDefault => "as-default",
            Self::None => "none",
        }
    }

    fn new(mechanism: &str, active: &Active, default: Option<&Active>) -> Self {
        if mechanism == DEFAULT {
            return Self::Own;
        }
        let given = active.values().any(|own| own == mechanism);
        if !given || !active.contains_key(ESSENTIAL) {
            Self::None
        } else if default == Some(active) {
            Self::AsDefault
        } else {
            Self::Own
        }
    }
}

/// Tells what `agent` attached and what its programs were for the verifier, and compares it with what an agent of an
/// earlier process attached by default. `USERNS_NODE_CELLS` names the directory where they leave that; without it there
/// is nobody to tell.
pub(crate) fn report(agent: &Agent) -> Result<Offer> {
    let Some(dir) = std::env::var_os("USERNS_NODE_CELLS").map(PathBuf::from) else { return Ok(Offer::Own) };
    let samples = samples(&agent.http_get("/metrics")?.body);
    let mechanism = mechanism();
    let active = active(&samples);
    let offer = Offer::new(&mechanism, &active, read(&dir.join(DEFAULT))?.as_ref());
    write(&dir.join(&mechanism), &active)?;
    fs::write(dir.join(format!("{mechanism}.offer")), offer.word()).context("cannot leave the offer")?;
    println!("\nuserns-vm: offer {mechanism} {}", offer.word());
    tell_reasons(agent)?;
    for sample in &samples {
        let label = |name| sample.labels.get(name).unwrap_or("?");
        if sample.metric == "userns_probe_state" && value(sample) > 0.0 {
            println!("userns-vm: probe {} {} {}", label("hook"), label("mechanism"), label("state"));
        }
        if sample.metric == "userns_program_verified_instructions" {
            println!("userns-vm: verified {} {}", label("program"), value(sample));
        }
    }
    Ok(offer)
}

/// Why hooks are not attached.
fn tell_reasons(agent: &Agent) -> Result<()> {
    let status: Value =
        serde_json::from_str(&agent.http_get("/status")?.body).context("/status is no JSON")?;
    for probe in status["probes"].as_array().context("/status tells of no probes")? {
        if probe["state"] != "active" {
            println!("{} is {}: {}", probe["hook"], probe["state"], probe["reason"]);
        }
    }
    Ok(())
}

fn active(samples: &[Sample]) -> Active {
    let is_active = |sample: &&Sample| {
        sample.metric == "userns_probe_state"
            && sample.labels.get("state") == Some("active")
            && value(sample) > 0.0
    };
    let pair = |sample: &Sample| {
        Some((sample.labels.get("hook")?.to_owned(), sample.labels.get("mechanism")?.to_owned()))
    };
    samples.iter().filter(is_active).filter_map(pair).collect()
}

fn read(path: &Path) -> Result<Option<Active>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let pair = |line: &str| line.split_once(' ').map(|(hook, how)| (hook.to_owned(), how.to_owned()));
    Ok(Some(text.lines().filter_map(pair).collect()))
}

fn write(path: &Path, active: &Active) -> Result<()> {
    let text: String = active.iter().map(|(hook, how)| format!("{hook} {how}\n")).collect();
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[test]
fn an_offer_is_what_the_default_is_not() {
    let active = |pairs: &[(&str, &str)]| -> Active {
        pairs.iter().map(|(hook, how)| ((*hook).to_owned(), (*how).to_owned())).collect()
    };
    let default = active(&[("cap_capable", "tp_btf"), ("setns", "fexit")]);
    let kprobe = active(&[("cap_capable", "kprobe"), ("setns", "kprobe")]);
    let lame = active(&[("setns", "kprobe")]);
    let offer = |mechanism, active| Offer::new(mechanism, active, Some(&default));
    assert_eq!(offer(DEFAULT, &default), Offer::Own);
    assert_eq!(offer("kprobe", &kprobe), Offer::Own);
    assert_eq!(offer("tp_btf", &default), Offer::AsDefault);
    assert_eq!(offer("tp_btf", &kprobe), Offer::None);
    assert_eq!(offer("kprobe", &lame), Offer::None);
}
