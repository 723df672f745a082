//! The building blocks of `cargo xtask`, shared by the command line and the node tests.
//!
//! Automation only: no crate of the workspace is linked in here, and none links this one. Every step runs an
//! ordinary command that one could type oneself.
//!
//! | module | |
//! | --- | --- |
//! | [`cli`] | the commands and their flags |
//! | [`workspace`] | where things are; `cargo` with a clean environment |
//! | [`setup`] | the tools a build needs: compiler, linker, `core`'s source |
//! | [`build`] | eBPF object, then the agent that embeds it |
//! | [`run`], [`bench`](mod@bench), [`docs`], [`fuzz`], [`image`](mod@image), [`quality`](mod@quality), [`test`](mod@test), [`vm`] | one command each |
//! | [`lab`] | real containers for the node tests |
//! | [`debian`], [`process`], [`steps`] | shared helpers |

#![expect(clippy::print_stdout, reason = "a command-line tool")]

pub mod bench;
pub mod build;
pub mod cli;
pub mod debian;
pub mod demo;
pub mod docs;
pub mod fuzz;
pub mod image;
pub mod lab;
pub mod process;
pub mod quality;
pub mod run;
pub mod setup;
pub mod steps;
pub mod test;
pub mod vm;
pub mod workspace;
