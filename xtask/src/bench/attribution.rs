//! How long a container is there before the agent knows it by name, as containerd tells it.

use std::{
    fmt::Write as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::scrape::Scrape;
use crate::lab::{
    Agent, Containerd, CriContainerSpec, CriPodSpec, Handler, IdRange, Lab, PodSpec, RuntimeName,
};

const PODS: u16 = 10;
const CONTAINERS: u16 = 10;
/// The first of kubelet's ranges that is used here.
const FIRST_RANGE: u16 = 49_000;
const PATIENCE: Duration = Duration::from_secs(15);
const METRIC: &str = "userns_attribution_seconds";
const KIND: &str = "kind=\"container\"";

/// What was measured.
#[derive(Debug, Clone, Default)]
pub(super) struct Attribution {
    /// Who told the names.
    runtime: String,
    containers: usize,
    /// Milliseconds.
    p50: f64,
    p99: f64,
    /// The end of the bucket that the slowest is in.
    most: f64,
}

impl Attribution {
    /// Both quantiles in words.
    pub(super) fn in_short(&self) -> String {
        format!("{:.2} ms, {:.2} ms", self.p50, self.p99)
    }
}

/// Runs pods by containerd in a lab of its own in `place`, for an agent that knows names by the CRI alone.
///
/// # Errors
///
/// When containerd cannot be had, or a container does not become known by name.
pub(super) fn measure(place: &Path, cache: &Path, agent: &Path) -> Result<Attribution> {
    let lab = Lab::new(Containerd::provision(cache)?, place)?;
    let containerd = Containerd::start(&lab)?;
    let socket = containerd.socket().display().to_string();
    let agent = Agent::start(agent, &lab, &["--cri-socket", &socket, "--api-server", "off"])?;
    let mut running = Vec::new();
    for number in 0..PODS {
        let range = IdRange::nth(FIRST_RANGE + number);
        let name = format!("bench-{number}");
        let pod =
            lab.pod(PodSpec { name, record: Some(range), host_users: Some(false), ..PodSpec::default() })?;
        let handler = Handler::Oci(RuntimeName::Runc);
        let pod = containerd.run(&pod, CriPodSpec::new(handler, Some(range)))?;
        let mut containers = Vec::new();
        for container in 0..CONTAINERS {
            let name = format!("main-{container}");
            // not in step with the agent's own clock
            thread::sleep(Duration::from_millis(u64::from(container * 7 % 23)));
            containers.push(pod.start(&CriContainerSpec { name, ..CriContainerSpec::default() })?);
        }
        // in this order: containers go before their pod
        running.push((containers, pod));
    }
    let wanted = f64::from(PODS * CONTAINERS);
    let started = Instant::now();
    let scrape = loop {
        let scrape = Scrape::settled(&agent)?;
        let known = scrape.sum(&format!("{METRIC}_count"), KIND);
        ensure!(known <= wanted, "{known} containers became known by name, of {wanted}");
        if known.total_cmp(&wanted).is_eq() {
            break scrape;
        }
        ensure!(started.elapsed() < PATIENCE, "{known} of {wanted} containers became known by name");
    };
    agent.stop()?;
    let buckets = scrape.buckets(METRIC, KIND);
    let of = |share| 1e3 * quantile(&buckets, share);
    let most = buckets.iter().find(|(_, count)| *count >= wanted).map_or(f64::INFINITY, |(end, _)| *end);
    let containers = usize::from(PODS * CONTAINERS);
    Ok(Attribution {
        runtime: containerd.version()?,
        containers,
        p50: of(0.5),
        p99: of(0.99),
        most: 1e3 * most,
    })
}

/// A quantile by the cumulative counts of buckets up to each end, as Prometheus' `histogram_quantile` has it: samples
/// are taken to be spread evenly over their bucket. 0 without samples, the last finite end for what is beyond.
fn quantile(buckets: &[(f64, f64)], share: f64) -> f64 {
    let Some((_, all)) = buckets.last() else { return 0.0 };
    let rank = share * all;
    let mut before = (0.0, 0.0);
    for (end, count) in buckets {
        if *count >= rank && *count > before.1 {
            let within = (rank - before.1) / (count - before.1);
            return if end.is_finite() { before.0 + (end - before.0) * within } else { before.0 };
        }
        before = (*end, *count);
    }
    0.0
}

/// A row.
pub(super) fn table(attribution: &Attribution) -> String {
    let mut text =
        "| told by | containers | p50 | p99 | at most |\n| --- | ---: | ---: | ---: | ---: |\n".to_owned();
    let Attribution { runtime, containers, p50, p99, most } = attribution;
    let _ = writeln!(text, "| {runtime} | {containers} | {p50:.2} ms | {p99:.2} ms | {most} ms |");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_spread_over_their_bucket() {
        let buckets = [(0.01, 0.0), (0.02, 50.0), (0.05, 100.0), (f64::INFINITY, 100.0)];
        for (share, expected) in [(0.0, 0.01), (0.25, 0.015), (0.5, 0.02), (0.75, 0.035), (1.0, 0.05)] {
            let found = quantile(&buckets, share);
            assert!((found - expected).abs() < 1e-9, "{share}: {found}");
        }
        let beyond = [(0.01, 1.0), (f64::INFINITY, 2.0)];
        assert!((quantile(&beyond, 0.99) - 0.01).abs() < 1e-9);
        assert!(quantile(&[(1.0, 0.0), (f64::INFINITY, 0.0)], 0.5) == 0.0 && quantile(&[], 0.5) == 0.0);
    }

    #[test]
    fn a_row_has_every_figure() {
        let runtime = "containerd 2.2".to_owned();
        let row = table(&Attribution { runtime, containers: 100, p50: 12.34, p99: 45.67, most: 50.0 });
        assert!(row.ends_with("| containerd 2.2 | 100 | 12.34 ms | 45.67 ms | 50 ms |\n"), "{row}");
    }
}
