"""Stop strings against a slow twin that looks at the whole text after each character."""

from __future__ import annotations

import random
import time

import pytest
from vocabularies import byte_level_core

from quire.frontend.detokenizer import Pushed
from quire.frontend.stops import StopAutomaton, StopMatcher
from quire.frontend.tokenizer import Tokenizer
from quire.params import SamplingParams


def slow_twin(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """(text up to the stop, the stop): the first to be complete, the longer of two that end together."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def could_begin(text: str, stops: list[str]) -> int:
    """Characters at the end of `text` that some stop string begins with."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


def test_matches_slow_twin_and_holds_back_the_least() -> None:
    rng = random.Random(5)
    for _ in range(5_000):
        alphabet = "ab" if rng.random() < 0.7 else "abc世"
        stops = ["".join(rng.choices(alphabet, k=rng.randint(1, 5))) for _ in range(rng.randint(1, 4))]
        text = "".join(rng.choices(alphabet, k=rng.randint(0, 20)))
        include = rng.random() < 0.5
        matcher = StopMatcher(StopAutomaton(stops), include)
        out, stop, seen = "", None, ""
        rest = text
        while rest and stop is None:
            n = rng.randint(1, 4)
            piece, rest = rest[:n], rest[n:]
            fed = matcher.feed(piece)
            out, stop, seen = out + fed.text, fed.stop, seen + piece
            if stop is None:
                assert len(seen) - len(out) == could_begin(seen, stops)
        if stop is None:
            out += matcher.finish()
        assert (out, stop) == slow_twin(text, stops, include), (text, stops)


def test_adversarial_stops_are_linear() -> None:
    stops = ["a" * n + "b" for n in range(240, 256)]
    matcher = StopMatcher(StopAutomaton(stops), False)
    start = time.perf_counter()
    for _ in range(20_000):
        matcher.feed("aaaa")
    assert time.perf_counter() - start < 1.5


def detokenized(text: str, stops: list[str], **params: object) -> tuple[str, int, str | None]:
    """One token at a time, as the stream does it: (text, tokens that count, stop)."""
    tokenizer = Tokenizer(byte_level_core())
    detokenizer = tokenizer.detokenizer(SamplingParams(stop=stops, **params))  # type: ignore[arg-type]
    out, count = "", 0
    for token_id in tokenizer.encode(text, add_special_tokens=False):
        pushed = detokenizer.push([token_id])
        out, count = out + pushed.text, count + pushed.num_tokens
        if pushed.stop is not None:
            return out, count, pushed.stop
    rest = detokenizer.finish()
    return out + rest.text, count, rest.stop


def test_across_tokens() -> None:
    text, count, stop = detokenized("Hello world, how are you", ["ld, h"])
    assert (text, stop) == ("Hello wor", "ld, h")
    assert count < len(byte_level_core().encode("Hello world, how are you").ids)
    assert detokenized("Hello world", ["zz", "orld"], include_stop_str_in_output=True)[0] == "Hello world"
    text, _, stop = detokenized("ends with a half st", ["stop"])
    assert (text, stop) == ("ends with a half st", None)


@pytest.mark.parametrize("min_tokens", [0, 1, 2, 3])
def test_only_after_min_tokens(min_tokens: int) -> None:
    """'x' is token 1, 3 and 5 of 'xyxyx...'; it counts when later than min_tokens."""
    _, count, stop = detokenized("xyxyxy", ["x"], min_tokens=min_tokens)
    assert stop == "x"
    assert count == min(n for n in (1, 3, 5) if n > min_tokens)


def test_tokens_after_the_stop_do_not_count() -> None:
    tokenizer = Tokenizer(byte_level_core())
    ids = tokenizer.encode("xyxy", add_special_tokens=False)
    assert len(ids) == 4
    pushed = tokenizer.detokenizer(SamplingParams(stop=["y"])).push(ids)
    assert pushed == Pushed("x", 2, "y")


def test_stop_in_held_back_bytes_is_found_at_the_end() -> None:
    from vocabularies import byte_fallback_core

    tokenizer = Tokenizer(byte_fallback_core())
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "🙂!".encode()]
    detokenizer = tokenizer.detokenizer(SamplingParams(stop=["!"]))
    assert detokenizer.push(ids).text == ""  # type: ignore[arg-type]
    assert detokenizer.finish() == Pushed("🙂", 0, "!")
