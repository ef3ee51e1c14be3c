// What stands between the products: norms with the residual sum.

#include "jobs.h"

template <class T> static void norm_rows(const Norm &job, const Team &team) {
  const int64_t size = job.size, whole = size / LANES * LANES;
  const T *weight = (const T *)job.weight;
  team.share(job.rows, [&](int64_t row) {
    const T *x = (const T *)job.x + row * size;
    T *out = (T *)job.out + row * size;
    f32x16 squares = {};
    float rest = 0;
    if (job.residual) {
      T *total = (T *)job.residual + row * size;
      for (int64_t i = 0; i < whole; i += LANES) {
        put(total + i, get(total + i) + get(x + i));
        f32x16 value = get(total + i);
        squares += value * value;
      }
      for (int64_t i = whole; i < size; i++) {
        put_one(total + i, number(total[i]) + number(x[i]));
        rest += number(total[i]) * number(total[i]);
      }
      x = total;
    } else {
      for (int64_t i = 0; i < whole; i += LANES) squares += get(x + i) * get(x + i);
      for (int64_t i = whole; i < size; i++) rest += number(x[i]) * number(x[i]);
    }
    float inverse = 1 / __builtin_sqrtf((sum(squares) + rest) / size + job.eps);
    for (int64_t i = 0; i < whole; i += LANES) {
      put(out + i, get(x + i) * inverse);  // rounded to the number format before the weight, as the model was trained
      put(out + i, get(out + i) * get(weight + i));
    }
    for (int64_t i = whole; i < size; i++) {
      put_one(out + i, number(x[i]) * inverse);
      put_one(out + i, number(out[i]) * number(weight[i]));
    }
  });
}
void norm(const Norm &job, bool wide, const Team &team) {
  if (wide) norm_rows<float>(job, team);
  else norm_rows<bf16>(job, team);
}

// Ask for large pages under memory that will be read through again and again.
extern "C" int madvise(void *, size_t, int);
extern "C" void advise(void *start, int64_t bytes) {
  const uintptr_t page = 2 << 20, first = ((uintptr_t)start + page - 1) & ~(page - 1);
  if ((uintptr_t)start + bytes > first + page) madvise((void *)first, ((uintptr_t)start + bytes - first) & ~(page - 1), 14);
}
