//! docs/coverage.md: what is rehearsed, what stops it and who sees it.

use super::cell;
use crate::core::rules::{ATTACK_VERSION, rule};
use crate::simulate::{Detection, Technique, techniques};

/// The page.
pub(super) fn page() -> String {
    let mut page = format!(
        "# Coverage\n\n\
        What an intruder with root in a pod tries in order to reach the host, whether a user namespace stops it, and \
        whether the agent tells of it when it was stopped. `userns-agent simulate run --all` tries each of these in a \
        pod, without harm; the node tests hold that what is told below to be seen is seen. Technique ids are those of \
        MITRE ATT&CK {ATTACK_VERSION}.\n\n\
        An attempt that succeeded although it must be stopped is another matter: rules I1 to I7 tell of its \
        consequences, whatever way it took ([rules.md](rules.md)).\n\n\
        What seccomp refuses never gets as far as the checks that the agent hooks: with a profile such as \
        `RuntimeDefault`, fewer attempts are seen, as fewer are made.\n\n\
        | Technique | What it is | ATT&CK | Stopped by a user namespace | Seen by |\n|---|---|---|---|---|\n"
    );
    for technique in techniques() {
        let Technique { name, title, known, attack, stopped, detection, .. } = technique;
        let known = if known.is_empty() { String::new() } else { format!(": {known}") };
        page.push_str(&format!(
            "| [{name}](#{name}) | {}{} | {} {} | {} | {} |\n",
            cell(title),
            cell(&known),
            attack.0,
            attack.1,
            stopped.name(),
            seen_by(detection)
        ));
    }
    for technique in techniques() {
        page.push_str(&section(technique));
    }
    page
}

fn seen_by(detection: &Detection) -> String {
    let link = detection.rule().map(|id| format!("[{}](rules.md#{})", rule(id).id, rule(id).name));
    match (link, detection) {
        (Some(link), Detection::Sometimes(..)) => format!("{link}, sometimes"),
        (Some(link), Detection::By(..) | Detection::Nobody(_)) => link,
        (None, _) => "nobody".to_owned(),
    }
}

fn section(technique: &Technique) -> String {
    let Technique { name, attempts, with_userns, without_userns, detection, harmless, .. } = technique;
    let signs = detection.signs().iter().filter_map(|sign| sign.name());
    let signs: Vec<_> = signs.map(|name| format!("`{name}`")).collect();
    let lists =
        if signs.is_empty() { String::new() } else { format!(", which lists {}", signs.join(" or ")) };
    let seen = match detection {
        Detection::By(..) => format!("by {}{lists}", seen_by(detection)),
        Detection::Sometimes(id, _, when) => format!("by {}{lists}, {when}", rule(*id).id),
        Detection::Nobody(why) => format!("not: {why}"),
    };
    let only = if *harmless { "" } else { " It is tried in user namespaces alone." };
    format!(
        "\n## {name}\n\n{attempts}{only}\n\n\
        - In a user namespace: {with_userns}.\n\
        - Without: {without_userns}.\n\
        - Seen: {seen}.\n"
    )
}
