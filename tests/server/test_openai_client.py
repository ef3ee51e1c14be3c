"""The official client against the real HTTP stack; only the engine is a fake."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest
from fake_engine import ANSWER, Running, running
from vocabularies import chat_tokenizer

NUM_TOKENS = len(chat_tokenizer().encode(ANSWER, add_special_tokens=False)) + 1
MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="EMPTY", max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=MESSAGES)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer.model == "fake"
    assert answer.system_fingerprint.startswith("quire-")
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    assert choice.stop_reason is None
    usage = answer.usage
    prompt = "<s><|user|>Hello<|end|><|assistant|>"
    assert usage.prompt_tokens == len(chat_tokenizer().encode(prompt, add_special_tokens=False))
    assert (usage.completion_tokens, usage.total_tokens) == (NUM_TOKENS, usage.prompt_tokens + NUM_TOKENS)
    assert usage.prompt_tokens_details.cached_tokens == 4


def test_chat_parameters_reach_the_engine(server: Running, client: openai.OpenAI) -> None:
    client.chat.completions.create(
        model="org/fake",
        messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        temperature=0.3,
        max_completion_tokens=5,
        stop=["zz"],
        seed=11,
        extra_body={"min_p": 0.1, "priority": 3, "cache_salt": "s1", "stop_token_ids": [9], "ignore_eos": True},
    )
    ids, params, more = server.client.submitted[-1]
    assert chat_tokenizer().decode(ids, False) == "<s><|user|>a\nb<|end|><|assistant|>"
    assert (params.temperature, params.top_k, params.min_p, params.seed, params.max_tokens) == (0.3, 7, 0.1, 11, 5)
    assert (params.n, params.stop) == (1, ["zz"])
    expected = {"stop_token_ids": [9], "priority": 3, "cache_salt": "s1", "first": None, "constraint": None,
                "tenant": "", "start_by": 0.0, "pictures": []}  # fmt: skip
    assert more == expected


def test_chat_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="fake", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].object == "chat.completion.chunk"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == ANSWER
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == NUM_TOKENS
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_continuous_usage(client: openai.OpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client.chat.completions.create(model="fake", messages=MESSAGES, stream=True, stream_options=options))
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert counts == sorted(counts) and counts[-1] == NUM_TOKENS and len(counts) > 5


def test_stop_string_and_length(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=MESSAGES, stop="how are")
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason, choice.stop_reason) == ("Hello world, ", "stop", "how are")
    answer = client.chat.completions.create(model="fake", messages=MESSAGES, max_tokens=2)
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 2)
    streamed = client.completions.create(model="fake", prompt="x", stop=["how are"], max_tokens=50, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "Hello world, "


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="fake", messages=MESSAGES, logprobs=True, top_logprobs=2, max_tokens=4
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == 4 and all(len(entry.top_logprobs) == 2 for entry in content)
    assert "".join(entry.token for entry in content) == answer.choices[0].message.content
    assert bytes(b for entry in content for b in entry.bytes).decode() == answer.choices[0].message.content
    chunks = client.chat.completions.create(
        model="fake", messages=MESSAGES, logprobs=True, top_logprobs=0, max_tokens=4, stream=True
    )
    entries = [entry for c in chunks if c.choices[0].logprobs for entry in c.choices[0].logprobs.content]
    assert len(entries) == 4 and entries[0].logprob == -0.5


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt="Say hello", max_tokens=100)
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion"
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (ANSWER, "stop")
    answer = client.completions.create(model="fake", prompt="Say hello")
    assert answer.usage.completion_tokens == 16
    assert answer.usage.prompt_tokens == len(chat_tokenizer().encode("Say hello"))


def test_completion_prompts_and_choices(client: openai.OpenAI) -> None:
    for prompt, count in (([5, 6, 7], 1), ([[5], [6, 7]], 2), (["a", "b", "c"], 3)):
        answer = client.completions.create(model="fake", prompt=prompt, n=2, temperature=1, max_tokens=3)
        assert [choice.index for choice in answer.choices] == list(range(2 * count))
        assert answer.usage.completion_tokens == 3 * 2 * count
    stream = client.completions.create(model="fake", prompt=["a", "b"], n=2, temperature=1, max_tokens=50, stream=True)
    texts, ends = [""] * 4, [None] * 4
    for chunk in stream:
        choice = chunk.choices[0]
        texts[choice.index] += choice.text
        ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == [ANSWER] * 4 and ends == ["stop"] * 4


def test_completion_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt="a", max_tokens=5, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert logprobs.token_logprobs == [-0.5] * 5
    text = answer.choices[0].text
    assert [text[at : at + 1] for at in logprobs.text_offset] == [token[:1] for token in logprobs.tokens]
    assert all(2 <= len(top) <= 3 for top in logprobs.top_logprobs)


def test_seeds_of_choices(server: Running, client: openai.OpenAI) -> None:
    for _ in range(2):
        client.completions.create(model="fake", prompt="a", n=3, seed=42, temperature=1, max_tokens=1)
    seeds = [params.seed for _, params, _ in server.client.submitted[-6:]]
    assert seeds[:3] == seeds[3:] and len(set(seeds)) == 3 and seeds[0] == 42
    client.completions.create(model="fake", prompt="a", n=2, temperature=1, max_tokens=1)
    drawn = [params.seed for _, params, _ in server.client.submitted[-2:]]
    assert len({*drawn, *seeds}) == 5


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake", "org/fake"]
    assert client.models.retrieve("org/fake").id == "org/fake"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_unknown_model_lists_served_names(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4\n", messages=MESSAGES)
    assert "'fake', 'org/fake'" in caught.value.message and "\n" not in caught.value.body["message"]
    assert caught.value.code == "model_not_found"


def test_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fake", messages=MESSAGES, temperature=-1)
    assert caught.value.param == "temperature" and "-1" in caught.value.message


def test_async_64_at_once(server: Running) -> None:
    async def ask(client: openai.AsyncOpenAI, i: int) -> str:
        if i % 2:
            stream = await client.chat.completions.create(model="fake", messages=MESSAGES, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        answer = await client.chat.completions.create(model="fake", messages=MESSAGES)
        return answer.choices[0].message.content or ""

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="EMPTY") as client:
            return await asyncio.gather(*(ask(client, i) for i in range(64)))

    assert asyncio.run(main()) == [ANSWER] * 64
    assert server.client.num_in_flight == 0
