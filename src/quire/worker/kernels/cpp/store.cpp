// What the product of q, k and v becomes: heads normalised and turned, k and v in their places in the cache. The forms of
// a block are drawn in attention.cpp.

#include "jobs.h"

// `many` heads side by side, normalised and turned, in their own number format. x [many, dim], cos, sin [dim / 2].
template <class T>
INLINE void finish_heads(const T *x, const T *norm, float eps, const T *cos, const T *sin, int many, int dim, T *out) {
  const int half = dim / 2, whole = half % LANES ? 0 : half;  // of the half, in vectors
  for (int head = 0; head < many; head++, x += dim, out += dim) {
    const T *from = x;
    if (norm) {  // rounded before the weight and after it, as the model was trained
      float squares = 0;
      for (int d = 0; d < whole; d += LANES) squares += sum(get(x + d) * get(x + d) + get(x + half + d) * get(x + half + d));
      for (int d = whole; d < half; d++) squares += number(x[d]) * number(x[d]) + number(x[half + d]) * number(x[half + d]);
      float inverse = 1 / __builtin_sqrtf(squares / dim + eps);
      for (int d = 0; d < 2 * whole; d += LANES) {
        put(out + d, get(x + d) * inverse);
        put(out + d, get(out + d) * get(norm + d));
      }
      for (int d = 2 * whole; d < dim; d++) {
        put_one(out + d, number(x[d]) * inverse);
        put_one(out + d, number(out[d]) * number(norm[d]));
      }
      from = out;
    }
    if (!cos) {
      if (from != out) memcpy(out, from, dim * sizeof(T));
      continue;
    }
    for (int d = 0; d < whole; d += LANES) {
      f32x16 c = get(cos + d), s = get(sin + d), a = get(from + d), b = get(from + half + d);
      put(out + d, a * c - b * s);
      put(out + half + d, b * c + a * s);
    }
    for (int d = whole; d < half; d++) {
      float c = number(cos[d]), s = number(sin[d]), a = number(from[d]), b = number(from[half + d]);
      put_one(out + d, a * c - b * s);
      put_one(out + half + d, b * c + a * s);
    }
  }
}

// A head of one token into the wide form of its block: K [dim / P][size][P], V [size / P][dim][P].
INLINE void place_wide(const float *key, const float *value, float *k, float *v, int at, int dim, int size) {
  for (int d = 0; d < dim; d++) k[d * size + at] = key[d];
  memcpy(v + at * dim, value, dim * sizeof(float));
}
INLINE void place_wide(const bf16 *key, const bf16 *value, bf16 *k, bf16 *v, int at, int dim, int size) {
  for (int d = 0; d < dim; d += 2) memcpy(k + (d / 2 * size + at) * 2, key + d, 4);
  const int shift = at % 2 * 16;
  const u32x16 kept = (u32x16){} + (0xffff0000u >> shift);  // the other token's half of each pair
  bf16 *pairs = v + at / 2 * dim * 2;
  for (int d = 0; d < dim; d += LANES) {
    u32x16 new_half = __builtin_convertvector(load<u16x16>(value + d), u32x16) << shift;
    store(pairs + 2 * d, (load<u32x16>(pairs + 2 * d) & kept) | new_half);
  }
}

template <class T> static void store_token(const Store &job, int64_t token) {
  const int dim = job.dim, size = job.block_size;
  const int64_t head_size = (int64_t)size * dim, width = (job.heads + 2 * job.kv_heads) * dim;
  const T *x = (const T *)job.qkv + token * width, *keys = x + job.heads * dim, *values = keys + job.kv_heads * dim;
  const T *cos = job.cos ? (const T *)job.cos + token * dim / 2 : 0;
  const T *sin = job.sin ? (const T *)job.sin + token * dim / 2 : 0;
  finish_heads(x, (const T *)job.q_norm, job.eps, cos, sin, job.heads, dim, (T *)job.q_out + token * job.heads * dim);
  const int64_t block = job.slots[token] / size;
  const int at = job.slots[token] % size;
  for (int head = 0; head < job.kv_heads; head++) {
    alignas(64) T key[MOST_DIM];
    finish_heads(keys + head * dim, (const T *)job.k_norm, job.eps, cos, sin, 1, dim, key);
    T *k = (T *)job.kv + (block * job.kv_heads + head) * 2 * head_size, *v = k + head_size;
    if (wide_form(size, dim)) {
      place_wide(key, values + head * dim, k, v, at, dim, size);
    } else {
      memcpy(k + at * dim, key, dim * sizeof(T));
      memcpy(v + at * dim, values + head * dim, dim * sizeof(T));
    }
  }
}

#define TOGETHER 16  // tokens that one thread takes at a time: they often share a block

void store_paged(const Store &job, bool wide, const Team &team) {
  team.share((job.tokens + TOGETHER - 1) / TOGETHER, [&](int64_t piece) {
    for (int64_t token = piece * TOGETHER, end = least(job.tokens, token + TOGETHER); token < end; token++)
      if (wide) store_token<float>(job, token);
      else store_token<bf16>(job, token);
  });
}
