//! Products of matrices on the device.

use cudarc::driver::{
    CudaFunction, DeviceRepr, LaunchConfig, PushKernelArg,
    sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MAX_DYNAMIC,
};
use half::bf16;

use super::{
    Buffer, Device, DeviceError, Loaded, Tables,
    cublaslt::{Call, CublasLt, Shape},
    decode::int,
    prompts::parts,
};

/// Threads of a block.
pub(super) const THREADS: u32 = 128;

/// What a block of a kernel takes. A row's bits are the same in all kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// As in the kernel's name.
    pub name: &'static str,
    pub rows: usize,
    pub outputs: usize,
    /// Dynamic shared memory, bytes.
    pub shared: u32,
}

/// By growing rows; the last takes any number, tile by tile. `gemm.cuh` has the layout of shared memory.
pub(super) const BLOCKS: [Block; 3] = [
    Block { name: "narrow16", rows: 16, outputs: 32, shared: 4 * 4 * (16 + 32) * 128 },
    Block { name: "narrow64", rows: 64, outputs: 32, shared: 4 * 2 * (64 + 32) * 128 },
    Block { name: "wide64", rows: 64, outputs: 64, shared: 3 * (64 + 64) * 128 },
];

/// More outputs than this give every multiprocessor a block of the last kernel, which then reads rows less often.
const NARROW_OUTPUTS: usize = 8192;

/// The place in [`BLOCKS`] of the one that multiplies `rows` rows.
fn block_of(rows: usize, outputs: usize) -> usize {
    match rows {
        0..=16 => 0,
        17..=64 if outputs <= NARROW_OUTPUTS => 1,
        _ => 2,
    }
}

/// The kernel for `rows` rows by its destination's name, and bytes of shared memory that it is launched with.
pub(super) fn kernel_for(rows: usize, outputs: usize, to: &str) -> (String, u32) {
    let Block { name, shared, .. } = BLOCKS[block_of(rows, outputs)];
    (format!("gemm_{name}_{to}"), shared)
}

/// A kernel that may be launched with `shared` bytes of dynamic shared memory.
pub(super) fn with_shared(loaded: &Loaded, name: &str, shared: u32) -> Result<CudaFunction, DeviceError> {
    let (kernel, shared) = (loaded.kernel(name)?, int("gemm", "shared memory", shared as usize)?);
    let doing = format!("giving `{name}` {shared} bytes of shared memory");
    kernel.set_attribute(MAX_DYNAMIC, shared).map_err(DeviceError::driver(doing))?;
    Ok(kernel)
}

/// Numbers that are copied together.
const CHUNK: usize = 8;

/// Where rows lie: row i begins at `i / inner * outer + i % inner * stride`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowMap {
    inner: i32,
    stride: i32,
    outer: i32,
}

impl RowMap {
    /// Rows `stride` apart.
    ///
    /// # Errors
    /// When the numbers are too large for kernels.
    pub fn even(stride: usize) -> Result<Self, DeviceError> {
        Self::nested(1, 0, stride)
    }

    /// Groups of `inner` rows: rows `stride` apart, groups `outer`.
    ///
    /// # Errors
    /// When the numbers are too large for kernels.
    pub fn nested(inner: usize, stride: usize, outer: usize) -> Result<Self, DeviceError> {
        let int = |what, x| int("gemm", what, x);
        Ok(Self {
            inner: int("inner", inner.max(1))?,
            stride: int("stride", stride)?,
            outer: int("outer", outer)?,
        })
    }

    /// Where the last of `rows` rows begins, at most.
    fn last(self, rows: usize) -> usize {
        let Some(last) = rows.checked_sub(1) else { return 0 };
        let (inner, stride, outer) = (self.inner as usize, self.stride as usize, self.outer as usize);
        last / inner * outer + (inner.min(rows) - 1) * stride
    }

    /// How far apart rows are, where they are evenly.
    fn stride(self) -> Option<i32> {
        (self.inner == 1).then_some(self.outer)
    }

    fn is_multiple_of(self, chunk: usize) -> bool {
        (self.stride as usize).is_multiple_of(chunk) && (self.outer as usize).is_multiple_of(chunk)
    }
}

/// `Params` of `gemm.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    x: u64,
    weights: u64,
    y: u64,
    rows: i32,
    outputs: i32,
    inputs: i32,
    x_rows: RowMap,
    y_rows: RowMap,
    x_apart: i32,
    y_apart: i32,
}

// SAFETY: plain numbers, laid out as the kernel's struct.
unsafe impl DeviceRepr for Params {}

/// `batch` matrices of `outputs` rows and `inputs` columns.
pub struct Weights {
    numbers: Buffer<bf16>,
    outputs: usize,
    inputs: usize,
    batch: usize,
}

impl Weights {
    /// Copies matrices to the device. Inputs must be multiples of 8 and outputs of 2: pad with zeros.
    ///
    /// # Errors
    /// When numbers are missing or widths are not such multiples; when memory is short.
    pub fn upload(
        device: &Device,
        what: &str,
        numbers: &[bf16],
        [batch, outputs, inputs]: [usize; 3],
    ) -> Result<Self, DeviceError> {
        if numbers.len() != batch * outputs * inputs {
            let reason =
                format!("{what}: {} numbers for {batch} matrices of {outputs} x {inputs}", numbers.len());
            return Err(DeviceError::arguments("gemm", reason));
        }
        let mut weights = Self::unwritten(device, what, [batch, outputs, inputs])?;
        device.write_weights(&mut weights.numbers, 0, numbers)?;
        Ok(weights)
    }

    /// Room for matrices that [`Self::write`] fills, so that they need not be together in the host's memory.
    ///
    /// # Errors
    /// When widths are not such multiples; when memory is short.
    pub fn unwritten(
        device: &Device,
        what: &str,
        [batch, outputs, inputs]: [usize; 3],
    ) -> Result<Self, DeviceError> {
        if !inputs.is_multiple_of(CHUNK) || !outputs.is_multiple_of(2) {
            let reason = format!(
                "{what}: {outputs} x {inputs}, expected inputs of a multiple of {CHUNK}, outputs of 2"
            );
            return Err(DeviceError::arguments("gemm", reason));
        }
        Ok(Self { numbers: device.unwritten(what, batch * outputs * inputs)?, outputs, inputs, batch })
    }

    /// Copies `numbers` over rows of matrix `index`, from row `output` on.
    ///
    /// # Errors
    /// When they are not whole rows of that matrix, or the driver refuses.
    pub fn write(
        &mut self,
        device: &Device,
        [index, output]: [usize; 2],
        numbers: &[bf16],
    ) -> Result<(), DeviceError> {
        let Self { outputs, inputs, batch, .. } = *self;
        let rows = numbers.len() / inputs.max(1);
        if numbers.len() != rows * inputs || index >= batch || output + rows > outputs {
            let reason = format!(
                "{} numbers from row {output} of matrix {index} of {batch} of {outputs} x {inputs}",
                numbers.len()
            );
            return Err(DeviceError::arguments("gemm", reason));
        }
        device.write_weights(&mut self.numbers, (index * outputs + output) * inputs, numbers)
    }

    /// Matrices.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Rows of each matrix.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// The numbers themselves, as an embedding look-up takes them.
    pub fn numbers(&self) -> &Buffer<bf16> {
        &self.numbers
    }
}

/// Rows in a buffer, from `offset` on; those of the next product of a batch `apart` numbers on.
#[derive(Clone, Copy)]
pub struct Rows {
    /// Where the first begins.
    pub offset: usize,
    /// Where the others do.
    pub map: RowMap,
    /// Numbers to the next product's.
    pub apart: usize,
}

impl Rows {
    /// Rows `stride` apart, of one product.
    ///
    /// # Errors
    /// When the numbers are too large for kernels.
    pub fn even(offset: usize, stride: usize) -> Result<Self, DeviceError> {
        Ok(Self { offset, map: RowMap::even(stride)?, apart: 0 })
    }

    /// Those from row `first` on, of rows `stride` apart.
    fn starting_at(self, first: usize, stride: i32) -> Self {
        Self { offset: self.offset + first * stride as usize, ..self }
    }

    fn end(&self, rows: usize, width: usize, batch: usize) -> usize {
        self.offset + batch.saturating_sub(1) * self.apart + self.map.last(rows) + width
    }
}

/// Where a product goes.
pub enum Destination<'a> {
    /// Rounded.
    Bf16(&'a mut Buffer<bf16>),
    /// As it was summed.
    F32(&'a mut Buffer<f32>),
    /// Added to what is there.
    Add(&'a mut Buffer<f32>),
}

impl Destination<'_> {
    fn again(&mut self) -> Destination<'_> {
        match self {
            Self::Bf16(buffer) => Destination::Bf16(buffer),
            Self::F32(buffer) => Destination::F32(buffer),
            Self::Add(buffer) => Destination::Add(buffer),
        }
    }

    pub(super) fn index(&self) -> usize {
        match self {
            Self::Bf16(_) => 0,
            Self::F32(_) => 1,
            Self::Add(_) => 2,
        }
    }

    /// The address of a number, and how many there are.
    pub(super) fn place(&self, offset: usize) -> (u64, usize) {
        match self {
            Self::Bf16(buffer) => (buffer.address() + (offset * size_of::<bf16>()) as u64, buffer.len()),
            Self::F32(buffer) | Self::Add(buffer) => {
                (buffer.address() + (offset * size_of::<f32>()) as u64, buffer.len())
            }
        }
    }
}

/// The loaded kernels, by block and destination, and the library that multiplies prompts where one was asked for.
pub struct Gemm {
    kernels: [[CudaFunction; 3]; 3],
    library: Option<CublasLt>,
}

impl Gemm {
    /// Takes them from [`Program::gemm`](super::Program::gemm).
    ///
    /// # Errors
    /// When the program lacks one.
    pub fn new(loaded: &Loaded) -> Result<Self, DeviceError> {
        let kernel =
            |block: Block, to: &str| with_shared(loaded, &format!("gemm_{}_{to}", block.name), block.shared);
        let of = |block: Block| -> Result<[CudaFunction; 3], DeviceError> {
            Ok([kernel(block, "bf16")?, kernel(block, "f32")?, kernel(block, "add")?])
        };
        let [few, some, many] = BLOCKS;
        Ok(Self { kernels: [of(few)?, of(some)?, of(many)?], library: None })
    }

    /// Has cuBLASLt multiply the rows that [`Tables`] name for it. It takes 32 MiB of device memory from Hopper on, 8 before.
    ///
    /// # Errors
    /// When the library is not there, memory is short, or it refuses.
    pub fn with_cublaslt(self, device: &Device) -> Result<Self, DeviceError> {
        Ok(Self { library: Some(CublasLt::open(device)?), ..self })
    }

    /// The version of the library that multiplies prompts: 12.9.1 is 120901.
    pub fn library_version(&self) -> Option<usize> {
        self.library.as_ref().map(|_| CublasLt::version())
    }

    /// Why our kernels multiplied rows that the library was to: told once, of the first such product.
    pub fn take_refusal(&self) -> Option<String> {
        self.library.as_ref()?.take_refusal()
    }

    /// `y = x Wᵀ` for the rows of a step: those of `tables` that a library is to multiply by that, unless there is none or it
    /// has no algorithm, and all others by our kernels. Rows that are not evenly apart, or of several products, are ours.
    ///
    /// # Errors
    /// As [`Self::launch`], and when the library fails.
    pub fn launch_step(
        &self,
        device: &Device,
        weights: &Weights,
        tables: &Tables,
        (x, x_rows): (&Buffer<bf16>, Rows),
        (mut y, y_rows): (Destination<'_>, Rows),
    ) -> Result<(), DeviceError> {
        let strides = x_rows.map.stride().zip(y_rows.map.stride());
        let (Some(library), Some((x_stride, y_stride)), 1) = (&self.library, strides, weights.batch) else {
            return self.launch(device, weights, tables.rows(), (x, x_rows), (y, y_rows));
        };
        for (rows, by_library) in parts(tables.rows(), &tables.library) {
            let from = (x, x_rows.starting_at(rows.start, x_stride));
            let place = y_rows.starting_at(rows.start, y_stride);
            if by_library {
                let params = params(weights, rows.len(), from, (&y, place))?;
                let size = |number: i32| u64::from(number.unsigned_abs());
                let shape = Shape {
                    rows: size(params.rows),
                    outputs: size(params.outputs),
                    inputs: size(params.inputs),
                    x_stride: x_stride.into(),
                    y_stride: y_stride.into(),
                    rounded: matches!(y, Destination::Bf16(_)),
                };
                let add = matches!(y, Destination::Add(_));
                let call = Call { shape, weights: params.weights, x: params.x, y: params.y, add };
                device.bind()?;
                // SAFETY: `params` checked that the buffers, which are the device's, hold all rows.
                if unsafe { library.launch(&call) }? {
                    continue;
                }
            }
            self.launch(device, weights, rows.len(), from, (y.again(), place))?;
        }
        Ok(())
    }

    /// `y = x Wᵀ` for `rows` rows of each product of the batch, by our kernels.
    ///
    /// # Errors
    /// When a buffer is too small, rows do not begin at multiples of 8 numbers (x) or 2 (y), or the device refuses.
    pub fn launch(
        &self,
        device: &Device,
        weights: &Weights,
        rows: usize,
        (x, x_rows): (&Buffer<bf16>, Rows),
        (y, y_rows): (Destination<'_>, Rows),
    ) -> Result<(), DeviceError> {
        let params = params(weights, rows, (x, x_rows), (&y, y_rows))?;
        let Weights { outputs, batch, .. } = weights;
        let size = block_of(rows, *outputs);
        let block = BLOCKS[size];
        let blocks = |count: usize, each: usize| count.div_ceil(each) as u32;
        let config = LaunchConfig {
            grid_dim: (
                blocks(*outputs, block.outputs),
                blocks(rows, block.rows),
                int("gemm", "batch", *batch)? as u32,
            ),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: block.shared,
        };
        device.bind()?;
        // SAFETY: the kernel takes these parameters, and the buffers hold all rows it touches.
        unsafe { device.stream.launch_builder(&self.kernels[size][y.index()]).arg(&params).launch(config) }
            .map_err(DeviceError::driver("launching `gemm`"))?;
        Ok(())
    }
}

/// What the kernel is given, checked against the buffers.
fn params(
    Weights { numbers, outputs, inputs, batch }: &Weights,
    rows: usize,
    (x, x_rows): (&Buffer<bf16>, Rows),
    (y, y_rows): (&Destination<'_>, Rows),
) -> Result<Params, DeviceError> {
    let (to, room) = y.place(y_rows.offset);
    let (x_end, y_end) = (x_rows.end(rows, *inputs, *batch), y_rows.end(rows, *outputs, *batch));
    let aligned = |rows: &Rows, chunk: usize| {
        rows.map.is_multiple_of(chunk)
            && rows.offset.is_multiple_of(chunk)
            && rows.apart.is_multiple_of(chunk)
    };
    if rows == 0 || x_end > x.len() || y_end > room || !aligned(&x_rows, CHUNK) || !aligned(&y_rows, 2) {
        let reason = format!(
            "{rows} rows of {inputs} up to {x_end} of {}, to rows of {outputs} up to {y_end} of {room}; x begins at \
             multiples of {CHUNK}, y of 2",
            x.len()
        );
        return Err(DeviceError::arguments("gemm", reason));
    }
    let int = |what: &str, x: usize| int("gemm", what, x);
    Ok(Params {
        x: x.address() + (x_rows.offset * size_of::<bf16>()) as u64,
        weights: numbers.address(),
        y: to,
        rows: int("rows", rows)?,
        outputs: int("outputs", *outputs)?,
        inputs: int("inputs", *inputs)?,
        x_rows: x_rows.map,
        y_rows: y_rows.map,
        x_apart: int("apart", x_rows.apart)?,
        y_apart: int("apart", y_rows.apart)?,
    })
}
