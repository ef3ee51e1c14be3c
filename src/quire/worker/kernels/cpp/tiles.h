// The products by AMX tiles: a tile has 16 rows of 64 bytes. 32 rows of x times one panel keep 2 x 2 sums in tiles:
//
//        panel:  tile 6 | tile 7
//   x:  tile 4    sum 0 | sum 1
//       tile 5    sum 2 | sum 3
//
// A panel of 32 columns is two tiles wide as it lies: a line of it is 128 bytes, one tile takes the half.

// EMULATED_TILES builds the same code with the instructions written out in C, for tests on machines without them.

static int tiles_wanted = 1;
extern "C" void use_tiles(int wanted) { tiles_wanted = wanted; }

#ifdef EMULATED_TILES
#define TILES
static bool amx_allowed(void) { return tiles_wanted; }
static thread_local uint8_t tiles[8][16][64];
INLINE void configure(void) {}
INLINE void release(void) {}
INLINE void clear_sums(void) { memset(tiles, 0, 4 * sizeof(tiles[0])); }
#define TILE_LOAD(tile, at, stride) \
  for (int i_ = 0; i_ < 16; i_++) memcpy(tiles[tile][i_], (const char *)(at) + i_ * (stride), 64)
#define TILE_STORE(tile, at, stride) \
  for (int i_ = 0; i_ < 16; i_++) memcpy((char *)(at) + i_ * (stride), tiles[tile][i_], 64)

INLINE int32_t number(uint8_t x) { return x; }
INLINE int32_t number(int8_t x) { return x; }
template <class Number, class A, class B> INLINE void emulate(int group) {
  for (int out = 0; out < 4; out++)
    for (int m = 0; m < 16; m++)
      for (int n = 0; n < 16; n++) {
        Number sum = ((Number *)tiles[out][m])[n];
        for (int k = 0; k < 16; k++)
          for (int i = 0; i < group; i++)
            sum += number(((A *)tiles[4 + out / 2][m])[k * group + i]) * number(((B *)tiles[6 + out % 2][k])[n * group + i]);
        ((Number *)tiles[out][m])[n] = sum;
      }
}
INLINE void dot_tiles_pairs(void) { emulate<float, bf16, bf16>(2); }
INLINE void dot_tiles_bytes(void) { emulate<int32_t, uint8_t, int8_t>(4); }

#elif defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define TILES
extern "C" long syscall(long, ...);

// The kernel lets a process use tiles once it has asked.
static bool amx_allowed(void) {
  static int known = -1;
  if (known < 0) known = syscall(158, 0x1023, 18) == 0;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)
  return known && tiles_wanted;
}

struct TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
INLINE void configure(void) {
  TileConfig config = {};
  config.palette = 1;
  for (int i = 0; i < 8; i++) config.row_bytes[i] = 64, config.rows[i] = 16;
  asm volatile("ldtilecfg %0" : : "m"(config));
}

INLINE void release(void) { asm volatile("tilerelease"); }
INLINE void clear_sums(void) {
  asm volatile("tilezero %tmm0\n\ttilezero %tmm1\n\ttilezero %tmm2\n\ttilezero %tmm3");
}
#define TILE_LOAD(tile, at, stride) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(at), "r"((int64_t)(stride)) : "memory")
#define TILE_STORE(tile, at, stride) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(at), "r"((int64_t)(stride)) : "memory")
#define TILE_FOUR(op)                                                                            \
  asm volatile(op " %tmm6, %tmm4, %tmm0\n\t" op " %tmm7, %tmm4, %tmm1\n\t" op " %tmm6, %tmm5, %tmm2\n\t" op \
                  " %tmm7, %tmm5, %tmm3")

INLINE void dot_tiles_pairs(void) { TILE_FOUR("tdpbf16ps"); }
INLINE void dot_tiles_bytes(void) { TILE_FOUR("tdpbusd"); }
#endif

#ifdef TILES
#define AMX_ROWS 5  // fewer rows are faster in vectors

struct AmxPairs {
  typedef f32x16 Sum;
  static const int bytes = 2;
  INLINE void dot(void) { dot_tiles_pairs(); }
};
struct AmxBytes {
  typedef i32x16 Sum;
  static const int bytes = 1;
  INLINE void dot(void) { dot_tiles_bytes(); }
};

// Rows as they are; bytes are quantized into the scratch first.
template <class T>
INLINE const char *amx_inputs(const Linear &job, const AmxPairs *, const T *, float *&, const Team &) {
  return (const char *)job.x;
}
template <class T>
INLINE const char *amx_inputs(const Linear &job, const AmxBytes *, const T *type, float *&scales, const Team &team) {
  char *bytes = team.scratch;
  scales = (float *)(bytes + job.rows * job.in);
  team.share(job.rows, [&](int64_t row) {
    lay_out(job, (const Bytes *)0, type, row, 1, (int32_t *)(bytes + row * job.in), scales);
  });
  team.meet();
  return bytes;
}

template <class Kind, class T> static void amx_multiply(const Linear &job, const Team &team) {
  typedef typename Kind::Sum Sum;
  const int64_t line = job.in * Kind::bytes, panels = panels_of(job), chunks = (job.rows + CHUNK - 1) / CHUNK;
  float *scales = 0;
  const char *x = amx_inputs(job, (const Kind *)0, (const T *)0, scales, team);
  alignas(64) Sum sums[2 * LANES][2];
  alignas(64) char patch[32 * 64] = {};  // the inputs of a tile that is not full
  configure();
  team.share(chunks * panels, [&](int64_t item) {
    int64_t panel = item % panels, first = item / panels * CHUNK, end = least(job.rows, first + CHUNK);
    const char *weights = (const char *)job.weight + panel * PANEL * line;
    for (int64_t row = first; row < end; row += 32) {
      int64_t many = least(32, end - row);
      clear_sums();
      for (int64_t k = 0; k < line; k += 64) {
        const char *at = x + row * line + k;
        if (many == 32) {
          TILE_LOAD(4, at, line);
          TILE_LOAD(5, at + 16 * line, line);
        } else {
          for (int64_t i = 0; i < many; i++) memcpy(patch + i * 64, at + i * line, 64);
          TILE_LOAD(4, patch, 64);
          TILE_LOAD(5, patch + 16 * 64, 64);
        }
        TILE_LOAD(6, weights + k * PANEL, 128);
        TILE_LOAD(7, weights + k * PANEL + 64, 128);
        Kind::dot();
      }
      TILE_STORE(0, &sums[0][0], 128);
      TILE_STORE(1, &sums[0][1], 128);
      TILE_STORE(2, &sums[16][0], 128);
      TILE_STORE(3, &sums[16][1], 128);
      for (int64_t i = 0; i < many; i++)
        write<T>(job, finished(job, sums[i][0], row + i, panel * PANEL, scales),
                 finished(job, sums[i][1], row + i, panel * PANEL + 16, scales), row + i, panel);
    }
  });
  release();
}
#endif
