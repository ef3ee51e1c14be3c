// The threads that run a list of jobs together, in one parallel region from the first to the last: between two jobs they
// meet at a barrier, which costs a third of a microsecond where opening a region costs one or more.
//
//   items     | thread 0: in order ------> | thread 1: in order ------> |     who is done helps the others
//
// Each has a stretch of its own, because memory is read fastest when every core follows one stream: dealing panels of
// 48 KiB out by turns reads 35 GB/s where this reads 60.

#pragma once
#include "lanes.h"

extern "C" int omp_get_thread_num(void);
extern "C" int omp_get_num_threads(void);

struct alignas(64) Stretch {
  uint64_t left;  // end << 32 | next
};

struct Team {
  int me, num;
  Stretch *stretches;  // [num]
  char *scratch;       // working memory that all threads see, as much as the job's `scratch_of` asks for

  void meet(void) const {
#pragma omp barrier
  }

  // Calls work(item) once for each of [0, total), by any thread; `meet` before sharing again. A stretch that its owner
  // has not set yet is still used up from before, so nobody takes anything wrong from it.
  template <class Work> void share(int64_t total, Work work) const {
    uint64_t first = total * me / num, end = total * (me + 1) / num;
    __atomic_store_n(&stretches[me].left, end << 32 | first, __ATOMIC_RELEASE);
    for (int i = 0; i < num; i++) {
      uint64_t *left = &stretches[(me + i) % num].left;
      for (uint64_t at = __atomic_load_n(left, __ATOMIC_ACQUIRE); (uint32_t)at < at >> 32;) {
        at = __atomic_fetch_add(left, 1, __ATOMIC_ACQ_REL);
        if ((uint32_t)at < at >> 32) work((int64_t)(uint32_t)at);
      }
    }
  }
};
