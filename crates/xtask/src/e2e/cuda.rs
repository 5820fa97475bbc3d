//! Pods that decode with CUDA: the product's own image, pod specification and kernels, on nodes whose driver and GPUs are
//! stand-ins.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use gqla_api::{GQLADeploymentStatus, labels};
use gqla_model::DecodePath;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, LogParams},
};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::{
    prometheus::Prometheus,
    scenario::{
        NAMESPACE, chat,
        hardware::{HardwareWorld, MODEL},
        pod_metrics,
        throughput::{self, Recorder},
        wait,
    },
    shell::repo_root,
};

const NAME: &str = "tiny";
/// Images start, weights are read, and every kernel that attends tries itself, at a CPU's pace.
const READY: Duration = Duration::from_secs(90);
const GONE: Duration = Duration::from_secs(60);
/// Long enough for the operator to read the last tokens.
const SETTLE: Duration = Duration::from_secs(4);
/// Programs of a model: what attends, products, row-wise operations, and what chooses tokens.
const PROGRAMS: usize = 4;

/// What is expected of a pool.
struct Pool {
    name: &'static str,
    path: DecodePath,
    drafts: u32,
    nodes: &'static [&'static str],
}

/// H20s of a node whose label lies are as good as others.
const POOLS: [Pool; 2] = [
    Pool { name: "h100", path: DecodePath::MqaAbsorb, drafts: 0, nodes: &["h100-a"] },
    Pool { name: "h20", path: DecodePath::Gqa, drafts: 1, nodes: &["h20-a", "liar-a"] },
];

/// A pool along each path answers as the fixture's reference does, and everybody says which path it was.
pub async fn both_paths_answer(world: &HardwareWorld, programs: &Path) -> Result<()> {
    let pools = json!([
        {"name": "h100", "gpuClass": "H100", "minReplicas": 1, "decode": {"path": "MQAAbsorb", "multiTokenPrediction": "Off"}},
        {"name": "h20", "gpuClass": "H20", "minReplicas": 1, "decode": {"path": "GQA", "multiTokenPrediction": 1}},
    ]);
    let object = serde_json::from_value(HardwareWorld::tiny(NAME, &pools))?;
    let start = Instant::now();
    world.deployments().create(&Default::default(), &object).await?;
    let good = |status: &GQLADeploymentStatus| wait::is_true(status, "Available");
    let status = wait::status(&world.deployments(), NAME, "to be Available", READY, good).await?;
    eprintln!("         both pods ready after {:.1} s, measured", start.elapsed().as_secs_f64());
    planned(&status)?;

    let operator = world.operator_metrics().await?;
    let programs = programs.to_owned();
    let serving = pods(world).await?;
    let targets = serving.iter().map(|pod| pod_metrics(&world.cluster, pod));
    let targets = targets.chain([Ok(operator)]).collect::<Result<Vec<_>>>()?;
    let prometheus = tokio::task::spawn_blocking(move || Prometheus::start(programs, &targets)).await??;
    let recorder = Recorder::start(operator);
    let start = Instant::now();
    let [absorb, gqa] = &POOLS;
    let (absorb, gqa) = tokio::try_join!(answers(world, absorb), answers(world, gqa))?;
    eprintln!(
        "         {} tokens each after {:.1} s, measured",
        absorb.concat().len(),
        start.elapsed().as_secs_f64()
    );
    ensure!(absorb == gqa, "pools answer differently: {absorb:?} along absorb and {gqa:?} along GQA");
    let golden = &golden("greedy_1")?[..absorb[0].len()];
    ensure!(absorb[0] == golden, "pools answer {:?}, the reference {golden:?}", absorb[0]);
    tokio::time::sleep(SETTLE).await;
    let tokens = recorder.finish()?;

    let pods = pods(world).await?;
    for pool in &POOLS {
        let pod =
            pods.iter().find(|pod| pod.labels().get(labels::POOL).is_some_and(|name| name == pool.name));
        let pod = pod.with_context(|| format!("pool {} has no pod", pool.name))?;
        runs_as_planned(world, pool, pod).await?;
        let labels = [("deployment", NAME), ("pool", pool.name), ("path", pool.path.metric_label())]
            .map(|(label, value)| format!("{label}=\"{value}\""));
        let counted = tokens.iter().find(|(series, _)| labels.iter().all(|label| series.contains(label)));
        ensure!(
            counted.is_some_and(|(_, tokens)| *tokens > 0.0),
            "the operator measured no tokens of {labels:?}: {tokens:?}"
        );
    }
    tokio::task::spawn_blocking(move || in_prometheus(&prometheus, operator)).await??;
    world.deployments().delete(NAME, &DeleteParams::default()).await?;
    wait::until("its pods to end", GONE, || async {
        let left = self::pods(world).await?.len();
        Ok(if left == 0 { Ok(()) } else { Err(format!("{left} are left")) })
    })
    .await
}

/// What somebody sees who has Prometheus read the operator and the pods: throughput by path, and the tokens that it is made of.
fn in_prometheus(prometheus: &Prometheus, operator: SocketAddr) -> Result<()> {
    let up = prometheus.sum("up")?;
    ensure!(up == Some(3.0), "Prometheus reads {up:?} of the operator and two pods");
    for pool in &POOLS {
        let path = pool.path.metric_label();
        let throughput = format!(
            "max_over_time(gqla_path_throughput_tokens_per_second{{deployment=\"{NAME}\",pool=\"{}\",path=\"{path}\"}}[5m])",
            pool.name
        );
        let generated = format!("gqla_generated_tokens_total{{path=\"{path}\"}}");
        for expression in [throughput, generated] {
            let sum = prometheus.sum(&expression)?;
            ensure!(sum.is_some_and(|sum| sum > 0.0), "Prometheus has {sum:?} of {expression}");
        }
    }
    prometheus.check(&throughput::scrape(operator)?)
}

fn planned(status: &GQLADeploymentStatus) -> Result<()> {
    for pool in &POOLS {
        let planned = status.pools.iter().find(|planned| planned.name == pool.name);
        let planned = planned.with_context(|| format!("the status has no pool {}", pool.name))?;
        let found = (planned.path, planned.tensor_parallel, planned.multi_token_prediction, planned.ready);
        let expected = (pool.path, 1, pool.drafts, 1);
        ensure!(
            found == expected,
            "pool {}: path, TP, drafts and ready are {found:?}, expected {expected:?}",
            pool.name
        );
    }
    Ok(())
}

/// Token ids of two requests to a pool: a prompt of the reference, and one that its answer repeats.
async fn answers(world: &HardwareWorld, pool: &Pool) -> Result<[Vec<u32>; 2]> {
    let services: Api<Service> = Api::namespaced(world.client.clone(), NAMESPACE);
    let own = format!("{}={NAME},{}={}", labels::DEPLOYMENT, labels::POOL, pool.name);
    let service = services.list(&ListParams::default().labels(&own)).await?;
    let service = service.items.first().with_context(|| format!("pool {} has no Service", pool.name))?;
    let address = world.cluster.forward_service(NAMESPACE, &service.name_any(), 80).await?;
    let requests =
        [json!({"model": NAME, "prompt": golden("ids_1")?, "max_tokens": 8, "temperature": 0}), repeating()];
    let ask = move || -> Result<[Vec<u32>; 2]> {
        let [first, second] = requests.map(|request| chat::complete(address, &request));
        Ok([first?, second?])
    };
    tokio::task::spawn_blocking(ask).await?
}

/// Two tokens are likely, and the one that was drawn becomes likelier: margins that no rounding crosses, and drafts that hit.
fn repeating() -> Value {
    let prompt: Vec<u32> = (0..24).map(|i| i % 4 * 9).collect();
    json!({
        "model": NAME, "prompt": prompt, "max_tokens": 8, "temperature": 0,
        "logit_bias": {"9": 50, "18": 50}, "frequency_penalty": -1,
    })
}

/// A list of token ids of the fixture's reference, which is PyTorch code of its own.
fn golden(name: &str) -> Result<Vec<u32>> {
    let path = repo_root()?.join(MODEL).join("golden.safetensors");
    let file = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let tensors = SafeTensors::deserialize(&file)?;
    let words = tensors.tensor(name)?.data().chunks_exact(4);
    words.map(|word| Ok(u32::from_le_bytes(word.try_into()?))).collect()
}

async fn pods(world: &HardwareWorld) -> Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), NAMESPACE);
    Ok(pods.list(&ListParams::default().labels(&format!("{}={NAME}", labels::DEPLOYMENT))).await?.items)
}

/// Where the pod is, which kernels it loaded from where, and what it says of its path and its drafts.
async fn runs_as_planned(world: &HardwareWorld, pool: &Pool, pod: &Pod) -> Result<()> {
    let name = pod.name_any();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    ensure!(pool.nodes.contains(&node.as_str()), "{name} is on {node}, expected {:?}", pool.nodes);
    let restarts: i32 = pod
        .status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten())
        .map(|c| c.restart_count)
        .sum();
    ensure!(restarts == 0, "{name} was restarted {restarts} times");

    let pods: Api<Pod> = Api::namespaced(world.client.clone(), NAMESPACE);
    let log = pods.logs(&name, &LogParams::default()).await?;
    let loaded: Vec<_> = log.lines().filter(|line| line.contains("kernels loaded")).collect();
    let from_image = loaded.iter().filter(|line| line.contains("PTX file")).count();
    ensure!(
        log.contains("gqla-fakecuda: this is no CUDA driver")
            && (loaded.len(), from_image) == (PROGRAMS, PROGRAMS),
        "{name} did not load the image's PTX of {PROGRAMS} programs into the stand-in: {log}"
    );

    let address = pod_metrics(&world.cluster, pod)?;
    let metrics = tokio::task::spawn_blocking(move || throughput::scrape(address)).await??;
    let path = format!("path=\"{}\"", pool.path.metric_label());
    let value = |series: &str| {
        let lines = metrics
            .lines()
            .filter(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with('{')));
        lines
            .filter_map(|line| Some((line, line.rsplit_once(' ')?.1.parse().ok()?)))
            .collect::<BTreeMap<_, f64>>()
    };
    for series in ["gqla_decode_path", "gqla_generated_tokens_total"] {
        let told = value(series);
        let right = told.iter().all(|(line, value)| line.contains(&path) && *value > 0.0);
        ensure!(!told.is_empty() && right, "{name} says of its path {told:?}, expected {path}");
    }
    let layer = log.contains("drafting method chosen method=\"mtp\"");
    ensure!(
        layer == (pool.drafts > 0),
        "{name} drafts by the model's layer where its pool does not, or the reverse: {log}"
    );
    let accepted: f64 = value("vllm:spec_decode_num_accepted_tokens_total").values().sum();
    ensure!((accepted > 0.0) == (pool.drafts > 0), "{name} took {accepted} drafted tokens");
    Ok(())
}
