//! Loads the object and attaches its programs according to the plan.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::thread;

use aya::maps::{HashMap, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::{BtfTracePoint, FExit, Iter, KProbe, Program, ProgramError, TracePoint};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader};
use rustix::io::Errno;
use thiserror::Error;
use userns_common::kind::Counter;
use userns_common::record::{AggregateKey, AggregateValue, Budget, WatchedCgroup, WatchedUserNs};
use userns_common::settings::{SETTINGS, Settings};

use super::lineages::Lineages;
use super::plan::{Candidate, Mechanism, Planned};
use super::programs;
use super::sizes::Sizes;
use super::status::{Probe, State};
use crate::event::CgroupId;

/// Programs verified at a time.
const MAX_VERIFIERS: usize = 4;

/// Why the programs could not be loaded at all. One program that fails is a [`State::Failed`] instead.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The build embedded no programs.
    #[error("this build has no eBPF programs: build it with `cargo xtask build`")]
    Stub,
    /// The kernel refused maps or globals.
    #[error("cannot load the eBPF programs: {}", chain(.0))]
    Ebpf(#[from] EbpfError),
    /// The kernel's type information.
    #[error("cannot read the kernel's type information: {0}")]
    Btf(#[from] aya::BtfError),
    /// A map is not as expected.
    #[error("map {name}: {source}")]
    Map {
        /// Its name.
        name: &'static str,
        /// The error.
        source: MapError,
    },
    /// The object has no such map.
    #[error("the embedded object has no map {0}: it is of another version")]
    NoMap(&'static str),
}

/// All messages of an error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// A shared value as a map holds it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Plain<T>(T);

// SAFETY: integers and arrays of them, without padding (userns_common::layout).
unsafe impl aya::Pod for Plain<WatchedCgroup> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<WatchedUserNs> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<AggregateKey> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<AggregateValue> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Budget> {}

/// Loaded programs. Dropping it detaches them all.
pub struct Loaded {
    ebpf: Ebpf,
    cgroups: HashMap<MapData, u64, Plain<WatchedCgroup>>,
    userns: HashMap<MapData, u64, Plain<WatchedUserNs>>,
    aggregates: HashMap<MapData, Plain<AggregateKey>, Plain<AggregateValue>>,
    budgets: HashMap<MapData, u64, Plain<Budget>>,
    counts: PerCpuArray<MapData, u64>,
    /// State of each hook.
    pub probes: Vec<Probe>,
}

/// The two rings.
pub struct Rings {
    /// Evidence for findings.
    pub evidence: RingBuf<MapData>,
    /// Everything else.
    pub bulk: RingBuf<MapData>,
}

fn settings_bytes(settings: &Settings) -> &[u8] {
    // SAFETY: a repr(C) struct of integers without padding (its size is asserted in userns_common::settings).
    unsafe { core::slice::from_raw_parts((&raw const *settings).cast::<u8>(), size_of::<Settings>()) }
}

/// Loads `object` and attaches what `plan` chose: of each hook the first candidate that the kernel takes. A hook
/// without one is recorded, not fatal.
///
/// # Errors
///
/// [`LoadError`] if nothing can be loaded.
pub fn load(
    object: Option<&[u8]>,
    settings: &Settings,
    sizes: &Sizes,
    plan: &[Planned],
) -> Result<(Loaded, Rings), LoadError> {
    let object = object.ok_or(LoadError::Stub)?;
    // each reads all of the kernel's type information, which takes a tenth of a second
    let (btf, mut loader) = thread::scope(|scope| {
        let btf = scope.spawn(Btf::from_sys_fs);
        let loader = EbpfLoader::new();
        (btf.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), loader)
    });
    let btf = btf?;
    for (map, entries) in sizes.entries() {
        loader.map_max_entries(map, entries);
    }
    let mut ebpf = loader
        .allow_unsupported_maps()
        .override_global(SETTINGS, settings_bytes(settings), true)
        .load(object)?;
    let rings = Rings { evidence: ring(&mut ebpf, "EVIDENCE")?, bulk: ring(&mut ebpf, "BULK")? };
    let cgroups = HashMap::try_from(take(&mut ebpf, "CGROUPS")?).map_err(named("CGROUPS"))?;
    let userns = HashMap::try_from(take(&mut ebpf, "USERNS")?).map_err(named("USERNS"))?;
    let aggregates = HashMap::try_from(take(&mut ebpf, "AGGREGATES")?).map_err(named("AGGREGATES"))?;
    let budgets = HashMap::try_from(take(&mut ebpf, "BUDGETS")?).map_err(named("BUDGETS"))?;
    let counts = PerCpuArray::try_from(take(&mut ebpf, "COUNTS")?).map_err(named("COUNTS"))?;
    let mut verified = verify(&mut ebpf, &btf, plan);
    let probes = plan.iter().map(|planned| start(&mut ebpf, &btf, planned, &mut verified)).collect();
    Ok((Loaded { ebpf, cgroups, userns, aggregates, budgets, counts, probes }, rings))
}

/// Programs by name, with what the kernel said to them.
type Verified = BTreeMap<&'static str, Result<(), ProgramError>>;

/// Has the kernel verify each hook's best candidate, which is most of the start-up time: several at once. Where it
/// refuses one, the hook's next, until there is none.
fn verify(ebpf: &mut Ebpf, btf: &Btf, plan: &[Planned]) -> Verified {
    let mut verified = Verified::new();
    loop {
        let next = plan.iter().filter_map(|planned| undecided(planned, &verified));
        let programs =
            next.flat_map(|candidate| candidate.programs.iter().map(move |name| (*name, candidate)));
        let programs = programs.filter(|(name, _)| !verified.contains_key(name)).collect();
        let round = verify_all(ebpf, btf, &programs);
        if round.is_empty() {
            return verified;
        }
        verified.extend(round);
    }
}

/// The best candidate that the kernel has not refused, if it has not been asked about it.
fn undecided<'a>(planned: &'a Planned, verified: &Verified) -> Option<&'a Candidate> {
    let refused = |candidate: &&Candidate| {
        candidate.programs.iter().any(|name| matches!(verified.get(name), Some(Err(_))))
    };
    let best = planned.candidates.iter().find(|candidate| !refused(candidate))?;
    best.programs.iter().any(|name| !verified.contains_key(name)).then_some(best)
}

fn verify_all(ebpf: &mut Ebpf, btf: &Btf, wanted: &BTreeMap<&'static str, &Candidate>) -> Verified {
    let jobs: Vec<_> = ebpf
        .programs_mut()
        .filter_map(|(name, program)| {
            wanted.get_key_value(name).map(|(name, known)| (*name, program, *known))
        })
        .collect();
    let jobs = Mutex::new(jobs);
    let take = || jobs.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let work = || {
        let mut done = Verified::new();
        while let Some((name, program, candidate)) = take() {
            done.insert(name, verify_one(program, btf, candidate));
        }
        done
    };
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_VERIFIERS);
    thread::scope(|scope| {
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let joined = handles.into_iter().map(|handle| handle.join());
        joined.flat_map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

fn verify_one(program: &mut Program, btf: &Btf, candidate: &Candidate) -> Result<(), ProgramError> {
    match candidate.mechanism {
        Mechanism::TpBtf => <&mut BtfTracePoint>::try_from(program)?.load(candidate.target, btf),
        Mechanism::FExit => <&mut FExit>::try_from(program)?.load(candidate.target, btf),
        Mechanism::KProbe => <&mut KProbe>::try_from(program)?.load(),
        Mechanism::Tracepoint => <&mut TracePoint>::try_from(program)?.load(),
        Mechanism::Iterator => <&mut Iter>::try_from(program)?.load(candidate.target, btf),
    }
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, LoadError> {
    ebpf.take_map(name).ok_or(LoadError::NoMap(name))
}

fn named(name: &'static str) -> impl FnOnce(MapError) -> LoadError {
    move |source| LoadError::Map { name, source }
}

fn ring(ebpf: &mut Ebpf, name: &'static str) -> Result<RingBuf<MapData>, LoadError> {
    RingBuf::try_from(take(ebpf, name)?).map_err(named(name))
}

fn start(ebpf: &mut Ebpf, btf: &Btf, planned: &Planned, verified: &mut Verified) -> Probe {
    let mut passed_over = planned.refused.clone();
    let mut bug = false;
    let mut chosen = None;
    for candidate in &planned.candidates {
        match attach(ebpf, btf, candidate, verified) {
            Ok(()) => {
                chosen = Some(candidate.mechanism);
                break;
            }
            Err(error) => {
                bug |= !is_refusal(&error);
                passed_over.push(format!("{}: {}", candidate.mechanism.name(), chain(&error)));
            }
        }
    }
    let state = if chosen.is_some() {
        State::Active
    } else if bug {
        State::Failed { error: passed_over.join("; ") }
    } else {
        State::Degraded { reason: passed_over.join("; ") }
    };
    Probe { hook: planned.hook, mechanism: chosen, state, passed_over, without: planned.without }
}

/// Whether the kernel does not let anyone have this, rather than find fault with the program.
fn is_refusal(error: &ProgramError) -> bool {
    /// `ENOTSUPP`, which is the kernel's own (include/linux/errno.h).
    const ENOTSUPP: i32 = 524;
    if matches!(error, ProgramError::LoadError { verifier_log, .. } if !verifier_log.to_string().is_empty()) {
        return false;
    }
    let mut next: Option<&dyn std::error::Error> = Some(error);
    while let Some(cause) = next {
        if let Some(error) = cause.downcast_ref::<std::io::Error>() {
            const REFUSALS: [Errno; 4] = [Errno::PERM, Errno::NOENT, Errno::OPNOTSUPP, Errno::NODEV];
            let code = error.raw_os_error().unwrap_or_default();
            return code == ENOTSUPP || REFUSALS.iter().any(|errno| errno.raw_os_error() == code);
        }
        next = cause.source();
    }
    false
}

fn attach(
    ebpf: &mut Ebpf,
    btf: &Btf,
    candidate: &Candidate,
    verified: &mut Verified,
) -> Result<(), ProgramError> {
    for name in candidate.programs {
        let program = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?;
        verified.remove(name).unwrap_or_else(|| verify_one(program, btf, candidate))?;
        match candidate.mechanism {
            Mechanism::TpBtf => {
                <&mut BtfTracePoint>::try_from(program)?.attach()?;
            }
            Mechanism::FExit => {
                <&mut FExit>::try_from(program)?.attach()?;
            }
            Mechanism::KProbe => {
                <&mut KProbe>::try_from(program)?.attach(candidate.target, 0)?;
            }
            Mechanism::Tracepoint => {
                let (category, name) = candidate.target.split_once('/').unwrap_or(("", candidate.target));
                <&mut TracePoint>::try_from(program)?.attach(category, name)?;
            }
            Mechanism::Iterator => {}
        }
    }
    Ok(())
}

/// Why a sweep did not happen.
#[derive(Debug, Error)]
pub enum SweepError {
    /// The program is not loaded.
    #[error("the task iterator is not available: {0}")]
    Program(#[from] ProgramError),
    /// Its link.
    #[error("the task iterator cannot be opened: {0}")]
    Link(#[from] aya::programs::links::LinkError),
    /// Reading it.
    #[error("the task iterator stopped: {0}")]
    Read(#[from] std::io::Error),
}

/// A visit to every task that is about to begin.
#[derive(Debug)]
pub struct Sweep(std::fs::File);

impl Sweep {
    /// Visits every task once: learns those in pods, and checks those it knows. Blocks as long as the kernel needs,
    /// half a microsecond a task; the records come by the rings, which want to be read meanwhile.
    ///
    /// # Errors
    ///
    /// [`SweepError::Read`]
    pub fn run(mut self) -> Result<(), SweepError> {
        // the program writes nothing: reading drives it through all tasks, then ends
        std::io::copy(&mut self.0, &mut std::io::sink())?;
        Ok(())
    }
}

impl Loaded {
    /// Adds a cgroup to the watched ones.
    ///
    /// # Errors
    ///
    /// The map's error, for example that it is full.
    pub fn watch(&mut self, id: CgroupId, cgroup: WatchedCgroup) -> Result<(), MapError> {
        self.cgroups.insert(id.0, Plain(cgroup), 0)
    }

    /// Removes a cgroup and the rows counted for it. What is not there is no error.
    pub fn forget(&mut self, id: CgroupId) {
        let _ = self.cgroups.remove(&id.0);
        let _ = self.budgets.remove(&id.0);
        // where another container of the pod remains, the next sweep puts the row back
        let of = |row: &(u64, Plain<WatchedUserNs>)| row.1.0.container == id.0;
        let userns: Vec<_> = self.userns.iter().flatten().filter(of).map(|(address, _)| address).collect();
        for address in userns {
            let _ = self.userns.remove(&address);
        }
        let keys: Vec<_> = self.aggregates.keys().flatten().filter(|key| key.0.container == id.0).collect();
        for key in keys {
            let _ = self.aggregates.remove(&key);
        }
    }

    /// The watched cgroup with this id.
    #[must_use]
    pub fn watched(&self, id: CgroupId) -> Option<WatchedCgroup> {
        self.cgroups.get(&id.0, 0).ok().map(|cgroup| cgroup.0)
    }

    /// How many cgroups are watched.
    #[must_use]
    pub fn nr_watched(&self) -> u64 {
        self.cgroups.keys().flatten().count() as u64
    }

    /// The aggregation table.
    #[must_use]
    pub fn aggregates(&self) -> Vec<(AggregateKey, AggregateValue)> {
        self.aggregates.iter().flatten().map(|(key, value)| (key.0, value.0)).collect()
    }

    /// What each container was not allowed to send, as totals.
    #[must_use]
    pub fn budgets(&self) -> Vec<(CgroupId, Budget)> {
        let rows = self.budgets.iter().flatten().map(|(id, budget)| (CgroupId(id), budget.0));
        rows.filter(|(_, budget)| budget.withheld_execs + budget.withheld_exits > 0).collect()
    }

    /// What the kernel tells of the programs.
    #[must_use]
    pub fn programs(&self) -> Vec<programs::Program> {
        programs::loaded(&self.ebpf)
    }

    /// All kernel counters, summed over CPUs.
    #[must_use]
    pub fn counters(&self) -> Vec<(Counter, u64)> {
        let sum =
            |counter: Counter| self.counts.get(&(counter as u32), 0).map_or(0, |values| values.iter().sum());
        Counter::ALL.iter().map(|counter| (*counter, sum(*counter))).collect()
    }

    /// Prepares a visit to every task.
    ///
    /// # Errors
    ///
    /// [`SweepError`] if the iterator is not there.
    pub fn sweep(&mut self) -> Result<Sweep, SweepError> {
        let program = self.ebpf.program_mut("sweep").ok_or(ProgramError::NotLoaded)?;
        let program: &mut Iter = program.try_into()?;
        let link = program.attach()?;
        Ok(Sweep(program.take_link(link)?.into_file()?))
    }

    /// Lineages of tasks, for a sweep by another way than the iterator.
    ///
    /// # Errors
    ///
    /// When their map cannot be had.
    pub fn lineages(&self) -> std::io::Result<Lineages> {
        Lineages::of(self.ebpf.map("LINEAGES"))
    }

    /// Hands the programs' debug logs to `tracing`, where the build has any.
    ///
    /// # Errors
    ///
    /// When the object carries no logs, which is the normal case for release builds.
    pub fn debug_logger(&mut self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>, aya_log::Error> {
        aya_log::EbpfLogger::init(&mut self.ebpf)
    }
}
