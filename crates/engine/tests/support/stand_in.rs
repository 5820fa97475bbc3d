//! Tests on the stand-in for libcuda.
//!
//! `GQLA_TEST_NVRTC` names the folder that holds NVRTC 12, as `cargo xtask test` does; `cargo xtask nvrtc` prints it.
//! Without it these tests fail, because passing would claim something nobody checked.

use std::{fs, process::Command};

use gqla_fakecuda::{Config, install};

const CHILD: &str = "GQLA_ENGINE_TEST_CHILD";

/// Runs `body` in a process that finds the stand-in and NVRTC when it starts, with an H20.
pub fn on_stand_in(name: &str, body: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let nvrtc = std::env::var("GQLA_TEST_NVRTC")
        .expect("GQLA_TEST_NVRTC is not set: run `cargo xtask test`, which sets it, or set it to what `cargo xtask nvrtc` prints");
    let folder = tempfile::tempdir().unwrap();
    install(folder.path()).unwrap();
    let launches = folder.path().join("launches");
    fs::write(&launches, "").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .env("LD_LIBRARY_PATH", format!("{}:{nvrtc}", folder.path().display()))
        .env(Config::DEVICES_ENV, "H20")
        .env(Config::ORDER_ENV, "own-first")
        .env(Config::REPORT_ENV, launches)
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{name}:\n{text}");
    println!("{text}");
}

/// The kernels launched so far whose names begin so, in order.
pub fn launched(prefix: &str) -> Vec<String> {
    let launches = fs::read_to_string(std::env::var_os(Config::REPORT_ENV).unwrap()).unwrap();
    let kernel = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["kernel"].as_str().unwrap().to_owned()
    };
    launches.lines().map(kernel).filter(|kernel| kernel.starts_with(prefix)).collect()
}
