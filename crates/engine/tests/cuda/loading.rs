//! What is loaded, and what is refused.

use std::path::{Path, PathBuf};

use gqla_engine::{
    Checkpoint, DraftSource, Speculation,
    cpu::CacheMemory,
    cuda::{CudaEngine, CudaEngineConfig, CudaLoadError, CudaModel},
};
use gqla_fakecuda::Config;
use gqla_kernels::device::{Images, Program};
use gqla_model::DecodePath::Gqa;

use crate::{
    GQLA, load,
    support::{
        fixture, rewrite,
        stand_in::{on_stand_in, stand_in},
    },
};

#[test]
fn what_it_does_not_run_is_told() {
    on_stand_in("loading::what_it_does_not_run_is_told", || {
        let plain = Checkpoint::open(&fixture("llama_a/llama_tied")).unwrap();
        let error = CudaModel::load(&plain, None, 0, &Images::default()).err().unwrap();
        assert!(matches!(error, CudaLoadError::UnsupportedModel { .. }), "{error}");
        let converted = Checkpoint::open(&fixture(GQLA)).unwrap();
        let error = CudaModel::load(&converted, None, 3, &Images::default()).err().unwrap().to_string();
        assert!(error.starts_with("CUDA device 3 cannot be opened"), "{error}");
        let tight = CudaEngineConfig {
            max_model_len: Some(256),
            kv_cache: CacheMemory::Bytes(40_000),
            ..CudaEngineConfig::default()
        };
        let error = CudaEngine::start(&converted, tight).err().unwrap().to_string();
        assert!(error.contains("a cache of 40000 bytes holds 1 blocks, expected at least 4"), "{error}");
        let layer = Speculation::new(DraftSource::PredictionLayer, 1).unwrap();
        let drafting = CudaEngineConfig { speculation: Some(layer), ..CudaEngineConfig::default() };
        let error = CudaEngine::start(&converted, drafting).err().unwrap().to_string();
        assert!(error.contains("no multi-token-prediction layer"), "{error}");
        let glm = Checkpoint::open(&fixture("glm_a/gqla")).unwrap();
        let (_folder, grafted) = rewrite::rewritten(&glm, rewrite::Dtype::F32, |tensors, _| {
            let (shape, rows) = tensors.get_mut("model.layers.4.self_attn.kv_b_proj.weight").unwrap();
            rows.extend_from_within(..);
            shape[0] *= 2;
        });
        let drafting = CudaEngineConfig { speculation: Some(layer), ..CudaEngineConfig::default() };
        let error = CudaEngine::start(&grafted, drafting).err().unwrap().to_string();
        assert!(error.contains("a prediction layer of 8 groups beside a decoder of 4"), "{error}");
        let not_drafting = load(&fixture(GQLA), Gqa).draft_logits(&[1], &[2]).unwrap_err().to_string();
        assert!(not_drafting.contains("was not prepared to draft"), "{not_drafting}");
    });
}

/// A driver of CUDA 12.4 reads no PTX from NVRTC 12.9: a model runs by machine code, and the log says of all its kernels which
/// step gave them and why those before did not.
#[test]
fn an_older_driver_runs_machine_code_and_the_log_says_why() {
    let test = stand_in("loading::an_older_driver_runs_machine_code_and_the_log_says_why");
    let log = test.env(Config::DRIVER_ENV, "12.4").run(|| {
        tracing_subscriber::fmt().with_ansi(false).init();
        let known: PathBuf = std::env::var_os(Config::CUBINS_ENV).unwrap().into();
        let checkpoint = Checkpoint::open(&fixture(GQLA)).unwrap();
        let load =
            || CudaModel::load(&checkpoint, Some(Gqa), 0, &Images::in_folder(Path::new("no/such/folder")));
        // A card that NVRTC's machine code is not for, and one that it is for.
        let error = load().err().unwrap().to_string();
        assert!(error.starts_with("no image of the kernels `gqa_decode-16-16-16` loads"), "{error}");
        for program in [Program::gqa_decode(16, 16, 16), Program::gemm(), Program::rows(), Program::sample()]
        {
            Images::write(&known, &program, &[(9, 0)]).unwrap();
        }
        let logits = load().unwrap().logits(&[1, 2, 3]).unwrap();
        assert!(logits.iter().all(|logit| logit.is_finite()));
    });
    let Some(log) = log else { return };
    for program in ["gqa_decode", "gemm", "rows", "sample"] {
        let loaded = log.lines().find(|line| line.contains(&format!("kernels loaded kernels=\"{program}")));
        let line = loaded.unwrap_or_else(|| panic!("{program}: {log}"));
        assert!(
            line.contains("source=cubin from NVRTC")
                && line.contains("cubin file: `no/such/folder/")
                && line.contains("PTX file: `no/such/folder/")
                && line.contains("PTX from NVRTC: CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)"),
            "{line}"
        );
    }
}

/// One mistake in each program that a model's step is made of, attention's apart: the first kernel that is off is named.
#[test]
fn wrong_kernels_are_refused_before_they_serve() {
    on_stand_in("loading::wrong_kernels_are_refused_before_they_serve", || {
        let checkpoint = Checkpoint::open(&fixture("glm_a/gqla")).unwrap();
        for (program, from, to, kernel) in [
            (Program::gemm(), "other < PARTS; other++", "other < PARTS - 1; other++", "gemm_narrow16_bf16"),
            (Program::rows(), "scale * p.weight[i]", "scale", "rms_norm_f32"),
            (Program::sample(), "| (u32)~id; }", "| (u32)id; }", "sample"),
            (Program::experts(), "fmaf(weight, answer.x", "fmaf(1.f, answer.x", "experts_narrow16_bf16"),
        ] {
            let text = program.text().to_owned();
            assert_eq!(text.matches(from).count(), 1, "{kernel}: its place is gone");
            let folder = tempfile::tempdir().unwrap();
            Images::write(folder.path(), &program.with_text(text.replace(from, to)), &[]).unwrap();
            let images = Images::in_folder(folder.path());
            let error = CudaModel::load(&checkpoint, Some(Gqa), 0, &images).err().unwrap().to_string();
            let start = format!("`{kernel}` on NVIDIA H20 is off by ");
            assert!(error.starts_with(&start) && error.contains("the model is not served"), "{error}");
        }
    });
}

/// Without a driver there is a sentence and no panic. On a machine that has one, there is nothing to show.
#[test]
fn without_a_driver_there_is_a_reason() {
    let converted = Checkpoint::open(&fixture(GQLA)).unwrap();
    if let Err(error) = CudaModel::load(&converted, None, 99, &Images::default()) {
        let error = error.to_string();
        let expected = ["libcuda.so.1 is not on this machine", "CUDA device 99 cannot be opened"];
        assert!(expected.iter().any(|start| error.starts_with(start)), "{error}");
    } else {
        panic!("nobody has a hundred devices");
    }
}
