// Sixteen numbers at a time, without any header of the compiler's: GCC and Clang lower these vectors to whatever the
// machine has (AVX-512, AVX2, SSE, NEON), and compiling takes a second instead of three. Only the dot products that
// no vector type can express are written as instructions.

#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

extern "C" int omp_get_max_threads(void);
extern "C" void *malloc(size_t);
extern "C" void free(void *);

// Working memory of this thread, kept between calls and grown when needed; the contents are lost then. `purpose` tells
// apart what one thread holds at the same time.
enum { OWN, SHARED };
template <int purpose> INLINE void *borrowed(size_t bytes) {
  static thread_local struct {
    char *start;
    size_t size;
  } held;
  if (held.size < bytes) {
    free(held.start);
    held.size = bytes + bytes / 4;
    held.start = (char *)malloc(held.size + 64);
  }
  return (void *)(((uintptr_t)held.start + 63) & ~(uintptr_t)63);
}
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef uint16_t bf16;  // the upper half of a float

template <class V> INLINE V load(const void *from) {
  V out;
  memcpy(&out, from, sizeof(V));
  return out;
}
template <class V> INLINE void store(void *to, V value) { memcpy(to, &value, sizeof(V)); }
INLINE f32x16 splat(float value) { return (f32x16){} + value; }
INLINE i32x16 splat(int32_t value) { return (i32x16){} + value; }

INLINE float widen(bf16 x) {
  uint32_t bits = (uint32_t)x << 16;
  float out;
  memcpy(&out, &bits, 4);
  return out;
}
INLINE bf16 narrow(float x) {  // to nearest even; NaN stays NaN
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (x != x) return (bf16)(bits >> 16 | 64);
  return (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
INLINE f32x16 widen(u16x16 x) { return (f32x16)(__builtin_convertvector(x, u32x16) << 16); }
INLINE u16x16 narrow(f32x16 x) {
#ifdef __AVX512BF16__
  u16x16 out;
  asm("vcvtneps2bf16 %1, %0" : "=v"(out) : "v"(x));
  return out;
#else
  u32x16 bits = (u32x16)x;
  u32x16 rounded = bits + 0x7fff + (bits >> 16 & 1);
  rounded = x != x ? (bits | 0x400000) : rounded;
  return __builtin_convertvector(rounded >> 16, u16x16);
#endif
}

INLINE f32x16 get(const float *from) { return load<f32x16>(from); }
INLINE f32x16 get(const bf16 *from) { return widen(load<u16x16>(from)); }
INLINE void put(float *to, f32x16 value) { store(to, value); }
INLINE void put(bf16 *to, f32x16 value) { store(to, narrow(value)); }
INLINE float number(float x) { return x; }
INLINE float number(bf16 x) { return widen(x); }
INLINE void put_one(float *to, float value) { *to = value; }
INLINE void put_one(bf16 *to, float value) { *to = narrow(value); }

// Up to 16 of them.
template <class T> INLINE void put_some(T *to, f32x16 value, int64_t many) {
  if (many >= LANES) return put(to, value);
  for (int64_t i = 0; i < many; i++) put_one(to + i, value[i]);
}
template <class T> INLINE f32x16 get_some(const T *from, int64_t many) {
  if (many >= LANES) return get(from);
  f32x16 out = {};
  for (int64_t i = 0; i < many; i++) out[i] = number(from[i]);
  return out;
}

INLINE f32x16 largest(f32x16 a, f32x16 b) { return a > b ? a : b; }

// Across the lanes: fold the halves together four times.
#define FOLD(x, op)                                                                                              \
  x = op(x, __builtin_shuffle(x, (i32x16){8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7}));                \
  x = op(x, __builtin_shuffle(x, (i32x16){4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11}));                \
  x = op(x, __builtin_shuffle(x, (i32x16){2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13}));                \
  x = op(x, __builtin_shuffle(x, (i32x16){1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14}));
INLINE f32x16 added(f32x16 a, f32x16 b) { return a + b; }
INLINE float sum(f32x16 x) {
  FOLD(x, added)
  return x[0];
}
INLINE float largest(f32x16 x) {
  FOLD(x, largest)
  return x[0];
}

// e^x for x <= 88: 2^n with the fraction by its Taylor series; 0 below -87, relative error 2e-7.
INLINE f32x16 exponential(f32x16 x) {
  const f32x16 floor_x = splat(-87.0f);
  i32x16 tiny = x < floor_x;
  x = tiny ? floor_x : x;
  f32x16 turns = x * 1.44269504f;
  f32x16 shifted = turns + 12582912.0f;  // 1.5 * 2^23: the integer part lands in the low bits
  i32x16 whole = (i32x16)shifted - 0x4b400000;
  f32x16 n = shifted - 12582912.0f;
  f32x16 r = x - n * 0.693145752f - n * 1.42860677e-6f;  // ln 2 in two parts
  f32x16 p = splat(1.0f / 720);
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  f32x16 out = p * (f32x16)((whole + 127) << 23);
  return tiny ? splat(0.0f) : out;
}
INLINE f32x16 silu(f32x16 x) {
  f32x16 low = x < -80.0f ? splat(-80.0f) : x;  // below that the result is 0 to every digit that counts
  return x / (1.0f + exponential(-low));
}

// Two bf16 in each lane: sum += a.low * b.low + a.high * b.high.
INLINE void dot_pairs(f32x16 &sum, i32x16 a, i32x16 b) {
#ifdef __AVX512BF16__
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
  sum += (f32x16)((u32x16)a << 16) * (f32x16)((u32x16)b << 16);
  sum += (f32x16)((u32x16)a & 0xffff0000u) * (f32x16)((u32x16)b & 0xffff0000u);
#endif
}

INLINE void dot_one(f32x16 &sum, i32x16 a, i32x16 b) { sum += (f32x16)a * (f32x16)b; }

// Four bytes in each lane, a without sign, b with: sum += a0 b0 + a1 b1 + a2 b2 + a3 b3.
INLINE void dot_bytes(i32x16 &sum, i32x16 a, i32x16 b) {
#if defined(__AVX512VNNI__)
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
  for (int shift = 0; shift < 32; shift += 8) sum += (i32x16)((u32x16)a >> shift & 255) * (b << (24 - shift) >> 24);
#endif
}
