"""Errors of single requests, at every named point, among many others: each ends its own request, and nobody else."""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections import Counter
from typing import Any

import pytest
from faults import POINTS, seed_of, word_of
from program import FAULTY, FLOAT32, Program, ask_all, assert_same

SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}, "required": ["name"]}
SHARE = 0.02
"""Of the requests, for each point."""
SIZES = [
    pytest.param(1_000, id="1000"),
    pytest.param(50_000, id="50000", marks=[pytest.mark.soak, pytest.mark.timeout(7200)]),
]


def make_request(number: int, point: str | None) -> tuple[str, dict[str, Any]]:
    """A mix: chat and text, streamed or not, greedy and drawn, held to a grammar or free, with logprobs or without."""
    rng = random.Random(number)
    chat = point == "template" or (point != "tokenise" and rng.random() < 0.5)
    text = f"Number {number % 500} is " + "very " * rng.randrange(20)
    if point in ("tokenise", "template"):
        text += word_of(point)
    body: dict[str, Any] = {"max_tokens": rng.randint(4, 12), "stream": rng.random() < 0.5, "seed": number}
    body["temperature"] = rng.choice([0, 0.8])
    if point is not None and point not in ("tokenise", "template"):
        body["seed"] = seed_of(point)
    if point in ("forward", "sample", "detokenise"):
        body["ignore_eos"] = True  # long enough to come to the point
    elif point == "grammar" or rng.random() < 0.1:
        body |= {"structured_outputs": {"json": SCHEMA}, "max_tokens": 40}
    if not chat:
        return "/v1/completions", {**body, "prompt": text}
    return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("processes", [1])
def test_an_error_ends_its_own_request_only(size: int, processes: int) -> None:
    """R6: each fault is one 500 with a request id; all others are equal, bit by bit, to a run without faults."""
    rng = random.Random(size)
    points = [rng.choice(POINTS) if rng.random() < SHARE * len(POINTS) else None for _ in range(size)]
    mixed = [make_request(number, point) for number, point in enumerate(points)]
    quiet = [request for request, point in zip(mixed, points, strict=True) if point is None]
    with Program(*FLOAT32, "--api-server-count", str(processes), script=FAULTY) as program:
        program.wait_status(200)
        expected = asyncio.run(ask_all(program.url, quiet))
        assert_idle(program)
        answers = asyncio.run(ask_all(program.url, mixed))
        failed: Counter[str] = Counter()
        unharmed = [answer for answer, point in zip(answers, points, strict=True) if point is None]
        assert_same(quiet, unharmed, expected)
        for request, point, (status, text) in zip(mixed, points, answers, strict=True):
            if point is None:
                continue
            failed[point] += 1
            assert status == 500, (point, request, text)
            assert re.search(r"request id [\w-]{8,}", text), (point, text)
            assert not re.search(r"secret|0xdeadbeef|Traceback|injected", text), (point, text)
        assert set(failed) == set(POINTS), failed
        assert_idle(program)
        assert program.metric("vllm:request_success_total") >= size + len(quiet) - sum(failed.values())
        engine = program.engine.pid
        assert program.stop() == 0 and engine, "one engine from beginning to end"
        assert "started again" not in program.log


def assert_idle(program: Program) -> None:
    """Nothing runs, waits or is held two seconds later, by the server's own numbers."""
    program.wait_idle(2.0)


@pytest.mark.parametrize("size", [pytest.param(100, id="100"), pytest.param(5_000, id="5000", marks=pytest.mark.soak)])
def test_steps_without_memory(size: int) -> None:
    """R7: one step of 25 wants too much memory. It is tried again with less; nobody notices."""
    requests = [make_request(number, None) for number in range(size)]
    for _, body in requests:
        body.pop("structured_outputs", None)
    with Program(*FLOAT32, script=FAULTY) as program:
        program.wait_status(200)
        expected = asyncio.run(ask_all(program.url, requests, at_once=32))
    with Program(*FLOAT32, script=FAULTY, QUIRE_TEST_OOM_EVERY="25") as program:
        program.wait_status(200)
        answers = asyncio.run(ask_all(program.url, requests, at_once=32))
        assert_same(requests, answers, expected)
        assert program.log.count("OutOfMemoryError: injected") >= program.metric("quire:engine_steps_total") / 30 >= 1
        assert_idle(program)
        assert program.stop() == 0
        assert "started again" not in program.log


@pytest.mark.parametrize("size", [pytest.param(300, id="300"), pytest.param(5_000, id="5000", marks=pytest.mark.soak)])
def test_a_storm_of_preemptions(size: int) -> None:
    """R8: a pool of 1.3 times the largest request, 64 clients: all finish, equal to a run with room for all."""
    longest = 64
    requests = [
        (
            "/v1/completions",
            {
                "prompt": [3 + (number * 7 + i) % 900 for i in range(4 + number % 26)],
                "max_tokens": 10 + number % 24,
                "ignore_eos": True,
                "temperature": 0 if number % 2 else 0.9,
                "seed": number,
            },
        )
        for number in range(size)
    ]
    flags = (*FLOAT32, "--max-model-len", str(longest))
    with Program(*flags) as program:
        program.wait_status(200)
        expected = asyncio.run(ask_all(program.url, requests))
        assert program.metric("vllm:num_preemptions_total") == 0
    with Program(*flags, "--num-gpu-blocks-override", str(1 + int(1.3 * longest / 16))) as program:
        program.wait_status(200)
        answers = asyncio.run(ask_all(program.url, requests, timeout=600))
        assert {status for status, _ in answers} == {200}
        assert_same(requests, answers, expected)
        assert program.metric("vllm:num_preemptions_total") > 0
        assert_idle(program)
        assert program.stop() == 0


def test_a_device_that_fails_all_the_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no step goes well any more it is not the requests: the engine ends, and is started again."""
    with Program(*FLOAT32, "--max-restarts", "0", script=FAULTY, QUIRE_TEST_OOM_EVERY="1") as program:
        program.wait_status(200)
        requests = [make_request(number, None) for number in range(50)]
        answers = asyncio.run(ask_all(program.url, requests))
        assert {status for status, _ in answers} <= {500, 503}
        assert os.WIFEXITED(program.wait_end(60) << 8)
        assert "steps have failed one after the other" in program.log.strip().splitlines()[-1]
