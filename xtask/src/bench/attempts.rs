//! A container whose only process attempts what it is denied, as often as it is told: for tests.

use std::{path::Path, time::Duration};

use anyhow::Result;

use super::{operation::Operation, worker::Worker};
use crate::lab::{ContainerSpec, IdRange, Pod, RuntimeName};

/// A container that asks for `CAP_SYS_ADMIN` over the host.
#[derive(Debug)]
pub struct Attempts(Worker);

impl Attempts {
    /// In a container of `pod` with a user namespace of `range`. `program` is the statically linked one, and `dir` a
    /// new directory whose ancestors are open to every user.
    ///
    /// # Errors
    ///
    /// When the container cannot be run.
    pub fn new(program: &Path, dir: &Path, pod: &Pod, range: IdRange) -> Result<Self> {
        let mapping = Some(range.mapping());
        let spec = ContainerSpec { runtime: RuntimeName::Crun, mapping, ..ContainerSpec::default() };
        Ok(Self(Worker::in_pod(program, dir, pod, spec)?))
    }

    /// Begins with `count` attempts, and does not wait.
    ///
    /// # Errors
    ///
    /// When it cannot be told.
    pub fn begin(&mut self, count: u32) -> Result<()> {
        self.0.begin(Operation::HostCheck, count)
    }

    /// Waits for the end of those begun; returns the CPU time they took.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn finish(&mut self) -> Result<Duration> {
        self.0.finish()
    }
}
