//! cuBLASLt's products: what it is asked for, what it refuses, and the sums.

use gqla_ptxsim::GlobalMemory;
use serde_json::{Value, json};

use crate::code::Code;

/// `cudaDataType_t`, `cublasComputeType_t` and `cublasOperation_t` by number.
pub(crate) const BF16: u32 = 14;
pub(crate) const F32: u32 = 0;
pub(crate) const COMPUTE_F32: u32 = 68;
pub(crate) const TRANSPOSED: u32 = 1;

/// What the only algorithm needs of addresses and leading dimensions, bytes.
const ALIGN: u32 = 16;
/// What the workspace has to begin at multiples of.
const WORKSPACE_ALIGN: u64 = 256;

/// A refusal: any `cublasStatus_t` but success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal(pub i32);

impl Refusal {
    pub const INVALID_VALUE: Self = Self(7);
    pub const EXECUTION_FAILED: Self = Self(13);
    pub const NOT_SUPPORTED: Self = Self(15);
}

/// A matrix in columns, `ld` numbers apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub kind: u32,
    pub rows: u64,
    pub columns: u64,
    pub ld: i64,
}

impl Layout {
    fn number_bytes(self) -> u64 {
        if self.kind == BF16 { 2 } else { 4 }
    }
}

/// Which operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub compute: u32,
    pub scale: u32,
    pub a: u32,
    pub b: u32,
}

/// What a caller promises and allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Preference {
    pub workspace: u64,
    /// What addresses of A, B, C and D are multiples of, bytes.
    pub aligned: [u32; 4],
}

impl Default for Preference {
    fn default() -> Self {
        Self { workspace: 0, aligned: [256; 4] }
    }
}

/// What `cublasLtMatmulAlgo_t` holds here: the problem that it was found for.
pub(crate) type Algorithm = [u64; 8];

/// An operation and its matrices A, B, C and D.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Problem {
    pub operation: Operation,
    pub layouts: [Layout; 4],
}

impl Problem {
    /// `rows`, `outputs` and `inputs` of `y = x Wᵀ`, where A is W and B is x.
    fn sizes(&self) -> [u64; 3] {
        let [a, b, ..] = self.layouts;
        [b.columns, a.columns, a.rows]
    }

    /// What cuBLASLt refuses, and what is not modelled.
    fn check(&self) -> Result<(), Refusal> {
        let [a, b, c, d] = self.layouts;
        let [rows, outputs, inputs] = self.sizes();
        let fits = b.rows == inputs && (d.rows, d.columns) == (outputs, rows) && rows * outputs * inputs > 0;
        if !fits || self.layouts.iter().any(|layout| layout.ld < layout.rows.cast_signed()) {
            return Err(Refusal::INVALID_VALUE);
        }
        let expected = Operation { compute: COMPUTE_F32, scale: F32, a: TRANSPOSED, b: 0 };
        let kinds = (a.kind, b.kind) == (BF16, BF16) && [BF16, F32].contains(&d.kind);
        if self.operation == expected && kinds && c == d { Ok(()) } else { Err(Refusal::NOT_SUPPORTED) }
    }

    /// Into how many parts the inputs are divided: as with a vendor's library it follows from the batch, and the bits with it.
    fn parts(&self) -> u64 {
        2 + self.sizes()[0] % 3
    }

    fn workspace(&self) -> u64 {
        let [rows, outputs, _] = self.sizes();
        self.parts() * rows * outputs * 4
    }

    /// The algorithm, and the workspace it needs, bytes.
    pub fn algorithm(&self, preference: Preference) -> Result<(Algorithm, u64), Refusal> {
        self.check()?;
        let whole = |layout: &Layout| {
            (layout.ld.cast_unsigned() * layout.number_bytes()).is_multiple_of(u64::from(ALIGN))
        };
        let aligned = preference.aligned.iter().all(|align| *align >= ALIGN);
        if !aligned || !self.layouts.iter().all(whole) || self.workspace() > preference.workspace {
            return Err(Refusal::NOT_SUPPORTED);
        }
        let [rows, outputs, inputs] = self.sizes();
        let [a, b, c, d] = preference.aligned.map(u64::from);
        Ok(([rows, outputs, inputs, u64::from(self.layouts[3].kind), a, b, c, d], self.workspace()))
    }
}

/// A product that was checked and waits for its turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    problem: Problem,
    alpha: f32,
    beta: f32,
    addresses: [u64; 4],
}

impl Product {
    /// Checks it as cuBLASLt does before it returns; `workspace` is an address and a size.
    pub fn new(
        problem: Problem,
        [alpha, beta]: [f32; 2],
        addresses: [u64; 4],
        algorithm: &Algorithm,
        workspace: (u64, u64),
    ) -> Result<Self, Refusal> {
        problem.check()?;
        let [rows, outputs, inputs] = problem.sizes();
        if algorithm[..4] != [rows, outputs, inputs, u64::from(problem.layouts[3].kind)] {
            return Err(Refusal::INVALID_VALUE);
        }
        let promised = addresses
            .iter()
            .zip(&algorithm[4..])
            .all(|(address, align)| *address > 0 && address.is_multiple_of(*align));
        if !promised || workspace.1 < problem.workspace() || !workspace.0.is_multiple_of(WORKSPACE_ALIGN) {
            return Err(Refusal::INVALID_VALUE);
        }
        // Another C is not modelled.
        if addresses[2] != addresses[3] {
            return Err(Refusal::NOT_SUPPORTED);
        }
        Ok(Self { problem, alpha, beta, addresses })
    }

    /// A line of the report.
    pub fn line(&self) -> Value {
        let [rows, outputs, inputs] = self.problem.sizes();
        json!({ "kernel": "cublasLtMatmul", "rows": rows, "outputs": outputs, "inputs": inputs })
    }

    /// Multiplies.
    pub fn run(&self, memory: &mut GlobalMemory) -> Result<(), Code> {
        let ([a, b, _, d], parts) = (self.problem.layouts, self.problem.parts() as usize);
        let [a_at, b_at, _, d_at] = self.addresses;
        let weights = (0..a.columns).map(|output| column(memory, a_at, a, output));
        let weights: Vec<Vec<f32>> = weights.collect::<Result<_, _>>()?;
        for row in 0..b.columns {
            let x = column(memory, b_at, b, row)?;
            let was = if self.beta == 0.0 { vec![0.0; weights.len()] } else { column(memory, d_at, d, row)? };
            let y = weights.iter().zip(was).map(|(w, was)| {
                let part = |part: usize| {
                    let every = x.iter().zip(w).skip(part).step_by(parts);
                    every.fold(0f32, |sum, (x, w)| x.mul_add(*w, sum))
                };
                self.alpha * (0..parts).map(part).sum::<f32>() + self.beta * was
            });
            let bytes: Vec<u8> = match d.kind {
                BF16 => y.flat_map(|y| rounded(y).to_le_bytes()).collect(),
                _ => y.flat_map(f32::to_le_bytes).collect(),
            };
            memory.write(place(d_at, d, row), &bytes).map_err(|_| Code::ILLEGAL_ADDRESS)?;
        }
        Ok(())
    }
}

fn place(at: u64, layout: Layout, column: u64) -> u64 {
    at + column * layout.ld.cast_unsigned() * layout.number_bytes()
}

/// A column's numbers.
fn column(memory: &GlobalMemory, at: u64, layout: Layout, column: u64) -> Result<Vec<f32>, Code> {
    let address = place(at, layout, column);
    let mut bytes = vec![0; (layout.rows * layout.number_bytes()) as usize];
    memory.read(address, &mut bytes).map_err(|_| Code::ILLEGAL_ADDRESS)?;
    if !memory.is_written(address, bytes.len() as u64) {
        eprintln!(
            "gqla-fakecuda: cublasLtMatmul reads what nobody wrote, {} bytes at {address:#x}",
            bytes.len()
        );
        return Err(Code::LAUNCH_FAILED);
    }
    Ok(match layout.kind {
        BF16 => bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|half| f32::from_bits(u32::from(u16::from_le_bytes(*half)) << 16))
            .collect(),
        _ => bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect(),
    })
}

/// The nearest bf16, the even one of two.
fn rounded(y: f32) -> u16 {
    let bits = y.to_bits();
    if y.is_nan() { 0x7fff } else { ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3 rows of 8 inputs and 16 outputs, added to f32.
    fn problem() -> Problem {
        let layout = |kind, rows, columns| Layout { kind, rows, columns, ld: rows.cast_signed() };
        let d = layout(F32, 16, 3);
        Problem {
            operation: Operation { compute: COMPUTE_F32, scale: F32, a: TRANSPOSED, b: 0 },
            layouts: [layout(BF16, 8, 16), layout(BF16, 8, 3), d, d],
        }
    }

    #[test]
    fn what_the_library_refuses_is_refused() {
        let room = Preference { workspace: 1 << 20, ..Preference::default() };
        let with = |change: &dyn Fn(&mut Problem)| {
            let mut problem = problem();
            change(&mut problem);
            problem.algorithm(room).map(|(_, workspace)| workspace)
        };
        assert_eq!(with(&|_| {}), Ok(2 * 3 * 16 * 4));
        for (change, refusal) in [
            (&(|p: &mut Problem| p.layouts[1].ld = 7) as &dyn Fn(&mut Problem), Refusal::INVALID_VALUE),
            (&|p| p.layouts[1].rows = 4, Refusal::INVALID_VALUE),
            (&|p| p.layouts[1].ld = 9, Refusal::NOT_SUPPORTED),
            (&|p| p.layouts[0].kind = F32, Refusal::NOT_SUPPORTED),
            (&|p| p.operation.compute = 64, Refusal::NOT_SUPPORTED),
            (&|p| p.operation.a = 0, Refusal::NOT_SUPPORTED),
        ] {
            assert_eq!(with(change), Err(refusal));
        }
        for preference in
            [Preference { workspace: 383, ..room }, Preference { aligned: [16, 16, 4, 4], ..room }]
        {
            assert_eq!(problem().algorithm(preference), Err(Refusal::NOT_SUPPORTED), "{preference:?}");
        }
        let (algorithm, needed) = problem().algorithm(room).unwrap();
        let product =
            |addresses, workspace| Product::new(problem(), [1.0; 2], addresses, &algorithm, workspace).err();
        assert_eq!(product([256, 512, 768, 768], (256, needed)), None);
        for (addresses, workspace) in [
            ([256, 512, 768, 768], (256, needed - 1)),
            ([256, 512, 768, 768], (16, needed)),
            ([256, 528, 768, 768], (256, needed)),
        ] {
            assert_eq!(product(addresses, workspace), Some(Refusal::INVALID_VALUE));
        }
    }

    #[test]
    fn rows_are_multiplied_and_added_and_what_nobody_wrote_is_found() {
        let mut memory = GlobalMemory::new(1 << 20);
        let [a, b, d] = [256u64, 48, 192].map(|bytes| memory.allocate(bytes).unwrap());
        let bf16 = |x: &dyn Fn(usize) -> f32, len: usize| -> Vec<u8> {
            (0..len).flat_map(|i| rounded(x(i)).to_le_bytes()).collect()
        };
        let room = Preference { workspace: 1 << 20, ..Preference::default() };
        let (algorithm, needed) = problem().algorithm(room).unwrap();
        let product = Product::new(problem(), [1.0; 2], [a, b, d, d], &algorithm, (256, needed)).unwrap();
        memory.write(a, &bf16(&|i| (i / 8) as f32, 128)).unwrap();
        memory.write(d, &1f32.to_le_bytes().repeat(48)).unwrap();
        assert_eq!(product.run(&mut memory), Err(Code::LAUNCH_FAILED));
        memory.write(b, &bf16(&|i| if i < 8 { 0.5 } else { -2.0 }, 24)).unwrap();
        product.run(&mut memory).unwrap();
        let layout = problem().layouts[3];
        assert_eq!(column(&memory, d, layout, 0).unwrap()[..3], [1.0, 5.0, 9.0]);
        assert_eq!(column(&memory, d, layout, 2).unwrap()[..3], [1.0, -15.0, -31.0]);
    }
}
