//! One end-to-end run of the demo's steps on a real cluster, asserting on what a user would see.
//!
//! Cases run in order on one cluster, because a start costs more than most cases; each leaves what the next needs.

mod answers;
mod cuda;
mod decisions;
mod hardware;
mod lifecycle;
mod objects;
mod refusals;
mod rollout;

use std::time::Instant;

use anyhow::{Result, bail};
use gqla_testkit::tools::Tools;
use tokio::runtime::Runtime;

use crate::{
    binaries::{self, Binaries},
    demo_model, progress, prometheus, python,
    scenario::{World, hardware::HardwareWorld},
    shell::step,
};

/// Run the demo's steps on a real cluster and assert on what a user sees.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// One fleet only
    #[arg(long, value_enum)]
    fleet: Option<Fleet>,
}

/// A cluster with cases of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Fleet {
    /// The demo's: a model that answers, rollouts, Helm
    Demo,
    /// Nodes with stand-ins for GPUs: agents, device plugins, lying labels
    Hardware,
}

/// Runs every case and fails when one did. The tools come first, because that says in one sentence what the machine lacks.
pub fn run(args: &Args) -> Result<()> {
    Tools::obtain(&progress::bars())?;
    let binaries = binaries::build()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let mut tally = Tally::default();
    if args.fleet != Some(Fleet::Hardware) {
        demo(&runtime, &binaries, &mut tally)?;
    }
    if args.fleet != Some(Fleet::Demo) {
        hardware(&runtime, &binaries, &mut tally)?;
    }
    tally.verdict()
}

fn demo(runtime: &Runtime, binaries: &Binaries, tally: &mut Tally) -> Result<()> {
    let model = demo_model::prepare(&binaries.gqla)?;
    let python = python::with_openai()?;
    let world = step("Start the fleet and install the operator", || {
        runtime.block_on(World::start(binaries, &model, progress::bars()))
    })?;
    runtime.block_on(async {
        tally.case("the chart passes helm lint --strict", world.lint_chart()).await;
        tally.case("a real model answers on the planned paths", answers::talks(&world, &python)).await;
        tally
            .case("throughput adds up to the clients' usage", answers::throughput_matches_usage(&world))
            .await;
        tally
            .case(
                "H100 and H20 get different paths, and the shape decides",
                decisions::follow_the_shape(&world),
            )
            .await;
        tally.case("an unreadable model is named and stops nobody", refusals::unreadable_model(&world)).await;
        tally
            .case("a flipped path and a removed pool leave no orphan", rollout::flip_and_remove(&world))
            .await;
        tally
            .case("an operator restarted mid-rollout keeps every object", rollout::operator_restart(&world))
            .await;
        tally
            .case(
                "a CRD that gained a field works after helm upgrade",
                lifecycle::upgrade_with_new_field(&world),
            )
            .await;
        tally.case("kubectl delete leaves nothing behind", lifecycle::delete_leaves_nothing(&world)).await;
        tally
            .case("helm uninstall keeps CRDs, objects and serving pods", lifecycle::uninstall_keeps(&world))
            .await;
        tally.case("the cluster ends without a trace", lifecycle::teardown(world)).await;
    });
    Ok(())
}

/// What nodes really have, on a fleet of its own: pods that ask for GPUs must find some there.
fn hardware(runtime: &Runtime, binaries: &Binaries, tally: &mut Tally) -> Result<()> {
    let programs = prometheus::installed()?;
    let world = step("Start four nodes with stand-ins for GPUs, the operator and its agents", || {
        runtime.block_on(HardwareWorld::start(binaries, progress::bars()))
    })?;
    runtime.block_on(async {
        tally
            .case(
                "gqla nodes tells honest, mixed and lying nodes apart",
                hardware::nodes_are_what_nvml_says(&world),
            )
            .await;
        tally.case("agents at rest write nothing and stay small", hardware::agents_rest(&world)).await;
        tally
            .case(
                "pods decode with CUDA on stand-ins, along both paths, and say so",
                cuda::both_paths_answer(&world, &programs),
            )
            .await;
        tally.case("a wrong class gets no pod", hardware::wrong_class_gets_no_pod(&world)).await;
        tally.case("a pulled card is told within 10 s", hardware::pulled_card_is_told(&world)).await;
        tally
            .case("a hanging driver and lost agents change no plan", hardware::last_known_facts_serve(&world))
            .await;
        world.cluster.stop().await;
    });
    Ok(())
}

/// Counts cases and prints each with its time.
#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    async fn case(&mut self, name: &str, case: impl Future<Output = Result<()>>) {
        let start = Instant::now();
        match case.await {
            Ok(()) => {
                self.passed += 1;
                eprintln!("    ok   {name} ({:.1} s)", start.elapsed().as_secs_f64());
            }
            Err(error) => {
                self.failed += 1;
                eprintln!("    FAIL {name} ({:.1} s): {error:#}", start.elapsed().as_secs_f64());
            }
        }
    }

    fn verdict(self) -> Result<()> {
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed > 0 {
            bail!("{} end-to-end cases failed", self.failed);
        }
        Ok(())
    }
}
