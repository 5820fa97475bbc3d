//! The programs a cluster is made of, obtained by package name and kept: Kubernetes, etcd, helm, CoreDNS and
//! kwok from the Go module proxy, the container runtime from Debian. Nothing is taken from a URL, and a
//! second run builds nothing.

mod cache;
pub mod debian;
mod go;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use thiserror::Error;

use crate::preflight::{self, Machine, PreflightError};
use crate::progress::Progress;

pub use go::{COREDNS_VERSION, HELM_VERSION, KUBERNETES_VERSION, KWOK_VERSION};

/// Why the programs could not be obtained.
#[derive(Debug, Error)]
pub enum ToolsError {
    /// The machine can't do the job.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// There is nowhere to keep the programs.
    #[error(
        "neither XDG_CACHE_HOME nor HOME is set: set one, so that there is a folder to keep the built programs in"
    )]
    NoCacheFolder,
    /// The cache could not be written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A program that builds or installs failed.
    #[error("`{command}` failed ({outcome}); its last lines were:\n{tail}")]
    Failed {
        /// The command line.
        command: String,
        /// Its exit status, or why it did not start.
        outcome: String,
        /// The end of its output.
        tail: String,
    },
}

/// Where each program is.
#[derive(Debug, Clone)]
pub struct Tools {
    /// etcd, kubectl, kubelet and every kube-* component in one: `kube kubectl get nodes`.
    pub kube: PathBuf,
    /// helm 3.
    pub helm: PathBuf,
    /// CoreDNS.
    pub coredns: PathBuf,
    /// kwok, which plays nodes and pods that do not exist.
    pub kwok: PathBuf,
}

impl Tools {
    /// Finds every program, and installs and builds those that are missing. Takes minutes the first time and
    /// milliseconds after that. Blocks; two processes that ask at once build once. Interrupted builds
    /// continue where they were, because Go keeps every package it compiled.
    ///
    /// # Errors
    /// [`ToolsError::Preflight`] with one sentence when the machine can't do the job, else what failed.
    pub fn obtain(progress: &Progress) -> Result<Self, ToolsError> {
        let cache_folder = cache_folder()?;
        let cache = cache::Cache::at(cache_folder.join("tools"));
        let machine = Machine::probe(&cache_folder, go::all_built(&cache));
        preflight::check(&machine)?;
        if !machine.missing_programs.is_empty() {
            debian::install(&machine.missing_programs, progress)?;
            preflight::check(&Machine::probe(&cache_folder, machine.tools_built))?;
        }
        go::build_all(&cache, progress)
    }
}

/// The folder of everything this project keeps outside the source tree: `$XDG_CACHE_HOME/gqla`, or
/// `~/.cache/gqla`.
///
/// # Errors
/// [`ToolsError::NoCacheFolder`] when neither variable is set.
pub fn cache_folder() -> Result<PathBuf, ToolsError> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    base.map(|base| base.join("gqla")).ok_or(ToolsError::NoCacheFolder)
}

/// PATH with the folders that hold system programs and Go, which a test's or a service's PATH often lacks.
pub(crate) fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin");
    path
}

/// Where `name` is on [`search_path`].
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    if Path::new(name).is_absolute() {
        return Path::new(name).exists().then(|| name.into());
    }
    std::env::split_paths(&search_path()).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// A command for a system program, found on and run with [`search_path`].
pub(crate) fn system_command(program: &str) -> Command {
    let mut command = Command::new(find_program(program).unwrap_or_else(|| program.into()));
    command.env("PATH", search_path());
    command
}
