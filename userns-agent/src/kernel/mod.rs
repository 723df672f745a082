//! Everything that talks to the kernel's BPF subsystem. The only module that knows aya.

pub mod btf;
pub mod features;
pub mod hooks;
pub mod lineages;
pub mod load;
pub mod object;
pub mod plan;
pub mod programs;
pub mod ring;
pub mod sizes;
pub mod status;
