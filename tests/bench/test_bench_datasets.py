"""Prompts: lengths, seeds, shared prefixes, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vocabularies import byte_fallback_core, byte_level_core

from quire.bench.datasets import Sample, build
from quire.bench.options import DatasetOptions
from quire.bench.vocabulary import UNKNOWN_VOCABULARY, Vocabulary, vocabulary_of
from quire.errors import ConfigError


@pytest.fixture(scope="module")
def demo() -> Vocabulary:
    return vocabulary_of("demo", None, pytest.fail)


def make(vocabulary: Vocabulary | None, seed: int = 0, as_text: bool = False, **options: Any) -> list[Sample]:
    def get() -> Vocabulary:
        assert vocabulary is not None, "this dataset needs no vocabulary"
        return vocabulary

    return build(DatasetOptions(**options), get, seed, as_text=as_text)


@pytest.mark.parametrize("as_text", [False, True])
def test_random(demo: Vocabulary, as_text: bool) -> None:
    wanted: dict[str, Any] = {
        "num_prompts": 40, "random_input_len": 50, "random_output_len": 20, "random_range_ratio": 0.4,
        "random_prefix_len": 6,
    }  # fmt: skip
    samples = make(demo, as_text=as_text, **wanted)
    assert samples == make(demo, as_text=as_text, **wanted) != make(demo, 1, as_text, **wanted)
    assert len(samples) == 40 and len({str(sample.prompt) for sample in samples}) == 40
    assert {sample.prompt_len for sample in samples} <= set(range(36, 77)) and len({s.prompt_len for s in samples}) > 5
    assert {sample.output_len for sample in samples} <= set(range(12, 29)) and len({s.output_len for s in samples}) > 5
    ids = [demo.text.encode(s.prompt) if as_text else s.prompt for s in samples]
    assert [len(one) for one in ids] == [sample.prompt_len for sample in samples]
    assert len({tuple(one[:5]) for one in ids}) == 1 and len({tuple(one[:8]) for one in ids}) > 20
    assert all(set(one) <= set(demo.ids.tolist()) for one in ids)


def test_short_names_win(demo: Vocabulary) -> None:
    [sample] = make(demo, num_prompts=1, input_len=7, output_len=3, random_input_len=50)
    assert (sample.prompt_len, len(sample.prompt), sample.output_len) == (7, 7, 3)


@pytest.mark.parametrize("core", [byte_level_core(), byte_fallback_core()])
def test_text_of_other_tokenizers(core: Any) -> None:
    class Text:
        def encode(self, text: str) -> list[int]:
            return core.encode(text, add_special_tokens=False).ids

        def decode(self, ids: Any) -> str:
            return core.decode(list(ids), skip_special_tokens=False)

    vocabulary = Vocabulary(np.arange(10, core.get_vocab_size() - 10), Text())
    for sample in make(vocabulary, as_text=True, num_prompts=10, random_input_len=30):
        assert sample.prompt_len == len(Text().encode(sample.prompt)) and abs(sample.prompt_len - 30) <= 1


@pytest.mark.parametrize("as_text", [False, True])
def test_prefix_repetition(demo: Vocabulary, as_text: bool) -> None:
    samples = make(
        demo, as_text=as_text, dataset_name="prefix_repetition", num_prompts=10, prefix_repetition_num_prefixes=3,
        prefix_repetition_prefix_len=20, prefix_repetition_suffix_len=9, prefix_repetition_output_len=4,
    )  # fmt: skip
    ids = [demo.text.encode(s.prompt) if as_text else s.prompt for s in samples]
    assert [len(one) for one in ids] == [29] * 10 and {sample.output_len for sample in samples} == {4}
    groups = [tuple(one[:18]) for one in ids]
    assert sorted(groups.count(group) for group in set(groups)) == [3, 3, 4]
    assert len({tuple(one) for one in ids}) == 10 and groups != sorted(groups)
    with pytest.raises(ConfigError, match="--prefix-repetition-num-prefixes 10 is more than --num-prompts 2"):
        make(demo, dataset_name="prefix_repetition", num_prompts=2)


def conversation(*turns: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": turn} for turn in turns]}


def test_sharegpt(tmp_path: Path, demo: Vocabulary) -> None:
    path = tmp_path / "share.json"
    good = [conversation(f"Tell me a story about fox number {i}", "Once upon a time " * (i + 1)) for i in range(4)]
    bad = [
        conversation("alone"),
        {},
        3,
        conversation("x", "too short a question"),
        conversation("one two three " * 900, "a b c d"),
    ]
    path.write_text(json.dumps(good + bad))
    options: dict[str, Any] = {"dataset_name": "sharegpt", "dataset_path": str(path)}
    samples = make(demo, num_prompts=4, **options)
    assert {s.prompt for s in samples} == {entry["conversations"][0]["value"] for entry in good}
    for sample in samples:
        assert sample.prompt_len == len(demo.text.encode(sample.prompt))
        number = int(sample.prompt[-1])
        assert sample.output_len == len(demo.text.encode("Once upon a time " * (number + 1)))
    assert samples == make(demo, num_prompts=4, **options)
    assert [s.prompt[-1] for s in make(demo, num_prompts=3, disable_shuffle=True, **options)] == ["0", "1", "2"]
    assert {s.output_len for s in make(demo, num_prompts=2, sharegpt_output_len=9, **options)} == {9}
    assert len(make(demo, num_prompts=11, **options)) == 11
    assert len(make(demo, num_prompts=11, no_oversample=True, **options)) == 4
    with pytest.raises(ConfigError, match="--tokenizer"):
        make(Vocabulary(np.arange(10)), **options)


def test_custom(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    messages = [{"role": "user", "content": "hi"}]
    lines = [{"prompt": "a", "output_tokens": 5}, {"prompt": [1, 2, 3]}, {"messages": messages}]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    options: dict[str, Any] = {
        "dataset_name": "custom",
        "dataset_path": str(path),
        "num_prompts": 3,
        "disable_shuffle": True,
    }
    assert make(None, **options) == [Sample("a", 0, 5), Sample([1, 2, 3], 3, 256), Sample(messages, 0, 256)]
    assert [s.output_len for s in make(None, output_len=2, **options)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("custom", '{"prompt": "a"}\n{"prompt": \n', "line 2: broken JSON"),
        ("custom", '{"prompt": "a"}\n{"text": "b"}\n', "line 2: needs 'prompt'"),
        ("custom", '{"prompt": ""}', "line 1: needs 'prompt'"),
        ("custom", '{"prompt": [1, -2]}', "line 1: needs 'prompt'"),
        ("custom", '{"prompt": "a", "output_tokens": 0}', "line 1: output_tokens"),
        ("custom", "\n\n", "has no line"),
        ("sharegpt", "[{", "broken JSON"),
        ("sharegpt", "{}", "a JSON list"),
        ("sharegpt", "[]", "has no conversation"),
    ],
)
def test_bad_files(tmp_path: Path, demo: Vocabulary, name: str, content: str, words: str) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(ConfigError, match=words) as error:
        make(demo, dataset_name=name, dataset_path=str(path))
    assert str(path) in error.value.message


@pytest.mark.parametrize("name", ["sharegpt", "custom"])
def test_no_file(demo: Vocabulary, name: str) -> None:
    with pytest.raises(ConfigError, match="needs --dataset-path"):
        make(demo, dataset_name=name)
    with pytest.raises(ConfigError, match="No such file"):
        make(demo, dataset_name=name, dataset_path="/no/such/file")


def test_vocabulary_without_a_tokenizer() -> None:
    told: list[str] = []
    guess = vocabulary_of("/no/such/folder", None, told.append)
    assert (guess.ids[0], guess.ids[-1] + 1) == UNKNOWN_VOCABULARY and "--tokenizer" in told[0]
    assert vocabulary_of("/no/such/folder", 500, pytest.fail).ids[-1] == 499
    with pytest.raises(ConfigError, match="--tokenizer"):
        make(guess, as_text=True, num_prompts=1)
