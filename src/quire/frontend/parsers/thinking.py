"""ThinkingParser: separates what a model thinks, between two tags at the start of its output, from what it answers.

    white space? <think> thoughts </think> white space? answer

Often the opening tag is the end of the prompt; the output then begins inside. Tags count only there: an answer that
talks about <think> is left alone. White space behind the tags and line breaks before the closing one belong to them.
"""

from __future__ import annotations

from typing import ClassVar

from quire.frontend.parsers.machine import Machine
from quire.frontend.parsers.protocol import Thoughts
from quire.frontend.parsers.reader import SPACE, Wait, markers_of

_MAX_GAP = 256


class ThinkingParser(Machine):
    """Owns the thoughts of one output.

    Args:
        prompt: the text that the model continues, to see whether it ends inside; None if unknown.

    Attributes:
        openers, closers: the tags; all spellings.
        inside_by_default: begin inside where the prompt ends with neither tag.
        other_ends: texts that end the thoughts and belong to the answer.
        answer_tags: around the answer, in some formats.
    """

    openers: ClassVar[tuple[str, ...]] = ("<think>",)
    closers: ClassVar[tuple[str, ...]] = ("</think>",)
    inside_by_default: ClassVar[bool] = False
    other_ends: ClassVar[tuple[str, ...]] = ()
    answer_tags: ClassVar[tuple[str, str] | None] = None

    def __init__(self, prompt: str | None = None) -> None:
        super().__init__()
        self._inside = self._begins_inside(prompt)
        self._num_breaks = 0

    @property
    def thoughts(self) -> Thoughts:
        """Between the tags."""
        return Thoughts(self._inside, self.openers, self.closers)

    def _begins_inside(self, prompt: str | None) -> bool:
        end = (prompt or "").rstrip()
        if end.endswith(self.openers):
            return True
        return self.inside_by_default and not end.endswith(self.closers)

    def _run(self) -> Wait[None]:
        reader = self._reader
        gap = yield from reader.run(SPACE, _MAX_GAP)
        tag = yield from reader.literal(markers_of((*self.openers, *self.closers)))
        if tag is not None:
            self._inside = tag in self.openers
        elif not self._inside:
            self._say(gap)
        if self._inside:
            yield from self._thoughts()
        if self._inside or tag is not None:
            yield from reader.run(SPACE, _MAX_GAP)
        yield from self._answer()

    def _thoughts(self) -> Wait[None]:
        yield from self._reader.run(SPACE, _MAX_GAP)
        end = yield from self._reader.until(markers_of((*self.closers, *self.other_ends)), self._think_on)
        if end is None:
            self._think("\n" * self._num_breaks)
        elif end in self.other_ends:
            self._reader.at -= len(end)

    def _think_on(self, text: str) -> None:
        """Reasoning; line breaks wait, since they may stand before the closing tag."""
        solid = text.rstrip("\n")
        if solid:
            self._think("\n" * self._num_breaks + solid)
            self._num_breaks = 0
        self._num_breaks += len(text) - len(solid)

    def _answer(self) -> Wait[None]:
        reader = self._reader
        if self.answer_tags is None:
            yield from reader.until(markers_of(()), self._say)
            return
        opener, closer = self.answer_tags
        if (yield from reader.literal(markers_of((opener,)))) is not None:
            yield from reader.run(SPACE, _MAX_GAP)
        while (yield from reader.until(markers_of((closer,)), self._say)) is not None:
            gap = yield from reader.run(SPACE, _MAX_GAP)
            if not (yield from reader.more()):
                return
            self._say(closer + gap)
