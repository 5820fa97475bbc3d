//! `gqla-server inspect`: tells the operator what a model is, through the pod's termination message.

use std::path::Path;

use anyhow::{Context, bail};
use gqla_model::ModelShape;
use gqla_weights::Checkpoint;
use serde::Serialize;

use crate::args::InspectTarget;

/// A kubelet keeps this much of a termination message.
const MAX_BYTES: usize = 4096;

/// What the file holds.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Report {
    #[serde(rename_all = "camelCase")]
    Model {
        shape: ModelShape,
        weight_bytes: u64,
    },
    Error {
        error: String,
    },
}

/// Writes the report. An error is written too, and then ends the process with exit code 1.
pub fn run(target: &InspectTarget) -> anyhow::Result<()> {
    let report = inspect(&target.model).unwrap_or_else(|error| Report::Error { error: format!("{error:#}") });
    let text = fit(&report)?;
    std::fs::write(&target.output, &text)
        .with_context(|| format!("cannot write `{}`", target.output.display()))?;
    match report {
        Report::Model { .. } => Ok(()),
        Report::Error { error } => bail!(error),
    }
}

fn inspect(model: &Path) -> anyhow::Result<Report> {
    let checkpoint =
        Checkpoint::open(model).with_context(|| format!("cannot serve `{}`", model.display()))?;
    let shape = checkpoint.model_shape()?;
    let weight_bytes = checkpoint
        .names()
        .map(|name| Ok(checkpoint.tensor(name)?.bytes().len() as u64))
        .sum::<anyhow::Result<u64>>()?;
    Ok(Report::Model { shape, weight_bytes })
}

/// The report as JSON; a sentence that would not fit loses its end.
fn fit(report: &Report) -> serde_json::Result<String> {
    let text = serde_json::to_string(report)?;
    match report {
        Report::Error { error } if text.len() > MAX_BYTES => {
            // JSON escapes at most sextuple a byte; half the budget over six is always short enough.
            let error = error.chars().take(MAX_BYTES / 12).collect::<String>() + "…";
            serde_json::to_string(&Report::Error { error })
        }
        _ => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn run_on(model: PathBuf) -> (bool, serde_json::Value) {
        let dir = tempfile::tempdir().unwrap();
        let target = InspectTarget { model, output: dir.path().join("out") };
        let ok = run(&target).is_ok();
        let text = std::fs::read_to_string(&target.output).unwrap();
        (ok, serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn a_converted_model_reports_its_shape_and_bytes() {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama_a/llama_gqla_a");
        let config: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(fixture.join("config.json")).unwrap()).unwrap();
        let file_bytes = std::fs::metadata(fixture.join("model.safetensors")).unwrap().len();
        let (ok, report) = run_on(fixture);
        assert!(ok);
        assert_eq!(report["shape"]["kvLoraRank"], config["kv_lora_rank"]);
        assert_eq!(report["shape"]["numHiddenLayers"], config["num_hidden_layers"]);
        let bytes = report["weightBytes"].as_u64().unwrap();
        assert!(bytes > 0 && bytes < file_bytes && file_bytes - bytes < 64 * 1024, "{bytes} of {file_bytes}");
    }

    #[test]
    fn a_missing_model_is_an_error_that_names_the_path() {
        let (ok, report) = run_on(PathBuf::from("/no/such/model"));
        assert!(!ok);
        assert!(report["error"].as_str().unwrap().contains("/no/such/model"), "{report}");
    }

    #[test]
    fn endless_sentences_still_fit() {
        let text = fit(&Report::Error { error: "\u{1}".repeat(100_000) }).unwrap();
        assert!(text.len() <= MAX_BYTES, "{}", text.len());
        serde_json::from_str::<serde_json::Value>(&text).unwrap();
    }
}
