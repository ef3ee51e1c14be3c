"""The incremental text equals the tokenizer's own decoding, for every kind of tokenizer and any cut."""

from __future__ import annotations

import random
import time

import pytest
from vocabularies import byte_fallback_core, byte_level_core, metaspace_core, wordpiece_core

from quire.frontend.decoding import ByteLane, PieceLane, WindowLane
from quire.frontend.detokenizer import Pushed
from quire.frontend.tokenizer import Tokenizer
from quire.params import SamplingParams

CORES = {
    "byte level": (byte_level_core, ByteLane, 12_000),
    "byte fallback": (byte_fallback_core, PieceLane, 12_000),
    "byte fallback, no strip": (lambda: byte_fallback_core(False), PieceLane, 3_000),
    "metaspace": (metaspace_core, PieceLane, 3_000),
    "metaspace, never": (lambda: metaspace_core("never"), PieceLane, 3_000),
    "word pieces": (wordpiece_core, WindowLane, 1_000),
}


def cut(rng: random.Random, ids: list[int]) -> list[list[int]]:
    parts = []
    while ids:
        n = rng.choice((1, 1, 1, 2, 3, 7))
        parts.append(ids[:n])
        ids = ids[n:]
    return parts


def pushed(tokenizer: Tokenizer, parts: list[list[int]], **params: object) -> tuple[str, str]:
    """(what came out before the end, the rest)"""
    detokenizer = tokenizer.detokenizer(SamplingParams(**params))  # type: ignore[arg-type]
    return "".join(detokenizer.push(part).text for part in parts), detokenizer.finish().text


@pytest.mark.parametrize("name", CORES)
def test_equals_full_decode(name: str) -> None:
    make, lane, count = CORES[name]
    tokenizer = Tokenizer(make())
    assert isinstance(tokenizer._lane, lane)
    rng = random.Random(7)
    top = tokenizer.vocab_size + 2  # and two ids that no token has
    texts = ["Hello 👩‍👩‍👧 世界 é", "🙂" * 5, "naïve 词 plain added x"]
    for i in range(count):
        ids = [rng.randrange(top) for _ in range(rng.randrange(24))]
        if i % 5 == 0:
            ids = tokenizer.encode(rng.choice(texts), add_special_tokens=False)[: rng.randrange(1, 30)] + ids[:4]
        skip = bool(i % 2)
        early, rest = pushed(tokenizer, cut(rng, ids), skip_special_tokens=skip)
        assert early + rest == tokenizer.decode(ids, skip), ids


@pytest.mark.parametrize("core", [byte_level_core, byte_fallback_core])
def test_no_replacement_character_early(core: object) -> None:
    tokenizer = Tokenizer(core())  # type: ignore[operator]
    rng = random.Random(3)
    for _ in range(1_000):
        text = "".join(chr(rng.choice((65, 233, 0x4E16, 0x1F642, 0x200D))) for _ in range(8))
        ids = tokenizer.encode(text, add_special_tokens=False)
        detokenizer = tokenizer.detokenizer(SamplingParams())
        assert all("\ufffd" not in detokenizer.push([i]).text for i in ids)


def test_incomplete_character_shows_at_the_end() -> None:
    tokenizer = Tokenizer(byte_level_core())
    ids = tokenizer.encode("☂", add_special_tokens=False)
    early, rest = pushed(tokenizer, [[i] for i in ids][:-1])
    assert (early, rest) == ("", "\ufffd")


@pytest.mark.parametrize("name", CORES)
def test_cost_is_linear(name: str) -> None:
    """Runs of tokens without text, and of bytes that never become a character."""
    tokenizer = Tokenizer(CORES[name][0]())
    core = CORES[name][0]()
    empty = next(i for i in range(tokenizer.vocab_size) if tokenizer.is_special(i))
    byte = next((i for i in range(core.get_vocab_size()) if core.id_to_token(i) in ("<0xF0>", "ð")), empty)
    for token_id in (empty, byte):

        def seconds(count: int, token_id: int = token_id) -> float:
            detokenizer = tokenizer.detokenizer(SamplingParams())
            start = time.perf_counter()
            for _ in range(count):
                detokenizer.push((token_id,))
            detokenizer.finish()
            return time.perf_counter() - start

        seconds(100)
        small, large = min(seconds(4_000) for _ in range(3)), min(seconds(16_000) for _ in range(3))
        assert large < 12 * small + 0.02


def test_stop_token_text_is_left_out() -> None:
    tokenizer = Tokenizer(byte_level_core())
    ids = tokenizer.encode("Hello end", add_special_tokens=False)
    for include, text in ((False, tokenizer.decode(ids[:-1])), (True, "Hello end")):
        detokenizer = tokenizer.detokenizer(SamplingParams(include_stop_str_in_output=include))
        pushed_ = detokenizer.push(ids, stop_token=True)
        assert (pushed_.text + detokenizer.finish().text, pushed_.num_tokens) == (text, len(ids))


def test_without_detokenize() -> None:
    detokenizer = Tokenizer(byte_level_core()).detokenizer(SamplingParams(detokenize=False))
    assert detokenizer.push([5, 6]) == Pushed("", 2)
    assert detokenizer.finish().text == ""


def test_special_tokens_without_spaces_between_them() -> None:
    words = Tokenizer(wordpiece_core())
    sep, a = words.token_to_id("[SEP]"), words.token_to_id("a")
    ids = [a, sep, sep, sep, a, sep, a]
    shown = {"skip_special_tokens": False}
    tight = {"spaces_between_special_tokens": False, **shown}
    assert "".join(pushed(words, [ids], **shown)) == "a [SEP] [SEP] [SEP] a [SEP] a"
    for parts in ([ids], [[i] for i in ids]):
        assert "".join(pushed(words, parts, **tight)) == "a [SEP][SEP][SEP] a [SEP] a"
    for core in (byte_level_core, byte_fallback_core):  # these have none anyway
        tokenizer = Tokenizer(core())
        begin = tokenizer.token_to_id("<s>")
        ids = [begin, begin, *tokenizer.encode("Hello the", add_special_tokens=False), begin, begin]
        assert "".join(pushed(tokenizer, [ids], **tight)) == tokenizer.decode(ids, False)
    assert "".join(pushed(words, [[sep, a]], spaces_between_special_tokens=False)) == "a"
