"""Sampling kernels beside their plain twins; scratch is full of NaN before each call, counters excepted."""

from __future__ import annotations

import inspect
import math
import random
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from test_sampling import batch_of, new_row
from triton.runtime import interpreter

from quire.worker.kernels import sampling as kernels
from quire.worker.kernels import sampling_fused as fused
from quire.worker.sampling.draw import uniform
from quire.worker.sampling.fused import FusedSampler
from quire.worker.sampling.sampler import Sampler

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
FORMATS = [torch.float32, torch.float16, *([torch.bfloat16] if GPU else [])]  # the interpreter is wrong in bfloat16
INF = math.inf


def random_logits(rows: int, vocab: int, dtype: torch.dtype, kind: str = "normal", seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, vocab, generator=generator)
    if kind == "tied":
        x = (x * 2).round()
    elif kind == "peaked":
        x = x * 4
    elif kind == "flat":
        x = x * 0.05
    elif kind == "holes":
        x[torch.rand(rows, vocab, generator=generator) < 0.7] = -INF
        x[:, vocab // 2] = 1.0
    return x.to(DEVICE, dtype)


def poisoned_scratch(rows: int) -> kernels.Scratch:
    scratch = kernels.Scratch(rows, DEVICE)
    scratch.values.fill_(math.nan)
    scratch.counts.fill_(-7)
    return scratch


def poisoned_fused(rows: int) -> fused.FusedScratch:
    scratch = fused.FusedScratch(rows, DEVICE)
    for buffer in (scratch.sums, scratch.masses, scratch.candidates):
        buffer.fill_(math.nan)
    return scratch


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("splits", [1, 2, 8, None])
@pytest.mark.parametrize("kind", ["normal", "tied", "holes"])
def test_argmax(dtype: torch.dtype, splits: int | None, kind: str) -> None:
    for vocab in (1, 255, 512, 1000):
        logits = random_logits(3, vocab, dtype, kind)
        scratch = poisoned_scratch(3)
        tokens = torch.full((3,), -1, dtype=torch.int64, device=DEVICE)
        for _ in range(2):
            kernels.argmax(logits, scratch, tokens, block=128, splits=splits)
            assert torch.equal(tokens, kernels.argmax_twin(logits))
        assert not scratch.counters.any()


@pytest.mark.parametrize("splits", [1, 4])
def test_argmax_of_what_is_no_number(splits: int) -> None:
    logits = random_logits(5, 500, torch.float32)
    logits[0, 7] = math.nan
    logits[1, :] = math.nan
    logits[2, :] = -INF
    logits[3, 400] = INF
    logits[4, :] = math.nan
    logits[4, 321] = -3.0
    tokens = torch.empty(5, dtype=torch.int64, device=DEVICE)
    kernels.argmax(logits, poisoned_scratch(5), tokens, block=64, splits=splits)
    assert tokens.tolist() == [int(logits[0].nan_to_num(-INF).argmax()), 0, 0, 400, 321]


def test_argmax_reads_through_strides() -> None:
    logits = random_logits(4, 600, torch.float32)[::2, :500]
    tokens = torch.empty(2, dtype=torch.int64, device=DEVICE)
    assert torch.equal(kernels.argmax(logits, poisoned_scratch(2), tokens, block=128), logits.argmax(1))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("vocab", [300, 1000])
@pytest.mark.parametrize("kind", ["normal", "peaked", "tied", "holes"])
def test_logprobs(dtype: torch.dtype, vocab: int, kind: str) -> None:
    logits = random_logits(4, vocab, dtype, kind)
    lines = torch.tensor([3, 1], device=DEVICE)
    tokens = torch.tensor([5, vocab // 2, 0, vocab // 2], device=DEVICE)
    scratch = poisoned_scratch(4)
    found = kernels.logprobs(logits, lines, tokens, scratch, block=128)
    expected = kernels.logprobs_twin(logits, lines, tokens)
    for a, b in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)
    assert torch.equal(found[2], expected[2])
    assert not scratch.counters.any()


# ---------------------------------------------------------------------------------------------------------------
# The fused kernel

WISHES = [
    {},
    {"temperature": 0},
    {"temperature": 0.6},
    {"top_k": 1},
    {"top_k": 7},
    {"top_p": 0.8},
    {"top_p": 0.999},
    {"top_p": 1e-6},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"top_k": 100, "top_p": 0.9, "temperature": 1.3},
    {"top_k": 200, "top_p": 0.99, "min_p": 0.01},
    {"top_k": 900, "top_p": 0.5},
    {"top_k": 10**9, "top_p": 0.7, "temperature": 100.0},
    {"temperature": 0.01, "top_p": 0.9},
]
ADJUSTED = [
    {"repetition_penalty": 1.7, "frequency_penalty": 0.4, "presence_penalty": -0.6},
    {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "min_p": 0.05, "presence_penalty": 1.0},
    {"temperature": 0, "frequency_penalty": 2.0},
    {"min_tokens": 12, "top_p": 0.9},
]


class Case:
    """Rows with wishes, as the kernel is told of them, and the twin that knows them too."""

    def __init__(self, vocab: int, wishes: list[dict], samples: int) -> None:
        self.sampler = Sampler(samples, vocab, DEVICE)
        self.fused = FusedSampler(samples, vocab, DEVICE)
        for row in range(samples):
            new = new_row(row, [1, 5, 9, 5], [2, 2, 9, 250], stop=[3, 8], **wishes[row % len(wishes)])
            self.sampler.start_row(new)
            self.fused.start_row(new)
        self.fused.flush()
        self.rows = torch.arange(samples, device=DEVICE)
        self.adjusted = self.fused.variant(range(samples)) == "adjusted"

    def draw(self, logits: torch.Tensor, positions: list[int], **options) -> torch.Tensor:
        samples = len(logits)
        tokens = torch.full((samples,), -1, device=DEVICE)
        seen = self.fused._seen.clone() if self.adjusted else None
        scratch = poisoned_fused(samples)
        fused.sample(
            logits, self.rows[:samples], self.rows, torch.tensor(positions, dtype=torch.int32, device=DEVICE),
            self.fused._table, scratch, tokens, seen=seen, **{"block": 64, **options},
        )  # fmt: skip
        assert not scratch.counters.any()
        if seen is not None:
            before = self.fused._seen
            adjusted = self.fused._lines[:samples, fused.FLAGS] & fused.ADJUSTED > 0
            assert int((seen - before).sum()) == 2 * adjusted.sum(), "a token of each adjusted row is counted"
        return tokens

    def expected(self, logits: torch.Tensor, positions: list[int]) -> torch.Tensor:
        batch = batch_of(list(range(len(logits))), positions)
        return self.sampler(logits, batch).token_ids


def agree(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Sums are rounded in another order, so a draw that falls on a boundary may differ."""
    different = int((found != expected).sum())
    assert different <= 0.002 * len(found), f"{different} of {len(found)} tokens differ"


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("kind", ["normal", "peaked", "flat", "tied", "holes"])
@pytest.mark.parametrize("wishes", [WISHES, WISHES + ADJUSTED], ids=["fused", "adjusted"])
def test_tokens_are_those_of_the_twin(dtype: torch.dtype, kind: str, wishes: list[dict]) -> None:
    for vocab, block in ((300, 64), (1000, 256)):
        case = Case(vocab, wishes, len(wishes))
        logits = random_logits(len(wishes), vocab, dtype, kind, seed=vocab)
        positions = list(range(10, 10 + len(wishes)))
        agree(case.draw(logits, positions, block=block), case.expected(logits, positions))


def test_every_pass_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for 32 candidates brackets must shrink over several passes before they are copied out."""
    monkeypatch.setattr(fused, "CAPACITY", 32)
    case = Case(2000, WISHES, len(WISHES))
    for kind in ("normal", "tied", "flat"):
        logits = random_logits(len(WISHES), 2000, torch.float32, kind)
        agree(case.draw(logits, [77] * len(WISHES), block=64), case.expected(logits, [77] * len(WISHES)))


@pytest.mark.parametrize(
    "values",
    [[0.0], [5.0], [0.0, 1e-38, -1e-38], [1.0, 1.0 + 2**-23], [-3e38, 0.0, 3e38], [-INF, -INF, -1e30], [-1e-45, 0.0]],
    ids=str,
)
def test_rows_of_few_values(values: list[float]) -> None:
    """Thousands of equal or nearly equal values: more than are ever copied out."""
    vocab = 3000
    x = np.random.default_rng(0).choice(values, (4, vocab)).astype(np.float32)
    x[:, 17] = values[-1]
    wishes = [{"top_p": 0.4}, {"top_k": 100}, {"top_k": 2500, "top_p": 0.9}, {"min_p": 0.5, "top_p": 0.99}]
    case = Case(vocab, wishes, 4)
    logits = torch.from_numpy(x).to(DEVICE)
    agree(case.draw(logits, [3] * 4, block=256), case.expected(logits, [3] * 4))


def test_impossible_rows_give_some_token() -> None:
    case = Case(500, [{"top_p": 0.9}, {"top_k": 5}, {}, {"temperature": 0}, {"min_p": 0.1}], 5)
    for value in (-INF, math.nan):
        tokens = case.draw(torch.full((5, 500), value, device=DEVICE), [3] * 5)
        assert tokens.tolist() == [0] * 5
    logits = random_logits(5, 500, torch.float32)
    logits[:, 20:30] = math.nan
    tokens = case.draw(logits, [3] * 5)
    assert all(0 <= token < 500 and not 20 <= token < 30 for token in tokens.tolist())
    logits[:, 33] = INF
    assert case.draw(logits, [3] * 5).tolist() == [33] * 5


def test_masks() -> None:
    case = Case(300, [{"top_p": 0.9}, {}, {"temperature": 0}], 3)
    logits = random_logits(3, 300, torch.float32)
    bits = np.zeros((3, 10), dtype=np.int32)
    bits[0] = -1
    bits[1].view(np.uint8)[[4, 37]] = [0b00010010, 0b1]  # tokens 33, 36, 296
    bits[2, 9] = 1 << 11  # token 299
    lines = torch.tensor([1, 0, 2], dtype=torch.int32, device=DEVICE)
    free = case.draw(logits, [3] * 3)
    tokens = case.draw(logits, [3] * 3, masks=(lines, torch.from_numpy(bits).to(DEVICE))).tolist()
    assert tokens[0] in (33, 36, 296) and tokens[1] == free[1] and tokens[2] == 299


def test_uniform_is_that_of_the_twin() -> None:
    """Over a flat row the token is floor(u * vocab)."""
    vocab = 1 << 12
    case = Case(vocab, [{"seed": s} for s in (0, 1, -5, 2**63 - 1, -(2**63))], 5)
    logits = torch.zeros(5, vocab, device=DEVICE)
    for position in (0, 1, 2**31 - 1):
        seeds = torch.tensor([0, 1, -5, 2**63 - 1, -(2**63)])
        expected = (uniform(seeds, torch.full((5,), position)) * vocab).long()
        assert case.draw(logits, [position] * 5, block=1024).tolist() == expected.tolist()


class Together:
    """Runs the programs of an interpreted launch as threads in turn, which changes at each atomic and barrier."""

    def __init__(self, function, programs: int) -> None:
        self._function, self._programs = function, programs
        self._calls: list[dict] = []
        self._turn, self._changed = 0, threading.Condition()
        self._alive = set(range(programs))
        self._random = random.Random(programs)
        self._errors: list[BaseException] = []
        self.__globals__, self.__name__ = function.__globals__, function.__name__
        self.__annotations__ = function.__annotations__
        self.__signature__ = inspect.signature(function)

    def __call__(self, **arguments) -> None:
        self._calls.append(arguments)
        if len(self._calls) == self._programs:
            threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(self._programs)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if self._errors:
                raise self._errors[0]

    def _run(self, index: int) -> None:
        self._wait(index)
        try:
            self._function(**self._calls[index])
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self._errors.append(error)
        self._alive.discard(index)
        self._pass_on()

    def _pass_on(self) -> None:
        with self._changed:
            self._turn = self._random.choice(sorted(self._alive)) if self._alive else -1
            self._changed.notify_all()

    def _wait(self, index: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == index)
        interpreter.interpreter_builder.set_grid_idx(index, 0, 0)

    def yield_turn(self) -> None:
        index = int(interpreter.interpreter_builder.grid_idx[0])
        self._pass_on()
        self._wait(index)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs of a launch run concurrently, as those that wait for each other must."""
    if GPU:
        yield
        return
    running: list[Together] = []
    start, atomic = interpreter.GridExecutor.__init__, interpreter.InterpreterBuilder.create_atomic_rmw

    def init(self, fn, arg_names, grid, *rest) -> None:
        start(self, fn, arg_names, grid, *rest)
        self.fn = Together(fn, math.prod(grid))
        running[:] = [self.fn]

    def atomic_then_yield(self, *arguments):
        result = atomic(self, *arguments)
        running[0].yield_turn()
        return result

    monkeypatch.setattr(interpreter.GridExecutor, "__init__", init)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_atomic_rmw", atomic_then_yield)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_barrier", lambda _: running[0].yield_turn())
    yield


@pytest.mark.parametrize(("splits", "vocab"), [(2, 700), (4, 1600), (16, 300), (16, 700)])
def test_programs_that_share_a_row_find_the_same(
    at_once: None, monkeypatch: pytest.MonkeyPatch, splits: int, vocab: int
) -> None:
    """The token depends on nothing but the row: not on how many programs share it, nor who comes first."""
    monkeypatch.setattr(fused, "CAPACITY", 16)  # so that there are several rounds
    wishes = [{"top_k": 100, "top_p": 0.9}, {"top_p": 0.8}, {"temperature": 0}, {}, ADJUSTED[1]]
    case = Case(vocab, wishes, len(wishes))
    logits = random_logits(len(wishes), vocab, torch.float32, "flat" if splits == 4 else "normal", seed=splits)
    positions = [9] * len(wishes)
    alone = case.draw(logits, positions, splits=1, block=64)
    assert torch.equal(case.draw(logits, positions, splits=splits, block=64), alone)
    agree(alone, case.expected(logits, positions))


def test_as_many_programs_as_run_at_once() -> None:
    if GPU:
        most = torch.cuda.get_device_properties(DEVICE).multi_processor_count
        assert all(fused.splits_for(n, DEVICE) * n <= most for n in range(1, most + 1))
        assert fused.splits_for(1, DEVICE) == fused.SEGMENTS
    assert fused.splits_for(1000, DEVICE) == 1
