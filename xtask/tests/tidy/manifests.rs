//! Which crate may depend on which.

use crate::files::File;

/// Each member with the members it may depend on.
const ARROWS: [(&str, &[&str]); 4] = [
    ("userns-common", &[]),
    ("userns-ebpf", &["userns-common"]),
    ("userns-agent", &["userns-common"]),
    ("xtask", &[]),
];

/// The crate that the kernel programs share, so it depends on nothing at all.
const CONTRACT: &str = "userns-common";

/// Whether `path` is the manifest of a workspace member.
pub(crate) fn is_member(path: &str) -> bool {
    path.strip_suffix("/Cargo.toml").is_some_and(|dir| !dir.contains('/') && dir != "fuzz")
}

/// Dependencies between members that the architecture rules out.
pub(crate) fn against_the_arrows(file: &File) -> Vec<String> {
    let own = file.path.trim_end_matches("/Cargo.toml");
    let manifest: toml::Table = match file.text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![file.at(1, &format!("no valid manifest: {error}"))],
    };
    let Some((_, allowed)) = ARROWS.iter().find(|(member, _)| *member == own) else {
        return vec![file.at(1, "a new crate: give it a row in this rule")];
    };
    let dependencies = dependencies(&manifest);
    let is_member = |name: &str| ARROWS.iter().any(|(member, _)| *member == name);
    let wrong = dependencies.iter().filter(|name| {
        if own == CONTRACT { true } else { is_member(name) && !allowed.contains(&name.as_str()) }
    });
    let mut wrong: Vec<_> =
        wrong.map(|name| file.at(1, &format!("{own} may not depend on {name}"))).collect();
    let absent = allowed.iter().filter(|name| !dependencies.iter().any(|dependency| dependency == *name));
    wrong.extend(absent.map(|name| file.at(1, &format!("{own} does not use the contract {name}"))));
    wrong
}

/// The packages in every dependency table: normal, dev, build, and those of a target.
fn dependencies(manifest: &toml::Table) -> Vec<String> {
    let mut names = Vec::new();
    for (key, value) in manifest {
        let Some(table) = value.as_table() else { continue };
        if key.ends_with("dependencies") {
            let renamed = |value: &toml::Value| Some(value.get("package")?.as_str()?.to_owned());
            names.extend(table.iter().map(|(name, value)| renamed(value).unwrap_or_else(|| name.clone())));
        } else if key == "target" {
            names.extend(table.values().filter_map(toml::Value::as_table).flat_map(dependencies));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(own: &str, text: &str) -> Vec<String> {
        against_the_arrows(&File::sample(&format!("{own}/Cargo.toml"), text))
    }

    #[test]
    fn the_contract_depends_on_nothing() {
        assert_eq!(check("userns-common", "[package]\nname = \"userns-common\"\n"), [""; 0]);
        for table in
            ["dependencies", "dev-dependencies", "build-dependencies", "target.'cfg(unix)'.dependencies"]
        {
            assert_eq!(check("userns-common", &format!("[{table}]\nlibc = \"0.2\"\n")).len(), 1, "{table}");
        }
    }

    #[test]
    fn members_depend_on_the_contract_only() {
        let common = "[dependencies]\nuserns-common = { workspace = true }\naya = \"1\"\n";
        assert_eq!(check("userns-agent", common), [""; 0]);
        assert_eq!(check("userns-ebpf", &format!("{common}userns-agent = {{ path = \"x\" }}\n")).len(), 1);
        assert_eq!(check("userns-ebpf", "[dependencies]\n").len(), 1);
        assert_eq!(check("xtask", common).len(), 1);
        let renamed = "[dependencies]\nhelper = { package = \"userns-agent\", path = \"x\" }\n";
        assert_eq!(check("xtask", renamed).len(), 1);
        assert_eq!(check("userns-new", "").len(), 1);
    }
}
