"""Nothing is ignored in silence: fields without effect are named, in every form of answer; --strict refuses them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from fake_engine import FakeClient, Running, running

from quire.errors import RequestError
from quire.frontend.aliases import REQUEST_FIELDS
from quire.frontend.decode import decode
from quire.frontend.fields import ELSEWHERE
from quire.frontend.validate import ChatRequest, CompletionRequest

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
TEXT: dict[str, Any] = {"prompt": "hi", "max_tokens": 5}
PATHS = {"/v1/chat/completions": CHAT, "/v1/completions": TEXT}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as server:
        yield server


def chunks_of(answer: httpx.Response) -> list[dict[str, Any]]:
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


@pytest.mark.parametrize("path", PATHS)
def test_the_first_chunk_of_a_stream_says_it(server: Running, path: str) -> None:
    body = {**PATHS[path], "stream": True, "temprature": 0.5}
    answer = httpx.post(server.url + path, json=body)
    said = "temprature has no effect here. Did you mean 'temperature'?"
    first, *others = chunks_of(answer)
    assert first["warnings"] == [said] and answer.headers["x-quire-warnings"] == said
    assert first["choices"] and not any("warnings" in chunk for chunk in others)
    assert not any("warnings" in c for c in chunks_of(httpx.post(server.url + path, json={**body, "temprature": None})))


def test_the_official_client_reads_such_a_stream(server: Running) -> None:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0)
    stream = client.chat.completions.create(**CHAT, model="fake", stream=True, user="me", n=2, temperature=1)
    first, *others = stream
    assert first.warnings == ["user has no effect here."]
    assert {chunk.choices[0].index for chunk in others} == {0, 1}
    assert all("warnings" not in (chunk.model_extra or {}) for chunk in others)


def test_strict() -> None:
    with running(FakeClient(), strict=True) as server:
        for path, body in PATHS.items():
            for stream in (False, True):
                assert httpx.post(server.url + path, json={**body, "stream": stream}).status_code == 200
                answer = httpx.post(server.url + path, json={**body, "stream": stream, "temprature": 1})
                error = answer.json()["error"]
                assert answer.status_code == 400 and error["param"] == "temprature"
                assert "'temperature'" in error["message"] and "--strict" in error["message"]
                assert error["code"] == "parameter_without_effect"
        for more, field in (
            ({"temperature": 1e-5}, "temperature"),
            ({"reasoning_effort": "low"}, "reasoning_effort"),
            ({"user": "x"}, "user"),
        ):
            answer = httpx.post(server.url + "/v1/chat/completions", json={**CHAT, **more})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
        for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})):
            assert httpx.post(server.url + path, json={**body, "more": 1}).json()["error"]["param"] == "more"
        assert httpx.post(server.url + "/v1/completions", json={**TEXT, "more": None}).status_code == 200
        assert server.client.num_in_flight == 0


@pytest.mark.parametrize("old", REQUEST_FIELDS)
def test_other_spellings(old: str) -> None:
    new = REQUEST_FIELDS[old]
    values: dict[str, Any] = {"stop": ["x"], "include_stop_str_in_output": True, "chat_template_kwargs": {"a": 1}}
    for kind, body in ((CompletionRequest, {"prompt": "x"}), (ChatRequest, {"messages": CHAT["messages"]})):
        if new not in kind.__struct_fields__:
            continue
        value = values.get(new, 3)
        request, warnings = decode(json.dumps({**body, old: value}).encode(), kind)
        assert warnings == []
        assert getattr(request, old if old in kind.__struct_fields__ else new) == value
        if old not in kind.__struct_fields__:
            with pytest.raises(RequestError) as caught:
                decode(json.dumps({**body, old: value, new: 4}).encode(), kind)
            assert caught.value.param in (old, new)


def test_reasoning_in_messages_goes_by_either_name() -> None:
    for name in ("reasoning", "reasoning_content"):
        message = {"role": "assistant", "content": "7", name: "3 plus 4"}
        request, _ = decode(json.dumps({"messages": [message]}).encode(), ChatRequest)
        assert request.messages[0]["reasoning"] == request.messages[0]["reasoning_content"] == "3 plus 4"


@pytest.mark.parametrize("field", ELSEWHERE)
def test_what_would_change_the_answer_is_refused(field: str) -> None:
    """Whatever is not a field and would matter: an error, not a warning."""
    for kind, body in ((ChatRequest, {"messages": CHAT["messages"]}), (CompletionRequest, {"prompt": "x"})):
        if field in kind.__struct_fields__:
            continue
        with pytest.raises(RequestError) as caught:
            decode(json.dumps({**body, field: {"a": ["b"]}}).encode(), kind)
        assert (caught.value.param, caught.value.code) == (field, "unsupported_parameter")


def test_many_unknown_fields_cost_little() -> None:
    fields = {f"temperatur{i}": i for i in range(50_000)}
    _, warnings = decode(json.dumps({"prompt": "x", **fields}).encode(), CompletionRequest)
    assert len(warnings) == 21 and warnings[-1] == "49980 more fields have no effect here."
