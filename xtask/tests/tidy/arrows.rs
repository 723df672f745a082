//! Which module may use what, inside the agent and inside the kernel programs.

use crate::{
    files::File,
    source::{Source, has_word},
};

/// Modules and files whose output depends on their input alone.
pub(crate) const PURE: [&str; 6] = ["core", "decode", "event", "kernel/plan", "kernel/btf", "cgroup"];

/// The only file of the kernel side that follows kernel pointers.
pub(crate) const KERNEL_READER: &str = "userns-ebpf/src/task.rs";

const IMPURE: [&str; 12] = [
    "aya",
    "aya_log",
    "aya_obj",
    "tokio",
    "std::fs",
    "std::net",
    "std::process",
    "Instant::now",
    "SystemTime::now",
    "unsafe",
    "HashMap",
    "HashSet",
];

/// What a module of the agent may import from the others.
enum Imports {
    Only(&'static [&'static str]),
    Never(&'static [&'static str]),
}

const ARROWS: [(&str, Imports); 7] = [
    ("event", Imports::Only(&["event"])),
    ("decode", Imports::Only(&["event", "core", "decode"])),
    ("core", Imports::Only(&["cgroup", "event", "core", "decode"])),
    ("kernel", Imports::Never(&["host", "sink", "core"])),
    ("host", Imports::Never(&["kernel", "sink"])),
    ("sink", Imports::Never(&["kernel", "host"])),
    ("policy", Imports::Never(&["kernel", "app"])),
];

/// The modules that wire the others together.
const SHELL: [&str; 3] = ["app", "main", "lib"];

/// Whether `path` is the file or lies in the directory of the agent's module `module`.
pub(crate) fn is_in(path: &str, module: &str) -> bool {
    let rest = path.strip_prefix("userns-agent/src/").and_then(|path| path.strip_prefix(module));
    rest.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// I/O, clocks, unordered collections and unsafe code in a pure module.
pub(crate) fn impure(file: &File) -> Vec<String> {
    words(file, &IMPURE, "a pure module has no")
}

/// Imports of the eBPF library outside the module that is there to hide it.
pub(crate) fn aya_outside_kernel(file: &File) -> Vec<String> {
    if is_in(&file.path, "kernel") {
        return Vec::new();
    }
    words(file, &["aya", "aya_log", "aya_obj"], "only kernel/ uses")
}

/// Kernel memory read outside `task.rs`.
pub(crate) fn kernel_reads(file: &File) -> Vec<String> {
    let reads = |line: &str| line.contains("bpf_probe_read") || has_word(line, "read_kernel");
    let statements = Source::new(&file.text).statements();
    let reading = statements.iter().filter(|(_, line)| reads(line));
    reading.map(|(number, _)| file.at(*number, "only task.rs follows kernel pointers")).collect()
}

/// Imports between modules of the agent that the architecture rules out.
pub(crate) fn against_the_arrows(file: &File) -> Vec<String> {
    let own = own_module(&file.path);
    let imports = imports(file);
    let rule = ARROWS.iter().find(|(module, _)| *module == own).map(|(_, rule)| rule);
    let allowed = |module: &str| match rule {
        Some(Imports::Only(modules)) => modules.contains(&module),
        Some(Imports::Never(modules)) => !modules.contains(&module),
        None => true,
    };
    let wrong = imports.iter().filter(|(_, module)| !allowed(module));
    let mut wrong: Vec<_> =
        wrong.map(|(line, module)| file.at(*line, &format!("{own} may not import {module}"))).collect();
    let sees = |module: &str| imports.iter().find(|(_, imported)| imported == module);
    if !SHELL.contains(&own.as_str())
        && let (Some((line, _)), Some(_)) = (sees("kernel"), sees("sink"))
    {
        wrong.push(file.at(*line, "only app sees both ends, kernel and sink"));
    }
    wrong
}

fn words(file: &File, words: &[&str], message: &str) -> Vec<String> {
    let statements = Source::new(&file.text).statements();
    let found = statements.iter().flat_map(|(number, line)| {
        words.iter().filter(|word| has_word(line, word)).map(move |word| (*number, *word))
    });
    found.map(|(number, word)| file.at(number, &format!("{message} `{word}`"))).collect()
}

fn own_module(path: &str) -> String {
    let inner = path.strip_prefix("userns-agent/src/").unwrap_or(path);
    inner.split(['/', '.']).next().unwrap_or_default().to_owned()
}

/// The top-level modules a file names after `crate::`, or after `super::` where that is the crate's root.
fn imports(file: &File) -> Vec<(usize, String)> {
    let own = own_module(&file.path);
    let at_the_top = [format!("{own}.rs"), format!("{own}/mod.rs")]
        .iter()
        .any(|place| file.path == format!("userns-agent/src/{place}"));
    let mut imports = Vec::new();
    for (number, line) in Source::new(&file.text).statements() {
        let after = |root: &str| line.split(root).skip(1).map(first_identifier).collect::<Vec<_>>();
        let mut modules = after("crate::");
        if at_the_top && !line.contains("super::super::") {
            modules.extend(after("super::"));
        }
        imports
            .extend(modules.into_iter().filter(|module| !module.is_empty()).map(|module| (number, module)));
    }
    imports
}

fn first_identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(path: &str, text: &str) -> File {
        File::sample(&format!("userns-agent/src/{path}"), text)
    }

    #[test]
    fn impurities_are_caught() {
        let text = "#![forbid(unsafe_code)]\n// HashMap in a comment\nuse std::{collections::HashMap, fs};\n\
                    let t = Instant::now();\nunsafe { f() }\n";
        let found = impure(&agent("core/mod.rs", text));
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(found[0], "userns-agent/src/core/mod.rs:3: a pure module has no `HashMap`");
        assert_eq!(impure(&agent("core/mod.rs", "use std::collections::BTreeMap;\n")), [""; 0]);
    }

    #[test]
    fn the_core_knows_no_shell() {
        let sample = agent("core/rules/a.rs", "use crate::{event::Id, host::proc};\n");
        assert_eq!(against_the_arrows(&sample).len(), 1);
        let sample =
            agent("decode.rs", "fn f() {\n    crate::kernel::load();\n    super::host::read();\n}\n");
        assert_eq!(against_the_arrows(&sample).len(), 2);
        let sample = agent("core/a.rs", "use crate::core::b;\nuse crate::event::Id;\nuse super::host;\n");
        assert_eq!(against_the_arrows(&sample), [""; 0]);
    }

    #[test]
    fn the_ends_do_not_know_each_other() {
        for (path, text) in [
            ("sink/json.rs", "use crate::kernel::Ring;"),
            ("sink/mod.rs", "use super::host::Pod;"),
            ("host/mod.rs", "use crate::{sink, event};"),
            ("kernel/load.rs", "use crate::core::Engine;"),
            ("config.rs", "use crate::kernel;\nuse crate::sink;"),
        ] {
            assert_eq!(against_the_arrows(&agent(path, text)).len(), 1, "{path}");
        }
        let everything = "use crate::{core, host, kernel, sink};";
        assert_eq!(against_the_arrows(&agent("app.rs", everything)), [""; 0]);
        assert_eq!(against_the_arrows(&agent("app/reload.rs", everything)), [""; 0]);
    }

    #[test]
    fn aya_stays_in_kernel() {
        assert_eq!(aya_outside_kernel(&agent("config.rs", "use aya::Ebpf;")).len(), 1);
        assert_eq!(aya_outside_kernel(&agent("kernel/load.rs", "use aya::Ebpf;")), [""; 0]);
    }

    #[test]
    fn kernel_memory_is_read_in_one_place() {
        let text = "use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_probe_read_kernel};\nlet x = read_kernel(p);\n";
        assert_eq!(kernel_reads(&File::sample("userns-ebpf/src/emit.rs", text)).len(), 2);
        let comment = File::sample("userns-ebpf/src/emit.rs", "// bpf_probe_read_kernel is in task.rs\n");
        assert_eq!(kernel_reads(&comment), [""; 0]);
    }

    #[test]
    fn a_module_is_a_file_or_a_directory() {
        assert!(
            is_in("userns-agent/src/core/mod.rs", "core") && is_in("userns-agent/src/decode.rs", "decode")
        );
        assert!(!is_in("userns-agent/src/core_dump.rs", "core") && !is_in("xtask/src/core/mod.rs", "core"));
    }
}
