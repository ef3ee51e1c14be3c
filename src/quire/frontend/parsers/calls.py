"""ToolParser: finds where calls begin, gives them out as events, and everything else as content.

The rules, for every format:

- A call is given out as soon as its function is known to the request and its arguments have begun.
- What looked like a call and is none (broken, unknown function, unfinished before that point) is content, as written.
- A call that goes wrong later ends incomplete. Its arguments are what the model wrote, up to the text that closes the
  call or opens the next, or up to the end of the output; nothing is made up to close them.
- White space between calls and around their tags belongs to the calls; so does what stands before the first one, if
  the answer has no text before it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import ClassVar

from quire.frontend.parsers.json_text import scan_string, scan_value, whole_json
from quire.frontend.parsers.machine import Machine
from quire.frontend.parsers.protocol import ANY_TOOLS, CallForm, ToolCallEnd, ToolCallStart, ToolSet
from quire.frontend.parsers.reader import SPACE, Markers, NotACall, Truncated, Wait, markers_of

MAX_NAME = 256
MAX_GAP = 256
"""White space in a row that may belong to a call."""


def new_call_id(index: int, name: str) -> str:
    """An id as OpenAI's API has them."""
    return f"call_{secrets.token_hex(12)}"


class ToolParser(Machine):
    """Owns the calls of one output.

    A family reads calls in `_calls`.

    Args:
        tools: what the request offers.
        make_id: from index and name to the call's id; the family's own by default.

    Attributes:
        openers: texts that begin calls.
        line_openers: characters that may begin calls at the start of a line.
        closers: texts that end a call or several; a call that went wrong ends there.
        form: how a call is spelt, where it can be held to its schema; None if it cannot.
    """

    openers: ClassVar[tuple[str, ...]] = ()
    line_openers: ClassVar[str] = ""
    closers: ClassVar[tuple[str, ...]] = ()
    form: ClassVar[CallForm | None] = None

    def __init__(self, tools: ToolSet = ANY_TOOLS, *, make_id: Callable[[int, str], str] | None = None) -> None:
        super().__init__()
        self._tools = tools
        self._make_id = make_id or self.new_id
        self._num_calls = 0
        self._call_open = False
        self._gap = ""
        self._here = markers_of((*self.openers, *self.line_openers))
        self._anywhere = markers_of((*self.openers, *("\n" + char for char in self.line_openers)))
        self._closers = markers_of(self.closers)

    @staticmethod
    def new_id(index: int, name: str) -> str:
        """A call's id, where the model gives none."""
        return new_call_id(index, name)

    def _calls(self, opener: str) -> Wait[None]:
        """Read the calls behind an opener, which has been consumed, and what closes them."""
        raise NotImplementedError

    # ---- between calls -------------------------------------------------------------------------------------------

    def _run(self) -> Wait[None]:
        reader, fresh = self._reader, True
        while True:
            if fresh:
                self._gap = yield from reader.run(SPACE, MAX_GAP)
                opener = yield from reader.literal(self._here)
                if opener is None and not (yield from reader.more()) and self._num_calls:
                    return
            else:
                self._gap = ""
                opener = yield from reader.until(self._anywhere, self._say)
                if opener is None:
                    return
                if opener[0] == "\n":
                    self._gap, opener = "\n", opener[1:]
            if opener is None:
                self._say(self._gap)
                fresh = False
            else:
                fresh = yield from self._attempt(opener)

    def _attempt(self, opener: str) -> Wait[bool]:
        """Read calls if there are any; True if the last thing read was one."""
        reader, before = self._reader, self._num_calls
        reader.hold(len(opener))
        try:
            yield from self._calls(opener)
        except NotACall as reason:
            if self._call_open:
                yield from self._give_up()
            elif not reader.holding and isinstance(reason, Truncated):
                reader.rest()
        if not reader.holding:
            return self._num_calls > before
        self._reject()
        reader.release()
        return False

    def _give_up(self) -> Wait[None]:
        """End the call that is open: it went wrong."""
        reader = self._reader
        if reader.holding:
            self._argue(reader.held())
            reader.release()
        end = yield from reader.until(_shortest((*self._anywhere.texts, *self.closers)), self._argue)
        self._end_call(complete=False)
        if end is not None and end not in self.closers:
            reader.at -= len(end)
        while end is not None and end in self.closers:
            yield from reader.run(SPACE, MAX_GAP)
            end = yield from reader.literal(self._closers, unfinished=True)

    def _reject(self) -> None:
        """Give out what is held as content, and go on holding."""
        self._say(self._gap)
        self._gap = ""
        self._say(self._reader.held())
        self._reader.hold()

    # ---- one call ------------------------------------------------------------------------------------------------

    def _start_call(self, name: str, call_id: str | None = None) -> None:
        self._reader.release()
        self._gap = ""
        self._call, self._call_open = self._num_calls, True
        self._num_calls += 1
        self._emit(ToolCallStart(self._call, call_id or self._make_id(self._call, name), name))

    def _end_call(self, *, complete: bool = True) -> None:
        self._call_open = False
        self._emit(ToolCallEnd(self._call, complete))

    def _arguments(self, name: str, call_id: str | None = None) -> Wait[None]:
        """A call whose arguments are the JSON object ahead."""
        char = yield from self._reader.solid()
        if char != "{":
            raise NotACall if char else Truncated
        if not self._tools.knows(name):
            raise NotACall
        self._start_call(name, call_id)
        yield from scan_value(self._reader, self._argue)
        self._end_call()

    def _text_before(self, ends: str) -> Wait[str]:
        """A name: the text, stripped, up to one of these characters, which is not consumed."""
        text: list[str] = []
        for _ in range(MAX_NAME):
            char = yield from self._reader.need()
            if char in ends:
                return "".join(text).strip()
            text.append(char)
            self._reader.at += 1
        raise NotACall

    def _close(self, closers: Markers | None = None) -> Wait[None]:
        """Consume what closes a call, and closing brackets too many before it."""
        yield from self._reader.run(SPACE + "}]", MAX_GAP)
        yield from self._reader.literal(closers or self._closers, unfinished=True)


def _shortest(texts: tuple[str, ...]) -> Markers:
    """Markers for these texts, without those that contain another."""
    return markers_of(tuple(one for one in texts if not any(other != one and other in one for other in texts)))


class _Pending:
    """A call object that is being read: what of it is known."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.known = False
        self.arguments: list[str] | None = None
        self.given = False
        self.nested = False
        self.strange = False  # has members that mean nothing here: perhaps arguments under another name


_NAMES = frozenset({"name", "function", "tool_name"})
_ARGUMENTS = frozenset({"arguments", "parameters"})
_KNOWN = _NAMES | _ARGUMENTS | {"id", "type", "call_id", "tool_call_id", "index"}


class JsonToolParser(ToolParser):
    """Calls are {"name": …, "arguments": {…}}: one, several in a row, or a list of them.

    The members may come in any order and be called as in OpenAI's API or Llama's (`parameters`); arguments may be
    an object, the same in a string, null or absent.

    Attributes:
        strict_keys: an unknown member or function means at once that this is no call. For formats without markers.
    """

    strict_keys: ClassVar[bool] = False

    def _calls(self, opener: str) -> Wait[None]:
        if opener in self.line_openers:
            self._reader.at -= 1
        yield from self._json_calls()
        yield from self._close()

    def _json_calls(self) -> Wait[None]:
        reader = self._reader
        char = yield from reader.solid()
        listed = char == "["
        if listed:
            reader.at += 1
        while True:
            if not reader.holding:
                reader.hold()
            yield from self._call_object()
            char = yield from reader.solid()
            if char == "," or (char == ";" and not listed):
                reader.at += 1
                char = yield from reader.solid()
            if char == "]" and listed:
                reader.at += 1
                return
            if char != "{":
                if listed:
                    raise NotACall if char else Truncated
                return

    def _call_object(self) -> Wait[None]:
        call = _Pending()
        yield from self._members(call)
        if call.given:
            return
        if call.name is None or (call.strange and call.arguments is None):
            raise NotACall
        if not call.known:
            self._reject()
            return
        self._start_call(call.name)
        self._argue("".join(call.arguments or ["{}"]))
        self._end_call()

    def _members(self, call: _Pending) -> Wait[None]:
        reader = self._reader
        yield from reader.expect("{")
        while True:
            yield from self._member(call)
            char = yield from reader.solid()
            if char not in (",", "}"):
                raise NotACall if char else Truncated
            reader.at += 1
            if char == "}":
                return

    def _member(self, call: _Pending) -> Wait[None]:
        reader = self._reader
        if call.given:  # nothing of interest can come
            yield from scan_value(reader, _forget)
            yield from reader.expect(":")
            yield from scan_value(reader, _forget)
            return
        key = yield from self._short_string()
        if self.strict_keys and key not in _KNOWN:
            raise NotACall
        yield from reader.expect(":")
        char = yield from reader.solid()
        if key == "function" and char == "{" and call.name is None and not call.nested:
            call.nested = True
            yield from self._members(call)
        elif key in _NAMES and call.name is None:
            call.name = yield from self._short_string()
            call.known = self._tools.knows(call.name)
            if self.strict_keys and not call.known:
                raise NotACall
        elif key in _ARGUMENTS and call.arguments is None:
            yield from self._any_arguments(call, char)
        else:
            call.strange = call.strange or key not in _KNOWN
            yield from scan_value(reader, _forget)

    def _any_arguments(self, call: _Pending, char: str) -> Wait[None]:
        if char == "{" and call.known and call.name is not None:
            call.given = True
            yield from self._arguments(call.name)
            return
        call.arguments = []
        yield from scan_value(self._reader, call.arguments.append)
        if char == "{":
            return
        written = "".join(call.arguments)
        text = _object_in_string(written) if char == '"' else "{}" if written == "null" else None
        if text is None:
            raise NotACall
        call.arguments = [text]

    def _short_string(self) -> Wait[str]:
        """A JSON string that is a name."""
        char = yield from self._reader.solid()
        if char != '"':
            raise NotACall if char else Truncated
        written: list[str] = []
        yield from scan_string(self._reader, written.append)
        text: str = json.loads("".join(written))
        if len(text) > MAX_NAME:
            raise NotACall
        return text


def _object_in_string(quoted: str) -> str | None:
    """The JSON object that a JSON string holds; empty text counts as an empty object."""
    text: str = json.loads(quoted).strip() or "{}"
    encodable = not any("\ud800" <= char <= "\udfff" for char in text)
    return whole_json(text) if encodable and text.startswith("{") else None


def _forget(text: str) -> None:
    """A Write for what nobody needs."""
