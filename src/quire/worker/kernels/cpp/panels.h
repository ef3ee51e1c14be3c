// What products of panels share: where the 32 sums of one row and panel go.

#pragma once
#include "lanes.h"

#define PANEL 32

// Adds the bias; with layout 1 half of them are gate, half up, and silu(gate) * up may be all that is wanted.
template <class T, class Job>
static __attribute__((noinline)) void write(const Job &job, f32x16 left, f32x16 right, int64_t row, int64_t panel) {
  T *out = (T *)job.out;
  const T *bias = (const T *)job.bias;
  int64_t half = job.outs / 2;
  int64_t first = job.layout ? panel * 16 : panel * PANEL, second = job.layout ? half + first : first + 16;
  int64_t end_left = job.layout ? half - first : job.outs - first, end_right = job.outs - second;
  if (bias) {
    left += get_some(bias + first, end_left);
    if (end_right > 0) right += get_some(bias + second, end_right);
  }
  if (job.layout && job.gate) return put_some(out + row * half + first, silu(left) * right, end_left);
  put_some(out + row * job.outs + first, left, end_left);
  if (end_right > 0) put_some(out + row * job.outs + second, right, end_right);
}
