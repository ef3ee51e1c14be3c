"""SamplingParams: defaults, ranges, and errors that name field and value."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from quire import RequestError, RequestOutputKind, SamplingParams


def test_defaults() -> None:
    p = SamplingParams()
    assert (p.n, p.temperature, p.top_p, p.top_k, p.min_p, p.max_tokens, p.stop) == (1, 1.0, 1.0, 0, 0.0, 16, [])
    assert (p.presence_penalty, p.frequency_penalty, p.repetition_penalty, p.seed) == (0.0, 0.0, 1.0, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0), ("n", 16385), ("n", 1.5), ("n", True), ("n", "2"),
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("temperature", "1"),
        ("top_p", 0), ("top_p", 1.1), ("top_k", -2), ("top_k", 2.5), ("min_p", -0.1), ("min_p", 1.1),
        ("presence_penalty", 2.1), ("frequency_penalty", -2.1), ("repetition_penalty", 0),
        ("seed", 2**63), ("stop", [""]), ("stop", ["a"] * 17), ("stop", [1]),
        ("stop_token_ids", [-1]), ("stop_token_ids", ["a"]), ("stop_token_ids", [True]),
        ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 10**12), ("max_tokens", True),
        ("min_tokens", -1), ("min_tokens", 17), ("logprobs", -2), ("ignore_eos", 1), ("detokenize", None),
        ("temperature", None), ("top_p", [0.5]),
        ("best_of", 0), ("best_of", 16385), ("best_of", True), ("prompt_logprobs", -2), ("prompt_logprobs", 1.5),
        ("truncate_prompt_tokens", 0), ("truncate_prompt_tokens", -2), ("truncation_side", "middle"),
        ("output_kind", 3), ("output_kind", "ALL"), ("output_kind", None), ("skip_reading_prefix_cache", 1),
        ("spaces_between_special_tokens", None), ("skip_clone", "no"), ("stop", 5), ("stop_token_ids", 5),
        ("stop_token_ids", "12"), ("bad_words", "word"), ("bad_words_token_ids", {}), ("extra_args", {"a": 1}),
        ("flat_logprobs", 1), ("logprob_token_ids", [-1]), ("logprob_token_ids", list(range(129))),
        ("logprob_token_ids", "12"), ("prompt_logprob_start", 5), ("stream_interval", 0), ("stream_interval", True),
        ("prompt_logprob_token_ids", [1]), ("thinking_token_budget", -2), ("thinking_token_budget", 1.5),
        ("trace_decode_token_ids", True), ("repetition_detection", 5), ("repetition_detection", {"min": 1}),
        ("repetition_detection", {"max_pattern_size": 4}), ("repetition_detection", {"max_pattern_size": -1}),
        ("repetition_detection", {"max_pattern_size": 4, "min_count": 1}),
        ("repetition_detection", {"max_pattern_size": 4, "min_pattern_size": 5, "min_count": 2}),
        ("repetition_detection", {"max_pattern_size": 1025, "min_count": 2}),
    ],
)  # fmt: skip
def test_out_of_range_names_field_and_value(field: str, value: object) -> None:
    with pytest.raises(RequestError) as error:
        SamplingParams(**{field: value})
    assert error.value.param == field and field in error.value.message


def test_accepted_spellings() -> None:
    assert SamplingParams(stop="x").stop == ["x"] and SamplingParams(stop=None).stop == []
    assert SamplingParams(top_k=-1).top_k == -1
    assert SamplingParams(seed=-1).seed is None and SamplingParams(max_tokens=None).max_tokens is None
    assert type(SamplingParams(max_tokens=np.int64(5)).max_tokens) is int
    assert type(SamplingParams(temperature=np.float32(0.5)).temperature) is float
    assert type(SamplingParams(temperature=1).temperature) is float


def test_greedy_wants_one_completion() -> None:
    with pytest.raises(RequestError, match="n must be 1"):
        SamplingParams(temperature=0, n=2)


def test_tiny_temperature_is_raised_and_said() -> None:
    with pytest.warns(UserWarning, match="raised to"):
        assert SamplingParams(temperature=1e-4).temperature == 0.01


def test_stop_needs_text() -> None:
    with pytest.raises(RequestError, match="detokenize"):
        SamplingParams(stop=["a"], detokenize=False)


def test_clone_is_independent() -> None:
    p = SamplingParams(stop=["a"], seed=3)
    q = p.clone()
    q.seed, q.stop = 4, []
    assert (p.seed, p.stop) == (3, ["a"]) and q == SamplingParams(seed=4)


def test_best_of() -> None:
    assert SamplingParams(best_of=5, n=5).num_candidates == 5 and SamplingParams(n=3).num_candidates == 3
    with pytest.raises(RequestError, match="at least n") as error:
        SamplingParams(n=3, best_of=2)
    assert error.value.param == "best_of"
    with pytest.raises(RequestError, match="best_of must be 1"):
        SamplingParams(temperature=0, best_of=2)


def test_output_kinds() -> None:
    assert SamplingParams().output_kind is RequestOutputKind.CUMULATIVE
    for kind in (RequestOutputKind.DELTA, 1, "DELTA"):
        assert SamplingParams(output_kind=kind).output_kind is RequestOutputKind.DELTA


def test_neutral_values_of_what_is_not_offered() -> None:
    params = SamplingParams(
        extra_args={}, prompt_logprob_start=0, prompt_logprob_token_ids=[], trace_decode_token_ids=False,
        flat_logprobs=False, thinking_token_budget=-1, logprob_token_ids=[], repetition_detection={},
    )  # fmt: skip
    assert params == SamplingParams()


def test_params_cross_the_wire_as_they_are() -> None:
    params = SamplingParams(
        n=2, best_of=4, prompt_logprobs=3, output_kind=2, truncate_prompt_tokens=-1, stop=["a"], logit_bias={5: 1.0}
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params
    assert len(msgspec.msgpack.encode(SamplingParams(temperature=0.5))) < 30, "only what differs from the defaults"
