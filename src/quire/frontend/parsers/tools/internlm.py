"""InternLM 2.5: <|action_start|><|plugin|>{"name": …, "parameters": {…}}<|action_end|>."""

from __future__ import annotations

from quire.frontend.parsers.calls import MAX_GAP, JsonToolParser
from quire.frontend.parsers.reader import SPACE, Markers, Wait

_PLUGIN = Markers(["<|plugin|>"])


class InternLmParser(JsonToolParser):
    """One call between tags."""

    openers = ("<|action_start|>",)
    closers = ("<|action_end|>",)
    markers = ("<|action_start|>", "<|plugin|>", "<|action_end|>")

    def _calls(self, opener: str) -> Wait[None]:
        yield from self._reader.run(SPACE, MAX_GAP)
        yield from self._reader.literal(_PLUGIN)
        yield from super()._calls(opener)
