"""What counts as a chunk, as tokens, as an error."""

from __future__ import annotations

import json

import pytest

from quire.bench.exchange import Exchange, Outcome, error_text


def text(words: str, finish: str | None = None, **more: object) -> bytes:
    return json.dumps({"choices": [{"index": 0, "text": words, "finish_reason": finish}], **more}).encode()


def chat(delta: dict[str, object], finish: str | None = None, **more: object) -> bytes:
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}).encode()


def usage(prompt: int, output: int, choices: list[object] | None = None) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": output}
    return json.dumps({"choices": choices or [], "usage": counts}).encode()


def play(*events: tuple[float, bytes]) -> Outcome:
    exchange = Exchange(3, 1.0)
    for moment, payload in events:
        exchange.take(payload, moment)
    return exchange.outcome(99.0)


def test_completion() -> None:
    done = play(
        (2.0, text("a", usage=None)), (3.0, text("b")), (4.0, text("", "length")), (4.0, usage(7, 5)), (4.0, b"[DONE]")
    )
    assert list(done.times) == [2.0, 3.0, 4.0] and (done.start, done.end, done.error) == (1.0, 4.0, "")
    assert (done.index, done.prompt_tokens, done.output_tokens) == (3, 7, 5)


def test_chunks_are_counted_where_usage_is_missing() -> None:
    assert play((2.0, text("a")), (2.0, text("b")), (3.0, text("c", "stop"))).output_tokens == 3


def test_the_role_of_a_chat_is_no_token() -> None:
    done = play(
        (1.5, chat({"role": "assistant", "content": ""})), (2.0, chat({"content": "a"})), (3.0, chat({"content": "b"}))
    )
    assert list(done.times) == [2.0, 3.0]
    assert list(play((1.5, chat({"role": "assistant", "content": "a"}))).times) == [1.5]
    assert list(play((1.5, chat({"role": "assistant"}, "stop"))).times) == [1.5]
    assert list(play((1.5, chat({"role": "assistant", "reasoning_content": "a"}))).times) == [1.5]


def test_an_empty_end_in_the_same_read_is_no_token() -> None:
    assert list(play((2.0, chat({"content": "a"})), (3.0, chat({"content": "b"})), (3.0, chat({}, "stop"))).times) == [
        2.0,
        3.0,
    ]
    assert list(play((2.0, chat({"content": "a"})), (3.0, chat({}, "stop"))).times) == [2.0, 3.0]
    assert list(play((2.0, text("a")), (2.0, text("b", "stop"))).times) == [2.0, 2.0]


def test_usage_beside_text() -> None:
    choice = {"index": 0, "text": "a", "finish_reason": None}
    done = play((2.0, usage(3, 1, [choice])), (3.0, usage(3, 2, [choice])))
    assert len(done.times) == 2 and done.output_tokens == 2


def test_text_that_looks_like_usage() -> None:
    done = play((2.0, text('"completion_tokens": 9, "usage"')), (3.0, text("b")))
    assert len(done.times) == 2 and done.output_tokens == 2


@pytest.mark.parametrize(
    "payload",
    [b'{"error": {"message": "broken", "code": 500}}', b'{"object": "error", "message": "broken"}'],
)
def test_error_in_mid_stream(payload: bytes) -> None:
    done = play((2.0, text("a")), (3.0, payload), (3.0, b"[DONE]"))
    assert (done.error, done.end) == ("broken", 99.0)


def test_nothing_came() -> None:
    assert play((2.0, b"[DONE]")).error == "the answer held no chunk"
    assert play((2.0, b"{}"), (2.0, b"no json")).error


def test_refused() -> None:
    exchange = Exchange(0, 1.0)
    exchange.status = 503
    exchange.fail("HTTP 503: full")
    exchange.fail("later")
    done = exchange.outcome(2.0)
    assert done.refused and done.error == "HTTP 503: full" and done.end == 2.0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "too\\n long", "type": "x"}}', "too long"),
        (b'{"message": "m"}', "m"),
        (b'{"detail": "d"}', "d"),
        (b'{"detail": [{"loc": 1}]}', '{"detail": [{"loc": 1}]}'),
        (b"<html>Bad gateway</html>", "<html>Bad gateway</html>"),
        (b"", ""),
    ],
)
def test_error_text(body: bytes, message: str) -> None:
    assert error_text(body) == message
