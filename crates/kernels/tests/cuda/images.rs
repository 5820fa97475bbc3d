//! Which step of the chain loads a program, and what the steps before said.

use std::{env, path::PathBuf};

use gqla_fakecuda::{Config, testing::Alone};
use gqla_kernels::device::{
    Buffer, Device, DeviceError, ImageSource, Images, Loaded, Program, RowKernels, Weights,
};

use crate::{case::Noise, on_driver, on_stand_in};

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

/// Where the stand-in finds the PTX of cubins.
fn known_cubins() -> PathBuf {
    env::var_os(Config::CUBINS_ENV).unwrap().into()
}

/// Kernels that were loaded do what they are there for: rows of a table arrive.
fn assert_embeds(device: &Device, loaded: &Loaded) {
    let (kernels, width, tokens) = (RowKernels::new(loaded).unwrap(), 8, [6u32, 0, 3]);
    let table = Noise::new(1).take(10 * width);
    let weights = Weights::upload(device, "embedding", &table, [1, 10, width]).unwrap();
    let mut x: Buffer<f32> = device.unwritten("x", tokens.len() * width).unwrap();
    kernels.embed(device, &weights, &tokens, &mut x).unwrap();
    let expected = tokens.iter().flat_map(|token| &table[*token as usize * width..][..width]);
    assert_eq!(
        device.download(&x, tokens.len() * width).unwrap(),
        expected.map(|x| x.to_f32()).collect::<Vec<_>>()
    );
}

/// With what `gqla kernels build` writes, nothing is compiled for a card that it has machine code for; for others PTX is.
#[test]
fn files_of_a_build_give_kernels_that_run() {
    on_stand_in("images::files_of_a_build_give_kernels_that_run", "own-first", 1, || {
        let (device, program, built) = (Device::open(0).unwrap(), Program::rows(), known_cubins());
        Images::write(&built, &program, &[(8, 0), (9, 0)]).unwrap();
        let loaded = Images::in_folder(&built).load(&device, &program).unwrap();
        assert_eq!((loaded.source, loaded.refusals.len()), (ImageSource::CubinFile, 0));
        assert_embeds(&device, &loaded);
        // An Ampere's machine code where a Hopper's should be.
        let folder = tempfile::tempdir().unwrap();
        for (from, to) in
            [("rows-sm_80.cubin", "rows-sm_90.cubin"), ("rows-compute_80.ptx", "rows-compute_80.ptx")]
        {
            std::fs::copy(built.join(from), folder.path().join(to)).unwrap();
        }
        let loaded = Images::in_folder(folder.path()).load(&device, &program).unwrap();
        assert_eq!(loaded.source, ImageSource::PtxFile);
        assert_eq!(loaded.refusals, ["cubin file: CUDA_ERROR_NO_BINARY_FOR_GPU (209)"]);
        assert_embeds(&device, &loaded);
    });
}

#[test]
fn drivers_of_cuda_12_2_get_machine_code_from_nvrtc() {
    assert_older_driver("images::drivers_of_cuda_12_2_get_machine_code_from_nvrtc", "12.2", ["8.2", "8.3"]);
}

#[test]
fn drivers_of_cuda_12_4_get_machine_code_from_nvrtc() {
    assert_older_driver("images::drivers_of_cuda_12_4_get_machine_code_from_nvrtc", "12.4", ["8.4", "8.5"]);
}

/// A driver that reads the first of two versions of PTX and not the second, so none from NVRTC 12.9: it gets machine code.
fn assert_older_driver(test: &str, driver: &str, [reads, does_not]: [&str; 2]) {
    on_driver(driver, test, "own-first", 1, || {
        let (device, program) = (Device::open(0).unwrap(), Program::rows());
        let folder = tempfile::tempdir().unwrap();
        let (images, ptx) = (Images::in_folder(folder.path()), folder.path().join("rows-compute_80.ptx"));
        std::fs::write(&ptx, OLD_PTX.replace("8.0", reads)).unwrap();
        assert_eq!(images.load(&device, &program).unwrap().source, ImageSource::PtxFile);
        std::fs::write(&ptx, OLD_PTX.replace("8.0", does_not)).unwrap();
        // A card that NVRTC's machine code is not for.
        let Err(error) = images.load(&device, &program) else { panic!("it loads") };
        let error = error.to_string();
        let start = "no image of the kernels `rows` loads on NVIDIA H20 (sm_90); put NVRTC 12 ";
        assert!(error.starts_with(start) && error.contains("`gqla kernels build --model MODEL"), "{error}");
        assert!(error.contains("PTX from NVRTC: CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)"), "{error}");
        assert!(error.ends_with("cubin from NVRTC: CUDA_ERROR_NO_BINARY_FOR_GPU (209)"), "{error}");
        // One that it is for.
        Images::write(&known_cubins(), &program, &[(9, 0)]).unwrap();
        let loaded = images.load(&device, &program).unwrap();
        assert_eq!(loaded.source, ImageSource::NvrtcCubin);
        assert!(loaded.refusals[0].ends_with("rows-sm_90.cubin`: No such file or directory (os error 2)"));
        let too_new = ["PTX file", "PTX from NVRTC"]
            .map(|step| format!("{step}: CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)"));
        assert_eq!(loaded.refusals[1..], too_new);
        assert_embeds(&device, &loaded);
    });
}

/// A shape of which there are no files, where nothing compiles: a sentence that names both ways out.
#[test]
fn without_nvrtc_there_is_a_sentence() {
    Alone::new("images::without_nvrtc_there_is_a_sentence").env(Config::DEVICES_ENV, "H20").run(|| {
        let (device, program) = (Device::open(0).unwrap(), Program::gqa_decode(16, 16, 16));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("gqa_decode-64-64-64-compute_80.ptx"), OLD_PTX).unwrap();
        let Err(error) = Images::in_folder(folder.path()).load(&device, &program) else { panic!("it loads") };
        let error = error.to_string();
        for part in [
            "no image of the kernels `gqa_decode-16-16-16` loads on NVIDIA H20 (sm_90); put NVRTC 12 where libraries",
            "`gqla kernels build --model MODEL --out FOLDER`",
            "gqa_decode-16-16-16-compute_80.ptx`: No such file or directory (os error 2); there are gqa_decode-64-64-64",
            "PTX from NVRTC: libnvrtc.so.12 is not on this machine",
            "cubin from NVRTC: libnvrtc.so.12 is not on this machine",
        ] {
            assert!(error.contains(part), "{error}");
        }
        // Those that there are need no compiler.
        std::fs::write(folder.path().join("gqa_decode-16-16-16-compute_80.ptx"), OLD_PTX).unwrap();
        let loaded = Images::in_folder(folder.path()).load(&device, &program).unwrap();
        assert_eq!(loaded.source, ImageSource::PtxFile);
        let error = program.resources((9, 0)).unwrap_err().to_string();
        assert!(error.contains("`gqa_decode-16-16-16` for sm_90") && error.contains("libnvrtc.so.12"), "{error}");
    });
}
