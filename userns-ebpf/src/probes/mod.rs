//! The programs, one hook family a file.

mod capable;
mod cgroups;
mod lifecycle;
mod namespaces;
mod sweep;
