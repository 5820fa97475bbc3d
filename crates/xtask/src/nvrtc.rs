//! NVRTC, which compiles the CUDA kernels, from its wheel on PyPI: it needs neither a GPU nor a driver.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::shell::{self, step};

/// The last NVRTC of CUDA 12, whose PTX drivers of 12.9 and later read.
pub const WHEEL: &str = "nvidia-cuda-nvrtc-cu12==12.9.86";

/// The folder of `libnvrtc.so.12`, installed into the cache on first use.
pub fn installed() -> Result<PathBuf> {
    let home = shell::cache_dir()?.join("tools").join(WHEEL);
    let folder = home.join("nvidia/cuda_nvrtc/lib");
    if !folder.join("libnvrtc.so.12").is_file() {
        step(&format!("Install {WHEEL} from PyPI"), || {
            let partial = home.with_extension(format!("partial-{}", std::process::id()));
            let pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--target"];
            shell::capture(Command::new("python3").args(pip).arg(&partial).arg(WHEEL))
                .context("is python3 with pip there?")?;
            // Another run may have been faster; its copy is as good.
            if fs::rename(&partial, &home).is_err() {
                fs::remove_dir_all(&partial)?;
            }
            Ok(())
        })?;
    }
    Ok(folder)
}

/// Prints the folder, for `GQLA_TEST_NVRTC`.
pub fn print() -> Result<()> {
    println!("{}", installed()?.display());
    Ok(())
}
