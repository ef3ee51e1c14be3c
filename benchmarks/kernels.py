"""Kernels on a GPU: each checked against its plain twin, then timed inside a CUDA graph, beside its own floor.

    python benchmarks/kernels.py [decode] [prefill] [gemv] [small] [--sweep]

Floors are from rates measured in the same run: the read bandwidth of a large sum, the bf16 rate of a large product.
`--sweep` tries other tile choices than the built-in ones. Inputs rotate, so that the L2 cache does not flatter.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable
from itertools import product

import torch
import triton

from quire.worker.attention import triton_backend as backend
from quire.worker.kernels import activation, gemv, norm, rope
from quire.worker.kernels.decode_attention import DecodeScratch, DecodeTiles, decode_attention, plan_decode
from quire.worker.kernels.prefill_attention import PrefillTiles, prefill_attention

DTYPE, DEVICE = torch.bfloat16, "cuda"
SHAPES = {
    "8B": {"qkv": (4096, 6144), "o": (4096, 4096), "down": (14336, 4096), "head": (4096, 128256)},
    "1B": {"qkv": (2048, 3072), "o": (2048, 2048), "down": (8192, 2048), "head": (2048, 128256)},
    "0.6B": {"qkv": (1024, 4096), "o": (2048, 1024), "down": (3072, 1024), "head": (1024, 151936)},
}
GATED = {"8B": (4096, 14336), "1B": (2048, 8192), "0.6B": (1024, 3072)}


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


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, by norms; NaN stays NaN."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def ceilings() -> tuple[float, float]:
    """(bytes per us read, FLOP per us)."""
    big = torch.randn(1 << 30, device=DEVICE, dtype=DTYPE)
    read = timed([lambda: big.sum()] * 3)
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=DTYPE) for _ in range(2))
    multiply = timed([lambda: a @ b] * 3)
    copied = timed([lambda: big[: 1 << 29].copy_(big[1 << 29 :])] * 3)
    print(
        f"sum reads {(2 << 30) / read / 1e6:.2f} TB/s, copy {(2 << 30) / copied / 1e6:.2f} TB/s (read + write),"
        f" bf16 product {2 * 8192**3 / multiply / 1e6:.0f} TFLOP/s"
    )
    return max((2 << 30) / read, (2 << 30) / copied), 2 * 8192**3 / multiply


class Paged:
    """Requests of these lengths over pages in random order."""

    def __init__(self, lens: list[int], heads: int, kv_heads: int, dim: int, page: int, counts: list[int]) -> None:
        blocks = [-(-n // page) for n in lens]
        order = (torch.randperm(sum(blocks), device=DEVICE) + 1).int()
        self.kv = torch.randn(sum(blocks) + 1, 2, kv_heads, page, dim, device=DEVICE, dtype=DTYPE)
        self.tables = torch.zeros(len(lens), max(blocks), dtype=torch.int32, device=DEVICE)
        for line, part in enumerate(order.split(blocks)):
            self.tables[line, : len(part)] = part
        self.rows = torch.arange(len(lens), dtype=torch.int32, device=DEVICE)
        self.lens = torch.tensor(lens, dtype=torch.int32, device=DEVICE)
        self.starts = torch.tensor([0, *counts], device=DEVICE).cumsum(0).int()
        self.q = torch.randn(sum(counts), heads, dim, device=DEVICE, dtype=DTYPE)
        self.out = torch.empty(sum(counts), heads * dim, device=DEVICE, dtype=DTYPE)
        self.scale, self.page, self.counts = dim**-0.5, page, counts

    def where(self) -> tuple[torch.Tensor, ...]:
        return self.q, self.kv, self.out, self.tables, self.rows, self.starts, self.lens

    def expected(self, line: int, query: int) -> torch.Tensor:
        """One query token of one request, in float32."""
        position = int(self.lens[line]) - self.counts[line] + query + 1
        pages = self.kv[self.tables[line, : -(-position // self.page)].long()]
        k, v = (pages[:, i].transpose(0, 1).flatten(1, 2)[:, :position].float() for i in (0, 1))
        q = self.q[int(self.starts[line]) + query].float().view(k.shape[0], -1, k.shape[2])
        return ((q @ k.transpose(1, 2) * self.scale).softmax(-1) @ v).flatten()


def decode(read_rate: float, sweep: bool) -> None:
    print("\n| decode attention | us | GB/s | of the read rate | error | split, tiles |\n|---|---|---|---|---|---|")
    mixed = torch.Generator().manual_seed(0)
    cases = [
        ("8B, 1 x 640", [640], 32, 8, 128), ("8B, 1 x 32k", [32768], 32, 8, 128), ("8B, 8 x 640", [640] * 8, 32, 8, 128),
        ("8B, 32 x 640", [640] * 32, 32, 8, 128), ("8B, 32 x 4k", [4096] * 32, 32, 8, 128),
        ("8B, 256 x 640", [640] * 256, 32, 8, 128),
        ("8B, 256 x 64..2k", torch.randint(64, 2048, (256,), generator=mixed).tolist(), 32, 8, 128),
        ("8B, 100k beside 31 x 1k", [100_000] + [1000] * 31, 32, 8, 128),
        ("0.6B, 1 x 640", [640], 16, 8, 128), ("0.6B, 64 x 576", [576] * 64, 16, 8, 128),
        ("0.6B, 1024 x 576", [576] * 1024, 16, 8, 128), ("1B, 512 x 576", [576] * 512, 32, 8, 64),
    ]  # fmt: skip
    for name, lens, heads, kv_heads, dim in cases:
        sets = max(1, min(8, int(2e8 / (sum(lens) * kv_heads * dim * 4))))
        paged = [Paged(lens, heads, kv_heads, dim, 16, [1] * len(lens)) for _ in range(sets)]
        tiles = [backend.DECODE_TILES[2], backend.DECODE_TILES_FEW[2]]
        per = [2]
        least = [backend.MIN_SPLIT]
        if sweep:
            tiles = [
                DecodeTiles(*t)
                for t in (
                    (64, 4, 3),
                    (128, 4, 2),
                    (128, 4, 2, True),
                    (128, 8, 2, True),
                    (64, 4, 3, True),
                    (64, 8, 2, True),
                )
            ]
            per, least = ([2, 4] if len(lens) < 256 else [2]), ([64, 128] if sum(lens) < 30_000 else [256])
        best = (1e9, None, 0.0)
        for tile, many, low in product(tiles, per, least):
            extra = -(-132 * many // kv_heads)
            scratch = DecodeScratch.make(extra, heads, dim, torch.device(DEVICE))
            plans = [plan_decode(p.rows, p.lens, extra, low, 128, whole=len(lens) * kv_heads > 184) for p in paged]

            def call(p: Paged, plan: object, tile: DecodeTiles = tile, scratch: DecodeScratch = scratch) -> None:
                decode_attention(*p.where(), plan, scratch, tile, scale=p.scale)

            try:
                took = timed(
                    [lambda p=p, plan=plan: call(p, plan) for p, plan in zip(paged, plans, strict=True)] * (8 // sets)
                )
            except triton.runtime.errors.OutOfResources:
                continue
            if sweep:
                print(f"  {name} {many} {low} {tile}: {took:.1f}", flush=True)
            if took < best[0]:
                paged[0].out.fill_(torch.nan)
                call(paged[0], plans[0])
                wrong = max(error(paged[0].out[i], paged[0].expected(i, 0)) for i in (0, len(lens) // 2, len(lens) - 1))
                best = (took, (many, low, int(plans[0].split), tile), wrong)
        bytes_read = sum(lens) * kv_heads * dim * 4
        print(
            f"| {name} | {best[0]:.1f} | {bytes_read / best[0] / 1e3:.0f} | {bytes_read / best[0] / read_rate:.2f}"
            f" | {best[2]:.4f} | {best[1]} |",
            flush=True,
        )


def prefill(flop_rate: float, sweep: bool) -> None:
    print("\n| prefill attention | us | TFLOP/s | error | tiles |\n|---|---|---|---|---|")
    cases = [
        ("8B, 1 x 512", [512], [512], 32, 8, 128), ("8B, 16 x 512", [512] * 16, [512] * 16, 32, 8, 128),
        ("8B, 1 x 8k", [8192], [8192], 32, 8, 128), ("8B, 8k after 24k", [32768], [8192], 32, 8, 128),
        ("0.6B, 16 x 512", [512] * 16, [512] * 16, 16, 8, 128), ("1B, 16 x 512", [512] * 16, [512] * 16, 32, 8, 64),
    ]  # fmt: skip
    for name, lens, counts, heads, kv_heads, dim in cases:
        paged = Paged(lens, heads, kv_heads, dim, 16, counts)
        choices = [backend.PREFILL_TILES[2]]
        if sweep:
            choices = [PrefillTiles(*t) for t in ((128, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 2), (64, 64, 4, 3),
                                                  (128, 64, 8, 2), (128, 32, 4, 4), (64, 128, 4, 2), (256, 64, 8, 2))]  # fmt: skip
        flops = sum(4 * heads * dim * (n * c - c * (c - 1) / 2) for n, c in zip(lens, counts, strict=True))
        best = (1e9, None, 0.0)
        for choice in choices:
            size = choice.tokens(heads // kv_heads)
            pairs = sorted(((i, s) for i, c in enumerate(counts) for s in range(0, c, size)), key=lambda p: -p[1])
            at = torch.tensor(pairs, dtype=torch.int32, device=DEVICE).T.contiguous()

            def call(choice: PrefillTiles = choice, at: torch.Tensor = at) -> None:
                prefill_attention(*paged.where(), at[0], at[1], choice, scale=paged.scale)

            try:
                took = timed([call] * 4)
            except triton.runtime.errors.OutOfResources:
                continue
            if sweep:
                print(f"  {name} {choice}: {took:.1f} us {flops / took / 1e6:.0f}", flush=True)
            if took < best[0]:
                paged.out.fill_(torch.nan)
                call()
                wrong = max(
                    error(paged.out[int(paged.starts[i]) + c - 1], paged.expected(i, c - 1))
                    for i, c in [(0, counts[0]), (len(lens) - 1, counts[-1] // 2)]
                )
                best = (took, choice, wrong)
        print(f"| {name} | {best[0]:.1f} | {flops / best[0] / 1e6:.0f} | {best[2]:.4f} | {best[1]} |", flush=True)


def gemvs(read_rate: float, sweep: bool) -> None:
    print(
        "\n| few lines | M | cuBLAS us | Triton us | GB/s | of the read rate | error | tiles |\n|---|---|---|---|---|---|---|---|"
    )
    for model, shapes in SHAPES.items():
        for lines in (1,):
            for name, (size, width) in [*shapes.items(), ("gate, up, act", GATED[model])]:
                gated = name.startswith("gate")
                total = width * 2 if gated else width
                num = max(2, min(12, int(4e8 / (size * total * 2))))
                weights = [torch.randn(total, size, device=DEVICE, dtype=DTYPE) * 0.02 for _ in range(num)]
                x = torch.randn(lines, size, device=DEVICE, dtype=DTYPE)
                twin = (lambda x, w: activation.gated(x @ w.T, "silu")) if gated else (lambda x, w: x @ w.T)
                cublas = timed([lambda w=w: twin(x, w) for w in weights])
                tiles = [
                    (1, 4096, 8),
                    (1, 2048, 4),
                    (2, 2048, 8),
                    (2, 1024, 4),
                    (4, 1024, 4),
                    (4, 512, 4),
                    (1, 1024, 2),
                ]
                best = (1e9, None, 0.0)
                for choice in (gemv.GemvTiles(*t) for t in tiles):
                    if choice.block > 2 * size:
                        continue

                    def call(w: torch.Tensor, choice: gemv.GemvTiles = choice) -> torch.Tensor:
                        return gemv.gated_gemv(x, w, "silu", choice) if gated else gemv.gemv(x, w, None, choice)

                    took = timed([lambda w=w: call(w) for w in weights])
                    if sweep:
                        print(f"  {model} {name} {choice}: {took:.1f}", flush=True)
                    if took < best[0]:
                        best = (took, choice, error(call(weights[0]), twin(x, weights[0])))
                read = total * size * 2
                print(
                    f"| {model} {name} {size} x {total} | {lines} | {cublas:.1f} | {best[0]:.1f} | {read / best[0] / 1e3:.0f}"
                    f" | {read / best[0] / read_rate:.2f} | {best[2]:.4f} | {best[1]} |",
                    flush=True,
                )


def small() -> None:
    print("\n| small kernels | tokens | us |\n|---|---|---|")
    for model, size, heads, kv_heads, dim, width in (("8B", 4096, 32, 8, 128, 14336), ("0.6B", 1024, 16, 8, 128, 3072)):
        for tokens in (1, 32, 256, 8192):
            x, residual = (torch.randn(tokens, size, device=DEVICE, dtype=DTYPE) for _ in range(2))
            weight = torch.randn(size, device=DEVICE, dtype=DTYPE)
            wide = torch.randn(tokens, 2 * width, device=DEVICE, dtype=DTYPE)
            qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim, device=DEVICE, dtype=DTYPE)
            kv = torch.randn(tokens // 16 + 2, 2, kv_heads, 16, dim, device=DEVICE, dtype=DTYPE)
            slots = torch.randperm(tokens, device=DEVICE)
            turn = torch.randn(2, tokens, dim // 2, device=DEVICE, dtype=DTYPE).unbind()
            rows = [
                ("add, norm", lambda: norm.add_rms_norm(x, residual, weight, 1e-5), 4 * x.numel()),
                ("silu, mul", lambda: activation.gated(wide, "silu"), 1.5 * wide.numel()),
            ]
            for many in (4, 8, 16):

                def store(many: int = many) -> None:
                    rope.HEADS = many
                    rope.norm_turn_store(qkv, None, turn, kv, slots, heads)

                rows.append((f"turn, store {many}", store, 2 * qkv.numel()))
            for name, call, moved in rows:
                took = timed([call] * 20)
                print(f"| {model} {name} | {tokens} | {took:.2f} ({2 * moved / took / 1e3:.0f} GB/s) |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["decode", "prefill", "gemv", "small"])
    parser.add_argument("--sweep", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}, Python {platform.python_version()}"
    )
    read_rate, flop_rate = ceilings()
    if "decode" in args.what:
        decode(read_rate, args.sweep)
    if "prefill" in args.what:
        prefill(flop_rate, args.sweep)
    if "gemv" in args.what:
        gemvs(read_rate, args.sweep)
    if "small" in args.what:
        small()


if __name__ == "__main__":
    main()
