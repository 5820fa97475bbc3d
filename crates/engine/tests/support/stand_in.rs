//! Tests on the stand-in for libcuda.
//!
//! `GQLA_TEST_NVRTC` names the folder that holds NVRTC 12, as `cargo xtask test` does; `cargo xtask nvrtc` prints it.
//! Without it these tests fail, because passing would claim something nobody checked.

use std::fs;

use gqla_fakecuda::{Config, testing::Alone};

/// Runs `body` in a process that finds the stand-in and NVRTC when it starts, with an H20.
pub fn on_stand_in(name: &str, body: impl FnOnce()) {
    stand_in(name).run(body);
}

/// Such a process for the test of this name.
pub fn stand_in(name: &str) -> Alone<'_> {
    Alone::new(name).with_nvrtc().env(Config::DEVICES_ENV, "H20").env(Config::ORDER_ENV, "own-first")
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
