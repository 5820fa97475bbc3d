// A mixture of experts: the router's logits, each row's choice, the choices sorted by expert, their products, and the sum. No host
// has a say in between: grids follow from a step's rows alone, and what was chosen is in lists on the device.
#include "gemm.cuh"

// Logits in f32, router weights too: a rounded logit can choose another expert. A block copies one expert's weights, piece by piece,
// once for 64 rows: each of its warps has eight of them.
struct Logits {
    const u16* x;         // [rows][hidden]
    const float* weights; // [experts][hidden]
    float* logits;        // [rows][experts]
    int rows, experts, hidden;
};
extern "C" __global__ void __launch_bounds__(256) router_logits(const __grid_constant__ Logits p) {
    constexpr int ROWS = 8, PIECE = 2048;
    __shared__ float4 piece[PIECE / 4];
    const int lane = threadIdx.x % WARP, expert = blockIdx.x;
    const int first = (blockIdx.y * 8 + threadIdx.x / WARP) * ROWS, rows = min(ROWS, p.rows - first);
    const float4* weights = (const float4*)(p.weights + (u64)expert * p.hidden);
    float sums[ROWS] = {};
    for (int begin = 0; begin < p.hidden; begin += PIECE) {
        const int count = min(PIECE, p.hidden - begin) / 4;
        // All are done with the piece before.
        __syncthreads();
        for (int i = threadIdx.x; i < count; i += 256) piece[i] = weights[begin / 4 + i];
        // The piece is there.
        __syncthreads();
        for (int i = lane; i < count; i += WARP) {
            const float4 weight = piece[i];
#pragma unroll
            for (int row = 0; row < ROWS; row++) {
                if (row >= rows) break;
                const uint2 x = *(const uint2*)(p.x + (u64)(first + row) * p.hidden + begin + i * 4);
                // Rounded where it is written, or rows could be added in different ways by their place.
                sums[row] = fmaf(__uint_as_float(x.x << 16), weight.x, sums[row]);
                sums[row] = fmaf(__uint_as_float(x.x & 0xffff0000u), weight.y, sums[row]);
                sums[row] = fmaf(__uint_as_float(x.y << 16), weight.z, sums[row]);
                sums[row] = fmaf(__uint_as_float(x.y & 0xffff0000u), weight.w, sums[row]);
            }
        }
    }
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        if (row >= rows) break;
#pragma unroll
        for (int apart = 16; apart > 0; apart /= 2) sums[row] += __shfl_xor_sync(ALL_LANES, sums[row], apart);
        if (lane == 0) p.logits[(u64)(first + row) * p.experts + expert] = sums[row];
    }
}

// To a few units in the last place, which an exponential of a rounded exponent is not: near scores must keep their order.
DEV float sigmoid(float x) {
    const float exponent = fminf(fmaxf(-x, -88.f), 88.f), log2_e = 1.44269504f;
    const float high = exponent * log2_e, low = fmaf(exponent, log2_e, -high) + exponent * 1.92596299e-8f;
    const float power = exp2_approx(high);
    return 1.f / (1.f + fmaf(power * 0.693147181f, low, power));
}

// Floats in their total order, as whole numbers.
DEV u32 ordered(float x) {
    const u32 bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Larger for a larger number, and of equals for the first.
DEV u64 rank_of(float x, int index) { return ((u64)ordered(x) << 32) + (u32)~index; }
DEV int index_of(u64 rank) { return (int)~(u32)rank; }

DEV u64 warp_max(u64 x) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) {
        const u64 other = __shfl_xor_sync(ALL_LANES, x, apart);
        x = other > x ? other : x;
    }
    return x;
}

// A row's experts, as `choose_experts` has them, but by ascending number: a warp per row, and at most a lane per choice and per
// group. Dynamic shared memory: [experts] scores, and as many with the bias.
struct Choose {
    const float* logits; // [rows][experts]
    const float* bias;   // [experts]
    int* experts;        // [rows][choices]
    float* weights;      // [rows][choices]
    int count, choices, groups, open_groups, normed;
    float factor;
};
extern "C" __global__ void __launch_bounds__(32) choose_experts(const __grid_constant__ Choose p) {
    const int row = blockIdx.x, lane = threadIdx.x, size = p.count / p.groups;
    float *scores = (float*)shared_memory, *biased = scores + p.count;
    for (int i = lane; i < p.count; i += WARP) {
        scores[i] = sigmoid(p.logits[(u64)row * p.count + i]);
        biased[i] = scores[i] + p.bias[i];
    }
    __syncwarp();
    if (p.open_groups < p.groups) {
        // The sum of a group's two best, by lane.
        float of_group = 0.f;
        if (lane < p.groups) {
            u64 best = 0, second = 0;
            for (int i = lane * size; i < (lane + 1) * size; i++) {
                const u64 rank = rank_of(biased[i], i);
                second = rank > best ? best : rank > second ? rank : second;
                best = rank > best ? rank : best;
            }
            of_group = biased[index_of(best)] + (size > 1 ? biased[index_of(second)] : 0.f);
        }
        u32 open = 0;
        u64 mine = lane < p.groups ? rank_of(of_group, lane) : 0;
        for (int i = 0; i < p.open_groups; i++) {
            const int group = index_of(warp_max(mine));
            open |= 1u << group;
            if (lane == group) mine = 0;
        }
        // Groups are summed.
        __syncwarp();
        for (int i = lane; i < p.count; i += WARP) {
            if (!(open >> i / size & 1)) biased[i] = negative_infinity();
        }
        __syncwarp();
    }
    int expert = 0;
    float sum = 0.f;
    u64 below = ~0ull;
    for (int choice = 0; choice < p.choices; choice++) {
        u64 best = 0;
        for (int i = lane; i < p.count; i += WARP) {
            const u64 rank = rank_of(biased[i], i);
            if (rank < below && rank > best) best = rank;
        }
        below = warp_max(best);
        const int chosen = index_of(below);
        sum += scores[chosen];
        if (lane == choice) expert = chosen;
    }
    // The published divisor, which cannot be zero.
    const float weight = scores[expert] / (p.normed ? sum + 1e-20f : 1.f) * p.factor;
    int place = 0;
    for (int other = 0; other < p.choices; other++) place += __shfl_sync(ALL_LANES, expert, other) < expert;
    if (lane < p.choices) {
        p.experts[(u64)row * p.choices + place] = expert;
        p.weights[(u64)row * p.choices + place] = weight;
    }
}

// Rows of the sorted choices that a block multiplies by one expert's weights: from `first` up to `end`.
struct Tile {
    int expert, first, end;
};

// Sorts a step's choices by expert, then row: one block, whose warps look through all choices for an expert each. Every expert's
// run is cut into tiles of `tile_rows`; the tiles that are left over have no expert.
struct Sort {
    const int* experts; // [rows][choices]
    int* rows;          // [rows * choices], of the sorted choices
    int* places;        // [rows][choices], among the sorted
    Tile* tiles;        // [tiles]
    int total, choices, count, tile_rows, tile_count;
};
enum : int { MOST_EXPERTS = 1024, SORTING_WARPS = 32 };
extern "C" __global__ void __launch_bounds__(SORTING_WARPS * WARP) sort_choices(const __grid_constant__ Sort p) {
    __shared__ int begins[MOST_EXPERTS + 1], first_tiles[MOST_EXPERTS + 1];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (int expert = warp; expert < p.count; expert += SORTING_WARPS) {
        int chosen = 0;
        for (int first = 0; first < p.total; first += WARP) {
            const int i = first + lane;
            chosen += __popc(__ballot_sync(ALL_LANES, i < p.total && p.experts[i] == expert));
        }
        if (lane == 0) begins[expert] = chosen;
    }
    // Counts are there.
    __syncthreads();
    if (warp == 0) {
        int begin = 0, tile = 0;
        for (int first = 0; first < p.count; first += WARP) {
            const int expert = first + lane, chosen = expert < p.count ? begins[expert] : 0;
            int choices = chosen, tiles = (chosen + p.tile_rows - 1) / p.tile_rows;
            const int own_tiles = tiles;
#pragma unroll
            for (int apart = 1; apart < WARP; apart *= 2) {
                const int less_choices = __shfl_up_sync(ALL_LANES, choices, apart);
                const int less_tiles = __shfl_up_sync(ALL_LANES, tiles, apart);
                if (lane >= apart) {
                    choices += less_choices;
                    tiles += less_tiles;
                }
            }
            if (expert < p.count) {
                begins[expert] = begin + choices - chosen;
                first_tiles[expert] = tile + tiles - own_tiles;
            }
            begin += __shfl_sync(ALL_LANES, choices, WARP - 1);
            tile += __shfl_sync(ALL_LANES, tiles, WARP - 1);
        }
        if (lane == 0) {
            begins[p.count] = begin;
            first_tiles[p.count] = tile;
        }
    }
    // Runs have their places.
    __syncthreads();
    for (int i = first_tiles[p.count] + threadIdx.x; i < p.tile_count; i += SORTING_WARPS * WARP) p.tiles[i] = Tile{-1, 0, 0};
    for (int expert = warp; expert < p.count; expert += SORTING_WARPS) {
        const int begin = begins[expert], end = begins[expert + 1];
        int place = begin;
        for (int first = 0; first < p.total && place < end; first += WARP) {
            const int i = first + lane;
            const bool is_mine = i < p.total && p.experts[i] == expert;
            const u32 all = __ballot_sync(ALL_LANES, is_mine);
            if (is_mine) {
                const int at = place + __popc(all & ((1u << lane) - 1));
                p.rows[at] = i / p.choices;
                p.places[i] = at;
            }
            place += __popc(all);
        }
        for (int i = lane; i < first_tiles[expert + 1] - first_tiles[expert]; i += WARP) {
            const int first = begin + i * p.tile_rows;
            p.tiles[first_tiles[expert] + i] = Tile{expert, first, min(end, first + p.tile_rows)};
        }
    }
}

struct Params {
    const u16* x;       // [rows][inputs], or [choices][inputs] without row_of
    const u16* weights; // [experts][outputs][inputs]
    void* y;            // [choices][outputs]
    const int* row_of;  // [choices], or null: rows of x are sorted choices
    const Tile* tiles;
    int outputs, inputs;
};

// Tile blockIdx.y, whose rows of x are found once: those beyond its end are never read, and have an address all the same.
template <int ROWS>
struct OfExpert {
    const Params& p;
    const int* found;
    const u16* weights;
    void* y;
    int first_row, rows, outputs, inputs;

    DEV OfExpert(const Params& p, Tile tile, int* found)
        : p(p),
          found(found),
          weights(p.weights + (u64)tile.expert * p.outputs * p.inputs),
          y(p.y),
          first_row(tile.first),
          rows(tile.end),
          outputs(p.outputs),
          inputs(p.inputs) {
        if (threadIdx.x < ROWS) {
            const int row = min(first_row + (int)threadIdx.x, rows - 1);
            found[threadIdx.x] = p.row_of ? p.row_of[row] : row;
        }
        // Rows are found.
        __syncthreads();
    }
    DEV const u16* x_row(int row) const { return p.x + (u64)found[row - first_row] * p.inputs; }
    DEV u64 y_row(int row) const { return (u64)row * p.outputs; }
};

// Most experts have few rows: what is not there is not multiplied.
template <Output OUTPUT>
DEV void any_rows(const OfExpert<64>& p) {
    if (p.rows - p.first_row <= 16) {
        wide<1, OUTPUT>(p);
    } else {
        wide<4, OUTPUT>(p);
    }
}

#define KERNEL(name, tile_rows, body)                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) name(const __grid_constant__ Params p) {          \
        __shared__ int found[tile_rows];                                                                       \
        const Tile tile = p.tiles[blockIdx.y];                                                                 \
        if (tile.expert < 0) return;                                                                           \
        body(OfExpert<tile_rows>(p, tile, found));                                                             \
    }

KERNEL(experts_narrow16_bf16, 16, (narrow<1, 4, Output::Bf16>))
KERNEL(experts_narrow16_f32, 16, (narrow<1, 4, Output::F32>))
KERNEL(experts_wide64_bf16, 64, any_rows<Output::Bf16>)
KERNEL(experts_wide64_f32, 64, any_rows<Output::F32>)

// Adds a row's answers, times their weights, to the residual stream: one after another, by ascending expert. A thread per two numbers.
struct Combine {
    const float* answers; // [choices of all rows, sorted][width]
    const float* weights; // [rows][choices]
    const int* places;    // [rows][choices]
    float* residual;      // [rows][width]
    int rows, choices, width;
};
extern "C" __global__ void __launch_bounds__(256) combine(const __grid_constant__ Combine p) {
    const int pairs = p.width / 2;
    const u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i >= (u64)p.rows * pairs) return;
    const int row = i / pairs, at = i % pairs * 2;
    float2* to = (float2*)(p.residual + (u64)row * p.width + at);
    float2 sum = *to;
    for (int choice = row * p.choices; choice < (row + 1) * p.choices; choice++) {
        const float weight = p.weights[choice];
        const float2 answer = *(const float2*)(p.answers + (u64)p.places[choice] * p.width + at);
        sum.x = fmaf(weight, answer.x, sum.x);
        sum.y = fmaf(weight, answer.y, sum.y);
    }
    *to = sum;
}
