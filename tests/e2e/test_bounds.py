"""Listed and flat log-probabilities, answers that repeat themselves, bounded thoughts, intervals: on real engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import checkpoints
import pytest

from quire import LLM, RepetitionDetectionParams, RequestError, RequestOutputKind, SamplingParams

PROMPT = [5, 9, 77, 300]
LISTED = [3, 400, 17, 3]
TEMPLATE = checkpoints.TEMPLATE.replace(
    "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
)
USER = [{"role": "user", "content": "the quick brown fox"}]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder: Path = tmp_path_factory.mktemp("model")
    checkpoints.write("llama32", folder)
    template = folder / "thinking.jinja"
    template.write_text(TEMPLATE)
    with LLM(str(folder), dtype="float32", max_model_len=256, max_logprobs=-1, chat_template=str(template)) as llm:
        yield llm


def test_listed_tokens_have_the_log_probabilities_that_all_tokens_have(llm: LLM) -> None:
    plain = SamplingParams(max_tokens=6, seed=1, ignore_eos=True, logprobs=-1)
    listed = SamplingParams(max_tokens=6, seed=1, ignore_eos=True, logprob_token_ids=LISTED)
    some = SamplingParams(max_tokens=6, seed=1, ignore_eos=True, logprobs=2)
    outputs = llm.generate([PROMPT] * 3, [plain, listed, some], use_tqdm=False)
    [everything], [found], [top] = (output.outputs for output in outputs)
    assert found.token_ids == everything.token_ids == top.token_ids
    for token, entry, whole, likely in zip(
        found.token_ids, found.logprobs, everything.logprobs, top.logprobs, strict=True
    ):
        assert set(entry) == {token, *LISTED} and set(likely) <= set(whole) and len(likely) in (2, 3)
        for id_, one in entry.items():
            assert one.logprob == pytest.approx(whole[id_].logprob, abs=1e-5)
            assert one.rank == (whole[id_].rank if id_ == token else None)
            assert one.decoded_token == whole[id_].decoded_token
    assert found.cumulative_logprob == pytest.approx(everything.cumulative_logprob, abs=1e-4)
    with pytest.raises(RequestError, match="logprob_token_ids: 512 is outside"):
        llm.generate(PROMPT, SamplingParams(logprob_token_ids=[512]))


def test_flat_log_probabilities_read_like_the_others(llm: LLM) -> None:
    wishes = {"max_tokens": 5, "seed": 1, "logprobs": 3, "prompt_logprobs": 2, "ignore_eos": True}
    flat, plain = (
        llm.generate(PROMPT, SamplingParams(**wishes, flat_logprobs=flat), use_tqdm=False)[0] for flat in (True, False)
    )
    scores = flat.outputs[0].logprobs
    assert (
        list(scores) == plain.outputs[0].logprobs and len(scores) == 5 and scores[-1] == plain.outputs[0].logprobs[-1]
    )
    assert list(scores[1:3]) == plain.outputs[0].logprobs[1:3]
    assert flat.prompt_logprobs[0] is None and list(flat.prompt_logprobs)[1:] == plain.prompt_logprobs[1:]
    assert scores.token_ids[scores.start_indices[2] : scores.end_indices[2]] == list(scores[2])


def test_an_answer_that_repeats_itself_ends(llm: LLM) -> None:
    watch = RepetitionDetectionParams(max_pattern_size=4, min_pattern_size=2, min_count=3)
    params = SamplingParams(temperature=0, max_tokens=50, allowed_token_ids=[8], repetition_detection=watch)
    free = SamplingParams(temperature=0, max_tokens=50, allowed_token_ids=[8])
    [ended], [whole] = (output.outputs for output in llm.generate([PROMPT] * 2, [params, free], use_tqdm=False))
    assert (ended.token_ids, ended.finish_reason, ended.stop_reason) == ([8] * 6, "repetition", "repetition_detected")
    assert (len(whole.token_ids), whole.finish_reason) == (50, "length")


def test_an_interval_of_its_own(llm: LLM) -> None:
    wishes = {"max_tokens": 11, "ignore_eos": True, "output_kind": RequestOutputKind.DELTA}
    for interval, least, most in ((None, 11, 11), (4, 2, 4)):
        params = SamplingParams(**wishes, stream_interval=interval)
        sizes = [len(output.outputs[0].token_ids) for output in llm.stream(PROMPT, params)]
        assert sum(sizes) == 11 and least <= len(sizes) <= most


@pytest.mark.parametrize("budget", [0, 3, 7])
def test_thoughts_are_closed_when_their_budget_is_used_up(llm: LLM, budget: int) -> None:
    """The template opens them; the closing tag is several tokens here."""
    end = llm.get_tokenizer().encode("</think>", add_special_tokens=False)
    assert len(end) > 1
    wishes = {"max_tokens": 40, "seed": 5, "ignore_eos": True}
    bounded, free = (
        llm.chat(USER, SamplingParams(**wishes, **more), use_tqdm=False)[0].outputs[0].token_ids
        for more in ({"thinking_token_budget": budget}, {})
    )
    assert bounded[:budget] == free[:budget] and bounded[budget : budget + len(end)] == end and len(bounded) == 40
    assert "</think>" not in llm.get_tokenizer().decode(free)
    again = llm.chat(USER, SamplingParams(**wishes, thinking_token_budget=budget, n=2), use_tqdm=False)[0].outputs
    assert all(one.token_ids[budget : budget + len(end)] == end for one in again)


def test_a_form_begins_behind_the_closed_thoughts(llm: LLM) -> None:
    params = SamplingParams(
        max_tokens=60, seed=5, thinking_token_budget=4, structured_outputs={"choice": ["owl", "fox"]}
    )
    [answer] = llm.chat(USER, params, use_tqdm=False)[0].outputs
    thoughts, _, form = answer.text.partition("</think>")
    assert thoughts and form.strip() in ("owl", "fox") and answer.finish_reason == "stop"
