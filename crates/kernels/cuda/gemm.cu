// Products of matrices. gemm_narrowN: up to N rows; gemm_wide64: any number of rows, 64 of a block. Rows of x and y lie where a
// RowMap says, so that the heads of a group are rows too; blockIdx.z counts products of equal shape, such as one per group.
#include "gemm.cuh"

// Row i begins at i / inner * outer + i % inner * stride.
struct RowMap {
    int inner, stride, outer;
    DEV u64 operator()(int row) const { return (u64)(row / inner) * outer + row % inner * stride; }
};

struct Params {
    const u16* x;
    const u16* weights; // [batch][outputs][inputs]
    void* y;
    int rows, outputs, inputs;
    RowMap x_rows, y_rows;
    // Numbers between two products' x and y.
    int x_apart, y_apart;
};

// Product blockIdx.z, rows from ROWS * blockIdx.y on.
template <int ROWS>
struct OfBatch {
    const Params& p;
    const u16 *x, *weights;
    void* y;
    int first_row, rows, outputs, inputs;

    DEV OfBatch(const Params& p)
        : p(p),
          x(p.x + (u64)blockIdx.z * p.x_apart),
          weights(p.weights + (u64)blockIdx.z * p.outputs * p.inputs),
          y(p.y),
          first_row(blockIdx.y * ROWS),
          rows(p.rows),
          outputs(p.outputs),
          inputs(p.inputs) {}
    DEV const u16* x_row(int row) const { return x + p.x_rows(row); }
    DEV u64 y_row(int row) const { return p.y_rows(row) + (u64)blockIdx.z * p.y_apart; }
};

#define KERNEL(name, rows, body) \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) name(const __grid_constant__ Params p) { body(OfBatch<rows>(p)); }

KERNEL(gemm_narrow16_bf16, 16, (narrow<1, 4, Output::Bf16>))
KERNEL(gemm_narrow16_f32, 16, (narrow<1, 4, Output::F32>))
KERNEL(gemm_narrow16_add, 16, (narrow<1, 4, Output::Add>))
KERNEL(gemm_narrow64_bf16, 64, (narrow<4, 2, Output::Bf16>))
KERNEL(gemm_narrow64_f32, 64, (narrow<4, 2, Output::F32>))
KERNEL(gemm_narrow64_add, 64, (narrow<4, 2, Output::Add>))
KERNEL(gemm_wide64_bf16, 64, (wide<4, Output::Bf16>))
KERNEL(gemm_wide64_f32, 64, (wide<4, Output::F32>))
KERNEL(gemm_wide64_add, 64, (wide<4, Output::Add>))
