"""The served API against transformers on a random checkpoint: what scoring tools, and users of candidates, rely on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import checkpoints
import httpx
import openai
import pytest
import torch
from test_serve import Server
from transformers import PreTrainedModel

from quire.frontend.tokenizer import Tokenizer

TEXT = "the quick brown fox jumps over the lazy dog while seven wise owls watch; " * 3


FLAGS = ("--max-logprobs", "25", "--trust-request-chat-template", "--scheduling-policy", "priority")


class Served:
    """A checkpoint, by transformers and by our server."""

    def __init__(self, folder: Path) -> None:
        self.theirs: PreTrainedModel = checkpoints.write("llama32", folder)
        self.tokenizer = Tokenizer.from_folder(folder)
        self.server = Server(str(folder), "--dtype", "float32", "--served-model-name", "m", *FLAGS)
        self.server.wait_ready()
        self.client = openai.OpenAI(base_url=self.server.url + "/v1", api_key="EMPTY", max_retries=0)

    @torch.inference_mode()
    def logprobs(self, ids: list[int]) -> torch.Tensor:
        """[tokens, vocab]"""
        return torch.log_softmax(self.theirs(torch.tensor([ids])).logits[0].float(), -1)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"))
    yield served
    served.server.stop()


@pytest.mark.parametrize("max_tokens", [0, 1, 6])
@pytest.mark.parametrize("stream", [False, True])
def test_a_text_is_scored_as_evaluation_tools_do_it(served: Served, max_tokens: int, stream: bool) -> None:
    """completions with echo and logprobs, by text and by ids; the second time the prompt is in the cache."""
    ids = served.tokenizer.encode(TEXT)
    for prompt in (TEXT, ids, TEXT):
        answer = served.client.completions.create(
            model="m", prompt=prompt, max_tokens=max_tokens, echo=True, logprobs=3, temperature=0, stream=stream,
            extra_body={"ignore_eos": True, "return_token_ids": True, "return_tokens_as_token_ids": True},
        )  # fmt: skip
        choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
        text = "".join(choice.text for choice in choices)
        shapes = [choice.logprobs for choice in choices if choice.logprobs]
        found = [value for shape in shapes for value in shape.token_logprobs]
        tops = [top for shape in shapes for top in shape.top_logprobs]
        new = [token for choice in choices for token in getattr(choice, "token_ids", None) or []]
        assert text.startswith(TEXT) and len(found) == len(tops) == len(ids) + max_tokens == len(ids) + len(new)
        expected = served.logprobs(ids + new)
        assert found[0] is None and tops[0] is None
        for position, (value, token) in enumerate(zip(found[1:], [*ids, *new][1:], strict=True)):
            assert value == pytest.approx(float(expected[position, token]), abs=1e-4)
            best = float(expected[position].max())
            assert max(tops[position + 1].values()) == pytest.approx(best, abs=1e-4)


def test_prompt_logprobs_in_chat(served: Served) -> None:
    messages = [{"role": "user", "content": TEXT}]
    body = {"prompt_logprobs": 25, "return_token_ids": True}
    answer = served.client.chat.completions.create(model="m", messages=messages, max_tokens=2, extra_body=body)
    expected = served.logprobs(answer.prompt_token_ids)
    assert len(answer.prompt_logprobs) == answer.usage.prompt_tokens and answer.prompt_logprobs[0] is None
    for position, entry in enumerate(answer.prompt_logprobs[1:]):
        token = answer.prompt_token_ids[position + 1]
        line = expected[position]
        assert {int(id_) for id_ in entry} == {token, *line.topk(25).indices.tolist()}
        for id_, one in entry.items():
            assert one["logprob"] == pytest.approx(float(line[int(id_)]), abs=1e-4)
        assert entry[str(token)]["rank"] == 1 + int((line > line[token]).sum())
    too_many = {"messages": messages, "prompt_logprobs": 26}
    refused = httpx.post(served.server.url + "/v1/chat/completions", json=too_many)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "prompt_logprobs"


def test_a_template_of_the_request(served: Served) -> None:
    body = {"chat_template": "{{ messages[0].content }}!", "return_prompt_text": True, "priority": 3}
    answer = served.client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "fox"}], max_tokens=1, extra_body=body
    )
    assert answer.prompt_text == "fox!" and not hasattr(answer, "warnings")


def test_best_of_is_the_best_of_its_candidates(served: Served) -> None:
    shared = {"model": "m", "prompt": TEXT, "temperature": 1.2, "seed": 9, "max_tokens": 8, "logprobs": 0}
    ignore = {"ignore_eos": True}
    every = served.client.completions.create(**shared, n=6, extra_body=ignore)
    best = served.client.completions.create(**shared, n=2, best_of=6, extra_body=ignore)
    ranked = sorted(every.choices, key=lambda choice: -sum(choice.logprobs.token_logprobs))
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert best.usage.completion_tokens == 48 and every.usage.prompt_tokens_details.cached_tokens > 0


def test_beams_over_http(served: Served) -> None:
    ids = served.tokenizer.encode(TEXT)
    answer = served.client.completions.create(
        model="m", prompt=TEXT, n=3, max_tokens=7, temperature=0,
        extra_body={"use_beam_search": True, "ignore_eos": True, "return_token_ids": True},
    )  # fmt: skip
    theirs = served.theirs.generate(
        torch.tensor([ids]), num_beams=3, num_return_sequences=3, max_new_tokens=7, do_sample=False,
        eos_token_id=None, pad_token_id=0, length_penalty=0.0,
    )  # fmt: skip
    assert [choice.token_ids for choice in answer.choices] == theirs[:, len(ids) :].tolist()
    assert [choice.text for choice in answer.choices] == [
        served.tokenizer.decode(choice.token_ids) for choice in answer.choices
    ]
    assert served.server.metric("vllm:num_requests_running") == 0
