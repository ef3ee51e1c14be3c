"""What a request becomes before the engine sees it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))
from fake_engine import ANSWER, FACTS, FakeClient, make_service

from quire.errors import EngineDeadError, RequestError, UnavailableError
from quire.frontend.candidates import candidates
from quire.frontend.service import PreparedRequest
from quire.params import SamplingParams

END = FACTS.eos_token_ids[0]


def prepare(prompt: str | Sequence[int] = (5, 6, 7), **fields: Any) -> PreparedRequest:
    return make_service(FakeClient()).prepare(prompt, SamplingParams(**fields))


def refused(prompt: Any = (5, 6, 7), **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        prepare(prompt, **fields)
    return caught.value


def test_texts_and_ids() -> None:
    prepared = prepare("Hello")
    assert prepared.prompt == "Hello" and prepared.prompt_ids == make_service(FakeClient()).encode("Hello")
    assert prepare([5, 6]).prompt is None
    numpy = pytest.importorskip("numpy")
    assert prepare(numpy.array([5, 6])).prompt_ids == [5, 6]


@pytest.mark.parametrize("ids", [[], [-1], [512], [2**63], [1.5], ["a"]])
def test_bad_ids(ids: Any) -> None:
    assert refused(ids).param == "prompt"


def test_max_tokens() -> None:
    assert prepare([5] * 255, max_tokens=1).params.max_tokens == 1
    assert prepare([5] * 100, max_tokens=None).params.max_tokens == 156
    service = make_service(FakeClient())
    open_end = SamplingParams(max_tokens=None)
    assert service.prepare([5], open_end, default_max_tokens=16).params.max_tokens == 16
    assert service.prepare([5] * 250, open_end, default_max_tokens=16).params.max_tokens == 6
    assert open_end.max_tokens is None
    params = SamplingParams(max_tokens=None, min_tokens=30)
    assert service.prepare([5], params, default_max_tokens=16).params.max_tokens == 30
    error = refused([5] * 250, max_tokens=7)
    assert error.code == "context_length_exceeded" and error.param == "max_tokens" and "at most 6" in error.message
    error = refused([5] * 256, max_tokens=1)
    assert error.param == "prompt" and "255 tokens or less" in error.message
    assert refused([5] * 250, max_tokens=None, min_tokens=7).param == "min_tokens"
    assert refused("x" * 200_000).code == "context_length_exceeded"


def test_stop_tokens() -> None:
    assert prepare(stop_token_ids=[9, 9]).stop_token_ids == [9, END]
    assert prepare(ignore_eos=True).stop_token_ids == []
    assert refused(stop_token_ids=[512]).param == "stop_token_ids"
    assert refused(logprobs=21).param == "logprobs"


def test_defaults_of_the_checkpoint() -> None:
    params = make_service(FakeClient()).default_params()
    assert (params.temperature, params.top_k, params.max_tokens) == (0.5, 7, 100)
    params = make_service(FakeClient(), use_generation_config=False).default_params()
    assert (params.temperature, params.top_k, params.max_tokens) == (1.0, 0, 16)


def test_start_and_read() -> None:
    async def main() -> list[str]:
        service = make_service(FakeClient())
        streams = service.start(service.prepare("x", SamplingParams(n=2, max_tokens=60)))
        return [(await stream.collect()).text for stream in streams]

    assert asyncio.run(main()) == [ANSWER, ANSWER]


def test_start_fails_as_a_whole() -> None:
    async def main() -> None:
        client = FakeClient()
        service = make_service(client)
        prepared = service.prepare("x", SamplingParams(n=3))
        submit, calls = client.submit, []

        def failing(*args: Any, **more: Any) -> None:
            calls.append(1)
            if len(calls) == 3:
                client.dead = True
            submit(*args, **more)

        client.submit = failing  # type: ignore[method-assign]
        with pytest.raises(EngineDeadError):
            service.start(prepared)
        assert client.num_in_flight == 0

    asyncio.run(main())


def test_not_ready() -> None:
    client = FakeClient()
    service = make_service(client)
    client.ready = None
    with pytest.raises(UnavailableError):
        service.prepare("x", SamplingParams())


def test_seeds_follow_the_engines_seed() -> None:
    first, second, other = (make_service(FakeClient(), seed=seed) for seed in (0, 0, 1))
    params = SamplingParams(n=4)
    seeds = [[one.seed for one in candidates(params, s._random)] for s in (first, second, other)]
    assert seeds[0] == seeds[1] != seeds[2] and len(set(seeds[0])) == 4
    extreme = candidates(SamplingParams(n=16, seed=-(2**63)), first._random)
    assert all(-(2**63) <= one.seed < 2**63 for one in extreme)


def test_a_bound_on_thoughts_is_put_into_tokens() -> None:
    client = FakeClient()
    service = make_service(client)
    with pytest.raises(RequestError, match="shows no thoughts"):
        service.prepare("Hi", SamplingParams(thinking_token_budget=5))
    service.reasoning_parser = "qwen3"
    end = service.encode("</think>", add_special_tokens=False)
    inside = service.prepare("Hi <think>\n", SamplingParams(thinking_token_budget=5))
    limit = inside.params.thinking_limit
    assert limit is not None and (limit.budget, limit.end, limit.inside) == (5, end, True)
    as_ids = service.prepare(inside.prompt_ids, SamplingParams(thinking_token_budget=5))
    assert as_ids.params.thinking_limit == limit
    closed = service.prepare("Hi <think>\n\n</think>\n\n", SamplingParams(thinking_token_budget=5))
    assert closed.params.thinking_limit is None
