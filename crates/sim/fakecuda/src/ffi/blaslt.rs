//! cuBLASLt's functions. Its objects are numbers in the shape of pointers, and are never followed.

use std::{
    collections::BTreeMap,
    ffi::{c_int, c_void},
    sync::{Mutex, PoisonError},
};

use super::abi::{In, Out, Status, in_context, stream};
use crate::{
    blaslt::{Algorithm, Layout, Operation, Preference, Problem, Product, Refusal},
    queue::Task,
};

/// What `cublasLtGetVersion` says: 12.9.1.
const VERSION: usize = 120_901;

/// `cublasLtMatmulDescAttributes_t` and `cublasLtMatmulPreferenceAttributes_t` by number.
const TRANSPOSE_A: c_int = 3;
const TRANSPOSE_B: c_int = 4;
const WORKSPACE: c_int = 1;
const REDUCTION_SCHEMES: c_int = 3;
const ALIGNMENT_A: c_int = 5;
const ALIGNMENT_D: c_int = 8;

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
pub struct Heuristic {
    algorithm: Algorithm,
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

#[derive(Clone, Copy)]
enum Object {
    Handle,
    Operation(Operation),
    Layout(Layout),
    Preference(Preference),
}

#[derive(Default)]
struct Objects {
    objects: BTreeMap<usize, Object>,
    made: usize,
}

static OBJECTS: Mutex<Option<Objects>> = Mutex::new(None);

fn answer(act: impl FnOnce(&mut Objects) -> Result<(), Refusal>) -> Status {
    let mut objects = OBJECTS.lock().unwrap_or_else(PoisonError::into_inner);
    act(objects.get_or_insert_default()).err().map_or(0, |refusal| refusal.0)
}

impl Objects {
    fn make(&mut self, place: Out<usize>, object: Object) -> Result<(), Refusal> {
        self.made += 0x10;
        self.objects.insert(self.made, object);
        place.set(self.made).map_err(|_| Refusal::INVALID_VALUE)
    }

    fn end(&mut self, object: usize) -> Result<(), Refusal> {
        self.objects.remove(&object).map(drop).ok_or(Refusal::INVALID_VALUE)
    }

    fn layout(&self, object: usize) -> Result<Layout, Refusal> {
        let Some(Object::Layout(layout)) = self.objects.get(&object) else {
            return Err(Refusal::INVALID_VALUE);
        };
        Ok(*layout)
    }

    fn problem(&self, handle: usize, operation: usize, layouts: [usize; 4]) -> Result<Problem, Refusal> {
        let (Some(Object::Handle), Some(Object::Operation(operation))) =
            (self.objects.get(&handle), self.objects.get(&operation))
        else {
            return Err(Refusal::INVALID_VALUE);
        };
        let [a, b, c, d] = layouts.map(|layout| self.layout(layout));
        Ok(Problem { operation: *operation, layouts: [a?, b?, c?, d?] })
    }
}

/// A value of `bytes` bytes that has to be a `T`.
fn value<T: Copy>(from: &In<T>, bytes: usize) -> Result<T, Refusal> {
    if bytes != size_of::<T>() {
        return Err(Refusal::INVALID_VALUE);
    }
    from.get().map_err(|_| Refusal::INVALID_VALUE)
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtGetVersion() -> usize {
    VERSION
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtCreate(handle: Out<usize>) -> Status {
    answer(|objects| objects.make(handle, Object::Handle))
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtDestroy(handle: usize) -> Status {
    answer(|objects| objects.end(handle))
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulDescCreate(operation: Out<usize>, compute: u32, scale: u32) -> Status {
    answer(|objects| objects.make(operation, Object::Operation(Operation { compute, scale, a: 0, b: 0 })))
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulDescDestroy(operation: usize) -> Status {
    answer(|objects| objects.end(operation))
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulDescSetAttribute(
    operation: usize,
    attribute: c_int,
    from: In<u32>,
    bytes: usize,
) -> Status {
    answer(|objects| {
        let Some(Object::Operation(operation)) = objects.objects.get_mut(&operation) else {
            return Err(Refusal::INVALID_VALUE);
        };
        match attribute {
            TRANSPOSE_A => operation.a = value(&from, bytes)?,
            TRANSPOSE_B => operation.b = value(&from, bytes)?,
            _ => return Err(Refusal::NOT_SUPPORTED),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatrixLayoutCreate(
    layout: Out<usize>,
    kind: u32,
    rows: u64,
    columns: u64,
    ld: i64,
) -> Status {
    answer(|objects| objects.make(layout, Object::Layout(Layout { kind, rows, columns, ld })))
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatrixLayoutDestroy(layout: usize) -> Status {
    answer(|objects| objects.end(layout))
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulPreferenceCreate(preference: Out<usize>) -> Status {
    answer(|objects| objects.make(preference, Object::Preference(Preference::default())))
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulPreferenceDestroy(preference: usize) -> Status {
    answer(|objects| objects.end(preference))
}

/// A workspace has 64 bits, what else there is has 32.
#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    preference: usize,
    attribute: c_int,
    from: In<u32>,
    bytes: usize,
) -> Status {
    answer(|objects| {
        let Some(Object::Preference(preference)) = objects.objects.get_mut(&preference) else {
            return Err(Refusal::INVALID_VALUE);
        };
        match attribute {
            WORKSPACE => preference.workspace = value(&from.of::<u64>(), bytes)?,
            ALIGNMENT_A..=ALIGNMENT_D => {
                preference.aligned[(attribute - ALIGNMENT_A) as usize] = value(&from, bytes)?;
            }
            // Whatever is allowed, parts are added in f32.
            REDUCTION_SCHEMES => drop(value::<u32>(&from, bytes)?),
            _ => return Err(Refusal::NOT_SUPPORTED),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    handle: usize,
    operation: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    preference: usize,
    wanted: c_int,
    results: Out<Heuristic>,
    found: Out<c_int>,
) -> Status {
    answer(|objects| {
        if wanted < 1 {
            return Err(Refusal::INVALID_VALUE);
        }
        let problem = objects.problem(handle, operation, [a, b, c, d])?;
        let Some(Object::Preference(preference)) = objects.objects.get(&preference) else {
            return Err(Refusal::INVALID_VALUE);
        };
        let (algorithm, workspace) = problem.algorithm(*preference)?;
        let workspace = workspace as usize;
        let result = Heuristic { algorithm, workspace, state: 0, waves: 1.0, reserved: [0; 4] };
        results.set(result).and_then(|()| found.set(1)).map_err(|_| Refusal::INVALID_VALUE)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmul(
    handle: usize,
    operation: usize,
    alpha: In<f32>,
    a: u64,
    a_layout: usize,
    b: u64,
    b_layout: usize,
    beta: In<f32>,
    c: u64,
    c_layout: usize,
    d: u64,
    d_layout: usize,
    algorithm: In<Algorithm>,
    workspace: u64,
    workspace_bytes: usize,
    handle_of_stream: *const c_void,
) -> Status {
    answer(|objects| {
        let problem = objects.problem(handle, operation, [a_layout, b_layout, c_layout, d_layout])?;
        let missing = |_| Refusal::INVALID_VALUE;
        let factors = [alpha.get().map_err(missing)?, beta.get().map_err(missing)?];
        let algorithm = algorithm.get().map_err(missing)?;
        let workspace = (workspace, workspace_bytes as u64);
        let product = Product::new(problem, factors, [a, b, c, d], &algorithm, workspace)?;
        let queued = in_context(|machine, device| {
            let stream = stream(machine, device, handle_of_stream.addr())?;
            machine.devices[device].queues.push(stream, Task::Product(product.into()));
            Ok(())
        });
        if queued == 0 { Ok(()) } else { Err(Refusal::EXECUTION_FAILED) }
    })
}
