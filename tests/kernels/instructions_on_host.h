// The functions of kernels/cuda/instructions.cuh, and what else of CUDA a kernel uses, for a processor: a block's threads are
// coroutines that meet where the threads of a GPU do.  Products follow the fragment layouts of the PTX ISA.  Copies arrive as late
// as `wait_groups` allows or, with COPY_AT_ONCE, at once; shared memory starts as NaN.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

#define __device__ static
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__
struct uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct Place { int x, y, z; };
inline int min(int a, int b) { return a < b ? a : b; }

constexpr int THREADS = WARPS * 32, STACK = 1 << 16, MOST_GROUPS = 32, MOST_COPIES = 96;
uint4 shared[(1 << 18) / 16];
static Place threadIdx, blockIdx;

// ---- threads as coroutines

static ucontext_t scheduler, contexts[THREADS];
static char stacks[THREADS][STACK];
static bool ended[THREADS];
static u32 warp_round[THREADS], block_round[THREADS];

static void yield() {
  const int me = threadIdx.x;
  swapcontext(&contexts[me], &scheduler);
}

// Wait until all of [first, last) have come as often as this thread.
static void meet(u32* rounds, int first, int last) {
  const u32 mine = ++rounds[threadIdx.x];
  for (int other = first; other < last; other++)
    while (!ended[other] && rounds[other] < mine) yield();
}
static void meet_warp() { meet(warp_round, threadIdx.x / 32 * 32, threadIdx.x / 32 * 32 + 32); }
static void __syncthreads() { meet(block_round, 0, THREADS); }
static void __threadfence() {}

static float exchanged[THREADS];
static float __shfl_xor_sync(u32, float v, int distance) {
  exchanged[threadIdx.x] = v;
  meet_warp();
  const float other = exchanged[threadIdx.x ^ distance];
  meet_warp();
  return other;
}
static float rsqrtf(float v) { return 1.f / sqrtf(v); }

// ---- copies

struct Copy { void* to; const void* from; int bytes; };
static Copy copies[THREADS][MOST_GROUPS][MOST_COPIES];
static int num_copies[THREADS][MOST_GROUPS], num_groups[THREADS];

template <int BYTES> static void copy_later(void* to, const void* from) {
  if ((uintptr_t)to % BYTES || (uintptr_t)from % BYTES) abort();
#ifdef COPY_AT_ONCE
  memcpy(to, from, BYTES);
#else
  int& count = num_copies[threadIdx.x][num_groups[threadIdx.x]];
  if (count == MOST_COPIES) abort();
  copies[threadIdx.x][num_groups[threadIdx.x]][count++] = {to, from, BYTES};
#endif
}
static void close_group() {
  if (++num_groups[threadIdx.x] == MOST_GROUPS) abort();
}
template <int LEFT> static void wait_groups() {
  const int me = threadIdx.x, arrived = num_groups[me] - LEFT;
  for (int group = 0; group < arrived; group++)
    for (int i = 0; i < num_copies[me][group]; i++) memcpy(copies[me][group][i].to, copies[me][group][i].from, copies[me][group][i].bytes);
  for (int group = 0; group < arrived; group++) num_copies[me][group] = 0;
}
static void wait_for_kernel_before() {}
static void let_next_kernel_start() {}

// ---- numbers

static float bf16_value(u32 code) {
  u32 bits = code << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
static u32 bf16_code(double v) {
  if (v != v) return 0x7fff;
  float value = (float)v;
  u32 bits;
  memcpy(&bits, &value, 4);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static u32 bf16_pair(float low, float high) { return bf16_code(low) | bf16_code(high) << 16; }
static u32 multiply_add_bf16(u32 a, u32 b, u32 c) {
  u32 pair = 0;
  for (int i = 0; i < 32; i += 16)
    pair |= bf16_code((double)bf16_value(a >> i & 0xffff) * bf16_value(b >> i & 0xffff) + bf16_value(c >> i & 0xffff)) << i;
  return pair;
}
static float e4m3_value(u32 code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  if ((code & 127) == 127) return NAN;
  const float size = exponent ? ldexpf(8 + mantissa, exponent - 10) : ldexpf(mantissa, -9);
  return code & 128 ? -size : size;
}
static u32 e4m3_code(float v) {
  if (v != v) return 127;
  u32 best = 0;
  for (u32 code = 1; code < 127; code++) {
    const float now = fabsf(fabsf(v) - e4m3_value(code)), before = fabsf(fabsf(v) - e4m3_value(best));
    if (now < before || (now == before && code % 2 == 0)) best = code;
  }
  return best | (signbit(v) ? 128 : 0);
}
static u32 e4m3_pair(float low, float high) { return e4m3_code(low) | e4m3_code(high) << 8; }

// ---- products: lane 4 g + m has rows g and g + 8 of a (registers even and odd), column g of b, and 4 or 2 inputs from m on

struct Fragment { u32 a[4], b[2]; };
static Fragment fragments[THREADS];

// Input k of row `row` of a, or of column `row` of b, in registers of `per` numbers each.
static u32 code_at(bool of_a, int row, int k, int per) {
  const int bits = 32 / per, half = k / (4 * per), member = k % (4 * per) / per;
  const Fragment& of = fragments[threadIdx.x / 32 * 32 + row % 8 * 4 + member];
  return (of_a ? of.a[half * 2 + row / 8] : of.b[half]) >> (k % per * bits) & (bits == 8 ? 0xff : 0xffff);
}

template <class Sum, class Value> static void multiply(Sum (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, int per, Value value) {
  Fragment& mine = fragments[threadIdx.x];
  for (int i = 0; i < 4; i++) mine.a[i] = a[i];
  mine.b[0] = b0, mine.b[1] = b1;
  meet_warp();
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 8 * per; k++) c[i] += value(code_at(true, row, k, per)) * value(code_at(false, column, k, per));
  }
  meet_warp();
}
static void multiply_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) { multiply(c, a, b0, b1, 2, bf16_value); }
static void multiply_e4m3(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) { multiply(c, a, b0, b1, 4, e4m3_value); }
static void multiply_s8(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  multiply(c, a, b0, b1, 4, [](u32 code) { return (int)(signed char)code; });
}

// ---- between blocks, which run one after another

static float2 read_others(const float* from) { return {from[0], from[1]}; }
static bool arrive_last(u32* counter, u32 expected) {
  const u32 before = *counter;
  *counter = before >= expected - 1 ? 0 : before + 1;
  return before == expected - 1;
}

// ---- a launch

static void (*body)();
static void enter() {
  body();
  ended[threadIdx.x] = true;
  yield();
}

// Run a block of every place of the grid, the last one first.
static void launch(int grid_x, int grid_y, void (*kernel)()) {
  body = kernel;
  for (int block = grid_x * grid_y - 1; block >= 0; block--) {
    memset(shared, 0xff, sizeof shared);
    memset(ended, 0, sizeof ended), memset(num_copies, 0, sizeof num_copies), memset(num_groups, 0, sizeof num_groups);
    memset(warp_round, 0, sizeof warp_round), memset(block_round, 0, sizeof block_round);
    for (int t = 0; t < THREADS; t++) {
      getcontext(&contexts[t]);
      contexts[t].uc_stack.ss_sp = stacks[t], contexts[t].uc_stack.ss_size = STACK, contexts[t].uc_link = &scheduler;
      makecontext(&contexts[t], enter, 0);
    }
    blockIdx = {block % grid_x, block / grid_x, 0};
    for (int left = THREADS; left;) {
      left = 0;
      for (int t = 0; t < THREADS; t++) {
        if (ended[t]) continue;
        threadIdx = {t, 0, 0}, left++;
        swapcontext(&scheduler, &contexts[t]);
      }
    }
  }
}
