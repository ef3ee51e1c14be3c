"""Plain text to go on with, outside any chat."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from .exchange import Exchange, Pen, is_text, last_number_is, normal
from .numbers import addition_key, operand
from .stories import draw_cast, tell
from .words import ADJECTIVES, ANIMALS, OBJECTS

_STARTS = [
    "The capital of {name} is", "The {noun} is", "My favorite {noun} is", "I would like to",
    "In the morning, the {noun}",
    "The {adjective} {noun} was", "{name} went to", "When it rains, the {noun}", "The best thing about the {noun} is",
    "Hello, my name is", "The {noun} and the {word}", "It was a {adjective} day, and",
]  # fmt: skip
_ENDS = [
    " something that I have only read about.", " a small thing with a long story.",
    " more than I can say in a few words.",
    " not so easy to explain.", " like a song that nobody has heard yet.",
]  # fmt: skip


def _ends_soon(longest: int, output: str) -> bool:
    return 1 <= len(output.split()) <= longest and output.rstrip().endswith(".")


def _complete_story(pen: Pen) -> Exchange:
    cast = draw_cast(pen.rng)
    first, _, rest = tell(pen.rng, replace(cast, topic=None)).partition(". ")
    return Exchange("complete", f"{first}.", f" {rest}", f"complete:{first}", partial(_ends_soon, 80))


def _complete_sum(pen: Pen) -> Exchange:
    a, b = operand(pen), operand(pen)
    judge = partial(last_number_is, a + b)
    return Exchange("complete", f"{a} + {b} =", f" {a + b}", addition_key(a, b), judge)


def _complete_count(pen: Pen) -> Exchange:
    """A count that goes on to the next multiple of ten."""
    start = pen.rng.randint(0, 89)
    shown = pen.rng.randint(3, 6)
    stop = (start + shown) // 10 * 10 + 10
    numbers = [str(number) for number in range(start, stop + 1)]
    answer = ", " + ", ".join(numbers[shown:])
    key = f"complete:{start}:{shown}"
    return Exchange("complete", ", ".join(numbers[:shown]), answer, key, partial(is_text, answer))


def _complete_sentence(pen: Pen) -> Exchange:
    noun = pen.rng.choice(OBJECTS + ANIMALS) if pen.chance(0.5) else pen.word()
    fields = {"noun": noun, "name": pen.name(), "adjective": pen.rng.choice(ADJECTIVES), "word": pen.word()}
    prompt = pen.rng.choice(_STARTS).format_map(fields)
    return Exchange("complete", prompt, pen.rng.choice(_ENDS), f"other:{normal(prompt)}", partial(_ends_soon, 20))


def complete(pen: Pen) -> Exchange:
    """Plain text that goes on, outside any chat."""
    return pen.rng.choice([_complete_story, _complete_story, _complete_sum, _complete_count, _complete_sentence])(pen)
