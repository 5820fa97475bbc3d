//! The talking sample: a real model on three real nodes, behind one Service.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Result, ensure};
use gqla_model::DecodePath;

use crate::{
    scenario::{NAMESPACE, TALKING, World, chat, throughput},
    shell::{capture, repo_root},
};

/// Covers three image starts, the inspect Job and loading 269 MB of weights on shared cores.
const START_LIMIT: Duration = Duration::from_secs(180);
const QUESTION: &str = "What is the capital of France?";
/// The metric's sampling may miss this share of the tokens clients were billed.
const TOLERANCE: f64 = 0.05;
/// Long enough for the operator to scrape the last tokens.
const SETTLE: Duration = Duration::from_secs(4);

pub async fn talks(world: &World, python: &Path) -> Result<()> {
    world.apply_sample(TALKING).await?;
    let status = world.available(TALKING, START_LIMIT).await?;
    ensure!(status.ready_replicas == 3, "{} of 3 replicas are ready", status.ready_replicas);
    let path_of =
        |class: &str| status.pools.iter().find(|pool| pool.gpu_class == class).map(|pool| pool.path);
    for (class, expected) in
        [("H100", DecodePath::MqaAbsorb), ("H20", DecodePath::MqaAbsorb), ("CPU", DecodePath::Gqa)]
    {
        ensure!(
            path_of(class) == Some(expected),
            "{class} decodes on {:?}, expected {expected}",
            path_of(class)
        );
    }
    let pods_say_so =
        status.pools.iter().filter(|pool| pool.gpu_class != "CPU").all(|pool| pool.note.is_some());
    ensure!(pods_say_so, "the status of a GPU class served by the CPU backend carries no note");

    let service = world.cluster.forward_service(NAMESPACE, TALKING, 80).await?;
    let answer =
        tokio::task::spawn_blocking(move || chat::ask(service, TALKING, QUESTION, 24, |_| {})).await??;
    ensure!(answer.text.contains("Paris"), "asked {QUESTION:?}, got {:?}", answer.text);
    let client = repo_root()?.join("tests/clients/openai_stream.py");
    let printed = capture(
        Command::new(python).arg(client).arg(format!("http://{service}/v1")).args([TALKING, QUESTION]),
    )?;
    let reply: serde_json::Value = serde_json::from_str(&printed)?;
    ensure!(reply["text"] == answer.text, "the openai client read {reply}, ours {:?}", answer.text);
    ensure!(reply["completion_tokens"] == answer.completion_tokens, "usage differs: {reply} and {answer:?}");
    Ok(())
}

pub async fn throughput_matches_usage(world: &World) -> Result<()> {
    let service = world.cluster.forward_service(NAMESPACE, TALKING, 80).await?;
    let operator = world.operator_metrics().await?;
    tokio::time::sleep(SETTLE).await;
    let recorder = throughput::Recorder::start(operator);
    let billed = tokio::task::spawn_blocking(move || -> Result<u64> {
        let questions =
            ["Tell me a long story about a fox.", "Explain how rivers form.", "Describe a city at night."];
        let mut tokens = 0;
        for question in questions.iter().cycle().take(9) {
            tokens += chat::ask(service, TALKING, question, 160, |_| {})?.completion_tokens;
        }
        Ok(tokens)
    })
    .await??;
    tokio::time::sleep(SETTLE).await;
    let integral = recorder.finish()?;
    let counted: f64 = integral.values().sum();
    let difference = (counted - billed as f64).abs() / billed as f64;
    ensure!(
        difference <= TOLERANCE,
        "the metric integrates to {counted:.0} tokens, clients were billed {billed}: {:.1} % apart ({integral:?})",
        difference * 100.0
    );
    Ok(())
}
