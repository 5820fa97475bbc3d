//! What stands in for GPUs: the files that `GQLA_TEST_NVML`, `GQLA_TEST_CUDA` and `GQLA_TEST_DEVICE_PLUGIN` name, as
//! `cargo xtask test` does, else built by the cargo that runs the tests, because no test can name the binary of another package.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use gqla_testkit::cluster::StandIns;
use serde_json::Value;

/// Finds or builds them.
pub fn obtain() -> StandIns {
    let named = |variable| std::env::var_os(variable).map(PathBuf::from);
    match (named("GQLA_TEST_NVML"), named("GQLA_TEST_CUDA"), named("GQLA_TEST_DEVICE_PLUGIN")) {
        (Some(nvml), Some(cuda), Some(device_plugin)) => StandIns { nvml, cuda, device_plugin },
        _ => build(),
    }
}

fn build() -> StandIns {
    let packages = ["-p", "gqla-fakenvml", "-p", "gqla-fakecuda", "-p", "gqla-deviceplugin"];
    let output = Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--locked", "--quiet", "--message-format=json-render-diagnostics"])
        .args(packages)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo build {packages:?} failed, as it says above");
    let files: Vec<PathBuf> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default())
        .filter_map(|file| file.as_str().map(PathBuf::from))
        .collect();
    let find = |name: &str| {
        files
            .iter()
            .find(|file| file.ends_with(name))
            .unwrap_or_else(|| panic!("cargo built no {name}"))
            .clone()
    };
    StandIns {
        nvml: find("libgqla_fakenvml.so"),
        cuda: find("libgqla_fakecuda.so"),
        device_plugin: find("gqla-deviceplugin"),
    }
}
