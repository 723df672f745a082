//! What `check-config` says of the rules: what is in force, what differs from what is built in, and which exceptions
//! are of no use any more. Comments of YAML, as they follow the configuration.

use std::path::Path;
use std::time::SystemTime;

use super::{Exception, Identities, RuleSet, RulesError, Setting, Surroundings, load};
use crate::config::Config;
use crate::config::value::cut;
use crate::core::rules::{self, RuleId};
use crate::ps::known::{self, KnownException};

/// Characters shown of a text.
const SHOWN: usize = 512;

/// Reads the rules file of `config`, asks the running agent, and says what there is to say.
///
/// # Errors
///
/// [`RulesError`], with every mistake at once.
pub fn check(path: &Path, config: &Config) -> Result<String, RulesError> {
    let rules = load(path)?;
    let agent = match &config.socket {
        Some(socket) => known::ask_exceptions(socket).map_err(|error| error.to_string()),
        None => Err("there is no socket to ask the agent by".to_owned()),
    };
    let found = Surroundings::of(config).find(rules.executables());
    let agent = agent.as_ref().map(Vec::as_slice).map_err(String::as_str);
    Ok(report(path, &rules, &found, agent, SystemTime::now()))
}

/// The rules of the file at `path` as they are in force at `now`. `found` are the programs that this node has, `agent`
/// what the running agent says of its exceptions, or why it does not.
#[must_use]
pub fn report(
    path: &Path,
    rules: &RuleSet,
    found: &Identities,
    agent: Result<&[KnownException], &str>,
    now: SystemTime,
) -> String {
    let mut text = format!("# Rules, by {}:\n", cut(&path.display().to_string(), SHOWN));
    let rows = RuleId::ALL.iter().map(|id| row(*id, rules.rules.iter().find(|it| it.rule == *id)));
    let header = ["RULE", "NAME", "SEVERITY", "OTHER THAN BUILT IN"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    for [id, name, severity, change] in &rows {
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let (first, second, third) = (width(0), width(1), width(2));
        let line = format!("#   {id:first$}  {name:second$}  {severity:third$}  {change}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    if rules.exceptions.is_empty() {
        text.push_str("# Exceptions: none\n");
        return text;
    }
    text.push_str("# Exceptions:\n");
    for exception in &rules.exceptions {
        text.push_str(&about(exception, found, agent, now));
    }
    text
}

fn row(id: RuleId, setting: Option<&Setting>) -> [String; 4] {
    let rule = rules::rule(id);
    let mut changes = Vec::new();
    let mut severity = rule.severity.name().to_owned();
    if let Some(setting) = setting {
        if !setting.enabled {
            severity = "off".to_owned();
            changes.push("turned off".to_owned());
        } else if let Some(wanted) = setting.severity {
            severity = wanted.name().to_owned();
            if wanted == rule.severity {
                changes.push("of this severity in every case".to_owned());
            } else {
                changes.push(format!("severity, built in: {}", rule.severity.name()));
            }
        }
        if let Some(count) = setting.threshold.filter(|count| *count > 1 && setting.enabled) {
            changes.push(format!("told from {count} uses on"));
        }
    }
    [rule.id.to_owned(), rule.name.to_owned(), severity, changes.join("; ")]
}

fn about(
    exception: &Exception,
    found: &Identities,
    agent: Result<&[KnownException], &str>,
    now: SystemTime,
) -> String {
    let list = |what: &str, of: Vec<String>| (!of.is_empty()).then(|| format!("{what} {}", of.join(", ")));
    let labels = exception.match_labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let paths = exception.executables.iter().map(|path| path.display().to_string()).collect();
    let rules: Vec<_> = exception.rules.iter().map(|id| rules::rule(*id).id).collect();
    let selected = [
        list("namespaces", exception.namespaces.clone()),
        list("labels", labels),
        list("service accounts", exception.service_accounts.clone()),
        list("images", exception.images.clone()),
        list("executables", paths),
    ];
    let selected: Vec<_> = selected.into_iter().flatten().collect();
    let title = format!("{} from {}: {}", exception.name, rules.join(", "), cut(&selected.join("; "), SHOWN));
    let mut lines = vec![cut(&exception.reason, SHOWN)];
    let missing = exception.executables.iter().filter(|path| !found.contains_key(*path));
    lines.extend(
        missing.map(|path| format!("{} is not on this node", cut(&path.display().to_string(), SHOWN))),
    );
    let end = exception.expires.map(humantime::format_rfc3339_seconds);
    lines.push(match (end, exception.expires.is_some_and(|end| end <= now)) {
        (Some(end), true) => format!("EXPIRED at {end}: it withholds nothing"),
        (Some(end), false) => format!("in force until {end}"),
        (None, _) => "in force without end".to_owned(),
    });
    lines.push(match agent.map(|known| known.iter().find(|known| known.name == exception.name)) {
        Err(why) => format!("what it has withheld is not known: {}", cut(why, SHOWN)),
        Ok(None) => "the running agent does not have it".to_owned(),
        Ok(Some(KnownException { matched: 0, .. })) => {
            "UNMATCHED: it has withheld nothing since the agent started".to_owned()
        }
        Ok(Some(known)) => {
            let last = known.last_match.as_deref().unwrap_or("an unknown time");
            format!("has withheld {} detections since the agent started, the last at {last}", known.matched)
        }
    });
    let mut text = format!("#   {title}\n");
    text.extend(lines.iter().map(|line| format!("#     {line}\n")));
    text
}
