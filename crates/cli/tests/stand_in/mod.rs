//! `gqla` as a user runs it, where libcuda is the stand-in.

use std::{
    path::Path,
    process::{Command, Output},
};

use gqla_fakecuda::{Config, testing::library_path};

/// Runs `gqla` where libcuda shows `devices`, with what else is in the folder that the stand-in is put into, and with NVRTC or
/// without.
pub fn gqla(folder: &Path, nvrtc: bool, devices: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gqla"))
        .args(args)
        .env("LD_LIBRARY_PATH", library_path(folder, nvrtc))
        .env(Config::DEVICES_ENV, devices)
        .env(Config::REPORT_ENV, folder.join("launches.jsonl"))
        .output()
        .unwrap()
}
