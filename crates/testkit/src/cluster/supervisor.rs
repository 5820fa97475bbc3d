//! The process that holds a cluster's PID, mount and network namespaces and outlives the caller by a moment.
//!
//! It is a shell script (`supervisor.sh`) rather than a program of ours because a test binary of any crate
//! must be able to start it: there is nothing to build, find or re-execute. Its standard input is a pipe that
//! only the caller holds. When the caller ends, for whatever reason, SIGKILL included, the pipe closes, the
//! first process of the PID namespace ends, the kernel kills every other process in it and drops the mounts
//! and networks, and the script removes the cgroups and the files.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use super::error::{ClusterError, io, tail};
use super::process::Components;
use crate::tools::system_command;

const SCRIPT: &str = include_str!("supervisor.sh");
/// What the script is called in its command line, by which [`is_alive`] knows it.
const NAME: &str = "gqla-supervisor";

/// A network namespace of the cluster.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Network<'a> {
    /// The control plane's.
    Hub,
    /// A node's.
    Node(&'a str),
}

/// The running supervisor. Dropping it ends the cluster and waits until everything is gone.
#[derive(Debug)]
pub(crate) struct Supervisor {
    child: Child,
    stdin: Option<ChildStdin>,
    init: u32,
    components: Components,
}

impl Supervisor {
    /// Makes the namespaces. `state` is the cluster's folder, which is removed at the end unless
    /// [`Layout::keep_mark`](super::layout::Layout::keep_mark) is in it.
    pub(crate) fn start(state: &Path) -> Result<Self, ClusterError> {
        let log = state.join("log/supervisor.log");
        let stderr = File::create(&log).map_err(io("create", &log))?;
        let mut command = system_command("sh");
        command.args(["-c", SCRIPT, NAME]).arg(state);
        // A process group of its own: Ctrl-C in the terminal is for the caller, which then ends the cluster
        // in order.
        command.process_group(0).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().map_err(io("start", Path::new("sh")))?;
        let stdin = child.stdin.take();
        let mut line = String::new();
        let first = child.stdout.take().map(|stdout| BufReader::new(stdout).read_line(&mut line));
        match (first, line.trim().parse()) {
            (Some(Ok(_)), Ok(init)) => Ok(Self { child, stdin, init, components: Components::default() }),
            _ => {
                let tail = tail(&log);
                drop(stdin);
                // Its outcome adds nothing to what its log says.
                let _ = child.wait();
                Err(ClusterError::Supervisor { log, tail })
            }
        }
    }

    /// What runs inside.
    pub(crate) fn components(&self) -> &Components {
        &self.components
    }

    /// The name of the cgroup that holds every node's, in each hierarchy.
    pub(crate) fn cgroup(&self) -> String {
        super::cgroup::name(self.child.id())
    }

    /// The host's name of a network namespace.
    pub(crate) fn network(&self, network: Network<'_>) -> PathBuf {
        match network {
            Network::Hub => format!("/proc/{}/ns/net", self.init).into(),
            Network::Node(name) => format!("/proc/{}/root/run/netns/{name}", self.init).into(),
        }
    }

    /// A command that runs `program` inside. Not `ip netns exec`: that remounts /sys, which hides the
    /// cgroups.
    pub(crate) fn command(&self, network: Network<'_>, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = system_command("nsenter");
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", self.init))
            .arg(format!("--pid=/proc/{}/ns/pid", self.init));
        command.arg(format!("--net={}", self.network(network).display())).arg("--").arg(program);
        command.process_group(0).stdin(Stdio::null());
        command
    }

    /// Runs a shell script inside to its end.
    pub(crate) fn run_script(&self, network: Network<'_>, script: &str) -> Result<(), ClusterError> {
        let mut command = self.command(network, "sh");
        command.args(["-euxc", script]);
        let output = command.output().map_err(io("start", Path::new("nsenter")))?;
        if output.status.success() {
            return Ok(());
        }
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(ClusterError::Command {
            command: "sh".to_owned(),
            outcome: output.status.to_string(),
            output: printed,
        })
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stdin.take();
        // It can only fail when the process was already waited for.
        let _ = self.child.wait();
        self.components.reap();
    }
}

/// Whether process `pid` is a supervisor.
pub(crate) fn is_alive(pid: u32) -> bool {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|&byte| byte == 0).any(|word| word == NAME.as_bytes())
}
