//! A mixture of experts on the device: each row's choice, the products of the experts that were chosen, and their sum.
//!
//! Nothing of it waits for the device: what was chosen stays in lists there, and how many blocks a launch has follows from the
//! step's rows alone.

use cudarc::driver::{CudaFunction, DeviceRepr, LaunchConfig};
use gqla_model::Routing;
use half::bf16;

use super::{
    Buffer, Destination, Device, DeviceError, Loaded, Weights,
    decode::int,
    gemm::{self, BLOCKS, Block},
    rows::{THREADS, launch, launch_grid},
};

/// Threads of a block of the kernel that sorts, and of the one that chooses.
pub(super) const SORT_THREADS: u32 = 1024;
pub(super) const CHOOSE_THREADS: u32 = 32;
/// Rows of a block of the router, which has one expert.
const ROUTED_ROWS: usize = 64;
/// As `experts.cu` has it.
const MOST_EXPERTS: usize = 1024;
/// A lane each.
const MOST_CHOICES: usize = 32;
const MOST_GROUPS: u32 = 32;
/// 4-byte words of a `Tile`.
const TILE_WORDS: usize = 3;
/// Few rows, and any number: as a row chooses an expert once at most, the first block has all of an expert's.
const FEW: Block = BLOCKS[0];
const MANY: Block = BLOCKS[2];

/// The structs of `experts.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LogitsParams {
    x: u64,
    weights: u64,
    logits: u64,
    rows: i32,
    experts: i32,
    hidden: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ChooseParams {
    logits: u64,
    bias: u64,
    experts: u64,
    weights: u64,
    count: i32,
    choices: i32,
    groups: i32,
    open_groups: i32,
    normed: i32,
    factor: f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SortParams {
    experts: u64,
    rows: u64,
    places: u64,
    tiles: u64,
    total: i32,
    choices: i32,
    count: i32,
    tile_rows: i32,
    tile_count: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ProductParams {
    x: u64,
    weights: u64,
    y: u64,
    row_of: u64,
    tiles: u64,
    outputs: i32,
    inputs: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CombineParams {
    answers: u64,
    weights: u64,
    places: u64,
    residual: u64,
    rows: i32,
    choices: i32,
    width: i32,
}

// SAFETY: plain numbers, laid out as the kernels' structs.
unsafe impl DeviceRepr for LogitsParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for ChooseParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for SortParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for ProductParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for CombineParams {}

/// How rows find their experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterShape {
    /// Experts.
    pub experts: usize,
    /// Those that a row takes.
    pub per_token: usize,
    /// The rule.
    pub routing: Routing,
}

impl RouterShape {
    /// What the kernels take, and [`choose_experts`](crate::choose_experts) has an answer for.
    fn check(&self) -> Result<(), DeviceError> {
        let Self { experts, per_token, routing: Routing { n_group, topk_group, .. } } = *self;
        let groups = n_group as usize;
        let open = if n_group == 0 { 0 } else { experts / groups * topk_group as usize };
        let fits = (1..=MOST_EXPERTS).contains(&experts)
            && (1..=MOST_GROUPS).contains(&n_group)
            && topk_group <= n_group
            && experts.is_multiple_of(groups)
            && (1..=MOST_CHOICES.min(open)).contains(&per_token);
        if fits {
            return Ok(());
        }
        let reason = format!(
            "{per_token} of {experts} experts in {topk_group} of {n_group} groups: expected at most {MOST_CHOICES} of \
             {MOST_EXPERTS} in {MOST_GROUPS} equal groups, and no more than the open groups have"
        );
        Err(DeviceError::arguments("experts", reason))
    }

    /// Choices of `rows` rows, and tiles that they fall into at most.
    fn choices(&self, rows: usize) -> (usize, usize) {
        let (choices, each) = (rows * self.per_token, block_of(rows).rows);
        (choices, (choices + (each - 1) * choices.min(self.experts)) / each)
    }
}

fn block_of(rows: usize) -> Block {
    if rows <= FEW.rows { FEW } else { MANY }
}

/// The kernel that multiplies a step of `rows` rows by its destination's name, and the dynamic shared memory of a block.
pub(super) fn kernel_for(rows: usize, to: &str) -> (String, u32) {
    let Block { name, shared, .. } = block_of(rows);
    (format!("experts_{name}_{to}"), shared)
}

/// A layer's router.
pub struct Router {
    shape: RouterShape,
    /// `[experts, hidden]`: f32 whatever the checkpoint has, as a rounded logit can choose another expert.
    weights: Buffer<f32>,
    /// `[experts]`
    bias: Buffer<f32>,
    hidden: usize,
}

impl Router {
    /// Copies `weights`, `[experts, hidden]`, and `bias`, `[experts]`, to the device.
    ///
    /// # Errors
    /// When numbers are missing, the shape is one that no kernel has, or memory is short.
    pub fn upload(
        device: &Device,
        what: &str,
        shape: RouterShape,
        [weights, bias]: [&[f32]; 2],
    ) -> Result<Self, DeviceError> {
        shape.check()?;
        let hidden = weights.len() / shape.experts;
        if weights.len() != shape.experts * hidden || bias.len() != shape.experts || !hidden.is_multiple_of(8)
        {
            let reason = format!(
                "{what}: {} weights and {} biases for {} experts, expected rows of a multiple of 8",
                weights.len(),
                bias.len(),
                shape.experts
            );
            return Err(DeviceError::arguments("router_logits", reason));
        }
        let upload = |numbers| device.upload_weights(what, numbers);
        Ok(Self { shape, weights: upload(weights)?, bias: upload(bias)?, hidden })
    }

    /// Experts, and how rows find them.
    pub fn shape(&self) -> &RouterShape {
        &self.shape
    }

    /// `[experts, hidden]`, the numbers themselves.
    pub fn weights(&self) -> &Buffer<f32> {
        &self.weights
    }
}

/// What the rows of a step chose, for no later step.
pub struct Choices {
    shape: RouterShape,
    room: usize,
    /// Rows of the last step.
    rows: usize,
    /// `[rows, experts]`
    logits: Buffer<f32>,
    /// `[rows, per_token]`, ascending.
    experts: Buffer<i32>,
    /// `[rows, per_token]`
    weights: Buffer<f32>,
    /// `[rows, per_token]`: where each choice is among all, by expert and then row.
    places: Buffer<i32>,
    /// `[rows * per_token]`: whose each of the sorted choices is.
    row_of: Buffer<i32>,
    tiles: Buffer<i32>,
}

impl Choices {
    /// Room for `rows` rows.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(device: &Device, shape: RouterShape, rows: usize) -> Result<Self, DeviceError> {
        let choices = rows * shape.per_token;
        let room = |len| device.unwritten("choices of experts", len);
        Ok(Self {
            shape,
            room: rows,
            rows: 0,
            logits: device.unwritten("router logits", rows * shape.experts)?,
            experts: room(choices)?,
            weights: device.unwritten("weights of experts", choices)?,
            places: room(choices)?,
            row_of: room(choices)?,
            tiles: room(Self::most_tiles(&shape, rows) * TILE_WORDS)?,
        })
    }

    /// Bytes of that.
    pub fn bytes(shape: &RouterShape, rows: usize) -> usize {
        let words = rows * (shape.experts + 4 * shape.per_token) + Self::most_tiles(shape, rows) * TILE_WORDS;
        words * size_of::<f32>()
    }

    /// Tiles of any step of up to `rows` rows: one with few rows has smaller tiles.
    fn most_tiles(shape: &RouterShape, rows: usize) -> usize {
        shape.choices(rows).1.max(shape.choices(rows.min(FEW.rows)).1)
    }

    /// The last step's experts of each row, ascending, and their weights. Waits for all work.
    ///
    /// # Errors
    /// When any work so far failed.
    pub fn download(&self, device: &Device) -> Result<Vec<Vec<(usize, f32)>>, DeviceError> {
        let choices = self.rows * self.shape.per_token;
        let experts = device.download(&self.experts, choices)?;
        let weights = device.download(&self.weights, choices)?;
        let all: Vec<_> = experts.iter().map(|expert| *expert as usize).zip(weights).collect();
        Ok(all.chunks(self.shape.per_token).map(<[_]>::to_vec).collect())
    }
}

/// Rows that experts multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertRows {
    /// The step's, each for every choice of it.
    OfStep,
    /// A row for each of the sorted choices, as a product before gave it.
    Sorted,
}

/// The loaded kernels.
pub struct ExpertKernels {
    logits: CudaFunction,
    choose: CudaFunction,
    sort: CudaFunction,
    /// By block, few rows and many, and destination.
    products: [[CudaFunction; 2]; 2],
    combine: CudaFunction,
}

impl ExpertKernels {
    /// Takes them from [`Program::experts`](super::Program::experts).
    ///
    /// # Errors
    /// When the program lacks one.
    pub fn new(loaded: &Loaded) -> Result<Self, DeviceError> {
        let of = |block: Block| -> Result<[CudaFunction; 2], DeviceError> {
            let kernel =
                |to| gemm::with_shared(loaded, &format!("experts_{}_{to}", block.name), block.shared);
            Ok([kernel("bf16")?, kernel("f32")?])
        };
        Ok(Self {
            logits: loaded.kernel("router_logits")?,
            choose: loaded.kernel("choose_experts")?,
            sort: loaded.kernel("sort_choices")?,
            products: [of(FEW)?, of(MANY)?],
            combine: loaded.kernel("combine")?,
        })
    }

    /// Chooses experts for `rows` rows of `x`, as [`choose_experts`](crate::choose_experts) does from their logits, and sorts the
    /// choices.
    ///
    /// # Errors
    /// When a buffer is too small, or the device refuses.
    pub fn route(
        &self,
        device: &Device,
        router: &Router,
        x: &Buffer<bf16>,
        rows: usize,
        choices: &mut Choices,
    ) -> Result<(), DeviceError> {
        let (shape, hidden) = (router.shape, router.hidden);
        if rows == 0 || rows > choices.room || choices.shape != shape || x.len() < rows * hidden {
            let reason = format!(
                "{rows} rows of {hidden} in {}, room for {} choices of {:?}, expected {shape:?}",
                x.len(),
                choices.room,
                choices.shape
            );
            return Err(DeviceError::arguments("router_logits", reason));
        }
        choices.rows = rows;
        let int = |what: &str, x: usize| int("experts", what, x);
        let (count, per_token) = (int("experts", shape.experts)?, int("choices", shape.per_token)?);
        let params = LogitsParams {
            x: x.address(),
            weights: router.weights.address(),
            logits: choices.logits.address(),
            rows: int("rows", rows)?,
            experts: count,
            hidden: int("width", hidden)?,
        };
        let blocks = [shape.experts, rows.div_ceil(ROUTED_ROWS)];
        launch_grid(device, &self.logits, "router_logits", &params, grid(blocks, THREADS as u32, 0)?)?;
        let Routing { n_group, topk_group, norm_topk_prob, routed_scaling_factor } = shape.routing;
        let params = ChooseParams {
            logits: choices.logits.address(),
            bias: router.bias.address(),
            experts: choices.experts.address(),
            weights: choices.weights.address(),
            count,
            choices: per_token,
            groups: n_group.cast_signed(),
            open_groups: topk_group.cast_signed(),
            normed: i32::from(norm_topk_prob),
            factor: routed_scaling_factor,
        };
        let shared = (2 * shape.experts * size_of::<f32>()) as u32;
        let config = grid([rows, 1], CHOOSE_THREADS, shared)?;
        launch_grid(device, &self.choose, "choose_experts", &params, config)?;
        let (total, tiles) = shape.choices(rows);
        let params = SortParams {
            experts: choices.experts.address(),
            rows: choices.row_of.address(),
            places: choices.places.address(),
            tiles: choices.tiles.address(),
            total: int("choices", total)?,
            choices: per_token,
            count,
            tile_rows: int("rows", block_of(rows).rows)?,
            tile_count: int("tiles", tiles)?,
        };
        launch_grid(device, &self.sort, "sort_choices", &params, grid([1, 1], SORT_THREADS, 0)?)
    }

    /// `y = x Wᵀ` for each choice, with its expert's matrix of `weights`: rows of `y` are the sorted choices. The bits are those
    /// of [`Gemm::launch`](super::Gemm::launch).
    ///
    /// # Errors
    /// When a buffer is too small, the matrices are not the experts' or `y` is to be added to; when the device refuses.
    pub fn multiply(
        &self,
        device: &Device,
        weights: &Weights,
        choices: &Choices,
        (x, x_rows): (&Buffer<bf16>, ExpertRows),
        y: Destination<'_>,
    ) -> Result<(), DeviceError> {
        let (outputs, inputs) = (weights.outputs(), weights.inputs());
        let (total, tiles) = choices.shape.choices(choices.rows);
        let read = if x_rows == ExpertRows::OfStep { choices.rows } else { total };
        let ((to, room), column) = (y.place(0), y.index());
        let kernels = &self.products[usize::from(choices.rows > FEW.rows)];
        let fits = weights.batch() == choices.shape.experts
            && total > 0
            && x.len() >= read * inputs
            && room >= total * outputs;
        let (Some(kernel), true) = (kernels.get(column), fits) else {
            let reason = format!(
                "{total} choices of {} experts' {outputs} x {inputs}, {read} rows in {}, to {room}",
                weights.batch(),
                x.len()
            );
            return Err(DeviceError::arguments("experts", reason));
        };
        let params = ProductParams {
            x: x.address(),
            weights: weights.numbers().address(),
            y: to,
            row_of: if x_rows == ExpertRows::OfStep { choices.row_of.address() } else { 0 },
            tiles: choices.tiles.address(),
            outputs: int("experts", "outputs", outputs)?,
            inputs: int("experts", "inputs", inputs)?,
        };
        let block = block_of(choices.rows);
        let config = grid([outputs.div_ceil(block.outputs), tiles], gemm::THREADS, block.shared)?;
        launch_grid(device, kernel, "experts", &params, config)
    }

    /// Adds to each row of `residual` the answers of its experts times their weights, one after another by ascending expert:
    /// `answers` has a row of `width` for each of the sorted choices.
    ///
    /// # Errors
    /// When a buffer is too small or the width is odd; when the device refuses.
    pub fn combine(
        &self,
        device: &Device,
        choices: &Choices,
        (answers, width): (&Buffer<f32>, usize),
        residual: &mut Buffer<f32>,
    ) -> Result<(), DeviceError> {
        let (rows, per_token) = (choices.rows, choices.shape.per_token);
        if answers.len() < rows * per_token * width
            || residual.len() < rows * width
            || !width.is_multiple_of(2)
        {
            let reason = format!(
                "{per_token} answers to {rows} rows of {width} in {}, to {}",
                answers.len(),
                residual.len()
            );
            return Err(DeviceError::arguments("combine", reason));
        }
        let int = |what: &str, x: usize| int("combine", what, x);
        let params = CombineParams {
            answers: answers.address(),
            weights: choices.weights.address(),
            places: choices.places.address(),
            residual: residual.address(),
            rows: int("rows", rows)?,
            choices: int("choices", per_token)?,
            width: int("width", width)?,
        };
        launch(device, &self.combine, "combine", &params, (rows * width / 2).div_ceil(THREADS), THREADS)
    }
}

fn grid([x, y]: [usize; 2], threads: u32, shared: u32) -> Result<LaunchConfig, DeviceError> {
    let blocks = |count: usize| Ok::<_, DeviceError>(int("experts", "blocks", count)?.cast_unsigned());
    Ok(LaunchConfig {
        grid_dim: (blocks(x)?, blocks(y)?, 1),
        block_dim: (threads, 1, 1),
        shared_mem_bytes: shared,
    })
}

#[cfg(test)]
#[path = "experts_tests.rs"]
mod tests;
