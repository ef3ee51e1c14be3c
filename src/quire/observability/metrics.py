"""Metrics of one engine under vLLM's names, so that dashboards and autoscalers work unchanged.

Streams report to a `RequestTimes` each; the counters are plain Python numbers, turned into Prometheus' text only
when somebody reads /metrics. Labels are the served model's name and the engine's number, never client data.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from quire.messages import EngineStats
from quire.observability.cells import Cells
from quire.observability.histogram import (
    SECONDS_BETWEEN_TOKENS,
    SECONDS_OF_REQUEST,
    SECONDS_TO_FIRST_TOKEN,
    Histogram,
    one_two_five,
)

log = logging.getLogger("quire.request")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ERROR_STATUSES = (400, 401, 403, 404, 405, 408, 413, 415, 429, 431, 500, 503, 504)
"""Those that are counted."""
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
LABELS = ("model_name", "engine")
PROMPT_TOKENS, GENERATION_TOKENS, FINISHED = 0, 1, 2
"""Places among the counters; from FINISHED on one per reason."""
_FINISHED_AT = {reason: FINISHED + i for i, reason in enumerate(FINISH_REASONS)}
_MAX_LEN_BUCKETS = 40
"""Of lengths: 1, 2, 5 in each of 12 powers of ten, and what a histogram needs besides."""


class Metrics:
    """Owns all counters of one engine's frontend. Fed and read by the event loop only.

    Args:
        model_name: the served name, a label.
        stats: gives the engine's newest gauges; None reads what `publish` has written, maybe in another process.
        cells: where the numbers are.
        pid: of the process whose own figures are shown; None is this one.
    """

    def __init__(
        self,
        model_name: str,
        stats: Callable[[], EngineStats] | None,
        cells: Cells | None = None,
        pid: int | None = None,
    ) -> None:
        cells = cells or Cells()
        self.model_name = model_name
        self._stats = cells.take(len(EngineStats.__struct_fields__))
        self.stats = stats or self._published
        self.counters = cells.take(2 + len(FINISH_REASONS))
        self.errors = cells.take(len(ERROR_STATUSES))
        self.to_first_token = _histogram(SECONDS_TO_FIRST_TOKEN, cells)
        self.between_tokens = _histogram(SECONDS_BETWEEN_TOKENS, cells)
        self.end_to_end = _histogram(SECONDS_OF_REQUEST, cells)
        self.queued = _histogram(SECONDS_OF_REQUEST, cells)
        self.prefill = _histogram(SECONDS_OF_REQUEST, cells)
        self.decode = _histogram(SECONDS_OF_REQUEST, cells)
        self._lens = [cells.take(_MAX_LEN_BUCKETS) for _ in range(2)]
        self.usage_of_keys: Callable[[], list[tuple[str, float, float]]] = list
        """Name, requests and tokens of each key; names are the operator's, so there are only so many."""
        self.set_max_model_len(131_072)
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(self))
        ProcessCollector(pid=lambda: pid or "self", registry=self._registry)
        PlatformCollector(registry=self._registry)

    def set_max_model_len(self, max_model_len: int) -> None:
        """The largest bucket of lengths; call it before the first request."""
        self.prompt_lens, self.output_lens = (Histogram(one_two_five(max_model_len), part) for part in self._lens)

    def publish(self, stats: EngineStats) -> None:
        """Show the engine's gauges to the other processes."""
        own = self._stats.own
        for i, name in enumerate(EngineStats.__struct_fields__):
            own[i] = getattr(stats, name)

    def _published(self) -> EngineStats:
        return EngineStats(*self._stats.of_first())  # type: ignore[arg-type]

    @property
    def prompt_tokens(self) -> float:
        """Prompt tokens of all requests that gave a token."""
        return self.counters.sums()[PROMPT_TOKENS]

    @property
    def generation_tokens(self) -> float:
        """Tokens generated."""
        return self.counters.sums()[GENERATION_TOKENS]

    @property
    def finished(self) -> dict[str, float]:
        """Requests that ended, by reason."""
        return dict(zip(FINISH_REASONS, self.counters.sums()[FINISHED:], strict=True))

    def refused(self, status: int) -> None:
        """A request was answered with an error of this HTTP status."""
        if status in ERROR_STATUSES:
            self.errors.own[ERROR_STATUSES.index(status)] += 1

    def start_request(
        self, num_prompt_tokens: int, *, name: str = "", arrival: float | None = None, follower: Any = None
    ) -> RequestTimes:
        """The observer of one completion.

        Args:
            num_prompt_tokens: length of its prompt.
            name: the id that the log line shows.
            arrival: monotonic seconds; default now.
            follower: told of the first token and of the end.
        """
        arrival = time.monotonic() if arrival is None else arrival
        return RequestTimes(self, num_prompt_tokens, name, arrival, follower)

    def render(self) -> bytes:
        """The text of /metrics."""
        return bytes(generate_latest(self._registry))


def _histogram(bounds: tuple[float, ...], cells: Cells) -> Histogram:
    return Histogram(bounds, cells.take(len(bounds) + 2))


class RequestTimes:
    """Follows one completion from arrival to end: feeds the counters, writes one log line at the end."""

    __slots__ = (
        *("_arrival", "_first", "_follower", "_last", "_metrics", "_name", "_num_prompt_tokens", "_num_tokens"),
        "_queued_s",
    )

    def __init__(
        self, metrics: Metrics, num_prompt_tokens: int, name: str, arrival: float, follower: Any = None
    ) -> None:
        self._metrics = metrics
        self._num_prompt_tokens = num_prompt_tokens
        self._name = name
        self._arrival = arrival
        self._follower = follower
        self._first = self._last = 0.0
        self._num_tokens = 0
        self._queued_s = 0.0

    def on_tokens(self, now: float, count: int, queued_s: float = 0.0) -> None:
        """`count` new tokens at `now` (monotonic seconds); `queued_s` is read with the first ones."""
        metrics = self._metrics
        metrics.counters.own[GENERATION_TOKENS] += count
        self._num_tokens += count
        if self._last:
            metrics.between_tokens.observe((now - self._last) / count, count)
        else:
            self._first, self._queued_s = now, queued_s
            metrics.counters.own[PROMPT_TOKENS] += self._num_prompt_tokens
            metrics.to_first_token.observe(now - self._arrival)
            metrics.queued.observe(queued_s)
            if self._follower is not None:
                self._follower.begun(queued_s)
        self._last = now

    def on_finish(self, now: float, reason: str) -> None:
        """The one end, at `now`: stop, length, abort or error."""
        metrics = self._metrics
        metrics.counters.own[_FINISHED_AT.get(reason, _FINISHED_AT["error"])] += 1
        metrics.end_to_end.observe(now - self._arrival)
        metrics.prompt_lens.observe(self._num_prompt_tokens)
        metrics.output_lens.observe(self._num_tokens)
        if self._follower is not None:
            self._follower.ended(self._num_tokens)
        if self._first:
            metrics.prefill.observe(self._prefill_s)
            metrics.decode.observe(self._last - self._first)
        if log.isEnabledFor(logging.INFO):
            self._log(now, reason)

    @property
    def _prefill_s(self) -> float:
        """Seconds between leaving the queue and the first token."""
        return max(self._first - self._arrival - self._queued_s, 0.0)

    def _log(self, now: float, reason: str) -> None:
        first = self._first or now
        queue_ms, decode_ms = 1e3 * self._queued_s, 1e3 * (now - first)
        prefill_ms = 1e3 * max(first - self._arrival - self._queued_s, 0.0)
        name = self._name or "request"
        log.info(
            "%s %s: %d prompt + %d output tokens; queue %.0f ms, prefill %.0f ms, decode %.0f ms",
            *(name, reason, self._num_prompt_tokens, self._num_tokens, queue_ms, prefill_ms, decode_ms),
            extra={
                "fields": {
                    "request_id": name,
                    "reason": reason,
                    "prompt_tokens": self._num_prompt_tokens,
                    "output_tokens": self._num_tokens,
                    "queue_ms": round(queue_ms, 3),
                    "prefill_ms": round(prefill_ms, 3),
                    "decode_ms": round(decode_ms, 3),
                }
            },
        )


# ---------------------------------------------------------------------------------------------------------------
# Prometheus' side: name (vLLM's, unless it says otherwise), help, where the number is

_GAUGES: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("num_requests_running", "Requests in the running batch.", lambda s: s.num_running),
    ("num_requests_waiting", "Requests waiting for their first step.", lambda s: s.num_waiting),
    ("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", lambda s: s.kv_usage),
    ("gpu_cache_usage_perc", "The same under its old name.", lambda s: s.kv_usage),
)
_ENGINE_COUNTERS: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("num_preemptions", "Requests that lost their KV blocks and were recomputed.", lambda s: s.num_preemptions),
    ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", lambda s: s.prefix_queries),
    ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", lambda s: s.prefix_hits),
    ("mm_cache_queries", "Pictures looked up among those that are encoded.", lambda s: s.picture_queries),
    ("mm_cache_hits", "Pictures that were encoded already.", lambda s: s.picture_hits),
    ("quire:engine_steps", "Steps the engine took.", lambda s: s.num_steps),
    ("quire:engine_step_tokens", "Tokens of all steps together.", lambda s: s.num_step_tokens),
)
_COUNTERS: tuple[tuple[str, str, Callable[[Metrics], float]], ...] = (
    ("prompt_tokens", "Prompt tokens processed.", lambda m: m.prompt_tokens),
    ("generation_tokens", "Tokens generated.", lambda m: m.generation_tokens),
)
_HISTOGRAMS: tuple[tuple[str, str, Callable[[Metrics], Histogram]], ...] = (
    ("time_to_first_token_seconds", "From arrival to the first token.", lambda m: m.to_first_token),
    ("inter_token_latency_seconds", "Between two tokens of one output.", lambda m: m.between_tokens),
    ("e2e_request_latency_seconds", "From arrival to the end.", lambda m: m.end_to_end),
    ("request_queue_time_seconds", "Spent waiting in the engine.", lambda m: m.queued),
    ("request_prefill_time_seconds", "From the first step to the first token.", lambda m: m.prefill),
    ("request_decode_time_seconds", "From the first token to the last.", lambda m: m.decode),
    ("request_prompt_tokens", "Length of prompts.", lambda m: m.prompt_lens),
    ("request_generation_tokens", "Length of outputs.", lambda m: m.output_lens),
)


class _EngineCollector(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._labels = [metrics.model_name, "0"]

    def collect(self) -> Iterator[Metric]:
        metrics, stats = self._metrics, self._metrics.stats()
        for name, text, of_stats in _GAUGES:
            yield self._single(GaugeMetricFamily, name, text, of_stats(stats))
        for name, text, of_stats in _ENGINE_COUNTERS:
            yield self._single(CounterMetricFamily, name, text, of_stats(stats))
        for name, text, of_metrics in _COUNTERS:
            yield self._single(CounterMetricFamily, name, text, of_metrics(metrics))
        labels = [*LABELS, "finished_reason"]
        success = CounterMetricFamily("vllm:request_success", "Requests that ended.", labels=labels)
        for reason, count in metrics.finished.items():
            success.add_metric([*self._labels, reason], count)
        yield success
        errors = CounterMetricFamily(
            "quire:http_errors", "Requests answered with an error.", labels=[*LABELS, "status"]
        )
        for status, count in zip(ERROR_STATUSES, metrics.errors.sums(), strict=True):
            errors.add_metric([*self._labels, str(status)], count)
        yield errors
        for at, what in enumerate(("requests", "tokens"), 1):
            usage = CounterMetricFamily(
                f"quire:key_{what}", f"{what.title()} of each API key.", labels=[*LABELS, "key"]
            )
            for used in metrics.usage_of_keys():
                usage.add_metric([*self._labels, used[0]], float(used[at]))
            yield usage
        for name, text, histogram_of in _HISTOGRAMS:
            histogram = histogram_of(metrics)
            family = HistogramMetricFamily(f"vllm:{name}", text, labels=LABELS)
            family.add_metric(self._labels, histogram.cumulative(), sum_value=histogram.total)
            yield family

    def _single(self, family: Callable[..., Any], name: str, text: str, value: float) -> Metric:
        metric = family(name if ":" in name else f"vllm:{name}", text, labels=LABELS)
        metric.add_metric(self._labels, value)
        return metric  # type: ignore[no-any-return]
