// How a step begins and ends: which tokens at which positions, their embedding and angles, and the most likely next ones.

#include "jobs.h"

void gather(const Gather &job, bool, const Team &team) {
  team.share(job.requests, [&](int64_t request) {
    const int32_t row = job.rows[request], done = job.computed[row], start = job.starts[request];
    const int32_t count = job.starts[request + 1] - start;
    for (int32_t i = 0; i < count; i++) {
      const int64_t position = done + i, at = start + i;
      job.ids[at] = job.tokens[row * job.tokens_width + position];
      job.positions[at] = position;
      job.slots[at] = job.tables[row * job.tables_width + position / job.block_size] * job.block_size + position % job.block_size;
    }
    job.kv_lens[request] = done + count;
    if (job.advanced) job.advanced[row] = done + count;
  });
}

void pick(const Pick &job, bool, const Team &team) {
  team.share(job.lines, [&](int64_t line) {
    memcpy((char *)job.out + line * job.bytes, (const char *)job.table + job.ids[line] * job.bytes, job.bytes);
  });
}

// Sine and cosine of what is left of an angle after `quarters` quarter turns, |rest| <= pi / 4, by their Taylor series.
INLINE void sine_and_cosine(f32x16 rest, i32x16 quarters, f32x16 &sine, f32x16 &cosine) {
  f32x16 square = rest * rest;
  f32x16 s = rest + rest * square * (-1.0f / 6 + square * (1.0f / 120 + square * (-1.0f / 5040 + square / 362880)));
  f32x16 c = 1.0f + square * (-0.5f + square * (1.0f / 24 + square * (-1.0f / 720 + square / 40320)));
  i32x16 odd = (quarters & 1) != 0;
  sine = odd ? c : s, cosine = odd ? s : c;
  sine = (quarters & 2) != 0 ? -sine : sine;
  cosine = ((quarters + 1) & 2) != 0 ? -cosine : cosine;
}

template <class T> static void turn_tokens(const Turn &job, const Team &team) {
  team.share(job.tokens, [&](int64_t token) {
    const float position = job.positions[token];
    for (int64_t d = 0; d < job.half; d += LANES) {
      const int many = least(LANES, job.half - d);
      f32x16 rest = {}, sine, cosine;
      i32x16 quarters = {};
      for (int i = 0; i < many; i++) {  // in double: a position may be many thousand turns
        double angle = position * job.frequency[d + i], whole = __builtin_rint(angle * 0.63661977236758134);
        rest[i] = angle - whole * 1.5707963267948966, quarters[i] = whole;
      }
      sine_and_cosine(rest, quarters, sine, cosine);
      put_some((T *)job.cos + token * job.half + d, cosine * job.scale, many);
      put_some((T *)job.sin + token * job.half + d, sine * job.scale, many);
    }
  });
}
void turn(const Turn &job, bool wide, const Team &team) {
  if (wide) turn_tokens<float>(job, team);
  else turn_tokens<bf16>(job, team);
}

// The first of the largest; NaN is never chosen unless there is nothing else.
template <class T> static int64_t first_largest(const T *x, int64_t size) {
  f32x16 top = splat(-__builtin_inff());
  i32x16 at = {};
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) {
    f32x16 value = get(x + i);
    i32x16 better = value > top;
    top = better ? value : top, at = better ? splat((int32_t)i) : at;
  }
  float peak = largest(top);
  int64_t found = size;
  for (int lane = 0; lane < LANES; lane++)
    if (top[lane] == peak) found = least(found, at[lane] + lane);
  for (; i < size; i++)
    if (number(x[i]) > peak) peak = number(x[i]), found = i;
  return found < size ? found : 0;
}

void choose(const Choose &job, bool wide, const Team &team) {
  team.share(job.lines, [&](int64_t line) {
    const int64_t at = line * job.vocab;
    int64_t id = wide ? first_largest((const float *)job.logits + at, job.vocab)
                      : first_largest((const bf16 *)job.logits + at, job.vocab);
    job.ids[line] = id;
    if (!job.rows) return;
    int32_t row = job.rows[line];
    job.tokens[row * job.tokens_width + job.lens[row]++] = id;
  });
}
