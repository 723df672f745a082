//! The programs, one hook family a file.

mod capable;
mod cgroups;
mod changes;
mod lifecycle;
mod namespaces;
mod sweep;
