//! What runs where: kernels, mechanisms, and the tests for each.

use super::kernels::Line;

/// The long-term lines there are, and the newest of all.
pub(super) const LINES: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", NEWEST];
/// What the newest line is called, whichever it is.
pub(super) const NEWEST: &str = "newest";
/// Lines before this one have no task-local storage for tracing programs, and the agent refuses to run.
const FLOOR: Line = Line::new(5, 13);
/// Since when checks of capabilities have a tracepoint; see docs/kernels.md.
const CAPABLE_TRACEPOINT: Line = Line::new(6, 14);

/// The first long-term line on which tmpfs can be shown with other ids, which containerd's files are on in a guest.
const IDMAPPED_TMPFS: Line = Line::new(6, 12);
/// The last long-term line there is.
const LAST: Line = Line::new(6, 18);

/// What the agent chooses by itself.
pub(super) const DEFAULT: &str = "default";
/// What `--probe-mechanism` takes, apart from `auto`.
pub(super) const MECHANISMS: [&str; 4] = ["tp_btf", "fexit", "kprobe", "tracepoint"];

/// The integration tests that are built for guests.
pub(super) const BINARIES: [&str; 2] = ["node", "guest"];
/// Tests of every mechanism, each a binary and a part of its tests' names. The first one tells whether the kernel
/// offers the mechanism at all.
const CORE: [&str; 2] = ["node:core::", "guest:tamper::"];
/// What else depends on the kernel, and not on how hooks are attached.
const ONCE: [&str; 4] = [
    "node:day::an_agent_that_starts_late",
    "node:cli::without_btf",
    "node:cli::version_and_ps",
    "node:simulate::each_escape",
];

/// Pods run by containerd.
pub(super) const CONTAINERD: &str = "node:containerd::";

/// Whether [`CONTAINERD`] runs on a kernel of this line: the oldest that can and the newest, for they take minutes.
pub(super) fn runs_containerd(line: Line) -> bool {
    line == IDMAPPED_TMPFS || line > LAST
}

/// The tests that run with `mechanism`, as the script in the guest reads them.
pub(super) fn suite(mechanism: &str) -> String {
    let once = if mechanism == DEFAULT { &ONCE[..] } else { &[] };
    [&CORE[..], once].concat().join(" ")
}

/// Whether the agent is to run on kernels of this line at all.
pub(super) fn is_supported(line: Line) -> bool {
    line >= FLOOR
}

/// The script that the guest runs.
pub(super) fn job(line: Line) -> &'static str {
    if is_supported(line) { "tests" } else { "floor" }
}

/// Whether a kernel of this line must offer the mechanism. One that is not in the table must not.
pub(super) fn offers(line: Line, mechanism: &str) -> bool {
    match mechanism {
        "fexit" | "kprobe" | "tracepoint" => is_supported(line),
        "tp_btf" => line >= CAPABLE_TRACEPOINT,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mechanism_has_a_place_in_the_table() {
        let offered = |line: Line| MECHANISMS.map(|mechanism| offers(line, mechanism));
        assert_eq!(offered(Line::new(5, 10)), [false; 4]);
        assert_eq!(offered(Line::new(6, 1)), [false, true, true, true]);
        assert_eq!(offered(Line::new(7, 3)), [true; 4]);
        assert_eq!((job(Line::new(5, 10)), job(Line::new(5, 15))), ("floor", "tests"));
    }

    #[test]
    fn containerd_is_tried_on_two_kernels() {
        let lines = [(5, 10), (6, 1), (6, 12), (6, 18), (7, 3)].map(|(major, minor)| Line::new(major, minor));
        assert_eq!(lines.map(runs_containerd), [false, false, true, false, true]);
    }

    #[test]
    fn tests_are_in_binaries_that_are_built() {
        let all = [&suite(DEFAULT), &suite("kprobe"), CONTAINERD].map(str::to_owned);
        for part in all.join(" ").split(' ') {
            let (binary, filter) = part.split_once(':').unwrap_or_default();
            assert!(BINARIES.contains(&binary) && !filter.is_empty(), "{part}");
        }
        assert!(suite(DEFAULT).starts_with(&suite("kprobe")));
    }
}
