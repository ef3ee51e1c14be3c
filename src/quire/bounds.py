"""Bounds on how an answer goes on: when it repeats itself, and for how long the model thinks."""

from __future__ import annotations

from typing import Any

import msgspec

from quire.errors import RequestError

MAX_PATTERN_SIZE = 1024
MAX_COUNT = 1024


class RepetitionDetectionParams(msgspec.Struct, kw_only=True, frozen=True):
    """An answer ends when its last tokens are one pattern, so many times in a row. Names are vLLM's.

    Args:
        max_pattern_size: longest pattern that is looked for, in tokens, up to 1024; 0 looks for none.
        min_pattern_size: shortest one; 0 is 1.
        min_count: so many times in a row, 2..1024.

    Raises:
        RequestError: naming the field, the value seen and its range.
    """

    max_pattern_size: int = 0
    min_pattern_size: int = 0
    min_count: int = 0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise _refused(f"{name} must be an integer >= 0, got {str(value)[:64]!r}")
        if self.max_pattern_size > MAX_PATTERN_SIZE:
            raise _refused(f"max_pattern_size must be in 0..{MAX_PATTERN_SIZE}, got {self.max_pattern_size}")
        if self.min_pattern_size > self.max_pattern_size:
            raise _refused(
                f"min_pattern_size must be at most max_pattern_size ({self.max_pattern_size}), "
                f"got {self.min_pattern_size}"
            )
        if self.max_pattern_size and not 2 <= self.min_count <= MAX_COUNT:
            raise _refused(f"min_count must be in 2..{MAX_COUNT}, got {self.min_count}")


def repetition_detection_of(values: Any) -> RepetitionDetectionParams | None:
    """From a plain mapping, such as a request's field; None if it looks for nothing.

    Raises:
        RequestError: a name that there is not, or a value out of range.
    """
    if isinstance(values, dict):
        known = RepetitionDetectionParams.__struct_fields__
        for name in values:
            if name not in known:
                raise _refused(f"there is no {str(name)[:64]!r}; there are {', '.join(known)}")
        values = RepetitionDetectionParams(**{name: value for name, value in values.items() if value is not None})
    if values is not None and not isinstance(values, RepetitionDetectionParams):
        raise _refused("it must be an object with max_pattern_size, min_pattern_size and min_count")
    return values if values is not None and values.max_pattern_size else None


def _refused(reason: str) -> RequestError:
    return RequestError(f"repetition_detection: {reason}.", param="repetition_detection")


class ThinkingLimit(msgspec.Struct, array_like=True, frozen=True):
    """How long a model may think, in tokens of its own vocabulary.

    Args:
        budget: tokens of thoughts.
        end: the closing tag, which is all that can come when they are used up.
        inside: the answer begins with the thoughts.
        openers: tokens that begin them, where they come first.
    """

    budget: int
    end: list[int]
    inside: bool = False
    openers: list[int] = []
