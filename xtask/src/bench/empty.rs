//! Programs that do nothing, attached to capability checks: what a hook costs by itself.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, FExit, KProbe, TracePoint},
};

const TARGET: &str = "cap_capable";
const CATEGORY: &str = "capability";

/// A kind of hook, by the name that the agent gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mechanism {
    /// Raw tracepoint with typed arguments.
    TpBtf,
    /// The function's return, through a trampoline.
    FExit,
    /// The function's entry and return, as breakpoints or through ftrace.
    Kprobe,
    /// Tracepoint through perf events.
    Tracepoint,
}

impl Mechanism {
    pub(super) const ALL: [Self; 4] = [Self::TpBtf, Self::FExit, Self::Kprobe, Self::Tracepoint];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::FExit => "fexit",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
        }
    }

    /// Attaches the empty program of the object file `object`; it is detached with the value.
    ///
    /// # Errors
    ///
    /// When the kernel does not offer the hook.
    pub(super) fn attach(self, object: &Path) -> Result<Ebpf> {
        let mut ebpf =
            Ebpf::load_file(object).with_context(|| format!("cannot load {}", object.display()))?;
        let btf = || Btf::from_sys_fs().context("the kernel has no BTF");
        match self {
            Self::TpBtf => {
                let program: &mut BtfTracePoint = find(&mut ebpf, "empty_tp_btf")?.try_into()?;
                program.load(TARGET, &btf()?)?;
                program.attach()?;
            }
            Self::FExit => {
                let program: &mut FExit = find(&mut ebpf, "empty_fexit")?.try_into()?;
                program.load(TARGET, &btf()?)?;
                program.attach()?;
            }
            Self::Kprobe => {
                for name in ["empty_kprobe", "empty_kretprobe"] {
                    let program: &mut KProbe = find(&mut ebpf, name)?.try_into()?;
                    program.load()?;
                    program.attach(TARGET, 0)?;
                }
            }
            Self::Tracepoint => {
                let program: &mut TracePoint = find(&mut ebpf, "empty_tracepoint")?.try_into()?;
                program.load()?;
                program.attach(CATEGORY, TARGET)?;
            }
        }
        Ok(ebpf)
    }
}

fn find<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::programs::Program> {
    ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))
}
