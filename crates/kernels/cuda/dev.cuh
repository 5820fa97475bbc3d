// What kernels need of the device, without any CUDA header: NVRTC compiles them from memory, with nothing installed.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEV __device__ __forceinline__

// No constexpr here: at namespace scope NVRTC makes a variable of it.
enum : int { WARP = 32 };
enum : u32 { ALL_LANES = 0xffffffffu };

// The block's dynamic shared memory. 1024 bytes of alignment let swizzles be computed from addresses.
extern __shared__ __align__(1024) u8 shared_memory[];

DEV u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// d += a b: a 16 x 16 in rows, b 16 x 8 in columns, bf16; d 16 x 8, f32. Lane = 4 g + t holds
//   a[v]: row g + 8 (v & 1), columns 2t and 2t + 1, + 8 if v & 2;  b[v]: rows 2t and 2t + 1, + 8 v, column g;
//   d[v]: row g + 8 (v >> 1), column 2t + (v & 1).
DEV void mma_16816(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of 16 bits; lane l gives the shared address of row l % 8 of matrix l / 8, and gets elements 2t and
// 2t + 1 of row g of each.
DEV void load_matrices(u32 (&r)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

// Two such matrices, of lanes 0 to 15.
DEV void load_matrices(u32 (&r)[2], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1},[%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(row)
                 : "memory");
}

// Four, each transposed.
DEV void load_matrices_transposed(u32 (&r)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

// Copies 16 bytes, of which all beyond the first `bytes` become zero without being read.
DEV void copy_async(void* to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0],[%1],16,%2;\n" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
}

DEV void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits for this thread's copies, but for its N youngest groups.
template <int N>
DEV void wait_copies() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

// Two floats rounded to bf16, `low` in the low half.
DEV u32 pack(float low, float high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0,%1,%2;\n" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

DEV float exp2_approx(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0,%1;\n" : "=f"(r) : "f"(x));
    return r;
}

DEV float log2_approx(float x) {
    float r;
    asm("lg2.approx.f32 %0,%1;\n" : "=f"(r) : "f"(x));
    return r;
}

DEV float negative_infinity() { return __int_as_float(0xff800000); }

// 2^(x - max) of a number up to `max`; zero for a maximum of nothing. There is no branch that loads of `x` would hide behind.
DEV float exp2_below(float x, float max) { return exp2_approx(x - (max == negative_infinity() ? 0.f : max)); }
