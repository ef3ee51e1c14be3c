"""Worker: one device, one model. Builds everything that lives there, then follows plans through its runner."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from quire.checkpoint import ModelFacts
from quire.config import EngineConfig
from quire.messages import NewRow, StepPlan, pack_ids
from quire.params import SamplingParams
from quire.worker.attention.select import select_backend
from quire.worker.kernels.native import NativeLibrary
from quire.worker.kernels.select import has_triton_kernels, kernels_for, native_library
from quire.worker.layers.build import Build
from quire.worker.layers.linear import Linear
from quire.worker.memory import GpuBudget, KVLayout, allocate_kv, cpu_available_bytes, plan_kv
from quire.worker.models.load import load_model
from quire.worker.native_graphs import NativeGraphs
from quire.worker.pictures import PictureRoom, Pictures, largest_step, pick_room
from quire.worker.quantization.select import select_scheme
from quire.worker.rows import Rows
from quire.worker.runner import Graphs, Pending, Runner
from quire.worker.sampling.prompt import LINES, PromptScorer
from quire.worker.sampling.sampler import Sampler, word_stages
from quire.worker.sizes import (
    H200,
    StepSizes,
    cpu_pace,
    pick_device,
    pick_dtype,
    pick_max_model_len,
    pick_mixed_sizes,
    pick_sizes,
)
from quire.worker.trouble import Trouble, trouble_of

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What the worker settled on; `seconds` by stage of the start, `pictures` None for a model of text only."""

    device: str
    dtype: str
    weights_bytes: int
    layout: KVLayout
    sizes: StepSizes
    max_model_len: int
    seconds: dict[str, float]
    pictures: PictureRoom | None = None


class Worker:
    """One device.

    Args:
        config: the engine's settings.
        folder: the checkpoint.
        model_facts: what its config says.
        progress: called with (stage, done bytes, total bytes) while weights load.
    """

    def __init__(self, config: EngineConfig, folder: Path, model_facts: ModelFacts, progress: Progress) -> None:
        started = time.monotonic()
        self.device = pick_device(config.model.device)
        budget = GpuBudget(0, config.cache.gpu_memory_utilization) if self.device.type == "cuda" else None
        if budget is not None:
            torch.cuda.set_stream(torch.cuda.Stream(self.device))  # steps can be captured on any stream but the default
        dtype = pick_dtype(config.model.dtype, model_facts.dtype, self.device)
        sizes = pick_sizes(config.scheduler, self.device)
        max_model_len = pick_max_model_len(config.model.max_model_len, model_facts.max_model_len)
        native = native_library(self.device, dtype, config.model.cpu_kernels)
        build = Build(
            dtype=dtype,
            device=self.device,
            backend=select_backend(self.device, native=native is not None),
            scheme=select_scheme(config.model.quantization, self.device, native),
            kernels=kernels_for(self.device, native),
            max_model_len=max(0, max_model_len),
        )
        model = load_model(
            folder,
            model_facts,
            build,
            config=config.model,
            progress=lambda done, total: progress("weights", done, total),
        )
        loaded = time.monotonic()
        num_params = sum(parameter.numel() for parameter in model.parameters())
        pace = H200 if self.device.type == "cuda" else cpu_pace(product_rate(build))
        sizes = pick_mixed_sizes(sizes, config.scheduler, num_params, len(model.kv_specs()), pace)
        longest = model_facts.max_model_len if max_model_len == -1 else max_model_len
        room = None
        if (taken := getattr(model, "pictures", None)) is not None:
            chunked = config.scheduler.enable_chunked_prefill
            room = pick_room(config.media, taken, self.device, longest, chunked=chunked)
        house = _House(
            model,
            build,
            sizes,
            vocab_size=model_facts.vocab_size,
            block_size=config.cache.block_size,
            use_graphs=not config.model.enforce_eager and (native is not None or has_triton_kernels(self.device)),
            native=native,
            room=room,
        )
        compiling = time.monotonic()
        if has_triton_kernels(self.device):
            house.compile_ahead(longest)
        compiled = time.monotonic()
        left, later_bytes = (cpu_available_bytes(), 0) if budget is None else house.left_after_peak(budget, longest)
        layout, fitting = plan_kv(
            config.cache,
            model.kv_specs(),
            left,
            needed_tokens=sizes.max_num_seqs * longest,
            max_model_len=max_model_len,
        )
        max_model_len = min(longest, fitting)
        if not config.scheduler.enable_chunked_prefill:  # a prompt must fit one step then
            sizes = replace(sizes, max_num_batched_tokens=max(sizes.max_num_batched_tokens, max_model_len))
        self._runner = house.runner(layout, max_model_len)
        if budget is not None:
            budget.enforce(later_bytes)
        house.run_once(self._runner, max_model_len, smallest=budget is None)
        self.facts = WorkerFacts(
            device=_device_name(self.device, native),
            dtype=_dtype_name(dtype, getattr(model, "weights_note", None)),
            weights_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
            layout=layout,
            sizes=sizes,
            max_model_len=max_model_len,
            seconds={"load": loaded - started, "kernels": compiled - compiling, "memory": time.monotonic() - compiled},
            pictures=room,
        )

    def forward(self, plan: StepPlan) -> None:
        """Run the model on one step."""
        self._runner.forward(plan)

    def sample(self, plan: StepPlan, masks: dict[int, bytes]) -> Pending:
        """Sample the step's rows."""
        return self._runner.sample(plan, masks)

    def prepare(self) -> bool:
        """Nothing is to be done: use the time. Whether there was a use for it."""
        return self._runner.prepare()

    def judge(self, error: Exception) -> Trouble:
        """A step failed with this error: forget it, give back memory, and say what it means for further steps."""
        self._runner.forget()
        return trouble_of(error, self.device)


@dataclass(frozen=True, slots=True)
class _House:
    """What a runner is built from, for the measuring one and the real one."""

    model: nn.Module
    build: Build
    sizes: StepSizes
    vocab_size: int
    block_size: int
    use_graphs: bool
    native: NativeLibrary | None
    room: PictureRoom | None = None

    def runner(self, layout: KVLayout, max_model_len: int) -> Runner:
        """A runner with its own KV cache and tables."""
        build, most = self.build, self.sizes.max_num_seqs
        kv = allocate_kv(build.backend, self.model.kv_specs(), layout, build.device)
        for tensor in kv if self.native is not None else ():
            self.native.advise(tensor)
        rows = Rows(most, max_model_len, layout.block_size, build.device)
        scorer = PromptScorer(most, self.vocab_size)
        pictures = None if self.room is None else Pictures(self.model, self.room, build.dtype, build.device)
        if not has_triton_kernels(build.device):
            most_likely = build.kernels.most_likely  # plain or native ones, which have it
            sampler = Sampler(most, self.vocab_size, build.device, most_likely=most_likely)
            captured: tuple[Graphs, ...] = ()
            if self.native is not None and self.use_graphs and can_note(self.model):
                captured = (NativeGraphs(self.model, build.backend, rows, kv, sampler, self.native),)
            return Runner(self.model, build.backend, build.kernels, rows, kv, sampler, scorer, captured, pictures)
        from quire.worker.graphs import DecodeGraphs, MixedGraphs, Parts
        from quire.worker.sampling.fused import FusedSampler

        stages = word_stages(most, self.vocab_size, build.device)
        fused = FusedSampler(most, self.vocab_size, build.device, stages, build.dtype)
        graphs: tuple[Graphs, ...] = ()
        if self.use_graphs and not self.model.launched_only:
            parts, pool = Parts(self.model, build.backend, rows, kv, fused), torch.cuda.graph_pool_handle()
            graphs = (DecodeGraphs(parts, most, pool), MixedGraphs(parts, self.sizes.mixed_graph_tokens, most, pool))
        return Runner(self.model, build.backend, build.kernels, rows, kv, fused, scorer, graphs, pictures)

    def left_after_peak(self, budget: GpuBudget, max_model_len: int) -> tuple[int, int]:
        """What the largest step there can be leaves of the budget, and what graphs will take outside of torch."""
        runner = self.runner(KVLayout(2, self.block_size, 0), max_model_len)
        self.run_once(runner, max_model_len)
        for graphs in runner.graphs:
            graphs.rehearse()
        torch.cuda.synchronize(self.build.device)
        needed = [graphs.needed_bytes() for graphs in runner.graphs]
        outside = sum(driver for _, driver in needed)
        left = budget.left_bytes() - sum(own for own, _ in needed) - outside
        del runner
        gc.collect()
        torch.cuda.empty_cache()  # what stays for good is not to be laid between what comes and goes
        return left, outside

    def compile_ahead(self, max_model_len: int) -> None:
        """Compile what requests will need, in parallel, with tables of its own."""
        runner = self.runner(KVLayout(2, self.block_size, 0), max_model_len)
        most = min(self.sizes.max_num_seqs, self.sizes.max_num_batched_tokens)
        sizes = {(most, min(2048, self.sizes.max_num_batched_tokens)), (1, min(8, max_model_len - 1)), (1, 1)}
        kinds = (
            SamplingParams(temperature=0, logprobs=1),
            SamplingParams(temperature=0.7, seed=0),
            SamplingParams(temperature=0.7, seed=0, presence_penalty=0.1),
        )
        runner.compile_ahead(*(_null_step(*size, max_model_len, params) for size in sizes for params in kinds))

    def run_once(self, runner: Runner, max_model_len: int, *, smallest: bool = False) -> None:
        """The largest step there can be, or a small one, of rows that read and write block 0 only, at full length."""
        num_tokens = self.sizes.max_num_batched_tokens
        num_rows = min(self.sizes.max_num_seqs, num_tokens)
        if smallest:
            num_rows, num_tokens = 1, min(32, max_model_len - 1)
        params = SamplingParams(temperature=0.7, top_p=0.9, min_p=0.01, presence_penalty=0.1, seed=0, logprobs=1)
        if has_triton_kernels(self.build.device):  # the fused sampler needs no memory for what it does
            params = SamplingParams(temperature=0, logprobs=1)
        plan = _null_step(num_rows, num_tokens, max_model_len, params)
        plan.new_rows[0] = _scored(plan.new_rows[0], plan.starts[0], max_model_len)
        if self.room is not None:
            plan.pictures.append(largest_step(self.model.pictures, self.room, plan.rows, plan.starts))
        runner.forward(plan)
        runner.sample(plan, {}).wait()


def can_note(model: nn.Module) -> bool:
    """Whether a step can be noted and repeated on a CPU: it depends on no value, and makes no matrix out of quantized
    weights, all of which the notes would keep."""
    made = (kept for module in model.modules() for kept in getattr(module, "kept", ()))
    return not model.routes and all(getattr(kept, "is_job", False) for kept in made)


def product_rate(build: Build) -> float:
    """Operations per second of a middling product, the best of three: milliseconds on a CPU."""
    layer = Linear(1024, (1024,), build)
    layer.weight.data.zero_()
    layer.finish()
    x, times = torch.zeros(128, 1024, dtype=build.dtype), []
    with torch.inference_mode():
        for _ in range(3):
            started = time.perf_counter()
            layer(x)
            times.append(time.perf_counter() - started)
    return 2 * 128 * 1024 * 1024 / min(times)


def _null_step(num_rows: int, num_tokens: int, max_model_len: int, params: SamplingParams) -> StepPlan:
    """New rows without blocks, at their full length, that run `num_tokens` together."""
    counts = [1] * num_rows
    for row in range(num_rows):
        counts[row] += min(max_model_len - 2, num_tokens - sum(counts))
    new_rows = [NewRow(row, pack_ids([0] * n), n, 0, params, [0]) for row, n in enumerate(counts)]
    starts = [max_model_len - 1 - n for n in counts]
    rows = list(range(num_rows))
    return StepPlan(0, new_rows, [], rows, starts, counts, rows)


def _scored(new: NewRow, start: int, max_model_len: int) -> NewRow:
    """The same row with its prompt to be scored, as far as one pass of that goes."""
    params = new.params.clone()
    params.prompt_logprobs = 1
    num_prompt = min(max_model_len, start + LINES + 1)
    return NewRow(new.row, new.tokens, num_prompt, new.num_computed, params, new.stop_token_ids)


def _device_name(device: torch.device, native: NativeLibrary | None) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    bound = os.environ.get("OMP_PLACES")
    threads = f"{torch.get_num_threads()} threads" + (f" bound to {bound}" if bound else "")
    return f"CPU, {threads}, {'kernels of torch' if native is None else f'native kernels ({native.summary})'}"


def _dtype_name(dtype: torch.dtype, weights: str | None) -> str:
    name = str(dtype).removeprefix("torch.")
    return name if weights is None else f"{name}, {weights}"
