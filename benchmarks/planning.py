"""Cost of planning one step: it must grow with the rows in the step, not with the requests that wait.

    python benchmarks/planning.py

No device: the engine's scheduler is driven with made-up results. Prints microseconds per step, plan and commit
together, for 10 to 100,000 waiting requests and 1 to 256 running rows.
"""

from __future__ import annotations

import statistics
import time

from quire.engine.kv.manager import KVManager
from quire.engine.kv.pool import BlockPool
from quire.engine.scheduler.scheduler import Scheduler
from quire.messages import AddRequest, StepResult, pack_ids
from quire.params import SamplingParams

WAITING = (0, 10, 1_000, 100_000)
ROWS = (1, 16, 64, 256)
STEPS = 200


def microseconds_per_step(rows: int, waiting: int) -> float:
    """Median over steps in which all rows decode and nobody is admitted."""
    scheduler = Scheduler(
        KVManager(BlockPool(rows * 40 + 100), 16),
        max_num_seqs=rows,
        max_num_batched_tokens=2048,
        max_model_len=2048,
    )
    params = SamplingParams(max_tokens=STEPS + 100)
    for id_ in range(rows + waiting):
        scheduler.add(AddRequest(id_, pack_ids([id_ % 1000, *range(63)]), params))
    times = []
    inflight = None
    for _ in range(STEPS):
        start = time.perf_counter()
        step = scheduler.plan()
        if inflight:
            scheduler.commit(inflight, StepResult([5] * len(inflight.plan.samples)))
            scheduler.take_outputs()
        times.append(time.perf_counter() - start)
        inflight = step
    return statistics.median(times[STEPS // 2 :]) * 1e6


def main() -> None:
    """Print the table."""
    print("microseconds per step (plan + commit)")
    print("rows \\ waiting" + "".join(f"{waiting:>12,}" for waiting in WAITING))
    for rows in ROWS:
        print(f"{rows:>14}" + "".join(f"{microseconds_per_step(rows, waiting):>12.1f}" for waiting in WAITING))


if __name__ == "__main__":
    main()
