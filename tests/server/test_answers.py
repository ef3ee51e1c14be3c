"""What answers look like with each of the fields that change them: plain and streamed, with the `openai` client."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from fake_engine import ANSWER, FakeClient, Running, running
from vocabularies import chat_tokenizer

from quire.server.logprobs import CompletionShape

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="EMPTY", max_retries=0)


def chunks_of(server: Running, path: str, **body: Any) -> list[dict[str, Any]]:
    answer = httpx.post(server.url + path, json={"stream": True, **body})
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events[-1] == "[DONE]", answer.text
    return [json.loads(event) for event in events[:-1]]


def test_echo(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="fake", prompt="Once ", max_tokens=4)
    echoed = client.completions.create(model="fake", prompt="Once ", max_tokens=4, echo=True)
    assert echoed.choices[0].text == "Once " + plain.choices[0].text
    ids = chat_tokenizer().encode("Twice", add_special_tokens=False)
    by_ids = client.completions.create(model="fake", prompt=ids, max_tokens=4, echo=True)
    assert by_ids.choices[0].text == "Twice" + plain.choices[0].text
    several = client.completions.create(model="fake", prompt=["a", "b"], max_tokens=1, n=2, echo=True)
    assert [choice.text[0] for choice in several.choices] == ["a", "a", "b", "b"]


def test_the_prompt_alone(client: openai.OpenAI, server: Running) -> None:
    answer = client.completions.create(model="fake", prompt="Once", max_tokens=0, echo=True, logprobs=1)
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason, answer.usage.completion_tokens) == ("Once", "length", 0)
    assert len(choice.logprobs.tokens) == answer.usage.prompt_tokens
    chunks = chunks_of(server, TEXT, prompt="Once", max_tokens=0, echo=True)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Once"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs(server: Running, stream: bool) -> None:
    body: dict[str, Any] = {"prompt": "Once upon", "max_tokens": 3, "echo": True, "logprobs": 2}
    if stream:
        choices = [chunk["choices"][0] for chunk in chunks_of(server, TEXT, **body)]
        shapes = [choice["logprobs"] for choice in choices if choice["logprobs"]]
        shape = {name: [x for one in shapes for x in one[name]] for name in shapes[0]}
        text = "".join(choice["text"] for choice in choices)
    else:
        choice = httpx.post(server.url + TEXT, json=body).json()["choices"][0]
        shape, text = choice["logprobs"], choice["text"]
    prompt_ids = chat_tokenizer().encode("Once upon")
    count = len(prompt_ids)
    assert shape["tokens"][:count] == [chat_tokenizer().token_text(i) for i in prompt_ids]
    assert shape["token_logprobs"] == [None] + [-0.25] * (count - 1) + [-0.5] * 3
    assert shape["top_logprobs"][0] is None and len(shape["top_logprobs"]) == count + 3
    assert shape["tokens"][0] == "<s>" and shape["text_offset"][:2] == [0, 0]  # it does not stand in the text
    for token, offset in list(zip(shape["tokens"], shape["text_offset"], strict=True))[1:]:
        assert text[offset : offset + len(token)] == token


def test_echo_in_chat(client: openai.OpenAI, server: Running) -> None:
    half = {"role": "assistant", "content": "I say: "}
    more = {"add_generation_prompt": False, "continue_final_message": True}
    answer = client.chat.completions.create(model="fake", messages=[USER, half], extra_body={"echo": True, **more})  # type: ignore[list-item]
    assert answer.choices[0].message.content == "I say: " + ANSWER
    chunks = chunks_of(server, CHAT, messages=[USER, half], echo=True, **more)
    texts = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    assert "".join(texts) == "I say: " + ANSWER
    answer = client.chat.completions.create(model="fake", messages=[USER], extra_body={"echo": True})
    assert answer.choices[0].message.content == ANSWER


def test_prompt_logprobs(server: Running) -> None:
    ids = chat_tokenizer().encode("Once")
    [choice] = httpx.post(server.url + TEXT, json={"prompt": "Once", "prompt_logprobs": 2}).json()["choices"]
    entries = choice["prompt_logprobs"]
    assert len(entries) == len(ids) and entries[0] is None
    first = entries[1][str(ids[1])]
    assert first == {"logprob": -0.25, "rank": 1, "decoded_token": chat_tokenizer().token_text(ids[1])}
    assert choice["logprobs"] is None
    chat = httpx.post(server.url + CHAT, json={"messages": [USER], "prompt_logprobs": 0}).json()
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"] and "logprobs" in chat["choices"][0]
    assert all(len(entry) == 1 for entry in chat["prompt_logprobs"][1:])


@pytest.mark.parametrize("stream", [False, True])
def test_the_scores_of_a_long_prompt_hold_up_nobody(monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    """They are put into words in a thread."""
    monkeypatch.setattr("quire.server.outcome.LONG_PROMPT", 50)
    threads: list[threading.Thread] = []
    shape = "quire.server.logprobs.CompletionShape.of"
    of = CompletionShape.of

    def noted(self: CompletionShape, *args: Any) -> Any:
        threads.append(threading.current_thread())
        return of(self, *args)

    monkeypatch.setattr(shape, noted)
    with running() as server:
        for count in (100, 20):
            body = {"prompt": list(range(100, 100 + count)), "echo": True, "logprobs": 1, "max_tokens": 3}
            if stream:
                chunks = chunks_of(server, TEXT, **body)
                found = [len(chunk["choices"][0]["logprobs"]["tokens"]) for chunk in chunks]
            else:
                answer = httpx.post(server.url + TEXT, json=body).json()
                found = [len(answer["choices"][0]["logprobs"]["tokens"])]
            assert sum(found) == count + 3
            assert {thread is server._thread for thread in threads} == {count == 20}
            threads.clear()


def test_token_ids(client: openai.OpenAI, server: Running) -> None:
    answer = client.completions.create(
        model="fake", prompt=["a b", "c"], n=2, max_tokens=3, logprobs=1,
        extra_body={"return_token_ids": True, "return_tokens_as_token_ids": True},
    )  # fmt: skip
    for index, choice in enumerate(answer.choices):
        assert choice.prompt_token_ids == chat_tokenizer().encode(["a b", "c"][index // 2])
        assert len(choice.token_ids) == 3
        assert choice.logprobs.tokens == [f"token_id:{i}" for i in choice.token_ids]
    chat = client.chat.completions.create(
        model="fake", messages=[USER], max_tokens=3, logprobs=True, top_logprobs=1,  # type: ignore[list-item]
        extra_body={"return_token_ids": True, "return_tokens_as_token_ids": True, "return_prompt_text": True},
    )  # fmt: skip
    assert (
        chat_tokenizer().decode(chat.prompt_token_ids, False) == chat.prompt_text == "<s><|user|>hi<|end|><|assistant|>"
    )
    assert [entry.token for entry in chat.choices[0].logprobs.content] == [
        f"token_id:{i}" for i in chat.choices[0].token_ids
    ]
    for path, body in ((TEXT, {"prompt": "a b"}), (CHAT, {"messages": [USER]})):
        chunks = chunks_of(server, path, max_tokens=5, return_token_ids=True, n=2, **body)
        for index in (0, 1):
            own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
            assert len([i for choice in own for i in choice.get("token_ids", [])]) == 5
        first = chunks[0] if path == CHAT else chunks[0]["choices"][0]
        assert first["prompt_token_ids"]
        assert not any("token_ids" in c["choices"][0] for c in chunks_of(server, path, max_tokens=5, **body))


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_streams_of_several_choices_with_usage(server: Running, path: str) -> None:
    body = {"messages": [USER]} if path == CHAT else {"prompt": ["a", "b"]}
    prompts = 1 if path == CHAT else 2
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = chunks_of(server, path, n=3, max_tokens=4, stream_options=options, **body)
    assert {chunk["choices"][0]["index"] for chunk in chunks[:-1]} == set(range(3 * prompts))
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 12 * prompts
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk["usage"]]
    assert counts == sorted(counts) and len(counts) > 3
    details = chunks[-1]["usage"]["prompt_tokens_details"]
    assert details == {"cached_tokens": 4 * prompts}
    reasons = [c["choices"][0]["finish_reason"] for c in chunks[:-1] if c["choices"][0]["finish_reason"]]
    assert reasons == ["length"] * 3 * prompts
    plain = chunks_of(server, path, max_tokens=4, **body)
    assert all("usage" not in chunk for chunk in plain)


def test_best_of_counts_what_was_generated(server: Running, client: openai.OpenAI) -> None:
    before = len(server.client.submitted)
    answer = client.completions.create(model="fake", prompt="a", best_of=5, n=2, max_tokens=3)
    assert [choice.index for choice in answer.choices] == [0, 1] and answer.choices[0].logprobs is None
    assert answer.usage.completion_tokens == 15
    sent = server.client.submitted[before:]
    assert [params.logprobs for _, params, _ in sent] == [0] * 5 and len({p.seed for _, p, _ in sent}) == 5
    assert {more["first"] for _, _, more in sent} == {sent[0][2]["first"]} != {None}


def test_only_the_first_candidate_scores_the_prompt(server: Running) -> None:
    before = len(server.client.submitted)
    answer = httpx.post(server.url + TEXT, json={"prompt": "a b c", "n": 3, "prompt_logprobs": 1, "max_tokens": 1})
    assert [p.prompt_logprobs for _, p, _ in server.client.submitted[before:]] == [1, None, None]
    choices = answer.json()["choices"]
    assert choices[0]["prompt_logprobs"] == choices[2]["prompt_logprobs"] != [None]


def test_truncation(server: Running) -> None:
    ids = list(range(100, 120))

    def sent(**body: Any) -> list[int]:
        httpx.post(server.url + TEXT, json={"prompt": ids, "max_tokens": 2, **body}).raise_for_status()
        return server.client.submitted[-1][0]

    assert sent() == sent(truncate_prompt_tokens=50) == sent(truncate_prompt_tokens=-1) == ids
    assert sent(truncate_prompt_tokens=5) == ids[-5:]
    assert sent(truncate_prompt_tokens=5, truncation_side="right") == ids[:5]
    long = [100 + i % 50 for i in range(1000)]  # the context holds 256
    assert sent(prompt=long, truncate_prompt_tokens=-1, max_tokens=56) == long[-200:]
    echo = httpx.post(server.url + TEXT, json={"prompt": "a b c d", "echo": True, "truncate_prompt_tokens": 2}).json()
    assert not echo["choices"][0]["text"].startswith("a b")


def test_async_and_streaming_client(server: Running) -> None:
    async def ask() -> tuple[str, str, int]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="EMPTY") as client:
            whole = await client.completions.create(
                model="fake", prompt="x", max_tokens=5, n=2, extra_body={"best_of": 3}
            )
            stream = await client.chat.completions.create(
                model="fake", messages=[USER], stream=True, n=2, logprobs=True, stream_options={"include_usage": True}
            )
            text, tokens = "", 0
            async for chunk in stream:
                for choice in chunk.choices:
                    text += (choice.delta.content or "") if choice.index == 1 else ""
                tokens = chunk.usage.completion_tokens if chunk.usage else tokens
            return whole.choices[1].text, text, tokens

    best, text, tokens = asyncio.run(ask())
    assert best and text == ANSWER and tokens > 20


def test_nothing_runs_on_after_a_failed_beam() -> None:
    with running(FakeClient(fail_after=0)) as server:
        body = {"prompt": ["a", "b"], "use_beam_search": True, "n": 3, "max_tokens": 4}
        assert httpx.post(server.url + TEXT, json=body).status_code == 500
        assert server.client.num_in_flight == 0


def test_beams(server: Running, client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="fake", prompt=["a", "b"], n=3, max_tokens=4, logprobs=1, extra_body={"use_beam_search": True}
    )
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert all(len(choice.logprobs.tokens) == 4 and choice.finish_reason == "length" for choice in answer.choices)
    assert answer.usage.completion_tokens == 24
    chat = client.chat.completions.create(
        model="fake",
        messages=[USER],
        n=2,
        max_tokens=3,
        extra_body={"use_beam_search": True},  # type: ignore[list-item]
    )
    assert len(chat.choices) == 2 and chat.choices[0].message.content
