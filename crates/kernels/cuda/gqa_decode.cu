// Decode attention along the GQA path over a paged cache: for each sequence and group, the s_q H/G query rows of the
// group attend to its keys [nope | rope] and values. Compiled per head dimensions: D_NOPE, D_ROPE and D_V.
//
// gqa_decode_rows16/32/64: a block takes one (split, group, sequence) and all its query rows, so that every key and value is read
// once. It takes the larger of two pages and WARPS * 16 rows of PITCH + 2 floats as dynamic shared memory. A split is `pages_per_split` pages, so that how a sequence is cut, and its result, depend on its length alone. Warps
// are tiles of 16 rows times slices of a page's tokens: a slice's probabilities go from accumulator to operand within
// a warp. Pages come through two stages of shared memory.
//
// gqa_merge: puts the splits of each row together.
#include "dev.cuh"

enum : int { DN = D_NOPE, DR = D_ROPE, DK = DN + DR, DV = D_V, PAGE = 64, STAGES = 2 };
enum : int { K_BYTES = PAGE * DK * 2, V_BYTES = PAGE * DV * 2, STAGE_BYTES = K_BYTES + V_BYTES };
// Rows of partial sums are this many floats apart, which spreads them over the banks.
enum : int { PITCH = DV + 4 };

// swizzled() turns chunks of 16 bytes around within 128 bytes.
static_assert(DN % 64 == 0 && DR % 64 == 0 && DV % 64 == 0, "head dimensions are multiples of 64");

struct Params {
    const u16* q;          // [batch][s_q][heads][DK]
    const u16* k_nope;     // [pages][groups][PAGE][DN]
    const u16* k_rope;     // [pages][PAGE][DR]
    const u16* v;          // [pages][groups][PAGE][DV]
    const int* page_table; // [batch][table_width]
    const int* lengths;    // [batch], the queries' own tokens included
    float* partial;        // [batch][splits][s_q][heads][DV], divided by their sum
    float* partial_lse;    // [batch][splits][s_q][heads], to base 2
    u16* out;              // [batch][s_q][heads][DV]
    int batch, s_q, heads, groups, table_width, splits, pages_per_split;
    float scale_log2;      // softmax scale times log2(e)
};

// Where chunk `chunk` (16 bytes) of row `row` lies: eight rows' equal chunks fall into different banks.
DEV int swizzled(int row, int chunk) { return chunk ^ (row & 7); }

// Pages of a sequence that split `split` has.
struct Range {
    int first, end;
};
DEV Range pages_of(const Params& p, int length, int split) {
    const int first = split * p.pages_per_split;
    return {first, min((length + PAGE - 1) / PAGE, first + p.pages_per_split)};
}

// Starts copies of the page's first `valid` rows of WIDTH numbers to chunks from FIRST on, in rows of ROW_BYTES; rows
// beyond become zero.
template <int WIDTH, int ROW_BYTES, int FIRST, int THREADS>
DEV void load_rows(u8* to, const u16* from, int valid) {
    constexpr int CHUNKS = WIDTH / 8;
    static_assert(PAGE * CHUNKS % THREADS == 0, "every thread copies as much as the others");
#pragma unroll
    for (int n = 0; n < PAGE * CHUNKS / THREADS; n++) {
        const int i = n * THREADS + threadIdx.x, row = i / CHUNKS, chunk = i % CHUNKS;
        copy_async(to + row * ROW_BYTES + swizzled(row, FIRST + chunk) * 16, from + row * WIDTH + chunk * 8, row < valid ? 16 : 0);
    }
}

template <int THREADS>
DEV void load_page(u8* stage, const Params& p, int sequence, int group, int index, int length) {
    const int page = p.page_table[sequence * p.table_width + index];
    const int valid = min((int)PAGE, length - index * PAGE);
    const u64 of_group = (u64)page * p.groups + group;
    load_rows<DN, DK * 2, 0, THREADS>(stage, p.k_nope + of_group * PAGE * DN, valid);
    load_rows<DR, DK * 2, DN / 8, THREADS>(stage, p.k_rope + (u64)page * PAGE * DR, valid);
    load_rows<DV, DV * 2, 0, THREADS>(stage + K_BYTES, p.v + of_group * PAGE * DV, valid);
}

// Sum and maximum over the four lanes that hold a row.
DEV float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}
DEV float row_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// One warp's 16 query rows against one slice of every page: lane 4 g + t has rows g and g + 8.
template <int TOKENS>
struct WarpTile {
    u32 q[DK / 16][4];
    float o[DV / 8][4];
    float max[2], sum[2];
    // Last token each row sees.
    int last[2];

    DEV void load_queries(const Params& p, int sequence, int group, int length, int first_row) {
        const int lane = threadIdx.x % WARP, per_group = p.heads / p.groups, rows = p.s_q * per_group;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = first_row + lane / 4 + 8 * half;
            const int query = row / per_group, head = group * per_group + row % per_group;
            const u16* from = p.q + (((u64)sequence * p.s_q + query) * p.heads + head) * DK + lane % 4 * 2;
            last[half] = length - p.s_q + query;
            max[half] = negative_infinity();
            sum[half] = 0.f;
#pragma unroll
            for (int k = 0; k < DK / 16; k++) {
                q[k][half] = row < rows ? *(const u32*)(from + k * 16) : 0;
                q[k][half + 2] = row < rows ? *(const u32*)(from + k * 16 + 8) : 0;
            }
        }
#pragma unroll
        for (int i = 0; i < DV / 8; i++) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.f;
    }

    DEV void attend(const u8* stage, int slice, int first_token, float scale_log2) {
        float s[TOKENS / 8][4] = {};
        scores(s, stage, slice * TOKENS);
        mask(s, first_token + slice * TOKENS, scale_log2);
        u32 weights[TOKENS / 16][4];
        softmax(s, weights);
        add_values(weights, stage + K_BYTES, slice * TOKENS);
    }

    DEV void scores(float (&s)[TOKENS / 8][4], const u8* keys, int first) {
        const int lane = threadIdx.x % WARP, matrix = lane / 8;
#pragma unroll
        for (int k = 0; k < DK / 16; k++) {
#pragma unroll
            for (int n = 0; n < TOKENS / 16; n++) {
                u32 key[4];
                const int row = first + n * 16 + matrix / 2 * 8 + lane % 8;
                load_matrices(key, keys + row * (DK * 2) + swizzled(row, k * 2 + matrix % 2) * 16);
                mma_16816(s[2 * n], q[k], key[0], key[1]);
                mma_16816(s[2 * n + 1], q[k], key[2], key[3]);
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
        const int lane = threadIdx.x % WARP, matrix = lane / 8;
#pragma unroll
        for (int k = 0; k < TOKENS / 16; k++) {
#pragma unroll
            for (int n = 0; n < DV / 16; n++) {
                u32 value[4];
                const int row = first + k * 16 + matrix % 2 * 8 + lane % 8;
                load_matrices_transposed(value, values + row * (DV * 2) + swizzled(row, n * 2 + matrix / 2) * 16);
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

template <int TILES, int SLICES>
DEV void decode(const Params& p) {
    constexpr int WARPS = TILES * SLICES, THREADS = WARPS * WARP, TOKENS = PAGE / SLICES;
    const int warp = threadIdx.x / WARP, tile = warp / SLICES, slice = warp % SLICES;
    const int split = blockIdx.x, group = blockIdx.y, sequence = blockIdx.z;
    const int length = p.lengths[sequence], per_group = p.heads / p.groups, rows = p.s_q * per_group;
    const Range pages = pages_of(p, length, split);
    // Shorter sequences have fewer splits than the grid.
    if (pages.first >= pages.end) return;
    // Whole tiles of rows that there are not only help to copy.
    const bool has_rows = tile * 16 < rows;

    WarpTile<TOKENS> mine;
    mine.load_queries(p, sequence, group, length, tile * 16);
    load_page<THREADS>(shared_memory, p, sequence, group, pages.first, length);
    commit_copies();
    for (int page = pages.first; page < pages.end; page++) {
        wait_copies<0>();
        // This page is there for all, and all are done with the one whose place the next one takes.
        __syncthreads();
        const int turn = page - pages.first;
        if (page + 1 < pages.end) {
            load_page<THREADS>(shared_memory + (turn + 1) % STAGES * STAGE_BYTES, p, sequence, group, page + 1, length);
            commit_copies();
        }
        if (has_rows) mine.attend(shared_memory + turn % STAGES * STAGE_BYTES, slice, page * PAGE, p.scale_log2);
    }
    // All are done with the last page, whose place the sums take.
    __syncthreads();
    float* sums = (float*)shared_memory;
    float* stats = sums + WARPS * 16 * PITCH;
    mine.store(sums + warp * 16 * PITCH, stats + warp * 32);
    __syncthreads();
    for (int i = slice; i < 16; i += SLICES) {
        const int row = tile * 16 + i;
        if (row >= rows) break;
        const u64 query = (u64)(sequence * p.splits + split) * p.s_q + row / per_group;
        merge_slices<SLICES>(p, sums, stats, tile, i, query * p.heads + group * per_group + row % per_group);
    }
}

extern "C" __global__ void __launch_bounds__(128) gqa_decode_rows16(const __grid_constant__ Params p) { decode<1, 4>(p); }
extern "C" __global__ void __launch_bounds__(256) gqa_decode_rows32(const __grid_constant__ Params p) { decode<2, 4>(p); }
extern "C" __global__ void __launch_bounds__(256) gqa_decode_rows64(const __grid_constant__ Params p) { decode<4, 2>(p); }

// A warp per (sequence, query, head).
extern "C" __global__ void __launch_bounds__(128) gqa_merge(const __grid_constant__ Params p) {
    const int lane = threadIdx.x % WARP, per_sequence = p.s_q * p.heads;
    const int place = blockIdx.x * 4 + threadIdx.x / WARP;
    if (place >= p.batch * per_sequence) return;
    const int sequence = place / per_sequence, row = place % per_sequence;
    const int pages = (p.lengths[sequence] + PAGE - 1) / PAGE;
    const int splits = (pages + p.pages_per_split - 1) / p.pages_per_split;
    const u64 first = (u64)sequence * p.splits * per_sequence + row;
    float most = negative_infinity();
    for (int s = 0; s < splits; s++) most = fmaxf(most, p.partial_lse[first + (u64)s * per_sequence]);
    for (int column = lane * 4; column < DV; column += WARP * 4) {
        float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
        float total = 0.f;
        for (int s = 0; s < splits; s++) {
            const u64 from = first + (u64)s * per_sequence;
            const float factor = exp2_below(p.partial_lse[from], most);
            const float4 x = *(const float4*)(p.partial + from * DV + column);
            total += factor;
            sum.x += factor * x.x;
            sum.y += factor * x.y;
            sum.z += factor * x.z;
            sum.w += factor * x.w;
        }
        const float inverse = total > 0.f ? 1.f / total : 0.f;
        u32* to = (u32*)(p.out + (u64)place * DV + column);
        to[0] = pack(sum.x * inverse, sum.y * inverse);
        to[1] = pack(sum.z * inverse, sum.w * inverse);
    }
}
