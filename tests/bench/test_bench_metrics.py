"""Arrival times, and figures against timelines worked out by hand."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quire.bench import gpu, report
from quire.bench.arrivals import due_times
from quire.bench.exchange import Outcome
from quire.bench.metrics import Summary, goodput_limits, max_concurrent, summarize, tokens_per_second
from quire.bench.options import metric_names, numbers, pairs, percentiles
from quire.errors import ConfigError

Make = Callable[..., Outcome]


@pytest.mark.parametrize(("burstiness", "spread"), [(1.0, 1.0), (0.25, 2.0), (16.0, 0.25)])
def test_arrivals(burstiness: float, spread: float) -> None:
    due = due_times(20_001, 50.0, burstiness, seed=3)
    gaps = np.diff(due)
    assert due[0] == 0.0 and (gaps >= 0).all()
    assert due[-1] == pytest.approx(20_000 / 50)
    assert gaps.std() / gaps.mean() == pytest.approx(spread, rel=0.05)  # of a gamma distribution: 1 / sqrt(shape)
    assert due == due_times(20_001, 50.0, burstiness, seed=3) != due_times(20_001, 50.0, burstiness, seed=4)


def test_all_at_once() -> None:
    assert due_times(3, math.inf, 1.0, 0) == [0.0, 0.0, 0.0]
    assert due_times(1, 2.0, 1.0, 0) == [0.0]


@pytest.fixture
def summary(outcome: Make) -> Summary:
    outcomes = [
        outcome(0, 10.0, [10.1, 10.2, 10.4], prompt_tokens=5),  # ttft .1, itl .1 .2, e2el .4, tpot .15
        outcome(1, 10.3, [10.6, 11.6], output_tokens=6),  # ttft .3, itl 1, e2el 1.3, tpot .2
        outcome(2, 10.5, [12.0], output_tokens=1),  # ttft 1.5, e2el 1.5, no tpot
        outcome(3, 11.0, [], end=11.5, error="HTTP 503: full", status=503),
        outcome(4, 11.0, [11.2], end=14.0, error="cut"),
    ]
    return summarize(10.0, outcomes, [1, 20, 30, 40, 50], [50, 99.9], {"ttft": 300.5, "e2el": 1400.0})


def test_figures(summary: Summary) -> None:
    assert (summary.completed, summary.failed, summary.refused) == (3, 2, 1)
    assert summary.duration == pytest.approx(4.0)
    assert (summary.total_input_tokens, summary.total_output_tokens) == (55, 10)  # 5 counted by the server + 20 + 30
    assert summary.request_throughput == pytest.approx(0.75) and summary.output_throughput == pytest.approx(2.5)
    assert summary.total_token_throughput == pytest.approx(65 / 4) and summary.request_goodput == pytest.approx(0.5)
    assert summary.max_output_tokens_per_s == pytest.approx(6.0)  # second 0: 3 chunks + 1 of 3 tokens
    assert summary.max_concurrent_requests == 4  # from 11.0 to 11.5: all but the first
    ttft, tpot, itl, e2el = (summary.spreads[name] for name in ("ttft", "tpot", "itl", "e2el"))
    assert (ttft.mean, ttft.median) == pytest.approx((1900 / 3, 300.0))
    assert ttft.std == pytest.approx(np.std([100, 300, 1500]))
    assert (tpot.mean, tpot.median, tpot.percentiles[50]) == pytest.approx((175.0, 175.0, 175.0))
    assert itl.mean == pytest.approx(1300 / 3) and itl.percentiles[99.9] == pytest.approx(
        np.percentile([100, 200, 1000], 99.9)
    )
    assert e2el.mean == pytest.approx(3200 / 3)


def test_nothing_succeeded(outcome: Make) -> None:
    summary = summarize(0.0, [outcome(0, 0.0, [], end=1.0, error="x")], [1], [99])
    assert summary.completed == 0 and summary.spreads["ttft"].percentiles == {99: 0.0}
    assert "P99 TTFT (ms):" in report.table(summary, ["ttft"])


def test_overlap(outcome: Make) -> None:
    spans = [(0.0, 1.0), (1.0, 2.0), (1.5, 3.0), (2.0, 2.5)]
    assert max_concurrent([outcome(i, start, [end]) for i, (start, end) in enumerate(spans)]) == 2
    assert max_concurrent([]) == 0 and len(tokens_per_second(0.0, [])) == 0


def test_table(summary: Summary) -> None:
    text = report.table(
        summary, ["ttft", "tpot", "itl", "e2el"], max_concurrency=7, request_rate=2.5, gpu_utilization=81.26
    )
    kinds = ("Mean", "Median", "P50", "P99.9")
    names = [line.split(":")[0].strip() for line in text.splitlines() if ":" in line]
    assert names == [
        "Successful requests", "Failed requests", "refused (429, 503)", "Maximum request concurrency",
        "Request rate configured (RPS)", "Benchmark duration (s)", "Total input tokens", "Total generated tokens",
        "Request throughput (req/s)", "Request goodput (req/s)", "Output token throughput (tok/s)",
        "Peak output token throughput (tok/s)", "Peak concurrent requests", "Total token throughput (tok/s)",
        "GPU utilization (%)",
        *(f"{kind} {metric} (ms)" for metric in ("TTFT", "TPOT", "ITL", "E2EL") for kind in kinds),
    ]  # fmt: skip
    lines = text.splitlines()
    assert lines[0] == "============ Serving Benchmark Result ============" and lines[-1] == "=" * 50
    assert "---------------Time to First Token----------------" in lines
    assert (
        "Benchmark duration (s):                  4.00" in lines
        and "Mean TTFT (ms):                          633.33" in lines
    )
    assert "GPU utilization (%):                     81.3" in lines
    plain = report.table(summary, [])
    assert "Request rate" not in plain and "Maximum" not in plain and "TTFT" not in plain and "n/a" in plain


def test_json_keys(summary: Summary, outcome: Make, tmp_path: Path) -> None:
    found = report.figures(summary)
    for name in ("ttft", "tpot", "itl", "e2el"):
        assert {f"mean_{name}_ms", f"median_{name}_ms", f"std_{name}_ms", f"p50_{name}_ms", f"p99.9_{name}_ms"} <= set(
            found
        )
    each = report.per_request(
        10.0, [outcome(0, 10.5, [11.0, 11.25], prompt_tokens=4), outcome(1, 11.0, [], error="e")], [9, 8]
    )
    assert each == {
        "input_lens": [4, 8], "output_lens": [2, 0], "ttfts": [0.5, 0.0], "itls": [[0.25], []],
        "start_times": [0.5, 1.0], "errors": ["", "e"],
    }  # fmt: skip
    report.write_json(tmp_path / "new" / "a.json", {**found, **each})
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {**found, **each}
    with pytest.raises(ConfigError, match=r"a\.json"):
        report.write_json(tmp_path / "new" / "a.json" / "b.json", {})


def test_error_lines(outcome: Make) -> None:
    outcomes = [outcome(i, 0.0, [1.0], error=error) for i, error in enumerate(["b", "a", "a", "", "c", "d", "e", "f"])]
    lines = report.error_lines(outcomes)
    assert lines[0] == "2 x a" and len(lines) == 6 and "1 other" in lines[-1]


def test_gpu() -> None:
    readings = iter([[0, 50], [0, 100]])

    def read() -> list[int]:
        found = next(readings, None)
        if found is None:
            raise OSError("gone")
        return found

    with gpu.GpuWatch(read, interval=0.0) as watch:
        watch._thread.join()
    assert watch.means == [0.0, 75.0] and gpu.in_use(watch.means) == 75.0
    with gpu.GpuWatch(None) as watch:
        pass
    assert watch.means == [] and gpu.in_use([]) is None and gpu.in_use([0.0]) == 0.0


class FakeDriver:
    """NVML as far as it is called: two GPUs, of which the second fails where `broken`."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        handle._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle: Any, found: Any) -> int:
        found._obj.gpu = 10 * handle.value
        return 3 if self.broken and handle.value == 2 else 0


def test_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver())
    read = gpu.nvml_reader()
    assert read is not None and read() == [10, 20]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(broken=True))
    assert gpu.nvml_reader() is None

    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu.nvml_reader() is None


def test_option_texts() -> None:
    assert metric_names("ttft, e2el") == ("ttft", "e2el") and percentiles("50,99.9") == (50.0, 99.9)
    assert pairs(("a=1", "b=c=d"), "--metadata") == {"a": "1", "b": "c=d"} and numbers("1,inf", "--x") == (
        1.0,
        math.inf,
    )
    assert goodput_limits({"ttft": "20"}) == {"ttft": 20.0}
    for broken in (
        lambda: metric_names("ttft,speed"), lambda: percentiles("101"), lambda: percentiles("x"), lambda: numbers("",
        "--x"),
        lambda: pairs(("a",), "--metadata"), lambda: goodput_limits({"itl": "3"}),
        lambda: goodput_limits({"ttft": "fast"}),
        lambda: numbers("nan", "--x"),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            broken()
