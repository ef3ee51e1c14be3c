"""Every field of a request: what is taken, what is refused with its name, what is warned about."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest

from quire.errors import RequestError
from quire.frontend.decode import MAX_DEPTH, decode
from quire.frontend.validate import ChatRequest, CompletionRequest

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"prompt": "hi"}


def chat(**fields: Any) -> tuple[ChatRequest, list[str]]:
    return decode(json.dumps({**CHAT, **fields}).encode(), ChatRequest)


def text(**fields: Any) -> tuple[CompletionRequest, list[str]]:
    return decode(json.dumps({**TEXT, **fields}).encode(), CompletionRequest)


def refused(call: Any, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        request, _ = call(**fields)
        request.sampling_params({})
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"messages":' + b"[" * 100_000,
        b'{"prompt":"x","temperature":NaN}', b'{"prompt":"x","temperature":Infinity}',
        b'{"prompt":"x","temperature":-Infinity}', b'{"prompt":"x","temperature":1e309}',
        b'{"prompt":"\\ud800"}', b'{"prompt":"x","seed":' + b"9" * 5000 + b"}",
        b'{"prompt":"x","x":' + b"[" * 70 + b"]" * 70 + b"}",
    ],
)  # fmt: skip
def test_not_json(body: bytes) -> None:
    start = time.perf_counter()
    with pytest.raises(RequestError):
        decode(body, CompletionRequest)
    assert time.perf_counter() - start < 0.5


def test_depth_limit_is_exact() -> None:
    def nested(depth: int) -> bytes:
        return b'{"prompt":"x","unknown":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

    decode(nested(MAX_DEPTH), CompletionRequest)
    with pytest.raises(RequestError, match="deeper"):
        decode(nested(MAX_DEPTH + 1), CompletionRequest)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0), ("n", 17), ("n", 10**6), ("n", 1.5), ("n", "5"), ("n", True), ("max_tokens", 0), ("max_tokens", -1),
        ("max_tokens", 10**12), ("max_tokens", 1.5), ("max_tokens", "5"), ("temperature", "1"), ("temperature", -0.1),
        ("temperature", True), ("top_p", 0), ("top_p", 1.1), ("top_k", -2), ("min_p", 2), ("presence_penalty", 2.1),
        ("frequency_penalty", -3), ("repetition_penalty", 0), ("seed", 2**63), ("seed", "x"), ("stop", ["a"] * 17),
        ("stop", ["a"] * 10**5), ("stop", [""]), ("stop", "a" * 257), ("stop", [1]), ("stop_token_ids", [-1]),
        ("stop_token_ids", ["a"]), ("min_tokens", -1), ("stream", "yes"), ("stream", 1), ("cache_salt", "a/b"),
        ("cache_salt", "a" * 129), ("priority", 2**40), ("stream_options", {"include_usage": True}),
        ("model", 5), ("ignore_eos", 0),
    ],
)  # fmt: skip
def test_bad_values_name_their_field(field: str, value: Any) -> None:
    for call in (chat, text):
        assert refused(call, **{field: value}).param == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", []), ("messages", "hi"), ("messages", [{"role": "user"}]), ("messages", [{"content": "x"}]),
        ("messages", [{"role": 1, "content": "x"}]), ("messages", [{"role": "user", "content": 5}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
        ("messages", [{"role": "user", "content": ["x"]}]),
        ("messages", [5]), ("logprobs", 2), ("top_logprobs", 3), ("continue_final_message", True),
        ("chat_template_kwargs", {"messages": "x"}), ("chat_template_kwargs", {"tokenize": True}),
        ("chat_template_kwargs", {"chat_template": "x"}), ("chat_template_kwargs", {"a": [1]}),
        ("chat_template_kwargs", {str(i): i for i in range(33)}), ("reasoning_effort", "huge"),
        ("messages", [{"role": "assistant", "content": None, "tool_calls": "x"}]),
    ],
)  # fmt: skip
def test_bad_chat_fields(field: str, value: Any) -> None:
    assert refused(chat, **{field: value}).param == field


def test_bad_top_logprobs() -> None:
    assert refused(chat, logprobs=True, top_logprobs=-2).param == "top_logprobs"


@pytest.mark.parametrize(
    "prompt",
    [[], [[]], [[1], []], [1.5], [True], [1, "a"], ["a", [1]], {}, 5, [None], ["a"] * 65, ["a"] * 10**5, [[True]]],
)
def test_bad_prompts(prompt: Any) -> None:
    assert refused(text, prompt=prompt).param == "prompt"


def test_choices_times_prompts() -> None:
    assert refused(text, prompt=["a"] * 10, n=7, temperature=1).param == "n"
    assert refused(text, prompt=["a"] * 10, n=6, best_of=7, temperature=1).param == "best_of"
    assert refused(text, logprobs=-2).param == "logprobs"


def test_missing() -> None:
    for kind, name in ((ChatRequest, "messages"), (CompletionRequest, "prompt")):
        with pytest.raises(RequestError, match=f"{name} is missing") as caught:
            decode(b"{}", kind)
        assert caught.value.param == name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{}]), ("suffix", "x"), ("prompt_embeds", "x"),
        ("logits_processors", ["os.system"]), ("modalities", ["audio"]),
    ],
)  # fmt: skip
def test_not_offered(field: str, value: Any) -> None:
    for call in (chat, text):
        error = refused(call, **{field: value})
        assert (error.param, error.code) == (field, "unsupported_parameter")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", []), ("tool_choice", "none"), ("tool_choice", "auto"), ("parallel_tool_calls", True), ("suffix", ""),
        ("response_format", {"type": "text"}), ("logit_bias", {}), ("best_of", 1), ("echo", False), ("bad_words", []),
        ("length_penalty", 1.0), ("modalities", ["text"]), ("spaces_between_special_tokens", True),
    ],
)  # fmt: skip
def test_values_that_ask_for_what_happens_anyway(field: str, value: Any) -> None:
    assert chat(**{field: value})[1] == []


def test_warnings() -> None:
    assert chat(user="me", metadata={})[1] == ["user has no effect here.", "metadata has no effect here."]
    request, warnings = chat(temperature=0.001)
    assert request.temperature == 0.01 and "raised to 0.01" in warnings[0]
    warnings = chat(**{f"x{i}": 1 for i in range(50)})[1]
    assert len(warnings) == 21 and "30 more" in warnings[-1]
    assert chat(**{"a\nb\u2028" + "c" * 200: 1})[1][0].isascii()
    assert "\n" not in chat(**{"a\nb": 1})[1][0]


def test_null_is_default() -> None:
    names = [name for name in ChatRequest.__struct_fields__ if name != "messages"]
    request, warnings = chat(**dict.fromkeys([*names, "tools", "logit_bias", "whatever"]))
    assert warnings == [] and request == chat()[0]


def test_messages_are_made_plain() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1]}'}}
    request, _ = chat(
        messages=[{"role": "user", "content": parts, "name": "me"}, {"role": "assistant", "tool_calls": [call]}]
    )
    assert request.messages[0] == {"role": "user", "content": "a\nb", "name": "me"}
    assert request.messages[1]["tool_calls"][0]["function"]["arguments"] == {"x": [1]}


def test_sampling_params() -> None:
    defaults = {"temperature": 0.5, "top_k": 7}
    params = chat(max_tokens=5, max_completion_tokens=9, logprobs=True, stop="x")[0].sampling_params(defaults)
    assert (params.temperature, params.top_k, params.max_tokens, params.logprobs, params.stop) == (0.5, 7, 9, 0, ["x"])
    params = chat(temperature=0, top_k=-1)[0].sampling_params(defaults)
    assert (params.temperature, params.top_k, params.max_tokens, params.logprobs) == (0, -1, None, None)
    assert text(logprobs=3)[0].sampling_params({}).logprobs == 3
    assert refused(text, min_tokens=9, max_tokens=5).param == "min_tokens"
    assert refused(text, n=2, temperature=0).param == "n"


def test_types_read_as_sentences() -> None:
    error = refused(chat, stop=[1], temperature=1)
    assert "`" not in error.message and "null" not in error.message and error.message.startswith("stop")


def test_large_bodies_are_fast() -> None:
    ids = msgspec.json.encode({"prompt": list(range(100_000))})
    many = msgspec.json.encode({"messages": [{"role": "user", "content": "x" * 240}] * 8192})
    start = time.perf_counter()
    decode(ids, CompletionRequest)
    decode(many, ChatRequest)
    assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_bias", {"x": 1}), ("logit_bias", {"5": 101}), ("logit_bias", {"-1": 1}), ("logit_bias", {"5": "1"}),
        ("logit_bias", [5]), ("logit_bias", {str(i): 1 for i in range(1025)}), ("allowed_token_ids", []),
        ("allowed_token_ids", [-1]), ("allowed_token_ids", ["1"]), ("bad_words", "x"), ("bad_words", [""]),
        ("bad_words", ["x"] * 129), ("bad_words", [5]),
    ],
)  # fmt: skip
def test_words_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        request, _ = chat(**{name: value})
        request.sampling_params({})
    assert caught.value.param == name


def test_words() -> None:
    request, warnings = chat(logit_bias={"5": -1.5, "7": 2}, allowed_token_ids=[5, 7], bad_words=["no"])
    params = request.sampling_params({})
    assert (params.logit_bias, params.allowed_token_ids, params.bad_words) == ({5: -1.5, 7: 2}, [5, 7], ["no"])
    assert not warnings
