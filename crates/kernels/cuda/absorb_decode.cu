// Decode attention along the MQA-absorb path over a paged cache: all heads' absorbed queries attend to one latent row
// [c | rope] per token, whose first RANK numbers are its value too. Compiled per RANK and D_ROPE.
//
// absorb_decode_rows32/64: a block takes so many query rows and reads every latent row once for them, TOKENS at a time
// through two stages of shared memory. Warps are tiles of 16 rows times PARTS: a warp scores its part of a stage's tokens,
// shares the weights with the other part through shared memory, and sums its part of the value's columns. Dynamic shared
// memory: queries, stages, weights, and two floats per row and part.
//
// absorb_merge: puts the splits of each row together.
#include "attention.cuh"

enum : int { R = RANK, DR = D_ROPE, WIDTH = R + DR, CHUNKS = WIDTH / 8, STAGES = 2, PARTS = 2, COLUMNS = R / PARTS };

static_assert(R % 32 == 0 && DR % 16 == 0, "two parts of 16 columns share a value, and a product takes 16 columns of a key");

// One warp's 16 rows against its part of the tokens and of the columns: lane 4 g + t has rows g and g + 8.
template <int TOKENS>
struct WarpTile {
    enum : int { OWN = TOKENS / PARTS, WEIGHT_CHUNKS = TOKENS / 8 };
    float o[COLUMNS / 8][4];
    float max[2], sum[2];
    // Last token each row sees.
    int last[2];

    DEV void start(const Params& p, const Tile& t, int first_row) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = first_row + threadIdx.x % WARP / 4 + 8 * half;
            last[half] = row < t.rows() ? p.positions[t.query(row)] : -1;
            max[half] = negative_infinity();
            sum[half] = 0.f;
        }
#pragma unroll
        for (int i = 0; i < COLUMNS / 8; i++) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.f;
    }

    // The warp's rows times its own tokens, from `first` of the stage on; two steps of 16 columns come with one load.
    DEV void scores(float (&s)[OWN / 8][4], const u8* queries, const u8* latents, int first) {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int k = 0; k < WIDTH / 16; k += 2) {
            u32 query[2][4];
            load_matrices(query[0], queries + (lane % 16 * CHUNKS + swizzled<CHUNKS>(lane % 16, k * 2 + lane / 16)) * 16);
            if (k + 1 < WIDTH / 16) {
                load_matrices(query[1], queries + (lane % 16 * CHUNKS + swizzled<CHUNKS>(lane % 16, k * 2 + 2 + lane / 16)) * 16);
            }
#pragma unroll
            for (int n = 0; n < OWN / 8; n++) {
                const int row = first + n * 8 + lane % 8;
                if (k + 1 < WIDTH / 16) {
                    u32 key[4];
                    load_matrices(key, latents + (row * CHUNKS + swizzled<CHUNKS>(row, k * 2 + lane / 8)) * 16);
                    mma_16816(s[n], query[0], key[0], key[1]);
                    mma_16816(s[n], query[1], key[2], key[3]);
                } else {
                    u32 key[2];
                    load_matrices(key, latents + (row * CHUNKS + swizzled<CHUNKS>(row, k * 2 + lane / 8 % 2)) * 16);
                    mma_16816(s[n], query[0], key[0], key[1]);
                }
            }
        }
    }

    // Scales, hides tokens that come after a row's own, and gives each row's maximum to the other part.
    DEV void mask(float (&s)[OWN / 8][4], int first_token, float scale_log2, float* maxima) {
        const int lane = threadIdx.x % WARP, token = first_token + lane % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = negative_infinity();
#pragma unroll
            for (int n = 0; n < OWN / 8; n++) {
#pragma unroll
                for (int v = 2 * half; v < 2 * half + 2; v++) {
                    s[n][v] = token + n * 8 + v % 2 <= last[half] ? s[n][v] * scale_log2 : negative_infinity();
                    most = fmaxf(most, s[n][v]);
                }
            }
            most = row_max(most);
            if (lane % 4 == 0) maxima[lane / 4 + 8 * half] = most;
        }
    }

    // Turns scores into weights under the maximum of both parts so far, and what was summed under an older one into its terms.
    DEV void softmax(const float (&s)[OWN / 8][4], const float* maxima, int rows, u8* weights, int first) {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = lane / 4 + 8 * half;
            const float most = fmaxf(max[half], fmaxf(maxima[row], maxima[rows + row]));
            const float base = most == negative_infinity() ? 0.f : most, older = exp2_approx(max[half] - base);
            max[half] = most;
            sum[half] *= older;
#pragma unroll
            for (int i = 0; i < COLUMNS / 8; i++) {
                o[i][2 * half] *= older;
                o[i][2 * half + 1] *= older;
            }
#pragma unroll
            for (int n = 0; n < OWN / 8; n++) {
                const float x = exp2_approx(s[n][2 * half] - base), y = exp2_approx(s[n][2 * half + 1] - base);
                sum[half] += x + y;
                const int chunk = first / 8 + n;
                *(u32*)(weights + (row * WEIGHT_CHUNKS + swizzled<WEIGHT_CHUNKS>(row, chunk)) * 16 + lane % 4 * 4) = pack(x, y);
            }
        }
    }

    DEV void add_values(const u8* weights, const u8* latents, int part) {
        const int lane = threadIdx.x % WARP, matrix = lane / 8;
#pragma unroll
        for (int k = 0; k < TOKENS / 16; k++) {
            u32 weight[4];
            load_matrices(weight, weights + (lane % 16 * WEIGHT_CHUNKS + swizzled<WEIGHT_CHUNKS>(lane % 16, k * 2 + lane / 16)) * 16);
            const int row = k * 16 + matrix % 2 * 8 + lane % 8;
#pragma unroll
            for (int n = 0; n < COLUMNS / 16; n++) {
                u32 value[4];
                const int chunk = part * (COLUMNS / 8) + n * 2 + matrix / 2;
                load_matrices_transposed(value, latents + (row * CHUNKS + swizzled<CHUNKS>(row, chunk)) * 16);
                mma_16816(o[2 * n], weight, value[0], value[1]);
                mma_16816(o[2 * n + 1], weight, value[2], value[3]);
            }
        }
    }

    // Writes the warp's columns, divided by the sum of both parts' weights.
    DEV void store(const Params& p, const Tile& t, int split, int first_row, int part, const float* sums, int rows) {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = lane / 4 + 8 * half;
            if (first_row + row >= t.rows()) break;
            const float total = sums[row] + sums[rows + row], inverse = total > 0.f ? 1.f / total : 0.f;
            const u64 place = place_of(p, split, t.query(first_row + row), t.head(first_row + row));
            float* to = p.partial + place * R + part * COLUMNS + lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < COLUMNS / 8; i++) {
                *(float2*)(to + i * 8) = make_float2(o[i][2 * half] * inverse, o[i][2 * half + 1] * inverse);
            }
            if (part == 0 && lane % 4 == 0) {
                p.partial_lse[place] = total > 0.f ? max[half] + log2_approx(total) : negative_infinity();
            }
        }
    }
};

// Latent rows from `first` on, of which those from `length` on become zero. TOKENS divides a page.
template <int TOKENS, int THREADS>
DEV void load_tokens(u8* to, const Params& p, int sequence, int first, int length) {
    const int page = p.page_table[sequence * p.table_width + first / PAGE];
    const u16* from = p.keys + ((u64)page * PAGE + first % PAGE) * WIDTH;
    load_rows<TOKENS, WIDTH, CHUNKS, 0, THREADS>(to, from, min(TOKENS, length - first));
}

template <int TILES, int TOKENS>
DEV void decode(const Params& p) {
    constexpr int THREADS = TILES * PARTS * WARP, ROWS = TILES * 16, STAGE_BYTES = TOKENS * WIDTH * 2;
    const int warp = threadIdx.x / WARP, tile = warp / PARTS, part = warp % PARTS;
    const int split = blockIdx.x, sequence = blockIdx.z;
    const Tile t = tile_of<ROWS>(p, sequence, 0, blockIdx.y);
    // Other sequences have more queries, or more splits.
    if (t.rows() <= 0) return;
    const Range pages = pages_of(p, t.length, split);
    if (pages.first >= pages.end) return;
    const int begin = pages.first * PAGE, end = min(t.length, pages.end * PAGE);
    // Tiles of 16 rows that there are not only help to copy.
    const bool has_rows = tile * 16 < t.rows();

    u8* queries = shared_memory;
    u8* stages = queries + ROWS * WIDTH * 2;
    u8* weights = stages + STAGES * STAGE_BYTES;
    float* maxima = (float*)(weights + ROWS * TOKENS * 2);
    float* sums = maxima + PARTS * ROWS;
    u8* own_weights = weights + tile * 16 * TOKENS * 2;

    WarpTile<TOKENS> mine;
    mine.start(p, t, tile * 16);
    load_queries<ROWS, WIDTH, THREADS>(queries, p, t);
    load_tokens<TOKENS, THREADS>(stages, p, sequence, begin, end);
    commit_copies();
    for (int first = begin, turn = 0; first < end; first += TOKENS, turn ^= 1) {
        wait_copies<0>();
        // These tokens are there for all, and all are done with those whose place the next ones take.
        __syncthreads();
        if (first + TOKENS < end) {
            load_tokens<TOKENS, THREADS>(stages + (turn ^ 1) * STAGE_BYTES, p, sequence, first + TOKENS, end);
            commit_copies();
        }
        const u8* latents = stages + turn * STAGE_BYTES;
        float s[TOKENS / PARTS / 8][4] = {};
        if (has_rows) {
            mine.scores(s, queries + tile * 16 * WIDTH * 2, latents, part * (TOKENS / PARTS));
            mine.mask(s, first + part * (TOKENS / PARTS), p.scale_log2, maxima + part * ROWS + tile * 16);
        }
        // Both parts' maxima are there.
        __syncthreads();
        if (has_rows) mine.softmax(s, maxima + tile * 16, ROWS, own_weights, part * (TOKENS / PARTS));
        // Both parts' weights are there.
        __syncthreads();
        if (has_rows) mine.add_values(own_weights, latents, part);
    }
    if (has_rows) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float total = row_sum(mine.sum[half]);
            if (threadIdx.x % 4 == 0) sums[part * ROWS + tile * 16 + threadIdx.x % WARP / 4 + 8 * half] = total;
        }
    }
    __syncthreads();
    if (has_rows) mine.store(p, t, split, tile * 16, part, sums + tile * 16, ROWS);
}

extern "C" __global__ void __launch_bounds__(128) absorb_decode_rows32(const __grid_constant__ Params p) { decode<2, 16>(p); }
extern "C" __global__ void __launch_bounds__(256) absorb_decode_rows64(const __grid_constant__ Params p) { decode<4, 32>(p); }
extern "C" __global__ void __launch_bounds__(128) absorb_merge(const __grid_constant__ Params p) { merge<R>(p); }
