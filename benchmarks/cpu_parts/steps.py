"""Steps of the worker alone, on this CPU: MODEL [--quantization int8] -> one line of JSON.

How a decode step grows with the number of requests and with their context, what a prompt costs, and what the machine
itself can do: bytes read per second, bf16 operations per second of oneDNN's best product.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from quire.checkpoint import read_facts
from quire.config import build_engine_config
from quire.messages import NewBlocks, NewRow, StepPlan, pack_ids
from quire.params import SamplingParams
from quire.worker.worker import Worker

BLOCK = 16
SPARE = 160
"""Positions kept for the decode steps that are timed."""


def best(call: Callable[[], object], seconds: float) -> float:
    """The shortest of several calls."""
    shortest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        shortest = min(shortest, time.perf_counter() - start)
    return shortest


def machine() -> dict[str, float]:
    """GB/s of reading, GFLOP/s of bf16 products."""
    wide = torch.ones(200_000_000)
    read = wide.nbytes / best(wide.sum, 3) / 1e9
    del wide
    rates = []
    for rows, size, outs in ((2048, 2048, 768), (1024, 1024, 6144), (1024, 4096, 4096)):
        x = torch.randn(rows, size, dtype=torch.bfloat16)
        weight = torch.ops.mkldnn._reorder_linear_weight(torch.randn(outs, size, dtype=torch.bfloat16), rows)

        def product(x: torch.Tensor = x, weight: torch.Tensor = weight) -> torch.Tensor:
            return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

        rates.append(2 * rows * size * outs / best(product, 2) / 1e9)
    return {"read_gb_s": read, "bf16_gflop_s": max(rates)}


class Requests:
    """`num` requests of `context` tokens; blocks are dealt out in order.

    Args:
        worker: made with room for them.
    """

    def __init__(self, worker: Worker, num: int, context: int) -> None:
        self._worker, self._rows, self._context = worker, list(range(num)), context
        self._position = context
        self._steps = 0

    def prompt(self) -> float:
        """Seconds to read all prompts, as many per step as there is room for."""
        per_request = -(-(self._context + SPARE) // BLOCK)
        most = self._worker.facts.sizes.max_num_batched_tokens
        start = time.perf_counter()
        for row in self._rows:
            ids = pack_ids([(row * 7 + i * 13) % 30_000 + 3 for i in range(self._context)])
            new = [NewRow(row, ids, self._context, 0, SamplingParams(temperature=0), [])]
            blocks = [NewBlocks(row, 0, list(range(1 + row * per_request, 1 + (row + 1) * per_request)))]
            for done in range(0, self._context, most):
                count = min(most, self._context - done)
                self._run(StepPlan(self._steps, new, blocks, [row], [done], [count], self._ends(done + count)))
                new, blocks = [], []
        self._position = self._context
        return time.perf_counter() - start

    def decode(self) -> None:
        """One token each; before the spare positions run out the requests begin anew, their context computed."""
        num, new = len(self._rows), []
        if self._position == self._context + SPARE - 1:
            self._position = self._context
            ids = pack_ids([3] * (self._context + 1))
            new = [
                NewRow(row, ids, self._context, self._context, SamplingParams(temperature=0), []) for row in self._rows
            ]
        self._run(StepPlan(self._steps, new, [], self._rows, [self._position] * num, [1] * num, list(range(num))))
        self._position += 1

    def _ends(self, done: int) -> list[int]:
        return [0] if done == self._context else []

    def _run(self, plan: StepPlan) -> None:
        self._steps += 1
        self._worker.forward(plan)
        self._worker.sample(plan, {}).wait()


def sweep(worker: Worker, cases: Sequence[tuple[int, int]], seconds: float) -> list[dict[str, float]]:
    """Each (requests, context): seconds of a decode step, prompt tokens per second."""
    rows = []
    for num, context in cases:
        requests = Requests(worker, num, context)
        prompt = requests.prompt()
        requests.decode()
        step = best(requests.decode, seconds)
        rows.append({"requests": num, "context": context, "step": step, "prompt_tok_s": num * context / prompt})
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--quantization")
    parser.add_argument("--batches", default="1,2,4,8,16,32,64,128")
    parser.add_argument("--contexts", default="128,512,2048,8000")
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    batches, contexts = ([int(n) for n in text.split(",") if n] for text in (args.batches, args.contexts))
    values = {"model": str(args.model), "max_model_len": 16_000, "kv_cache_memory_bytes": 6 << 30}
    config = build_engine_config({**values, **({"quantization": args.quantization} if args.quantization else {})})
    worker = Worker(config, args.model, read_facts(args.model), lambda *_: None)
    result = {
        "machine": machine(),
        "device": worker.facts.device,
        "weights_bytes": worker.facts.weights_bytes,
        "batches": sweep(worker, [(n, 128) for n in batches], args.seconds),
        "contexts": sweep(worker, [(1, n) for n in contexts], args.seconds),
    }
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
