//! Decisions as people are shown them.

use std::{collections::BTreeMap, fmt::Write as _};

use gqla_api::{Device, PoolStatus};

use super::view::{DeploymentView, NodeView, PoolView, View};
use crate::table::columns;

/// Nodes of one fate that are named before the rest is counted.
const NAMED: usize = 8;

/// Every decision, what failed, and the nodes that no pool counts on.
pub(super) fn table(view: &View<'_>) -> String {
    view.deployments.iter().map(of_deployment).collect::<Vec<_>>().join("\n")
}

fn of_deployment(deployment: &DeploymentView<'_>) -> String {
    let mut text = format!("GQLADeployment {}/{}\n", deployment.namespace, deployment.name);
    if !deployment.pools.is_empty() {
        text.push_str(&of_pools(&deployment.pools));
    }
    for pool in &deployment.pools {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "pool {}: {}", pool.status.name, pool.status.reason);
        let _ = writeln!(text, "  attention kernels {}", pool.decision.basis.unwrap_or_default());
        if let Some(note) = &pool.status.note {
            let _ = writeln!(text, "  note: {note}");
        }
    }
    for failure in &deployment.failures {
        let _ = writeln!(text, "{}: {}", failure.reason, failure.sentence);
    }
    text + &unused(&deployment.nodes)
}

fn of_pools(pools: &[PoolView<'_>]) -> String {
    let header = [
        "POOL",
        "CLASS",
        "NODES",
        "GPUS",
        "PATH",
        "TP",
        "MTP",
        "REPLICAS",
        "B/TOKEN",
        "FLOP/B",
        "RIDGE",
        "BOUND",
        "TOKENS/S",
        "MS/TOKEN",
        "MARGIN",
        "RUNNER-UP",
    ];
    columns(header, &pools.iter().map(row).collect::<Vec<_>>())
}

fn row(pool: &PoolView<'_>) -> [String; 16] {
    let PoolView { status, decision, .. } = pool;
    let chosen = decision.chosen.as_ref();
    let figure = |value: Option<f64>, digits: usize| or_dash(value.map(|value| format!("{value:.digits$}")));
    [
        status.name.clone(),
        status.gpu_class.clone(),
        pool.nodes.to_string(),
        pool.gpus.to_string(),
        path(status),
        status.tensor_parallel.to_string(),
        status.multi_token_prediction.to_string(),
        status.replicas.to_string(),
        or_dash(status.bytes_per_token.map(|bytes| bytes.to_string())),
        figure(status.arithmetic_intensity, 1),
        figure(status.ridge, 1),
        or_dash(chosen.map(|chosen| chosen.bound.to_owned())),
        figure(chosen.map(|chosen| chosen.tokens_per_second), 0),
        figure(chosen.map(|chosen| chosen.time_per_output_token_ms), 2),
        margin(pool),
        or_dash(
            decision
                .runner_up
                .as_ref()
                .map(|other| format!("{} tp{} mtp{}", other.path, other.tp, other.s_q - 1)),
        ),
    ]
}

/// A path on the CPU backend is marked: figures are those of the class.
fn path(status: &PoolStatus) -> String {
    let backend = if status.device == Device::Cpu { " on CPU" } else { "" };
    format!("{}{backend}", status.path.flag())
}

fn margin(pool: &PoolView<'_>) -> String {
    let close = if pool.decision.close == Some(true) { " close" } else { "" };
    or_dash(pool.decision.margin.map(|margin| format!("{:.0} %{close}", margin * 100.0)))
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// The nodes no pool counts on, those of one fate in one line.
fn unused(nodes: &[NodeView<'_>]) -> String {
    let mut fates: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for node in nodes.iter().filter(|node| !node.used) {
        fates.entry((node.class.unwrap_or("no class"), node.why)).or_default().push(node.node);
    }
    let line = |((class, why), names): ((&str, &str), Vec<&str>)| {
        let word = if names.len() == 1 { "node" } else { "nodes" };
        let more = names.len().saturating_sub(NAMED);
        let rest = if more > 0 { format!(" and {more} more (-o json names all)") } else { String::new() };
        let named = names[..names.len().min(NAMED)].join(", ");
        format!("not used: {word} {named}{rest} ({class}): {why}\n")
    };
    fates.into_iter().map(line).collect()
}
