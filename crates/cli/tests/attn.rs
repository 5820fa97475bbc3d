//! `gqla bench attn --device cuda` as a user runs it, on the stand-in for libcuda: whatever the times are worth, they become
//! a calibration that plans are made with.
//!
//! `GQLA_TEST_NVRTC` names the folder that holds NVRTC 12, as `cargo xtask test` does; `cargo xtask nvrtc` prints it.
//! Without it these tests fail, because passing would claim something nobody checked.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

mod stand_in;

use gqla_model::DecodePath;
use gqla_planner::{Calibration, Runtime};
use stand_in::gqla;

#[test]
fn a_card_is_timed_along_both_paths_and_calibrated() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("calibration.json");
    let args = [
        "bench",
        "attn",
        "--device",
        "cuda",
        "--model",
        "smollm2-135m-gqla",
        "--batch",
        "1",
        "--context",
        "64",
        "--s-q",
        "1",
        "--memory-mib",
        "16",
        "--seconds",
        "1",
        "-o",
        "json",
        "--calibration",
        file.to_str().unwrap(),
    ];
    let output = gqla(folder.path(), true, "H20", &args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let calibration: Calibration = serde_json::from_slice(&output.stdout).unwrap();
    calibration.validate().unwrap();
    assert_eq!(serde_json::from_slice::<Calibration>(&std::fs::read(&file).unwrap()).unwrap(), calibration);
    // Rates of whole devices are the data sheet's.
    assert!(calibration.devices.is_empty());
    let paths: Vec<_> = calibration.kernels.iter().map(|kernel| kernel.path).collect();
    assert_eq!(paths, DecodePath::ALL);
    for kernel in &calibration.kernels {
        assert_eq!((kernel.gpu.as_str(), kernel.runtime, kernel.tile_rows), ("H20", Runtime::Native, 16));
        let provenance = &kernel.provenance;
        assert_eq!(
            (provenance.tool.as_str(), provenance.device.as_str()),
            ("gqla bench attn on smollm2-135m-gqla", "NVIDIA H20")
        );
        assert!(provenance.build.ends_with(" sm_90"), "{provenance}");
        // Thousands of times slower than a GPU, so by its data sheet next to nothing, and longer than any GPU's floor.
        assert!(kernel.floor_us > 100.0 && kernel.bandwidth < 0.02, "{kernel:?}");
    }
}
