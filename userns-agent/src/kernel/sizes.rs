//! How large the maps are: from the node's memory and CPUs.

/// Containers that the smallest node may have.
const LEAST_CONTAINERS: u64 = 1024;
/// Memory that a container with its pod takes at least: two processes, page tables, cgroups.
const BYTES_PER_CONTAINER: u64 = 8 << 20;
const LEAST_EVIDENCE: u64 = 512 << 10;
const LEAST_BULK: u64 = 1 << 20;
/// An agent that starts is told of each container at once, a record of 1.6 KiB, and reads meanwhile.
const EVIDENCE_PER_CONTAINER: u64 = 1 << 10;
const BULK_PER_CPU: u64 = 512 << 10;
const MOST_EVIDENCE: u64 = 8 << 20;
const MOST_BULK: u64 = 16 << 20;

/// What a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Bytes of memory.
    pub memory: u64,
    /// CPUs.
    pub cpus: u64,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn this() -> Self {
        let info = rustix::system::sysinfo();
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { memory: info.totalram as u64 * u64::from(info.mem_unit.max(1)), cpus: cpus as u64 }
    }
}

/// Sizes of the maps.
///
/// With `C` containers, the memory divided by 8 MiB, at least 1024 and at most the configured `max_containers`:
/// 4 C watched cgroups (a pod's directory, its containers, and what these make below), C budgets, 4 C rows of counted
/// operations, C user namespaces. The evidence ring has 1 KiB a container (512 KiB to 8 MiB), the bulk ring 512 KiB a CPU (1 to 16 MiB),
/// both rounded up to a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Watched cgroups.
    pub cgroups: u32,
    /// Budgets of containers.
    pub budgets: u32,
    /// User namespaces of pods.
    pub userns: u32,
    /// Rows of the aggregation table.
    pub aggregates: u32,
    /// Bytes of the ring for evidence.
    pub evidence: u32,
    /// Bytes of the ring for everything else.
    pub bulk: u32,
}

impl Sizes {
    /// For a machine and the most containers that are to be tracked.
    #[must_use]
    pub fn new(machine: Machine, max_containers: u64) -> Self {
        let containers = (machine.memory / BYTES_PER_CONTAINER).max(LEAST_CONTAINERS).min(max_containers);
        let ring = |bytes: u64, least: u64, most: u64| to_u32(bytes.clamp(least, most).next_power_of_two());
        Self {
            cgroups: to_u32(containers.saturating_mul(4)),
            budgets: to_u32(containers),
            userns: to_u32(containers),
            aggregates: to_u32(containers.saturating_mul(4)),
            evidence: ring(containers.saturating_mul(EVIDENCE_PER_CONTAINER), LEAST_EVIDENCE, MOST_EVIDENCE),
            bulk: ring(machine.cpus.saturating_mul(BULK_PER_CPU), LEAST_BULK, MOST_BULK),
        }
    }

    /// By map.
    #[must_use]
    pub fn entries(&self) -> [(&'static str, u32); 6] {
        [
            ("CGROUPS", self.cgroups),
            ("BUDGETS", self.budgets),
            ("USERNS", self.userns),
            ("AGGREGATES", self.aggregates),
            ("EVIDENCE", self.evidence),
            ("BULK", self.bulk),
        ]
    }
}

fn to_u32(size: u64) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_grow_with_the_node_and_have_bounds() {
        let small = Sizes::new(Machine { memory: 1 << 30, cpus: 1 }, 8192);
        let expected = Sizes {
            cgroups: 4096,
            budgets: 1024,
            userns: 1024,
            aggregates: 4096,
            evidence: 1 << 20,
            bulk: 1 << 20,
        };
        assert_eq!(small, expected);
        let large = Sizes::new(Machine { memory: 1 << 40, cpus: 256 }, 8192);
        assert_eq!((large.budgets, large.evidence, large.bulk), (8192, 8 << 20, 16 << 20));
        let odd = Sizes::new(Machine { memory: 24 << 30, cpus: 12 }, 8192);
        assert_eq!((odd.budgets, odd.evidence, odd.bulk), (3072, 4 << 20, 8 << 20));
    }

    #[test]
    fn the_configured_bound_wins() {
        let sizes = Sizes::new(Machine { memory: 1 << 40, cpus: 4 }, 64);
        assert_eq!((sizes.budgets, sizes.evidence), (64, 512 << 10));
    }
}
