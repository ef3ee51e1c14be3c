"""Prompt scores, candidates and beam search of `LLM`, against transformers on small random checkpoints in float32."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from transformers import PreTrainedModel

from quire import LLM, BeamSearchParams, RequestError, RequestOutput, SamplingParams

ENDS = [2, *range(10, 90)]
"""So many end tokens that a random model meets some."""


def prompt_of(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(4, checkpoints.VOCAB) for _ in range(length)]


class Model:
    """A checkpoint, by transformers and by us."""

    def __init__(self, folder: Path, ends: Any = 2, **settings: Any) -> None:
        self.theirs: PreTrainedModel = checkpoints.write("llama32", folder, eos_token_id=ends)
        self.llm = LLM(model=str(folder), dtype="float32", max_model_len=256, max_logprobs=-1, **settings)

    @torch.inference_mode()
    def logprobs(self, ids: list[int]) -> torch.Tensor:
        """[tokens, vocab]"""
        return torch.log_softmax(self.theirs(torch.tensor([ids])).logits[0].float(), -1)

    def check_scores(self, output: RequestOutput, most: int) -> None:
        """`prompt_logprobs` entry by entry: value, rank, text, and which tokens are there."""
        expected = self.logprobs(output.prompt_token_ids)
        entries = output.prompt_logprobs
        assert entries is not None and len(entries) == len(output.prompt_token_ids) and entries[0] is None
        for position, entry in enumerate(entries[1:]):
            line, token = expected[position], output.prompt_token_ids[position + 1]
            assert len(entry) in (most, most + 1) and token in entry
            top = line.topk(most).indices.tolist()
            assert set(entry) == {token, *top}
            for id_, found in entry.items():
                assert abs(found.logprob - float(line[id_])) < 1e-4
                assert found.decoded_token == self.llm.get_tokenizer().token_text(id_)
            low, high = (
                1 + int((line > line[token] + by).sum()) for by in (1e-5, -1e-5)
            )  # neighbours may change places
            assert low <= entry[token].rank <= high
            assert sorted(entry[id_].rank for id_ in top) == list(range(1, most + 1))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model(tmp_path_factory.mktemp("model"))
    with model.llm:
        yield model


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Small chunks, and so few blocks that requests preempt each other."""
    small = {"max_num_batched_tokens": 24, "max_num_seqs": 8, "num_gpu_blocks_override": 34, "block_size": 8}
    model = Model(tmp_path_factory.mktemp("tight"), **small)
    with model.llm:
        yield model


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model(tmp_path_factory.mktemp("ending"), ENDS)
    with model.llm:
        yield model


@pytest.fixture(scope="module")
def uncached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model(tmp_path_factory.mktemp("uncached"), enable_prefix_caching=False)
    with model.llm:
        yield model


def test_scores_of_prompts(model: Model) -> None:
    params = [
        SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, prompt_logprobs=most, logprobs=2)
        for most in (0, 1, 5, 3)
    ]
    prompts = [prompt_of(length, length) for length in (1, 2, 40, 200)]
    plain = model.llm.generate(prompts, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True), use_tqdm=False)
    for _ in range(2):  # the second time the cache holds all of it
        outputs = model.llm.generate(prompts, params, use_tqdm=False)
        for output, asked, without in zip(outputs, params, plain, strict=True):
            model.check_scores(output, asked.prompt_logprobs)
            assert output.outputs[0].token_ids == without.outputs[0].token_ids
            assert output.num_cached_tokens == 0
    assert without.prompt_logprobs is None


def test_scores_of_all_tokens(model: Model) -> None:
    [output] = model.llm.generate([prompt_of(20)], SamplingParams(max_tokens=1, logprobs=-1, prompt_logprobs=-1))
    model.check_scores(output, checkpoints.VOCAB)
    [entry] = output.outputs[0].logprobs
    assert len(entry) == checkpoints.VOCAB
    assert math.fsum(math.exp(found.logprob) for found in entry.values()) == pytest.approx(1, abs=1e-4)


def test_scores_in_chunks_and_through_preemption(tight: Model) -> None:
    prompts = [prompt_of(100, 3)[: 40 + 7 * i] + prompt_of(20, i) for i in range(8)]
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, prompt_logprobs=2)
    before = tight.llm.stats().num_preemptions
    outputs = tight.llm.generate(prompts, params, use_tqdm=False)
    assert tight.llm.stats().num_preemptions > before
    for output in outputs:
        tight.check_scores(output, 2)
        ids = output.prompt_token_ids + output.outputs[0].token_ids
        assert tight.logprobs(ids)[len(output.prompt_token_ids) - 1 : -1].argmax(-1).tolist() == ids[-60:]


def test_the_limit_is_a_setting(tmp_path: Path) -> None:
    with LLM(max_logprobs=3) as llm:
        for name, value in (("logprobs", 4), ("prompt_logprobs", 4), ("logprobs", -1), ("prompt_logprobs", -1)):
            with pytest.raises(RequestError, match="max-logprobs") as error:
                llm.generate("a", SamplingParams(**{name: value}), use_tqdm=False)
            assert error.value.param == name
        assert llm.generate("a", SamplingParams(logprobs=3, max_tokens=1), use_tqdm=False)


# ---- candidates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["model", "uncached", "tight"])
def test_a_prompt_is_computed_once(which: str, request: pytest.FixtureRequest) -> None:
    """Counted by the engine: tokens run in all steps."""
    llm = request.getfixturevalue(which).llm
    llm.reset_prefix_cache()
    before = llm.stats().num_step_tokens
    count, length, size = 6, 150, llm.ready.block_size
    params = SamplingParams(n=count, temperature=1, seed=1, max_tokens=2, ignore_eos=True, prompt_logprobs=0)
    [output] = llm.generate([prompt_of(length, 77)], params, use_tqdm=False)
    ran = llm.stats().num_step_tokens - before
    rest = length - (length - 1) // size * size
    assert len(output.outputs) == count and len(output.prompt_logprobs) == length
    assert length + (count - 1) * rest + count <= ran <= length + (count - 1) * rest + 3 * count


@pytest.mark.parametrize("which", ["model", "uncached"])
def test_best_of_equals_ranking_by_hand(which: str, request: pytest.FixtureRequest) -> None:
    llm = request.getfixturevalue(which).llm
    prompts = [prompt_of(30, seed) for seed in range(3)]
    shared: dict[str, Any] = {"temperature": 1.3, "seed": 11, "max_tokens": 12, "ignore_eos": True}
    every = llm.generate(prompts, SamplingParams(n=7, logprobs=2, **shared), use_tqdm=False)
    best = llm.generate(prompts, SamplingParams(n=3, best_of=7, logprobs=2, **shared), use_tqdm=False)
    quiet = llm.generate(prompts, SamplingParams(n=1, best_of=7, **shared), use_tqdm=False)
    for all_of_them, chosen, one in zip(every, best, quiet, strict=True):
        by_hand = sorted(all_of_them.outputs, key=lambda c: c.cumulative_logprob, reverse=True)
        assert [c.token_ids for c in chosen.outputs] == [c.token_ids for c in by_hand[:3]]
        assert [c.index for c in chosen.outputs] == [0, 1, 2]
        for mine, theirs in zip(chosen.outputs[0].logprobs, by_hand[0].logprobs, strict=True):
            assert {token: found.rank for token, found in mine.items()} == {t: f.rank for t, f in theirs.items()}
        assert one.outputs[0].token_ids == by_hand[0].token_ids and one.outputs[0].logprobs is None
        assert one.outputs[0].cumulative_logprob == pytest.approx(by_hand[0].cumulative_logprob, abs=1e-5)


def test_candidates_alone_equal_candidates_together(model: Model) -> None:
    """The first candidate's seed is the request's own, so it is what n=1 gives; sums are checked by transformers."""
    prompt = prompt_of(50, 5)
    shared: dict[str, Any] = {"temperature": 0.9, "seed": 3, "max_tokens": 10, "ignore_eos": True, "logprobs": 0}
    [alone] = model.llm.generate([prompt], SamplingParams(**shared), use_tqdm=False)
    [first, again] = model.llm.generate([prompt, prompt], SamplingParams(n=5, **shared), use_tqdm=False)
    assert [c.token_ids for c in first.outputs] == [c.token_ids for c in again.outputs]
    assert first.outputs[0].token_ids == alone.outputs[0].token_ids
    assert len({tuple(c.token_ids) for c in first.outputs}) > 1
    for completion in first.outputs:
        expected = model.logprobs(prompt + completion.token_ids)[len(prompt) - 1 : -1]
        total = expected.gather(1, torch.tensor(completion.token_ids)[:, None]).sum()
        assert completion.cumulative_logprob == pytest.approx(float(total), abs=1e-3)


# ---- beam search -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "length"), [(1, 8), (2, 12), (4, 10), (5, 20)])
def test_beam_search_equals_transformers(model: Model, width: int, length: int) -> None:
    """Without an end token all hypotheses have one length, and both definitions are the same."""
    prompts = [prompt_of(n, n) for n in (3, 17, 40)]
    params = BeamSearchParams(beam_width=width, max_tokens=length, ignore_eos=True)
    for prompt, output in zip(prompts, model.llm.beam_search(prompts, params), strict=True):
        theirs = model.theirs.generate(
            torch.tensor([prompt]), num_beams=width, num_return_sequences=width, max_new_tokens=length, do_sample=False,
            eos_token_id=None, pad_token_id=0, length_penalty=0.0, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        assert [sequence.tokens for sequence in output.sequences] == theirs.sequences.tolist()
        for sequence, score in zip(output.sequences, theirs["sequences_scores"] if width > 1 else [], strict=False):
            assert sequence.cum_logprob == pytest.approx(float(score), abs=1e-3)
        for sequence in output.sequences:
            assert (sequence.finish_reason, sequence.stop_reason, len(sequence.logprobs)) == ("length", None, length)
            chosen = sequence.tokens[len(prompt) :]
            total = sum(entry[token].logprob for entry, token in zip(sequence.logprobs, chosen, strict=True))
            assert sequence.cum_logprob == pytest.approx(total)
            assert sequence.text == model.llm.get_tokenizer().decode(sequence.tokens, skip_special_tokens=False)


def reference_search(model: Model, prompt: list[int], params: BeamSearchParams) -> list[tuple[list[int], float]]:
    """Beam search written from its rules, over transformers' log-probabilities."""
    beams: list[tuple[list[int], float]] = [([], 0.0)]
    done: list[tuple[list[int], float]] = []
    for _ in range(params.max_tokens):
        grown = []
        for ids, total in beams:
            top = model.logprobs(prompt + ids)[-1].topk(2 * params.beam_width)
            grown += [([*ids, t], total + v) for t, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
        done += [beam for beam in grown if beam[0][-1] in ENDS]
        beams = sorted((b for b in grown if b[0][-1] not in ENDS), key=lambda b: -b[1])[: params.beam_width]

    def score(beam: tuple[list[int], float]) -> float:
        return beam[1] / (len(prompt) + len(beam[0]) - (beam[0][-1] in ENDS)) ** params.length_penalty

    return sorted(done + beams, key=score, reverse=True)[: params.beam_width]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5, -1.0])
def test_beam_search_with_end_tokens(ending: Model, penalty: float) -> None:
    ended = 0
    for seed, keep in itertools.product(range(2), (False, True)):
        prompt = prompt_of(2 + seed, 100 + seed)
        params = BeamSearchParams(beam_width=6, max_tokens=9, length_penalty=penalty, include_stop_str_in_output=keep)
        expected = reference_search(ending, prompt, params)
        [output] = ending.llm.beam_search([prompt], params)
        shown = [ids if keep or ids[-1] not in ENDS else ids[:-1] for ids, _ in expected]
        assert [sequence.tokens[len(prompt) :] for sequence in output.sequences] == shown
        for sequence, (ids, total) in zip(output.sequences, expected, strict=True):
            assert sequence.cum_logprob == pytest.approx(total, abs=1e-3)
            assert sequence.stop_reason == (ids[-1] if ids[-1] in ENDS else None)
            ended += ids[-1] in ENDS
    assert ended or penalty > 2  # which prefers the long ones


def test_beams_share_the_prompt(model: Model) -> None:
    prompt = prompt_of(160, 9)
    model.llm.reset_prefix_cache()
    before = model.llm.stats().num_step_tokens
    model.llm.beam_search([prompt], BeamSearchParams(beam_width=4, max_tokens=10, ignore_eos=True))
    ran = model.llm.stats().num_step_tokens - before
    assert ran <= 160 + 10 * 4 * (model.llm.ready.block_size + 1)


def test_bad_beams(model: Model) -> None:
    for name, value in (
        ("beam_width", 0), ("beam_width", 65), ("max_tokens", 0), ("temperature", 0.7), ("length_penalty", math.nan),
        ("length_penalty", 11), ("ignore_eos", 1), ("beam_width", "2"),
    ):  # fmt: skip
        with pytest.raises(RequestError) as error:
            BeamSearchParams(**{"beam_width": 2, "max_tokens": 2, name: value})
        assert error.value.param == name
