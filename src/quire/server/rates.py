"""What each key uses: requests and tokens of the last minute, and how many of its requests are being answered.

Each API process writes its own numbers and reads those of all. A claim is written first and checked then, so that two
processes that claim at the same moment see each other: the bound may refuse one too many, it never lets one too many
in. The last minute is the part of the previous clock minute that is still within it, and the current one:

    previous |.....#####|###now   in the last minute ~ previous * (1 - part of the current one that is over) + current
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from quire.errors import OverloadedError
from quire.observability.cells import Cells, Part
from quire.server.keys import ANYBODY, MAX_KEYS, Key

MINUTE, REQUESTS, REQUESTS_BEFORE, TOKENS, TOKENS_BEFORE, OPEN, ALL_REQUESTS, ALL_TOKENS = range(8)
CELLS_OF_KEY = 8
NUM_CELLS = CELLS_OF_KEY * MAX_KEYS


class Rates:
    """Owns the numbers of this process.

    Args:
        cells: where they are, and those of the others.
        clock: seconds, the same for all processes.
    """

    def __init__(self, cells: Cells, clock: Callable[[], float] = time.monotonic) -> None:
        self._parts = [cells.take(CELLS_OF_KEY) for _ in range(MAX_KEYS)]
        self._places: dict[str, int] = {ANYBODY.name: 0}
        self._clock = clock

    def index_of(self, key: Key) -> int:
        """The place of a key, which it keeps for as long as the process lives. Place 0 is nobody's in particular."""
        index = self._places.setdefault(key.name, len(self._places))
        if index >= MAX_KEYS:
            raise OverloadedError(f"This server has seen {MAX_KEYS} keys since its start; it must be restarted.")
        return index

    def know(self, keys: Iterable[Key]) -> None:
        """Give keys their places, in every process the same."""
        for key in keys:
            self.index_of(key)

    def usage(self) -> list[tuple[str, float, float]]:
        """Name, requests and tokens of each key since the start, over all processes."""
        found = []
        for name, place in self._places.items():
            sums = self._parts[place].sums()
            if name:
                found.append((name, sums[ALL_REQUESTS], sums[ALL_TOKENS]))
        return found

    def enter(self, key: Key) -> Part:
        """A request comes.

        Raises:
            OverloadedError: the key is at one of its limits.
        """
        part = self._parts[self.index_of(key)]
        own = self._turned(part)
        own[REQUESTS] += 1
        own[OPEN] += 1
        refusal = self._refusal(key, part)
        if refusal is not None:
            own[REQUESTS] -= 1
            own[OPEN] -= 1
            raise refusal
        own[ALL_REQUESTS] += 1
        return part

    def leave(self, part: Part) -> None:
        """A request is answered."""
        part.own[OPEN] -= 1

    def spend(self, part: Part, count: int) -> None:
        """Tokens were read or generated."""
        own = self._turned(part)
        own[TOKENS] += count
        own[ALL_TOKENS] += count

    def _refusal(self, key: Key, part: Part) -> OverloadedError | None:
        if key.max_concurrent_requests is not None:
            num_open = sum(row[OPEN] for row in part.rows())
            if num_open > key.max_concurrent_requests:
                return _limit(key, "max_concurrent_requests", key.max_concurrent_requests, 1)
        for name, limit, current, before, margin in (
            ("requests_per_minute", key.requests_per_minute, REQUESTS, REQUESTS_BEFORE, 0),
            ("tokens_per_minute", key.tokens_per_minute, TOKENS, TOKENS_BEFORE, 1),
        ):
            if limit is None:
                continue
            seconds = self._seconds_over(part, current, before, limit - margin)
            if seconds:
                return _limit(key, name, limit, seconds)
        return None

    def _turned(self, part: Part) -> list[float]:
        """This process's numbers, moved on to the current minute."""
        own, minute = part.own, self._clock() // 60
        if own[MINUTE] != minute:
            follows = own[MINUTE] == minute - 1
            own[REQUESTS_BEFORE] = own[REQUESTS] if follows else 0
            own[TOKENS_BEFORE] = own[TOKENS] if follows else 0
            own[REQUESTS] = own[TOKENS] = 0
            own[MINUTE] = minute
        return own  # type: ignore[return-value]

    def _seconds_over(self, part: Part, current: int, before: int, limit: int) -> int:
        """How long until what was used in the last minute is at most `limit`; 0 if it is."""
        now = self._clock()
        minute, over = now // 60, now % 60 / 60
        used = used_before = 0.0
        for row in part.rows():
            if row[MINUTE] == minute:
                used, used_before = used + row[current], used_before + row[before]
            elif row[MINUTE] == minute - 1:
                used_before += row[current]
        if used + used_before * (1 - over) <= limit:
            return 0
        if used <= limit:  # it is the previous minute that must fade
            return _whole(60 * (1 - (limit - used) / used_before - over))
        return _whole(60 * (1 - over) + 60 * (1 - limit / used))


def _whole(seconds: float) -> int:
    return max(1, min(int(seconds) + 1, 120))


def _limit(key: Key, name: str, limit: int, seconds: int) -> OverloadedError:
    message = f"The API key '{key.name}' is at its limit: {name} is {limit} (--api-key-file)."
    return OverloadedError(message, "rate_limit_exceeded", seconds)
