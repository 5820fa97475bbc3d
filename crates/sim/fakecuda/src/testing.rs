//! Tests on the stand-in. The loader reads `LD_LIBRARY_PATH` when a program starts, and cudarc opens the driver once, so a
//! test runs itself again in a process of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a set-up that fails is a test that fails")]

use std::{env, fs, path::Path, process::Command};

use crate::{Config, install, install_cublaslt};

/// Set in the process that runs the test.
const CHILD: &str = "GQLA_FAKECUDA_CHILD";

/// Where NVRTC 12 is, as `cargo xtask test` says and `cargo xtask nvrtc` prints. Without it a test fails, because passing
/// would claim something nobody checked.
const NVRTC: &str = "GQLA_TEST_NVRTC";

/// A test of the running program.
#[derive(Clone, Debug)]
pub struct Alone<'a> {
    test: &'a str,
    nvrtc: bool,
    cublaslt: bool,
    variables: Vec<(&'a str, String)>,
}

impl<'a> Alone<'a> {
    /// The test of this name, with no devices yet.
    pub fn new(test: &'a str) -> Self {
        Self { test, nvrtc: false, cublaslt: false, variables: Vec::new() }
    }

    /// Lets it find NVRTC.
    #[must_use]
    pub fn with_nvrtc(mut self) -> Self {
        self.nvrtc = true;
        self
    }

    /// Lets it find the stand-in as cuBLASLt, too.
    #[must_use]
    pub fn with_cublaslt(mut self) -> Self {
        self.cublaslt = true;
        self
    }

    /// Sets an environment variable; [`Config`] names those that the stand-in reads.
    #[must_use]
    pub fn env(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    /// Runs `body` in a process that finds the stand-in, empty [`Config::REPORT_ENV`] and [`Config::COPIES_ENV`] and an
    /// empty folder [`Config::CUBINS_ENV`], and returns what that printed; `None` in that process itself.
    ///
    /// # Panics
    /// When the body did.
    pub fn run(&self, body: impl FnOnce()) -> Option<String> {
        if env::var_os(CHILD).is_some() {
            body();
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let launches = folder.path().join("launches.jsonl");
        let cubins = folder.path().join("cubins");
        fs::create_dir(&cubins).unwrap();
        let copies = folder.path().join("copies.jsonl");
        for report in [&launches, &copies] {
            fs::write(report, "").unwrap();
        }
        if self.cublaslt {
            install_cublaslt(folder.path()).unwrap();
        }
        let output = Command::new(env::current_exe().unwrap())
            .args([self.test, "--exact", "--nocapture"])
            .env(CHILD, "1")
            .env("LD_LIBRARY_PATH", library_path(folder.path(), self.nvrtc))
            .env(Config::REPORT_ENV, launches)
            .env(Config::CUBINS_ENV, cubins)
            .env(Config::COPIES_ENV, copies)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .output()
            .unwrap();
        let text =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        let Self { test, variables, .. } = self;
        assert!(output.status.success() && text.contains("1 passed"), "{test}, {variables:?}:\n{text}");
        println!("{text}");
        Some(text)
    }
}

/// Puts the stand-in into `folder`, and says which `LD_LIBRARY_PATH` finds it, and NVRTC where that is wanted.
///
/// # Panics
/// When there is no stand-in to put there, or nobody says where NVRTC is.
pub fn library_path(folder: &Path, nvrtc: bool) -> String {
    install(folder).unwrap();
    let folder = folder.display().to_string();
    if !nvrtc {
        return folder;
    }
    let nvrtc = env::var(NVRTC).expect(
        "GQLA_TEST_NVRTC is not set: run `cargo xtask test`, which sets it, or set it to what `cargo xtask nvrtc` prints",
    );
    format!("{folder}:{nvrtc}")
}
