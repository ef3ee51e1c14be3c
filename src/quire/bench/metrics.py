"""Figures from timelines.

    start ──────────── first chunk ── chunk ── chunk ── last chunk
    └──── TTFT ───────┘└─── ITL ──┘└─ ITL ─┘└── ITL ───┘
    └──────────────────────── E2EL ────────────────────┘     TPOT = (E2EL - TTFT) / (output tokens - 1)

Times are in milliseconds, rates per second.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from quire.bench.exchange import Outcome
from quire.bench.options import METRICS
from quire.errors import ConfigError

GOODPUT_METRICS = ("ttft", "tpot", "e2el")
Floats = NDArray[np.float64]


class Spread(msgspec.Struct, frozen=True):
    """How values are spread; all 0 where there are none.

    Attributes:
        mean, median, std: of the values.
        percentiles: by percentile.
    """

    mean: float
    median: float
    std: float
    percentiles: dict[float, float]


class Summary(msgspec.Struct, frozen=True):
    """A run in figures.

    Attributes:
        duration: seconds from the start to the end of the last request.
        completed: requests answered in full.
        failed: all others.
        refused: of the failed, those the server had no room for (429, 503).
        total_input_tokens: of completed requests, as the server counted them, else as the dataset did.
        total_output_tokens: of completed requests.
        request_throughput: completed requests per second.
        request_goodput: those that kept every limit; None if no limit was set.
        output_throughput: output tokens per second.
        total_token_throughput: input and output tokens per second.
        max_output_tokens_per_s: most output tokens in one whole second since the start.
        max_concurrent_requests: most requests under way at one moment.
        spreads: by metric: ttft, tpot, itl, e2el.
    """

    duration: float
    completed: int
    failed: int
    refused: int
    total_input_tokens: int
    total_output_tokens: int
    request_throughput: float
    request_goodput: float | None
    output_throughput: float
    total_token_throughput: float
    max_output_tokens_per_s: float
    max_concurrent_requests: int
    spreads: dict[str, Spread]


def summarize(
    start: float,
    outcomes: Sequence[Outcome],
    prompt_lens: Sequence[int],
    percentiles: Sequence[float],
    goodput: dict[str, float] | None = None,
) -> Summary:
    """The figures of a run.

    Args:
        start: of the run.
        outcomes: one per request.
        prompt_lens: tokens of each prompt, by index of the request; 0 where unknown.
        percentiles: in 0..100.
        goodput: limits in milliseconds by metric.
    """
    good = [outcome for outcome in outcomes if not outcome.error]
    values = {metric: values_of(metric, good) for metric in METRICS}
    duration = max((outcome.end for outcome in outcomes), default=start) - start
    num_input = sum(outcome.prompt_tokens or prompt_lens[outcome.index] for outcome in good)
    num_output = sum(outcome.output_tokens for outcome in good)
    return Summary(
        duration=duration,
        completed=len(good),
        failed=len(outcomes) - len(good),
        refused=sum(outcome.refused for outcome in outcomes),
        total_input_tokens=num_input,
        total_output_tokens=num_output,
        request_throughput=_rate(len(good), duration),
        request_goodput=_rate(_num_within(good, goodput), duration) if goodput else None,
        output_throughput=_rate(num_output, duration),
        total_token_throughput=_rate(num_input + num_output, duration),
        max_output_tokens_per_s=float(tokens_per_second(start, good).max(initial=0.0)),
        max_concurrent_requests=max_concurrent(outcomes),
        spreads={metric: _spread(found, percentiles) for metric, found in values.items()},
    )


def values_of(metric: str, outcomes: Sequence[Outcome]) -> Floats:
    """All values of a metric, in milliseconds: one per request, or one per gap for itl."""
    if metric == "itl":
        found = [np.diff(outcome.times) for outcome in outcomes]
        return np.concatenate(found) * 1e3 if found else np.empty(0)
    seconds = [value for outcome in outcomes if (value := _SECONDS[metric](outcome)) is not None]
    return np.array(seconds, dtype=np.float64) * 1e3


def ttft(outcome: Outcome) -> float:
    """Seconds to the first chunk."""
    return float(outcome.times[0]) - outcome.start


def e2el(outcome: Outcome) -> float:
    """Seconds to the last chunk."""
    return outcome.end - outcome.start


def tpot(outcome: Outcome) -> float | None:
    """Seconds per output token after the first; None where there is only one."""
    if outcome.output_tokens < 2:
        return None
    return (e2el(outcome) - ttft(outcome)) / (outcome.output_tokens - 1)


_SECONDS = {"ttft": ttft, "tpot": tpot, "e2el": e2el}


def tokens_per_second(start: float, outcomes: Sequence[Outcome]) -> Floats:
    """Output tokens in each whole second since the start; a chunk stands for its request's tokens per chunk."""
    if not outcomes:
        return np.empty(0)
    times = np.concatenate([outcome.times for outcome in outcomes]) - start
    weights = np.concatenate(
        [np.full(len(outcome.times), outcome.output_tokens / len(outcome.times)) for outcome in outcomes]
    )
    return np.bincount(times.astype(np.int64), weights=weights).astype(np.float64)


def max_concurrent(outcomes: Sequence[Outcome]) -> int:
    """Most requests under way at one moment; one that ends as another starts does not overlap it."""
    if not outcomes:
        return 0
    starts = np.sort(np.array([outcome.start for outcome in outcomes]))
    ends = np.sort(np.array([outcome.end for outcome in outcomes]))
    under_way = np.arange(1, len(starts) + 1) - np.searchsorted(ends, starts, side="right")
    return int(max(under_way.max(), 1))


def goodput_limits(pairs: dict[str, str]) -> dict[str, float]:
    """Limits in milliseconds by metric.

    Raises:
        ConfigError: an unknown metric, or no number.
    """
    limits = {}
    for name, text in pairs.items():
        if name not in GOODPUT_METRICS:
            raise ConfigError(f"--goodput {name}:{text}: {name!r} is not one of {', '.join(GOODPUT_METRICS)}.")
        try:
            limits[name] = float(text)
        except ValueError:
            limits[name] = -1.0
        if not limits[name] >= 0:
            raise ConfigError(f"--goodput {name}:{text}: a number of milliseconds is needed.")
    return limits


def _num_within(outcomes: Sequence[Outcome], limits: dict[str, float] | None) -> int:
    return sum(
        all((_SECONDS[name](outcome) or 0.0) * 1e3 <= limit for name, limit in (limits or {}).items())
        for outcome in outcomes
    )


def _spread(values: Floats, percentiles: Sequence[float]) -> Spread:
    if not len(values):
        return Spread(0.0, 0.0, 0.0, dict.fromkeys(percentiles, 0.0))
    return Spread(
        mean=float(values.mean()),
        median=float(np.median(values)),
        std=float(values.std()),
        percentiles=dict(zip(percentiles, np.percentile(values, percentiles).tolist(), strict=True)),
    )


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
