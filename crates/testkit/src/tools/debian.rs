//! Programs from Debian packages: the container runtime, the pod network and the tools that set both up.

use super::ToolsError;
use crate::progress::Progress;

/// Program (a name on PATH, or a path) and the package that brings it. util-linux (`unshare`, `nsenter`),
/// mount and findutils are in every Debian.
const PROGRAMS: [(&str, &str); 7] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("iptables", "iptables"),
    ("busybox", "busybox-static"),
    ("ip", "iproute2"),
];

/// Where Debian puts the CNI plugins.
pub(crate) const CNI_FOLDER: &str = "/usr/lib/cni";

/// The programs that `find` does not find.
pub fn missing_programs<T>(find: impl Fn(&str) -> Option<T>) -> Vec<&'static str> {
    PROGRAMS.iter().map(|(program, _)| *program).filter(|program| find(program).is_none()).collect()
}

/// The packages that bring `programs`, each once.
fn packages(programs: &[&str]) -> Vec<&'static str> {
    let mut packages: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| programs.contains(program))
        .map(|(_, package)| *package)
        .collect();
    packages.dedup();
    packages
}

/// Installs the packages that bring `programs`.
pub(super) fn install(programs: &[&str], progress: &Progress) -> Result<(), ToolsError> {
    let packages = packages(programs);
    let apt = || {
        let mut command = super::system_command("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    super::go::run(apt().args(["update", "--quiet"]), "reading Debian's package lists", progress)?;
    let mut command = apt();
    command.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(&packages);
    super::go::run(&mut command, &format!("installing {}", packages.join(", ")), progress)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_for_each_missing_package_once() {
        let found = ["iptables", "busybox", "ip", "/usr/lib/cni/bridge"];
        let missing = missing_programs(|name| found.contains(&name).then_some(()));
        assert_eq!(missing, ["containerd", "ctr", "runc"]);
        assert_eq!(packages(&missing), ["containerd", "runc"]);
    }
}
