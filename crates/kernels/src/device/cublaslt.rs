//! Products by cuBLASLt, which is opened when somebody asks for it and never linked.
//!
//! `y = x Wᵀ` in rows is `yᵀ = W xᵀ` in columns: A is the transposed matrix, B are the rows. Sums are f32, and those of parts
//! of the inputs too, so that rounding to bf16 happens once.

use std::{
    collections::BTreeMap,
    env,
    ffi::c_void,
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::{
    cublaslt::{
        result::{self, CublasError},
        sys::{
            self, cublasComputeType_t::CUBLAS_COMPUTE_32F, cublasLtContext, cublasLtMatmulAlgo_t,
            cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, cublasLtMatmulDescOpaque_t,
            cublasLtMatmulPreferenceAttributes_t as Preferred, cublasLtMatrixLayoutOpaque_t, cublasStatus_t,
            cudaDataType_t,
        },
    },
    driver::CudaStream,
};

use super::{Buffer, Device, DeviceError};

/// Bytes of device memory that algorithms may use, as the vendor advises for Hopper and later, and before.
const WORKSPACE_BYTES: [usize; 2] = [32 << 20, 8 << 20];
/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`: parts of the inputs are added in f32, in the workspace.
const REDUCE_IN_F32: u32 = 2;
/// More than this the library asks of no address.
const MOST_ALIGNED: u64 = 256;

/// An object of the library, destroyed with it.
struct Object<T>(*mut T, unsafe fn(*mut T) -> cublasStatus_t);

impl<T> Drop for Object<T> {
    fn drop(&mut self) {
        // SAFETY: the library made it, and it is destroyed once. There is nothing to do about a failure.
        let _ = unsafe { (self.1)(self.0) };
    }
}

type Layout = Object<cublasLtMatrixLayoutOpaque_t>;

/// `rows` rows of `inputs` numbers times a matrix of `outputs` rows, of one kind of destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape {
    pub rows: u64,
    pub outputs: u64,
    pub inputs: u64,
    pub x_stride: i64,
    pub y_stride: i64,
    /// Rounded to bf16, else f32.
    pub rounded: bool,
}

/// A product, by addresses on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub shape: Shape,
    pub weights: u64,
    pub x: u64,
    pub y: u64,
    /// Added to what is there.
    pub add: bool,
}

impl Call {
    /// What the addresses of matrix, rows and result are multiples of, bytes.
    fn aligned(&self) -> [u32; 3] {
        [self.weights, self.x, self.y].map(|address| 1 << address.trailing_zeros().min(MOST_ALIGNED.ilog2()))
    }
}

/// How the library computes a shape.
struct Plan {
    weights: Layout,
    x: Layout,
    y: Layout,
    algorithm: cublasLtMatmulAlgo_t,
}

/// The opened library on one device.
pub(super) struct CublasLt {
    state: Mutex<State>,
    workspace: Buffer<f32>,
    stream: Arc<CudaStream>,
}

/// Fields are dropped in this order.
struct State {
    /// `None` where the library has no algorithm.
    plans: BTreeMap<(Shape, [u32; 3]), Option<Plan>>,
    operation: Object<cublasLtMatmulDescOpaque_t>,
    handle: Object<cublasLtContext>,
    /// Why our kernels multiply what the library was to, until somebody takes it; `Some(None)` afterwards.
    refusal: Option<Option<String>>,
}

// SAFETY: the library's objects belong to no thread, and a mutex lets one use them at a time.
unsafe impl Send for State {}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // The handle's own memory goes with it, on the device of the thread's context. A device that failed gives nothing back.
        let _ = self.stream.context().bind_to_thread();
    }
}

impl CublasLt {
    /// Opens the library.
    pub fn open(device: &Device) -> Result<Self, DeviceError> {
        // cudarc panics where it is missing.
        // SAFETY: it only tries to open the library, whose initialisers its vendor vouches for.
        if !unsafe { sys::is_culib_present() } {
            let searched = env::var("LD_LIBRARY_PATH").unwrap_or_default();
            return Err(DeviceError::NoCublasLt { searched });
        }
        device.bind()?;
        let [newer, older] = WORKSPACE_BYTES;
        let bytes = if device.limits().capability.0 >= 9 { newer } else { older };
        let handle = result::create_handle().map_err(failed("making its handle"))?;
        let handle = Object(handle, sys::cublasLtDestroy);
        let operation = result::create_matmul_desc(CUBLAS_COMPUTE_32F, cudaDataType_t::CUDA_R_32F);
        let operation = operation.map_err(failed("describing products"))?;
        let operation = Object(operation, sys::cublasLtMatmulDescDestroy);
        let transposed = 1i32;
        // SAFETY: the object is alive, and the value is as large as it is said to be, as in all calls below.
        unsafe {
            result::set_matmul_desc_attribute(
                operation.0,
                CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transposed).cast(),
                size_of_val(&transposed),
            )
        }
        .map_err(failed("describing products"))?;
        let state = State { plans: BTreeMap::new(), operation, handle, refusal: None };
        Ok(Self {
            state: Mutex::new(state),
            workspace: device.unwritten("cuBLASLt's workspace", bytes / size_of::<f32>())?,
            stream: device.stream.clone(),
        })
    }

    /// Of the library that was opened: 12.9.1 is 120901.
    pub fn version() -> usize {
        // SAFETY: the function takes nothing; that the library is open is the caller's to know.
        unsafe { sys::cublasLtGetVersion() }
    }

    /// Multiplies, in the stream; false where the library has no algorithm, and nothing was done.
    ///
    /// # Safety
    /// The rows that `call` names must lie in live buffers of the device that it was opened on, whose context is bound.
    pub unsafe fn launch(&self, call: &Call) -> Result<bool, DeviceError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { plans, operation, handle, refusal } = &mut *state;
        let workspace = self.workspace.len() * size_of::<f32>();
        let plan = plans.entry((call.shape, call.aligned())).or_insert_with(|| {
            let found = plan(handle, operation, call, workspace);
            let Shape { rows, outputs, inputs, .. } = call.shape;
            found
                .map_err(|error| {
                    let reason = format!("{rows} rows of {inputs} to {outputs}: {error}");
                    refusal.get_or_insert(Some(reason));
                })
                .ok()
        });
        let Some(plan) = plan else { return Ok(false) };
        let (alpha, beta) = (1f32, if call.add { 1f32 } else { 0f32 });
        let on_device = |address: u64| std::ptr::with_exposed_provenance::<c_void>(address as usize);
        let y = on_device(call.y).cast_mut();
        // SAFETY: the objects are alive, and the caller vouches for the addresses. Whoever used the workspace before did so
        // in this stream.
        unsafe {
            result::matmul(
                handle.0,
                operation.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                on_device(call.weights),
                plan.weights.0,
                on_device(call.x),
                plan.x.0,
                y,
                plan.y.0,
                y,
                plan.y.0,
                &raw const plan.algorithm,
                on_device(self.workspace.address()).cast_mut(),
                workspace,
                self.stream.cu_stream().cast(),
            )
        }
        .map_err(failed("multiplying"))?;
        Ok(true)
    }

    /// Why our kernels multiplied what the library was to, once.
    pub fn take_refusal(&self) -> Option<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).refusal.as_mut()?.take()
    }
}

/// The algorithm that the library's heuristic puts first.
fn plan(
    handle: &Object<cublasLtContext>,
    operation: &Object<cublasLtMatmulDescOpaque_t>,
    call: &Call,
    workspace: usize,
) -> Result<Plan, CublasError> {
    let Shape { rows, outputs, inputs, x_stride, y_stride, rounded } = call.shape;
    let layout = |kind, rows, columns, stride| -> Result<Layout, CublasError> {
        let layout = result::create_matrix_layout(kind, rows, columns, stride)?;
        Ok(Object(layout, sys::cublasLtMatrixLayoutDestroy))
    };
    let (bf16, f32) = (cudaDataType_t::CUDA_R_16BF, cudaDataType_t::CUDA_R_32F);
    let weights = layout(bf16, inputs, outputs, inputs.cast_signed())?;
    let x = layout(bf16, inputs, rows, x_stride)?;
    let y = layout(if rounded { bf16 } else { f32 }, outputs, rows, y_stride)?;
    let preference = Object(result::create_matmul_pref()?, sys::cublasLtMatmulPreferenceDestroy);
    let workspace = workspace as u64;
    // SAFETY: as in `CublasLt::open`.
    unsafe {
        result::set_matmul_pref_attribute(
            preference.0,
            Preferred::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            (&raw const workspace).cast(),
            size_of_val(&workspace),
        )
    }?;
    // Unless it is told, the library takes addresses for multiples of 256 bytes.
    let [of_weights, of_x, of_y] = call.aligned();
    for (attribute, value) in [
        (Preferred::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, REDUCE_IN_F32),
        (Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, of_weights),
        (Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, of_x),
        (Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, of_y),
        (Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, of_y),
    ] {
        // SAFETY: as in `CublasLt::open`.
        unsafe {
            result::set_matmul_pref_attribute(
                preference.0,
                attribute,
                (&raw const value).cast(),
                size_of_val(&value),
            )
        }?;
    }
    // SAFETY: all objects are alive.
    let found = unsafe {
        result::get_matmul_algo_heuristic(handle.0, operation.0, weights.0, x.0, y.0, y.0, preference.0)
    }?;
    Ok(Plan { weights, x, y, algorithm: found.algo })
}

fn failed(doing: &'static str) -> impl FnOnce(CublasError) -> DeviceError {
    move |error| DeviceError::CublasLt { doing, status: error.to_string() }
}
