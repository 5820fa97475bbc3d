//! The machines: three real nodes that run pods, and four that are only API objects and have GPUs.

use std::path::PathBuf;

use anyhow::Result;
use gqla_testkit::{
    cluster::{Cluster, KwokNode},
    progress::Progress,
};

/// GPU feature discovery's label with the product name.
pub const PRODUCT: &str = "nvidia.com/gpu.product";
const H100: &str = "NVIDIA-H100-80GB-HBM3";
const H20: &str = "NVIDIA-H20";

/// Starts the cluster with `images` on every real node. Real nodes advertise no `nvidia.com/gpu`, because they have
/// none; the kwok nodes do, so only they are usable where a GPU is asked for.
pub async fn start(images: &[PathBuf], progress: Progress) -> Result<Cluster> {
    let mut builder = Cluster::builder()
        .progress(progress)
        .node("h100-a")
        .label(PRODUCT, H100)
        .node("h20-a")
        .label(PRODUCT, H20)
        .node("cpu-a")
        .kwok_nodes(2, gpus("kwok-h100", H100))
        .kwok_nodes(2, gpus("kwok-h20", H20));
    for image in images {
        builder = builder.image(image);
    }
    Ok(builder.start().await?)
}

fn gpus(prefix: &str, product: &str) -> KwokNode {
    KwokNode::new(prefix)
        .label(PRODUCT, product)
        .label("nvidia.com/gpu.count", "8")
        .capacity("nvidia.com/gpu", "8")
}
