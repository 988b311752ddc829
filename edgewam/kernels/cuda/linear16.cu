// y = residual + gate * activation(W (norm(x) * scale + shift) + bias) for at most 16 rows: `linear` of kernels/reference.py.
//
// The time is that of reading W once.  So W is the left operand of the products (16 outputs each) and the few rows of x are the
// right one (8 rows each).  A sum over inputs may be taken in any order: a lane copies 16 consecutive bytes of a row of W straight
// to the place from which it alone reads them as operands, and x is laid down in shared memory in that same order.  No lane reads
// another's weights, so the stream of weights needs no barrier.
//
// A block computes OUTS outputs from the inputs of one of SPLITS parts.  Its warps take turns at steps of 64 bytes of every row, and
// their sums are added at the end, in a fixed order.  The last block to finish a tile adds the parts of its SPLITS.
//
// Defined from outside, as numbers:
//   S IN OUT            rows of x, inputs, outputs
//   ROWS OUTS           tile: S rounded up to 8 or 16, and a multiple of 64
//   WARPS STAGES SPLITS
//   WEIGHT              0 bfloat16, 1 E4M3, 2 INT8, 3 INT4
//   PRODUCT             0 bfloat16, 1 E4M3, 2 INT8
//   GROUP               inputs that share a scale; 0: one scale an output, or none
//   EPS_BITS            epsilon of the norm, as the bits of a float
//   X_BF16 Y_BF16 RESIDUAL_BF16, X_STRIDE Y_STRIDE RESIDUAL_STRIDE SQUARES_STRIDE (elements from row to row)
//   NORM PAIRS DEPENDENT, GELU (0 none, 1 tanh form, 2 exact)
//   HAS_MODULATION HAS_CLEAN HAS_SMOOTH HAS_WEIGHT_SCALE HAS_BIAS HAS_GATE HAS_CLEAN_GATE HAS_RESIDUAL HAS_SQUARES
//   SPAN                elements between the halves of y and residual, with PAIRS
//   SHARED              bytes of shared memory at the launch

struct Operands {  // addresses in the order of kernels/linear_cuda.py
  const char* x;
  const char* weight;
  const float* weight_scale;
  const float* bias;
  const float* shift;
  const float* scale;
  const float* clean_shift;
  const float* clean_scale;
  const u8* mask;
  const float* smooth;
  const float* input_scale;
  const float* gate;
  const float* clean_gate;
  const char* residual;
  char* y;
  float* squares;
  float* parts;   // [tiles, SPLITS, S, OUTS]
  u32* counters;  // [tiles], zero
};

constexpr int BITS = WEIGHT == 0 ? 16 : WEIGHT == 3 ? 4 : 8;
constexpr int LANE = 16;               // bytes of a row of W that a lane has in a step
constexpr int STEP_BYTES = 4 * LANE;   // four lanes share a row
constexpr int STEP = STEP_BYTES * 8 / BITS;
constexpr int STEPS = IN / STEP / SPLITS;  // of a block
constexpr int ROW_BYTES = IN / 8 * BITS;
constexpr int SPREAD = (PRODUCT == 0 ? 16 : 8) / BITS;  // bytes of x a byte of W, and pieces of 16 bytes that a lane has of x
constexpr int CHUNK = GROUP && GROUP * BITS / 32 < LANE ? GROUP * BITS / 32 : LANE;  // four lanes' chunks have one scale
constexpr int CHUNKS = LANE / CHUNK;
constexpr int TILES = OUTS / 16, PANELS = ROWS / 8;  // of a block's products
constexpr int LANES = 32;

constexpr int X_BYTES = STEPS * PANELS * SPREAD * LANES * 16;
constexpr int SLOT_WEIGHTS = TILES * 2 * LANES * LANE;  // a warp's weights of a step
constexpr int SLOT = SLOT_WEIGHTS + (GROUP ? CHUNKS * TILES * 2 * LANES * 4 : 0);
constexpr int SUM_STRIDE = OUTS + 4;  // so that neither writing nor reading meets a bank twice

static_assert(IN % (STEP * SPLITS) == 0 && OUT % 64 == 0 && OUTS % 64 == 0 && (ROWS == 8 || ROWS == 16) && S <= ROWS, "shape");
static_assert(!GROUP || (PRODUCT == 0 && CHUNK >= 4 && (GROUP % STEP == 0 || STEP % GROUP == 0)), "groups");
constexpr int STREAM_BYTES = WARPS * STAGES * SLOT, SUM_BYTES = WARPS * ROWS * SUM_STRIDE * 4;  // one after the other
static_assert(SHARED == X_BYTES + (STREAM_BYTES > SUM_BYTES ? STREAM_BYTES : SUM_BYTES), "the launch asks for what the layout needs");

#if PRODUCT == 2
typedef int Sum;
#else
typedef float Sum;
#endif

extern __shared__ uint4 shared[];

__device__ __forceinline__ float bits_to_float(u32 bits) {
  union { u32 bits; float value; } both = {bits};
  return both.value;
}

// ---- x: eight numbers at a time, from global memory to where the products read them

__device__ __forceinline__ void read8(const float* from, float (&v)[8]) {
  const float4 low = ((const float4*)from)[0], high = ((const float4*)from)[1];
  v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w, v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}

__device__ __forceinline__ void read8_of_x(const char* x, int row, int k, float (&v)[8]) {
  const long long at = (long long)row * X_STRIDE + k;
  if (X_BF16) {
    const uint4 codes = *(const uint4*)(x + 2 * at);
    const u32 pairs[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int i = 0; i < 4; i++) v[2 * i] = bits_to_float(pairs[i] << 16), v[2 * i + 1] = bits_to_float(pairs[i] & 0xffff0000);
  } else {
    read8((const float*)x + at, v);
  }
}

// a / b as division rounds it, for ordinary numbers: a guess and what is left of a.
__device__ __forceinline__ float quotient(float a, float b, float inverse) {
  const float guess = a * inverse;
  return fmaf(fmaf(-guess, b, a), inverse, guess);
}

__device__ __forceinline__ u32 rounded_to_s8(float v) { return (u32)(int)rintf(fminf(fmaxf(v, -128.f), 127.f)) & 255; }

// Round and store inputs k .. k + 7 of a row; k is counted from the block's first input.
__device__ __forceinline__ void store8(int row, int k, const float (&v)[8], float input_scale, float inverse) {
  const int byte = k * BITS / 8, step = byte / STEP_BYTES, rest = byte % STEP_BYTES;
  const int at = rest / (4 * CHUNK) * CHUNK + rest % CHUNK, lane = row % 8 * 4 + rest / CHUNK % 4;
  char* to = (char*)shared + (((step * PANELS + row / 8) * SPREAD + at * SPREAD / 16) * LANES + lane) * 16 + at * SPREAD % 16;
  if (PRODUCT == 0) {
    constexpr int D = 16 / BITS;  // `unpacked` yields inputs i and i + D together
    u32 pairs[4];
#pragma unroll
    for (int q = 0; q < 4; q++) pairs[q] = bf16_pair(v[q / D * 2 * D + q % D], v[q / D * 2 * D + q % D + D]);
    *(uint4*)to = uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
  } else {
    u32 codes[2];
#pragma unroll
    for (int q = 0; q < 2; q++) {
      float w[4];
#pragma unroll
      for (int i = 0; i < 4; i++) w[i] = quotient(v[4 * q + i], input_scale, inverse);
      if (PRODUCT == 1)
        codes[q] = e4m3_pair(w[0], w[1]) | e4m3_pair(w[2], w[3]) << 16;
      else
        codes[q] = rounded_to_s8(w[0]) | rounded_to_s8(w[1]) << 8 | rounded_to_s8(w[2]) << 16 | rounded_to_s8(w[3]) << 24;
    }
    *(uint2*)to = uint2{codes[0], codes[1]};
  }
}

// Modulate and smooth inputs k .. k + 7 of a row, k counted from the row's first.
__device__ __forceinline__ void modulate8(const Operands& o, int row, int k, float (&v)[8]) {
  if (HAS_MODULATION) {
    const bool clean = HAS_CLEAN && o.mask[row];
    float scale[8], shift[8];
    read8((clean ? o.clean_scale : o.scale) + k, scale);
    read8((clean ? o.clean_shift : o.shift) + k, shift);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = v[i] * scale[i] + shift[i];
  }
  if (HAS_SMOOTH) {
    float smooth[8];
    read8(o.smooth + k, smooth);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] *= smooth[i];
  }
}

__device__ __forceinline__ float sum_over_lanes(float v) {
#pragma unroll
  for (int distance = 16; distance; distance /= 2) v += __shfl_xor_sync(0xffffffff, v, distance);
  return v;
}

// The block's part of x, normed, modulated and rounded; rows that are not there are zero.
__device__ __forceinline__ void stage_inputs(const Operands& o, int first, int warp, int lane) {
  constexpr int PART = IN / SPLITS, UNITS = (IN + 255) / 256;
  const float input_scale = PRODUCT ? o.input_scale[0] : 1.f, inverse = 1.f / input_scale;
  if (NORM) {  // a warp has whole rows, in registers
    constexpr int MINE = (ROWS + WARPS - 1) / WARPS;
    float v[MINE][UNITS][8];
#pragma unroll
    for (int r = 0; r < MINE; r++) {
#pragma unroll
      for (int u = 0; u < UNITS; u++) {
        const int row = warp + r * WARPS, k = u * 256 + lane * 8;
        for (int i = 0; i < 8; i++) v[r][u][i] = 0.f;
        if (row < S && k < IN) read8_of_x(o.x, row, k, v[r][u]);
      }
    }
#pragma unroll
    for (int r = 0; r < MINE; r++) {
      const int row = warp + r * WARPS;
      float sum = 0.f, square = 0.f;
#pragma unroll
      for (int u = 0; u < UNITS; u++)
        for (int i = 0; i < 8; i++) sum += v[r][u][i];
      const float mean = sum_over_lanes(sum) / IN;
#pragma unroll
      for (int u = 0; u < UNITS; u++)
        for (int i = 0; i < 8; i++)
          if (u * 256 + lane * 8 < IN) square += (v[r][u][i] - mean) * (v[r][u][i] - mean);
      const float spread = rsqrtf(sum_over_lanes(square) / IN + bits_to_float(EPS_BITS));
#pragma unroll
      for (int u = 0; u < UNITS; u++) {
        const int k = u * 256 + lane * 8;
        if (row >= ROWS || k < first || k >= first + PART) continue;
        if (row < S) {
          for (int i = 0; i < 8; i++) v[r][u][i] = (v[r][u][i] - mean) * spread;
          modulate8(o, row, k, v[r][u]);
        }
        store8(row, k - first, v[r][u], input_scale, inverse);
      }
    }
  } else {
    for (int unit = warp * LANES + lane; unit < ROWS * PART / 8; unit += WARPS * LANES) {
      const int row = unit / (PART / 8), k = unit % (PART / 8) * 8;
      float v[8] = {};
      if (row < S) {
        read8_of_x(o.x, row, first + k, v);
        modulate8(o, row, first + k, v);
      }
      store8(row, k, v, input_scale, inverse);
    }
  }
}

// ---- W: a stream of copies, and products of what has arrived

__device__ __forceinline__ void copy_step(const Operands& o, char* slot, int out0, int step, int lane) {
  const int group = lane / 4, member = lane % 4;
#pragma unroll
  for (int half = 0; half < TILES * 2; half++) {
    const int out = min(out0 + half * 8 + group, OUT - 1);  // outputs that are not there: read any, written never
    const char* from = o.weight + (long long)out * ROW_BYTES + step * STEP_BYTES;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
      copy_later<CHUNK>(slot + (half * LANES + lane) * LANE + c * CHUNK, from + (c * 4 + member) * CHUNK);
    if (GROUP) {
      char* scales = slot + SLOT_WEIGHTS;
#pragma unroll
      for (int c = 0; c < CHUNKS; c++)
        copy_later<4>(scales + ((c * TILES * 2 + half) * LANES + lane) * 4,
                      o.weight_scale + (long long)out * (IN / (GROUP ? GROUP : 1)) + (step * STEP + c * (STEP / CHUNKS)) / (GROUP ? GROUP : 1));
    }
  }
}

// Pairs of codes at bits 0 and 16 of `codes`, as exact bfloat16.
__device__ __forceinline__ u32 unpacked(u32 codes) {
  constexpr u32 ONE = 0x3f803f80;
  if (WEIGHT == 3)  // 0x4300 + n is 128 + n; a code is n - 8
    return multiply_add_bf16((codes & 0x000f000f) | 0x43004300, ONE, 0xc308c308);
  if (WEIGHT == 2)  // 128 + the low seven bits, less 128 or, with the sign bit, 256
    return multiply_add_bf16((codes & 0x007f007f) | 0x43004300, ONE, (codes & 0x00800080) | 0xc300c300);
  // E4M3: exponent and mantissa in their places count 2^-120 too little, of subnormal numbers too
  return multiply_add_bf16((codes & 0x007f007f) << 4 | (codes & 0x00800080) << 8, 0x7b807b80, 0x80008000);
}

// What product `m` (0 or 1) of piece `piece` takes of a lane's 16 bytes of one output.
__device__ __forceinline__ void operands_of(const u32 (&w)[4], int piece, int m, u32& first, u32& second) {
  if (SPREAD == 1) {
    first = w[2 * m], second = w[2 * m + 1];
  } else if (SPREAD == 2) {
    first = unpacked(w[2 * piece + m]), second = unpacked(w[2 * piece + m] >> 8);
  } else {
    first = unpacked(w[piece] >> 8 * m), second = unpacked(w[piece] >> (8 * m + 4));
  }
}

__device__ __forceinline__ void multiply(Sum (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if PRODUCT == 0
  multiply_bf16(c, a, b0, b1);
#elif PRODUCT == 1
  multiply_e4m3(c, a, b0, b1);
#else
  multiply_s8(c, a, b0, b1);
#endif
}

__device__ __forceinline__ void multiply_step(const char* slot, int step, int lane, Sum (&sums)[TILES][PANELS][4]) {
  u32 w[TILES * 2][4];
#pragma unroll
  for (int half = 0; half < TILES * 2; half++) {
    const uint4 codes = ((const uint4*)slot)[half * LANES + lane];
    w[half][0] = codes.x, w[half][1] = codes.y, w[half][2] = codes.z, w[half][3] = codes.w;
  }
#pragma unroll
  for (int c = 0; c < CHUNKS; c++) {
    Sum part[TILES][PANELS][4] = {};
#pragma unroll
    for (int piece = c * SPREAD / CHUNKS; piece < (c + 1) * SPREAD / CHUNKS; piece++) {
      uint4 rows[PANELS];
#pragma unroll
      for (int p = 0; p < PANELS; p++) rows[p] = shared[((step * PANELS + p) * SPREAD + piece) * LANES + lane];
#pragma unroll
      for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int t = 0; t < TILES; t++) {
          u32 a[4];
          operands_of(w[2 * t], piece, m, a[0], a[2]);
          operands_of(w[2 * t + 1], piece, m, a[1], a[3]);
#pragma unroll
          for (int p = 0; p < PANELS; p++)
            multiply(GROUP ? part[t][p] : sums[t][p], a, m ? rows[p].z : rows[p].x, m ? rows[p].w : rows[p].y);
        }
      }
    }
    if (GROUP) {
      const float* scales = (const float*)(slot + SLOT_WEIGHTS) + c * TILES * 2 * LANES + lane;
#pragma unroll
      for (int t = 0; t < TILES; t++) {
        const float low = scales[2 * t * LANES], high = scales[(2 * t + 1) * LANES];
#pragma unroll
        for (int p = 0; p < PANELS; p++) {
          sums[t][p][0] += low * part[t][p][0], sums[t][p][1] += low * part[t][p][1];
          sums[t][p][2] += high * part[t][p][2], sums[t][p][3] += high * part[t][p][3];
        }
      }
    }
  }
}

// ---- y: what comes after the product

__device__ __forceinline__ float activated(float v) {
  if (GELU == 1) return 0.5f * v * (1.f + tanhf(0.7978845608028654f * (v + 0.044715f * v * v * v)));
  if (GELU == 2) return 0.5f * v * (1.f + erff(0.7071067811865476f * v));
  return v;
}

// Outputs out and out + 1 of a row; the warp's lanes have 64 neighbours together.
__device__ __forceinline__ void finish(const Operands& o, int row, int out, int lane, float2 v) {
  if (HAS_WEIGHT_SCALE && !GROUP) v.x *= o.weight_scale[out], v.y *= o.weight_scale[out + 1];
  if (PRODUCT) v.x *= o.input_scale[0], v.y *= o.input_scale[0];
  if (HAS_BIAS) v.x += o.bias[out], v.y += o.bias[out + 1];
  if (HAS_SQUARES) {
    const float square = sum_over_lanes(v.x * v.x + v.y * v.y);
    if (lane == 0) o.squares[row * SQUARES_STRIDE + out / 64] = square;
  }
  v.x = activated(v.x), v.y = activated(v.y);
  if (HAS_GATE) {
    const float* gate = HAS_CLEAN_GATE && o.mask[row] ? o.clean_gate : o.gate;
    v.x *= gate[out], v.y *= gate[out + 1];
  }
  constexpr int HALF = PAIRS ? OUT / 2 : OUT;
  const long long within = out / HALF * (long long)SPAN + out % HALF;
  if (HAS_RESIDUAL) {
    const long long at = within + row * (long long)RESIDUAL_STRIDE;
    if (RESIDUAL_BF16) {
      const u32 pair = *(const u32*)(o.residual + 2 * at);
      v.x += bits_to_float(pair << 16), v.y += bits_to_float(pair & 0xffff0000);
    } else {
      const float2 pair = *(const float2*)(o.residual + 4 * at);
      v.x += pair.x, v.y += pair.y;
    }
  }
  const long long at = within + row * (long long)Y_STRIDE;
  if (Y_BF16)
    *(u32*)(o.y + 2 * at) = bf16_pair(v.x, v.y);
  else
    *(float2*)(o.y + 4 * at) = v;
}

extern "C" __global__ void __launch_bounds__(WARPS* LANES) linear16(Operands o) {
  const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
  const int tile = blockIdx.x, split = blockIdx.y, out0 = tile * OUTS;
  char* ring = (char*)shared + X_BYTES;
  char* mine = ring + warp * STAGES * SLOT;

  // weights are nobody's output: their stream starts before the kernel in front has ended
#pragma unroll
  for (int s = 0; s < STAGES; s++) {
    if (warp + s * WARPS < STEPS) copy_step(o, mine + s * SLOT, out0, split * STEPS + warp + s * WARPS, lane);
    close_group();
  }
  if (DEPENDENT) {
    wait_for_kernel_before();
    let_next_kernel_start();  // only now: what the next kernel reads early was then written before the kernel in front of this one
  }
  stage_inputs(o, split * (IN / SPLITS), warp, lane);
  __syncthreads();

  Sum sums[TILES][PANELS][4] = {};
  int stage = 0;
  for (int step = warp; step < STEPS; step += WARPS) {
    wait_groups<STAGES - 1>();
    multiply_step(mine + stage * SLOT, step, lane, sums);
    if (step + STAGES * WARPS < STEPS) copy_step(o, mine + stage * SLOT, out0, split * STEPS + step + STAGES * WARPS, lane);
    close_group();  // empty at the end, so that the count of groups stays right
    stage = stage + 1 == STAGES ? 0 : stage + 1;
  }
  wait_groups<0>();
  __syncthreads();

  float* all = (float*)ring;  // [WARPS, ROWS, SUM_STRIDE], in place of the weights
#pragma unroll
  for (int t = 0; t < TILES; t++) {
#pragma unroll
    for (int p = 0; p < PANELS; p++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int out = t * 16 + i / 2 * 8 + lane / 4, row = p * 8 + lane % 4 * 2 + i % 2;
        all[(warp * ROWS + row) * SUM_STRIDE + out] = (float)sums[t][p][i];
      }
    }
  }
  __syncthreads();

  for (int unit = warp; unit < S * (OUTS / 64); unit += WARPS) {
    const int row = unit / (OUTS / 64), at = unit % (OUTS / 64) * 64 + lane * 2;
    if (out0 + at >= OUT) continue;  // the whole warp at once: OUT is a multiple of 64
    float2 v = {0.f, 0.f};
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      const float2 one = *(const float2*)(all + (w * ROWS + row) * SUM_STRIDE + at);
      v.x += one.x, v.y += one.y;
    }
    if (SPLITS == 1)
      finish(o, row, out0 + at, lane, v);
    else
      *(float2*)(o.parts + ((tile * SPLITS + split) * S + row) * OUTS + at) = v;
  }
  if (SPLITS == 1) return;

  __threadfence();
  __syncthreads();
  int* is_last = (int*)shared;  // x is used up
  if (threadIdx.x == 0) *is_last = arrive_last(o.counters + tile, SPLITS);
  __syncthreads();
  if (!*is_last) return;
  __threadfence();
  for (int unit = warp; unit < S * (OUTS / 64); unit += WARPS) {
    const int row = unit / (OUTS / 64), at = unit % (OUTS / 64) * 64 + lane * 2;
    if (out0 + at >= OUT) continue;
    float2 v = {0.f, 0.f};
#pragma unroll
    for (int part = 0; part < SPLITS; part++) {
      const float2 one = read_others(o.parts + ((tile * SPLITS + part) * S + row) * OUTS + at);
      v.x += one.x, v.y += one.y;
    }
    finish(o, row, out0 + at, lane, v);
  }
}
