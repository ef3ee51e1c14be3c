"""Where a decode step of the worker goes: MODEL [--quantization int8] [--rows 1,64] [--threads 2] -> tables.

Each kernel is called on its own here and timed, so a step is longer than a captured one; the difference is launching.
Shares are of what the same run measures: bytes of weights and cache against reading memory, operations against oneDNN's
best product.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path

import torch
from steps import Requests, machine

from quire.checkpoint import read_facts
from quire.config import build_engine_config
from quire.worker.kernels.native import NativeLibrary
from quire.worker.kernels.native_jobs import Call, Linear
from quire.worker.worker import Worker

CONTEXT, STEPS = 128, 30
Costs = dict[str, list[float]]
"""Seconds, bytes and operations of each kernel in one step."""


def work(call: Call) -> tuple[str, float, float]:
    """What a call is named here, the bytes that it must read from memory, its operations."""
    job = call.job
    if isinstance(job, Linear):
        size = job.inputs * job.outs
        return (
            f"{call.name} {job.inputs} x {job.outs}",
            size * (2 if call.name.endswith("bf16") else 1),
            2.0 * size * job.rows,
        )
    if call.name == "attend_paged":
        keys = job.requests * (CONTEXT + STEPS / 2) * job.dim
        return call.name, keys * job.kv_heads * (8 if call.wide else 4), 4 * keys * job.heads
    return call.name, 0.0, 0.0


def profile(requests: Requests) -> tuple[float, Costs]:
    """The fastest step of several."""
    original, costs = NativeLibrary._call, defaultdict(lambda: [0.0, 0.0, 0.0])

    def timed(library: NativeLibrary, *arguments: object) -> None:
        start = time.perf_counter()
        original(library, *arguments)
        name, read, operations = work(Call(*arguments))
        for index, cost in enumerate((time.perf_counter() - start, read, operations)):
            costs[name][index] += cost

    NativeLibrary._call = timed
    found: list[tuple[float, Costs]] = []
    for _ in range(STEPS):
        costs.clear()
        start = time.perf_counter()
        requests.decode()
        found.append((time.perf_counter() - start, {name: list(cost) for name, cost in costs.items()}))
    NativeLibrary._call = original
    return min(found, key=lambda step: step[0])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--quantization")
    parser.add_argument("--rows", default="1,64")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    values = {"model": str(args.model), "max_model_len": 2048, "kv_cache_memory_bytes": 2 << 30, "enforce_eager": True}
    config = build_engine_config({**values, **({"quantization": args.quantization} if args.quantization else {})})
    worker = Worker(config, args.model, read_facts(args.model), lambda *_: None)
    roof = machine()
    print(f"{worker.facts.device}; reads {roof['read_gb_s']:.1f} GB/s, bf16 {roof['bf16_gflop_s']:.0f} GFLOP/s")
    for rows in map(int, args.rows.split(",")):
        requests = Requests(worker, rows, CONTEXT)
        requests.prompt()
        requests.decode()
        step, costs = profile(requests)
        print(f"\n{rows} rows of {CONTEXT} tokens: {step * 1e3:.2f} ms")
        print("| kernel | ms | GB/s | share | GFLOP/s | share |\n|---|---|---|---|---|---|")
        for name, (seconds, read, operations) in costs.items():
            rates = ((read, roof["read_gb_s"]), (operations, roof["bf16_gflop_s"]))
            shares = [
                f"{n / seconds / 1e9:.1f} | {n / seconds / 1e9 / most:.0%}" if n else "- | -" for n, most in rates
            ]
            print(f"| {name} | {seconds * 1e3:.3f} | {' | '.join(shares)} |")
        rest = step - sum(cost[0] for cost in costs.values())
        print(f"| launching, torch, the rest | {rest * 1e3:.3f} | - | - | - | - |")


if __name__ == "__main__":
    main()
