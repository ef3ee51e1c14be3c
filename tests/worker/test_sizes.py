"""Step sizes that are derived from the model and the GPU."""

from __future__ import annotations

import itertools

import pytest

from quire.config import SchedulerConfig
from quire.worker.sizes import H200, StepSizes, cpu_pace, good_sizes, pick_mixed_sizes

SIZES = StepSizes(1024, 8192)


@pytest.mark.parametrize("most", [32, 100, 1000, 4096, 8192, 20_000])
def test_good_sizes_rise_and_end_where_asked(most: int) -> None:
    sizes = good_sizes(most)
    assert sizes[-1] == most
    assert all(a < b <= max(a + 64, 1.34 * a) for a, b in itertools.pairwise(sizes))


def test_small_models_read_more_of_a_prompt_beside_others() -> None:
    large = pick_mixed_sizes(SIZES, SchedulerConfig(), 8_030_000_000, 32, H200)
    small = pick_mixed_sizes(SIZES, SchedulerConfig(), 596_000_000, 28, H200)
    assert large.mixed_sizes[0] == 160 and large.mixed_sizes[-1] == 2560 and large.mixed_alone == 2048
    assert small.mixed_sizes[0] == 384 and small.mixed_sizes[-1] == small.mixed_alone == 8192
    assert small.mixed_patience > large.mixed_patience == 8717
    assert small.mixed_graph_tokens == 4096 and large.mixed_graph_tokens == 1024


def test_without_a_bound() -> None:
    unbound = pick_mixed_sizes(SIZES, SchedulerConfig(mixed_step_tokens=0), 8_030_000_000, 32, H200)
    assert unbound.mixed_sizes == () and unbound.mixed_graph_tokens == 1024
    whole = pick_mixed_sizes(SIZES, SchedulerConfig(enable_chunked_prefill=False), 8_030_000_000, 32, H200)
    assert whole.mixed_sizes == ()


def test_a_cpu_reads_prompts_some_at_a_time() -> None:
    sizes, rate = StepSizes(256, 2048), 4.3e11
    small = pick_mixed_sizes(sizes, SchedulerConfig(), 110_000_000, 12, cpu_pace(rate))
    assert small.mixed_sizes == (64, 96, 128, 160, 192, 256) and small.mixed_alone == 384
    large = pick_mixed_sizes(sizes, SchedulerConfig(), 8_030_000_000, 32, cpu_pace(rate))
    assert large.mixed_sizes == (64,) and large.mixed_alone == 64
    unbound = pick_mixed_sizes(sizes, SchedulerConfig(mixed_step_tokens=0), 110_000_000, 12, cpu_pace(rate))
    assert unbound.mixed_sizes == ()


def test_a_huge_model_on_a_small_budget_still_moves() -> None:
    huge = pick_mixed_sizes(StepSizes(8, 64), SchedulerConfig(mixed_step_tokens=20), 400_000_000_000, 100, H200)
    assert huge.mixed_sizes and huge.mixed_sizes[0] == 20 and huge.mixed_alone >= 20
