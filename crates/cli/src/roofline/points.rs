//! Where both paths of a model stand against a class's roofline, at peak rates.

use gqla_model::{AttentionShape, DecodePath, ModelShape, TensorParallelSplit};
use gqla_planner::{AttentionCore, CacheLayout, GpuClass};
use serde::Serialize;

use crate::table::columns;

/// The query tokens of a pass that are drawn.
pub const QUERY_TOKENS: [u32; 3] = [1, 2, 4];
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
    /// What a reader of the points must know, in sentences.
    pub notes: Vec<String>,
    pub points: Vec<Point>,
}

/// One path at one number of query tokens and ranks.
#[derive(Clone, Serialize)]
pub struct Point {
    pub path: &'static str,
    /// Groups of the layers it stands for; null on absorb, whose latent does not depend on them.
    pub groups: Option<u32>,
    /// Layers it stands for.
    pub layers: u32,
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

/// Layers that are drawn as one.
struct Series {
    path: DecodePath,
    attention: AttentionShape,
    groups: Option<u32>,
    layers: u32,
}

impl<'a> View<'a> {
    /// Both paths at every number of query tokens and ranks that divides, and the GQA path for every number of groups that
    /// layers have.
    pub fn compute(model: &'a str, shape: &ModelShape, class: &'a GpuClass) -> Self {
        let spec = &class.spec;
        let widest = widest(shape);
        let degrees = if widest == 1 { vec![1] } else { vec![1, widest] };
        let mut points = Vec::new();
        for series in Series::of(shape) {
            let splits = degrees.iter().filter_map(|ranks| series.split(*ranks));
            points.extend(splits.flat_map(|split| {
                QUERY_TOKENS.map(|query_tokens| {
                    let layout = CacheLayout::PUBLISHED;
                    let core =
                        AttentionCore::new(&series.attention, series.path, split, query_tokens, layout, spec);
                    series.point(split.degree, query_tokens, &core)
                })
            }));
        }
        Self {
            model,
            gpu: class.name(),
            gpu_source: &class.source,
            peak_tflops: spec.flops_per_second / 1e12,
            bandwidth_tb_per_second: spec.bytes_per_second / 1e12,
            ridge: spec.ridge(),
            scope: "attention core at peak rates, one rank, bf16 cache with one rope key for all groups",
            notes: degree_note(shape, widest).into_iter().chain(groups_note(shape)).collect(),
            points,
        }
    }

    /// Degrees that are drawn, least first.
    pub fn degrees(&self) -> Vec<u32> {
        let mut degrees: Vec<u32> = self.points.iter().map(|point| point.tp).collect();
        degrees.sort_unstable();
        degrees.dedup();
        degrees
    }
}

impl Series {
    /// Absorb once, since groups do not change it, then GQA per number of groups.
    fn of(shape: &ModelShape) -> Vec<Self> {
        let absorb = Self {
            path: DecodePath::MqaAbsorb,
            attention: shape.attention,
            groups: None,
            layers: shape.num_hidden_layers,
        };
        let per_groups = shape.groups().into_iter().map(|(groups, layers)| {
            let attention = AttentionShape { num_key_value_heads: groups, ..shape.attention };
            Self { path: DecodePath::Gqa, attention, groups: Some(groups), layers }
        });
        std::iter::once(absorb).chain(per_groups).collect()
    }

    fn split(&self, ranks: u32) -> Option<TensorParallelSplit> {
        TensorParallelSplit::new(&self.attention, self.path, ranks).ok()
    }

    fn point(&self, tp: u32, s_q: u32, core: &AttentionCore) -> Point {
        Point {
            path: self.path.flag(),
            groups: self.groups,
            layers: self.layers,
            tp,
            s_q,
            intensity: core.intensity,
            attainable_tflops: core.flops as f64 / core.pass_ns / 1e3,
            ns_per_query_token: core.ns_per_query_token,
            bytes_per_token_layer: core.bytes,
            bound: core.bound.name(),
        }
    }
}

/// The widest power of two that divides every layer on both paths.
fn widest(shape: &ModelShape) -> u32 {
    let series = Series::of(shape);
    let divides = |ranks: &u32| series.iter().all(|series| series.split(*ranks).is_some());
    (0..=MOST_RANKS.ilog2()).rev().map(|power| 1 << power).find(divides).unwrap_or(1)
}

fn degree_note(shape: &ModelShape, widest: u32) -> Option<String> {
    let refused = Series::of(shape)
        .iter()
        .find_map(|series| TensorParallelSplit::new(&series.attention, series.path, MOST_RANKS).err())?;
    Some(format!("{refused}; drawn up to TP {widest}, the widest power of two that fits"))
}

fn groups_note(shape: &ModelShape) -> Option<String> {
    let groups = shape.groups();
    let told = |(groups, layers): &(u32, u32)| format!("G={groups} in {layers}");
    let list = groups.iter().map(told).collect::<Vec<_>>().join(", ");
    (groups.len() > 1).then(|| format!("groups differ between layers: {list}"))
}

/// The points as a table.
pub fn table(view: &View<'_>) -> String {
    let header = ["path", "tp", "s_q", "FLOP/B", "TFLOP/s", "ns/query token", "bytes", "bound"];
    let rows: Vec<_> = view.points.iter().map(cells).collect();
    let notes: String = view.notes.iter().map(|note| format!("{note}\n")).collect();
    format!(
        "{} on {}: {} TFLOP/s, {} TB/s, ridge {:.1} FLOP/B\n{}{notes}({})\n",
        view.model,
        view.gpu,
        view.peak_tflops,
        view.bandwidth_tb_per_second,
        view.ridge,
        columns(header, &rows),
        view.scope
    )
}

impl Point {
    /// The path, and its groups where there are several.
    pub fn name(&self) -> String {
        self.groups.map_or_else(|| self.path.to_owned(), |groups| format!("{} G={groups}", self.path))
    }
}

fn cells(point: &Point) -> [String; 8] {
    [
        point.name(),
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
    fn a_shape_eight_does_not_divide_is_drawn_at_the_widest_degree_that_does_and_says_why() {
        let catalogue = Catalogue::builtin();
        let view = |model| View::compute("m", &shape(model), catalogue.get("H20").unwrap());
        let degrees = |model| view(model).degrees();
        assert_eq!(degrees(ModelName::DeepseekV3Gqla), [1, 8]);
        assert_eq!(view(ModelName::DeepseekV3Gqla).notes, [""; 0]);
        assert_eq!(degrees(ModelName::Glm47FlashGqla), [1, 4]);
        assert_eq!(
            view(ModelName::Glm47FlashGqla).notes,
            [
                "tensorParallel=8 does not divide numAttentionHeads=20 (20 mod 8 = 4); drawn up to TP 4, the widest power of \
              two that fits"
            ]
        );
        assert_eq!(degrees(ModelName::Smollm2135mGqla), [1]);
        assert_eq!(view(ModelName::Smollm2135mGqla).points.len(), 6);
    }

    #[test]
    fn every_number_of_groups_that_layers_have_is_drawn() {
        let catalogue = Catalogue::builtin();
        let base = shape(ModelName::Llama38bGqla);
        let list = (0..base.num_hidden_layers).map(|layer| if layer < 8 { 8 } else { 2 }).collect();
        let mixed = ModelShape { num_key_value_heads_per_layer: Some(list), ..base };
        mixed.validate().unwrap();
        let view = View::compute("m", &mixed, catalogue.get("H20").unwrap());
        let gqa: Vec<_> =
            view.points.iter().filter(|point| point.s_q == 1 && point.tp == 1).map(Point::name).collect();
        assert_eq!(gqa, ["mqa-absorb", "gqa G=8", "gqa G=2"]);
        assert_eq!(view.notes, ["groups differ between layers: G=8 in 8, G=2 in 24"]);
        assert!(table(&view).contains("gqa G=2") && table(&view).contains(&view.notes[0]));
        assert_eq!(view.degrees(), [1, 8]);
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
