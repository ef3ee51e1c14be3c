"""Answers that repeat themselves: the watch against the definition, and what becomes of the stream."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from quire.bounds import RepetitionDetectionParams
from quire.frontend.repetition import RepetitionWatch
from quire.frontend.streams import RequestStream
from quire.messages import TokenLogprobs, TokenOutput


def first_end(tokens: list[int], params: RepetitionDetectionParams) -> int | None:
    """By the definition: the shortest beginning that ends with one pattern, `min_count` times."""
    for end in range(1, len(tokens) + 1):
        for size in range(max(1, params.min_pattern_size), params.max_pattern_size + 1):
            whole = size * params.min_count
            if whole <= end and tokens[end - whole : end] == tokens[end - size : end] * params.min_count:
                return end
    return None


@settings(max_examples=400, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 3), max_size=60),
    most=st.integers(1, 9),
    least=st.integers(0, 9),
    count=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_the_watch_follows_the_definition(tokens: list[int], most: int, least: int, count: int, seed: int) -> None:
    params = RepetitionDetectionParams(max_pattern_size=most, min_pattern_size=min(least, most), min_count=count)
    watch, rng, fed = RepetitionWatch(params), random.Random(seed), 0
    expected = first_end(tokens, params)
    while fed < len(tokens):
        some = tokens[fed : fed + rng.randint(1, 4)]
        found = watch.feed(some)
        if found is not None:
            assert fed + found == expected
            return
        fed += len(some)
    assert expected is None


def run(*outputs: TokenOutput) -> tuple[list[int], str | None, int | str | None, list[int], int]:
    aborted: list[int] = []
    watch = RepetitionWatch(RepetitionDetectionParams(max_pattern_size=2, min_count=3))
    stream = RequestStream(watch=watch)
    stream.attach(7, aborted.append)
    for output in outputs:
        stream.push(output)
    delta = asyncio.run(stream.collect())
    return delta.token_ids, delta.finish_reason, delta.stop_reason, aborted, len(delta.logprobs or ())


def test_a_stream_ends_with_the_repetition_and_tells_the_engine() -> None:
    scores = [TokenLogprobs([token], [-1.0], 1) for token in (2, 1, 2, 5)]
    found = run(TokenOutput(7, [1, 2, 1]), TokenOutput(7, [2, 1, 2, 5], logprobs=scores), TokenOutput(7, [6]))
    assert found == ([1, 2, 1, 2, 1, 2], "repetition", "repetition_detected", [7], 3)


def test_an_end_at_the_same_token_is_the_engines() -> None:
    assert run(TokenOutput(7, [4, 4]), TokenOutput(7, [4], "length"))[1:4] == ("length", None, [])
    assert run(TokenOutput(7, [4, 4]), TokenOutput(7, [4, 5], "length"))[:4] == (
        [4, 4, 4], "repetition", "repetition_detected", [])  # fmt: skip
