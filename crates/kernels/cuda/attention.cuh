// What both decode kernels share: which queries attend to which tokens, how pages come to shared memory, and the merge.
//
// A launch serves any number of sequences, each with as many queries as it likes: one or a few when it decodes, a chunk of
// its prompt otherwise. Its grid is what the device runs at once, whatever the step: blocks walk the step's list of units,
// each a split of a tile of one sequence's query rows. How many pages a split has follows from a query's position, so that
// its result depends on that alone, never on what shares the launch or on which block takes it.
#pragma once
#include "dev.cuh"

enum : int { PAGE = 64 };

// A split of a tile of query rows.
struct __align__(16) Unit {
    // Where the sequence's pages begin in the page table.
    int pages;
    // Queries of the sequence whose splits have one size.
    int first_query, queries;
    // Row i of a group is query i / (heads of a group), head i % (heads of a group): the tile's first one.
    int first_row, group;
    // Tokens that the tile's last query sees.
    int length;
    int split, pages_each;
};

// A step's units, those of most pages first.
struct Work {
    int count, queries, unused[6];

    DEV Unit unit(int i) const { return ((const Unit*)(this + 1))[i]; }
};
static_assert(sizeof(Work) == sizeof(Unit), "units begin where one would");

struct Params {
    const u16* q;          // query i from i * q_stride on: [heads][width of a key]
    const u16* keys;       // GQA: [pages][groups][PAGE][D_NOPE]; absorb: latent rows, [pages][PAGE][RANK + D_ROPE]
    const u16* rope_keys;  // GQA: [pages][PAGE][D_ROPE]
    const u16* values;     // GQA: [pages][groups][PAGE][D_V]
    const int* page_table; // each sequence's pages, one after the other
    const int* positions;  // [queries], each one's place in its sequence
    const Work* work;
    float* partial;        // [splits][room for queries][heads][width of a value], divided by their sum
    float* partial_lse;    // [splits][room for queries][heads], to base 2
    u16* out;              // [queries][heads][width of a value]
    int query_room, q_stride, heads, groups, least_pages, most_splits;
    float scale_log2;      // softmax scale times log2(e)
};

// What the place of a chunk (16 bytes) of row `row` is turned by in rows of CHUNKS, so that eight rows' equal chunks fall into
// different banks; rows that are a multiple of 8 apart have the same.
template <int CHUNKS>
DEV int turn_of(int row) {
    constexpr int TURNS = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : CHUNKS % 2 == 0 ? 2 : 1;
    return row / (8 / TURNS) & (TURNS - 1);
}

// Where chunk `chunk` of row `row` lies in its row.
template <int CHUNKS>
DEV int swizzled(int row, int chunk) {
    return chunk ^ turn_of<CHUNKS>(row);
}

// The same in bytes for chunk `chunk + more` of a row with such a turn. Where `chunk` is known when compiling, and
// chunk % 8 + more < 8, few of these are computed, and the rest is part of loads.
DEV u32 turned(int turn, int chunk, int more) { return (chunk / 8 * 8 + ((chunk % 8 + more) ^ turn)) * 16; }

// Starts copies of the first `valid` of ROWS rows of WIDTH numbers to chunks from FIRST on, in rows of TO_CHUNKS chunks;
// rows beyond become zero.
template <int ROWS, int WIDTH, int TO_CHUNKS, int FIRST, int THREADS>
DEV void load_rows(u8* to, const u16* from, int valid) {
    constexpr int CHUNKS = WIDTH / 8, COPIES = ROWS * CHUNKS, ROWS_AT_ONCE = THREADS / 8;
    if (CHUNKS % 8 == 0 && TO_CHUNKS % 8 == 0 && FIRST % 8 == 0 && ROWS % ROWS_AT_ONCE == 0) {
        // A thread copies the same one of every eight chunks, and of rows that are turned alike, so that the rest of an address
        // is known when compiling.
        const int row = threadIdx.x / 8, chunk = threadIdx.x % 8;
        u8* to_row = to + row * TO_CHUNKS * 16 + FIRST * 16 + (chunk ^ turn_of<TO_CHUNKS>(row)) * 16;
        const u16* from_row = from + row * WIDTH + chunk * 8;
#pragma unroll
        for (int r = 0; r < ROWS; r += ROWS_AT_ONCE) {
            const int bytes = row + r < valid ? 16 : 0;
#pragma unroll
            for (int c = 0; c < CHUNKS; c += 8) copy_async(to_row + (r * TO_CHUNKS + c) * 16, from_row + r * WIDTH + c * 8, bytes);
        }
        return;
    }
    // Addresses of more copies at once would not fit in registers beside wide heads.
#pragma unroll(8)
    for (int n = 0; n < (COPIES + THREADS - 1) / THREADS; n++) {
        const int i = n * THREADS + threadIdx.x, row = i / CHUNKS, chunk = i % CHUNKS;
        if (COPIES % THREADS != 0 && i >= COPIES) break;
        copy_async(to + (row * TO_CHUNKS + swizzled<TO_CHUNKS>(row, FIRST + chunk)) * 16, from + row * WIDTH + chunk * 8,
                   row < valid ? 16 : 0);
    }
}

// A tile of query rows: row i is query i / per_group, head i % per_group of its group.
struct Tile {
    int first_query, queries, per_group, group, first_row;
    // Tokens that its last query sees.
    int length;

    DEV int rows() const { return queries * per_group - first_row; }
    DEV int query(int row) const { return first_query + (first_row + row) / per_group; }
    DEV int head(int row) const { return group * per_group + (first_row + row) % per_group; }
};

DEV Tile tile_of(const Params& p, const Unit& unit) {
    return {unit.first_query, unit.queries, p.heads / p.groups, unit.group, unit.first_row, unit.length};
}

// Starts copies of a tile's queries of WIDTH numbers to rows like those of keys; rows beyond become zero.
template <int ROWS, int WIDTH, int THREADS>
DEV void load_queries(u8* to, const Params& p, const Tile& t) {
    constexpr int CHUNKS = WIDTH / 8;
    auto copy = [&](int row, const u16* from, int chunk) {
        copy_async(to + (row * CHUNKS + swizzled<CHUNKS>(row, chunk)) * 16, from + chunk * 8, row < t.rows() ? 16 : 0);
    };
    auto of_row = [&](int row) { return p.q + (u64)t.query(row) * p.q_stride + t.head(row) * WIDTH; };
    if (CHUNKS % 8 == 0) {
        // A row is found once for all chunks that a thread copies of it.
        for (int row = threadIdx.x / 8; row < ROWS; row += THREADS / 8) {
            const u16* from = of_row(row);
#pragma unroll
            for (int c = 0; c < CHUNKS; c += 8) copy(row, from, c + threadIdx.x % 8);
        }
    } else {
        for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) copy(i / CHUNKS, of_row(i / CHUNKS), i % CHUNKS);
    }
}

// Pages of each split of a query that sees `pages` pages: twice as many as often as there would be too many splits.
DEV int pages_per_split(const Params& p, int pages) {
    int each = p.least_pages;
    while (each * p.most_splits < pages) each *= 2;
    return each;
}

// Pages that a unit has of its sequence.
struct Range {
    int first, end;
};
DEV Range pages_of(const Unit& unit) {
    const int pages = (unit.length + PAGE - 1) / PAGE, first = unit.split * unit.pages_each;
    return {first, min(pages, first + unit.pages_each)};
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

// Where the partial results of a query's head are.
DEV u64 place_of(const Params& p, int split, int query, int head) {
    return ((u64)split * p.query_room + query) * p.heads + head;
}

// Puts the splits of 128 columns of a (query, head) together: a warp's work.
template <int WIDTH>
DEV void merge_columns(const Params& p, int row, int column) {
    const int query = row / p.heads, pages = p.positions[query] / PAGE + 1;
    const int each = pages_per_split(p, pages), splits = (pages + each - 1) / each;
    const u64 apart = (u64)p.query_room * p.heads;
    // Of so many splits, loads are under way at once.
    constexpr int AT_ONCE = 8;
    auto weight_of = [&](int s) { return s < splits ? p.partial_lse[s * apart + row] : negative_infinity(); };
    float most = negative_infinity();
    for (int first = 0; first < splits; first += AT_ONCE) {
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) most = fmaxf(most, weight_of(first + i));
    }
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    float total = 0.f;
    for (int first = 0; first < splits; first += AT_ONCE) {
        float weights[AT_ONCE];
        float4 x[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int s = first + i;
            weights[i] = weight_of(s);
            x[i] = make_float4(0.f, 0.f, 0.f, 0.f);
            if (s < splits) x[i] = *(const float4*)(p.partial + (s * apart + row) * WIDTH + column);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const float factor = exp2_below(weights[i], most);
            total += factor;
            sum.x += factor * x[i].x;
            sum.y += factor * x[i].y;
            sum.z += factor * x[i].z;
            sum.w += factor * x[i].w;
        }
    }
    const float inverse = total > 0.f ? 1.f / total : 0.f;
    u32* to = (u32*)(p.out + (u64)row * WIDTH + column);
    to[0] = pack(sum.x * inverse, sum.y * inverse);
    to[1] = pack(sum.z * inverse, sum.w * inverse);
}

// All rows, in warps as in a grid of any size.
template <int WIDTH>
DEV void merge(const Params& p) {
    constexpr int COLUMNS = WARP * 4, PARTS = (WIDTH + COLUMNS - 1) / COLUMNS, WARPS = 4;
    const int parts = p.work->queries * p.heads * PARTS;
    for (int part = blockIdx.x * WARPS + threadIdx.x / WARP; part < parts; part += gridDim.x * WARPS) {
        const int column = part % PARTS * COLUMNS + threadIdx.x % WARP * 4;
        if (column < WIDTH) merge_columns<WIDTH>(p, part / PARTS, column);
    }
}
