//! The repository's own rules, checked by reading its files.
//!
//! A rule is a function from a file's path and text to what is wrong with it, so that each is tested on a
//! violating sample beside its definition; the tests here apply the rules to the repository.

mod arrows;
mod commands;
mod files;
mod hygiene;
mod manifests;
mod source;

use files::File;

/// Applies `rule` to every file that `choose` accepts, and fails with all that is wrong.
///
/// A rule that finds no file to guard fails too: the file it was written for has moved.
fn enforce(choose: impl Fn(&str) -> bool, rule: impl Fn(&File) -> Vec<String>) {
    let files = files::all().unwrap_or_else(|error| panic!("the repository is not readable: {error}"));
    let mut chosen = files.iter().filter(|file| choose(&file.path)).peekable();
    assert!(chosen.peek().is_some(), "this rule guards no file any more: adapt it to the new layout");
    let wrong: Vec<_> = chosen.flat_map(rule).collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

fn is_rust(path: &str) -> bool {
    path.ends_with(".rs")
}

fn is_agent(path: &str) -> bool {
    is_rust(path) && path.starts_with("userns-agent/src/")
}

#[test]
fn pure_modules_do_no_io_and_read_no_clock() {
    for pure in arrows::PURE {
        enforce(|path| is_agent(path) && arrows::is_in(path, pure), arrows::impure);
    }
}

#[test]
fn modules_of_the_agent_import_along_the_arrows() {
    enforce(is_agent, arrows::against_the_arrows);
}

#[test]
fn only_the_kernel_module_imports_aya() {
    enforce(is_agent, arrows::aya_outside_kernel);
}

#[test]
fn only_task_rs_follows_kernel_pointers() {
    enforce(
        |path| is_rust(path) && path.starts_with("userns-ebpf/src/") && path != arrows::KERNEL_READER,
        arrows::kernel_reads,
    );
    enforce(|path| path == arrows::KERNEL_READER, |_| Vec::new());
}

#[test]
fn crates_depend_along_the_arrows() {
    enforce(manifests::is_member, manifests::against_the_arrows);
}

#[test]
fn every_rust_file_says_what_it_is() {
    enforce(is_rust, hygiene::lacks_module_doc);
}

#[test]
fn files_and_functions_are_short() {
    enforce(is_rust, hygiene::too_long);
}

#[test]
fn nothing_is_left_for_later() {
    enforce(is_rust, hygiene::unfinished);
}

#[test]
fn no_package_registry_is_named() {
    enforce(|path| !path.ends_with("Cargo.lock"), hygiene::names_a_registry);
}

#[test]
fn commands_in_the_documentation_exist() {
    enforce(|path| path.ends_with(".md"), commands::unknown);
}
