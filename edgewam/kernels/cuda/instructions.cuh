// PTX instructions as functions, for sm_89 and above.  Written without the toolkit's headers, which NVRTC's package does not bring.
// A proof on a processor puts functions of the same names in their place (tests/kernels/instructions_on_host.h).

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

// ---- copies from global to shared memory that go on behind the thread's back

// BYTES are 16, 8 or 4, and both addresses are multiples of them.
template <int BYTES> __device__ __forceinline__ void copy_later(void* to, const void* from) {
  u32 shared = (u32)__cvta_generic_to_shared(to);
  if constexpr (BYTES == 16)  // .cg: not through the first-level cache, which weights would only sweep
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(from), "n"(BYTES) : "memory");
}

__device__ __forceinline__ void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most LEFT of this thread's groups of copies are still under way.
template <int LEFT> __device__ __forceinline__ void wait_groups() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// ---- programmatic dependent launch

__device__ __forceinline__ void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- products of a warp: c [16, 8] += a [16, k] b [k, 8]

// bfloat16, k = 16
__device__ __forceinline__ void multiply_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// FP8 E4M3, k = 32
__device__ __forceinline__ void multiply_e4m3(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// INT8, k = 32
__device__ __forceinline__ void multiply_s8(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- numbers

// Two floats rounded to bfloat16.
__device__ __forceinline__ u32 bf16_pair(float low, float high) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// Two floats rounded to E4M3; what is out of range becomes +-448.
__device__ __forceinline__ u32 e4m3_pair(float low, float high) {
  u16 pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
}

// a b + c of two pairs of bfloat16, rounded once; subnormal numbers are numbers.
__device__ __forceinline__ u32 multiply_add_bf16(u32 a, u32 b, u32 c) {
  u32 pair;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(a), "r"(b), "r"(c));
  return pair;
}

// ---- between blocks

// From the second-level cache, where other blocks' writes are.
__device__ __forceinline__ float2 read_others(const float* from) {
  float2 pair;
  asm volatile("ld.global.cg.v2.f32 {%0,%1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "l"(from) : "memory");
  return pair;
}

// Count one arrival of `expected`; true for the last one, which leaves the counter at zero for the next launch.
__device__ __forceinline__ bool arrive_last(u32* counter, u32 expected) { return atomicInc(counter, expected - 1) == expected - 1; }
