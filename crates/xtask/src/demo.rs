//! `cargo xtask demo`: the product at work on this machine, until Ctrl-C.

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};

use anyhow::{Context, Result};
use gqla_api::GQLADeploymentStatus;
use gqla_testkit::tools::Tools;

use crate::{
    binaries, demo_model, progress,
    scenario::{DEEPSEEK, NAMESPACE, TALKING, World, chat, throughput},
    shell::step,
};

/// Covers image starts, the inspect Job and loading weights on a small machine.
const START_LIMIT: Duration = Duration::from_secs(240);
const QUESTION: &str = "What is the capital of France?";

/// Show the product on a real cluster on this machine, until Ctrl-C.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Port of 127.0.0.1 that the OpenAI API is reachable at
    #[arg(long, default_value_t = 8080)]
    port: u16,
}

/// Runs the demo.
pub fn run(args: &Args) -> Result<()> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
    drop(TcpListener::bind(listen).with_context(|| {
        format!("{listen} is taken: stop what listens there, or choose another port with --port")
    })?);
    Tools::obtain(&progress::bars())?;
    let binaries = binaries::build()?;
    let model = demo_model::prepare(&binaries.gqla)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let world = step("Start three nodes (H100, H20, CPU) and install the operator with Helm", || {
        runtime.block_on(World::start(&binaries, &model, progress::bars()))
    })?;
    runtime.block_on(show(&world, listen))?;
    step("Stop the cluster", || {
        runtime.block_on(world.cluster.stop());
        Ok(())
    })
}

async fn show(world: &World, listen: SocketAddr) -> Result<()> {
    println!("\n--- kubectl apply -f deploy/samples/{TALKING}.yaml");
    world.apply_sample(TALKING).await?;
    let status = world.available(TALKING, START_LIMIT).await?;
    decisions(TALKING, &status);

    let service = world.service_address(TALKING).await?;
    world.cluster.forward_from(listen, &service)?;
    println!("\n--- {QUESTION}");
    let answer = tokio::task::spawn_blocking(move || {
        chat::ask(listen, TALKING, QUESTION, 48, |piece| {
            print!("{piece}");
            // A terminal that went away does not stop the demo.
            let _ = std::io::stdout().flush();
        })
    })
    .await??;
    println!(
        "\n    {} tokens, first after {:.0} ms, all after {:.0} ms (measured on this machine's CPU)",
        answer.completion_tokens,
        answer.time_to_first_token.as_secs_f64() * 1e3,
        answer.total.as_secs_f64() * 1e3
    );

    println!("\n--- kubectl apply -f deploy/samples/{DEEPSEEK}.yaml");
    world.apply_sample(DEEPSEEK).await?;
    let status = world.available(DEEPSEEK, START_LIMIT).await?;
    decisions(DEEPSEEK, &status);
    println!("    (these nodes and their pods exist as API objects only; nothing decodes on them)");

    println!("\n--- kubectl get gqla -o wide");
    print!("{}", world.cluster.kubectl(["get", "gqla", "--namespace", NAMESPACE, "--output", "wide"]).await?);
    println!("\n--- throughput per path, from the operator's metrics");
    per_path(world, listen).await?;

    println!("\nThe OpenAI API is at http://{listen}/v1 (model `{TALKING}`), and the cluster answers to");
    println!("    export KUBECONFIG={}", world.cluster.kubeconfig().display());
    println!(
        "Pods decode on the CPU of this machine, along the path planned for their node's class. Ctrl-C ends everything."
    );
    tokio::signal::ctrl_c().await.context("cannot wait for Ctrl-C")?;
    println!();
    Ok(())
}

fn decisions(name: &str, status: &GQLADeploymentStatus) {
    println!("{name}: {}", status.message.as_deref().unwrap_or("available"));
    for pool in &status.pools {
        println!(
            "    {:<8} {:<6} path {:<10} TP {} MTP {}  {}",
            pool.name,
            pool.gpu_class,
            pool.path,
            pool.tensor_parallel,
            pool.multi_token_prediction,
            pool.reason
        );
        if let Some(note) = &pool.note {
            println!("    {:<8} note: {note}", "");
        }
    }
}

/// Keeps every pod busy for a moment and prints what the operator makes of it.
async fn per_path(world: &World, listen: SocketAddr) -> Result<()> {
    let operator = world.operator_metrics().await?;
    let load: Vec<_> = (0..6)
        .map(|_| {
            tokio::task::spawn_blocking(move || chat::ask(listen, TALKING, "Tell me a story.", 96, |_| {}))
        })
        .collect();
    let mut seen = std::collections::BTreeMap::new();
    while !load.iter().all(tokio::task::JoinHandle::is_finished) {
        let exposition = tokio::task::spawn_blocking(move || throughput::scrape(operator)).await??;
        for (labels, rate) in throughput::rates(&exposition) {
            let best: &mut f64 = seen.entry(labels).or_default();
            *best = best.max(rate);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for answer in load {
        answer.await??;
    }
    for (labels, rate) in seen {
        println!("    gqla_path_throughput_tokens_per_second{{{labels}}} {rate:.1}");
    }
    Ok(())
}
