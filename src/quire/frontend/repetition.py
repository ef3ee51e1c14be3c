"""RepetitionWatch: sees when an answer has begun to say the same again and again."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

from quire.bounds import RepetitionDetectionParams

REPETITION = "repetition"
DETECTED = "repetition_detected"
"""Finish reason and stop reason of an answer that was ended for it; vLLM's words."""


class RepetitionWatch:
    """Follows the tokens of one answer.

    The last `count` times `size` tokens are one pattern exactly if each of the last (count - 1) * size tokens is the
    same as the one `size` before it. So it is enough to know, for each size, how long that has been so; and only sizes
    at which the new token stands again go on being so.

    Args:
        params: which patterns, and how often.
    """

    def __init__(self, params: RepetitionDetectionParams) -> None:
        self._least = max(1, params.min_pattern_size)
        self._most = params.max_pattern_size
        self._count = params.min_count
        self._places: defaultdict[int, deque[int]] = defaultdict(deque)  # token → where it stood, as far back as counts
        self._runs: dict[int, int] = {}  # size → tokens in a row that are the same as the one `size` before
        self._num_tokens = 0

    def feed(self, token_ids: Sequence[int]) -> int | None:
        """How many of these tokens there are up to the end of a repetition; None if there is none."""
        for number, token in enumerate(token_ids, 1):
            if self._repeats(token):
                return number
        return None

    def _repeats(self, token: int) -> bool:
        here, self._num_tokens = self._num_tokens, self._num_tokens + 1
        places = self._places[token]
        while places and here - places[0] > self._most:
            places.popleft()
        runs = {here - place: self._runs.get(here - place, 0) + 1 for place in places if here - place >= self._least}
        places.append(here)
        self._runs = runs
        return any(run >= size * (self._count - 1) for size, run in runs.items())
