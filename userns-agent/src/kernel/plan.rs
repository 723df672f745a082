//! Which hook is attached by which mechanism: one table, decided without touching the kernel.

use std::collections::{BTreeMap, BTreeSet};

use userns_common::kind::Hook;

/// A way to attach to a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mechanism {
    /// A raw tracepoint whose arguments the verifier knows the types of.
    TpBtf,
    /// The return of a kernel function, whose arguments the verifier knows the types of.
    FExit,
    /// A tracepoint through perf events.
    Tracepoint,
    /// A task iterator.
    Iterator,
}

impl Mechanism {
    /// The name used in metrics and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::FExit => "fexit",
            Self::Tracepoint => "tracepoint",
            Self::Iterator => "iter",
        }
    }
}

/// What the running kernel offers. Filled by [`super::features`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Argument types of the tracepoints in type information, by name.
    pub typed_tracepoints: BTreeMap<String, Vec<String>>,
    /// Argument types of the functions in type information, by name.
    pub functions: BTreeMap<String, Vec<String>>,
    /// Events of tracefs, as `category/name`; `None` if tracefs cannot be read.
    pub events: Option<BTreeSet<String>>,
    /// Iterators in type information, by target.
    pub iterators: BTreeSet<String>,
}

/// A program for a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name in the object.
    pub program: &'static str,
    /// How it attaches.
    pub mechanism: Mechanism,
    /// To what: a tracepoint's name, `category/name`, or an iterator's target.
    pub target: &'static str,
    /// Types of the arguments the program was written for (`TP_PROTO`). More of them at the end do no harm.
    pub prototype: &'static [&'static str],
}

/// A hook, what is lost without it, and the programs for it by preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The hook.
    pub hook: Hook,
    /// What the agent cannot see without it.
    pub without: &'static str,
    /// Programs, best first.
    pub candidates: &'static [Candidate],
}

const fn typed(target: &'static str, prototype: &'static [&'static str]) -> Candidate {
    Candidate { program: target, mechanism: Mechanism::TpBtf, target, prototype }
}

const fn at_return(
    program: &'static str,
    target: &'static str,
    prototype: &'static [&'static str],
) -> Candidate {
    Candidate { program, mechanism: Mechanism::FExit, target, prototype }
}

const fn event(program: &'static str, target: &'static str) -> Candidate {
    Candidate { program, mechanism: Mechanism::Tracepoint, target, prototype: &[] }
}

/// Every hook, in the order of attachment.
pub const HOOKS: &[Wanted] = &[
    Wanted {
        hook: Hook::CgroupMkdir,
        without: "containers are found by the walk of cgroupfs only, seconds after their start",
        candidates: &[typed("cgroup_mkdir", &["struct cgroup *", "char *"])],
    },
    Wanted {
        hook: Hook::CgroupRmdir,
        without: "ended containers are forgotten by the walk of cgroupfs only",
        candidates: &[typed("cgroup_rmdir", &["struct cgroup *", "char *"])],
    },
    Wanted {
        hook: Hook::NewTask,
        without: "children are known from the next sweep on, not from birth",
        candidates: &[typed(
            "task_newtask",
            &["struct task_struct *", "u64|unsigned long|long unsigned int"],
        )],
    },
    Wanted {
        hook: Hook::CgroupAttach,
        without: "processes moved into a pod are seen by the next sweep only",
        candidates: &[typed(
            "cgroup_attach_task",
            &["struct cgroup *", "char *", "struct task_struct *", "bool|_Bool"],
        )],
    },
    Wanted {
        hook: Hook::Exec,
        without: "a container's first program is seen by the next sweep only",
        candidates: &[typed(
            "sched_process_exec",
            &["struct task_struct *", "pid_t|int", "struct linux_binprm *"],
        )],
    },
    Wanted {
        hook: Hook::Exit,
        without: "an escape that ends at once can be missed",
        candidates: &[typed("sched_process_exit", &["struct task_struct *"])],
    },
    Wanted {
        hook: Hook::Capable,
        without: "use and denial of capabilities is not seen",
        candidates: &[
            typed(
                "cap_capable",
                &["struct cred *", "struct user_namespace *", "struct user_namespace *", "int", "int"],
            ),
            at_return(
                "cap_capable_return",
                "cap_capable",
                &["struct cred *", "struct user_namespace *", "int", "unsigned int"],
            ),
        ],
    },
    Wanted {
        hook: Hook::Setns,
        without: "setns is not explained; its effect is seen at the next hook",
        candidates: &[event("sys_exit_setns", "syscalls/sys_exit_setns")],
    },
    Wanted {
        hook: Hook::Unshare,
        without: "unshare is not explained; its effect is seen at the next hook",
        candidates: &[event("sys_exit_unshare", "syscalls/sys_exit_unshare")],
    },
    Wanted {
        hook: Hook::MountSetattr,
        without: "id-mapped mounts made by pods are not seen",
        candidates: &[event("sys_exit_mount_setattr", "syscalls/sys_exit_mount_setattr")],
    },
    Wanted {
        hook: Hook::OpenTreeAttr,
        without: "nothing on kernels before 6.15, which lack the call; else id-mapped mounts made by it",
        candidates: &[event("sys_exit_open_tree_attr", "syscalls/sys_exit_open_tree_attr")],
    },
    Wanted {
        hook: Hook::TaskIter,
        without: "processes that ran before the agent, and changes no hook saw, are not found",
        candidates: &[Candidate {
            program: "sweep",
            mechanism: Mechanism::Iterator,
            target: "task",
            prototype: &[],
        }],
    },
];

/// What to do about one hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The hook.
    pub hook: Hook,
    /// What is lost without it.
    pub without: &'static str,
    /// The candidate chosen, or why there is none.
    pub choice: Result<Candidate, String>,
}

/// Decides for every hook.
#[must_use]
pub fn plan(features: &Features) -> Vec<Planned> {
    HOOKS.iter().map(|wanted| decide(wanted, features)).collect()
}

fn decide(wanted: &Wanted, features: &Features) -> Planned {
    let mut reasons = Vec::new();
    for candidate in wanted.candidates {
        match usable(candidate, features) {
            Ok(()) => {
                return Planned { hook: wanted.hook, without: wanted.without, choice: Ok(*candidate) };
            }
            Err(reason) => reasons.push(reason),
        }
    }
    Planned { hook: wanted.hook, without: wanted.without, choice: Err(reasons.join("; ")) }
}

fn usable(candidate: &Candidate, features: &Features) -> Result<(), String> {
    let target = candidate.target;
    match candidate.mechanism {
        Mechanism::TpBtf => {
            let found = features
                .typed_tracepoints
                .get(target)
                .ok_or_else(|| format!("this kernel has no tracepoint {target}"))?;
            matches_prototype(candidate.prototype, found)
                .map_err(|problem| format!("tracepoint {target}: {problem}"))
        }
        Mechanism::FExit => {
            let found = features
                .functions
                .get(target)
                .ok_or_else(|| format!("this kernel has no function {target}"))?;
            // the return value stands behind the last argument, so their number must be right
            let exact = found.len() == candidate.prototype.len();
            let matched = matches_prototype(candidate.prototype, found);
            let counted = if exact { Ok(()) } else { Err(format!("has {} arguments", found.len())) };
            matched.and(counted).map_err(|problem| format!("function {target}: {problem}"))
        }
        Mechanism::Tracepoint => {
            let events =
                features.events.as_ref().ok_or("tracefs is not readable: mount it at /sys/kernel/tracing")?;
            if events.contains(target) { Ok(()) } else { Err(format!("this kernel has no event {target}")) }
        }
        Mechanism::Iterator => {
            if features.iterators.contains(target) {
                Ok(())
            } else {
                Err(format!("this kernel has no {target} iterator"))
            }
        }
    }
}

fn matches_prototype(expected: &[&str], found: &[String]) -> Result<(), String> {
    for (index, expected) in expected.iter().enumerate() {
        match found.get(index) {
            Some(found) if expected.split('|').any(|alternative| alternative == found) => {}
            Some(found) => {
                return Err(format!("argument {index} is `{found}`, the program expects `{expected}`"));
            }
            None => return Err(format!("has {} arguments, the program expects more", found.len())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Features {
        let mut features = Features { events: Some(BTreeSet::new()), ..Features::default() };
        for candidate in HOOKS.iter().flat_map(|wanted| wanted.candidates) {
            let target = candidate.target.to_owned();
            match candidate.mechanism {
                Mechanism::TpBtf => {
                    let first = |types: &&str| types.split('|').next().unwrap().to_owned();
                    features
                        .typed_tracepoints
                        .insert(target, candidate.prototype.iter().map(first).collect());
                }
                Mechanism::FExit => {
                    features.functions.insert(
                        target,
                        candidate.prototype.iter().map(|types| (*types).to_owned()).collect(),
                    );
                }
                Mechanism::Tracepoint => {
                    features.events.as_mut().unwrap().insert(target);
                }
                Mechanism::Iterator => {
                    features.iterators.insert(target);
                }
            }
        }
        features
    }

    fn choice(features: &Features, hook: Hook) -> Result<Candidate, String> {
        plan(features).into_iter().find(|planned| planned.hook == hook).unwrap().choice
    }

    #[test]
    fn a_kernel_with_everything_gets_every_hook_once() {
        let planned = plan(&full());
        assert!(planned.iter().all(|planned| planned.choice.is_ok()), "{planned:?}");
        let hooks: BTreeSet<Hook> = planned.iter().map(|planned| planned.hook).collect();
        assert_eq!(hooks.into_iter().collect::<Vec<_>>(), Hook::ALL);
    }

    #[test]
    fn what_is_missing_is_said() {
        let mut features = full();
        features.typed_tracepoints.remove("cap_capable");
        features.events = None;
        assert_eq!(choice(&features, Hook::Capable).unwrap().mechanism, Mechanism::FExit);
        features.functions.clear();
        assert_eq!(
            choice(&features, Hook::Capable).unwrap_err(),
            "this kernel has no tracepoint cap_capable; this kernel has no function cap_capable"
        );
        assert!(choice(&features, Hook::Setns).unwrap_err().contains("mount it at /sys/kernel/tracing"));
        assert!(choice(&features, Hook::Exec).is_ok());
    }

    #[test]
    fn a_changed_prototype_degrades_the_hook_instead_of_misreading_arguments() {
        let mut features = full();
        let arguments = vec!["struct task_struct *".to_owned(), "struct linux_binprm *".to_owned()];
        features.typed_tracepoints.insert("sched_process_exec".to_owned(), arguments);
        assert!(choice(&features, Hook::Exec).unwrap_err().contains("argument 1 is `struct linux_binprm *`"));
        features.typed_tracepoints.insert("sched_process_exec".to_owned(), Vec::new());
        assert!(choice(&features, Hook::Exec).unwrap_err().contains("has 0 arguments"));
    }

    #[test]
    fn a_function_with_one_argument_more_is_refused() {
        let mut features = full();
        features.typed_tracepoints.remove("cap_capable");
        features.functions.get_mut("cap_capable").unwrap().push("int".to_owned());
        assert!(choice(&features, Hook::Capable).unwrap_err().contains("has 5 arguments"));
    }

    #[test]
    fn more_arguments_at_the_end_do_no_harm() {
        let mut features = full();
        features.typed_tracepoints.get_mut("sched_process_exit").unwrap().push("bool".to_owned());
        assert!(choice(&features, Hook::Exit).is_ok());
    }
}
