// What a step does row by row between its products: embedding, norms, rotary embedding, cache writes, activation.
#include "dev.cuh"

DEV float wide(u16 x) { return __uint_as_float((u32)x << 16); }

// A block per row copies the row of `table` that its token names.
struct Embed {
    const u16* table;  // [vocabulary][width]
    const int* tokens; // [rows]
    float* out;        // [rows][width]
    int width;
};
extern "C" __global__ void __launch_bounds__(128) embed(const __grid_constant__ Embed p) {
    const u16* from = p.table + (u64)p.tokens[blockIdx.x] * p.width;
    for (int i = threadIdx.x * 2; i < p.width; i += blockDim.x * 2) {
        const u32 pair = *(const u32*)(from + i);
        *(float2*)(p.out + (u64)blockIdx.x * p.width + i) = make_float2(wide((u16)pair), wide((u16)(pair >> 16)));
    }
}

// out = x / sqrt(mean(x^2) + eps) * weight: a block per row. Row i of out is row `rows[i]` of x, or row i where rows is null.
template <class In, class Out>
struct Norm {
    const In* x;
    const float* weight;
    const int* rows;
    Out* out;
    int width, x_stride, out_stride;
    float eps;
};

DEV float number(float x) { return x; }
DEV float number(u16 x) { return wide(x); }
DEV void put(float* to, float x) { *to = x; }
DEV void put(u16* to, float x) { *to = (u16)pack(x, 0.f); }

template <class In, class Out>
DEV void rms_norm(const Norm<In, Out>& p) {
    __shared__ float of_warps[8];
    const int row = p.rows ? p.rows[blockIdx.x] : blockIdx.x, lane = threadIdx.x % WARP;
    const In* x = p.x + (u64)row * p.x_stride;
    float squares = 0.f;
    for (int i = threadIdx.x; i < p.width; i += 256) squares += number(x[i]) * number(x[i]);
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) squares += __shfl_xor_sync(ALL_LANES, squares, apart);
    if (lane == 0) of_warps[threadIdx.x / WARP] = squares;
    __syncthreads();
    squares = 0.f;
#pragma unroll
    for (int warp = 0; warp < 8; warp++) squares += of_warps[warp];
    const float scale = 1.f / sqrtf(squares / p.width + p.eps);
    Out* out = p.out + (u64)blockIdx.x * p.out_stride;
    for (int i = threadIdx.x; i < p.width; i += 256) put(out + i, number(x[i]) * scale * p.weight[i]);
}
extern "C" __global__ void __launch_bounds__(256) rms_norm_f32(const __grid_constant__ Norm<float, u16> p) { rms_norm(p); }
extern "C" __global__ void __launch_bounds__(256) rms_norm_bf16(const __grid_constant__ Norm<u16, u16> p) { rms_norm(p); }
// In place: a thread writes what it read.
extern "C" __global__ void __launch_bounds__(256) rms_norm_unrounded(const __grid_constant__ Norm<float, float> p) { rms_norm(p); }

// Rounds each head's first `plain` numbers, and turns its 2 * pairs others: channels 2t and 2t + 1 of these where interleaved,
// else t and t + pairs. What is turned was not rounded before. A thread per two numbers.
struct Rope {
    const float* x;
    u16* out;             // the first numbers, where x has them
    u16* turned;          // the others
    const float2* turns;  // [position][pairs], cosine and sine
    const int* positions; // [rows]
    int rows, heads, plain, pairs, interleaved;
    int stride, head_stride, turned_stride, turned_head_stride;
};
extern "C" __global__ void __launch_bounds__(256) rope(const __grid_constant__ Rope p) {
    const u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    const int plain = p.plain / 2, each = plain + p.pairs;
    if (i >= (u64)p.rows * p.heads * each) return;
    const int head = i / each % p.heads, row = i / each / p.heads, pair = (int)(i % each) - plain;
    const u64 at = (u64)row * p.stride + head * p.head_stride;
    const float* x = p.x + at;
    if (pair < 0) {
        const int first = 2 * (plain + pair);
        const float2 both = *(const float2*)(x + first);
        *(u32*)(p.out + at + first) = pack(both.x, both.y);
        return;
    }
    x += p.plain;
    const int first = p.interleaved ? 2 * pair : pair, second = p.interleaved ? 2 * pair + 1 : pair + p.pairs;
    u16* out = p.turned + (u64)row * p.turned_stride + head * p.turned_head_stride;
    const float2 turn = p.turns[(u64)p.positions[row] * p.pairs + pair];
    const float a = x[first], b = x[second];
    const u32 turned = pack(a * turn.x - b * turn.y, b * turn.x + a * turn.y);
    out[first] = (u16)turned;
    out[second] = (u16)(turned >> 16);
}

// Copies `width` numbers of every row and part to the row's slot in a paged cache [pages][parts][page][width]; a slot is
// page * page_tokens + place in the page. A thread per 8 numbers.
struct Append {
    const u16* x;
    u16* cache;
    const int* slots; // [rows]
    int rows, parts, width, page_tokens, x_stride, x_part_stride;
};
extern "C" __global__ void __launch_bounds__(256) append(const __grid_constant__ Append p) {
    const int chunks = p.width / 8;
    const u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i >= (u64)p.rows * p.parts * chunks) return;
    const int chunk = i % chunks, part = i / chunks % p.parts, row = i / chunks / p.parts, slot = p.slots[row];
    const u64 place = ((u64)(slot / p.page_tokens) * p.parts + part) * p.page_tokens + slot % p.page_tokens;
    *(uint4*)(p.cache + place * p.width + chunk * 8) =
        *(const uint4*)(p.x + (u64)row * p.x_stride + part * p.x_part_stride + chunk * 8);
}

// out = silu(gate) * up of rows [gate | up], which nobody rounded: only the next product's input is. A thread per two numbers.
struct Swiglu {
    const float* gate_up; // [rows][2 * width]
    u16* out;             // [rows][width]
    int rows, width;
};
DEV float silu(float x) { return x / (1.f + exp2_approx(x * -1.44269504f)); }
extern "C" __global__ void __launch_bounds__(256) swiglu(const __grid_constant__ Swiglu p) {
    const int pairs = p.width / 2;
    const u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i >= (u64)p.rows * pairs) return;
    const float* from = p.gate_up + i / pairs * 2 * p.width + i % pairs * 2;
    const float2 gate = *(const float2*)from, up = *(const float2*)(from + p.width);
    *(u32*)(p.out + 2 * i) = pack(silu(gate.x) * up.x, silu(gate.y) * up.y);
}
