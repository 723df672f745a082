//! The pure core: inputs are values, outputs are values.
//!
//! [`Engine::handle`] takes records, facts and ticks in the order they are learnt and says what is broken. It
//! reads no clock, no file and no kernel, and walks its tables in a fixed order, so the same inputs give the
//! same findings, byte for byte.
#![forbid(unsafe_code)]

mod context;
mod earlier;
mod engine;
pub mod finding;
pub mod flight;
mod open;
mod pattern;
mod pods;
mod policy;
pub mod range;
pub mod rules;
mod spans;
mod state;
mod view;
pub mod windows;
mod withheld;

pub use context::{Context, Unobservable};
pub use engine::{Engine, Limits, Output, Stats};
pub use pods::{Pod, Promise};
pub use policy::{ExceptionView, Reason, Tally, has_threshold, names_a_program};
pub use state::Container;
pub use view::PodView;
pub use withheld::Withheld;
