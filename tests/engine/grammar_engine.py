"""A whole engine whose device says anything that it may: a random token of each mask, or of the vocabulary."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from random import Random

import numpy as np
import tokenizers

import quire.demo
from quire.engine.core import EngineCore
from quire.engine.executors import InlineExecutor
from quire.engine.grammar.keeper import Keeper
from quire.engine.grammar.library import Library
from quire.engine.grammar.pace import Pace
from quire.engine.grammar.pool import Pool
from quire.engine.grammar.wire import Setup
from quire.engine.kv.manager import KVManager
from quire.engine.kv.pool import BlockPool
from quire.engine.scheduler.scheduler import Scheduler
from quire.messages import AddRequest, Constraint, Grammar, ReasoningGate, StepPlan, StepResult, pack_ids
from quire.params import SamplingParams

TOKENIZER = Path(quire.demo.__file__).parent / "model" / "tokenizer.json"
VOCAB, END = 1024, 0
CORE = tokenizers.Tokenizer.from_file(str(TOKENIZER))


class Pending:
    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens

    def wait(self) -> StepResult:
        return StepResult(self._tokens)


class Device:
    """Attributes:
    script: tokens that a row says next, by row, instead of random ones.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self.num_masks = 0
        self.num_steps = 0
        self.wrong: int | None = None

    def forward(self, plan: StepPlan) -> None:
        self.num_steps += 1
        assert set(plan.masked) <= set(range(len(plan.samples)))

    def sample(self, plan: StepPlan, masks: dict[int, bytes]) -> Pending:
        assert masks.keys() <= set(plan.masked)
        self.num_masks += len(masks)
        return Pending([self._one(masks.get(i)) for i in range(len(plan.samples))])

    def _one(self, mask: bytes | None) -> int:
        if mask is None:
            return self._random.randrange(5, VOCAB)
        if self.wrong is not None:
            return self.wrong
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[:VOCAB])
        if END in allowed and self._random.random() < 0.5:
            return END
        return int(self._random.choice(allowed))

    def prepare(self) -> bool:
        return False


class Engine:
    """Args: as the parts have them."""

    def __init__(
        self,
        *,
        seed: int = 0,
        rows: int = 8,
        num_blocks: int = 400,
        job_seconds: float = 5.0,
        wait_seconds: float = 2.0,
        memory_mib: int = 256,
        max_workers: int = 4,
        max_grammars: int = 16,
        num_lines: int = 32,
        tokenizer: str = str(TOKENIZER),
        threads: int = 1,
    ) -> None:
        self.random = Random(seed)
        self.pace = Pace()
        manager = KVManager(BlockPool(num_blocks), 4)
        self.scheduler = Scheduler(
            manager, max_num_seqs=rows, max_num_batched_tokens=64, max_model_len=400, limits=(self.pace,)
        )
        setup = Setup(tokenizer, VOCAB, [END], num_lines, memory_mib << 20, threads)
        self.pool = Pool(setup, job_seconds=job_seconds)
        self.library = Library(self.pool, max_workers=max_workers, max_grammars=max_grammars)
        self.keeper = Keeper(
            self.scheduler, self.pool, self.library, self.pace, num_lines=num_lines, wait_seconds=wait_seconds
        )
        self.device = Device(self.random)
        self.core = EngineCore(self.scheduler, InlineExecutor(self.device), self.keeper)
        self.tokens: dict[int, list[int]] = {}
        self.ends: dict[int, tuple[str, str | None, str | None]] = {}
        self._ids = itertools.count()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.keeper.close()

    def add(self, kind: str | None, text: str = "", **more: object) -> int:
        """A request under a grammar, or a free one."""
        id_ = next(self._ids)
        gate = more.pop("gate", None)
        assert gate is None or isinstance(gate, ReasoningGate)
        most = more.pop("max_tokens", 60)
        prompt = more.pop("prompt", [5 + id_ % 100, 6, 7, 8, 9])
        constraint = None
        if kind is not None:
            options = {name: more.pop(name) for name in ("whitespace", "lenient") if name in more}
            constraint = Constraint(Grammar(kind, text, **options), "response_format", gate, **more)
        params = SamplingParams(max_tokens=most)
        self.core.add(AddRequest(id_, pack_ids(prompt), params, [END], constraint=constraint))
        return id_

    def step(self) -> None:
        for output in self.core.step().outputs:
            assert output.id not in self.ends, "a word after the end"
            self.tokens.setdefault(output.id, []).extend(output.token_ids)
            if output.finish_reason:
                self.ends[output.id] = (output.finish_reason, output.error, output.param)

    def run(self, *ids: int, seconds: float = 30.0) -> None:
        """Until these requests, or all, have ended."""
        deadline = time.monotonic() + seconds
        wanted = set(ids)
        while not (wanted <= self.ends.keys() if wanted else self.idle):
            assert time.monotonic() < deadline, f"still there: {wanted - self.ends.keys()}"
            self.step()
            if not self.core.busy:
                time.sleep(0.0005)

    @property
    def idle(self) -> bool:
        return not self.core.busy and self.scheduler.stats().num_waiting == 0

    def text(self, id_: int) -> str:
        return CORE.decode([token for token in self.tokens[id_] if token != END], skip_special_tokens=False)

    def check(self) -> None:
        """Everything was given back."""
        self.run()
        self.step()
        self.scheduler.check_integrity()
        assert self.scheduler.stats().kv_usage == 0
        assert not self.keeper._live and not self.pace._ready
