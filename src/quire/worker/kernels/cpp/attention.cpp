// Attention over the paged cache, which is read where it lies. One block of one head:
//
//   wide form   K  [head_dim / P][block_size][P]     V  [block_size / P][head_dim][P]     P = 2 for bf16, 1 for float
//   plain form  K  [block_size][head_dim]            V  [block_size][head_dim]
//
// In the wide form 16 lanes are 16 tokens for the scores and 16 dimensions for the output, and each lane holds the two
// numbers that a bf16 dot product wants: no sum ever crosses the lanes. It needs blocks of a multiple of 16 tokens and
// heads of a multiple of 16; all else takes the plain form.
//
// The query heads that share a KV head, and the tokens of a chunk, are rows of one tile. Work is cut into items
// (request, KV head, rows, stretch of keys); stretches of the same rows are merged at the end.

#include "jobs.h"

#define STEP 64        // keys between two looks at the running maximum
#define TILE 8         // most rows at once
#define ITEM_ROWS 64   // most rows of an item: they share K and V while those are in the cache
#define STRETCH 256    // fewest keys of a stretch
#define NONE (-__builtin_inff())

struct Item {
  int32_t request, head, first_row, num_rows;  // rows are token * group + head in group
  int32_t low, high;                           // keys [low, high)
  int32_t part;                                // of partial results, -1: the rows are done by this item alone
};

struct Float {
  typedef float T;
  static const int per_lane = 1;
  INLINE void dot(f32x16 &sum, i32x16 a, i32x16 b) { dot_one(sum, a, b); }
};
struct Half {
  typedef bf16 T;
  static const int per_lane = 2;
  INLINE void dot(f32x16 &sum, i32x16 a, i32x16 b) { dot_pairs(sum, a, b); }
};

// Where a row stands: its token, query head and the keys it sees.
struct Row {
  int64_t at;  // of its vector in q and out
  int32_t low, high;
};
INLINE Row row_of(const Attend &job, const Item &item, int index) {
  int group = job.heads / job.kv_heads, start = job.starts[item.request], count = job.starts[item.request + 1] - start;
  int token = (item.first_row + index) / group, head = item.head * group + (item.first_row + index) % group;
  int position = job.kv_lens[item.request] - count + token;
  Row row = {((start + token) * job.heads + head) * job.dim, 0, position + 1};
  if (job.window) row.low = most(0, position + 1 - job.window);
  return row;
}

// What a tile knows of its rows so far.
struct State {
  alignas(64) int32_t q[TILE][MOST_DIM];
  alignas(64) float scores[TILE][STEP];
  alignas(64) int32_t weights[TILE][STEP];  // softmax weights, per_lane of them in each
  alignas(64) float out[TILE][MOST_DIM];
  f32x16 mass[TILE];
  float peak[TILE], shrink[TILE];
};

// Scores of up to STEP keys from `key` on become weights; a new maximum shrinks what was summed before.
template <class Kind> INLINE void weigh(const Attend &job, State &s, const Row *rows, int num, int key, int many) {
  const f32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  int vectors = (many + 15) / 16;
  for (int r = 0; r < num; r++) {
    f32x16 top = splat(s.peak[r]);
    for (int v = 0; v < vectors; v++) {
      f32x16 score = get(s.scores[r] + 16 * v) * job.scale;
      if (job.soft_cap > 0) {  // cap * tanh(score / cap)
        f32x16 turned = exponential(-2.0f * (score < 0 ? -score : score) / job.soft_cap);
        f32x16 capped = job.soft_cap * (1.0f - turned) / (1.0f + turned);
        score = score < 0 ? -capped : capped;
      }
      int from = key + 16 * v;
      if (from < rows[r].low || from + 16 > rows[r].high) {
        i32x16 seen = (lane >= (float)(rows[r].low - from)) & (lane < (float)(rows[r].high - from));
        score = seen ? score : splat(NONE);
      }
      put(s.scores[r] + 16 * v, score);
      top = largest(top, score);
    }
    float peak = largest(top), base = peak == NONE ? 0 : peak;  // nothing seen yet: all weights become 0
    s.shrink[r] = s.peak[r] == NONE ? 0 : exponential(splat(s.peak[r] - base))[0];
    s.peak[r] = peak;
    f32x16 mass = s.mass[r] * s.shrink[r];
    for (int v = 0; v < vectors; v++) {
      f32x16 weight = exponential(get(s.scores[r] + 16 * v) - base);
      mass += weight;
      put((typename Kind::T *)s.weights[r] + 16 * v, weight);
    }
    s.mass[r] = mass;
  }
}

// ---- wide form ------------------------------------------------------------------------------------------------------

// G groups of 16 keys at once: sums that wait for one another would leave the core idle.
template <class Kind, int R, int G>
INLINE void score_keys(State &s, const int32_t *const *k, int lines, int64_t stride, int at) {
  f32x16 sums[G][R] = {};
  for (int d = 0; d < lines; d++) {
#pragma GCC unroll 4
    for (int g = 0; g < G; g++) {
      i32x16 keys = load<i32x16>(k[g] + d * stride);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) Kind::dot(sums[g][r], keys, splat(s.q[r][d]));
    }
  }
#pragma GCC unroll 4
  for (int g = 0; g < G; g++)
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) put(s.scores[r] + at + 16 * g, sums[g][r]);
}

template <class Kind, int R, int D>
INLINE void add_values(State &s, const int32_t *const *lines, int first, int last, int at) {
  f32x16 sums[R][D];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int d = 0; d < D; d++) sums[r][d] = get(s.out[r] + at + 16 * d) * s.shrink[r];
  for (int i = first; i < last; i++) {
#pragma GCC unroll 8
    for (int d = 0; d < D; d++) {
      i32x16 values = load<i32x16>(lines[i] + at + 16 * d);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) Kind::dot(sums[r][d], values, splat(s.weights[r][i]));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int d = 0; d < D; d++) put(s.out[r] + at + 16 * d, sums[r][d]);
}

// K of the block that holds a key; V lies behind it.
INLINE const int32_t *place(const Attend &job, const Item &item, int key, int64_t head_words) {
  int32_t block = job.tables[job.rows[item.request] * job.table_width + key / (int)job.block_size];
  return (const int32_t *)job.kv + (block * job.kv_heads + item.head) * 2 * head_words;
}

// K and V of 16 keys; those behind the end of an item are the first of the next one.
INLINE void fetch_early(const Attend &job, const Item &item, const Item *next, int key, int high, int64_t head_words) {
  const Item *of = &item;
  if (key >= high) {
    key += (next ? next->low : 0) / 16 * 16 - (high + 15) / 16 * 16;
    if (!next || key >= next->high) return;
    of = next;
  }
  const char *from = (const char *)place(job, *of, key, head_words);
  for (int64_t byte = 0; byte < head_words * 8; byte += 64) __builtin_prefetch(from + byte, 0, 2);
}

template <class Kind, int R>
static __attribute__((noinline)) void tile(const Attend &job, const Item &item, const Item *next, State &s,
                                           const Row *rows, int low, int high) {
  const int P = Kind::per_lane, dim = job.dim, size = job.block_size;
  const int64_t head_words = size * dim / P;
  alignas(64) int32_t edge[2][MOST_DIM];  // lines of V of which one token must not be touched, not even times 0
  const int32_t *lines[STEP / P];
  for (int key = low / 16 * 16; key < high; key += STEP) {
    int many = least(STEP, high - key), groups = (many + 15) / 16;
    const int32_t *keys[STEP / 16];
    for (int g = 0; g < STEP / 16; g++) {
      int from = key + 16 * (g < groups ? g : 0);  // groups behind the end repeat the first; nobody looks at them
      const int32_t *block = place(job, item, from, head_words);
      keys[g] = block + from % size;
      for (int i = 0; i < 16 / P; i++) lines[g * (16 / P) + i] = block + head_words + (from % size / P + i) * dim;
    }
    const int G = R <= 2 ? 4 : R == 4 ? 2 : 1;
    for (int g = 0; g < groups; g += G) {
      for (int from = key + 16 * g + STEP; R <= 4 && size == 16 && from < key + 16 * (g + G) + STEP; from += 16)
        fetch_early(job, item, next, from, high, head_words);
      score_keys<Kind, R, G>(s, keys + g, dim / P, size, 16 * g);
    }
    weigh<Kind>(job, s, rows, R, key, many);
    int first = most(0, low - key) / P, last = (many + P - 1) / P;
    if (P == 2 && low > key && low % 2) {
      for (int d = 0; d < dim; d++) edge[0][d] = lines[first][d] & 0xffff0000;
      lines[first] = edge[0];
    }
    if (P == 2 && many % 2) {
      for (int d = 0; d < dim; d++) edge[1][d] = lines[last - 1][d] & 0xffff;
      lines[last - 1] = edge[1];
    }
    const int D = R <= 2 ? 8 : R == 4 ? 4 : 2;
    int d = 0;
    for (; d + 16 * D <= dim; d += 16 * D) add_values<Kind, R, D>(s, lines, first, last, d);
    for (; D > 4 && d + 64 <= dim; d += 64) add_values<Kind, R, 4>(s, lines, first, last, d);
    for (; d < dim; d += 16) add_values<Kind, R, 1>(s, lines, first, last, d);
  }
}

// ---- plain form -----------------------------------------------------------------------------------------------------

template <class Kind>
static void plain_tile(const Attend &job, const Item &item, State &s, const Row *rows, int num, int low, int high) {
  typedef typename Kind::T T;
  const int dim = job.dim, size = job.block_size;
  const int64_t head = (int64_t)size * dim;
  for (int key = low; key < high; key += STEP) {
    int many = least(STEP, high - key);
    for (int i = 0; i < STEP; i++) {
      for (int r = 0; r < num; r++) {
        float score = NONE;
        if (i < many) {
          const T *k = (const T *)job.kv, *q = (const T *)job.q + rows[r].at;
          int32_t block = job.tables[job.rows[item.request] * job.table_width + (key + i) / size];
          k += (block * job.kv_heads + item.head) * 2 * head + (key + i) % size * dim;
          score = 0;
          for (int d = 0; d < dim; d++) score += number(q[d]) * number(k[d]);
        }
        s.scores[r][i] = score;
      }
    }
    weigh<Kind>(job, s, rows, num, key, STEP);
    for (int r = 0; r < num; r++) {
      for (int d = 0; d < dim; d++) s.out[r][d] *= s.shrink[r];
      for (int i = 0; i < many; i++) {
        float weight = number(((T *)s.weights[r])[i]);
        if (key + i < rows[r].low || key + i >= rows[r].high) continue;
        const T *v = (const T *)job.kv;
        int32_t block = job.tables[job.rows[item.request] * job.table_width + (key + i) / size];
        v += ((block * job.kv_heads + item.head) * 2 + 1) * head + (key + i) % size * dim;
        for (int d = 0; d < dim; d++) s.out[r][d] += weight * number(v[d]);
      }
    }
  }
}

// ---- items ----------------------------------------------------------------------------------------------------------

template <class T> INLINE void put_all(T *to, const float *from, float scale, int dim) {
  int d = 0;
  for (; d + LANES <= dim; d += LANES) put(to + d, get(from + d) * scale);
  for (; d < dim; d++) put_one(to + d, from[d] * scale);
}

// Up to TILE rows of an item; a part keeps [rows of the item][dim + 2]: the sum, its maximum and its mass.
template <class Kind>
static void run_tile(const Attend &job, const Item &item, const Item *next, int offset, int num, float *parts,
                     int64_t part_size) {
  typedef typename Kind::T T;
  const int dim = job.dim;
  static thread_local State s;
  Row rows[TILE];
  int low = item.high, high = item.low;
  int width = num <= 1 ? 1 : num <= 2 ? 2 : num <= 4 ? 4 : 8;
  for (int r = 0; r < width; r++) {
    rows[r] = r < num ? row_of(job, item, offset + r) : (Row){rows[0].at, 0, 0};
    rows[r].low = most(rows[r].low, item.low), rows[r].high = least(rows[r].high, item.high);
    if (r < num && rows[r].low < rows[r].high) low = least(low, rows[r].low), high = most(high, rows[r].high);
    memcpy(s.q[r], (const T *)job.q + rows[r].at, dim * sizeof(T));
    memset(s.out[r], 0, dim * sizeof(float));
    s.mass[r] = splat(0.0f), s.peak[r] = NONE;
  }
  if (!wide_form(job.block_size, job.dim)) plain_tile<Kind>(job, item, s, rows, width, low, high);
  else if (width == 1) tile<Kind, 1>(job, item, next, s, rows, low, high);
  else if (width == 2) tile<Kind, 2>(job, item, next, s, rows, low, high);
  else if (width == 4) tile<Kind, 4>(job, item, next, s, rows, low, high);
  else tile<Kind, 8>(job, item, next, s, rows, low, high);
  for (int r = 0; r < num; r++) {
    float mass = sum(s.mass[r]);
    if (item.part >= 0) {
      float *to = parts + item.part * part_size + (offset + r) * (dim + 2);
      memcpy(to, s.out[r], dim * sizeof(float));
      to[dim] = s.peak[r], to[dim + 1] = mass;
      continue;
    }
    put_all((T *)job.out + rows[r].at, s.out[r], 1 / mass, dim);
  }
}

// One row of an item from its stretches, which follow one another in `parts`.
template <class T> static void merge(const Attend &job, const Item &item, int row, int many, const float *parts, int64_t part_size) {
  const int dim = job.dim;
  const float *from = parts + item.part * part_size + row * (dim + 2);
  float peak = NONE, mass = 0;
  alignas(64) float total[MOST_DIM] = {};
  for (int i = 0; i < many; i++) peak = from[i * part_size + dim] > peak ? from[i * part_size + dim] : peak;
  for (int i = 0; i < many; i++) {
    const float *part = from + i * part_size;
    if (part[dim] == NONE) continue;
    float weight = exponential(splat(part[dim] - peak))[0];
    mass += weight * part[dim + 1];
    for (int d = 0; d < dim; d++) total[d] += weight * part[d];
  }
  put_all((T *)job.out + row_of(job, item, row).at, total, 1 / mass, dim);
}

// Keys of a stretch: all threads get several items even if one request is all there is.
static int64_t stretch_of(const Attend &job) {
  int64_t total = 0;
  for (int r = 0; r < job.requests; r++) total += job.kv_lens[r] * job.kv_heads;
  return most(STRETCH, (total / (omp_get_max_threads() * 6) + STEP - 1) / STEP * STEP);
}

// Writes the items, or only counts them; and how many parts they need.
static int64_t cut(const Attend &job, int64_t stretch, Item *items, int64_t *num_parts) {
  int64_t num = 0, group = job.heads / job.kv_heads;
  *num_parts = 0;
  for (int request = 0; request < job.requests; request++) {
    int count = job.starts[request + 1] - job.starts[request], length = job.kv_lens[request];
    int low = job.window ? most(0, length - count + 1 - job.window) : 0;
    int pieces = count > 1 ? 1 : (length - low + stretch - 1) / stretch;
    for (int head = 0; head < job.kv_heads; head++)
      for (int row = 0; row < count * group; row += ITEM_ROWS)
        for (int piece = 0; piece < pieces; piece++, num++) {
          int part = pieces > 1 ? (int)(*num_parts)++ : -1;
          if (!items) continue;
          int from = low + piece * stretch, to = pieces > 1 ? least(length, from + stretch) : length;
          items[num] = (Item){request, head, row, (int)least(ITEM_ROWS, count * group - row), from, to, part};
        }
  }
  return num;
}

INLINE int64_t part_size_of(const Attend &job) { return least(ITEM_ROWS, job.heads / job.kv_heads) * (job.dim + 2); }

int64_t attend_scratch(const Attend &job) {
  int64_t num_parts;
  cut(job, stretch_of(job), 0, &num_parts);
  return num_parts * part_size_of(job) * sizeof(float);
}

INLINE bool same_rows(const Item &a, const Item &b) {
  return a.request == b.request && a.head == b.head && a.first_row == b.first_row;
}

template <class Kind> static void attend(const Attend &job, const Team &team) {
  int64_t stretch = stretch_of(job), num_parts, num = cut(job, stretch, 0, &num_parts), part_size = part_size_of(job);
  Item *items = (Item *)borrowed<OWN>(num * sizeof(Item));  // each thread cuts for itself, all find the same
  float *parts = (float *)team.scratch;
  cut(job, stretch, items, &num_parts);
  team.share(num, [&](int64_t i) {
    for (int row = 0; row < items[i].num_rows; row += TILE)
      run_tile<Kind>(job, items[i], i + 1 < num ? &items[i + 1] : 0, row, least(TILE, items[i].num_rows - row), parts,
                     part_size);
  });
  if (!num_parts) return;
  team.meet();
  team.share(num, [&](int64_t i) {
    const Item &item = items[i];
    if (item.part < 0 || (i > 0 && same_rows(items[i - 1], item))) return;
    int many = 1;
    while (i + many < num && same_rows(items[i + many], item)) many++;
    for (int row = 0; row < item.num_rows; row++)
      merge<typename Kind::T>(job, item, row, many, parts, part_size);
  });
}

void attend_paged(const Attend &job, bool wide, const Team &team) {
  if (wide) attend<Float>(job, team);
  else attend<Half>(job, team);
}
