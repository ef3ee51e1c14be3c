"""Builds what holds answers to grammars: the workers' pool, the library of grammars, the keeper of requests."""

from __future__ import annotations

import os

from quire.checkpoint import ModelFacts
from quire.config import EngineConfig
from quire.engine.grammar.keeper import Keeper
from quire.engine.grammar.library import Library
from quire.engine.grammar.pace import Pace
from quire.engine.grammar.pool import Pool
from quire.engine.grammar.wire import Setup
from quire.engine.scheduler.scheduler import Scheduler
from quire.frontend.tokenizer import Tokenizer
from quire.messages import Ready
from quire.sources import tokenizer_folder

NUM_WAITING = 1024
"""Requests that may have a first mask while they wait in line; more of them wait for theirs."""
MAX_THREADS = 8
MAX_WORKERS = 8
"""Fewer on fewer cores: each is woken once per step, and a model that computes on the same cores pays for that."""


def build_constraints(
    config: EngineConfig, facts: ModelFacts, ready: Ready, scheduler: Scheduler, pace: Pace
) -> Keeper:
    """No process is started yet."""
    model, limits = config.model, config.structured
    folder = tokenizer_folder(model)
    cores = len(os.sched_getaffinity(0))
    num_lines = ready.max_num_seqs + NUM_WAITING
    setup = Setup(
        tokenizer=str(folder / "tokenizer.json"),
        vocab_size=ready.vocab_size,
        end_token_ids=list(facts.eos_token_ids) or list(Tokenizer.from_folder(folder).end_token_ids()),
        num_lines=num_lines,
        memory_bytes=limits.structured_outputs_memory << 20,
        threads=max(1, min(MAX_THREADS, cores // 2)),
    )
    pool = Pool(setup, job_seconds=limits.structured_outputs_timeout)
    workers = limits.structured_outputs_workers or max(1, min(MAX_WORKERS, cores // 2))
    library = Library(pool, max_workers=workers, max_grammars=limits.structured_outputs_cache)
    return Keeper(scheduler, pool, library, pace, num_lines=num_lines)
