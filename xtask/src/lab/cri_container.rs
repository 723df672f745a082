//! Containers run through the CRI.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::{
    cgroup,
    containerd::Daemon,
    cri::messages::{
        ContainerState, ContainerStatusResponse, Empty, ExecSyncRequest, ExecSyncResponse, Id, Int64Value,
        KeyValue, LinuxContainerResources, Mount, MountPropagation, StopContainerRequest,
    },
    pod::Pod,
};

/// In seconds; an emulated processor needs some.
const EXEC_TIMEOUT: i64 = 60;
/// Of the processor's time, in microseconds: kubelet's.
const CPU_PERIOD: i64 = 100_000;
/// Least shares and quota that the kernel takes.
const LEAST: (i64, i64) = (2, 1000);

/// What a container of a [`CriPod`](super::CriPod) is to be like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CriContainerSpec {
    /// Its name in the pod.
    pub name: String,
    /// The image; `None` for the lab's own, which has a shell.
    pub image: Option<String>,
    /// Program and arguments in place of the image's own; that of the lab's image sleeps.
    pub command: Vec<String>,
    /// Arguments for the image's own program.
    pub args: Vec<String>,
    /// Names and values.
    pub env: Vec<(String, String)>,
    /// Capabilities beside containerd's default set, such as `SYS_ADMIN`; `ALL` for all.
    pub capabilities: Vec<String>,
    /// All capabilities and devices, and nothing hidden or read-only below `/proc` and `/sys`.
    pub privileged: bool,
    /// Whether it cannot write to the image's files.
    pub read_only_root: bool,
    /// `runAsUser`; `None` for the image's.
    pub user: Option<i64>,
    /// `runAsGroup`; `None` for the image's.
    pub group: Option<i64>,
    /// Volumes below `/run/volumes` by their names, and where they are mounted, with the pod's ids.
    pub volumes: Vec<(String, String)>,
    /// Whether it has the node's packages at `/usr`, read-only, as files of the pod's root.
    pub packages: bool,
    /// Directories of the node.
    pub mounts: Vec<CriMount>,
    /// Which container's PID namespace it joins, as an ephemeral container does.
    pub target: Option<String>,
    /// Limits, where the machine can limit.
    pub resources: Option<CriResources>,
    /// Whether what it writes is kept, for [`CriContainer::log`].
    pub logged: bool,
}

/// A directory of the node in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CriMount {
    /// Where the node has it.
    pub host_path: String,
    /// Where the container has it.
    pub container_path: String,
    /// Whether the container cannot write to it.
    pub read_only: bool,
    /// Whether the container sees what the node mounts below it later, and loses what the node unmounts.
    pub follows_host: bool,
}

/// What a container may use. 0 stands for no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CriResources {
    /// Thousandths of a processor that it gets when all want one.
    pub cpu_request: i64,
    /// Thousandths of a processor.
    pub cpu_limit: i64,
    /// Bytes.
    pub memory_limit: i64,
    /// How soon it is killed when the node runs out of memory, from -1000 to 1000.
    pub oom_score_adj: i64,
}

impl From<&CriMount> for Mount {
    fn from(mount: &CriMount) -> Self {
        let propagation =
            if mount.follows_host { MountPropagation::HostToContainer } else { MountPropagation::Private };
        Self {
            container_path: mount.container_path.clone(),
            host_path: mount.host_path.clone(),
            readonly: mount.read_only,
            propagation: propagation.into(),
            ..Self::default()
        }
    }
}

impl From<CriResources> for LinuxContainerResources {
    /// As kubelet does it (`MilliCPUToShares`, `MilliCPUToQuota`).
    fn from(of: CriResources) -> Self {
        let unless_none = |amount: i64, value: i64| if amount == 0 { 0 } else { value };
        Self {
            cpu_period: unless_none(of.cpu_limit, CPU_PERIOD),
            cpu_quota: unless_none(of.cpu_limit, (of.cpu_limit * CPU_PERIOD / 1000).max(LEAST.1)),
            cpu_shares: unless_none(of.cpu_request, (of.cpu_request * 1024 / 1000).max(LEAST.0)),
            memory_limit_in_bytes: of.memory_limit,
            oom_score_adj: of.oom_score_adj,
        }
    }
}

impl From<i64> for Int64Value {
    fn from(value: i64) -> Self {
        Self { value }
    }
}

impl From<(String, String)> for KeyValue {
    fn from((key, value): (String, String)) -> Self {
        Self { key, value }
    }
}

/// A container of a [`CriPod`](super::CriPod). Dropping it stops and removes it.
#[derive(Debug)]
pub struct CriContainer {
    pub(super) id: String,
    pub(super) pod: Pod,
    pub(super) daemon: Arc<Daemon>,
    /// Where its log is on the host.
    pub(super) log: Option<PathBuf>,
}

/// What a program run by [`CriContainer::exec`] came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

/// What a container has written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CriLog {
    /// Complete lines of its standard output.
    pub stdout: Vec<String>,
    /// Complete lines of its standard error.
    pub stderr: Vec<String>,
}

impl CriLog {
    /// Reads the CRI's format: time, stream, tags (`P`: the line goes on with the next one), and what was written.
    fn parse(text: &str) -> Result<Self> {
        let mut log = Self::default();
        let (mut out, mut err) = (String::new(), String::new());
        // a line without an end is still being written
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let mut fields = line.splitn(4, ' ').skip(1);
            let (stream, tags, part) = (fields.next(), fields.next(), fields.next());
            let (lines, begun) = match stream {
                Some("stdout") => (&mut log.stdout, &mut out),
                Some("stderr") => (&mut log.stderr, &mut err),
                _ => bail!("no line of a container's log: {line:?}"),
            };
            begun.push_str(part.with_context(|| format!("a line of a container's log is cut: {line:?}"))?);
            if tags.is_some_and(|tags| tags.split(':').any(|tag| tag == "F")) {
                lines.push(std::mem::take(begun));
            }
        }
        Ok(log)
    }
}

impl CriContainer {
    /// The container ID: 64 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The container's cgroup.
    #[must_use]
    pub fn cgroup_dir(&self) -> PathBuf {
        self.pod.cgroup_dir().join(&self.id)
    }

    /// Runs `args` in the container and waits for it: what an exec probe does.
    ///
    /// # Errors
    ///
    /// When containerd refuses, or the program takes longer than a minute. A failure of the program shows in the code.
    pub fn exec(&self, args: &[&str]) -> Result<ExecOutput> {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: args.iter().copied().map(str::to_owned).collect(),
            timeout: EXEC_TIMEOUT,
        };
        let ended: ExecSyncResponse = self.daemon.call("RuntimeService/ExecSync", request)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(ExecOutput { code: ended.exit_code, stdout: text(&ended.stdout), stderr: text(&ended.stderr) })
    }

    /// What it has written until now.
    ///
    /// # Errors
    ///
    /// When it was not to be kept, or cannot be read.
    pub fn log(&self) -> Result<CriLog> {
        let path = self.log.as_ref().context("the container's output is not kept")?;
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        CriLog::parse(&String::from_utf8_lossy(&text))
    }

    /// Kills it, as kubelet does with a container without a grace period.
    ///
    /// # Errors
    ///
    /// When containerd refuses.
    pub fn stop(&self) -> Result<()> {
        self.stop_within(Duration::ZERO)
    }

    /// Sends SIGTERM, and SIGKILL after `grace`; returns when it has ended.
    ///
    /// # Errors
    ///
    /// When containerd refuses.
    pub fn stop_within(&self, grace: Duration) -> Result<()> {
        let timeout = i64::try_from(grace.as_secs()).context("that is no grace period")?;
        let request = StopContainerRequest { container_id: self.id.clone(), timeout };
        self.daemon.call::<_, Empty>("RuntimeService/StopContainer", request).map(drop)
    }

    /// Kills its first process behind containerd's back.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn kill(&self) -> Result<()> {
        cgroup::kill(&self.cgroup_dir())
    }

    /// How it ended: exit code and reason, such as `OOMKilled`. `None` while it has not.
    ///
    /// # Errors
    ///
    /// When containerd knows nothing of it.
    pub fn ended(&self) -> Result<Option<(i32, String)>> {
        let id = Id { id: self.id.clone() };
        let answer: ContainerStatusResponse = self.daemon.call("RuntimeService/ContainerStatus", id)?;
        let status = answer.status.context("a container without a status")?;
        let has_ended = status.state == i32::from(ContainerState::Exited);
        Ok(has_ended.then_some((status.exit_code, status.reason)))
    }

    /// Moves the host's process `pid` into the container's cgroup.
    ///
    /// # Errors
    ///
    /// When either does not exist.
    pub fn take_in(&self, pid: u32) -> Result<()> {
        cgroup::attach(pid, &self.cgroup_dir())
    }
}

impl Drop for CriContainer {
    fn drop(&mut self) {
        self.pod.state.remove_container(&self.id);
        // As for the pod.
        let _ = self.daemon.call::<_, Empty>("RuntimeService/RemoveContainer", Id { id: self.id.clone() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_read_by_stream_and_long_lines_put_together() {
        let text = "2026-01-01T00:00:00.1Z stdout F {\"a\": 1}\n2026-01-01T00:00:00.2Z stdout P one \n\
                    2026-01-01T00:00:00.3Z stderr F oh no\n2026-01-01T00:00:00.3Z stdout F two\n\
                    2026-01-01T00:00:00.4Z stdout F \n2026-01-01T00:00:00.5Z stdout F cut";
        let log = CriLog::parse(text).unwrap();
        assert_eq!(log.stdout, ["{\"a\": 1}", "one two", ""]);
        assert_eq!(log.stderr, ["oh no"]);
        assert!(CriLog::parse("half a\n").is_err() && CriLog::parse("t stdout F\n").is_err());
    }

    #[test]
    fn resources_are_what_kubelet_makes_of_them() {
        let of =
            CriResources { cpu_request: 50, cpu_limit: 1000, memory_limit: 1 << 20, oom_score_adj: -997 };
        let made = LinuxContainerResources::from(of);
        assert_eq!((made.cpu_shares, made.cpu_quota, made.cpu_period), (51, 100_000, 100_000));
        assert_eq!((made.memory_limit_in_bytes, made.oom_score_adj), (1 << 20, -997));
        assert_eq!(
            LinuxContainerResources::from(CriResources::default()),
            LinuxContainerResources::default()
        );
    }
}
