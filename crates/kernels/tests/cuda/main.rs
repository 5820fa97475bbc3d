//! The CUDA kernels, compiled by NVRTC and executed through cudarc on the stand-in for libcuda.
//!
//! `GQLA_TEST_NVRTC` names the folder that holds NVRTC 12, as `cargo xtask test` does; `cargo xtask nvrtc` prints it.
//! Without it these tests fail, because passing would claim something nobody checked.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

mod case;
mod decode;
mod device;
mod experts;
mod images;
mod mutants;
mod ops;
mod sample;

use std::process::Command;

use gqla_fakecuda::{Config, install};

const CHILD: &str = "GQLA_KERNELS_TEST_CHILD";

/// Runs `body` in a process that finds the stand-in and NVRTC when it starts, with `devices` H20s.
fn on_stand_in(name: &str, order: &str, devices: usize, body: impl FnOnce()) {
    on_driver("12.9", name, order, devices, body);
}

/// The same with a driver of another CUDA version.
fn on_driver(driver: &str, name: &str, order: &str, devices: usize, body: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let nvrtc = std::env::var("GQLA_TEST_NVRTC")
        .expect("GQLA_TEST_NVRTC is not set: run `cargo xtask test`, which sets it, or set it to what `cargo xtask nvrtc` prints");
    let folder = tempfile::tempdir().unwrap();
    install(folder.path()).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .env("LD_LIBRARY_PATH", format!("{}:{nvrtc}", folder.path().display()))
        .env(Config::DEVICES_ENV, vec!["H20"; devices].join(","))
        .env(Config::DRIVER_ENV, driver)
        .env(Config::ORDER_ENV, order)
        .env(Config::REPORT_ENV, folder.path().join("report.jsonl"))
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{name}, {order}:\n{text}");
    println!("{text}");
}
