//! Programs built by Go from the module proxy. Versions are named here and nowhere else; those of Kubernetes
//! and etcd are those of `kube-binary/go.mod`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::cache::{Cache, io};
use super::{Tools, ToolsError, find_program, search_path};
use crate::preflight::PreflightError;
use crate::progress::Progress;

/// The version of the API server, the kubelets and kubectl.
pub const KUBERNETES_VERSION: &str = "v1.34.4";
/// The version of helm.
pub const HELM_VERSION: &str = "v3.19.5";
/// The version of CoreDNS.
pub const COREDNS_VERSION: &str = "v1.12.4";
/// The version of kwok.
pub const KWOK_VERSION: &str = "v0.7.0";

const KUBE_SOURCE: [(&str, &str); 3] = [
    ("main.go", include_str!("../../kube-binary/main.go")),
    ("go.mod", include_str!("../../kube-binary/go.mod")),
    ("go.sum", include_str!("../../kube-binary/go.sum")),
];

/// Lines of a failed build that are worth repeating.
const TAIL_LINES: usize = 15;

/// A program that `go install PACKAGE@VERSION` makes.
struct Installed {
    program: &'static str,
    package: &'static str,
    version: &'static str,
}

const HELM: Installed =
    Installed { program: "helm", package: "helm.sh/helm/v3/cmd/helm", version: HELM_VERSION };
const COREDNS: Installed =
    Installed { program: "coredns", package: "github.com/coredns/coredns", version: COREDNS_VERSION };
const KWOK: Installed =
    Installed { program: "kwok", package: "sigs.k8s.io/kwok/cmd/kwok", version: KWOK_VERSION };

impl Installed {
    fn key(&self) -> String {
        format!("{}-{}", self.program, self.version)
    }

    fn get(&self, cache: &Cache, progress: &Progress) -> Result<PathBuf, ToolsError> {
        cache.get_or_build(&self.key(), self.program, |folder| {
            let mut command = go(&["install", "-v", "-trimpath", "-ldflags", "-s -w"])?;
            command.arg(format!("{}@{}", self.package, self.version)).env("GOBIN", folder);
            run(&mut command, &format!("building {} {}", self.program, self.version), progress)
        })
    }
}

/// Whether nothing needs to be built.
pub(super) fn all_built(cache: &Cache) -> bool {
    let installed = [HELM, COREDNS, KWOK];
    installed.iter().all(|tool| cache.path(&tool.key(), tool.program).is_file())
        && cache.path(&kube_key(), "kube").is_file()
}

/// Builds what is not in the cache.
pub(super) fn build_all(cache: &Cache, progress: &Progress) -> Result<Tools, ToolsError> {
    Ok(Tools {
        kube: kube(cache, progress)?,
        helm: HELM.get(cache, progress)?,
        coredns: COREDNS.get(cache, progress)?,
        kwok: KWOK.get(cache, progress)?,
    })
}

fn kube(cache: &Cache, progress: &Progress) -> Result<PathBuf, ToolsError> {
    cache.get_or_build(&kube_key(), "kube", |folder| {
        let source = folder.join("source");
        std::fs::create_dir(&source).map_err(io("create the folder", &source))?;
        for (name, content) in KUBE_SOURCE {
            let path = source.join(name);
            std::fs::write(&path, content).map_err(io("write", &path))?;
        }
        let mut command = go(&["build", "-v", "-trimpath", "-ldflags"])?;
        command.arg(format!("-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES_VERSION}"));
        command.arg("-o").arg(folder.join("kube")).arg(".").current_dir(&source);
        run(&mut command, &format!("building Kubernetes {KUBERNETES_VERSION} and etcd"), progress)
    })
}

/// Version and everything the build reads: a changed dependency is a new program.
fn kube_key() -> String {
    let mut hash = Sha256::new();
    for (name, content) in KUBE_SOURCE {
        hash.update(name);
        hash.update(content);
    }
    let hex: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("kube-{KUBERNETES_VERSION}-{hex}")
}

fn go(arguments: &[&str]) -> Result<Command, ToolsError> {
    let program = find_program("go").ok_or(PreflightError::NoGo)?;
    let mut command = Command::new(program);
    // A static program runs in any mount namespace; the user's own Go settings must not change what is built.
    command
        .args(arguments)
        .env("PATH", search_path())
        .env("CGO_ENABLED", "0")
        .env("GOTOOLCHAIN", "local")
        .env("GOWORK", "off")
        .env("GOFLAGS", "");
    Ok(command)
}

/// Runs `command` and passes the lines it prints on stderr to `progress`.
pub(super) fn run(command: &mut Command, step: &str, progress: &Progress) -> Result<(), ToolsError> {
    progress.step(step, || {
        let failed = |command: &Command, outcome: String, tail: Vec<String>| ToolsError::Failed {
            command: command_line(command),
            outcome,
            tail: tail.join("\n"),
        };
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|error| failed(command, error.to_string(), vec![]))?;
        let mut tail = std::collections::VecDeque::new();
        for line in child
            .stderr
            .take()
            .into_iter()
            .flat_map(|stderr| BufReader::new(stderr).lines())
            .map_while(Result::ok)
        {
            progress.detail(step, &line);
            tail.push_back(line);
            if tail.len() > TAIL_LINES {
                tail.pop_front();
            }
        }
        let status = child.wait().map_err(|error| failed(command, error.to_string(), vec![]))?;
        if status.success() { Ok(()) } else { Err(failed(command, status.to_string(), tail.into())) }
    })
}

fn command_line(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(name).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_builds_the_version_that_is_reported() {
        let (_, go_mod) = KUBE_SOURCE[1];
        assert!(
            go_mod.contains(&format!("k8s.io/kubernetes {KUBERNETES_VERSION}\n")),
            "go.mod and KUBERNETES_VERSION differ"
        );
        assert!(kube_key().starts_with("kube-v1.34.4-"));
    }

    #[test]
    fn a_failed_program_is_named_with_its_last_lines() {
        let mut command = Command::new("sh");
        command.args(["-c", "for i in $(seq 40); do echo line $i >&2; done; exit 3"]);
        let error = run(&mut command, "trying", &Progress::silent()).unwrap_err().to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("line 40") && !error.contains("line 25\n"),
            "{error}"
        );
    }
}
