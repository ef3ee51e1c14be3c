// x [rows, in] times packed weights. A panel is 32 outputs wide and holds one or several inputs per lane:
//
//   bf16   panel [in / 2][32][2]       int8   panel [in / 4][32][4]
//
// so a product is: a group of inputs of one row, the same in every lane, times a vector of the panel. Panels follow one
// another, so with few rows the weights stream through once, in order. A gated panel has 16 columns of gate and their
// 16 of up: act(gate) * up happens in the registers.

#include "jobs.h"
#include "panels.h"

#define MOST_ROWS 12  // of one register tile: 24 sums and 2 vectors of weights
#define CHUNK 96      // rows that share a panel while it is in the cache
#define AHEAD 2048    // bytes of weights that are fetched early
#define OWN_ROWS 2    // so few are laid out by each thread for itself: waiting for another takes longer

INLINE int64_t panels_of(const Linear &job) { return (job.outs + PANEL - 1) / PANEL; }

// ---- pack the weights -----------------------------------------------------------------------------------------------

// Row of the matrix that is column `lane` of a panel, -1 is padding.
INLINE int64_t source(int64_t panel, int lane, int64_t outs, int layout) {
  int64_t row = layout == 0 ? panel * PANEL + lane : panel * 16 + lane % 16 + (lane / 16) * (outs / 2);
  return row < outs ? row : -1;
}

extern "C" void pack_bf16(const bf16 *weight, bf16 *out, int64_t outs, int64_t in, int layout) {
  int64_t panels = (outs + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static)
  for (int64_t panel = 0; panel < panels; panel++) {
    uint32_t *to = (uint32_t *)(out + panel * PANEL * in);
    for (int lane = 0; lane < PANEL; lane++) {
      int64_t row = source(panel, lane, outs, layout);
      for (int64_t k = 0; k < in / 2; k++) {
        uint32_t pair = 0;
        if (row >= 0) memcpy(&pair, weight + row * in + 2 * k, 4);
        to[k * PANEL + lane] = pair;
      }
    }
  }
}

template <class T>
static void pack_bytes(const T *weight, int8_t *out, float *scales, int32_t *sums, int64_t outs, int64_t in, int layout) {
  int64_t panels = (outs + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static)
  for (int64_t panel = 0; panel < panels; panel++) {
    for (int lane = 0; lane < PANEL; lane++) {
      int64_t row = source(panel, lane, outs, layout), column = panel * PANEL + lane;
      float top = 0;
      const T *from = weight + row * in;
      for (int64_t k = 0; row >= 0 && k < in; k++) top = __builtin_fmaxf(top, __builtin_fabsf(number(from[k])));
      float scale = top / 127, inverse = top > 0 ? 127 / top : 0;
      int32_t total = 0;
      for (int64_t k = 0; k < in; k++) {
        int32_t value = row < 0 ? 0 : (int32_t)__builtin_rintf(number(from[k]) * inverse);
        out[panel * PANEL * in + (k / 4 * PANEL + lane) * 4 + k % 4] = (int8_t)value;
        total += value;
      }
      scales[column] = scale;
      sums[column] = total * 128;
    }
  }
}
extern "C" void pack_int8(const void *weight, int wide, int8_t *out, float *scales, int32_t *sums, int64_t outs,
                          int64_t in, int layout) {
  if (wide) pack_bytes((const float *)weight, out, scales, sums, outs, in, layout);
  else pack_bytes((const bf16 *)weight, out, scales, sums, outs, in, layout);
}

// ---- what a product does with its inputs and sums -------------------------------------------------------------------

// Inputs are laid out per tile of rows, [in / group][tile rows], so that a tile reads them in order.
struct Pairs {
  typedef f32x16 Sum;
  static const int group = 2;
  INLINE void dot(Sum &sum, i32x16 weights, i32x16 input) { dot_pairs(sum, weights, input); }
};
struct Bytes {
  typedef i32x16 Sum;
  static const int group = 4;
  INLINE void dot(Sum &sum, i32x16 weights, i32x16 input) { dot_bytes(sum, input, weights); }
};

INLINE void lay_out(const Linear &job, const Pairs *, const bf16 *, int64_t first, int rows, int32_t *to, float *) {
  const int32_t *x = (const int32_t *)job.x;
  for (int row = 0; row < rows; row++)
    for (int64_t k = 0; k < job.in / 2; k++) to[k * rows + row] = x[(first + row) * (job.in / 2) + k];
}

// One scale per row, chosen so that its largest value becomes 127; stored with 128 added, without sign.
template <class T>
INLINE void lay_out(const Linear &job, const Bytes *, const T *, int64_t first, int rows, int32_t *to, float *scales) {
  for (int row = 0; row < rows; row++) {
    const T *x = (const T *)job.x + (first + row) * job.in;
    f32x16 peak = {};
    for (int64_t k = 0; k < job.in; k += LANES) {
      f32x16 value = get(x + k);
      peak = largest(peak, largest(value, -value));
    }
    float top = largest(peak), inverse = top > 0 ? 127 / top : 0;
    scales[first + row] = top / 127;
    for (int64_t k = 0; k < job.in; k += LANES) {
      i32x16 value = (i32x16)(get(x + k) * inverse + (12582912.0f + 128));  // rounds to nearest, in the low byte
      int32_t words[4];
      store(words, __builtin_convertvector(value, u8x16));
      for (int i = 0; i < 4; i++) to[(k / 4 + i) * rows + row] = words[i];
    }
  }
}

INLINE f32x16 finished(const Linear &, f32x16 sum, int64_t, int64_t, const float *) { return sum; }
INLINE f32x16 finished(const Linear &job, i32x16 sum, int64_t row, int64_t column, const float *scales) {
  i32x16 centred = sum - load<i32x16>(job.sums + column);
  return __builtin_convertvector(centred, f32x16) * get(job.scales + column) * scales[row];
}

// ---- the product ----------------------------------------------------------------------------------------------------

template <class Kind, class T, int ROWS>
static __attribute__((noinline)) void tile(const Linear &job, const int32_t *inputs, const float *scales, int64_t row,
                                           int64_t panel) {
  typedef typename Kind::Sum Sum;
  const int64_t steps = job.in / Kind::group;
  const int32_t *weights = (const int32_t *)job.weight + panel * steps * PANEL;
  Sum left[ROWS] = {}, right[ROWS] = {};
  for (int64_t k = 0; k < steps; k++) {
    i32x16 a = load<i32x16>(weights + k * PANEL), b = load<i32x16>(weights + k * PANEL + 16);
    __builtin_prefetch((const char *)(weights + k * PANEL) + AHEAD);
    __builtin_prefetch((const char *)(weights + k * PANEL) + AHEAD + 64);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      i32x16 input = splat(inputs[k * ROWS + i]);
      Kind::dot(left[i], a, input);
      Kind::dot(right[i], b, input);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
    write<T>(job, finished(job, left[i], row + i, panel * PANEL, scales),
             finished(job, right[i], row + i, panel * PANEL + 16, scales), row + i, panel);
}

template <class Kind, class T>
static void run_tile(const Linear &job, const int32_t *inputs, const float *scales, int64_t row, int64_t panel, int rows) {
  switch (rows) {
#define CASE(n) case n: return tile<Kind, T, n>(job, inputs, scales, row, panel);
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(6) CASE(8) CASE(10) CASE(12)
#undef CASE
  }
}

// Rows of the tile that begins at `row`: as large as there are kernels for.
INLINE int tile_rows(int64_t left) {
  if (left >= MOST_ROWS) return left >= 12 && left < 16 && left != 12 ? 8 : 12;
  static const int fits[MOST_ROWS] = {0, 1, 2, 3, 4, 4, 6, 6, 8, 8, 10, 10};
  return fits[left];
}

// Inputs and scales of all rows, as tiles want them.
INLINE int64_t laid_out_bytes(const Linear &job, int group) { return job.rows * (job.in * 4 / group + 4); }

template <class Kind, class T> static void multiply(const Linear &job, const Team &team) {
  const int64_t panels = panels_of(job), chunks = (job.rows + CHUNK - 1) / CHUNK, steps = job.in / Kind::group;
  const bool few = job.rows <= OWN_ROWS;
  int32_t *inputs = (int32_t *)(few ? borrowed<OWN>(laid_out_bytes(job, Kind::group)) : team.scratch);
  float *scales = (float *)(inputs + job.rows * steps);
  auto lay_out_piece = [&](int64_t piece) {  // CHUNK is a multiple of 24, which tiles end at
    for (int64_t row = piece * 24, end = least(job.rows, row + 24); row < end;) {
      int rows = tile_rows(end - row);
      lay_out(job, (const Kind *)0, (const T *)0, row, rows, inputs + row * steps, scales);
      row += rows;
    }
  };
  if (few) {
    lay_out_piece(0);
  } else {
    team.share((job.rows + 23) / 24, lay_out_piece);
    team.meet();
  }
  team.share(chunks * panels, [&](int64_t item) {
    int64_t panel = item % panels, row = item / panels * CHUNK, end = least(job.rows, row + CHUNK);
    while (row < end) {
      int64_t stop = least(end, row / 24 * 24 + 24);
      int rows = tile_rows(stop - row);
      run_tile<Kind, T>(job, inputs + row * steps, scales, row, panel, rows);
      row += rows;
    }
  });
}

#include "tiles.h"

int64_t linear_scratch(const Linear &job) { return laid_out_bytes(job, 2); }

void linear_bf16(const Linear &job, bool, const Team &team) {
#ifdef TILES
  if (job.rows >= AMX_ROWS && job.in % 32 == 0 && amx_allowed()) return amx_multiply<AmxPairs, bf16>(job, team);
#endif
  multiply<Pairs, bf16>(job, team);
}
void linear_int8(const Linear &job, bool wide, const Team &team) {
#ifdef TILES
  if (job.rows >= AMX_ROWS && job.in % 64 == 0 && amx_allowed())
    return wide ? amx_multiply<AmxBytes, float>(job, team) : amx_multiply<AmxBytes, bf16>(job, team);
#endif
  if (wide) multiply<Bytes, float>(job, team);
  else multiply<Bytes, bf16>(job, team);
}

// What of this file runs at full speed here: 1 bf16 products, 2 int8 products, 4 AMX.
extern "C" int features(void) {
  int found = 0;
#ifdef __AVX512BF16__
  found |= 1;
#endif
#ifdef __AVX512VNNI__
  found |= 2;
#endif
#ifdef TILES
  if (amx_allowed()) found |= 4;
#endif
  return found;
}
