//! How well a fit predicts what it has not seen: every published median from a fit to its GPU's other medians.

use gqla_model::TensorParallelSplit;

use super::{
    tests::{MEDIANS, median, points},
    *,
};
use crate::{
    attention::{AttentionModel, Efficiency},
    calibration::Calibration,
    catalogue::Catalogue,
    kernel::Work,
    models::shape,
    roofline::{AttentionCore, CacheLayout},
};

/// One published median, and the calls it is taken over.
struct Cell {
    name: String,
    published: f64,
    calls: Vec<[Work; 2]>,
}

/// One GPU's kernels, [absorb, GQA].
#[derive(Clone)]
struct Fitted {
    gpu: GpuSpec,
    kernels: [Vec<Kernel>; 2],
}

impl Fitted {
    fn new(class: &str) -> Self {
        let gpu = Catalogue::builtin().get(class).unwrap().spec.clone();
        let hardware = Hardware::of(&gpu);
        let kernels = DecodePath::ALL.map(|path| super::kernels(Runtime::Vllm, path, &gpu, &hardware));
        Self { gpu, kernels }
    }

    fn predict(&self, cell: &Cell) -> f64 {
        let hardware = Hardware::of(&self.gpu);
        let ns = |kernels: &[Kernel], work: &Work| {
            let times = kernels.iter().filter_map(|kernel| kernel.time(work, &self.gpu, &hardware));
            times.map(|time| time.ns).fold(f64::INFINITY, f64::min)
        };
        let [absorb, gqa] = &self.kernels;
        median(cell.calls.iter().map(|[a, g]| ns(absorb, a) / ns(gqa, g)).collect())
    }

    /// Sum of squared logarithmic errors.
    fn cost(&self, cells: &[&Cell]) -> f64 {
        cells.iter().map(|cell| (self.predict(cell) / cell.published).ln().powi(2)).sum()
    }

    /// What may move, with its limits: what absorb kernels reach and how they overlap, and what one group loses.
    fn parameters(&mut self) -> Vec<(&mut f64, [f64; 2])> {
        let [absorb, gqa] = &mut self.kernels;
        let of_absorb = absorb.iter_mut().flat_map(|kernel| {
            let shares = [(&mut kernel.bandwidth, [0.2, 0.93]), (&mut kernel.arithmetic, [0.05, 0.8])];
            shares.into_iter().chain([(&mut kernel.overlap, [1.5, 8.0])])
        });
        of_absorb.chain(gqa.iter_mut().map(|kernel| (&mut kernel.narrow_loss, [0.01, 0.5]))).collect()
    }

    /// Descent along one parameter at a time from the table's figures, in steps that halve where none helps.
    fn fit(mut self, cells: &[&Cell]) -> Self {
        let mut cost = self.cost(cells);
        let mut steps = vec![0.12_f64; self.parameters().len()];
        for _ in 0..8 {
            for (index, step) in steps.iter_mut().enumerate() {
                let tried = [*step, -*step].map(|step| self.moved(index, step));
                let better = tried.into_iter().find(|tried| tried.cost(cells) < cost);
                match better {
                    Some(better) => (cost, self) = (better.cost(cells), better),
                    None => *step /= 2.0,
                }
            }
        }
        self
    }

    fn moved(&self, index: usize, step: f64) -> Self {
        let mut moved = self.clone();
        let (value, [least, most]) = moved.parameters().swap_remove(index);
        *value = (*value * step.exp()).clamp(least, most);
        moved
    }
}

fn cells(class: &str) -> Vec<Cell> {
    let rows = MEDIANS.iter().filter(|(gpu, ..)| *gpu == class);
    let cell = |model, power: usize, published: &f64| Cell {
        name: format!("{class} {model} TP {}", 1 << power),
        published: *published,
        calls: calls(class, model, 1 << power),
    };
    rows.flat_map(|(_, model, medians)| {
        medians.iter().enumerate().map(move |(power, published)| cell(*model, power, published))
    })
    .collect()
}

fn calls(class: &str, model: crate::models::ModelName, ranks: u32) -> Vec<[Work; 2]> {
    let gpu = Catalogue::builtin().get(class).unwrap().spec.clone();
    let attention = shape(model).attention;
    let works = |batch, context| {
        DecodePath::ALL.map(|path| {
            let split = TensorParallelSplit::new(&attention, path, ranks).unwrap();
            let (runtime, efficiency, layout) =
                (Runtime::Vllm, Efficiency::Calibrated, CacheLayout::PUBLISHED);
            let core = AttentionCore::new(&attention, path, split, 1, layout, &gpu);
            AttentionModel::new(path, &gpu, runtime, efficiency, layout, &Calibration::default())
                .work(&attention, split, &core, 1, batch, context)
        })
    };
    let cached = |works: &[Work; 2]| {
        let [absorb, gqa] = works;
        absorb.bytes.min(gqa.bytes) * absorb.batch * absorb.context
    };
    let larger = |works: &[Work; 2]| cached(works) > Hardware::of(&gpu).l2_bytes;
    points().map(|(batch, context)| works(batch, context)).filter(larger).collect()
}

#[test]
fn a_median_is_predicted_by_the_others_of_its_gpu() {
    let mut errors = Vec::new();
    for class in MEASURED {
        let cells = cells(class);
        for (index, cell) in cells.iter().enumerate() {
            let others: Vec<&Cell> =
                cells.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, cell)| cell).collect();
            let predicted = Fitted::new(class).fit(&others).predict(cell);
            println!("{}: published {}, predicted {predicted:.2}", cell.name, cell.published);
            errors.push((predicted / cell.published - 1.0).abs());
        }
    }
    let worst = errors.iter().copied().fold(0.0, f64::max);
    let middle = median(errors);
    println!("left out: median error {middle:.3}, worst {worst:.3}");
    assert!(middle < 0.06 && worst < 0.17, "median error {middle}, worst {worst}");
}
