"""Several completions of one prompt: what each of them asks of the engine, and which are returned.

params, n or best_of ──► one SamplingParams per candidate, each with a seed of its own
candidates' deltas   ──► the n of highest cumulative log-probability, best first; all in order if there are only n
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy
from random import Random
from typing import NamedTuple

from quire.frontend.streams import Delta
from quire.params import SamplingParams

_SEED_STEP = 0x9E3779B97F4A7C15


class Chosen(NamedTuple):
    """A candidate that is returned; `cumulative_logprob` is None where nobody asked for log-probabilities."""

    delta: Delta
    cumulative_logprob: float | None


def candidates(params: SamplingParams, random: Random) -> Iterator[SamplingParams]:
    """What each candidate asks of the engine.

    Only the first scores the prompt, and only it minds `skip_reading_prefix_cache`: the others read its blocks.
    """
    count = params.num_candidates
    ranked = count > params.n
    for index, seed in enumerate(_seeds(params.seed, count, random)):
        one = copy(params)
        one.n, one.best_of, one.seed = 1, None, seed
        if ranked and one.logprobs is None:
            one.logprobs = 0
        if index:
            one.prompt_logprobs = one.skip_reading_prefix_cache = None
        yield one


def choose(deltas: Sequence[Delta], params: SamplingParams) -> list[Chosen]:
    """The completions to return, of all that were generated."""
    found = [Chosen(delta, _cumulative(delta)) for delta in deltas]
    if len(found) > params.n:
        found.sort(key=_rank, reverse=True)
        del found[params.n :]
        if params.logprobs is None:
            for one in found:
                one.delta.logprobs = None
    return found


def _rank(one: Chosen) -> float:
    return -math.inf if one.cumulative_logprob is None else one.cumulative_logprob


def _cumulative(delta: Delta) -> float | None:
    return None if delta.logprobs is None else sum(entry.logprobs[0] for entry in delta.logprobs)


def _seeds(seed: int | None, count: int, random: Random) -> Iterator[int]:
    """One seed per candidate, as int64; the first is the request's own, the others are spread from it."""
    for i in range(count):
        if seed is None:
            yield random.getrandbits(63)
        else:
            spread = (seed + i * _SEED_STEP) & (2**64 - 1)
            yield spread - 2**64 if spread >= 2**63 else spread
