// Decode attention along the MQA-absorb path over a paged cache: all heads' absorbed queries attend to one latent row
// [c | rope] per token, whose first RANK numbers are its value too. Compiled per RANK and D_ROPE.
//
// absorb_decode_tokensT_rowsN: a unit has N query rows, and a block reads every latent row once for them, T tokens at a time
// through two stages of shared memory. Warps are groups of TILES tiles of 16 rows times PARTS: a warp scores its part of a
// stage's tokens, shares the weights with the other parts through shared memory, and sums its part of the value's columns.
// What a warp loads of the latents serves all of its tiles. Dynamic shared memory: queries, stages, weights, and two floats
// per row and part.
//
// absorb_decode_tokens16_rows64: for cards whose shared memory does not hold 64 rows of queries beside latents. A warp has a
// part of its queries' columns in registers, scores all of a stage's tokens by them, and gives away what it has of the other
// part's tokens. A float4 per thread takes the place of queries in shared memory.
//
// absorb_merge: puts the splits of each row together.
#include "attention.cuh"

enum : int { R = RANK, DR = D_ROPE, WIDTH = R + DR, CHUNKS = WIDTH / 8, ROW_BYTES = WIDTH * 2, STEPS = WIDTH / 16, STAGES = 2 };

static_assert(R % 64 == 0 && DR % 16 == 0, "four parts of 16 columns share a value, and a product takes 16 columns of a key");

// A warp's rows against its part of the tokens and of the columns: lane 4 g + t has rows g and g + 8 of each tile.
template <int TILES, int PARTS, int TOKENS>
struct WarpTile {
    enum : int { COLUMNS = R / PARTS, OWN = TOKENS / PARTS, WEIGHT_CHUNKS = TOKENS / 8, WEIGHTS_BYTES = 16 * TOKENS * 2 };
    static_assert(COLUMNS % 16 == 0 && OWN % 8 == 0, "a part has whole columns and tokens of a product");
    float o[TILES][COLUMNS / 8][4];
    float max[TILES][2], sum[TILES][2];
    // Last token each row sees.
    int last[TILES][2];

    DEV void start(const Params& p, const Tile& t, int first_row) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = first_row + tile * 16 + threadIdx.x % WARP / 4 + 8 * half;
                last[tile][half] = row < t.rows() ? p.positions[t.query(row)] : -1;
                max[tile][half] = negative_infinity();
                sum[tile][half] = 0.f;
            }
#pragma unroll
            for (int i = 0; i < COLUMNS / 8; i++) o[tile][i][0] = o[tile][i][1] = o[tile][i][2] = o[tile][i][3] = 0.f;
        }
    }

    // What two steps of 16 columns multiply: all tiles' queries and the warp's tokens.
    struct Operands {
        u32 query[TILES][2][4];
        u32 key[OWN / 8][4];

        // The first query row and the first of the warp's tokens that this lane names are given.
        DEV void load(u32 query_row, u32 key_row, int k) {
            const int lane = threadIdx.x % WARP, turn = turn_of<CHUNKS>(lane % 8);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
                for (int step = 0; step < 2; step++) {
                    if (k + step >= STEPS) continue;
                    load_matrices(query[tile][step], query_row + tile * 16 * ROW_BYTES + turned(turn, (k + step) * 2, lane / 16));
                }
            }
#pragma unroll
            for (int n = 0; n < OWN / 8; n++) {
                if (k + 1 < STEPS) {
                    load_matrices(key[n], key_row + n * 8 * ROW_BYTES + turned(turn, k * 2, lane / 8));
                } else {
                    u32 half[2];
                    load_matrices(half, key_row + n * 8 * ROW_BYTES + turned(turn, k * 2, lane / 8 % 2));
                    key[n][0] = half[0];
                    key[n][1] = half[1];
                }
            }
        }

        DEV void multiply(float (&s)[TILES][OWN / 8][4], int k) const {
#pragma unroll
            for (int step = 0; step < 2; step++) {
                if (k + step >= STEPS) continue;
#pragma unroll
                for (int n = 0; n < OWN / 8; n++) {
#pragma unroll
                    for (int tile = 0; tile < TILES; tile++) {
                        mma_16816(s[tile][n], query[tile][step], key[n][2 * step], key[n][2 * step + 1]);
                    }
                }
            }
        }
    };

    // The warp's rows times its own tokens, from `first` of the stage on. The next operands are on their way while these are
    // multiplied.
    DEV void scores(float (&s)[TILES][OWN / 8][4], const u8* queries, const u8* latents, int first) {
        const int lane = threadIdx.x % WARP;
        const u32 query_row = shared_address(queries) + lane % 16 * ROW_BYTES;
        const u32 key_row = shared_address(latents) + (first + lane % 8) * ROW_BYTES;
        Operands operands[2];
        operands[0].load(query_row, key_row, 0);
#pragma unroll
        for (int k = 0; k < STEPS; k += 2) {
            if (k + 2 < STEPS) operands[(k / 2 + 1) % 2].load(query_row, key_row, k + 2);
            operands[k / 2 % 2].multiply(s, k);
        }
    }

    // Scales, hides tokens that come after a row's own, and gives each row's maximum to the other parts.
    DEV void mask(float (&s)[TILES][OWN / 8][4], int first_token, float scale_log2, float* maxima) {
        const int lane = threadIdx.x % WARP, token = first_token + lane % 4 * 2;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float most = negative_infinity();
#pragma unroll
                for (int n = 0; n < OWN / 8; n++) {
#pragma unroll
                    for (int v = 2 * half; v < 2 * half + 2; v++) {
                        float& x = s[tile][n][v];
                        x = token + n * 8 + v % 2 <= last[tile][half] ? x * scale_log2 : negative_infinity();
                        most = fmaxf(most, x);
                    }
                }
                most = row_max(most);
                if (lane % 4 == 0) maxima[tile * 16 + lane / 4 + 8 * half] = most;
            }
        }
    }

    // Turns scores into weights under the maximum of all parts so far, and what was summed under an older one into its terms.
    // Parts' maxima are `rows` floats apart.
    DEV void softmax(const float (&s)[TILES][OWN / 8][4], const float* maxima, int rows, u8* weights, int first) {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = lane / 4 + 8 * half;
                float most = max[tile][half];
#pragma unroll
                for (int part = 0; part < PARTS; part++) most = fmaxf(most, maxima[part * rows + tile * 16 + row]);
                const float base = most == negative_infinity() ? 0.f : most, older = exp2_approx(max[tile][half] - base);
                max[tile][half] = most;
                sum[tile][half] *= older;
#pragma unroll
                for (int i = 0; i < COLUMNS / 8; i++) {
                    o[tile][i][2 * half] *= older;
                    o[tile][i][2 * half + 1] *= older;
                }
                u8* of_row = weights + tile * WEIGHTS_BYTES + row * WEIGHT_CHUNKS * 16;
#pragma unroll
                for (int n = 0; n < OWN / 8; n++) {
                    const float x = exp2_approx(s[tile][n][2 * half] - base), y = exp2_approx(s[tile][n][2 * half + 1] - base);
                    sum[tile][half] += x + y;
                    *(u32*)(of_row + swizzled<WEIGHT_CHUNKS>(row, first / 8 + n) * 16 + lane % 4 * 4) = pack(x, y);
                }
            }
        }
    }

    DEV void add_values(const u8* weights, const u8* latents, int part) {
        const int lane = threadIdx.x % WARP, matrix = lane / 8;
        const u32 weight_row = shared_address(weights) + lane % 16 * WEIGHT_CHUNKS * 16;
        const u32 value_row = shared_address(latents) + (matrix % 2 * 8 + lane % 8) * ROW_BYTES;
        const int weight_turn = turn_of<WEIGHT_CHUNKS>(lane % 16), turn = turn_of<CHUNKS>(lane % 8);
        u32 weight[2][TILES][4], value[2][4];
        auto load_weights = [&](int k) {
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                load_matrices(weight[k % 2][tile], weight_row + tile * WEIGHTS_BYTES + turned(weight_turn, k * 2, lane / 16));
            }
        };
        // Sixteen tokens and sixteen columns at a time, all columns of some tokens first.
        auto load_value = [&](int i) {
            const u32 of = value_row + i / (COLUMNS / 16) * 16 * ROW_BYTES;
            const int chunk = i % (COLUMNS / 16) * 2, first = part * (COLUMNS / 8);
            // Parts of whole turns begin where their first chunk does.
            const u32 at = COLUMNS % 64 == 0 ? first * 16 + turned(turn, chunk, matrix / 2)
                                             : ((first + chunk + matrix / 2) ^ turn) * 16;
            load_matrices_transposed(value[i % 2], of + at);
        };
        load_weights(0);
        load_value(0);
#pragma unroll
        for (int k = 0; k < TOKENS / 16; k++) {
            if (k + 1 < TOKENS / 16) load_weights(k + 1);
#pragma unroll
            for (int n = 0; n < COLUMNS / 16; n++) {
                const int i = k * (COLUMNS / 16) + n;
                if (i + 1 < TOKENS / 16 * (COLUMNS / 16)) load_value(i + 1);
#pragma unroll
                for (int tile = 0; tile < TILES; tile++) {
                    mma_16816(o[tile][2 * n], weight[k % 2][tile], value[i % 2][0], value[i % 2][1]);
                    mma_16816(o[tile][2 * n + 1], weight[k % 2][tile], value[i % 2][2], value[i % 2][3]);
                }
            }
        }
    }

    // Writes the sum of the warp's weights of each row.
    DEV void store_sums(float* sums) {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float total = row_sum(sum[tile][half]);
                if (lane % 4 == 0) sums[tile * 16 + lane / 4 + 8 * half] = total;
            }
        }
    }

    // Writes the warp's columns, divided by the sum of all parts' weights, which are `rows` floats apart.
    DEV void store(const Params& p, const Tile& t, int split, int first_row, int part, const float* sums, int rows) {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = tile * 16 + lane / 4 + 8 * half;
                if (first_row + row >= t.rows()) continue;
                float total = 0.f;
#pragma unroll
                for (int other = 0; other < PARTS; other++) total += sums[other * rows + row];
                const float inverse = total > 0.f ? 1.f / total : 0.f;
                const u64 place = place_of(p, split, t.query(first_row + row), t.head(first_row + row));
                float* to = p.partial + place * R + part * COLUMNS + lane % 4 * 2;
#pragma unroll
                for (int i = 0; i < COLUMNS / 8; i++) {
                    *(float2*)(to + i * 8) = make_float2(o[tile][i][2 * half] * inverse, o[tile][i][2 * half + 1] * inverse);
                }
                if (part == 0 && lane % 4 == 0) {
                    p.partial_lse[place] = total > 0.f ? max[tile][half] + log2_approx(total) : negative_infinity();
                }
            }
        }
    }
};

// A warp's part of the columns of 16 query rows, in registers: of every two pairs of steps of 16 columns, one.
struct OwnQueries {
    enum : int { PARTS = 2, TOKENS = 16, PAIRS = (STEPS + 2 * PARTS - 1) / (2 * PARTS) };
    u32 q[PAIRS][2][4];

    // Whether every part has both steps of pair i: known when compiling.
    static DEV bool is_whole(int i) { return (i + 1) * PARTS * 2 <= STEPS; }

    DEV void load(const Params& p, const Tile& t, int first_row, int part) {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = first_row + lane / 4 + 8 * half;
            const bool is_there = row < t.rows();
            const u16* from = p.q + (u64)t.query(row) * p.q_stride + t.head(row) * WIDTH + part * 32 + lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < PAIRS; i++) {
#pragma unroll
                for (int step = 0; step < 2; step++) {
                    const int k = i * PARTS * 2 + step;
                    const bool is_column = is_there && (is_whole(i) || k + part * 2 < STEPS);
                    q[i][step][half] = is_column ? *(const u32*)(from + k * 16) : 0;
                    q[i][step][half + 2] = is_column ? *(const u32*)(from + k * 16 + 8) : 0;
                }
            }
        }
    }

    // What the warp's columns add to the scores of all of a stage's tokens.
    DEV void scores(float (&s)[TOKENS / 8][4], const u8* latents, int part) const {
        const int lane = threadIdx.x % WARP, turn = turn_of<CHUNKS>(lane % 8);
        const u32 key_row = shared_address(latents) + lane % 8 * ROW_BYTES;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const int k = (i * PARTS + part) * 2;
#pragma unroll
            for (int n = 0; n < TOKENS / 8; n++) {
                const u32 row = key_row + n * 8 * ROW_BYTES;
                if (is_whole(i) || k + 1 < STEPS) {
                    u32 key[4];
                    load_matrices(key, row + turned(turn, i * PARTS * 4, part * 4 + lane / 8));
                    mma_16816(s[n], q[i][0], key[0], key[1]);
                    mma_16816(s[n], q[i][1], key[2], key[3]);
                } else if (k < STEPS) {
                    u32 key[2];
                    load_matrices(key, row + turned(turn, i * PARTS * 4, part * 4 + lane / 8 % 2));
                    mma_16816(s[n], q[i][0], key[0], key[1]);
                }
            }
        }
    }

    // Leaves what this part scored of the other's tokens. The part has one product's tokens.
    static DEV void give(const float (&s)[TOKENS / 8][4], float4* exchange, int part) {
        float of_other[4];
#pragma unroll
        for (int v = 0; v < 4; v++) of_other[v] = part == 0 ? s[1][v] : s[0][v];
        exchange[threadIdx.x] = make_float4(of_other[0], of_other[1], of_other[2], of_other[3]);
    }

    // Adds what the other part scored of this one's.
    static DEV void take(float (&own)[4], const float (&s)[TOKENS / 8][4], const float4* exchange, int part) {
        const float4 given = exchange[threadIdx.x ^ WARP];
        const float of_other[4] = {given.x, given.y, given.z, given.w};
#pragma unroll
        for (int v = 0; v < 4; v++) own[v] = (part == 0 ? s[0][v] : s[1][v]) + of_other[v];
    }
};

// Latent rows from `first` on, of which those from `length` on become zero. TOKENS divides a page.
template <int TOKENS, int THREADS>
DEV void load_tokens(u8* to, const Params& p, const Unit& unit, int first, int length) {
    const int page = p.page_table[unit.pages + first / PAGE];
    const u16* from = p.keys + ((u64)page * PAGE + first % PAGE) * WIDTH;
    load_rows<TOKENS, WIDTH, CHUNKS, 0, THREADS>(to, from, min(TOKENS, length - first));
}

template <int GROUPS, int TILES, int PARTS, int TOKENS, bool IN_REGISTERS>
DEV void attend(const Params& p, const Unit& unit) {
    constexpr int THREADS = GROUPS * PARTS * WARP, ROWS = GROUPS * TILES * 16, STAGE_BYTES = TOKENS * WIDTH * 2;
    constexpr int OWN = TOKENS / PARTS;
    static_assert(!IN_REGISTERS || (TILES == 1 && (int)PARTS == OwnQueries::PARTS && (int)TOKENS == OwnQueries::TOKENS), "one size");
    const int warp = threadIdx.x / WARP, first_row = warp / PARTS * TILES * 16, part = warp % PARTS;
    const Tile t = tile_of(p, unit);
    const Range pages = pages_of(unit);
    const int begin = pages.first * PAGE, end = min(unit.length, pages.end * PAGE);
    // Groups whose rows are not there only help to copy.
    const bool has_rows = first_row < t.rows();

    u8* queries = shared_memory;
    u8* stages = queries + (IN_REGISTERS ? THREADS * (int)sizeof(float4) : ROWS * WIDTH * 2);
    float4* exchange = (float4*)queries;
    u8* weights = stages + STAGES * STAGE_BYTES;
    float* maxima = (float*)(weights + ROWS * TOKENS * 2);
    float* sums = maxima + PARTS * ROWS;
    u8* own_weights = weights + first_row * TOKENS * 2;

    WarpTile<TILES, PARTS, TOKENS> mine;
    mine.start(p, t, first_row);
    OwnQueries in_registers;
    if (IN_REGISTERS) {
        in_registers.load(p, t, first_row, part);
    } else {
        load_queries<ROWS, WIDTH, THREADS>(queries, p, t);
    }
    load_tokens<TOKENS, THREADS>(stages, p, unit, begin, end);
    commit_copies();
    for (int first = begin, turn = 0; first < end; first += TOKENS, turn ^= 1) {
        wait_copies<0>();
        // These tokens are there for all, and all are done with those whose place the next ones take.
        __syncthreads();
        if (first + TOKENS < end) {
            load_tokens<TOKENS, THREADS>(stages + (turn ^ 1) * STAGE_BYTES, p, unit, first + TOKENS, end);
            commit_copies();
        }
        const u8* latents = stages + turn * STAGE_BYTES;
        float s[TILES][OWN / 8][4] = {};
        if constexpr (IN_REGISTERS) {
            float of_part[TOKENS / 8][4] = {};
            if (has_rows) {
                in_registers.scores(of_part, latents, part);
                OwnQueries::give(of_part, exchange, part);
            }
            // What the other part scored is there.
            __syncthreads();
            if (has_rows) OwnQueries::take(s[0][0], of_part, exchange, part);
        } else if (has_rows) {
            mine.scores(s, queries + first_row * WIDTH * 2, latents, part * OWN);
        }
        if (has_rows) {
            mine.mask(s, first + part * OWN, p.scale_log2, maxima + part * ROWS + first_row);
        }
        // All parts' maxima are there.
        __syncthreads();
        if (has_rows) mine.softmax(s, maxima + first_row, ROWS, own_weights, part * OWN);
        // All parts' weights are there.
        __syncthreads();
        if (has_rows) mine.add_values(own_weights, latents, part);
    }
    if (has_rows) mine.store_sums(sums + part * ROWS + first_row);
    // All sums are there, and all are done with the queries and tokens whose place the next unit's take. Sums lie apart, and
    // are written again only after the next unit's barriers.
    __syncthreads();
    if (has_rows) mine.store(p, t, unit.split, first_row, part, sums + first_row, ROWS);
}

template <int GROUPS, int TILES, int PARTS, int TOKENS>
DEV void decode(const Params& p) {
    constexpr bool IN_REGISTERS = (int)TOKENS == OwnQueries::TOKENS;
    for (int i = blockIdx.x; i < p.work->count; i += gridDim.x) {
        attend<GROUPS, TILES, PARTS, TOKENS, IN_REGISTERS>(p, p.work->unit(i));
    }
}

// Parts that share 512 columns are eight of 64 where few rows leave room for more warps.
enum : int { WIDE_PARTS = R % 128 == 0 ? 8 : 4 };

#define KERNEL(name, groups, tiles, parts, tokens)                                                              \
    extern "C" __global__ void __launch_bounds__(groups * parts * 32, 1) name(const __grid_constant__ Params p) { \
        decode<groups, tiles, parts, tokens>(p);                                                                \
    }

KERNEL(absorb_decode_tokens16_rows64, 4, 1, 2, 16)
KERNEL(absorb_decode_tokens32_rows32, 1, 2, 4, 32)
KERNEL(absorb_decode_tokens64_rows16, 1, 1, WIDE_PARTS, 64)
KERNEL(absorb_decode_tokens64_rows32, 1, 2, WIDE_PARTS, 64)
KERNEL(absorb_decode_tokens32_rows64, 2, 2, 4, 32)
KERNEL(absorb_decode_tokens64_rows64, 2, 2, 4, 64)
extern "C" __global__ void __launch_bounds__(128) absorb_merge(const __grid_constant__ Params p) { merge<R>(p); }
