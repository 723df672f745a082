//! Reads the rules file again when it changes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use super::{Identities, MAX_FILE_BYTES, RuleSet, RulesError, parse};
use crate::config::Config;
use crate::event::{Fact, Policy};
use crate::host::proc::ProcFs;
use crate::host::runtimes::Runtimes;
use crate::host::watched_file::WatchedFile;
use crate::host::{SourceHealth, SourceState, brief};
use crate::sink::WallClock;

/// Looks at the file between two looks for the programs that it names: packages are upgraded.
const LOOKS_PER_SEARCH: u32 = 10;
/// A correction of civil time, in nanoseconds, beyond which exceptions end at another moment of the kernel's clock.
const CORRECTION: u64 = 1_000_000_000;

/// What the file is read against.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The host's root directory.
    pub host_root: PathBuf,
    /// Tells the devices of mounts.
    pub proc: ProcFs,
    /// Tells where boot lies in civil time.
    pub clock: fn() -> WallClock,
}

/// Reads the rules file and reads it again when it changes.
#[derive(Debug)]
pub struct RulesWatcher {
    file: WatchedFile,
    surroundings: Surroundings,
    /// What is in force.
    rules: Option<RuleSet>,
    found: Identities,
    clock: WallClock,
    /// What was told.
    policy: Option<Policy>,
    /// Looks until programs are searched for again.
    until_search: u32,
    errors: u64,
    look: Interval,
    health: watch::Sender<SourceHealth>,
}

impl RulesWatcher {
    /// Watches `path`, looking at it every `interval`. Call it within a Tokio runtime.
    #[must_use]
    pub fn new(
        path: &Path,
        interval: Duration,
        surroundings: Surroundings,
    ) -> (Self, watch::Receiver<SourceHealth>) {
        let (health, receiver) = watch::channel(SourceHealth::default());
        let mut look = interval_at(tokio::time::Instant::now() + interval, interval);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watcher = Self {
            file: WatchedFile::new(path),
            clock: (surroundings.clock)(),
            surroundings,
            rules: None,
            found: Identities::new(),
            policy: None,
            until_search: 0,
            errors: 0,
            look,
            health,
        };
        (watcher, receiver)
    }

    /// The policy that holds now; none if the file cannot be used. Call it once, before [`Self::next`].
    pub fn initial(&mut self) -> Vec<Fact> {
        self.look_at_it().into_iter().collect()
    }

    /// Waits until another policy holds: the file says something else, a program that it names was replaced, or civil
    /// time was corrected. While the file cannot be used, what it said before stays in force. Nothing is lost if the
    /// future is dropped before it is ready.
    pub async fn next(&mut self) -> Fact {
        loop {
            self.look.tick().await;
            if let Some(fact) = self.look_at_it() {
                return fact;
            }
        }
    }

    fn look_at_it(&mut self) -> Option<Fact> {
        match self.read_if_changed() {
            Ok(None) => {}
            Ok(Some(rules)) => {
                if self.rules.as_ref() != Some(&rules) {
                    let path = self.file.path().display();
                    let (changed, exceptions) = (rules.rules.len(), rules.exceptions.len());
                    tracing::info!("{path} is in force: {changed} rules set, {exceptions} exceptions");
                }
                self.rules = Some(rules);
                self.until_search = 0;
                self.publish(SourceState::Ok, String::new());
            }
            Err(error) => {
                self.errors += 1;
                let kept = match &self.rules {
                    Some(rules) => {
                        format!("; {} exceptions of an earlier reading stay in force", rules.exceptions.len())
                    }
                    None => "; every rule is as built in".to_owned(),
                };
                // a line for people: lists of mistakes have several
                let lines: Vec<_> = error.to_string().lines().map(str::trim).map(str::to_owned).collect();
                let detail = format!("{}{kept}", brief(&lines.join(" ")));
                if self.health.borrow().detail != detail {
                    tracing::warn!("{detail}");
                }
                self.publish(SourceState::Failing, detail);
            }
        }
        self.renew()
    }

    fn read_if_changed(&mut self) -> Result<Option<RuleSet>, RulesError> {
        let read = self.file.read_if_changed(MAX_FILE_BYTES + 1);
        let path = self.file.path();
        let read = read.map_err(|source| RulesError::Read { path: path.to_owned(), source })?;
        read.map(|bytes| parse(path, &bytes)).transpose()
    }

    /// The policy, if it is another than was told.
    fn renew(&mut self) -> Option<Fact> {
        let rules = self.rules.as_ref()?;
        if self.until_search == 0 {
            self.found = self.surroundings.find(rules.executables());
            self.until_search = LOOKS_PER_SEARCH;
        }
        self.until_search -= 1;
        let clock = (self.surroundings.clock)();
        if clock.boot.abs_diff(self.clock.boot) > CORRECTION {
            self.clock = clock;
        }
        let policy = rules.policy(self.clock, &self.found);
        if self.policy.as_ref() == Some(&policy) {
            return None;
        }
        self.policy = Some(policy.clone());
        Some(Fact::Policy(Box::new(policy)))
    }

    fn publish(&self, state: SourceState, detail: String) {
        let records = self.rules.as_ref().map_or(0, |rules| rules.exceptions.len());
        let health = SourceHealth { state, detail, records, errors: self.errors };
        self.health.send_if_modified(|current| {
            let changed = *current != health;
            *current = health;
            changed
        });
    }
}

impl Surroundings {
    /// Those of this node.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let proc = ProcFs::new(&config.proc_root);
        Self { host_root: config.host_root.clone(), proc, clock: WallClock::now }
    }

    /// Which files on the host these paths name; those that name none are left out.
    #[must_use]
    pub fn find(&self, paths: Vec<PathBuf>) -> Identities {
        if paths.is_empty() {
            return Identities::new();
        }
        let found = Runtimes::new(&self.host_root, paths.clone(), self.proc.clone()).find();
        // a directory would be searched for runtimes
        let named = found.runtimes.into_iter().filter(|it| paths.contains(&it.path));
        named.map(|it| (it.path, it.image)).collect()
    }
}
