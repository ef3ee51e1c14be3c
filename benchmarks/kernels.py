"""Kernels on a GPU: each checked against its plain twin, then timed inside a CUDA graph, beside the chip's own rates.

    python benchmarks/kernels.py [decode] [prefill] [gemv] [small] [--sweep]

The rates are measured in the same run: reading, by a large sum; bf16 arithmetic, by a large product. `--sweep` tries
other tile choices than the built-in ones and shows the best. Inputs rotate, so that the L2 cache does not flatter.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import triton

from quire.worker.attention import triton_backend as backend
from quire.worker.kernels import activation, gemv, norm, rope
from quire.worker.kernels.decode_attention import DecodeScratch, DecodeTiles, decode_attention, plan_decode
from quire.worker.kernels.prefill_attention import PrefillTiles, prefill_attention

DTYPE, DEVICE, PAGE = torch.bfloat16, torch.device("cuda"), 16
DECODE = {
    "8B, 1 x 640": ([640], 32, 8, 128),
    "8B, 1 x 32k": ([32768], 32, 8, 128),
    "8B, 8 x 640": ([640] * 8, 32, 8, 128),
    "8B, 32 x 640": ([640] * 32, 32, 8, 128),
    "8B, 32 x 4k": ([4096] * 32, 32, 8, 128),
    "8B, 256 x 640": ([640] * 256, 32, 8, 128),
    "8B, 100k beside 31 x 1k": ([100_000] + [1000] * 31, 32, 8, 128),
    "0.6B, 64 x 576": ([576] * 64, 16, 8, 128),
    "0.6B, 1024 x 576": ([576] * 1024, 16, 8, 128),
    "1B, 512 x 576": ([576] * 512, 32, 8, 64),
}
"""Lengths, heads, KV heads, head_dim."""
PREFILL = {
    "8B, 512": ([512], [512], 32, 8, 128),
    "8B, 16 x 512": ([512] * 16, [512] * 16, 32, 8, 128),
    "8B, 8k": ([8192], [8192], 32, 8, 128),
    "8B, 8k after 24k": ([32768], [8192], 32, 8, 128),
    "0.6B, 16 x 512": ([512] * 16, [512] * 16, 16, 8, 128),
    "1B, 16 x 512": ([512] * 16, [512] * 16, 32, 8, 64),
}
"""Lengths, new tokens of each, heads, KV heads, head_dim."""
GEMV = {
    "8B": {
        "qkv": (4096, 6144),
        "o": (4096, 4096),
        "down": (14336, 4096),
        "head": (4096, 128256),
        "gate": (4096, 14336),
    },
    "1B": {"qkv": (2048, 3072), "o": (2048, 2048), "down": (8192, 2048), "head": (2048, 128256), "gate": (2048, 8192)},
    "0.6B": {
        "qkv": (1024, 4096),
        "o": (2048, 1024),
        "down": (3072, 1024),
        "head": (1024, 151936),
        "gate": (1024, 3072),
    },
}
"""Columns and lines; of gate, lines of one half."""
SWEEP_DECODE = [(64, 4, 3), (64, 2, 3), (128, 4, 2), (32, 2, 4), (128, 4, 2, True), (64, 4, 3, True)]
SWEEP_PREFILL = [(128, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 2), (128, 32, 4, 4), (128, 64, 8, 2)]


def timed(calls: list[Callable[[], object]], repeats: int = 15) -> float:
    """Microseconds per call: all of them captured one after the other, the median of some replays."""
    for call in calls:
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


def best_of(choices: Iterable[Any], calls: Callable[[Any], list[Callable[[], object]]]) -> tuple[float, Any]:
    """The fastest choice that fits the chip, and its time."""
    found: list[tuple[float, Any]] = []
    for choice in choices:
        try:
            found.append((timed(calls(choice)), choice))
        except triton.runtime.errors.OutOfResources:
            continue
    return min(found, key=lambda item: item[0])


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, by norms; NaN stays NaN."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def rates() -> tuple[float, float]:
    """(bytes per us read, operations per us)."""
    big = torch.randn(1 << 31, device=DEVICE, dtype=DTYPE)
    a = torch.randn(8192, 8192, device=DEVICE, dtype=DTYPE)
    read, multiply = (4 << 30) / timed([big.sum] * 3), 2 * 8192**3 / timed([partial(torch.mm, a, a)] * 3)
    print(f"reads {read / 1e6:.2f} TB/s, bf16 product {multiply / 1e6:.0f} TFLOP/s")
    return read, multiply


class Paged:
    """Requests of these lengths over pages in random order."""

    def __init__(self, lens: list[int], counts: list[int], heads: int, kv_heads: int, dim: int) -> None:
        blocks = [-(-n // PAGE) for n in lens]
        order = (torch.randperm(sum(blocks), device=DEVICE) + 1).int()
        self.kv = torch.randn(sum(blocks) + 1, 2, kv_heads, PAGE, dim, device=DEVICE, dtype=DTYPE)
        self.tables = torch.zeros(len(lens), max(blocks), dtype=torch.int32, device=DEVICE)
        for line, part in enumerate(order.split(blocks)):
            self.tables[line, : len(part)] = part
        self.rows = torch.arange(len(lens), dtype=torch.int32, device=DEVICE)
        self.lens = torch.tensor(lens, dtype=torch.int32, device=DEVICE)
        self.starts = torch.tensor([0, *counts], device=DEVICE).cumsum(0).int()
        self.q = torch.randn(sum(counts), heads, dim, device=DEVICE, dtype=DTYPE)
        self.out = torch.full((sum(counts), heads * dim), torch.nan, device=DEVICE, dtype=DTYPE)
        self.scale, self.counts = dim**-0.5, counts
        self.where = (self.q, self.kv, self.out, self.tables, self.rows, self.starts, self.lens)

    def error(self, line: int, query: int) -> float:
        """Of one query token of one request, against float32."""
        position = int(self.lens[line]) - self.counts[line] + query + 1
        pages = self.kv[self.tables[line, : -(-position // PAGE)].long()]
        k, v = (pages[:, i].transpose(0, 1).flatten(1, 2)[:, :position].float() for i in (0, 1))
        token = int(self.starts[line]) + query
        q = self.q[token].float().view(k.shape[0], -1, k.shape[2])
        return error(self.out[token], ((q @ k.transpose(1, 2) * self.scale).softmax(-1) @ v).flatten())


def decode(read_rate: float, sweep: bool) -> None:
    """Also what a plan makes of the lengths."""
    print("\n| decode attention | us | GB/s | share of reading | error | split, tiles |\n|---|---|---|---|---|---|")
    for name, (lens, heads, kv_heads, dim) in DECODE.items():
        bytes_read = sum(lens) * kv_heads * dim * 4
        sets = [Paged(lens, [1] * len(lens), heads, kv_heads, dim) for _ in range(max(1, min(8, 2**28 // bytes_read)))]
        processors = torch.cuda.get_device_properties(DEVICE).multi_processor_count
        cut = next(cut for cut in backend.CUTS[2] if len(lens) * kv_heads / processors <= cut.fill)
        scratch = DecodeScratch.make(cut.items(processors, kv_heads), heads, dim, DEVICE)
        plans = [plan_decode(p.rows, p.lens, *cut.plan(processors, kv_heads)) for p in sets]

        def calls(
            tiles: DecodeTiles, sets: list[Paged] = sets, plans: list[Any] = plans, scratch: DecodeScratch = scratch
        ) -> list[Callable[[], object]]:
            return [
                partial(decode_attention, *p.where, plan, scratch, tiles, scale=p.scale)
                for p, plan in zip(sets, plans, strict=True)
            ] * (8 // len(sets))

        took, tiles = best_of([DecodeTiles(*t) for t in SWEEP_DECODE] if sweep else [cut.tiles], calls)
        wrong = max(sets[0].error(line, 0) for line in (0, len(lens) // 2, len(lens) - 1))
        rate = bytes_read / took
        print(
            f"| {name} | {took:.1f} | {rate / 1e3:.0f} | {rate / read_rate:.2f} | {wrong:.4f}"
            f" | {int(plans[0].split)}, {tiles} |",
            flush=True,
        )


def prefill(rate: float, sweep: bool) -> None:
    """Causal, over pages."""
    print("\n| prefill attention | us | TFLOP/s | share of the product's | error | tiles |\n|---|---|---|---|---|---|")
    for name, (lens, counts, heads, kv_heads, dim) in PREFILL.items():
        paged = Paged(lens, counts, heads, kv_heads, dim)
        size = backend.PREFILL_TILES[2].tokens(heads // kv_heads)
        tiles_of = [(i, s) for i, c in enumerate(counts) for s in range(0, c, size)]
        tiles_of.sort(key=lambda tile: -tile[1])
        at = torch.tensor(tiles_of, dtype=torch.int32, device=DEVICE).T.contiguous()

        def calls(
            tiles: PrefillTiles, paged: Paged = paged, at: torch.Tensor = at, size: int = size
        ) -> list[Callable[[], object]]:
            return [partial(prefill_attention, *paged.where, at[0], at[1], size, tiles, scale=paged.scale)] * 4

        few = len(tiles_of) * kv_heads <= 198
        built_in = backend.PREFILL_TILES_FEW[2] if few else backend.PREFILL_TILES[2]
        took, tiles = best_of([PrefillTiles(*t) for t in SWEEP_PREFILL] if sweep else [built_in], calls)
        work = sum(4 * heads * dim * (n * c - c * (c - 1) / 2) for n, c in zip(lens, counts, strict=True)) / took
        wrong = max(paged.error(0, counts[0] - 1), paged.error(len(lens) - 1, counts[-1] // 2))
        print(f"| {name} | {took:.1f} | {work / 1e6:.0f} | {work / rate:.2f} | {wrong:.4f} | {tiles} |", flush=True)


def one_line(read_rate: float, sweep: bool) -> None:
    """Products of one line with a weight matrix, beside cuBLAS."""
    print("\n| one line | cuBLAS us | ours us | share of reading | error | tiles |\n|---|---|---|---|---|---|")
    for model, shapes in GEMV.items():
        for name, (size, width) in shapes.items():
            gated = name == "gate"
            total = 2 * width if gated else width
            num = max(2, min(12, int(4e8 / (size * total * 2))))
            weights = [torch.randn(total, size, device=DEVICE, dtype=DTYPE) * 0.02 for _ in range(num)]
            x = torch.randn(1, size, device=DEVICE, dtype=DTYPE)
            twin = partial(_linear_gated if gated else F.linear, x)
            ours = partial(_gemv_gated if gated else _gemv, x)

            def calls(
                tiles: gemv.GemvTiles, ours: Any = ours, weights: list[torch.Tensor] = weights
            ) -> list[Callable[[], object]]:
                return [partial(ours, w, tiles) for w in weights]

            choices = [tiles for tiles in gemv.CANDIDATES if tiles.block < 2 * size]
            took, tiles = best_of(choices if sweep else [gemv.default_tiles(size, width)], calls)
            cublas = timed([partial(twin, w) for w in weights])
            share = total * size * 2 / took / read_rate
            wrong = error(ours(weights[0], tiles), twin(weights[0]))
            shape = f"{model} {name} {size} x {total}"
            print(f"| {shape} | {cublas:.1f} | {took:.1f} | {share:.2f} | {wrong:.4f} | {tiles} |", flush=True)


def _linear_gated(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return activation.gated(F.linear(x, weight), "silu")


def _gemv(x: torch.Tensor, weight: torch.Tensor, tiles: gemv.GemvTiles) -> torch.Tensor:
    return gemv.gemv(x, weight, None, tiles)


def _gemv_gated(x: torch.Tensor, weight: torch.Tensor, tiles: gemv.GemvTiles) -> torch.Tensor:
    return gemv.gated_gemv(x, weight, "silu", tiles)


def small() -> None:
    """What is between the products."""
    print("\n| between the products | tokens | us | GB/s |\n|---|---|---|---|")
    for model, size, heads, kv_heads, dim, width in (("8B", 4096, 32, 8, 128, 14336), ("0.6B", 1024, 16, 8, 128, 3072)):
        for tokens in (1, 32, 256, 8192):
            x, residual = (torch.randn(tokens, size, device=DEVICE, dtype=DTYPE) for _ in range(2))
            weight = torch.randn(size, device=DEVICE, dtype=DTYPE)
            wide = torch.randn(tokens, 2 * width, device=DEVICE, dtype=DTYPE)
            qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim, device=DEVICE, dtype=DTYPE)
            kv = torch.empty(tokens // PAGE + 2, 2, kv_heads, PAGE, dim, device=DEVICE, dtype=DTYPE)
            turn = torch.randn(2, tokens, dim // 2, device=DEVICE, dtype=DTYPE).unbind()
            slots = torch.randperm(tokens, device=DEVICE)
            rows = {
                "add, norm": (partial(norm.add_rms_norm, x, residual, weight, 1e-5), 4 * x.numel()),
                "silu, multiply": (partial(activation.gated, wide, "silu"), 1.5 * wide.numel()),
                "turn, store": (partial(rope.norm_turn_store, qkv, None, turn, kv, slots, heads), 2 * qkv.numel()),
            }
            for name, (call, moved) in rows.items():
                took = timed([call] * 20)
                print(f"| {model} {name} | {tokens} | {took:.2f} | {2 * moved / took / 1e3:.0f} |", flush=True)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["decode", "prefill", "gemv", "small"])
    parser.add_argument("--sweep", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    versions = f"torch {torch.__version__}, triton {triton.__version__}, Python {platform.python_version()}"
    print(f"{torch.cuda.get_device_name()}, {versions}")
    read_rate, product_rate = rates()
    if "decode" in args.what:
        decode(read_rate, args.sweep)
    if "prefill" in args.what:
        prefill(product_rate, args.sweep)
    if "gemv" in args.what:
        one_line(read_rate, args.sweep)
    if "small" in args.what:
        small()


if __name__ == "__main__":
    main()
