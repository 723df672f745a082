//! The table is complete, and verdicts are what the outcomes say.

use std::collections::BTreeSet;

use super::*;
use crate::core::rules;

#[test]
fn every_technique_says_everything() {
    for technique in techniques() {
        let Technique { name, title, attack, attempts, with_userns, without_userns, .. } = technique;
        assert!(name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')), "{name}");
        for text in [title, &attack.0, &attack.1, attempts, with_userns, without_userns] {
            assert!(!text.is_empty() && !text.contains("  "), "{name}: {text:?}");
        }
        assert!(attack.0.starts_with('T') && attempts.ends_with('.'), "{name}");
        let is_sentence = |text: &&str| !text.is_empty() && !text.contains("  ") && !text.ends_with('.');
        assert!(technique.detection.reservation().as_ref().is_none_or(is_sentence), "{name}");
    }
    let names: BTreeSet<_> = techniques().map(|technique| technique.name).collect();
    assert_eq!(names.len(), techniques().count(), "a name is there twice");
}

#[test]
fn who_sees_a_technique_exists_and_says_so_by_signs_that_it_has() {
    for technique in techniques() {
        let Some(rule) = technique.detection.rule() else { continue };
        assert!(rules::RuleId::ALL.contains(&rule), "{}", technique.name);
        assert!(!technique.detection.signs().is_empty(), "{}", technique.name);
        for sign in technique.detection.signs() {
            let known = match sign {
                Sign::Capability(name) | Sign::During(name, _) => {
                    let number = userns_common::caps::NAMES.iter().position(|known| known == name);
                    // what is not an attempt raises no finding
                    number.is_some_and(|number| {
                        userns_common::caps::holds(userns_common::caps::ATTEMPTS, number as u32)
                    })
                }
                Sign::Finding => true,
                Sign::Call(name) | Sign::Done(name) => {
                    let operations = userns_common::kind::Operation::ALL.iter();
                    operations.into_iter().any(|operation| operation.name() == *name)
                }
            };
            assert!(known, "{}: {sign:?}", technique.name);
        }
    }
}

#[test]
fn only_what_must_be_stopped_breaks_the_promise() {
    let denied = Outcome::Denied { errno: libc::EPERM, call: "x".into() };
    let killed = Outcome::Killed { signal: libc::SIGSYS };
    let reach = Outcome::OutOfReach("x".into());
    for (outcome, stopped, promised, verdict) in [
        (&Outcome::Allowed, Stopped::Yes, true, Verdict::Broken),
        (&Outcome::Allowed, Stopped::Partly, true, Verdict::NotPromised),
        (&Outcome::Allowed, Stopped::No, true, Verdict::NotPromised),
        (&Outcome::Allowed, Stopped::Yes, false, Verdict::NoPromise),
        (&denied, Stopped::Yes, true, Verdict::AsPromised),
        (&killed, Stopped::No, true, Verdict::AsPromised),
        (&reach, Stopped::Yes, true, Verdict::Unknown),
        (&Outcome::TimedOut, Stopped::Yes, true, Verdict::Unknown),
        (&denied, Stopped::Yes, false, Verdict::NoPromise),
    ] {
        assert_eq!(Verdict::of(outcome, stopped, promised), verdict, "{outcome:?} {stopped:?} {promised}");
    }
}

fn row(outcome: Outcome, seen: Seen) -> Row {
    let technique = techniques().find(|technique| technique.name == "kexec").unwrap();
    let verdict = Verdict::of(&outcome, technique.stopped, true);
    Row { technique, outcome, verdict, seen }
}

#[test]
fn what_is_broken_stands_out() {
    let rows = [
        row(Outcome::Denied { errno: libc::EPERM, call: "kexec_load".into() }, Seen::Seen),
        row(Outcome::Allowed, Seen::Nothing),
        row(Outcome::Killed { signal: libc::SIGSYS }, Seen::NotSeen),
    ];
    let readings = Readings { user: 7, uid_map: vec![(0, 65_536, 65_536)], ..Readings::default() };
    let table = render::table(&rows, &readings, Standing::UserNamespace);
    let lines: Vec<_> = table.lines().collect();
    for (line, parts) in [
        (1, &["kexec", "denied EPERM", "as promised", "I11 seen", "kexec_load"][..]),
        (2, &["allowed", "NOT as promised"]),
        (4, &["should be: EPERM"]),
        (5, &["killed by seccomp", "I11 NOT seen"]),
        (7, &["in a user namespace (7)", "2 as promised, 1 NOT as promised"]),
    ] {
        assert!(parts.iter().all(|part| lines[line].contains(part)), "{line}: {table}");
    }
    let json = render::json(&rows, &readings, Standing::UserNamespace);
    assert_eq!(json["broken"], true);
    assert_eq!(json["techniques"][0]["outcome"]["errno"], "EPERM");
    assert_eq!(json["techniques"][0]["agent"], "seen");
    assert_eq!(json["techniques"][2]["outcome"]["signal"], libc::SIGSYS);
    assert_eq!(json["place"]["uid_map"][0]["parent"], 65_536);
}
