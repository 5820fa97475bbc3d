//! Where both paths of a model stand against a class's roofline, at peak rates.

use gqla_model::{AttentionShape, DecodePath, ModelShape, TensorParallelSplit};
use gqla_planner::{AttentionCore, GpuClass, RopeLayout};
use serde::Serialize;

use crate::table::columns;

const QUERY_TOKENS: [u32; 3] = [1, 2, 4];
/// The widest node; a shape it does not divide is drawn at the widest power of two that it does.
const MOST_RANKS: u32 = 8;

/// The JSON form of the points. Field names are an interface.
#[derive(Serialize)]
pub struct View<'a> {
    pub model: &'a str,
    pub gpu: &'a str,
    pub gpu_source: &'a str,
    pub peak_tflops: f64,
    pub bandwidth_tb_per_second: f64,
    pub ridge: f64,
    pub scope: &'static str,
    pub points: Vec<Point>,
}

/// One path at one number of query tokens and ranks.
#[derive(Serialize)]
pub struct Point {
    pub path: &'static str,
    pub tp: u32,
    pub s_q: u32,
    /// FLOP per byte.
    pub intensity: f64,
    /// What one rank can reach at that intensity.
    pub attainable_tflops: f64,
    /// Per query token, cached token and layer.
    pub ns_per_query_token: f64,
    pub bytes_per_token_layer: u64,
    pub bound: &'static str,
}

impl<'a> View<'a> {
    /// Both paths at every number of query tokens and ranks that divides.
    pub fn compute(model: &'a str, shape: &ModelShape, class: &'a GpuClass) -> Self {
        let spec = &class.spec;
        let widest = widest(&shape.attention);
        let mut points = Vec::new();
        for path in DecodePath::ALL {
            for ranks in [1, widest] {
                let Ok(split) = TensorParallelSplit::new(&shape.attention, path, ranks) else { continue };
                for query_tokens in QUERY_TOKENS {
                    let layout = RopeLayout::Shared;
                    let core = AttentionCore::new(&shape.attention, path, split, query_tokens, layout, spec);
                    points.push(Point {
                        path: path.flag(),
                        tp: ranks,
                        s_q: query_tokens,
                        intensity: core.intensity,
                        attainable_tflops: core.flops as f64 / core.pass_ns / 1e3,
                        ns_per_query_token: core.ns_per_query_token,
                        bytes_per_token_layer: core.bytes,
                        bound: core.bound.name(),
                    });
                }
                if widest == 1 {
                    break;
                }
            }
        }
        Self {
            model,
            gpu: class.name(),
            gpu_source: &class.source,
            peak_tflops: spec.flops_per_second / 1e12,
            bandwidth_tb_per_second: spec.bytes_per_second / 1e12,
            ridge: spec.ridge(),
            scope: "attention core at peak rates, one rank, rope shared",
            points,
        }
    }
}

fn widest(shape: &AttentionShape) -> u32 {
    let divides = |ranks: &u32| {
        DecodePath::ALL.into_iter().all(|path| TensorParallelSplit::new(shape, path, *ranks).is_ok())
    };
    (0..=MOST_RANKS.ilog2()).rev().map(|power| 1 << power).find(divides).unwrap_or(1)
}

/// The points as a table.
pub fn table(view: &View<'_>) -> String {
    let header = ["path", "tp", "s_q", "FLOP/B", "TFLOP/s", "ns/query token", "bytes", "bound"];
    let rows: Vec<_> = view.points.iter().map(cells).collect();
    format!(
        "{} on {}: {} TFLOP/s, {} TB/s, ridge {:.1} FLOP/B\n{}({})\n",
        view.model,
        view.gpu,
        view.peak_tflops,
        view.bandwidth_tb_per_second,
        view.ridge,
        columns(header, &rows),
        view.scope
    )
}

fn cells(point: &Point) -> [String; 8] {
    [
        point.path.to_owned(),
        point.tp.to_string(),
        point.s_q.to_string(),
        format!("{:.1}", point.intensity),
        format!("{:.1}", point.attainable_tflops),
        format!("{:.3}", point.ns_per_query_token),
        point.bytes_per_token_layer.to_string(),
        point.bound.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use gqla_planner::{Catalogue, ModelName, shape};

    use super::*;

    #[test]
    fn a_shape_eight_does_not_divide_is_drawn_at_the_widest_degree_that_does() {
        let catalogue = Catalogue::builtin();
        let view = |model| View::compute("m", &shape(model), catalogue.get("H20").unwrap());
        let degrees = |model| view(model).points.iter().map(|point| point.tp).max();
        assert_eq!(degrees(ModelName::DeepseekV3Gqla), Some(8));
        assert_eq!(degrees(ModelName::Glm47FlashGqla), Some(4));
        assert_eq!(degrees(ModelName::Smollm2135mGqla), Some(1));
        assert_eq!(view(ModelName::Smollm2135mGqla).points.len(), 6);
    }

    #[test]
    fn no_point_lies_above_the_roof() {
        let catalogue = Catalogue::builtin();
        for class in catalogue.iter() {
            let view = View::compute("m", &shape(ModelName::DeepseekV3Gqla), class);
            for point in &view.points {
                let roof = view.peak_tflops.min(point.intensity * view.bandwidth_tb_per_second);
                assert!((point.attainable_tflops / roof - 1.0).abs() < 1e-9, "{}", class.name());
            }
        }
    }
}
