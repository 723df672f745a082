//! Every hook, with the programs for it by preference and the prototypes they were written for.

use userns_common::kind::Hook;

use super::plan::{Candidate, Mechanism, Wanted};

/// Name of the function behind a system call (arch/*/include/asm/syscall_wrapper.h).
macro_rules! syscall {
    ($name:literal) => {
        if cfg!(target_arch = "aarch64") {
            concat!("__arm64_sys_", $name)
        } else {
            concat!("__x64_sys_", $name)
        }
    };
}

/// Ways to hook the return of a function.
macro_rules! at_return {
    ($name:literal, $target:expr, $arguments:expr, $returns:expr $(, $more:expr)?) => {
        &[
            Candidate {
                mechanism: Mechanism::FExit,
                programs: &[concat!($name, "_fexit")],
                target: $target,
                arguments: $arguments,
                returns: $returns,
            },
            Candidate {
                mechanism: Mechanism::KProbe,
                programs: &[concat!($name, "_kretprobe")],
                target: $target,
                arguments: $arguments,
                returns: $returns,
            },
            $($more)?
        ]
    };
}

/// Ways to hook the return of a system call.
macro_rules! call {
    ($name:literal) => {
        at_return!(
            $name,
            syscall!($name),
            &["struct pt_regs *"],
            "long|long int",
            Candidate {
                mechanism: Mechanism::Tracepoint,
                programs: &[concat!($name, "_tracepoint")],
                target: concat!("syscalls/sys_exit_", $name),
                arguments: &[],
                returns: "",
            }
        )
    };
}

/// A tracepoint whose program has its name.
const fn tracepoint(programs: &'static [&'static str; 1], arguments: &'static [&'static str]) -> Candidate {
    Candidate { mechanism: Mechanism::TpBtf, programs, target: programs[0], arguments, returns: "void" }
}

const CAP_CAPABLE: Candidate = Candidate {
    mechanism: Mechanism::FExit,
    programs: &["cap_capable_fexit"],
    target: "cap_capable",
    arguments: &["struct cred *", "struct user_namespace *", "int", "unsigned int"],
    returns: "int",
};

/// Every hook, in the order of attachment.
pub const HOOKS: &[Wanted] = &[
    Wanted {
        hook: Hook::CgroupMkdir,
        without: "containers are found by the walk of cgroupfs only, seconds after their start",
        candidates: &[tracepoint(&["cgroup_mkdir"], &["struct cgroup *", "char *"])],
    },
    Wanted {
        hook: Hook::CgroupRmdir,
        without: "ended containers are forgotten by the walk of cgroupfs only",
        candidates: &[tracepoint(&["cgroup_rmdir"], &["struct cgroup *", "char *"])],
    },
    Wanted {
        hook: Hook::NewTask,
        without: "children are known from the next sweep on, not from birth",
        candidates: &[tracepoint(
            &["task_newtask"],
            &["struct task_struct *", "u64|unsigned long|long unsigned int"],
        )],
    },
    Wanted {
        hook: Hook::CgroupAttach,
        without: "processes moved into a pod are seen by the next sweep only",
        candidates: &[tracepoint(
            &["cgroup_attach_task"],
            &["struct cgroup *", "char *", "struct task_struct *", "bool|_Bool"],
        )],
    },
    Wanted {
        hook: Hook::Exec,
        without: "a container's first program is seen by the next sweep only",
        candidates: &[tracepoint(
            &["sched_process_exec"],
            &["struct task_struct *", "pid_t|int", "struct linux_binprm *"],
        )],
    },
    Wanted {
        hook: Hook::Exit,
        without: "an escape that ends at once can be missed",
        candidates: &[tracepoint(&["sched_process_exit"], &["struct task_struct *"])],
    },
    Wanted {
        hook: Hook::Capable,
        without: "use and denial of capabilities is not seen",
        candidates: &[
            tracepoint(
                &["cap_capable"],
                &["struct cred *", "struct user_namespace *", "struct user_namespace *", "int", "int"],
            ),
            CAP_CAPABLE,
            Candidate {
                mechanism: Mechanism::KProbe,
                programs: &["cap_capable_kretprobe", "cap_capable_kprobe"],
                ..CAP_CAPABLE
            },
        ],
    },
    Wanted {
        hook: Hook::CommitCreds,
        without: "forged credentials are seen at the next thing the process does or by the sweep, not at once",
        candidates: at_return!("commit_creds", "commit_creds", &["struct cred *"], "int"),
    },
    Wanted {
        hook: Hook::SwitchNamespaces,
        without: "forged namespaces are seen at the next thing the process does or by the sweep, not at once",
        candidates: at_return!(
            "switch_task_namespaces",
            "switch_task_namespaces",
            &["struct task_struct *", "struct nsproxy *"],
            "void"
        ),
    },
    Wanted {
        hook: Hook::Setns,
        without: "setns is not explained; its effect is seen at the next hook",
        candidates: call!("setns"),
    },
    Wanted {
        hook: Hook::Unshare,
        without: "unshare is not explained; its effect is seen at the next hook",
        candidates: call!("unshare"),
    },
    Wanted {
        hook: Hook::MountSetattr,
        without: "id-mapped mounts made by pods are not seen",
        candidates: call!("mount_setattr"),
    },
    Wanted {
        hook: Hook::OpenTreeAttr,
        without: "nothing on kernels before 6.15, which lack the call; else id-mapped mounts made by it",
        candidates: call!("open_tree_attr"),
    },
    Wanted {
        hook: Hook::Chdir,
        without: "a working directory on the host is seen at the next program or by the sweep, not at once",
        candidates: call!("chdir"),
    },
    Wanted {
        hook: Hook::Fchdir,
        without: "a working directory on the host is seen at the next program or by the sweep, not at once",
        candidates: call!("fchdir"),
    },
    Wanted {
        hook: Hook::TaskIter,
        without: "sweeps read /proc instead: processes that ran before the agent, and changes no hook saw, are found \
                  later, and only by processes' first threads",
        candidates: &[Candidate {
            mechanism: Mechanism::Iterator,
            programs: &["sweep"],
            target: "task",
            arguments: &[],
            returns: "",
        }],
    },
];
