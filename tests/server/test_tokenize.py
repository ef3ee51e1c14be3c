"""/tokenize, /detokenize, /ping and /load over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeClient, Running, running
from vocabularies import chat_tokenizer

TEXT = "Hello world 🙂"


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with running() as server, httpx.Client(base_url=server.url) as client:
        yield client


def test_a_text_and_back(http: httpx.Client) -> None:
    found = http.post("/tokenize", json={"prompt": TEXT, "return_token_strs": True}).json()
    assert found["tokens"] == chat_tokenizer().encode(TEXT)
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 256)
    assert len(found["token_strs"]) == found["count"]
    plain = http.post("/tokenize", json={"prompt": TEXT, "add_special_tokens": False}).json()
    assert plain["tokens"] == chat_tokenizer().encode(TEXT, add_special_tokens=False) and plain["token_strs"] is None
    assert http.post("/detokenize", json={"tokens": plain["tokens"]}).json() == {"prompt": TEXT}
    assert http.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


def test_a_conversation_is_what_chat_makes_of_it(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    found = http.post("/tokenize", json={"messages": messages, "model": "fake"}).json()
    assert http.post("/detokenize", json={"tokens": found["tokens"]}).json() == {
        "prompt": "<s><|user|>Hello<|end|><|assistant|>"
    }
    closed = http.post("/tokenize", json={"messages": messages, "add_generation_prompt": False}).json()
    assert closed["count"] < found["count"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"messages": [{"role": 5}]}, "messages"),
        ("/tokenize", {"prompt": "a", "tools": [{}]}, "tools"),
        ("/tokenize", {"prompt": "a" * 200_000}, None),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [10**9]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/detokenize", {"tokens": [10**30]}, "tokens"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, path: str, body: dict[str, Any], param: str | None) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_ping_and_load() -> None:
    with running(keys=("secret",)) as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/ping").status_code == client.post("/ping").status_code == 200
        assert client.get("/load").status_code == 401
        assert client.get("/load", headers={"authorization": "Bearer secret"}).json() == {"server_load": 0}


def test_unknown_model_and_field(http: httpx.Client) -> None:
    assert http.post("/tokenize", json={"prompt": "a", "model": "other"}).status_code == 404
    assert "whatever" in http.post("/tokenize", json={"prompt": "a", "whatever": 1}).headers["x-quire-warnings"]


def test_while_loading() -> None:
    server = Running(FakeClient(), ready=False)
    try:
        assert httpx.post(server.url + "/tokenize", json={"prompt": "a"}).status_code == 503
    finally:
        server.close()
