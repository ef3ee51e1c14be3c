"""Mistral: [TOOL_CALLS][{"name": …, "arguments": {…}}, …], since 2025 [TOOL_CALLS]name[ARGS]{…} for each call.

Between name and arguments there may be [CALL_ID]id. Ids have exactly nine letters and digits; Mistral's templates
refuse others.
"""

from __future__ import annotations

import secrets
import string

from quire.frontend.parsers.calls import JsonToolParser
from quire.frontend.parsers.reader import Markers, NotACall, Wait

_ALPHABET = string.ascii_letters + string.digits
_ARGS = Markers(["[ARGS]", "[CALL_ID]"])
_NAME_ENDS = "[{"


class MistralParser(JsonToolParser):
    """Both formats."""

    openers = ("[TOOL_CALLS]",)
    markers = ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")

    @staticmethod
    def new_id(index: int, name: str) -> str:
        return "".join(secrets.choice(_ALPHABET) for _ in range(9))

    def _calls(self, opener: str) -> Wait[None]:
        char = yield from self._reader.solid()
        if char in ("[", "{", ""):
            yield from self._json_calls()
            return
        name = yield from self._text_before(_NAME_ENDS)
        call_id: str | None = None
        while (part := (yield from self._reader.literal(_ARGS))) == "[CALL_ID]":
            call_id = yield from self._text_before(_NAME_ENDS)
        if part is None and (yield from self._reader.solid()) != "{":
            raise NotACall
        yield from self._arguments(name, call_id or None)
