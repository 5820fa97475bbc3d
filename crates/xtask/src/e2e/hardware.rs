//! What nodes really have, as NVML tells their agents: on real kubelets, with a stand-in below NVML's C interface.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gqla_api::{GQLADeploymentStatus, PoolStatus, labels};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{Node, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    scenario::{NAMESPACE, OPERATOR_NAMESPACE, hardware::HardwareWorld, wait},
    usage::Usage,
};

const LIMIT: Duration = Duration::from_secs(60);
/// A card that is gone has to be told within this.
const PULLED: Duration = Duration::from_secs(10);
/// Three periods of an agent.
const AT_REST: Duration = Duration::from_secs(16);
/// Most resident memory of an agent.
const AGENT_KIB: u64 = 20 * 1024;
const AGENT: &str = "gqla-agent";
const NAME: &str = "deepseek";

/// `gqla nodes` knows an honest node, a mixed one and a lying one apart.
pub async fn nodes_are_what_nvml_says(world: &HardwareWorld) -> Result<()> {
    let expected = [
        ("h100-a", json!("H100"), 8, None),
        ("h20-a", json!("H20"), 8, None),
        ("mixed-a", Value::Null, 8, Some("MixedModels")),
        ("liar-a", json!("H20"), 8, Some("LyingLabel")),
    ];
    for (node, class, gpus, problem) in expected {
        wait::until(&format!("{node} to be told"), LIMIT, || async {
            let row = world.node(node)?;
            let right = row["class"]["value"] == class
                && (class.is_null() || row["class"]["source"] == "Nvml")
                && row["gpus"]["usable"] == gpus
                && row["driver"] == "Ready"
                && kinds(&row) == problem.into_iter().collect::<Vec<_>>();
            Ok(if right { Ok(()) } else { Err(format!("gqla nodes says {row}")) })
        })
        .await?;
    }
    Ok(())
}

/// A node whose GPUs do not change is never written to by its agent, and the agent is small.
pub async fn agents_rest(world: &HardwareWorld) -> Result<()> {
    let (before, started) = (written(world).await?, Usage::of_all(AGENT)?);
    tokio::time::sleep(AT_REST).await;
    let (after, agents) = (written(world).await?, Usage::of_all(AGENT)?);
    ensure!(before == after, "agents wrote to nodes at rest: {before:?} became {after:?}");
    let unwritten: Vec<_> =
        after.iter().filter(|(_, times)| times.is_empty()).map(|(node, _)| node).collect();
    ensure!(unwritten.is_empty(), "no agent ever wrote to {unwritten:?}");
    ensure!(agents.len() >= 4, "{} agents run, expected one on each of 4 nodes", agents.len());
    let resident: Vec<u64> = agents.iter().map(|agent| agent.resident_kib).collect();
    let busy = |agents: &[Usage]| agents.iter().map(|agent| agent.cpu_seconds).sum::<f64>();
    let share = (busy(&agents) - busy(&started)) / AT_REST.as_secs_f64() / agents.len() as f64 * 100.0;
    eprintln!("         agents at rest, measured: {resident:?} KiB resident, {share:.2} % of a core each");
    ensure!(
        resident.iter().all(|kib| *kib <= AGENT_KIB),
        "an agent takes more than {AGENT_KIB} KiB: {resident:?}"
    );
    Ok(())
}

/// When agents last wrote each Node, by the field manager's own record.
async fn written(world: &HardwareWorld) -> Result<Vec<(String, String)>> {
    let nodes = Api::<Node>::all(world.client.clone()).list(&ListParams::default()).await?;
    let entry = |node: &Node| {
        let fields = node.metadata.managed_fields.iter().flatten();
        let of_agent = fields.filter(|entry| entry.manager.as_deref() == Some(labels::AGENT_MANAGER));
        let times: Vec<_> = of_agent.filter_map(|entry| Some(entry.time.as_ref()?.0.to_string())).collect();
        (node.name_any(), times.join(","))
    };
    Ok(nodes.iter().map(entry).collect())
}

/// Pools of H100s and H20s get pods on nodes that have them, a pool of H200s gets none.
pub async fn wrong_class_gets_no_pod(world: &HardwareWorld) -> Result<()> {
    let pools = json!([
        {"name": "h100", "gpuClass": "H100", "minReplicas": 2},
        {"name": "h20", "gpuClass": "H20", "minReplicas": 2},
        {"name": "h200", "gpuClass": "H200"},
    ]);
    let object = serde_json::from_value(HardwareWorld::deepseek(NAME, &pools))?;
    world.deployments().create(&Default::default(), &object).await?;
    let planned = |status: &GQLADeploymentStatus| {
        let refused = status.conditions.iter().find(|c| c.type_ == "Planned");
        refused.is_some_and(|c| c.reason == "NoUsableNodes" && c.message.contains("H200"))
            && status.conditions.iter().any(|c| {
                c.type_ == "HardwareRecognized"
                    && c.status == "False"
                    && c.message.contains("liar-a")
                    && c.message.contains("mixed-a")
            })
    };
    wait::status(&world.deployments(), NAME, "to tell what is wrong with nodes", LIMIT, planned).await?;
    wait::until("every pod to have a node", LIMIT, || async {
        let placed = placed(world).await?;
        let bound = placed.iter().filter(|(_, node)| node.is_some()).count();
        Ok(if bound == 4 { Ok(()) } else { Err(format!("pods are on {placed:?}")) })
    })
    .await?;
    for (pool, node) in placed(world).await? {
        let node = node.context("a pod lost its node")?;
        let right = match pool.as_str() {
            "h100" => node == "h100-a",
            "h20" => node == "h20-a" || node == "liar-a",
            _ => false,
        };
        ensure!(right, "a pod of pool {pool} is on {node}");
    }
    Ok(())
}

/// Pool and node of every pod.
async fn placed(world: &HardwareWorld) -> Result<Vec<(String, Option<String>)>> {
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), NAMESPACE);
    let pods = pods.list(&ListParams::default().labels(&format!("{}={NAME}", labels::DEPLOYMENT))).await?;
    let of = |pod: &Pod| {
        let pool = pod.labels().get(labels::POOL).cloned().unwrap_or_default();
        (pool, pod.spec.as_ref().and_then(|spec| spec.node_name.clone()))
    };
    Ok(pods.iter().map(of).collect())
}

/// A card that falls off the bus is told on its node and in the status of the pools there.
pub async fn pulled_card_is_told(world: &HardwareWorld) -> Result<()> {
    let gpus = world.cluster.gpus("h20-a")?;
    let start = Instant::now();
    gpus.pull(3)?;
    wait::until("h20-a to lose a GPU", PULLED, || async {
        let row = world.node("h20-a")?;
        let told =
            kinds(&row) == ["GpuLost"] && row["gpus"]["usable"] == 7 && row["gpus"]["allocatable"] == 7;
        Ok(if told { Ok(()) } else { Err(format!("gqla nodes says {row}")) })
    })
    .await?;
    let told = |status: &GQLADeploymentStatus| {
        let note = pool(status, "h20").and_then(|pool| pool.note.clone()).unwrap_or_default();
        note.contains("h20-a") && note.contains("GPU 3")
    };
    let left = PULLED.saturating_sub(start.elapsed());
    wait::status(&world.deployments(), NAME, "to name the lost GPU in pool h20", left, told).await?;
    eprintln!(
        "         told on the node and in the pool after {:.1} s, measured",
        start.elapsed().as_secs_f64()
    );
    gpus.restore(3)?;
    wait::until("h20-a to have its GPU again", LIMIT, || async {
        let row = world.node("h20-a")?;
        Ok(if row["gpus"]["usable"] == 8 { Ok(()) } else { Err(format!("gqla nodes says {row}")) })
    })
    .await
}

/// A driver that hangs or goes, and agents that are gone, change nothing but what is said of the facts.
pub async fn last_known_facts_serve(world: &HardwareWorld) -> Result<()> {
    let before = decided(world).await?;
    world.cluster.gpus("h20-a")?.hang(3600.0)?;
    world.cluster.gpus("h100-a")?.remove_driver()?;
    for (node, driver) in [("h20-a", "Hanging"), ("h100-a", "Missing")] {
        wait::until(&format!("the driver of {node} to be {driver}"), LIMIT, || async {
            let row = world.node(node)?;
            let told = row["driver"] == driver && !row["class"].is_null() && row["gpus"]["usable"] == 8;
            Ok(if told { Ok(()) } else { Err(format!("gqla nodes says {row}")) })
        })
        .await?;
    }
    same(world, &before).await?;

    let agents: Api<DaemonSet> = Api::namespaced(world.client.clone(), OPERATOR_NAMESPACE);
    let name =
        agents.list(&ListParams::default()).await?.items.first().context("there is no DaemonSet")?.name_any();
    let nowhere = json!({"spec": {"template": {"spec": {"nodeSelector": {"example.com/nowhere": "true"}}}}});
    agents.patch(&name, &PatchParams::default(), &Patch::Merge(nowhere)).await?;
    let stale = |status: &GQLADeploymentStatus| {
        let message = |c: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| c.message.clone();
        status
            .conditions
            .iter()
            .map(message)
            .chain(status.pools.iter().filter_map(|pool| pool.note.clone()))
            .any(|text| text.contains("last known") && text.contains("60 s"))
    };
    wait::status(&world.deployments(), NAME, "to tell how old facts are", LIMIT * 2, stale).await?;
    same(world, &before).await
}

/// What was decided, and how often each pool's objects were changed.
async fn decided(world: &HardwareWorld) -> Result<Vec<String>> {
    let status = world.deployments().get(NAME).await?.status.unwrap_or_default();
    let deployments: Api<Deployment> = Api::namespaced(world.client.clone(), NAMESPACE);
    let owned = ListParams::default().labels(&format!("{}={NAME}", labels::DEPLOYMENT));
    let generations = deployments.list(&owned).await?;
    let pool = |pool: &PoolStatus| format!("{} {:?} {}", pool.name, pool.path, pool.tensor_parallel);
    let generation = |one: &Deployment| {
        let replicas = one.spec.as_ref().and_then(|spec| spec.replicas);
        format!("{} generation {:?} replicas {replicas:?}", one.name_any(), one.metadata.generation)
    };
    Ok(status.pools.iter().map(pool).chain(generations.iter().map(generation)).collect())
}

async fn same(world: &HardwareWorld, before: &[String]) -> Result<()> {
    let after = decided(world).await?;
    ensure!(before == after, "the plan changed: {before:?} became {after:?}");
    Ok(())
}

fn pool<'a>(status: &'a GQLADeploymentStatus, name: &str) -> Option<&'a PoolStatus> {
    status.pools.iter().find(|pool| pool.name == name)
}

fn kinds(row: &Value) -> Vec<&str> {
    row["problems"].as_array().into_iter().flatten().filter_map(|problem| problem["kind"].as_str()).collect()
}
