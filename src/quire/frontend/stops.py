"""Stop strings: found across token borders, holding back no more text than could still become one.

The automaton of Aho and Corasick (1975): its state is the longest end of the text so far that begins some stop
string, so the state's depth is exactly the number of characters that must wait. One dictionary look-up per character.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple


class Fed(NamedTuple):
    """What became certain.

    Attributes:
        text: characters that may be given out now.
        stop: the stop string that ended the text, or None.
    """

    text: str
    stop: str | None


class StopAutomaton:
    """The compiled stop strings of one request; read-only, shared by its choices."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.next: list[dict[str, int]] = [{}]
        self.depth: list[int] = [0]
        self.found: list[str | None] = [None]
        """The longest stop string that ends in a state."""
        for stop in stops:
            self._insert(stop)
        self._link()
        self.first = frozenset(self.next[0])

    def _insert(self, stop: str) -> None:
        state = 0
        for char in stop:
            if char not in self.next[state]:
                self.next[state][char] = len(self.next)
                self.next.append({})
                self.depth.append(self.depth[state] + 1)
                self.found.append(None)
            state = self.next[state][char]
        self.found[state] = stop

    def _link(self) -> None:
        """Fill `fail`: from each state to the longest shorter end that is a state, breadth first."""
        self.fail = [0] * len(self.next)
        queue = deque(self.next[0].values())
        while queue:
            state = queue.popleft()
            for char, child in self.next[state].items():
                self.fail[child] = self.step(self.fail[state], char)
                queue.append(child)
            if self.found[state] is None:
                self.found[state] = self.found[self.fail[state]]

    def step(self, state: int, char: str) -> int:
        """The state after one more character."""
        while char not in self.next[state]:
            if state == 0:
                return 0
            state = self.fail[state]
        return self.next[state][char]


class StopMatcher:
    """Watches one output for stop strings. The first to be complete wins; of two that end together the longer."""

    def __init__(self, automaton: StopAutomaton, include_stop: bool) -> None:
        self._automaton = automaton
        self._include_stop = include_stop
        self._state = 0
        self._held = ""

    def feed(self, text: str, *, armed: bool = True) -> Fed:
        """Add text.

        Args:
            text: the next characters of the output.
            armed: False while stop strings that end here do not count yet (fewer than min_tokens tokens).
        """
        automaton = self._automaton
        if self._state == 0 and automaton.first.isdisjoint(text):
            return Fed(text, None)
        buffer, state = self._held + text, self._state
        for end, char in enumerate(text, len(self._held) + 1):
            state = automaton.step(state, char)
            stop = automaton.found[state]
            if stop is not None and armed:
                self._held, self._state = "", 0
                return Fed(buffer[: end if self._include_stop else end - len(stop)], stop)
        self._state = state
        wait = len(buffer) - automaton.depth[state]
        self._held = buffer[wait:]
        return Fed(buffer[:wait], None)

    def finish(self) -> str:
        """The characters still held back; no more will come."""
        rest, self._held, self._state = self._held, "", 0
        return rest
