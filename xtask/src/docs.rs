//! `cargo xtask docs`: the reference pages that the agent writes about itself.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::{process, steps::Steps, workspace::Workspace};

const PAGES: [&str; 5] = ["metrics.md", "config.md", "coverage.md", "events.md", "rules.md"];

/// Regenerates `docs/`; with `check`, fails instead if a page is out of date.
///
/// # Errors
///
/// When the agent cannot write its pages, or one differs.
pub fn docs(steps: &mut Steps, workspace: &Workspace, check: bool) -> Result<()> {
    let pages = workspace.root().join("docs");
    if !check {
        return steps.step("docs", "the agent describes its rules, events, metrics and settings", || {
            generate(workspace, &pages)
        });
    }
    steps.step("docs", "the pages in docs/ are those the agent would write", || {
        let fresh = workspace.target().join("docs-check");
        generate(workspace, &fresh)?;
        let read = |dir: &Path, page: &str| {
            let path = dir.join(page);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        for page in PAGES {
            if read(&pages, page)? != read(&fresh, page)? {
                bail!("docs/{page} is out of date: run `cargo xtask docs`");
            }
        }
        Ok(())
    })
}

fn generate(workspace: &Workspace, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    process::run(workspace.cargo("run").args(["--quiet", "--package", "userns-agent", "--", "docs"]).arg(dir))
}
