//! Which step of the chain loads a program, and what the steps before said.

use gqla_kernels::device::{Device, DeviceError, ImageSource, Images, Program};

use crate::{on_driver, on_stand_in};

/// A small program whose PTX any driver of CUDA 12 reads.
const OLD_PTX: &str = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry embed()\n{\nret;\n}\n";

#[test]
fn every_step_is_reached_and_says_why_not_earlier() {
    on_stand_in("images::every_step_is_reached_and_says_why_not_earlier", "own-first", 1, || {
        let (device, program) = (Device::open(0).unwrap(), Program::rows());
        let folder = tempfile::tempdir().unwrap();
        let images = Images::in_folder(folder.path());
        let stem = folder.path().join(program.stem());
        let write = |kind: &str, content: &[u8]| {
            std::fs::write(format!("{}-{kind}", stem.display()), content).unwrap();
        };
        // No files: NVRTC.
        let loaded = images.load(&device, &program).unwrap();
        assert_eq!(loaded.source, ImageSource::NvrtcPtx);
        assert!(
            loaded.refusals[0].starts_with("cubin file: `") && loaded.refusals[0].contains("sm_90.cubin")
        );
        assert!(
            loaded.refusals[1].starts_with("PTX file: `") && loaded.refusals[1].contains("compute_80.ptx")
        );
        // Files for other heads.
        for heads in ["64-64-64", "192-64-256"] {
            std::fs::write(folder.path().join(format!("gqa_decode-{heads}-compute_80.ptx")), OLD_PTX)
                .unwrap();
        }
        let loaded = images.load(&device, &Program::gqa_decode(16, 16, 16)).unwrap();
        let refusal = &loaded.refusals[1];
        assert!(
            refusal.contains("gqa_decode-16-16-16-compute_80.ptx`: No such file")
                && refusal.ends_with("; there are gqa_decode-192-64-256, gqa_decode-64-64-64"),
            "{refusal}"
        );
        // Machine code of another device, then PTX that the driver reads.
        write("sm_90.cubin", b"\x7fELF and so on");
        write("compute_80.ptx", OLD_PTX.as_bytes());
        let loaded = images.load(&device, &program).unwrap();
        assert_eq!(loaded.source, ImageSource::PtxFile);
        assert_eq!(loaded.refusals, ["cubin file: CUDA_ERROR_NO_BINARY_FOR_GPU (209)"]);
        // PTX newer than the driver.
        write("compute_80.ptx", OLD_PTX.replace("8.0", "9.3").as_bytes());
        let loaded = images.load(&device, &program).unwrap();
        assert_eq!(loaded.source, ImageSource::NvrtcPtx);
        assert_eq!(loaded.refusals[1], "PTX file: CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)");
        // A text that does not compile: NVRTC's log names the line.
        let broken = program.with_text("extern \"C\" __global__ void embed() { oops }\n".to_owned());
        let images = Images::default();
        let Err(DeviceError::NoImage { refusals, .. }) = images.load(&device, &broken) else {
            panic!("it loads")
        };
        assert_eq!(refusals.len(), 4);
        assert!(
            refusals[2].starts_with("PTX from NVRTC: NvrtcError(NVRTC_ERROR_COMPILATION)")
                && refusals[2].contains("\"oops\""),
            "{}",
            refusals[2]
        );
    });
}

/// A driver of CUDA 12.2 reads no PTX from NVRTC 12.9, so it gets machine code, which the stand-in cannot run.
#[test]
fn older_drivers_get_machine_code_from_nvrtc() {
    on_driver("12.2", "images::older_drivers_get_machine_code_from_nvrtc", "own-first", 1, || {
        let device = Device::open(0).unwrap();
        let Err(error) = Images::default().load(&device, &Program::rows()) else { panic!("it loads") };
        let error = error.to_string();
        let start = "no image of the kernels `rows` loads on NVIDIA H20 (sm_90); put NVRTC 12 ";
        assert!(error.starts_with(start) && error.contains("`gqla kernels build --model MODEL"), "{error}");
        assert!(error.contains("PTX from NVRTC: CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)"), "{error}");
        assert!(error.ends_with("cubin from NVRTC: CUDA_ERROR_NO_BINARY_FOR_GPU (209)"), "{error}");
    });
}
