//! The walk of cgroupfs: registers pods' cgroups with the kernel and tells the core.

use std::collections::HashMap;

use userns_common::record::WatchedCgroup;

use super::setup::Clock;
use crate::config::Config;
use crate::event::{Cgroup, CgroupId, Fact, role};
use crate::host::cgroupfs::CgroupFs;
use crate::host::proc::ProcFs;
use crate::host::runtimes::Runtimes;
use crate::host::{SourceHealth, SourceState};
use crate::kernel::load::Loaded;

/// What a walk needs.
pub(super) struct Walker {
    cgroups: CgroupFs,
    runtimes: Runtimes,
    /// How the last walk went.
    pub(super) health: SourceHealth,
}

impl Walker {
    pub(super) fn new(cgroups: CgroupFs, config: &Config) -> Self {
        Self {
            cgroups,
            runtimes: Runtimes::new(
                &config.host_root,
                config.runtime_paths.clone(),
                ProcFs::new(&config.proc_root),
            ),
            health: SourceHealth::default(),
        }
    }

    /// Walks once. Each directory is registered before its children are listed: a child made in between is
    /// registered by the kernel's own hook, one made before is met by the walk.
    pub(super) fn walk(&mut self, loaded: &mut Loaded, clock: Clock) -> Vec<Fact> {
        let started = clock.now();
        let runtimes = self.runtimes.find();
        let mut facts = vec![runtimes.fact(), runtimes.monitors()];
        let mut above = Above::default();
        let mut refused = 0;
        let walked = self.cgroups.walk(|cgroup| {
            let watched =
                WatchedCgroup { role: cgroup.role, told: 0, container: above.container_of(&cgroup).0 };
            let same =
                |known: WatchedCgroup| (known.role, known.container) == (watched.role, watched.container);
            if !loaded.watched(cgroup.id).is_some_and(same) && loaded.watch(cgroup.id, watched).is_err() {
                refused += 1;
            }
            if cgroup.role != role::NESTED {
                facts.push(Fact::CgroupSeen(cgroup));
            }
        });
        self.health.records = facts.len() - 2;
        (self.health.state, self.health.detail) = match walked {
            Ok(_) if refused > 0 => {
                self.health.errors += refused;
                (SourceState::Failing, format!("the kernel's table refused {refused} cgroups: it is full"))
            }
            Ok(_) => {
                facts.push(Fact::CgroupWalkDone { started });
                (SourceState::Ok, String::new())
            }
            Err(error) => {
                self.health.errors += 1;
                (SourceState::Failing, error.to_string())
            }
        };
        facts
    }
}

/// The containers that a walk has met: directories come before what is below them, but not next to that.
#[derive(Default)]
struct Above(HashMap<String, CgroupId>);

impl Above {
    fn container_of(&mut self, cgroup: &Cgroup) -> CgroupId {
        let path = cgroup.path.as_str();
        if cgroup.role == role::NESTED {
            let mut ancestors = path.rmatch_indices('/').map(|(end, _)| &path[..end]);
            return ancestors.find_map(|above| self.0.get(above).copied()).unwrap_or(cgroup.id);
        }
        if cgroup.role == role::CONTAINER {
            self.0.insert(path.to_owned(), cgroup.id);
        }
        cgroup.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(id: u64, role: u32, path: &str) -> Cgroup {
        Cgroup { id: CgroupId(id), role, path: path.into() }
    }

    #[test]
    fn what_lies_below_a_container_belongs_to_it() {
        let mut above = Above::default();
        for (id, role, path, expected) in [
            (1, role::POD, "/p", 1),
            (2, role::CONTAINER, "/p/c", 2),
            (3, role::NESTED, "/p/c/x", 2),
            (4, role::NESTED, "/p/c/x/y", 2),
            (5, role::CONTAINER, "/p/cc", 5),
            (6, role::NESTED, "/p/cc/x", 5),
            // all containers of a pod are listed before what is below the first of them
            (8, role::NESTED, "/p/c/z", 2),
            (7, role::NESTED, "/p/ccc/x", 7),
        ] {
            assert_eq!(above.container_of(&cgroup(id, role, path)), CgroupId(expected), "{path}");
        }
    }
}
