"""Who may wait for the engine. Counted in completions and prompt tokens, over all API processes, before any work.

    arrives ─► room? ─► body, checks ─► claim: completions, tokens guessed from bytes ─► tokens ─► exact ─► engine
              429        400            429                                                    429    │
                                                        tokens are given back with the first one ◄────┘
                                                        completions with the end

What fits: as many completions as the engine has rows (while it is full: as many as it runs), and
`--max-num-queued-reqs` more. Prompts without a first token: `--max-num-queued-tokens`. Where there is nobody else,
one request may have more. Every answer costs a few additions, however long the line is.

With several keys one of them gets at most twice as much of the line as it leaves free, so there is always room left
for another (the dynamic threshold of Choudhury and Hahne). Alone it can take two thirds, of three each two sevenths.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from quire.errors import OverloadedError
from quire.messages import EngineStats, Ready
from quire.observability.cells import Cells, Part
from quire.server.keys import ANYBODY, MAX_KEYS, Key
from quire.server.rates import NUM_CELLS as CELLS_OF_RATES
from quire.server.rates import Rates

VISIT = "quire.visit"
"""In the scope: the visit of a request."""
BYTES_PER_TOKEN = 4
"""Of a request's body; a guess, until its tokens are counted."""
STEPS_IN_LINE = 512
"""Prompt tokens that may wait unless the operator says otherwise, in steps' worth."""
NUM_CELLS = 2 + 2 * MAX_KEYS + CELLS_OF_RATES
_COMPLETIONS, _TOKENS = 0, 1


class Bounds(NamedTuple):
    """How long the line may be.

    Attributes:
        completions: beyond those that run; -1 is no bound.
        tokens: of prompts that wait for their first token; -1 is no bound, None so many steps' worth.
        seconds: that a request may wait to be begun; 0 is no bound.
    """

    completions: int = -1
    tokens: int | None = -1
    seconds: float = 0.0


class Admission:
    """Owns the counts of this process.

    Args:
        bounds: of the line; default: there are none.
        stats: the engine's newest gauges.
        cells: where the counts are, and those of the other processes; default: of this one alone.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        bounds: Bounds | None = None,
        stats: Callable[[], EngineStats] = EngineStats,
        cells: Cells | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        cells = cells or Cells()
        self._bounds = bounds = bounds or Bounds()
        self._stats = stats
        self._clock = clock
        self._all = cells.take(2)
        self._of_key = [cells.take(2) for _ in range(MAX_KEYS)]
        self.rates = Rates(cells, clock)
        self._num_rows = 0
        self._max_tokens = bounds.tokens if bounds.tokens is not None else -1
        self._last_wait = 0.0
        self.apart = False

    def serve(self, ready: Ready) -> None:
        """The engine is up."""
        self._num_rows = ready.max_num_seqs
        if self._bounds.tokens is None:
            self._max_tokens = STEPS_IN_LINE * ready.max_num_batched_tokens

    def know(self, keys: Sequence[Key]) -> None:
        """These keys come from now on. Several are kept apart: their caches, and their parts of the line."""
        self.rates.know(keys)
        self.apart = len(keys) > 1

    def enter(self, key: Key = ANYBODY) -> Visit:
        """A request comes.

        Raises:
            OverloadedError: its key is at a limit.
        """
        return Visit(self, key, self.rates.enter(key), self._of_key[self.rates.index_of(key)])

    @property
    def counts(self) -> tuple[int, int]:
        """Completions and prompt tokens in all processes."""
        completions, tokens = self._all.sums()
        return int(completions), int(tokens)

    def start_by(self, arrival: float) -> float:
        """By when a request must have begun; 0 is never."""
        return arrival + self._bounds.seconds if self._bounds.seconds else 0.0

    # ---- for visits ----------------------------------------------------------------------------------------------

    def claim(self, own: Part, completions: int, tokens: int) -> None:
        """Write a claim, then see whether it fits; taken back if not.

        Raises:
            OverloadedError: it does not.
        """
        self.add(own, completions, tokens)
        refusal = self._refusal(own, completions, tokens)
        if refusal is not None:
            self.add(own, -completions, -tokens)
            raise refusal

    def add(self, own: Part, completions: int, tokens: int) -> None:
        """Count these, or if negative no longer."""
        for part in (self._all, own):
            part.own[_COMPLETIONS] += completions
            part.own[_TOKENS] += tokens

    def waited(self, seconds: float) -> None:
        """How long the request that began last had waited: about what one that comes now will wait."""
        self._last_wait = seconds

    def _refusal(self, own: Part, completions: int, tokens: int) -> OverloadedError | None:
        num_in, tokens_in = self._all.sums()
        most = self._bounds.completions
        if most >= 0 and completions and num_in > completions:
            stats = self._stats()
            running = stats.num_running if stats.full else max(self._num_rows, stats.num_running)
            room = running + most - num_in
            if room < 0 or (self.apart and num_in > running and self._is_greedy(own, _COMPLETIONS, completions, room)):
                return self._full(f"{num_in - completions:.0f} requests are being served or wait", "reqs", most)
        most = self._max_tokens
        if most >= 0 and tokens_in > tokens > 0:
            room = most - tokens_in
            if room < 0 or (self.apart and self._is_greedy(own, _TOKENS, tokens, room)):
                return self._full(f"{tokens_in - tokens:.0f} prompt tokens wait", "tokens", most)
        return None

    @staticmethod
    def _is_greedy(own: Part, kind: int, claimed: int, room: float) -> bool:
        held = sum(row[kind] for row in own.rows())
        return held > claimed and held > 2 * room

    def _full(self, seen: str, what: str, most: int) -> OverloadedError:
        wait = max(1, min(math.ceil(self._last_wait), 60))
        message = f"The queue is full: {seen}; --max-num-queued-{what} is {most}. Try again in {wait} s."
        return OverloadedError(message, "queue_full", wait)


class Visit:
    """One request from its arrival to its answer: owns what it has claimed, and gives all of it back.

    Attributes:
        key: whose it is.
    """

    def __init__(self, admission: Admission, key: Key, rates: Part, own: Part) -> None:
        self.key = key
        self._admission = admission
        self._rates = rates
        self._own = own
        self._completions = self._tokens = 0

    @property
    def salt(self) -> str:
        """What the prefix cache of this caller is kept apart by; no client's own salt can have a NUL."""
        return f"{self.key.name}\0" if self._admission.apart else ""

    @property
    def tenant(self) -> str:
        """Under which name the engine shares itself out."""
        return self.key.name if self._admission.apart else ""

    def look(self) -> None:
        """Refuse at once what would be refused anyway.

        Raises:
            OverloadedError: the line is full.
        """
        self._admission.claim(self._own, 1, 0)
        self._admission.add(self._own, -1, 0)

    def claim(self, completions: int, num_bytes: int) -> None:
        """Get in line, with a guess at the tokens from the size of the body.

        Raises:
            OverloadedError: the line is full.
        """
        tokens = -(-num_bytes // BYTES_PER_TOKEN)
        self._admission.claim(self._own, completions, tokens)
        self._completions, self._tokens = completions, tokens

    def count(self, tokens: int) -> None:
        """The prompts have so many tokens.

        Raises:
            OverloadedError: which is more than was guessed, and too much.
        """
        more = tokens - self._tokens
        self._admission.claim(self._own, 0, more) if more > 0 else self._admission.add(self._own, 0, more)
        self._tokens = tokens
        self._admission.rates.spend(self._rates, tokens)

    def begun(self, waited_s: float) -> None:
        """The first token came, after so many seconds in the engine's line."""
        self._admission.waited(waited_s)
        self._admission.add(self._own, 0, -self._tokens)
        self._tokens = 0

    def ended(self, tokens: int) -> None:
        """A completion has ended, after so many tokens."""
        self._admission.rates.spend(self._rates, tokens)

    def start_by(self, arrival: float) -> float:
        """By when it must have begun; 0 is never."""
        return self._admission.start_by(arrival)

    def leave(self) -> None:
        """It is answered, or nobody waits for it any more."""
        self._admission.add(self._own, -self._completions, -self._tokens)
        self._completions = self._tokens = 0
        self._admission.rates.leave(self._rates)
