// Decode attention along the GQA path over a paged cache: for each sequence and group, the query rows of the group attend
// to its keys [nope | rope] and values. Compiled per head dimensions: D_NOPE, D_ROPE and D_V.
//
// gqa_decode_stagesS_rowsN: a unit has N query rows at most, and a block reads every key and value once for them. It takes the
// larger of S pages (and the queries, where registers would not hold them) and WARPS * 16 rows of PITCH + 2 floats as
// dynamic shared memory. Warps are tiles of 16 rows times slices of a page's tokens: a slice's probabilities go from
// accumulator to operand within a warp. Pages come through S stages of shared memory: two where two blocks share a
// multiprocessor, three where one has it alone and would wait between two pages, and one where wide heads leave no room.
//
// gqa_merge: puts the splits of each row together.
#include "attention.cuh"

enum : int { DN = D_NOPE, DR = D_ROPE, DK = DN + DR, DV = D_V };
enum : int { K_CHUNKS = DK / 8, V_CHUNKS = DV / 8, K_BYTES = PAGE * DK * 2, V_BYTES = PAGE * DV * 2, STAGE_BYTES = K_BYTES + V_BYTES };
// Rows of partial sums are this many floats apart, which spreads them over the banks.
enum : int { PITCH = DV + 4 };
// A thread's queries and sums take DK / 4 + DV / 2 registers; beyond this many, queries stay in shared memory.
enum : int { QUERIES_IN_SHARED = DK / 4 + DV / 2 > 160 };

static_assert(DN % 16 == 0 && DR % 16 == 0 && DV % 16 == 0, "head dimensions are multiples of 16");

template <int THREADS>
DEV void load_page(u8* stage, const Params& p, const Unit& unit, int index) {
    const int page = p.page_table[unit.pages + index];
    const int valid = min((int)PAGE, unit.length - index * PAGE);
    const u64 of_group = (u64)page * p.groups + unit.group;
    load_rows<PAGE, DN, K_CHUNKS, 0, THREADS>(stage, p.keys + of_group * PAGE * DN, valid);
    load_rows<PAGE, DR, K_CHUNKS, DN / 8, THREADS>(stage, p.rope_keys + (u64)page * PAGE * DR, valid);
    load_rows<PAGE, DV, V_CHUNKS, 0, THREADS>(stage + K_BYTES, p.values + of_group * PAGE * DV, valid);
}

// One warp's 16 query rows against one slice of every page: lane 4 g + t has rows g and g + 8.
template <int TOKENS>
struct WarpTile {
    u32 q[QUERIES_IN_SHARED ? 1 : DK / 16][4];
    float o[DV / 8][4];
    float max[2], sum[2];
    // Last token each row sees.
    int last[2];

    DEV void load_queries(const Params& p, const Tile& t, int first_row) {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = first_row + lane / 4 + 8 * half;
            const bool is_there = row < t.rows();
            last[half] = is_there ? p.positions[t.query(row)] : -1;
            max[half] = negative_infinity();
            sum[half] = 0.f;
            if (!QUERIES_IN_SHARED) {
                const u16* from = p.q + (u64)t.query(row) * p.q_stride + t.head(row) * DK + lane % 4 * 2;
#pragma unroll
                for (int k = 0; k < DK / 16; k++) {
                    q[k][half] = is_there ? *(const u32*)(from + k * 16) : 0;
                    q[k][half + 2] = is_there ? *(const u32*)(from + k * 16 + 8) : 0;
                }
            }
        }
#pragma unroll
        for (int i = 0; i < DV / 8; i++) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.f;
    }

    DEV void attend(const u8* stage, const u8* queries, int slice, int first_token, float scale_log2) {
        float s[TOKENS / 8][4] = {};
        scores(s, stage, queries, slice * TOKENS);
        mask(s, first_token + slice * TOKENS, scale_log2);
        u32 weights[TOKENS / 16][4];
        softmax(s, weights);
        add_values(weights, stage + K_BYTES, slice * TOKENS);
    }

    DEV void scores(float (&s)[TOKENS / 8][4], const u8* keys, const u8* queries, int first) {
        const int lane = threadIdx.x % WARP, matrix = lane / 8, turn = turn_of<K_CHUNKS>(lane % 8);
        const u32 query_row = shared_address(queries) + lane % 16 * K_CHUNKS * 16;
        const u32 key_row = shared_address(keys) + (first + matrix / 2 * 8 + lane % 8) * K_CHUNKS * 16;
#pragma unroll
        for (int k = 0; k < DK / 16; k++) {
            u32 query[4];
            if (QUERIES_IN_SHARED) {
                load_matrices(query, query_row + turned(turn, k * 2, lane / 16));
            } else {
#pragma unroll
                for (int i = 0; i < 4; i++) query[i] = q[QUERIES_IN_SHARED ? 0 : k][i];
            }
#pragma unroll
            for (int n = 0; n < TOKENS / 16; n++) {
                u32 key[4];
                load_matrices(key, key_row + n * 16 * K_CHUNKS * 16 + turned(turn, k * 2, matrix % 2));
                mma_16816(s[2 * n], query, key[0], key[1]);
                mma_16816(s[2 * n + 1], query, key[2], key[3]);
            }
        }
    }

    // Scales, and hides tokens that come after a row's own.
    DEV void mask(float (&s)[TOKENS / 8][4], int first_token, float scale_log2) {
        const int token = first_token + threadIdx.x % 4 * 2;
#pragma unroll
        for (int n = 0; n < TOKENS / 8; n++) {
#pragma unroll
            for (int v = 0; v < 4; v++) {
                s[n][v] = token + n * 8 + v % 2 <= last[v / 2] ? s[n][v] * scale_log2 : negative_infinity();
            }
        }
    }

    // Turns scores into weights under the maximum so far, and what was summed under an older one into the new one's terms.
    DEV void softmax(const float (&s)[TOKENS / 8][4], u32 (&weights)[TOKENS / 16][4]) {
        float base[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = max[half];
#pragma unroll
            for (int n = 0; n < TOKENS / 8; n++) most = fmaxf(most, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
            most = row_max(most);
            base[half] = most == negative_infinity() ? 0.f : most;
            const float older = exp2_approx(max[half] - base[half]);
            max[half] = most;
            sum[half] *= older;
#pragma unroll
            for (int i = 0; i < DV / 8; i++) {
                o[i][2 * half] *= older;
                o[i][2 * half + 1] *= older;
            }
        }
#pragma unroll
        for (int n = 0; n < TOKENS / 8; n++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float x = exp2_approx(s[n][2 * half] - base[half]), y = exp2_approx(s[n][2 * half + 1] - base[half]);
                sum[half] += x + y;
                weights[n / 2][n % 2 * 2 + half] = pack(x, y);
            }
        }
    }

    DEV void add_values(const u32 (&weights)[TOKENS / 16][4], const u8* values, int first) {
        const int lane = threadIdx.x % WARP, matrix = lane / 8, turn = turn_of<V_CHUNKS>(lane % 8);
        const u32 value_row = shared_address(values) + (first + matrix % 2 * 8 + lane % 8) * V_CHUNKS * 16;
#pragma unroll
        for (int k = 0; k < TOKENS / 16; k++) {
#pragma unroll
            for (int n = 0; n < DV / 16; n++) {
                u32 value[4];
                load_matrices_transposed(value, value_row + k * 16 * V_CHUNKS * 16 + turned(turn, n * 2, matrix / 2));
                mma_16816(o[2 * n], weights[k], value[0], value[1]);
                mma_16816(o[2 * n + 1], weights[k], value[2], value[3]);
            }
        }
    }

    // Writes sums [16][PITCH] and, for each row, maximum and sum of weights [16][2].
    DEV void store(float* sums, float* stats) {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = lane / 4 + 8 * half;
            const float total = row_sum(sum[half]);
#pragma unroll
            for (int i = 0; i < DV / 8; i++) {
                *(float2*)(sums + row * PITCH + i * 8 + lane % 4 * 2) = make_float2(o[i][2 * half], o[i][2 * half + 1]);
            }
            if (lane % 4 == 0) {
                stats[row * 2] = max[half];
                stats[row * 2 + 1] = total;
            }
        }
    }
};

// Adds the slices of a row up and writes it to the partial results.
template <int SLICES>
DEV void merge_slices(const Params& p, const float* sums, const float* stats, int tile, int row, u64 place) {
    const int lane = threadIdx.x % WARP;
    float most = negative_infinity(), total = 0.f, factor[SLICES];
#pragma unroll
    for (int s = 0; s < SLICES; s++) most = fmaxf(most, stats[((tile * SLICES + s) * 16 + row) * 2]);
#pragma unroll
    for (int s = 0; s < SLICES; s++) {
        const float* of_slice = stats + ((tile * SLICES + s) * 16 + row) * 2;
        factor[s] = exp2_below(of_slice[0], most);
        total += factor[s] * of_slice[1];
    }
    const float inverse = total > 0.f ? 1.f / total : 0.f;
    for (int column = lane * 4; column < DV; column += WARP * 4) {
        float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
        for (int s = 0; s < SLICES; s++) {
            const float4 x = *(const float4*)(sums + ((tile * SLICES + s) * 16 + row) * PITCH + column);
            sum.x += factor[s] * x.x;
            sum.y += factor[s] * x.y;
            sum.z += factor[s] * x.z;
            sum.w += factor[s] * x.w;
        }
        *(float4*)(p.partial + place * DV + column) =
            make_float4(sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse);
    }
    if (lane == 0) p.partial_lse[place] = total > 0.f ? most + log2_approx(total) : negative_infinity();
}

template <int STAGES, int TILES, int SLICES>
DEV void attend(const Params& p, const Unit& unit) {
    constexpr int WARPS = TILES * SLICES, THREADS = WARPS * WARP, TOKENS = PAGE / SLICES, ROWS = TILES * 16;
    const int warp = threadIdx.x / WARP, tile = warp / SLICES, slice = warp % SLICES;
    const Tile t = tile_of(p, unit);
    const Range pages = pages_of(unit);
    // Tiles of 16 rows that there are not only help to copy.
    const bool has_rows = tile * 16 < t.rows();

    u8* queries = shared_memory + STAGES * STAGE_BYTES;
    if (QUERIES_IN_SHARED) load_queries<ROWS, DK, THREADS>(queries, p, t);
    WarpTile<TOKENS> mine;
    mine.load_queries(p, t, tile * 16);
    auto start = [&](int page) {
        if (page < pages.end) {
            u8* stage = shared_memory + (page - pages.first) % STAGES * STAGE_BYTES;
            load_page<THREADS>(stage, p, unit, page);
        }
        // An empty group keeps the count of those in flight.
        commit_copies();
    };
    for (int ahead = 0; ahead < STAGES - 1; ahead++) start(pages.first + ahead);
    for (int page = pages.first; page < pages.end; page++) {
        const int turn = page - pages.first;
        if (STAGES == 1) {
            // All are done with the page before, whose place this one takes.
            if (turn > 0) __syncthreads();
            start(page);
        }
        wait_copies<STAGES == 1 ? 0 : STAGES - 2>();
        // This page is there for all, and all are done with the one whose place the next one takes.
        __syncthreads();
        if (STAGES > 1) start(page + STAGES - 1);
        if (has_rows) {
            const u8* stage = shared_memory + turn % STAGES * STAGE_BYTES;
            mine.attend(stage, queries + tile * 16 * DK * 2, slice, page * PAGE, p.scale_log2);
        }
    }
    // Groups that are empty are waited for too. All are done with the last page, whose place the sums take.
    wait_copies<0>();
    __syncthreads();
    float* sums = (float*)shared_memory;
    float* stats = sums + WARPS * 16 * PITCH;
    mine.store(sums + warp * 16 * PITCH, stats + warp * 32);
    __syncthreads();
    for (int i = slice; i < 16; i += SLICES) {
        const int row = tile * 16 + i;
        if (row >= t.rows()) break;
        merge_slices<SLICES>(p, sums, stats, tile, i, place_of(p, unit.split, t.query(row), t.head(row)));
    }
}

template <int STAGES, int TILES, int SLICES>
DEV void decode(const Params& p) {
    for (int i = blockIdx.x; i < p.work->count; i += gridDim.x) {
        attend<STAGES, TILES, SLICES>(p, p.work->unit(i));
        // All have read the sums, whose place the next unit's pages take.
        __syncthreads();
    }
}

#define KERNEL(name, stages, tiles, slices)                                                                       \
    extern "C" __global__ void __launch_bounds__(tiles * slices * 32, 1) name(const __grid_constant__ Params p) { \
        decode<stages, tiles, slices>(p);                                                                         \
    }

KERNEL(gqa_decode_stages1_rows16, 1, 1, 4)
KERNEL(gqa_decode_stages1_rows32, 1, 2, 2)
KERNEL(gqa_decode_stages2_rows16, 2, 1, 4)
KERNEL(gqa_decode_stages2_rows32, 2, 2, 4)
KERNEL(gqa_decode_stages2_rows64, 2, 4, 2)
KERNEL(gqa_decode_stages3_rows32, 3, 2, 4)
KERNEL(gqa_decode_stages3_rows64, 3, 4, 2)
extern "C" __global__ void __launch_bounds__(128) gqa_merge(const __grid_constant__ Params p) { merge<DV>(p); }
