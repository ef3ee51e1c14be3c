"""The demo model that ships with Quire: its files, its tokenizer, and what it can do."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoModelForCausalLM, AutoTokenizer

from quire.demo import draft_path, model_path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from demo_training.evaluation import Answer, agreement, answer, load_model, load_tokenizer, tabulate
from demo_training.exchange import Pen
from demo_training.kinds import KINDS
from demo_training.text import ASSISTANT, END, Conversation, draw, held_out_questions, is_held_out
from demo_training.tokenizer import build_tokenizer, whole_words

CPU = torch.device("cpu")
TRAINING_SEED = "0"
EXTRAS = {"list"}  # Plain lists are a kind more than the model has to master; EVALUATION.md gives their score.
MODEL_FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(model_path())


@pytest.fixture(scope="module")
def chat_tokenizer():
    return AutoTokenizer.from_pretrained(model_path())


@pytest.fixture(scope="module")
def answers(tokenizer) -> list[Answer]:
    """The model's greedy answers to some held-out prompts of every kind."""
    questions = held_out_questions(f"{TRAINING_SEED}/evaluation", whole_words(tokenizer), per_row=20)
    return answer(load_model(model_path(), CPU), tokenizer, questions)


def test_files_are_there_and_small() -> None:
    package = model_path().parent
    assert sorted(file.name for file in model_path().iterdir()) == sorted(MODEL_FILES)
    assert sorted(file.name for file in draft_path().iterdir()) == sorted(MODEL_FILES[:3])
    shipped = [file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(file.stat().st_size for file in shipped) <= 6_000_000


def test_sizes_and_vocabularies() -> None:
    main = AutoModelForCausalLM.from_pretrained(model_path(), dtype="auto")
    draft = AutoModelForCausalLM.from_pretrained(draft_path(), dtype="auto")
    assert type(main).__name__ == type(draft).__name__ == "LlamaForCausalLM"
    assert main.dtype == draft.dtype == torch.bfloat16
    assert 1_000_000 <= main.num_parameters() <= 3_000_000
    assert 5 * draft.num_parameters() <= main.num_parameters()
    weights = [(folder / "model.safetensors").stat().st_size for folder in (model_path(), draft_path())]
    assert 5 * weights[1] <= weights[0]
    assert main.config.vocab_size == draft.config.vocab_size == len(AutoTokenizer.from_pretrained(model_path()))
    assert main.config.eos_token_id == draft.config.eos_token_id == main.generation_config.eos_token_id


def test_importing_the_package_needs_no_torch() -> None:
    code = "import sys, quire.demo; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_any_text_round_trips(tokenizer, chat_tokenizer) -> None:
    rng = random.Random(0)
    scalars = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    texts = ["".join(map(chr, rng.choices(scalars, k=40))) for _ in range(50)]
    texts += [" two  spaces\n\tand a tab ", "naïve 👩‍👩‍👧 \x00 \u200d é", "", "Count to 10!"]
    for text in texts:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert chat_tokenizer.encode(text) == ids
        assert chat_tokenizer.decode(ids) == text


def test_every_digit_and_special_is_one_token(tokenizer) -> None:
    assert tokenizer.encode("2048").tokens == ["2", "0", "4", "8"]
    assert tokenizer.encode(END).ids == [0]
    assert len(tokenizer.encode("<|system|><|user|><|assistant|><|end|><|pad|>").ids) == 5


def test_the_seed_gives_the_shipped_tokenizer(tokenizer) -> None:
    assert build_tokenizer(TRAINING_SEED).get_vocab() == tokenizer.get_vocab()


def test_chat_template_is_the_layout_of_training(chat_tokenizer) -> None:
    pen = Pen.make("template")
    exchanges = [draw(pen, kind, held_out=False) for kind in KINDS]
    conversation = Conversation("Be brief.", exchanges)
    trained = "".join(text for text, _ in conversation.segments()).removesuffix(f"{exchanges[-1].answer}{END}")
    rendered = chat_tokenizer.apply_chat_template(
        conversation.messages(), tokenize=False, add_generation_prompt=True, tools=[{"type": "function"}]
    )
    assert rendered == trained
    assert rendered.endswith(ASSISTANT)


def test_chat_template_in_a_sandbox() -> None:
    source = (model_path() / "chat_template.jinja").read_text()
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    parts = [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {}}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    assert template.render(messages=messages) == "<|user|>Hi<|end|><|assistant|><|end|>"


@pytest.mark.parametrize("kind", KINDS)
def test_every_judge_accepts_the_answers_that_are_trained(kind: str) -> None:
    pen = Pen.make(f"judges/{kind}")
    for _ in range(200):
        exchange = draw(pen, kind, held_out=False)
        assert exchange.accepts(exchange.answer), exchange
        assert not is_held_out(exchange.key)


def test_held_out_prompts_are_answered_right(answers: list[Answer]) -> None:
    rows = tabulate(answers)
    wrong = [(one.question.text, one.text) for one in answers if not one.right]
    assert {row.kind for row in rows} >= set(KINDS)
    for row in rows:
        assert row.ended == row.number, row
        assert row.share >= 0.95 or row.kind in EXTRAS, (row, wrong)
    assert sum(row.right for row in rows) >= 0.95 * len(answers), wrong


def test_stories_are_about_their_subjects_and_vary(answers: list[Answer]) -> None:
    stories = [one.text for one in answers if one.question.row == "story"]
    assert all(len(story.split()) < 80 for story in stories)
    assert len({story.partition(". ")[2] for story in stories}) > len(stories) / 2


def test_the_draft_mostly_agrees(answers: list[Answer], tokenizer) -> None:
    assert agreement(load_model(draft_path(), CPU), tokenizer, answers) > 0.9
