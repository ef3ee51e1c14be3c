"""What a run is told as: a table for people, a JSON object for programs. Row names and keys are those of vllm bench."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from quire.bench.exchange import Outcome
from quire.bench.metrics import Summary
from quire.bench.options import METRICS
from quire.errors import ConfigError

WIDTH = 50
MOST_ERRORS = 5
_TITLES = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
}


def table(
    summary: Summary,
    metrics: Sequence[str],
    *,
    max_concurrency: int | None = None,
    request_rate: float = math.inf,
    gpu_utilization: float | None = None,
) -> str:
    """The result table.

    Args:
        summary: of the run.
        metrics: which of ttft, tpot, itl, e2el get a section.
        max_concurrency: as asked for; None has no row.
        request_rate: as asked for; inf has no row.
        gpu_utilization: mean percent; None where it is not known.
    """
    lines = [" Serving Benchmark Result ".center(WIDTH, "=")]
    lines += [_row(name, value) for name, value in _rows(summary, max_concurrency, request_rate)]
    lines.append(_row("GPU utilization (%):", "n/a" if gpu_utilization is None else f"{gpu_utilization:.1f}"))
    for metric in metrics:
        short, title = _TITLES[metric]
        spread = summary.spreads[metric]
        lines.append(title.center(WIDTH, "-"))
        lines += [_row(f"Mean {short} (ms):", spread.mean), _row(f"Median {short} (ms):", spread.median)]
        lines += [_row(f"P{p:g} {short} (ms):", value) for p, value in spread.percentiles.items()]
    lines.append("=" * WIDTH)
    return "\n".join(lines)


def _rows(summary: Summary, max_concurrency: int | None, request_rate: float) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [
        ("Successful requests:", summary.completed),
        ("Failed requests:", summary.failed),
    ]
    if summary.refused:
        rows.append(("  refused (429, 503):", summary.refused))
    if max_concurrency is not None:
        rows.append(("Maximum request concurrency:", max_concurrency))
    if not math.isinf(request_rate):
        rows.append(("Request rate configured (RPS):", request_rate))
    rows += [
        ("Benchmark duration (s):", summary.duration),
        ("Total input tokens:", summary.total_input_tokens),
        ("Total generated tokens:", summary.total_output_tokens),
        ("Request throughput (req/s):", summary.request_throughput),
    ]
    if summary.request_goodput is not None:
        rows.append(("Request goodput (req/s):", summary.request_goodput))
    return [
        *rows,
        ("Output token throughput (tok/s):", summary.output_throughput),
        ("Peak output token throughput (tok/s):", summary.max_output_tokens_per_s),
        ("Peak concurrent requests:", float(summary.max_concurrent_requests)),
        ("Total token throughput (tok/s):", summary.total_token_throughput),
    ]


def _row(name: str, value: Any) -> str:
    shown = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{name:<40} {shown:<10}".rstrip()


def error_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """What went wrong, most frequent first."""
    counts = Counter(outcome.error for outcome in outcomes if outcome.error)
    lines = [f"{count} x {error}" for error, count in counts.most_common(MOST_ERRORS)]
    if len(counts) > MOST_ERRORS:
        lines.append(f"... and {len(counts) - MOST_ERRORS} other kinds of errors")
    return lines


def figures(summary: Summary) -> dict[str, Any]:
    """The summary's JSON keys: counts, rates, and {mean,median,std,pNN}_{ttft,tpot,itl,e2el}_ms."""
    found: dict[str, Any] = {name: getattr(summary, name) for name in summary.__struct_fields__ if name != "spreads"}
    for metric in METRICS:
        spread = summary.spreads[metric]
        found[f"mean_{metric}_ms"] = spread.mean
        found[f"median_{metric}_ms"] = spread.median
        found[f"std_{metric}_ms"] = spread.std
        found.update({f"p{p:g}_{metric}_ms": value for p, value in spread.percentiles.items()})
    return found


def per_request(start: float, outcomes: Sequence[Outcome], prompt_lens: Sequence[int]) -> dict[str, Any]:
    """The figures of each request, in the order of the requests; seconds, to the microsecond."""
    times = [outcome.times for outcome in outcomes]
    return {
        "input_lens": [outcome.prompt_tokens or prompt_lens[outcome.index] for outcome in outcomes],
        "output_lens": [outcome.output_tokens for outcome in outcomes],
        "ttfts": [
            round(float(found[0]) - outcome.start, 6) if len(found) else 0.0
            for outcome, found in zip(outcomes, times, strict=True)
        ],
        "itls": [np.diff(found).round(6).tolist() for found in times],
        "start_times": [round(outcome.start - start, 6) for outcome in outcomes],
        "errors": [outcome.error for outcome in outcomes],
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, one line per key; its folder is made.

    Raises:
        ConfigError: it cannot be written.
    """
    lines = (f"{_compact(key)}: {_compact(value)}" for key, value in content.items())
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _compact(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def write_text(path: Path, text: str) -> None:
    """Write a text file; its folder is made.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or 'cannot be written'}.") from None
