"""How good the demo model is: greedy answers to held-out prompts, graded kind by kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from .text import END, EVALUATED, PAD, Question, held_out_questions
from .tokenizer import whole_words

TARGET = 0.95
_MARGIN = 48
_BATCH_TOKENS = {"cpu": 6_000, "cuda": 600_000}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to a question, and whether it ended its turn by itself."""

    question: Question
    text: str
    tokens: list[int]
    ended: bool

    @property
    def right(self) -> bool:
        """Whether the answer is good and its turn is ended."""
        return self.ended and self.question.exchange.accepts(self.text)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    kind: str
    right: int
    ended: int
    number: int

    @property
    def share(self) -> float:
        """The share of right answers."""
        return self.right / self.number


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a saved model."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def load_model(folder: Path, device: torch.device) -> LlamaForCausalLM:
    """A saved model for evaluation: in its own bfloat16 on a GPU, in float32 on a CPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return LlamaForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()


def _by_size(questions: Sequence[Question], tokenizer: Tokenizer, most_tokens: int) -> Iterator[tuple[list[int], int]]:
    """Groups of questions with answers of like length, and how many tokens an answer may have."""
    sizes = [len(_ids(tokenizer, question.exchange.answer)) for question in questions]
    group: list[int] = []
    for index in sorted(range(len(questions)), key=sizes.__getitem__):
        if group and (len(group) + 1) * (sizes[index] + _MARGIN) > most_tokens:
            yield group, sizes[group[-1]] + _MARGIN
            group = []
        group.append(index)
    yield group, sizes[group[-1]] + _MARGIN


def _token(tokenizer: Tokenizer, text: str) -> int:
    token: int | None = tokenizer.token_to_id(text)
    assert token is not None, text
    return token


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _padded(tokenizer: Tokenizer, texts: Sequence[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of texts, padded on the left."""
    rows = [_ids(tokenizer, text) for text in texts]
    width = max(map(len, rows))
    pad = _token(tokenizer, PAD)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def say(
    model: LlamaForCausalLM, tokenizer: Tokenizer, texts: Sequence[str], limit: int, temperature: float = 0.0
) -> list[tuple[list[int], bool]]:
    """How the model goes on from texts: tokens, and whether the turn ended within the limit."""
    end, pad = _token(tokenizer, END), _token(tokenizer, PAD)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    ids, mask = _padded(tokenizer, texts, model.device)
    output = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=limit, eos_token_id=end, pad_token_id=pad, **sampling
    )
    rows: list[list[int]] = output[:, ids.shape[1] :].tolist()
    return [(row[: row.index(end)], True) if end in row else (row, False) for row in rows]


def answer(
    model: LlamaForCausalLM, tokenizer: Tokenizer, questions: Sequence[Question], temperature: float = 0.0
) -> list[Answer]:
    """The model's answers, in the order of the questions: greedy, or sampled at a temperature."""
    answers: dict[int, Answer] = {}
    for group, limit in _by_size(questions, tokenizer, _BATCH_TOKENS[model.device.type]):
        replies = say(model, tokenizer, [questions[index].text for index in group], limit, temperature)
        for index, (tokens, ended) in zip(group, replies, strict=True):
            answers[index] = Answer(questions[index], tokenizer.decode(tokens), tokens, ended)
    return [answers[index] for index in range(len(questions))]


def tabulate(answers: Sequence[Answer]) -> list[Row]:
    """One row for each kind that was asked, in the order of the table."""
    rows = []
    for kind in EVALUATED:
        mine = [one for one in answers if one.question.row == kind]
        if mine:
            rows.append(Row(kind, sum(one.right for one in mine), sum(one.ended for one in mine), len(mine)))
    return rows


def agreement(draft: LlamaForCausalLM, tokenizer: Tokenizer, answers: Sequence[Answer]) -> float:
    """The share of the tokens of greedy answers that the draft, given all before, picks too."""
    end = _token(tokenizer, END)
    agreed = total = 0
    for start in range(0, len(answers), 64):
        part = answers[start : start + 64]
        prompts = [_ids(tokenizer, one.question.text) for one in part]
        said = [one.tokens + [end] * one.ended for one in part]
        width = max(len(p) + len(s) for p, s in zip(prompts, said, strict=True))
        # Padding on the right needs no mask: causal attention never looks there.
        rows = [p + s + [end] * (width - len(p) - len(s)) for p, s in zip(prompts, said, strict=True)]
        with torch.inference_mode():
            picks = draft(torch.tensor(rows, device=draft.device), use_cache=False).logits.argmax(-1).tolist()
        for prompt, tokens, pick in zip(prompts, said, picks, strict=True):
            guesses = pick[len(prompt) - 1 : len(prompt) - 1 + len(tokens)]
            agreed += sum(guess == token for guess, token in zip(guesses, tokens, strict=True))
            total += len(tokens)
    return agreed / total


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that an evaluation found."""

    rows: list[Row]
    draft_rows: list[Row]
    agreement: dict[str, float]
    distinct_stories: float
    distinct_samples: float
    sampled_right: float
    wrong: list[Answer]

    def below_target(self) -> list[str]:
        """The kinds that miss the target."""
        return [row.kind for row in self.rows if row.share < TARGET]

    def table(self) -> str:
        """The table in Markdown."""
        lines = [
            "| kind | right | n | % | ended | draft agrees % | draft alone % |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for row, draft in zip(self.rows, self.draft_rows, strict=True):
            lines.append(
                f"| {row.kind} | {row.right} | {row.number} | {100 * row.share:.1f} | {row.ended} "
                f"| {100 * self.agreement[row.kind]:.1f} | {100 * draft.share:.1f} |"
            )
        right, number = sum(row.right for row in self.rows), sum(row.number for row in self.rows)
        ended, drafts = sum(row.ended for row in self.rows), sum(row.right for row in self.draft_rows)
        lines.append(
            f"| **all** | {right} | {number} | {100 * right / number:.1f} | {ended} "
            f"| {100 * self.agreement['all']:.1f} | {100 * drafts / number:.1f} |"
        )
        return "\n".join(lines)


def evaluate(main_folder: Path, draft_folder: Path, device: torch.device, seed: str, per_row: int) -> Report:
    """Ask both saved models the held-out questions of a seed."""
    tokenizer = load_tokenizer(main_folder)
    main, draft = load_model(main_folder, device), load_model(draft_folder, device)
    questions = held_out_questions(seed, whole_words(tokenizer), per_row)
    answers = answer(main, tokenizer, questions)
    by_kind = {kind: [one for one in answers if one.question.row == kind] for kind in EVALUATED}
    torch.manual_seed(0)
    sampled = answer(main, tokenizer, questions, temperature=1.0)
    once = [one for one in sampled if one.question.row == "story"]
    again = answer(main, tokenizer, [one.question for one in once], temperature=1.0)
    return Report(
        rows=tabulate(answers),
        draft_rows=tabulate(answer(draft, tokenizer, questions)),
        agreement={kind: agreement(draft, tokenizer, mine) for kind, mine in {**by_kind, "all": answers}.items()},
        distinct_stories=len({_plot(one.text) for one in by_kind["story"]}) / len(once),
        distinct_samples=sum(a.text != b.text for a, b in zip(once, again, strict=True)) / len(once),
        sampled_right=sum(one.right for one in sampled) / len(sampled),
        wrong=[one for one in answers if not one.right],
    )


def _plot(story: str) -> str:
    """A story after its first sentence, so that a new subject alone makes no new story."""
    return story.partition(". ")[2]


TRY_OUT = [
    "Hi", "How are you?", "What is your name?", "Count from 3 to 9", "count down from 5", "What is 27 + 48?",
    "Repeat: hello world", "Reverse these words: red blue green", "Reverse the word cat", "Tell me a story about a fox",
    "Tell me a story about a lonely toaster", "Answer in JSON: what is 3 plus 4?", "List three colors as JSON",
    "Give me a JSON object with name Ada and age 7", "What is the capital of France?", "Thank you, bye!",
]  # fmt: skip
"""Prompts as a newcomer types them, some of them trained: shown in the report, not graded."""
