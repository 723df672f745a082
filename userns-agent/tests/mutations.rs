//! Mutations of the fuzz corpus, the same ones each time: no parser of hostile text panics, takes long, or accepts
//! what it should not. `cargo xtask fuzz` searches further, steered by coverage.

#![expect(unused_crate_dependencies, reason = "an integration test uses few of the package's dependencies")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(unreachable_pub, reason = "the fuzz targets use it as a library")]
#[path = "../../fuzz/src/lib.rs"]
mod checks;

use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Mutations tried of each parser.
const MUTATIONS: usize = 200_000;
/// Of the configuration without optimisation: a call takes 180 µs then (and 16 µs with), as each accepted text is
/// printed and read again.
const MUTATIONS_OF_CONFIG_IN_DEBUG: usize = 50_000;
/// Processor time that no call may take.
const LIMIT: Duration = Duration::from_millis(250);
/// Mutated inputs are not longer than this, so that a run's length is the number of mutations.
const MAX_LEN: usize = 4096;

/// Bytes that mean something to one parser or another.
const TOKENS: [&[u8]; 34] = [
    b"0",
    b"-1",
    b"4294967295",
    b"4294967296",
    b"18446744073709551616",
    b"1e999",
    b"null",
    b"true",
    b"~",
    b"\n",
    b"\t",
    b" ",
    b":",
    b": ",
    b"- ",
    b"---\n",
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!binary ",
    b"|\n",
    b">-\n",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b"\xff",
    b"\xe2\x80\xae",
    b"\0",
    b"/",
    b"pod",
];

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % end.max(1)
    }

    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        start..start + self.below((len - start).min(32) + 1)
    }

    fn mutate(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let range = self.range(input.len());
        let at = range.start;
        match self.below(8) {
            0 if !input.is_empty() => {
                let at = at.min(input.len() - 1);
                input[at] ^= 1 << self.below(8);
            }
            1 => drop(input.drain(range)),
            2 => {
                let copy = input[range].repeat(1 + self.below(4));
                input.splice(at..at, copy);
            }
            3 => {
                let other = &seeds[self.below(seeds.len())];
                let copy = other[self.range(other.len())].to_vec();
                input.splice(range, copy);
            }
            4 => input.truncate(at),
            5 => drop(input.splice(
                at..at,
                (0..self.below(8)).map(|_| u8::try_from(self.below(256)).unwrap()).collect::<Vec<_>>(),
            )),
            6 => drop(input.splice(range, TOKENS[self.below(TOKENS.len())].iter().copied())),
            _ => drop(input.splice(at..at, TOKENS[self.below(TOKENS.len())].iter().copied())),
        }
        input.truncate(MAX_LEN);
    }
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut paths: Vec<_> = std::fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn run(target: &str, mutations: usize, check: fn(&[u8])) {
    let seeds = seeds(target);
    assert!(!seeds.is_empty(), "no seeds for {target}");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (begin, mut slowest) = (processor_time(), Duration::ZERO);
    for number in 0..mutations {
        let mut input = seeds[number % seeds.len()].clone();
        // the seeds themselves come first
        for _ in 0..if number < seeds.len() { 0 } else { 1 + random.below(8) } {
            random.mutate(&mut input, &seeds);
        }
        let before = processor_time();
        if let Err(panic) = std::panic::catch_unwind(|| check(&input)) {
            eprintln!("{target}: panic at mutation {number}: {}", input.escape_ascii());
            std::panic::resume_unwind(panic);
        }
        let took = processor_time().saturating_sub(before);
        assert!(took < LIMIT, "{target}: {took:?} for mutation {number}: {}", input.escape_ascii());
        slowest = slowest.max(took);
    }
    let took = processor_time().saturating_sub(begin);
    eprintln!("{target}: {mutations} mutations in {took:?}, the slowest call {slowest:?}");
}

#[test]
fn cgroup_path() {
    run("cgroup_path", MUTATIONS, checks::cgroup_path);
}

#[test]
fn id_map() {
    run("id_map", MUTATIONS, checks::id_map);
}

#[test]
fn procfs() {
    run("procfs", MUTATIONS, checks::procfs);
}

#[test]
fn kubelet_record() {
    run("kubelet_record", MUTATIONS, checks::kubelet_record);
}

#[test]
fn pods_file() {
    run("pods_file", MUTATIONS, checks::pods_file);
}

#[test]
fn rules_file() {
    run("rules_file", mutations_of_config(), checks::rules_file);
}

#[test]
fn recording() {
    run("recording", MUTATIONS / 4, checks::recording);
}

#[test]
fn record() {
    run("record", MUTATIONS, checks::record);
}

#[test]
fn config() {
    run("config", mutations_of_config(), checks::config);
}

fn mutations_of_config() -> usize {
    if cfg!(debug_assertions) { MUTATIONS_OF_CONFIG_IN_DEBUG } else { MUTATIONS }
}
