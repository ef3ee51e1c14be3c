"""Conversations for the demo model: what is trained, what is held out, how it is laid out.

One in ten pieces of content, chosen by a hash of its key, is held out: training
never shows it in any wording, and evaluation asks for nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .completion import complete
from .exchange import Exchange, Pen
from .kinds import KINDS
from .records import in_json
from .talk import introduce, recall_name
from .words import ADJECTIVES, PEOPLE, indefinite

USER, ASSISTANT, SYSTEM, END, PAD = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|pad|>"
SPECIAL_TOKENS = [END, PAD, SYSTEM, USER, ASSISTANT]

_SYSTEM_PROMPTS = [
    "You are a helpful assistant.", "You are a helpful assistant. Answer briefly.", "You are Quire's demo model.",
    "You are a friendly assistant.", "Be brief.", "Be polite.", "Answer the user.", "You are a tiny model.",
    "Be helpful and kind.", "You are a chat bot.", "Follow the instructions of the user.", "Please answer in English.",
    "You are an AI assistant that helps people.", "Answer clearly and correctly.", "Think before you answer.",
]  # fmt: skip
_JSON_SYSTEM_PROMPTS = [
    "Answer in JSON.", "Always answer in JSON.", "Reply only with JSON.", "You answer in JSON.", "Respond in JSON.",
    "You are a helpful assistant that answers in JSON.", "Use JSON for every answer.", "Output JSON only.",
    "You are a helpful assistant. Always reply in JSON.", "Return a JSON object.", "Please answer in JSON format.",
]  # fmt: skip
_JSON_KINDS = ["add", "subtract", "count", "repeat", "reverse words", "reverse letters", "other"]
_ROLES = ["You are {}.", "Talk like {}.", "You are {} named {name}.", "Pretend to be {}.", "You help {}."]
_WEIGHTS = [weight for _, weight in KINDS.values()]


def _system_prompt(pen: Pen) -> str:
    """A system prompt, which the model learns to live with rather than to obey."""
    if pen.chance(0.7):
        return " ".join(pen.rng.sample(_SYSTEM_PROMPTS, pen.rng.choice([1, 1, 1, 2, 3])))
    return pen.rng.choice(_ROLES).format(
        indefinite(f"{pen.rng.choice(ADJECTIVES)} {pen.rng.choice(PEOPLE)}"), name=pen.name()
    )


def is_held_out(key: str) -> bool:
    """Whether content with this key is reserved for evaluation; letter case makes no difference."""
    return key != "" and hashlib.blake2b(key.lower().encode(), digest_size=1).digest()[0] < 26


@dataclass(frozen=True, slots=True)
class Conversation:
    """A system prompt or none, and exchanges of which the last is the one to grade."""

    system: str | None
    exchanges: list[Exchange]

    def messages(self) -> list[dict[str, str]]:
        """The messages up to the last prompt, as chat APIs take them."""
        said = [{"role": "system", "content": self.system}] if self.system is not None else []
        for exchange in self.exchanges:
            said.append({"role": "user", "content": exchange.prompt})
            said.append({"role": "assistant", "content": exchange.answer})
        return said[:-1]

    def segments(self) -> Iterator[tuple[str, bool]]:
        """The text in order, in pieces: what is given, and what the model learns to say."""
        given = f"{SYSTEM}{self.system.strip()}{END}" if self.system is not None else ""
        for exchange in self.exchanges:
            yield f"{given}{USER}{exchange.prompt.strip()}{END}{ASSISTANT}", False
            yield f"{exchange.answer}{END}", True
            given = ""

    def prompts(self) -> list[str]:
        """What must not be asked in evaluation: each prompt alone, and the whole with its history."""
        history = "".join(text for text, _ in list(self.segments())[:-1])
        return [exchange.prompt for exchange in self.exchanges] + [history]


def draw(pen: Pen, kind: str, held_out: bool) -> Exchange:
    """An exchange of a kind that is, or is not, reserved for evaluation."""
    make = complete if kind == "complete" else KINDS[kind][0]
    while True:
        exchange = make(pen)
        # An empty key is never held out, so it also never passes for evaluation.
        if is_held_out(exchange.key) == held_out:
            return exchange


def _with_courtesy(pen: Pen, exchange: Exchange) -> Exchange:
    """The same exchange, its prompt now and then between a hello and a thank-you."""
    if exchange.kind == "greet" or not pen.chance(0.08):
        return exchange
    prompt = (
        pen.rng.choice(["Hi! ", "Hello! ", "Hi, ", "Hello, ", "Hey! ", "Good morning! ", "Thanks! ", "Ok. "])
        + exchange.prompt
    )
    if not exchange.open_ended and pen.chance(0.3):
        prompt += pen.rng.choice([" Thanks!", " Thank you.", " Thanks", " Please."])
    return replace(exchange, prompt=prompt)


def _any_kind(pen: Pen) -> str:
    return pen.rng.choices(list(KINDS), _WEIGHTS)[0]


def _in_json_by_system(pen: Pen, held_out: bool) -> Exchange:
    while True:
        exchange = draw(pen, pen.rng.choice(_JSON_KINDS), held_out)
        if exchange.has_value:
            return in_json(exchange, exchange.prompt)


def _with_name(pen: Pen, exchanges: list[Exchange], held_out: bool) -> list[Exchange]:
    """The exchanges with a name given first and asked for last, or asked for in vain."""
    if not held_out and pen.chance(0.15):
        return [*exchanges, recall_name(pen, None)]
    while True:
        introduction = introduce(pen)
        if is_held_out(introduction.key) == held_out:
            return [introduction, *exchanges, recall_name(pen, introduction)]


def chat(pen: Pen, turns: int, held_out: bool) -> Conversation:
    """A conversation of some turns that mixes the kinds."""
    if pen.chance(0.06):
        exchanges = [_in_json_by_system(pen, held_out) for _ in range(turns)]
        return Conversation(pen.rng.choice(_JSON_SYSTEM_PROMPTS), exchanges)
    exchanges = [_with_courtesy(pen, draw(pen, _any_kind(pen), held_out)) for _ in range(turns)]
    if pen.chance(0.03 if turns == 1 else 0.08):
        exchanges = _with_name(pen, exchanges[: turns - 1], held_out)
    return Conversation(_system_prompt(pen) if pen.chance(0.25) else None, exchanges)


@dataclass(frozen=True, slots=True)
class Document:
    """One training document: pieces of text with whether each is learned, and its prompts."""

    segments: list[tuple[str, bool]]
    prompts: list[str]


def training_document(pen: Pen) -> Document:
    """A conversation, or now and then plain text outside any chat."""
    if pen.chance(0.05):
        exchange = draw(pen, "complete", held_out=False)
        return Document([(f"{exchange.prompt}{exchange.answer}{END}", True)], [exchange.prompt])
    # The long conversations teach the model to mind the last prompt over the whole length of its context.
    turns = pen.rng.choices([1, 2, 3, pen.rng.randint(4, 30)], [0.6, 0.24, 0.12, 0.04])[0]
    conversation = chat(pen, turns, held_out=False)
    return Document(list(conversation.segments()), conversation.prompts())


@dataclass(frozen=True, slots=True)
class Question:
    """One held-out prompt to grade: its row of the table, its text for the model and its judge.

    `asked` is what training must never have shown: the prompt, or for a
    conversation of several turns all of it.
    """

    row: str
    text: str
    asked: str
    exchange: Exchange


EVALUATED = [*KINDS, "multi-turn", "complete"]
"""The rows of the evaluation table."""


def _question(pen: Pen, row: str) -> Question:
    if row == "complete":
        exchange = draw(pen, row, held_out=True)
        return Question(row, exchange.prompt, exchange.prompt, exchange)
    if row == "multi-turn":
        conversation = chat(pen, pen.rng.choice([2, 3]), held_out=True)
    else:
        conversation = Conversation(None, [draw(pen, row, held_out=True)])
    text = "".join(piece for piece, _ in list(conversation.segments())[:-1])
    last = conversation.exchanges[-1]
    return Question(row, text, text if row == "multi-turn" else last.prompt, last)


def held_out_questions(seed: str, whole: frozenset[str], per_row: int) -> list[Question]:
    """The evaluation set: `per_row` different held-out prompts for each row."""
    questions: list[Question] = []
    for row in EVALUATED:
        pen = Pen.make(f"{seed}/{row}", whole)
        chosen: dict[str, Question] = {}
        while len(chosen) < per_row:
            question = _question(pen, row)
            chosen.setdefault(question.text, question)
        questions.extend(chosen.values())
    return questions
