"""The kinds of exchange and their shares of the training text."""

from __future__ import annotations

from collections.abc import Callable

from .copying import repeat, reverse_letters, reverse_words
from .exchange import Exchange, Pen
from .numbers import add, count, subtract
from .records import json_answer, plain_list
from .storytelling import story
from .talk import greet
from .unknown import other

KINDS: dict[str, tuple[Callable[[Pen], Exchange], float]] = {
    "greet": (greet, 0.09),
    "count": (count, 0.08),
    "add": (add, 0.17),
    "subtract": (subtract, 0.08),
    "repeat": (repeat, 0.10),
    "reverse words": (reverse_words, 0.13),
    "reverse letters": (reverse_letters, 0.13),
    "story": (story, 0.07),
    "list": (plain_list, 0.04),
    "json": (json_answer, 0.15),
    "other": (other, 0.08),
}
"""The kinds of chat exchange: how each is written, and its share of the training text."""
