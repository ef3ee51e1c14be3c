// Many jobs in one call, in order, by one team. Kinds are those of `KINDS` in native_jobs.py.

#include "jobs.h"

static int64_t scratch_of(int kind, const void *job) {
  if (kind <= 1) return linear_scratch(*(const Linear *)job);
  if (kind == 9) return groups_scratch(*(const Groups *)job);
  return kind == 4 ? attend_scratch(*(const Attend *)job) : 0;
}

static void run(int kind, const void *job, bool wide, const Team &team) {
  switch (kind) {
    case 0: return linear_bf16(*(const Linear *)job, wide, team);
    case 1: return linear_int8(*(const Linear *)job, wide, team);
    case 2: return norm(*(const Norm *)job, wide, team);
    case 3: return store_paged(*(const Store *)job, wide, team);
    case 4: return attend_paged(*(const Attend *)job, wide, team);
    case 5: return gather(*(const Gather *)job, wide, team);
    case 6: return pick(*(const Pick *)job, wide, team);
    case 7: return turn(*(const Turn *)job, wide, team);
    case 8: return choose(*(const Choose *)job, wide, team);
    case 9: return linear_groups(*(const Groups *)job, wide, team);
  }
}

extern "C" void run_jobs(const int32_t *kinds, const void *const *jobs, const int32_t *wide, int64_t num) {
  int64_t scratch = 0;
  for (int64_t i = 0; i < num; i++) scratch = most(scratch, scratch_of(kinds[i], jobs[i]));
  const int64_t ranges = omp_get_max_threads() * sizeof(Stretch);
  char *shared = (char *)borrowed<SHARED>(ranges + scratch);
  memset(shared, 0, ranges);
#pragma omp parallel
  {
    const Team team = {omp_get_thread_num(), omp_get_num_threads(), (Stretch *)shared, shared + ranges};
    for (int64_t i = 0; i < num; i++) {
      run(kinds[i], jobs[i], wide[i], team);
      if (i + 1 < num) team.meet();
    }
  }
}
