//! The figures the GQLA paper argues with, computed by the planner's own formulas.

use std::fmt::Write;

use anyhow::Context;
use gqla_model::{DecodePath, TensorParallelSplit};
use gqla_planner::{AttentionCore, CacheLayout, Catalogue, GpuSpec, ModelName, shape};
use serde::Serialize;

use crate::table::{TableFormat, columns};

/// Prints the figures.
pub fn run(format: TableFormat) -> anyhow::Result<()> {
    format.print(&PaperView::compute()?, table)?;
    Ok(())
}

/// The JSON form of the paper's figures. Field names are an interface.
#[derive(Serialize)]
struct PaperView {
    /// LLaMA-3-8B: cached latent and rope key over the keys and values of its own GQA, percent.
    llama_3_8b_cache_percent: f64,
    latent_elements: u64,
    gqa_baseline_elements: u64,
    /// Per query token, ns.
    h20_absorb_s_q_1_ns: f64,
    /// Per query token, ns.
    h20_gqa_s_q_2_ns: f64,
    /// The first of the two over the second.
    h20_speedup: f64,
    model: &'static str,
    rope_layout: &'static str,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    gpu: String,
    path: &'static str,
    s_q: u32,
    ns_per_query_token: f64,
    bytes_per_token_layer: u64,
    flops_per_token_layer: u64,
    intensity: f64,
    ridge: f64,
    bound: &'static str,
}

impl PaperView {
    fn compute() -> anyhow::Result<Self> {
        let llama = shape(ModelName::Llama38bGqla).attention;
        let latent = llama.kv_elements(DecodePath::MqaAbsorb);
        let baseline = 2 * u64::from(llama.num_key_value_heads) * u64::from(llama.qk_nope_head_dim);
        let catalogue = Catalogue::builtin();
        let spec = |name| catalogue.get(name).map(|class| &class.spec).context("the catalogue lost a class");
        let (h100, h20) = (spec("H100")?, spec("H20")?);
        let mut rows = Vec::new();
        for gpu in [h100, h20] {
            for path in DecodePath::ALL {
                for query_tokens in [1, 2] {
                    rows.push(Row::new(gpu, path, query_tokens)?);
                }
            }
        }
        let absorb = Row::new(h20, DecodePath::MqaAbsorb, 1)?.ns_per_query_token;
        let gqa = Row::new(h20, DecodePath::Gqa, 2)?.ns_per_query_token;
        Ok(Self {
            llama_3_8b_cache_percent: latent as f64 / baseline as f64 * 100.0,
            latent_elements: latent,
            gqa_baseline_elements: baseline,
            h20_absorb_s_q_1_ns: absorb,
            h20_gqa_s_q_2_ns: gqa,
            h20_speedup: absorb / gqa,
            model: ModelName::DeepseekV3Gqla.name(),
            rope_layout: "shared",
            rows,
        })
    }
}

impl Row {
    fn new(gpu: &GpuSpec, path: DecodePath, query_tokens: u32) -> anyhow::Result<Self> {
        let attention = shape(ModelName::DeepseekV3Gqla).attention;
        let split = TensorParallelSplit::new(&attention, path, 1)?;
        let core = AttentionCore::new(&attention, path, split, query_tokens, CacheLayout::PUBLISHED, gpu);
        Ok(Self {
            gpu: gpu.name.to_string(),
            path: path.flag(),
            s_q: query_tokens,
            ns_per_query_token: core.ns_per_query_token,
            bytes_per_token_layer: core.bytes,
            flops_per_token_layer: core.flops,
            intensity: core.intensity,
            ridge: gpu.ridge(),
            bound: core.bound.name(),
        })
    }
}

fn table(view: &PaperView) -> String {
    let header = ["gpu", "path", "s_q", "ns/query token", "bytes", "FLOP", "FLOP/B", "ridge", "bound"];
    let rows: Vec<_> = view.rows.iter().map(cells).collect();
    let mut text = format!(
        "LLaMA-3-8B cache, latent over GQA: {} / {} elements = {:.3} %\n",
        view.latent_elements, view.gqa_baseline_elements, view.llama_3_8b_cache_percent
    );
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "\n{} attention core at peak rates, TP 1, rope {}, per cached token and layer:\n{}\n\
         H20, absorb s_q 1 over GQA s_q 2: {:.3} / {:.4} ns = {:.2}x\n",
        view.model,
        view.rope_layout,
        columns(header, &rows),
        view.h20_absorb_s_q_1_ns,
        view.h20_gqa_s_q_2_ns,
        view.h20_speedup
    );
    text
}

fn cells(row: &Row) -> [String; 9] {
    [
        row.gpu.clone(),
        row.path.to_owned(),
        row.s_q.to_string(),
        format!("{:.3}", row.ns_per_query_token),
        row.bytes_per_token_layer.to_string(),
        row.flops_per_token_layer.to_string(),
        format!("{:.1}", row.intensity),
        format!("{:.1}", row.ridge),
        row.bound.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_figures_follow_from_the_formulas() {
        let view = PaperView::compute().unwrap();
        assert_eq!(view.llama_3_8b_cache_percent, 28.125);
        assert_eq!(format!("{:.2}", view.h20_speedup), "3.40");
        let printed: Vec<_> = view.rows.iter().map(|row| format!("{:.3}", row.ns_per_query_token)).collect();
        assert_eq!(printed, ["0.344", "0.282", "1.261", "0.630", "1.882", "1.882", "1.056", "0.554"]);
        let text = table(&view);
        assert!(text.contains("28.125 %") && text.contains("1.882 / 0.5535 ns = 3.40x"), "{text}");
    }
}
