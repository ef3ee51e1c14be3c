"""What an exchange is, and the tools that every kind of exchange is written with."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .words import NAMES, invented_name, invented_word, lexicon

Json = str | int | bool | None | list["Json"] | dict[str, "Json"]
Judge = Callable[[str], bool]
Fields = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One prompt and one good answer to it.

    `accepts` judges any answer.  An empty `key` marks a prompt that is always
    trained and never evaluated, such as a bare "Hello".  `value` is the answer
    as JSON where asking for JSON makes sense (`has_value`).  A prompt that is
    `open_ended` closes with words given by the user, so nothing may follow it.
    """

    kind: str
    prompt: str
    answer: str
    key: str
    accepts: Judge
    value: Json = None
    has_value: bool = False
    open_ended: bool = False


@dataclass(frozen=True, slots=True)
class Pen:
    """Random choices, and the words to write with.

    `whole` holds the words that are single tokens: letters inside them can be
    learned only by heart, so the letters of those words are never held out.
    """

    rng: random.Random
    words: Sequence[str]
    whole: frozenset[str]

    @classmethod
    def make(cls, seed: str, whole: frozenset[str] = frozenset()) -> Pen:
        """A pen whose words are the lexicon and the lower-case whole words."""
        words = sorted({*lexicon(), *(word for word in whole if word.islower())})
        return cls(random.Random(seed), words, whole)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.rng.random() < probability

    def word(self) -> str:
        """A word to copy: known or invented, now and then capitalised."""
        word = self.rng.choice(self.words) if self.chance(0.6) else invented_word(self.rng)
        draw = self.rng.random()
        if draw < 0.05:
            return word.capitalize()
        return word.upper() if draw < 0.07 else word

    def name(self) -> str:
        """A first name, known or invented."""
        return invented_name(self.rng) if self.chance(0.3) else self.rng.choice(NAMES)


_POLITE = [
    "please {}", "{} please", "{}, please", "can you {}?", "could you {}?", "can you please {}?", "would you {}?",
    "I want you to {}", "I would like you to {}", "hey, {}", "now {}", "okay, now {}", "then {}",
]  # fmt: skip
_POLITE_BEFORE = ["please {}", "can you {}", "could you {}", "I want you to {}", "hey, {}", "now {}"]


def command(pen: Pen, template: str, fields: Fields, open_ended: bool = False) -> str:
    """An imperative in one of many manners: bare, polite, lower case, unpunctuated."""
    text = template.format_map(fields)
    if pen.chance(0.35):
        text = pen.rng.choice(_POLITE_BEFORE if open_ended else _POLITE).replace("{}", text)
    if not open_ended and not text.endswith("?"):
        text += pen.rng.choice(["", "", ".", ".", "!"])
    return capital(pen, text)


def question(pen: Pen, template: str, fields: Fields) -> str:
    """A question, with or without its mark."""
    text = template.format_map(fields)
    if text.startswith("what is") and pen.chance(0.2):
        text = "what's" + text.removeprefix("what is")
    if pen.chance(0.06):
        text = pen.rng.choice(["hey, {}", "tell me, {}", "please tell me: {}", "do you know {}"]).replace("{}", text)
    return capital(pen, text) + pen.rng.choice(["?", "?", "?", ""])


def capital(pen: Pen, text: str) -> str:
    return text[0].upper() + text[1:] if pen.chance(0.75) else text


def worded(pen: Pen, commands: Sequence[str], questions: Sequence[str], fields: Fields) -> str:
    """A command or a question, each template equally likely."""
    index = pen.rng.randrange(len(commands) + len(questions))
    if index < len(commands):
        return command(pen, commands[index], fields)
    return question(pen, questions[index - len(commands)], fields)


def normal(prompt: str) -> str:
    """A prompt without case, spaces and punctuation, to key prompts that have no other content."""
    return re.sub(r"[\W_]+", "", prompt.lower())


def is_text(expected: str, output: str) -> bool:
    return output.strip() == expected


def last_number_is(expected: int, output: str) -> bool:
    numbers = re.findall(r"-?\d+", output)
    return bool(numbers) and int(numbers[-1]) == expected


def matches(pattern: str, output: str) -> bool:
    return re.search(pattern, output, re.IGNORECASE) is not None


def parse_json(output: str) -> tuple[bool, Json]:
    try:
        return True, json.loads(output)
    except ValueError:
        return False, None


def is_json(expected: Json, output: str) -> bool:
    return parse_json(output) == (True, expected)
