//! Whether this machine can build the tools and hold a cluster, decided before minutes are spent on it.
//! [`Machine::probe`] looks, [`check`] decides, so that each refusal is one sentence that can be tested
//! without a machine that lacks the thing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use thiserror::Error;

/// Free space that a first build needs: module cache, build cache and five programs.
pub const DISK_FOR_BUILD: u64 = 8 << 30;
/// Free space that a running cluster needs: images, etcd and logs. The kubelets evict pods when a disk is
/// nearly full.
pub const DISK_FOR_CLUSTER: u64 = 2 << 30;
/// The oldest Go that builds Kubernetes 1.34, as (major, minor).
pub const OLDEST_GO: (u32, u32) = (1, 24);

/// Why a machine can't do the job.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PreflightError {
    /// Namespaces, mounts and cgroups need root.
    #[error(
        "a test cluster makes namespaces, mounts and cgroups and needs root: run this as root (now uid {uid})"
    )]
    NotRoot {
        /// The effective user id found.
        uid: u32,
    },
    /// Only Linux on x86-64 or arm64 has been thought of.
    #[error("a test cluster needs Linux, and this is {os}: run it in a Linux virtual machine")]
    NotLinux {
        /// `std::env::consts::OS`.
        os: &'static str,
    },
    /// Programs must be built and there is no Go.
    #[error("the Kubernetes programs are built with Go, and no `go` is on PATH or in /usr/local/go/bin: install Go {}.{} or newer", OLDEST_GO.0, OLDEST_GO.1)]
    NoGo,
    /// Go is too old for this Kubernetes.
    #[error("Go {}.{} is too old to build Kubernetes 1.34: install Go {}.{} or newer", found.0, found.1, OLDEST_GO.0, OLDEST_GO.1)]
    OldGo {
        /// The version found, as (major, minor).
        found: (u32, u32),
    },
    /// The disk is too full.
    #[error(
        "{path} has {free_mib} MiB free and {need_mib} MiB are needed: free some space, or set XDG_CACHE_HOME to a folder on a larger disk"
    )]
    Disk {
        /// The folder that will be written to.
        path: PathBuf,
        /// What is free.
        free_mib: u64,
        /// What is needed.
        need_mib: u64,
    },
    /// Debian packages are missing and can't be installed by name.
    #[error(
        "{programs} missing and there is no apt-get here to install them with: install them with this system's package manager"
    )]
    NoPackageManager {
        /// The programs, ready for a sentence.
        programs: String,
    },
    /// A kernel feature is absent.
    #[error("the kernel lacks {feature}, which {purpose}: load its module or use a kernel that has it")]
    Kernel {
        /// The feature.
        feature: &'static str,
        /// What a cluster uses it for.
        purpose: &'static str,
    },
}

/// A feature of the kernel that a cluster can't do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KernelFeature {
    /// PID, mount and network namespaces can be made.
    Namespaces,
    /// overlayfs, the container file systems.
    Overlay,
    /// A cgroup hierarchy is mounted at /sys/fs/cgroup, version 1 or 2.
    Cgroups,
    /// Bridge links, for the hub and for the pods of each node.
    Bridge,
    /// veth pairs, which join nodes and pods.
    Veth,
    /// The iptables NAT table, which kube-proxy programs.
    IptablesNat,
}

impl KernelFeature {
    const ALL: [(Self, &'static str, &'static str); 6] = [
        (Self::Namespaces, "PID, mount or network namespaces", "everything in the cluster lives in"),
        (Self::Overlay, "overlayfs", "containers use for their file systems"),
        (Self::Cgroups, "a cgroup hierarchy at /sys/fs/cgroup", "kubelets account pods in"),
        (Self::Bridge, "bridge links", "join the nodes and the pods"),
        (Self::Veth, "veth links", "join the nodes and the pods"),
        (Self::IptablesNat, "the iptables nat table", "kube-proxy routes Services with"),
    ];
}

/// What was found on a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// `std::env::consts::OS`.
    pub os: &'static str,
    /// Effective user id.
    pub uid: u32,
    /// Go's version as (major, minor), when there is one.
    pub go: Option<(u32, u32)>,
    /// Where tools and clusters are kept.
    pub cache: PathBuf,
    /// Free bytes on the cache's file system.
    pub free_bytes: u64,
    /// Whether apt-get is there.
    pub has_apt: bool,
    /// Programs that are not installed.
    pub missing_programs: Vec<&'static str>,
    /// Whether every program that Go builds is in the cache.
    pub tools_built: bool,
    /// Kernel features found; those that need a missing program to be tried are given the benefit of the
    /// doubt.
    pub kernel: BTreeSet<KernelFeature>,
}

/// Refuses a machine that can't do the job.
///
/// # Errors
/// The first thing that is missing, in the order in which a person would mend them.
pub fn check(machine: &Machine) -> Result<(), PreflightError> {
    if machine.os != "linux" {
        return Err(PreflightError::NotLinux { os: machine.os });
    }
    if machine.uid != 0 {
        return Err(PreflightError::NotRoot { uid: machine.uid });
    }
    if !machine.missing_programs.is_empty() && !machine.has_apt {
        return Err(PreflightError::NoPackageManager { programs: sentence_list(&machine.missing_programs) });
    }
    if !machine.tools_built {
        match machine.go {
            None => return Err(PreflightError::NoGo),
            Some(found) if found < OLDEST_GO => return Err(PreflightError::OldGo { found }),
            Some(_) => {}
        }
    }
    let need = if machine.tools_built { DISK_FOR_CLUSTER } else { DISK_FOR_BUILD };
    if machine.free_bytes < need {
        let (path, free_mib, need_mib) = (machine.cache.clone(), machine.free_bytes >> 20, need >> 20);
        return Err(PreflightError::Disk { path, free_mib, need_mib });
    }
    match KernelFeature::ALL.iter().find(|(feature, ..)| !machine.kernel.contains(feature)) {
        Some(&(_, feature, purpose)) => Err(PreflightError::Kernel { feature, purpose }),
        None => Ok(()),
    }
}

fn sentence_list(words: &[&str]) -> String {
    let verb = if words.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", words.join(", "))
}

impl Machine {
    /// Looks at this machine. `cache` is where tools and clusters will be kept; it need not exist yet.
    pub fn probe(cache: &Path, tools_built: bool) -> Self {
        let missing_programs = crate::tools::debian::missing_programs(crate::tools::find_program);
        let can_make_links = missing_programs.is_empty();
        Self {
            os: std::env::consts::OS,
            uid: nix::unistd::geteuid().as_raw(),
            go: crate::tools::find_program("go")
                .and_then(|go| go_version(&output(Command::new(go).arg("version"))?)),
            cache: cache.to_path_buf(),
            free_bytes: free_bytes(cache),
            has_apt: crate::tools::find_program("apt-get").is_some(),
            missing_programs,
            tools_built,
            kernel: KernelFeature::ALL
                .iter()
                .map(|&(feature, ..)| feature)
                .filter(|&feature| has(feature, can_make_links))
                .collect(),
        }
    }
}

fn has(feature: KernelFeature, can_make_links: bool) -> bool {
    let in_new_network =
        |script: &str| !can_make_links || succeeds("unshare", &["--net", "sh", "-c", script]);
    match feature {
        KernelFeature::Namespaces => succeeds("unshare", &["--pid", "--fork", "--mount", "--net", "true"]),
        KernelFeature::Overlay => {
            let known = || {
                std::fs::read_to_string("/proc/filesystems")
                    .is_ok_and(|list| list.split_whitespace().any(|word| word == "overlay"))
            };
            known() || (succeeds("modprobe", &["overlay"]) && known())
        }
        KernelFeature::Cgroups => {
            crate::cluster::cgroup::Hierarchy::detect(Path::new(crate::cluster::cgroup::MOUNT)).is_some()
        }
        KernelFeature::Bridge => in_new_network("ip link add name b0 type bridge"),
        KernelFeature::Veth => in_new_network("ip link add name v0 type veth peer name v1"),
        KernelFeature::IptablesNat => in_new_network("iptables --wait --table nat --list --numeric"),
    }
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = crate::tools::system_command(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    String::from_utf8(output.stdout).ok()
}

/// `go version go1.26.8 linux/amd64` → (1, 26).
fn go_version(text: &str) -> Option<(u32, u32)> {
    let number = text.split_whitespace().nth(2)?.strip_prefix("go")?;
    let mut parts = number.split('.');
    let major = parts.next()?.parse().ok()?;
    let minor: String = parts.next()?.chars().take_while(char::is_ascii_digit).collect();
    Some((major, minor.parse().ok()?))
}

/// Free bytes for this user on the file system that holds `path` or its nearest existing ancestor.
fn free_bytes(path: &Path) -> u64 {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    nix::sys::statvfs::statvfs(existing).map_or(0, |found| found.blocks_available() * found.fragment_size())
}

#[cfg(test)]
mod tests;
