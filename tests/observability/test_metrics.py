"""Metrics: names and buckets as vLLM has them, right counts, little cost."""

from __future__ import annotations

import logging
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from quire.messages import EngineStats
from quire.observability.histogram import SECONDS_TO_FIRST_TOKEN, Histogram, one_two_five
from quire.observability.metrics import Metrics

STATS = EngineStats(num_running=3, num_waiting=2, kv_usage=0.5, num_preemptions=7, prefix_queries=100, prefix_hits=40,
                    picture_queries=9, picture_hits=4)  # fmt: skip


def samples(metrics: Metrics) -> dict[str, float]:
    """Sample name and labels besides the usual two → value."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key not in ("model_name", "engine")}
            found[sample.name + "".join(f"|{value}" for value in labels.values())] = sample.value
    return found


def test_names_and_values() -> None:
    metrics = Metrics("served", lambda: STATS)
    request = metrics.start_request(10, arrival=100.0)
    request.on_tokens(100.3, 1, 0.2)
    request.on_tokens(100.4, 1)
    request.on_tokens(100.6, 4)
    request.on_finish(100.7, "stop")
    metrics.start_request(5, arrival=100.0).on_finish(101.0, "abort")
    found = samples(metrics)
    expected = {
        "vllm:num_requests_running": 3,
        "vllm:num_requests_waiting": 2,
        "vllm:kv_cache_usage_perc": 0.5,
        "vllm:gpu_cache_usage_perc": 0.5,
        "vllm:num_preemptions_total": 7,
        "vllm:prefix_cache_queries_total": 100,
        "vllm:prefix_cache_hits_total": 40,
        "vllm:mm_cache_queries_total": 9,
        "vllm:mm_cache_hits_total": 4,
        "vllm:prompt_tokens_total": 10,
        "vllm:generation_tokens_total": 6,
        "vllm:request_success_total|stop": 1,
        "vllm:request_success_total|abort": 1,
        "vllm:request_success_total|length": 0,
        "vllm:time_to_first_token_seconds_count": 1,
        "vllm:time_to_first_token_seconds_bucket|0.25": 0,
        "vllm:time_to_first_token_seconds_bucket|0.5": 1,
        "vllm:inter_token_latency_seconds_count": 5,
        "vllm:inter_token_latency_seconds_bucket|0.05": 4 if 0.2 / 4 <= 0.05 else 0,
        "vllm:inter_token_latency_seconds_bucket|0.15": 5,
        "vllm:e2e_request_latency_seconds_count": 2,
        "vllm:request_queue_time_seconds_bucket|0.3": 1,
        "vllm:request_prompt_tokens_sum": 15,
        "vllm:request_generation_tokens_sum": 6,
        "vllm:request_prompt_tokens_bucket|10.0": 2,
    }
    expected.pop("vllm:inter_token_latency_seconds_bucket|0.05")  # 0.2 / 4 lies on the border
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["vllm:time_to_first_token_seconds_sum"] == pytest.approx(0.3)
    assert 'model_name="served"' in metrics.render().decode() and 'engine="0"' in metrics.render().decode()


def test_buckets() -> None:
    assert one_two_five(100) == (1, 2, 5, 10, 20, 50, 100)
    assert one_two_five(8192)[-1] == 5000
    assert len(SECONDS_TO_FIRST_TOKEN) == 22 and list(SECONDS_TO_FIRST_TOKEN) == sorted(SECONDS_TO_FIRST_TOKEN)
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 2), ("2.0", 4), ("+Inf", 5)] and histogram.total == 14


def test_model_name_is_escaped() -> None:
    name = 'a"b\nc\\d'
    families = text_string_to_metric_families(Metrics(name, lambda: STATS).render().decode())
    assert {s.labels["model_name"] for f in families for s in f.samples if "model_name" in s.labels} == {name}


def test_one_log_line_per_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quire.request")
    request = Metrics("m", lambda: STATS).start_request(10, name="chatcmpl-1", arrival=100.0)
    request.on_tokens(100.3, 1, 0.2)
    request.on_tokens(100.4, 2)
    request.on_finish(100.4, "length")
    assert [record.getMessage() for record in caplog.records] == [
        "chatcmpl-1 length: 10 prompt + 3 output tokens; queue 200 ms, prefill 100 ms, decode 100 ms"
    ]


def test_cost_per_token() -> None:
    request = Metrics("m", lambda: STATS).start_request(10)
    start = time.perf_counter()
    for i in range(100_000):
        request.on_tokens(1.0 + i * 0.01, 1)
    assert (time.perf_counter() - start) / 100_000 < 5e-6
