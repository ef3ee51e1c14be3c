"""The rest of `LLM`'s interface on the demo model: prompt forms, streams, queues, the tokenizer, what is refused."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from quire import LLM, BeamSearchParams, RequestError, RequestOutputKind, SamplingParams
from quire.errors import ConfigError
from quire.offline.names import ABSENT_METHODS
from quire.sources import resolve

GREEDY = SamplingParams(temperature=0, max_tokens=12)
TEXT = "Once upon a time"
USER = [{"role": "user", "content": "What is 3 plus 4?"}]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(model="demo", dtype="float32") as llm:
        yield llm


def test_prompt_dicts(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode(TEXT)
    [plain] = llm.generate(TEXT, GREEDY, use_tqdm=False)
    both = {"prompt_token_ids": ids, "prompt": "shown", "cache_salt": "s", "multi_modal_data": None}
    [output] = llm.generate(both, GREEDY, use_tqdm=False)
    assert (output.prompt, output.prompt_token_ids) == ("shown", ids)
    assert output.outputs[0].token_ids == plain.outputs[0].token_ids


def test_salts(llm: LLM) -> None:
    prompt = "The fox ran over the hill to the lake and saw the moon. " * 4

    def cached(salt: str | None) -> int:
        return llm.generate({"prompt": prompt, "cache_salt": salt}, GREEDY, use_tqdm=False)[0].num_cached_tokens

    llm.reset_prefix_cache()
    assert [cached("a"), cached("b"), cached(None)] == [0, 0, 0]
    assert min(cached("a"), cached("b"), cached(None)) > 0


@pytest.mark.parametrize(
    "prompt",
    [
        {"prompt_embeds": [1.0]}, {"encoder_prompt": "a", "decoder_prompt": "b"}, {"prompt": "a", "images": 1},
        {"prompt": "a", "multi_modal_data": {"image": 1}}, {}, {"prompt": 5}, {"prompt": "a", "cache_salt": 5},
        {"prompt_token_ids": "abc"}, 5, None, [None], [["a"]], {"prompt_token_ids": []},
    ],
)  # fmt: skip
def test_bad_prompts(llm: LLM, prompt: Any) -> None:
    for method in (
        llm.generate,
        llm.enqueue,
        llm.stream,
        lambda p: llm.beam_search(p, BeamSearchParams(beam_width=1, max_tokens=1)),
    ):
        with pytest.raises(RequestError):
            method(prompt)


def test_parameters_of_the_call(llm: LLM) -> None:
    with pytest.raises(RequestError, match="lora_request"):
        llm.generate(TEXT, GREEDY, lora_request=object())
    with pytest.raises(RequestError, match="SamplingParams"):
        llm.generate(TEXT, {"temperature": 0})
    with pytest.raises(RequestError, match="2 prompts but 1"):
        llm.generate(["a", "b"], GREEDY, priority=[1])
    with pytest.warns(UserWarning, match="priority has no effect"):
        llm.generate(["a", "b"], GREEDY, use_tqdm=False, priority=[1, 2])
    bars: list[Any] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            self.options, self.updates = options, 0
            bars.append(self)

        def update(self) -> None:
            self.updates += 1

        def set_postfix_str(self, *_: Any, **__: Any) -> None: ...

        def close(self) -> None: ...

    llm.generate(["a", "b"], GREEDY, use_tqdm=Bar)
    assert (bars[0].options["total"], bars[0].updates) == (2, 2)


def test_truncation(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode(TEXT * 3)

    def kept(**params: Any) -> list[int]:
        return llm.generate([ids], SamplingParams(max_tokens=2, **params), use_tqdm=False)[0].prompt_token_ids

    assert kept(truncate_prompt_tokens=4) == ids[-4:]
    assert kept(truncate_prompt_tokens=4, truncation_side="right") == ids[:4]
    assert kept(truncate_prompt_tokens=-1) == ids
    long = (ids * 1000)[: llm.ready.max_model_len + 100]
    [output] = llm.generate([long], SamplingParams(max_tokens=3, ignore_eos=True, truncate_prompt_tokens=-1), False)
    assert output.prompt_token_ids == long[-(llm.ready.max_model_len - 3) :] and len(output.outputs[0].token_ids) == 3


def test_outputs_have_every_attribute(llm: LLM) -> None:
    before = time.monotonic()
    [output] = llm.generate(TEXT, SamplingParams(temperature=1, seed=1, max_tokens=5, n=2, logprobs=1), use_tqdm=False)
    assert (output.finished, output.prompt, output.prompt_logprobs) == (True, TEXT, None)
    assert output.lora_request is None and output.kv_transfer_params is None and output.request_id.isdigit()
    times = output.metrics
    assert before <= times.arrival_time <= times.first_scheduled_time <= times.first_token_time
    assert times.first_token_time <= times.last_token_time == times.finished_time <= time.monotonic()
    assert times.num_generation_tokens == sum(len(c.token_ids) for c in output.outputs)
    for index, completion in enumerate(output.outputs):
        assert completion.index == index and completion.lora_request is None and completion.stop_reason is None
        assert len(completion.logprobs) == len(completion.token_ids) and completion.cumulative_logprob < 0


def test_ids_follow_the_order_of_prompts(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (20, 1, 5)]
    ids = [int(output.request_id) for output in llm.generate(["a"] * 3, params, use_tqdm=False)]
    assert ids == [ids[0], ids[0] + 1, ids[0] + 2]


def test_enqueue_and_wait(llm: LLM) -> None:
    first = llm.enqueue([TEXT, "The fox"], GREEDY)
    second = llm.enqueue("Hello", GREEDY)
    outputs = llm.wait_for_completion(use_tqdm=False)
    assert [output.request_id for output in outputs] == first + second
    assert [output.outputs[0].text for output in outputs] == [
        output.outputs[0].text for output in llm.generate([TEXT, "The fox", "Hello"], GREEDY, use_tqdm=False)
    ]
    assert llm.wait_for_completion(use_tqdm=False) == []


@pytest.mark.parametrize("kind", RequestOutputKind)
def test_streams(llm: LLM, kind: RequestOutputKind) -> None:
    params = SamplingParams(temperature=1, seed=4, max_tokens=15, n=2, logprobs=1, output_kind=kind, prompt_logprobs=0)
    prompts = [TEXT, "The fox"]
    whole = llm.generate(prompts, params, use_tqdm=False)
    seen: dict[str, list[Any]] = {}
    for output in llm.stream(prompts, params):
        assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
        seen.setdefault(output.request_id, []).append(output)
    assert len(seen) == 2
    for outputs, expected in zip([seen[id_] for id_ in sorted(seen, key=int)], whole, strict=True):
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
        for completion in expected.outputs:
            own = [c for output in outputs for c in output.outputs if c.index == completion.index]
            if kind == RequestOutputKind.DELTA:
                assert "".join(c.text for c in own) == completion.text and len(own) > 1
                assert [t for c in own for t in c.token_ids] == completion.token_ids
                assert [entry for c in own for entry in c.logprobs] == completion.logprobs
            elif kind == RequestOutputKind.CUMULATIVE:
                assert all(later.text.startswith(sooner.text) for sooner, later in itertools.pairwise(own))
                assert (own[-1].text, own[-1].token_ids) == (completion.text, completion.token_ids) and len(own) > 1
            else:
                assert own == [completion]
            assert own[-1].finish_reason == completion.finish_reason
            assert own[-1].cumulative_logprob == pytest.approx(completion.cumulative_logprob)


def test_who_stops_reading_stops_the_engine(llm: LLM) -> None:
    stream = llm.stream("Once", SamplingParams(max_tokens=1500, ignore_eos=True))
    next(stream)
    stream.close()
    llm.generate("Hello", GREEDY, use_tqdm=False)
    assert (llm.stats().num_running, llm._client.num_in_flight) == (0, 0)


def test_streams_of_the_best(llm: LLM) -> None:
    with pytest.raises(RequestError, match="FINAL_ONLY"):
        llm.stream(TEXT, SamplingParams(best_of=2))
    final = SamplingParams(best_of=3, seed=1, max_tokens=5, output_kind=RequestOutputKind.FINAL_ONLY)
    [output] = llm.stream(TEXT, final)
    assert output.outputs[0].token_ids == llm.generate(TEXT, final, use_tqdm=False)[0].outputs[0].token_ids


def test_chat_with_a_template_of_ones_own(llm: LLM) -> None:
    [output] = llm.chat(
        USER, GREEDY, use_tqdm=False, chat_template="{{ messages[0].content }} =", chat_template_kwargs={}
    )
    assert output.prompt == "What is 3 plus 4? ="
    many = llm.chat([USER, USER], GREEDY, use_tqdm=False)
    assert len(many) == 2 and many[0].outputs[0].text == many[1].outputs[0].text
    half = [*USER, {"role": "assistant", "content": "3 plus 4"}]
    [more] = llm.chat(half, GREEDY, use_tqdm=False, add_generation_prompt=False, continue_final_message=True)
    assert more.prompt.endswith("3 plus 4")


@pytest.mark.parametrize("name", ABSENT_METHODS)
def test_what_is_not_offered_says_why(llm: LLM, name: str) -> None:
    with pytest.raises(RequestError, match=f"LLM.{name} is not offered: ...") as error:
        getattr(llm, name)("anything", option=1)
    assert len(error.value.message) > 40


def test_settings_of_others() -> None:
    with pytest.raises(AttributeError, match=r"LLM\.ready"):
        _ = LLM.llm_engine.fget(None)
    for name, value in (
        ("runner", "pooling"),
        ("cpu_offload_gb", 4),
        ("enable_lora", True),
    ):
        with pytest.raises(ConfigError, match=name):
            LLM(**{name: value})
    with pytest.raises(ConfigError, match="Did you mean"):
        LLM(max_model_length=5)
    with pytest.raises(ConfigError, match="max-logprobs"):
        LLM(max_logprobs=-2)
    neutral = {"runner": "auto", "cpu_offload_gb": 0, "disable_log_stats": True, "hf_token": None, "task": "generate"}
    with LLM(**neutral, scheduling_policy="priority", max_num_seqs=1) as llm:
        order: list[str] = []
        for output in llm.stream(["a", "b", "c"], SamplingParams(max_tokens=4, ignore_eos=True), priority=[0, 2, 1]):
            if output.finished:
                order.append(output.prompt)
        assert order == ["a", "c", "b"]


def test_metrics(llm: LLM) -> None:
    found = {metric.name: metric.value for metric in llm.get_metrics()}
    assert found["quire:num_steps"] > 0 and found["quire:num_running"] == 0
    assert llm.reset_prefix_cache() is True


def test_the_tokenizer_has_the_names_and_answers_of_transformers(llm: LLM) -> None:
    ours = llm.get_tokenizer()
    theirs = PreTrainedTokenizerFast.from_pretrained(resolve("demo", None, weights=False))
    text = "Hello there, 3 + 4."
    ids = theirs.encode(text)
    assert ours.encode(text) == ids and ours(text)["input_ids"] == ids and ours([text])["input_ids"] == [ids]
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
    for skip in (False, True):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
        assert ours.batch_decode([ids, ids[:2]], skip) == theirs.batch_decode([ids, ids[:2]], skip_special_tokens=skip)
    assert ours.tokenize(text) == theirs.tokenize(text)
    assert ours.get_vocab() == theirs.get_vocab() and len(ours) == len(theirs)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert ours.convert_tokens_to_ids(ours.tokenize(text)) == theirs.convert_tokens_to_ids(theirs.tokenize(text))
    assert (ours.eos_token, ours.eos_token_id) == (theirs.eos_token, theirs.eos_token_id)
    assert (ours.bos_token, ours.pad_token_id) == (theirs.bos_token, theirs.pad_token_id)
    assert set(ours.all_special_ids) >= set(theirs.all_special_ids)
    for options in ({}, {"add_generation_prompt": True}):
        expected = theirs.apply_chat_template(USER, tokenize=False, **options)
        assert ours.apply_chat_template(USER, tokenize=False, **options) == expected
        assert ours.decode(ours.apply_chat_template(USER, **options)) == expected
    template = "{{ messages[0].content }}{{ mark }}"
    assert ours.apply_chat_template(USER, tokenize=False, chat_template=template, mark="!").endswith("4?!")
