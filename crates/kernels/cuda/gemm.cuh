// y = x W^T in bf16 with f32 sums, for decode and prompts alike: a row's result is the same bits whatever rows are beside it,
// because every kernel sums the inputs of a part in one order, and then the parts in one order.
//
// narrow: up to 16 * TILES rows, when reading the weights is what takes time. A block takes 32 outputs, and each of its four warps
// one part of the inputs through stages of its own: outputs are few enough for every multiprocessor to have a block, and enough
// bytes are on their way. wide: 16 * TILES rows and 64 outputs of a block, when there are more rows; each of its four warps
// takes 16 outputs, and the parts follow each other. Dynamic shared memory: the stages.
//
// Both take what a block multiplies as a value: `rows` is where the rows end that begin with `first_row`, `weights` has `outputs`
// rows of `inputs` numbers, row i of x is at x_row(i), and row i of the result at y_row(i) of y.
#pragma once
#include "dev.cuh"

enum : int { INPUTS = 64, THREADS = 128, CHUNKS = INPUTS / 8, ROW_BYTES = INPUTS * 2, PARTS = 4 };

// Copies COUNT rows of one step's inputs, by COPIERS threads of which this is number `copier`; what is beyond the last row or
// input becomes zero.
template <int COUNT, int COPIERS, class Address>
DEV void load(u8* to, Address address, int copier, int first, int rows, int chunk0, int chunks) {
#pragma unroll
    for (int n = 0; n < COUNT * CHUNKS / COPIERS; n++) {
        const int i = n * COPIERS + copier, row = i / CHUNKS, chunk = i % CHUNKS;
        const bool is_there = first + row < rows && chunk0 + chunk < chunks;
        copy_async(to + row * ROW_BYTES + (chunk ^ (row & 7)) * 16, address(first + row) + (chunk0 + chunk) * 8, is_there ? 16 : 0);
    }
}

// Byte offset, in rows of a stage, of the chunk that this lane names: of row `row`, chunk 2k or the one after it.
DEV u32 place(int row, int k, int more) { return row * ROW_BYTES + ((k * 2 + more) ^ (row & 7)) * 16; }

// Adds 16 * TILES rows times 16 * SETS outputs over the inputs of a stage.
template <int TILES, int SETS>
DEV void multiply(float (&sums)[TILES][2 * SETS][4], u32 rows, u32 outputs) {
    const int lane = threadIdx.x % WARP, matrix = lane / 8;
#pragma unroll
    for (int k = 0; k < INPUTS / 16; k++) {
        u32 weight[SETS][4];
#pragma unroll
        for (int set = 0; set < SETS; set++) {
            load_matrices(weight[set], outputs + place(set * 16 + matrix / 2 * 8 + lane % 8, k, matrix % 2));
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            u32 row[4];
            load_matrices(row, rows + place(tile * 16 + lane % 16, k, lane / 16));
#pragma unroll
            for (int set = 0; set < SETS; set++) {
                mma_16816(sums[tile][2 * set], row, weight[set][0], weight[set][1]);
                mma_16816(sums[tile][2 * set + 1], row, weight[set][2], weight[set][3]);
            }
        }
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

template <int TILES, int STAGES, Output OUTPUT, class Product>
DEV void narrow(const Product& p) {
    constexpr int ROWS = TILES * 16, OUTPUTS = 32, X_BYTES = ROWS * ROW_BYTES, STAGE_BYTES = X_BYTES + OUTPUTS * ROW_BYTES;
    const int lane = threadIdx.x % WARP, part = threadIdx.x / WARP;
    const int first_output = blockIdx.x * OUTPUTS, first_row = p.first_row, chunks = p.inputs / 8;
    const int steps = (p.inputs + INPUTS - 1) / INPUTS, each = (steps + PARTS - 1) / PARTS;
    const int begin = part * each, end = min(steps, begin + each);
    u8* stages = shared_memory + part * STAGES * STAGE_BYTES;

    auto start = [&](int step) {
        if (step < end) {
            u8* stage = stages + (step - begin) % STAGES * STAGE_BYTES;
            load<OUTPUTS, WARP>(stage + X_BYTES, [&](int output) { return p.weights + (u64)output * p.inputs; }, lane, first_output,
                                p.outputs, step * CHUNKS, chunks);
            load<ROWS, WARP>(stage, [&](int row) { return p.x_row(row); }, lane, first_row, p.rows, step * CHUNKS, chunks);
        }
        // An empty group keeps the count of those in flight.
        commit_copies();
    };
    float sums[TILES][4][4] = {};
    for (int ahead = 0; ahead < STAGES - 1; ahead++) start(begin + ahead);
    // All warps take as many steps, though the last part may have fewer inputs.
    for (int step = begin; step < begin + each; step++) {
        wait_copies<STAGES - 2>();
        // This step is there for all, and all are done with the one whose place the next one takes.
        __syncthreads();
        start(step + STAGES - 1);
        if (step < end) {
            const u32 stage = shared_address(stages + (step - begin) % STAGES * STAGE_BYTES);
            multiply<TILES, 2>(sums, stage, stage + X_BYTES);
        }
    }
    // Groups that are empty are waited for too. All are done with the last step, whose place the sums take.
    wait_copies<0>();
    __syncthreads();
    // [PARTS][ROWS][OUTPUTS], rows a little apart so that they begin in different banks.
    constexpr int PITCH = OUTPUTS + 8;
    float* parts = (float*)shared_memory;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float* of_row = parts + (part * ROWS + tile * 16 + half * 8 + lane / 4) * PITCH + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < 4; n++) *(float2*)(of_row + n * 8) = make_float2(sums[tile][n][2 * half], sums[tile][n][2 * half + 1]);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * OUTPUTS / 2; i += THREADS) {
        const int row = i / (OUTPUTS / 2), output = i % (OUTPUTS / 2) * 2;
        if (first_row + row >= p.rows || first_output + output >= p.outputs) continue;
        float2 total = make_float2(0.f, 0.f);
#pragma unroll
        for (int other = 0; other < PARTS; other++) {
            const float2 of_part = *(const float2*)(parts + (other * ROWS + row) * PITCH + output);
            total.x += of_part.x;
            total.y += of_part.y;
        }
        store<OUTPUT>(p.y, p.y_row(first_row + row) + first_output + output, total.x, total.y);
    }
}

template <int TILES, Output OUTPUT, class Product>
DEV void wide(const Product& p) {
    constexpr int ROWS = TILES * 16, OUTPUTS = 64, STAGES = 3;
    constexpr int X_BYTES = ROWS * ROW_BYTES, STAGE_BYTES = X_BYTES + OUTPUTS * ROW_BYTES;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int first_output = blockIdx.x * OUTPUTS, first_row = p.first_row, chunks = p.inputs / 8;
    const int steps = (p.inputs + INPUTS - 1) / INPUTS, each = (steps + PARTS - 1) / PARTS;

    auto start = [&](int step) {
        if (step < steps) {
            u8* stage = shared_memory + step % STAGES * STAGE_BYTES;
            load<ROWS, THREADS>(stage, [&](int row) { return p.x_row(row); }, threadIdx.x, first_row, p.rows, step * CHUNKS, chunks);
            load<OUTPUTS, THREADS>(stage + X_BYTES, [&](int output) { return p.weights + (u64)output * p.inputs; }, threadIdx.x,
                                   first_output, p.outputs, step * CHUNKS, chunks);
        }
        commit_copies();
    };
    float total[TILES][2][4] = {}, sums[TILES][2][4] = {};
    for (int step = 0; step < STAGES - 1; step++) start(step);
    for (int step = 0, left = each; step < steps; step++) {
        wait_copies<STAGES - 2>();
        // As above.
        __syncthreads();
        start(step + STAGES - 1);
        const u32 stage = shared_address(shared_memory + step % STAGES * STAGE_BYTES);
        multiply<TILES, 1>(sums, stage, stage + X_BYTES + warp * 16 * ROW_BYTES);
        left--;
        if (left > 0 && step + 1 < steps) continue;
        // A part is summed.
        left = each;
#pragma unroll
        for (int i = 0; i < TILES * 2 * 4; i++) {
            total[i / 8][i / 4 % 2][i % 4] += sums[i / 8][i / 4 % 2][i % 4];
            sums[i / 8][i / 4 % 2][i % 4] = 0.f;
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
            const u64 at = p.y_row(row);
#pragma unroll
            for (int n = 0; n < 2; n++) {
                const int output = first_output + warp * 16 + n * 8 + lane % 4 * 2;
                if (output < p.outputs) store<OUTPUT>(p.y, at + output, total[tile][n][2 * half], total[tile][n][2 * half + 1]);
            }
        }
    }
}
