//! Which hook is attached by which mechanism: one decision, made without touching the kernel.

use std::collections::{BTreeMap, BTreeSet};

use userns_common::kind::Hook;

use super::hooks::HOOKS;

/// A way to attach to a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mechanism {
    /// A raw tracepoint whose arguments the verifier knows the types of.
    TpBtf,
    /// The return of a kernel function, whose arguments the verifier knows the types of.
    FExit,
    /// A probe at the return of a kernel function, and at its entry where the arguments are needed.
    KProbe,
    /// A tracepoint through perf events.
    Tracepoint,
    /// A task iterator.
    Iterator,
}

impl Mechanism {
    /// The name used in metrics, JSON and flags.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::FExit => "fexit",
            Self::KProbe => "kprobe",
            Self::Tracepoint => "tracepoint",
            Self::Iterator => "iter",
        }
    }
}

/// A prototype: types in C, without qualifiers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Function {
    /// Of the arguments.
    pub arguments: Vec<String>,
    /// Of the result.
    pub returns: String,
}

/// What the running kernel offers. Filled by [`super::features`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Tracepoints in type information, by name.
    pub typed_tracepoints: BTreeMap<String, Function>,
    /// Functions in type information, by name.
    pub functions: BTreeMap<String, Function>,
    /// Events of tracefs, as `category/name`; `None` if tracefs cannot be read.
    pub events: Option<BTreeSet<String>>,
    /// Iterators in type information, by target.
    pub iterators: BTreeSet<String>,
    /// Whether functions can be probed.
    pub kprobes: bool,
}

/// Programs for a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// How they attach.
    pub mechanism: Mechanism,
    /// Their names in the object. All of them are needed.
    pub programs: &'static [&'static str],
    /// To what: a tracepoint's or function's name, `category/name`, or an iterator's target.
    pub target: &'static str,
    /// Types of the arguments that the programs were written for, `|` between names of the same type. More of them at
    /// the end of a tracepoint's do no harm.
    pub arguments: &'static [&'static str],
    /// Type of the result.
    pub returns: &'static str,
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

/// What to do about one hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The hook.
    pub hook: Hook,
    /// What is lost without it.
    pub without: &'static str,
    /// Candidates that this kernel should take, best first.
    pub candidates: Vec<Candidate>,
    /// Why others are left out.
    pub refused: Vec<String>,
}

/// Decides for every hook. `only` leaves a hook that has candidates of this mechanism no others.
#[must_use]
pub fn plan(features: &Features, only: Option<Mechanism>) -> Vec<Planned> {
    HOOKS.iter().map(|wanted| decide(wanted, features, only)).collect()
}

fn decide(wanted: &Wanted, features: &Features, only: Option<Mechanism>) -> Planned {
    let offers = |only: &Mechanism| wanted.candidates.iter().any(|known| known.mechanism == *only);
    let only = only.filter(offers);
    let Wanted { hook, without, .. } = *wanted;
    let mut planned = Planned { hook, without, candidates: Vec::new(), refused: Vec::new() };
    for candidate in wanted.candidates {
        if only.is_some_and(|only| only != candidate.mechanism) {
            continue;
        }
        match usable(candidate, features) {
            Ok(()) => planned.candidates.push(*candidate),
            Err(reason) if planned.refused.contains(&reason) => {}
            Err(reason) => planned.refused.push(reason),
        }
    }
    planned
}

fn usable(candidate: &Candidate, features: &Features) -> Result<(), String> {
    let target = candidate.target;
    match candidate.mechanism {
        Mechanism::TpBtf => {
            let found = features
                .typed_tracepoints
                .get(target)
                .ok_or_else(|| format!("this kernel has no tracepoint {target}"))?;
            arguments_match(candidate.arguments, &found.arguments)
                .map_err(|problem| format!("tracepoint {target}: {problem}"))
        }
        Mechanism::KProbe if !features.kprobes => Err("this kernel has no kprobes".to_owned()),
        Mechanism::FExit | Mechanism::KProbe => {
            let found = features
                .functions
                .get(target)
                .ok_or_else(|| format!("this kernel has no function {target} that can be hooked"))?;
            function_matches(candidate, found).map_err(|problem| format!("function {target}: {problem}"))
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

fn function_matches(candidate: &Candidate, found: &Function) -> Result<(), String> {
    arguments_match(candidate.arguments, &found.arguments)?;
    // the result stands behind the last argument, so their number must be right
    let (has, expects) = (found.arguments.len(), candidate.arguments.len());
    if has != expects {
        return Err(format!("has {has} arguments, the program expects {expects}"));
    }
    if !is(candidate.returns, &found.returns) {
        return Err(format!("returns `{}`, the program expects `{}`", found.returns, candidate.returns));
    }
    Ok(())
}

fn is(expected: &str, found: &str) -> bool {
    expected.split('|').any(|alternative| alternative == found)
}

fn arguments_match(expected: &[&str], found: &[String]) -> Result<(), String> {
    for (index, expected) in expected.iter().enumerate() {
        match found.get(index) {
            Some(found) if is(expected, found) => {}
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
        let mut features = Features { events: Some(BTreeSet::new()), kprobes: true, ..Features::default() };
        for candidate in HOOKS.iter().flat_map(|wanted| wanted.candidates) {
            let target = candidate.target.to_owned();
            let first = |types: &str| types.split('|').next().unwrap().to_owned();
            let arguments = candidate.arguments.iter().map(|types| first(types)).collect();
            let function = Function { arguments, returns: first(candidate.returns) };
            match candidate.mechanism {
                Mechanism::TpBtf => drop(features.typed_tracepoints.insert(target, function)),
                Mechanism::FExit | Mechanism::KProbe => drop(features.functions.insert(target, function)),
                Mechanism::Tracepoint => drop(features.events.as_mut().unwrap().insert(target)),
                Mechanism::Iterator => drop(features.iterators.insert(target)),
            }
        }
        features
    }

    fn of(features: &Features, only: Option<Mechanism>, hook: Hook) -> Planned {
        plan(features, only).into_iter().find(|planned| planned.hook == hook).unwrap()
    }

    fn mechanisms(planned: &Planned) -> Vec<Mechanism> {
        planned.candidates.iter().map(|candidate| candidate.mechanism).collect()
    }

    #[test]
    fn a_kernel_with_everything_gets_every_hook_once() {
        let planned = plan(&full(), None);
        assert!(planned.iter().all(|planned| planned.refused.is_empty()), "{planned:?}");
        let hooks: BTreeSet<Hook> = planned.iter().map(|planned| planned.hook).collect();
        assert_eq!(hooks.into_iter().collect::<Vec<_>>(), Hook::ALL);
    }

    #[test]
    fn candidates_stand_in_the_order_of_preference() {
        assert!(plan(&full(), None).iter().all(|planned| mechanisms(planned).is_sorted()));
        let all = |hook| mechanisms(&of(&full(), None, hook));
        assert_eq!(all(Hook::Capable), [Mechanism::TpBtf, Mechanism::FExit, Mechanism::KProbe]);
        assert_eq!(all(Hook::Setns), [Mechanism::FExit, Mechanism::KProbe, Mechanism::Tracepoint]);
    }

    #[test]
    fn a_mechanism_is_forced_where_there_is_a_program_for_it() {
        let forced = |hook| mechanisms(&of(&full(), Some(Mechanism::KProbe), hook));
        assert_eq!(forced(Hook::Capable), [Mechanism::KProbe]);
        assert_eq!(forced(Hook::Exec), [Mechanism::TpBtf]);
        let mut features = full();
        features.functions.clear();
        let capable = of(&features, Some(Mechanism::KProbe), Hook::Capable);
        assert!(capable.candidates.is_empty() && capable.refused.len() == 1, "{capable:?}");
    }

    #[test]
    fn what_is_missing_is_said() {
        let mut features = full();
        features.typed_tracepoints.remove("cap_capable");
        features.events = None;
        let capable = of(&features, None, Hook::Capable);
        assert_eq!(mechanisms(&capable), [Mechanism::FExit, Mechanism::KProbe]);
        assert_eq!(capable.refused, ["this kernel has no tracepoint cap_capable"]);
        let setns = of(&features, None, Hook::Setns);
        assert!(setns.refused[0].contains("mount it at /sys/kernel/tracing"), "{setns:?}");
        features.kprobes = false;
        assert_eq!(mechanisms(&of(&features, None, Hook::Capable)), [Mechanism::FExit]);
        let forced = of(&features, Some(Mechanism::KProbe), Hook::Capable);
        assert_eq!(forced.refused, ["this kernel has no kprobes"]);
    }

    #[test]
    fn a_changed_prototype_degrades_the_hook_instead_of_misreading_arguments() {
        let mut features = full();
        let refused = |features: &Features, hook| of(features, None, hook).refused.join("; ");
        let exec = features.typed_tracepoints.get_mut("sched_process_exec").unwrap();
        exec.arguments = vec!["struct task_struct *".to_owned(), "struct linux_binprm *".to_owned()];
        assert!(refused(&features, Hook::Exec).contains("argument 1 is `struct linux_binprm *`"));
        features.typed_tracepoints.get_mut("sched_process_exec").unwrap().arguments.clear();
        assert!(refused(&features, Hook::Exec).contains("has 0 arguments"));
        features.functions.get_mut("cap_capable").unwrap().arguments.push("int".to_owned());
        assert!(refused(&features, Hook::Capable).contains("has 5 arguments"));
        features.functions.get_mut("commit_creds").unwrap().returns = "void".to_owned();
        assert!(refused(&features, Hook::CommitCreds).contains("returns `void`"));
    }

    #[test]
    fn more_arguments_at_the_end_of_a_tracepoint_do_no_harm() {
        let mut features = full();
        features.typed_tracepoints.get_mut("sched_process_exit").unwrap().arguments.push("bool".to_owned());
        assert!(of(&features, None, Hook::Exit).refused.is_empty());
    }
}
