// x [rows, in] times weights of 4 or 8 bits in groups of inputs: w = (q - zero) * scale, a zero and a scale per group and
// output. A panel is 32 outputs wide; a word of a lane holds inputs one after the other, of 4 bits in two halves:
//
//   4 bits   panel [in / 8][32]   byte j of a word: input k + j in the lower half, k + 4 + j in the upper one
//   8 bits   panel [in / 4][32]   byte j: input k + j
//
// Inputs become bytes group by group, each group of a row with a scale of its own, so a group's sum is whole numbers:
//
//   sum over a group of w * x = scale * x_scale * (sum of q * x_q  -  zero * sum of x_q)

#include "jobs.h"
#include "panels.h"

#define MOST_ROWS 6  // of one register tile: 12 sums of a group, 12 of the row
#define CHUNK 96     // rows that share a panel while it is in the cache
#define AHEAD 2048   // bytes of weights that are fetched early
#define OWN_ROWS 2   // so few are laid out by each thread for itself: waiting for another takes longer

// What tiles read: bytes of inputs [in / 4][tile rows], and by group [groups][tile rows] scale and scale * sum.
struct Inputs {
  int32_t *bytes;
  float *scales, *sums;
};

INLINE int64_t groups_of(const Groups &job) { return job.in / job.group; }
INLINE Inputs from_row(const Groups &job, const Inputs &all, int64_t row) {
  const int64_t groups = groups_of(job);
  return {all.bytes + row * (job.in / 4), all.scales + row * groups, all.sums + row * groups};
}

template <class T>
static __attribute__((noinline)) void lay_out(const Groups &job, int64_t first, int rows, const Inputs &to) {
  float *chosen = job.order ? (float *)__builtin_alloca(job.group * sizeof(float) + 64) : 0;
  for (int row = 0; row < rows; row++) {
    const T *x = (const T *)job.x + (first + row) * job.in;
    for (int64_t group = 0; group < groups_of(job); group++) {
      const int64_t begin = group * job.group;
      if (chosen)
        for (int64_t k = 0; k < job.group; k++) chosen[k] = number(x[job.order[begin + k]]);
      f32x16 peak = {};
      for (int64_t k = 0; k < job.group; k += LANES) {
        f32x16 value = chosen ? get(chosen + k) : get(x + begin + k);
        peak = largest(peak, largest(value, -value));
      }
      const float top = largest(peak), inverse = top > 0 ? 127 / top : 0;
      i32x16 total = {};
      for (int64_t k = 0; k < job.group; k += LANES) {
        f32x16 value = chosen ? get(chosen + k) : get(x + begin + k);
        i32x16 whole = (i32x16)(value * inverse + 12582912.0f);  // rounds to nearest, in the low bits
        total += whole - 0x4b400000;
        int32_t words[4];
        store(words, __builtin_convertvector(whole, u8x16));
        for (int i = 0; i < 4; i++) to.bytes[((begin + k) / 4 + i) * rows + row] = words[i];
      }
      int32_t sum = 0;
      for (int i = 0; i < LANES; i++) sum += total[i];
      to.scales[group * rows + row] = top / 127;
      to.sums[group * rows + row] = top / 127 * sum;
    }
  }
}

template <int BITS, class T, int ROWS>
static __attribute__((noinline)) void tile(const Groups &job, const Inputs &x, int64_t row, int64_t panel) {
  const int64_t groups = groups_of(job), words = job.group * BITS / 32;
  const int32_t *weights = (const int32_t *)job.weight + panel * groups * words * PANEL, *inputs = x.bytes;
  const float *scales = job.scales + panel * groups * PANEL;
  const float *zeros = job.zeros ? job.zeros + panel * groups * PANEL : 0;
  const i32x16 low = splat(0x0f0f0f0f);
  f32x16 left[ROWS] = {}, right[ROWS] = {};
  for (int64_t group = 0; group < groups; group++) {
    i32x16 a[ROWS] = {}, b[ROWS] = {};
    for (int64_t k = 0; k < words; k++, weights += PANEL) {
      i32x16 p = load<i32x16>(weights), q = load<i32x16>(weights + 16);
      __builtin_prefetch((const char *)weights + AHEAD);
      __builtin_prefetch((const char *)weights + AHEAD + 64);
      if (BITS == 8) {
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; i++) {
          i32x16 input = splat(inputs[i]);
          dot_bytes(a[i], p, input);
          dot_bytes(b[i], q, input);
        }
        inputs += ROWS;
        continue;
      }
      i32x16 p_low = p & low, q_low = q & low, p_high = p >> 4 & low, q_high = q >> 4 & low;
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; i++) {
        i32x16 input = splat(inputs[i]);
        dot_bytes(a[i], p_low, input);
        dot_bytes(b[i], q_low, input);
      }
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; i++) {
        i32x16 input = splat(inputs[ROWS + i]);
        dot_bytes(a[i], p_high, input);
        dot_bytes(b[i], q_high, input);
      }
      inputs += 2 * ROWS;
    }
    const float *at = scales + group * PANEL;
    f32x16 scale = get(at), other = get(at + 16), zero = splat((float)(1 << (BITS - 1))), other_zero = zero;
    if (zeros) zero = get(zeros + group * PANEL), other_zero = get(zeros + group * PANEL + 16);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      const float by = x.scales[group * ROWS + i], sum = x.sums[group * ROWS + i];
      left[i] += scale * (__builtin_convertvector(a[i], f32x16) * by - zero * sum);
      right[i] += other * (__builtin_convertvector(b[i], f32x16) * by - other_zero * sum);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) write<T>(job, left[i], right[i], row + i, panel);
}

template <int BITS, class T>
static void run_tile(const Groups &job, const Inputs &x, int64_t row, int64_t panel, int rows) {
  switch (rows) {
#define CASE(n) case n: return tile<BITS, T, n>(job, x, row, panel);
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(6)
#undef CASE
  }
}

// Rows of the tile that begins at `row`: as large as there are kernels for, without a small one left over.
INLINE int tile_rows(int64_t left) {
  static const int fits[9] = {0, 1, 2, 3, 4, 3, 6, 4, 4};
  return left > 8 ? MOST_ROWS : fits[left];
}

INLINE int64_t laid_out_bytes(const Groups &job) { return job.rows * (job.in + groups_of(job) * 8); }

template <int BITS, class T> static void multiply(const Groups &job, const Team &team) {
  const int64_t panels = (job.outs + PANEL - 1) / PANEL, chunks = (job.rows + CHUNK - 1) / CHUNK;
  const bool few = job.rows <= OWN_ROWS;
  char *memory = few ? (char *)borrowed<OWN>(laid_out_bytes(job)) : team.scratch;
  float *scales = (float *)(memory + job.rows * job.in);
  const Inputs all = {(int32_t *)memory, scales, scales + job.rows * groups_of(job)};
  auto lay_out_piece = [&](int64_t piece) {  // CHUNK is a multiple of 24, which tiles end at
    for (int64_t row = piece * 24, end = least(job.rows, row + 24); row < end;) {
      int rows = tile_rows(end - row);
      lay_out<T>(job, row, rows, from_row(job, all, row));
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
      run_tile<BITS, T>(job, from_row(job, all, row), row, panel, rows);
      row += rows;
    }
  });
}

int64_t groups_scratch(const Groups &job) { return laid_out_bytes(job); }

void linear_groups(const Groups &job, bool wide, const Team &team) {
  if (job.bits == 4) {
    if (wide) multiply<4, float>(job, team);
    else multiply<4, bf16>(job, team);
  } else {
    if (wide) multiply<8, float>(job, team);
    else multiply<8, bf16>(job, team);
  }
}
