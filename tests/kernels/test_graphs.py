"""Whole generations through captured steps beside the same through plain eager ones, with a real scheduler.

Without a GPU a "graph" is the captured function itself, run again at every replay, by Triton's interpreter: what is
shown is that its fixed buffers, paddings and rings say the same as the eager path. On a GPU the graphs are real.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from quire.checkpoint import read_facts
from quire.engine.core import EngineCore
from quire.engine.executors import InlineExecutor
from quire.engine.grammar import NoConstraints
from quire.engine.kv.manager import KVManager
from quire.engine.kv.pool import BlockPool
from quire.engine.scheduler.request import Request
from quire.engine.scheduler.scheduler import Scheduler, Step
from quire.messages import AddRequest, TokenLogprobs, pack_ids
from quire.params import SamplingParams
from quire.worker import graphs, ring
from quire.worker.attention.torch_backend import TorchAttention
from quire.worker.attention.triton_backend import TritonAttention
from quire.worker.kernels.fused import TritonKernels
from quire.worker.kernels.plain import PlainKernels
from quire.worker.layers.build import Build
from quire.worker.memory import KVLayout, allocate_kv
from quire.worker.models.load import load_model
from quire.worker.quantization.none import Unquantized
from quire.worker.rows import Rows
from quire.worker.runner import Runner
from quire.worker.sampling.fused import FusedSampler
from quire.worker.sampling.prompt import PromptScorer
from quire.worker.sampling.sampler import Sampler

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
VOCAB, ROWS, BLOCK, BLOCKS, LENGTH = 96, 6, 4, 60, 64


class FakeEvent:
    """Nothing runs later here."""

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class FakeGraph:
    """Runs the step again. It learns which from the owner's `_run`, called while it captures."""

    capturing: FakeGraph | None = None

    def __init__(self) -> None:
        self.call: Callable[[], torch.Tensor | None] | None = None
        self.logits: torch.Tensor | None = None

    def capture_begin(self, **_: Any) -> None:
        FakeGraph.capturing = self

    def capture_end(self) -> None:
        FakeGraph.capturing = None

    def replay(self) -> None:
        assert self.call is not None
        found = self.call()
        if self.logits is not None and found is not None:
            self.logits.copy_(found)


@pytest.fixture(autouse=True)
def graphs_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "RARE", 0)
    if GPU:
        torch.cuda.set_stream(torch.cuda.Stream())
        return
    for kind in (graphs.DecodeGraphs, graphs.MixedGraphs):

        def run(self: Any, size: Any, name: str, kind: type = kind, real: Any = kind._run) -> torch.Tensor | None:
            graph = FakeGraph.capturing
            if graph is None:
                return real(self, size, name)
            graph.call = lambda: real(self, size, name)
            if name == "eager":
                rows = size if isinstance(size, int) else size[1]
                graph.logits = torch.full((rows, VOCAB), torch.nan)
            return graph.logits

        monkeypatch.setattr(kind, "_run", run)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeEvent)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(ring.torch.cuda, "Event", FakeEvent)


class Thirds(NoConstraints):
    """Every second request may say only tokens that are no multiple of three away from its last one, the first few of
    some are free, and now and then a mask is late."""

    def __init__(self, scheduler: Scheduler, late: float) -> None:
        self._scheduler, self._late = scheduler, late
        self._random = random.Random(1)
        self._held: list[Request] = []
        self.num_masks = self.num_lost = 0

    def poll(self) -> None:
        for request in self._held:
            self._scheduler.release_hold(request)
        self._held.clear()

    @staticmethod
    def holds(request: Request) -> bool:
        return request.id % 2 == 0 and request.num_output >= request.id % 3

    def mark(self, step: Step) -> None:
        samples = [share.request for share in step.shares if share.samples]
        step.plan.masked.extend(i for i, request in enumerate(samples) if self.holds(request))

    def masks(self, step: Step) -> dict[int, bytes]:
        found = {}
        for i, request in enumerate(share.request for share in step.shares if share.samples):
            if request.state == "finished" or not self.holds(request):
                continue
            if i not in step.plan.masked or self._random.random() < self._late:
                self._scheduler.hold(request, void=True)
                self._held.append(request)
                self.num_lost += 1
            else:
                allowed = np.arange(VOCAB) % 3 != request.tokens[-1] % 3
                found[i] = np.packbits(allowed, bitorder="little").tobytes()
        self.num_masks += len(found)
        return found


class Engine:
    """A scheduler, a loop and a runner over one small model."""

    def __init__(self, folder: Path, *, captured: bool, late: float | None = None) -> None:
        backend = TritonAttention() if captured else TorchAttention()
        kernels = TritonKernels() if captured else PlainKernels()
        build = Build(torch.float32, DEVICE, backend, Unquantized(), kernels)
        facts = read_facts(folder)
        model = load_model(folder, facts, build)
        kv = allocate_kv(backend, model.kv_specs(), KVLayout(BLOCKS, BLOCK, 1), DEVICE)
        for tensor in kv:
            tensor.fill_(torch.nan)
        rows = Rows(ROWS, LENGTH, BLOCK, DEVICE)
        if captured:
            sampler: Any = FusedSampler(ROWS, VOCAB, DEVICE)
            parts = graphs.Parts(model, backend, rows, kv, sampler)
            pool = torch.cuda.graph_pool_handle() if GPU else None
            shapes: Any = (graphs.DecodeGraphs(parts, ROWS, pool), graphs.MixedGraphs(parts, 40, ROWS, pool))
        else:
            sampler, shapes = Sampler(ROWS, VOCAB, DEVICE), ()
        self.shapes = shapes
        self.runner = Runner(model, backend, kernels, rows, kv, sampler, PromptScorer(ROWS, VOCAB), shapes)
        self.scheduler = Scheduler(
            KVManager(BlockPool(BLOCKS), BLOCK, prefix_caching=True),
            max_num_seqs=ROWS,
            max_num_batched_tokens=40,
            max_model_len=LENGTH,
        )
        self.constraints = NoConstraints() if late is None else Thirds(self.scheduler, late)
        self.core = EngineCore(self.scheduler, InlineExecutor(self.runner), self.constraints)
        self.scores: dict[int, list[TokenLogprobs]] = {}

    @torch.inference_mode()
    def run(self, requests: list[tuple[list[int], SamplingParams]]) -> dict[int, list[int]]:
        """All tokens of each request; some arrive later than others."""
        tokens: dict[int, list[int]] = {}
        waiting = list(enumerate(requests))
        while waiting or self.core.busy or self.scheduler.stats().num_waiting:
            for index, (prompt, params) in waiting[:2]:
                self.scheduler.add(AddRequest(index, pack_ids(prompt), params))
            del waiting[:2]
            for output in self.core.step().outputs:
                tokens.setdefault(output.id, []).extend(output.token_ids)
                self.scores.setdefault(output.id, []).extend(output.prompt_logprobs or ())
                assert output.error is None
        return tokens


@pytest.mark.parametrize("family", ["llama31", "qwen3"])
def test_captured_steps_say_the_same(family: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    checkpoints.write(family, tmp_path, **sizes)
    rng = random.Random(0)
    shared = [rng.randrange(VOCAB) for _ in range(9)]
    requests = []
    for index in range(11):
        prompt = (shared if index % 3 == 0 else []) + [rng.randrange(VOCAB) for _ in range(rng.choice([1, 2, 7, 30]))]
        extra: dict[str, Any] = [
            {"temperature": 0},
            {"temperature": 0, "presence_penalty": 1.5},
            {"temperature": 0, "logprobs": 2},
            {"temperature": 0, "repetition_penalty": 1.3, "min_tokens": 1},
        ][index % 4]
        requests.append((prompt, SamplingParams(max_tokens=rng.choice([1, 2, 9]), seed=index, **extra)))
    captured, plain = Engine(tmp_path, captured=True), Engine(tmp_path, captured=False)
    assert captured.run(requests) == plain.run(requests)
    for _ in range(2):
        assert captured.run(requests[::-1]) == plain.run(requests[::-1]), "and again, with more captured and cached"
    decode, mixed = captured.shapes
    kinds = {kind for shape in captured.shapes for _, kind in shape._graphs}
    assert kinds >= {"greedy", "adjusted", "eager"}, kinds
    assert len(mixed._graphs) >= 3, "steps with prompts are captured too"
    while captured.runner.prepare():
        pass
    assert all((size, "greedy") in decode._graphs for size in decode._all_sizes)


def test_prompts_are_scored_beside_captured_steps(tmp_path: Path) -> None:
    """Such a step runs eagerly, with the kernels; the tokens of all others are what they are without."""
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    checkpoints.write("llama31", tmp_path, **sizes, num_attention_heads=2, num_key_value_heads=1, head_dim=16)
    rng = random.Random(0)
    requests = []
    for length, most in [(50, 3), (5, None), (55, 0), (2, -1), (30, None)]:
        prompt = [rng.randrange(VOCAB) for _ in range(length)]
        requests.append((prompt, SamplingParams(temperature=0, max_tokens=6, prompt_logprobs=most)))
    captured, plain = Engine(tmp_path, captured=True), Engine(tmp_path, captured=False)
    assert captured.run(requests) == plain.run(requests)
    for index, (prompt, params) in enumerate(requests):
        most = {None: None, -1: VOCAB}.get(params.prompt_logprobs, params.prompt_logprobs)
        ours, theirs = captured.scores[index], plain.scores[index]
        assert len(ours) == len(theirs) == (0 if most is None else len(prompt) - 1)
        for position, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert (one.token_ids[0], one.rank) == (prompt[position + 1], other.rank)
            assert len(one.token_ids) == 1 + most and set(one.token_ids) == set(other.token_ids)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("late", [0.0, 0.3])
def test_captured_steps_with_masks(late: float, tmp_path: Path) -> None:
    """Steps with masks leave their logits to be sampled later; a token that was sampled without its mask is lost."""
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    checkpoints.write("qwen3", tmp_path, **sizes)
    rng = random.Random(2)
    requests = []
    for index in range(10):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.choice([1, 3, 20]))]
        extra: dict[str, Any] = [{"temperature": 0}, {"temperature": 0, "presence_penalty": 1.5}][index % 4 // 2]
        requests.append((prompt, SamplingParams(max_tokens=rng.choice([3, 9]), seed=index, **extra)))
    captured = Engine(tmp_path, captured=True, late=late)
    found = captured.run(requests)
    assert found == Engine(tmp_path, captured=False, late=0.0).run(requests)
    free = Engine(tmp_path, captured=False).run(requests)
    constraints = captured.constraints
    assert constraints.num_masks > 10 and constraints.num_lost > 0
    for index, (prompt, _) in enumerate(requests):
        if index % 2:
            assert found[index] == free[index], "nobody else notices"
        else:
            said = [*prompt, *found[index]]
            begin = len(prompt) + index % 3
            assert all(said[i] % 3 != said[i - 1] % 3 for i in range(begin, len(said)))


def test_sizes() -> None:
    for most in (1, 5, 8, 200, 1024):
        sizes = graphs.decode_sizes(most)
        assert sizes[-1] == most
        assert list(sizes) == sorted(set(sizes))
