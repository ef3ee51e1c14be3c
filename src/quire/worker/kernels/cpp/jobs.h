// What a step is made of: jobs of a few kinds, each run by all threads of a team. Pointers are to tensors that the caller
// keeps alive; the structures are those of native_jobs.py, field by field.

#pragma once
#include "team.h"

struct Linear {          // x [rows, in] times packed weights
  const void *x;
  const void *weight;    // panels, see linear.cpp
  const float *scales;   // [panels * 32] of int8 weights
  const int32_t *sums;   // [panels * 32] of int8 weights: 128 times the sum of the column
  const void *bias;      // [out], in the columns' own order, or null
  void *out;             // [rows, out], gated: [rows, out / 2]
  int64_t rows, in, outs;
  int32_t layout;        // 0: columns in order, 1: half gate, half up in each panel
  int32_t gate;          // with layout 1: 1 applies silu(gate) * up, 0 writes both
};

struct Groups {          // x [rows, in] times weights of 4 or 8 bits in groups of inputs, see groups.cpp
  const void *x;
  const void *weight;    // panels
  const float *scales;   // [panels][groups][32]
  const float *zeros;    // the same, or null: the middle
  const int32_t *order;  // [in] which input each column of the weights multiplies, or null: its own
  const void *bias;      // as in Linear
  void *out;
  int64_t rows, in, outs, group;
  int32_t layout, gate;  // as in Linear
  int32_t bits;          // 4 or 8
};

struct Norm {
  const void *x, *weight;  // [rows, size], [size]
  void *residual;          // [rows, size] or null: x is added to it in place, and the sum is normalised
  void *out;
  int64_t rows, size;
  float eps;
};

struct Store {
  const void *qkv;                    // [tokens, (heads + 2 kv_heads) * dim]
  const void *q_norm, *k_norm;        // [dim] or null
  const void *cos, *sin;              // [tokens, dim / 2] or null
  const int64_t *slots;               // [tokens]
  void *kv, *q_out;                   // as in Attend
  int64_t tokens, heads, kv_heads, dim, block_size;
  float eps;
};

struct Attend {
  const void *q;            // [tokens, heads, dim]
  const void *kv;           // [blocks, kv_heads, 2, block_size * dim]
  void *out;                // [tokens, heads, dim]
  const int32_t *tables;    // [rows, table_width]
  const int32_t *rows;      // [requests]
  const int32_t *starts;    // [requests + 1] first token of each
  const int32_t *kv_lens;   // [requests]
  int64_t table_width, requests, heads, kv_heads, dim, block_size, window;  // window 0: none
  float scale, soft_cap;    // soft_cap 0: none
};

struct Gather {               // the inputs of a step from the tables of the rows, see worker/rows.py
  const int32_t *rows;        // [requests]
  const int32_t *starts;      // [requests + 1] first token of each
  const int32_t *computed;    // by row
  const int32_t *tokens;      // [rows, tokens_width]
  const int32_t *tables;      // [rows, tables_width]
  int32_t *ids;               // [tokens], as are the next two
  int64_t *positions, *slots;
  int32_t *kv_lens;           // [requests]
  int32_t *advanced;          // by row: also written there, or null
  int64_t requests, tokens_width, tables_width, block_size;
};

struct Pick {                 // lines of a table: [lines] -> [lines, bytes]
  const int32_t *ids;
  const void *table;
  void *out;
  int64_t lines, bytes;
};

struct Turn {                 // cos and sin of position times frequency, times scale: [tokens, half]
  const int64_t *positions;
  const float *frequency;
  void *cos, *sin;
  int64_t tokens, half;
  float scale;
};

struct Choose {               // the most likely token of each line, appended to its row
  const void *logits;         // [lines, vocab]
  int64_t *ids;               // [lines]
  const int32_t *rows;        // [lines], or null: nothing is appended
  int32_t *tokens, *lens;     // [rows, tokens_width], by row
  int64_t lines, vocab, tokens_width;
};

// `wide`: activations are float, else bf16.
void linear_bf16(const Linear &, bool wide, const Team &);
void linear_int8(const Linear &, bool wide, const Team &);
void norm(const Norm &, bool wide, const Team &);
void store_paged(const Store &, bool wide, const Team &);
void attend_paged(const Attend &, bool wide, const Team &);
void gather(const Gather &, bool wide, const Team &);
void pick(const Pick &, bool wide, const Team &);
void turn(const Turn &, bool wide, const Team &);
void choose(const Choose &, bool wide, const Team &);
void linear_groups(const Groups &, bool wide, const Team &);

// Bytes of scratch that a job wants.
int64_t linear_scratch(const Linear &);
int64_t attend_scratch(const Attend &);
int64_t groups_scratch(const Groups &);

// Where a block keeps its numbers, see attention.cpp.
INLINE bool wide_form(int64_t block_size, int64_t dim) { return block_size % 16 == 0 && dim % 16 == 0; }
#define MOST_DIM 512
