"""Products with quantized weights on a GPU: first whether they are right, then how fast, beside bf16 by cuBLAS.

    python benchmarks/quantised_kernels.py [--shapes qkv,down] [--rows 1,16] [--sweep] [--json FILE]

Right: against the float32 matrix that the weights mean, for W4A16 (groups of 128, with and without zeros and order),
W8A16, FP8 per output and in tiles of 128 x 128, and nf4, at every row count; the script ends with 1 if one is not.
Fast: the matrices of an 8B Llama. "floor" is the time that reading the weights takes at the rate that a large sum reads
in the same run; shares are floor / time. Weights rotate, so that the L2 cache does not flatter. `--sweep` tries the
tiles in `group_product.CANDIDATES` and shows the best where it beats the built-in choice by 3 % or more.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton

from quire.worker.kernels import float_product, group_product
from quire.worker.kernels.fused import TritonKernels
from quire.worker.kernels.weights import AnyWeights, FloatWeights, GroupWeights
from quire.worker.quantization import fitted

DEVICE = torch.device("cuda")
SHAPES = {
    "qkv": (4096, 6144),
    "o": (4096, 4096),
    "gate_up": (4096, 28672),
    "down": (14336, 4096),
    "head": (4096, 128256),
}
"""Inputs and outputs."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SMALL = 96
"""Outputs that correctness is checked with, besides whole shapes."""
ROTATE_BYTES = 192 << 20
"""Of weights that are read in turn: more than the L2 cache of an H200 three times over."""


def group_weights(
    outs: int, inputs: int, bits: int, *, zeros: bool, order: bool = False, seed: int = 0
) -> GroupWeights:
    """Random ones, groups of 128."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    random = partial(torch.rand, generator=generator, device=DEVICE)
    q = torch.randint(0, 1 << bits, (outs, inputs), generator=generator, device=DEVICE, dtype=torch.uint8)
    scales = (random(outs, inputs // 128) * 0.01 + 0.001).half()
    made = (random(outs, inputs // 128) * (1 << bits)).half() if zeros else None
    by = torch.randperm(inputs, generator=generator, device=DEVICE) if order else None
    return GroupWeights.make(q, scales, made, bits=bits, group=128, order=by)


def float_weights(outs: int, inputs: int, tile: tuple[int, int] | None, *, seed: int = 0) -> FloatWeights:
    """Random ones."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    q = (torch.randn(outs, inputs, generator=generator, device=DEVICE) * 60).to(torch.float8_e4m3fn)
    tile = tile or (1, inputs)
    scales = torch.rand(-(-outs // tile[0]), -(-inputs // tile[1]), generator=generator, device=DEVICE) * 1e-3
    return FloatWeights(q, scales, *tile)


def kinds(outs: int, inputs: int) -> dict[str, AnyWeights]:
    """Everything that is checked."""
    plain = torch.randn(outs, inputs, device=DEVICE) * 0.02
    return {
        "W4A16": group_weights(outs, inputs, 4, zeros=False),
        "W4A16, zeros": group_weights(outs, inputs, 4, zeros=True),
        "W4A16, zeros and order": group_weights(outs, inputs, 4, zeros=True, order=True),
        "W8A16": group_weights(outs, inputs, 8, zeros=False),
        "FP8": float_weights(outs, inputs, None),
        "FP8 in tiles": float_weights(outs, inputs, (128, 128)),
        "4 bits fitted": fitted.int4(plain),
        "nf4": fitted.nf4(plain),
    }


def check() -> list[str]:
    """What is wrong: nothing, if all is well."""
    wrong, kernels = [], TritonKernels()
    for dtype, tolerance in ((torch.float16, 4e-3), (torch.bfloat16, 2e-2)):
        for outs, inputs in ((SMALL, 512), (4096, 4096), (6144, 4096), (1000, 14336)):
            for name, weights in kinds(outs, inputs).items():
                kept, dense = kernels.keep(weights), weights.dense(torch.float32)
                bias = torch.randn(outs, device=DEVICE).to(dtype)
                for rows in (*ROWS, 3, 17, 65):
                    x = torch.randn(rows, inputs, device=DEVICE).to(dtype)
                    expected = F.linear(x.float(), dense, bias.float())
                    found = kernels.product(x, kept, bias).float()
                    error = float((found - expected).norm() / expected.norm())
                    # above MOST_ROWS inputs of FP8 products are quantized as well: 3 digits
                    limit = 0.04 if name == "FP8" and rows > float_product.MOST_ROWS else tolerance
                    if not error < limit:
                        wrong.append(
                            f"{name}, {dtype}, {rows} rows, {inputs} -> {outs}: error {error:.3g}, limit {limit}"
                        )
    return wrong


def timed(calls: list[Callable[[], object]], repeats: int = 15) -> float:
    """Microseconds per call: all of them captured one after the other, the median of some replays."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times) * 1000 / len(calls)


def read_rate() -> float:
    """Bytes per microsecond."""
    wide = torch.ones(1 << 30, device=DEVICE)
    return wide.nbytes / timed([wide.sum] * 3)


def copies(make: Callable[[int], Any], num_bytes: int) -> list[Any]:
    """As many weights as it takes to leave the cache."""
    return [make(seed) for seed in range(max(2, -(-ROTATE_BYTES // num_bytes)))]


def measure(name: str, rows_list: list[int], rate: float, *, sweep: bool) -> list[dict[str, Any]]:
    """Every row count of one shape."""
    inputs, outs = SHAPES[name]
    size = inputs * outs
    plain = copies(lambda seed: torch.randn(outs, inputs, device=DEVICE, dtype=torch.bfloat16) * 0.02, 2 * size)
    four = copies(lambda seed: group_product.tile(group_weights(outs, inputs, 4, zeros=True, seed=seed)), size // 2)
    eight = copies(lambda seed: group_product.tile(group_weights(outs, inputs, 8, zeros=False, seed=seed)), size)
    floats = copies(lambda seed: float_weights(outs, inputs, None, seed=seed), size)
    found = []
    for rows in rows_list:
        x = torch.randn(rows, inputs, device=DEVICE, dtype=torch.bfloat16)
        products: dict[str, tuple[list[Any], Callable[..., Any], float]] = {
            "bf16": (plain, lambda x, w, tiles=None: F.linear(x, w), 2.0 * size),
            "W4A16": (four, lambda x, w, tiles=None: group_product.product(x, w, None, tiles), size * (0.5 + 4 / 128)),
            "W8A16": (eight, lambda x, w, tiles=None: group_product.product(x, w, None, tiles), size * (1 + 2 / 128)),
            "FP8": (floats, lambda x, w, tiles=None: float_product.product(x, w, None, tiles), 1.0 * size),
        }
        row: dict[str, Any] = {"shape": name, "rows": rows}
        for kind, (weights, call, num_bytes) in products.items():
            time = timed([partial(call, x, weight) for weight in weights])
            row[kind] = {"us": time, "share": num_bytes / rate / time}
            if sweep and kind != "bf16" and rows <= group_product.MOST_ROWS:
                row[kind] |= best_tiles(x, weights, call, time)
        found.append(row)
    return found


def best_tiles(x: torch.Tensor, weights: list[Any], call: Callable[..., Any], usual: float) -> dict[str, Any]:
    """The fastest of other tiles, if it is 3 % faster or more."""
    times = {}
    for tiles in group_product.CANDIDATES:
        try:
            times[tiles] = timed([partial(call, x, weight, tiles) for weight in weights], repeats=7)
        except triton.runtime.errors.OutOfResources:
            continue
    tiles = min(times, key=lambda tiles: times[tiles])
    return {"best": str(tiles), "best_us": times[tiles]} if times[tiles] < 0.97 * usual else {}


def show(rows: list[dict[str, Any]]) -> None:
    """One line per shape and row count: microseconds and shares of the floor, then times as fast as bf16."""
    names = ("bf16", "W4A16", "W8A16", "FP8")
    print(f"{'shape':8}{'rows':>5}" + "".join(f"{name:>10} us  share" for name in names) + "   W4/bf16  FP8/bf16")
    for row in rows:
        cells = "".join(f"{row[name]['us']:13.1f}{row[name]['share']:7.0%}" for name in names)
        faster = [row["bf16"]["us"] / row[name]["us"] for name in ("W4A16", "FP8")]
        print(f"{row['shape']:8}{row['rows']:5}{cells}{faster[0]:9.2f}x{faster[1]:8.2f}x")
    for row in rows:
        for name in names:
            if "best" in row[name]:
                cell = row[name]
                print(f"better: {name} {row['shape']} {row['rows']} rows: {cell['best']} {cell['best_us']:.1f} us")


def main() -> int:
    """Check, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    wrong = check()
    print("\n".join(wrong) or "all products are right")
    if wrong:
        return 1
    rate = read_rate()
    rows = []
    for name in args.shapes.split(","):
        rows += measure(name, [int(n) for n in args.rows.split(",")], rate, sweep=args.sweep)
        torch.cuda.empty_cache()
        print(f"{name} is measured", flush=True)
    facts = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    facts |= {"python": platform.python_version(), "read_gb_s": rate / 1000}
    if args.json:
        args.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1))
    print(f"{facts['gpu']}, torch {facts['torch']}, triton {facts['triton']}, reads {rate / 1e6:.2f} TB/s")
    show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
