// Chooses a token from each row of logits, by the definition in `sample.rs`: the same whole numbers, so the same token.
#include "dev.cuh"

enum : int { THREADS = 1024, WARPS = THREADS / WARP };
// Choices that are none.
enum : int { NOT_FINITE = -1, NOTHING_ALLOWED = -2 };

// Cuts are in the units of weights, of which the most likely token has 2^40.
struct Draw {
    u64 least;  // weight that a token must have
    u64 share;  // part of the kept weight that is enough, in 2^-64; all ones keep all
    u64 random; // in 2^-64
    float scale;
    u32 most; // tokens that are kept; 0 keeps all, 1 is greedy
    int row;
    int first_edit, edits;
    int first_word; // of the allowed tokens' bits; -1 allows all
    int first_top, top; // most likely tokens to tell; -1 tells no log-probability at all
};

struct Edit {
    int id;
    float bias, repetition, less;
    float was; // scratch
};

struct Choice {
    u64 total; // of all weights, of the logits as they were
    float logit, max;
    int id, unused;
};

struct Top {
    int id;
    float logit;
};

struct Sample {
    float* logits; // [rows][vocab]; edited while a block works, and put back
    const Draw* draws;
    Edit* edits;
    const u32* words;
    Choice* choices; // a draw's
    Top* tops;
    int vocab;
};

// Logits in their order as whole numbers: both zeros are one number, and what is no number comes first.
DEV u32 key_of(float logit) {
    const u32 bits = __float_as_uint(logit);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0xff800001u;
    if (bits == 0x80000000u) return 0x80000000u;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

DEV float logit_of(u32 key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

// Greater for what is more likely, and for the lower id among equals.
DEV u64 rank_of(int id, float logit) { return (u64)key_of(logit) << 32 | (u32)~id; }

// 2^power of a power of at most 0, in 2^-40. Nothing may be fused: the processor rounds every sum and product.
DEV u64 weight_of(float power) {
    if (!(power > -41.f)) return 0;
    const float whole = __fsub_rn(__fadd_rn(power, 12582912.f), 12582912.f), part = __fsub_rn(power, whole);
    float sum = 1.5252734e-5f;
    sum = __fadd_rn(__fmul_rn(sum, part), 1.540353e-4f);
    sum = __fadd_rn(__fmul_rn(sum, part), 1.3333558e-3f);
    sum = __fadd_rn(__fmul_rn(sum, part), 9.618129e-3f);
    sum = __fadd_rn(__fmul_rn(sum, part), 5.550411e-2f);
    sum = __fadd_rn(__fmul_rn(sum, part), 2.402265e-1f);
    sum = __fadd_rn(__fmul_rn(sum, part), 6.931472e-1f);
    sum = __fadd_rn(__fmul_rn(sum, part), 1.f);
    return (u64)(u32)__fmul_rn(sum, 16777216.f) << 16 >> (u32)-whole;
}

// A row as it may be drawn from.
struct Row {
    const float* logits;
    const u32* allowed;
    int vocab;
    DEV float operator[](int id) const {
        return allowed && !(allowed[id / 32] >> id % 32 & 1) ? negative_infinity() : logits[id];
    }
};

// A token's weight; those below `least` have none and are no tokens.
struct Weigh {
    float max, scale;
    u64 least;
    DEV bool operator()(float logit, u64& weight) const {
        weight = weight_of(__fmul_rn(__fsub_rn(logit, max), scale));
        return weight >= least;
    }
};

struct Add {
    static DEV u64 of(u64 a, u64 b) { return a + b; }
};
struct Max {
    static DEV u64 of(u64 a, u64 b) { return a > b ? a : b; }
};

template <class Op>
DEV u64 over_lanes(u64 x) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) x = Op::of(x, __shfl_xor_sync(ALL_LANES, x, apart));
    return x;
}

using OfWarps = u64[WARPS];

// What N numbers of all threads come to, for every thread.
template <class Op, int N>
DEV void over_block(u64 (&x)[N], OfWarps* of_warps) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = over_lanes<Op>(x[i]);
        if (lane == 0) of_warps[i][warp] = x[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = over_lanes<Op>(of_warps[i][lane]);
    // All have read before anyone writes what comes next.
    __syncthreads();
}

// The best rank below a bound; 0 when there is none.
DEV u64 best_below(const Row& row, u64 bound, OfWarps* of_warps) {
    u64 best[1] = {0};
    for (int id = threadIdx.x; id < row.vocab; id += THREADS) {
        const u64 rank = rank_of(id, row[id]);
        if (rank < bound) best[0] = Max::of(best[0], rank);
    }
    over_block<Max>(best, of_warps);
    return best[0];
}

// Keeps what has a greater key, and of those with this one the first `ties` ids.
struct Cut {
    u32 key;
    u64 ties;
};

// The shortest beginning of the tokens, best first, that measures `wanted`: all of them if none does. A token measures its
// weight, or 1. Two bits of the key at a time: whole numbers need no sorting.
template <bool WEIGHED>
DEV Cut cut_at(const Row& row, const Weigh& weigh, u64 wanted, OfWarps* of_warps) {
    u32 key = 0;
    u64 above = 0;
    for (int shift = 30; shift >= 0; shift -= 2) {
        u64 from[3] = {0, 0, 0};
        for (int id = threadIdx.x; id < row.vocab; id += THREADS) {
            const float logit = row[id];
            const u32 its = key_of(logit);
            u64 weight;
            if (its < (key | 1u << shift) || !weigh(logit, weight)) continue;
            const u64 counts = WEIGHED ? weight : 1;
            from[0] += counts;
            if (its >= (key | 2u << shift)) from[1] += counts;
            if (its >= (key | 3u << shift)) from[2] += counts;
        }
        over_block<Add>(from, of_warps);
        u32 digit = 3;
#pragma unroll
        for (int i = 2; i >= 0; i--) {
            if (from[i] < wanted) {
                above = from[i];
                digit = i;
            }
        }
        key |= digit << shift;
    }
    u64 each = 1;
    if (WEIGHED) weigh(logit_of(key), each);
    return {key, (wanted - above + each - 1) / each};
}

// Sums of a part of a row: weights above a cut, and tokens with its key.
DEV void measure(const Row& row, const Weigh& weigh, const Cut& cut, int first, int end, int step, u64& above, u64& ties) {
    above = ties = 0;
    for (int id = first; id < end; id += step) {
        const float logit = row[id];
        const u32 its = key_of(logit);
        u64 weight;
        if (its < cut.key || !weigh(logit, weight)) continue;
        if (its > cut.key) above += weight;
        else ties++;
    }
}

DEV u64 at_most(u64 x, u64 most) { return x < most ? x : most; }

// Draws from what a cut keeps, by ascending id: each warp sums a part of the row, and the one in whose part the number falls
// goes through it.
DEV int draw(const Row& row, const Weigh& weigh, const Cut& cut, u64 random, OfWarps* of_warps) {
    __shared__ int drawn;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int part = (row.vocab + THREADS - 1) / THREADS * WARP;
    const int first = warp * part, end = min(first + part, row.vocab);
    u64 above, ties, each;
    measure(row, weigh, cut, first + lane, end, WARP, above, ties);
    above = over_lanes<Add>(above);
    ties = over_lanes<Add>(ties);
    weigh(logit_of(cut.key), each);
    if (lane == 0) {
        of_warps[0][warp] = above;
        of_warps[1][warp] = ties;
    }
    __syncthreads();
    u64 total = 0, left_ties = cut.ties;
#pragma unroll(1)
    for (int i = 0; i < WARPS; i++) {
        const u64 kept = at_most(of_warps[1][i], left_ties);
        total += of_warps[0][i] + kept * each;
        left_ties -= kept;
    }
    u64 left = __umul64hi(random, total);
    left_ties = cut.ties;
    int owner = 0;
#pragma unroll(1)
    for (; owner < WARPS - 1; owner++) {
        const u64 kept = at_most(of_warps[1][owner], left_ties), sum = of_warps[0][owner] + kept * each;
        if (left < sum) break;
        left -= sum;
        left_ties -= kept;
    }
    if (warp == owner) {
        for (int start = first; start < end; start += WARP) {
            const int id = start + lane;
            u32 its = 0;
            u64 weight = 0;
            bool kept = false;
            if (id < end) {
                const float logit = row[id];
                its = key_of(logit);
                kept = weigh(logit, weight) && its >= cut.key;
            }
            const u32 tied = __ballot_sync(ALL_LANES, kept && its == cut.key);
            if (its == cut.key) kept = kept && __popc(tied & ((1u << lane) - 1)) < left_ties;
            u64 sum = kept ? weight : 0;
#pragma unroll
            for (int apart = 1; apart < WARP; apart *= 2) {
                const u64 before = __shfl_up_sync(ALL_LANES, sum, apart);
                if (lane >= apart) sum += before;
            }
            const u32 passed = __ballot_sync(ALL_LANES, left < sum);
            if (passed) {
                // The first lane that passed has as many below it as its bit less one has bits.
                if (lane == 0) drawn = start + __popc((passed & (0u - passed)) - 1);
                break;
            }
            left -= __shfl_sync(ALL_LANES, sum, WARP - 1);
            left_ties -= at_most(__popc(tied), left_ties);
        }
    }
    __syncthreads();
    return drawn;
}

// Chooses from a row whose best token has `max`.
DEV int choose(const Row& row, const Draw& d, float max, OfWarps* of_warps) {
    const Weigh weigh = {max, d.scale, d.least};
    Cut cut = {0, 0};
    if (d.most > 0) cut = cut_at<false>(row, weigh, d.most, of_warps);
    if (d.share != ~0ull) {
        u64 sums[2], each;
        measure(row, weigh, cut, threadIdx.x, row.vocab, THREADS, sums[0], sums[1]);
        over_block<Add>(sums, of_warps);
        weigh(logit_of(cut.key), each);
        const u64 enough = __umul64hi(d.share, sums[0] + at_most(sums[1], cut.ties) * each);
        // What the first cut takes away comes after all that is enough, so it need not be looked at again.
        cut = cut_at<true>(row, weigh, enough > 0 ? enough : 1, of_warps);
    }
    return draw(row, weigh, cut, d.random, of_warps);
}

// A block per draw.
extern "C" __global__ void __launch_bounds__(THREADS) sample(const __grid_constant__ Sample p) {
    __shared__ u64 of_warps[3][WARPS];
    const Draw d = p.draws[blockIdx.x];
    float* const logits = p.logits + (u64)d.row * p.vocab;
    const Row whole = {logits, nullptr, p.vocab};
    Choice choice = {0, 0.f, 0.f, NOT_FINITE, 0};

    u64 best = best_below(whole, ~0ull, of_warps);
    choice.max = logit_of((u32)(best >> 32));
    if (fabsf(choice.max) <= 3.402823466e38f) {
        if (d.top >= 0) {
            const Weigh weigh = {choice.max, 1.44269504f, 0};
            u64 sums[2];
            measure(whole, weigh, {0, 0}, threadIdx.x, p.vocab, THREADS, sums[0], sums[1]);
            over_block<Add>(sums, of_warps);
            choice.total = sums[0];
            u64 next = best;
            for (int i = 0; i < d.top; i++) {
                if (threadIdx.x == 0) p.tops[d.first_top + i] = {(int)~(u32)next, logit_of((u32)(next >> 32))};
                if (i + 1 < d.top) next = best_below(whole, next, of_warps);
            }
        }

        Edit* const edits = p.edits + d.first_edit;
        for (int i = threadIdx.x; i < d.edits; i += THREADS) {
            Edit& edit = edits[i];
            edit.was = logits[edit.id];
            const float x = __fadd_rn(edit.was, edit.bias);
            logits[edit.id] =
                __fsub_rn(x > 0.f ? __fdiv_rn(x, edit.repetition) : __fmul_rn(x, edit.repetition), edit.less);
        }
        __syncthreads();

        const Row row = {logits, d.first_word < 0 ? nullptr : p.words + d.first_word, p.vocab};
        if (d.edits > 0 || row.allowed) best = best_below(row, ~0ull, of_warps);
        const float max = logit_of((u32)(best >> 32));
        if (max == negative_infinity()) choice.id = NOTHING_ALLOWED;
        else if (fabsf(max) <= 3.402823466e38f)
            choice.id = d.most == 1 ? (int)~(u32)best : choose(row, d, max, of_warps);

        __syncthreads();
        for (int i = threadIdx.x; i < d.edits; i += THREADS) logits[edits[i].id] = edits[i].was;
        __syncthreads();
        if (choice.id >= 0) choice.logit = logits[choice.id];
    }
    if (threadIdx.x == 0) p.choices[blockIdx.x] = choice;
}
