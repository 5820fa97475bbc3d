// y = x W^T in bf16 with f32 sums, for decode and prompts alike: a row's result is the same bits whatever rows are beside it.
//
// A block takes ROWS rows and 64 outputs, in steps of 64 inputs through three stages of shared memory; each of its four warps
// takes 16 outputs. Weights are read once for ROWS rows. Rows of x and y lie where a RowMap says, so that the heads of a
// group are rows too; blockIdx.z counts products of equal shape, such as one per group.
#include "dev.cuh"

enum : int { OUTPUTS = 64, INPUTS = 64, STAGES = 3, THREADS = 128, CHUNKS = INPUTS / 8 };

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

DEV int swizzled(int row, int chunk) { return chunk ^ (row & 7); }

// Copies COUNT rows of one step's inputs; what is beyond the last row or input becomes zero.
template <int COUNT, class Address>
DEV void load(u8* to, Address address, int first, int rows, int chunk0, int chunks) {
#pragma unroll
    for (int n = 0; n < COUNT * CHUNKS / THREADS; n++) {
        const int i = n * THREADS + threadIdx.x, row = i / CHUNKS, chunk = i % CHUNKS;
        const bool is_there = first + row < rows && chunk0 + chunk < chunks;
        copy_async(to + (row * CHUNKS + swizzled(row, chunk)) * 16, address(first + row) + (chunk0 + chunk) * 8, is_there ? 16 : 0);
    }
}

enum class Output { Bf16, F32, Add };

template <Output OUTPUT>
DEV void store(void* y, u64 at, float a, float b) {
    if (OUTPUT == Output::Bf16) {
        *(u32*)((u16*)y + at) = pack(a, b);
    } else if (OUTPUT == Output::F32) {
        *(float2*)((float*)y + at) = make_float2(a, b);
    } else {
        float2* to = (float2*)((float*)y + at);
        const float2 old = *to;
        *to = make_float2(old.x + a, old.y + b);
    }
}

template <int ROWS, Output OUTPUT>
DEV void gemm(const Params& p) {
    constexpr int X_BYTES = ROWS * INPUTS * 2, STAGE_BYTES = X_BYTES + OUTPUTS * INPUTS * 2, TILES = ROWS / 16;
    __shared__ __align__(128) u8 stages[STAGES * STAGE_BYTES];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, matrix = lane / 8;
    const int first_output = blockIdx.x * OUTPUTS, first_row = blockIdx.y * ROWS, chunks = p.inputs / 8;
    const int steps = (p.inputs + INPUTS - 1) / INPUTS;
    const u16* x = p.x + (u64)blockIdx.z * p.x_apart;
    const u16* weights = p.weights + (u64)blockIdx.z * p.outputs * p.inputs;

    auto start = [&](int step) {
        if (step < steps) {
            u8* stage = stages + step % STAGES * STAGE_BYTES;
            load<ROWS>(stage, [&](int row) { return x + p.x_rows(row); }, first_row, p.rows, step * CHUNKS, chunks);
            load<OUTPUTS>(stage + X_BYTES, [&](int output) { return weights + (u64)output * p.inputs; }, first_output, p.outputs,
                          step * CHUNKS, chunks);
        }
        // An empty group keeps the count of those in flight.
        commit_copies();
    };
    float sums[TILES][2][4] = {};
    for (int step = 0; step < STAGES - 1; step++) start(step);
    for (int step = 0; step < steps; step++) {
        wait_copies<STAGES - 2>();
        // This step is there for all, and all are done with the one whose place the next one takes.
        __syncthreads();
        start(step + STAGES - 1);
        const u8* stage = stages + step % STAGES * STAGE_BYTES;
#pragma unroll
        for (int k = 0; k < INPUTS / 16; k++) {
            u32 weight[4];
            const int output = warp * 16 + matrix / 2 * 8 + lane % 8;
            load_matrices(weight, stage + X_BYTES + (output * CHUNKS + swizzled(output, k * 2 + matrix % 2)) * 16);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                u32 rows[4];
                const int row = tile * 16 + lane % 16;
                load_matrices(rows, stage + (row * CHUNKS + swizzled(row, k * 2 + lane / 16)) * 16);
                mma_16816(sums[tile][0], rows, weight[0], weight[1]);
                mma_16816(sums[tile][1], rows, weight[2], weight[3]);
            }
        }
    }
    // Groups that are empty are waited for too.
    wait_copies<0>();
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = first_row + tile * 16 + half * 8 + lane / 4;
            if (row >= p.rows) break;
            const u64 at = p.y_rows(row) + (u64)blockIdx.z * p.y_apart;
#pragma unroll
            for (int n = 0; n < 2; n++) {
                const int output = first_output + warp * 16 + n * 8 + lane % 4 * 2;
                if (output < p.outputs) store<OUTPUT>(p.y, at + output, sums[tile][n][2 * half], sums[tile][n][2 * half + 1]);
            }
        }
    }
}

#define KERNEL(name, rows, output) \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ Params p) { gemm<rows, output>(p); }

KERNEL(gemm_rows16_bf16, 16, Output::Bf16)
KERNEL(gemm_rows16_f32, 16, Output::F32)
KERNEL(gemm_rows16_add, 16, Output::Add)
KERNEL(gemm_rows64_bf16, 64, Output::Bf16)
KERNEL(gemm_rows64_f32, 64, Output::F32)
KERNEL(gemm_rows64_add, 64, Output::Add)
