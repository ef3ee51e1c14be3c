"""Paged attention for GPUs, by our Triton kernels.

    kv      [num_blocks, 2, num_kv_heads, block_size, head_dim]      a head's part of a page lies together

A step is cut in two: requests with one new token go to the decode kernel, longer ones, in tiles of queries, to the
prefill kernel. Lengths are read on the device; the host knows only how many tokens each request runs, so a step in
which all run one needs nothing from it and can be captured.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton

from quire.worker.attention.protocol import AttentionSpec, GraphSupport, HeadNorms, KVSpec, Turn
from quire.worker.batch import Batch
from quire.worker.kernels.decode_attention import (
    DecodePlan,
    DecodeScratch,
    DecodeTiles,
    decode_attention,
    plan_decode,
)
from quire.worker.kernels.prefill_attention import PrefillTiles, prefill_attention
from quire.worker.kernels.rope import norm_turn_store
from quire.worker.transfer import upload

MIN_SPLIT = 128
"""Fewest tokens that are worth a program of their own."""

HAS_GLUON = triton.__version__.startswith("3.6.")
"""The interface of Gluon moves with every version; the Hopper kernel is written for this one."""

LONG = 2048
"""Tokens from which on a request is long."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How requests that decode are cut into items and read, while whole ones are at most `fill` programs per
    multiprocessor.

    extra: items more than there are requests, in programs per multiprocessor.
    whole: where there are enough of them, those of about the mean length are left whole.
    """

    fill: float
    extra: int
    whole: bool
    tiles: DecodeTiles

    def items(self, num_processors: int, num_kv_heads: int) -> int:
        """How many items more than requests."""
        return -(-self.extra * num_processors // num_kv_heads)

    def plan(self, num_processors: int, num_kv_heads: int) -> tuple[int, int, int, int]:
        """The last arguments of `plan_decode`: no tile is cut but the last."""
        whole_from = int(1.4 * num_processors / num_kv_heads) if self.whole else 1 << 30
        return self.items(num_processors, num_kv_heads), max(MIN_SPLIT, self.tiles.block), self.tiles.block, whole_from


CUTS = {
    2: (
        Cut(1, 2, False, DecodeTiles(128, 4, 2, early=True)),
        Cut(2, 4, False, DecodeTiles(64, 2, 3, early=True)),
        Cut(math.inf, 2, True, DecodeTiles(64, 2, 3, early=True)),
    ),
    4: (Cut(2, 2, False, DecodeTiles(32, 4, 2, early=True)), Cut(math.inf, 2, True, DecodeTiles(32, 4, 2))),
}
"""By bytes per element, few requests first. Measured on an H200, benchmarks/NOTES.md."""

PREFILL_TILES = {2: PrefillTiles(128, 64, 4, 3), 4: PrefillTiles(64, 32, 4, 2)}
PREFILL_TILES_FEW = {2: PrefillTiles(128, 64, 8, 3), 4: PrefillTiles(64, 32, 4, 2)}
"""By bytes per element, and in the same way; FEW for fewer tiles than multiprocessors."""


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Query tiles [tiles], int32: whose, and from which of its tokens of this step on."""

    requests: torch.Tensor
    starts: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Plan:
    """What runs one token, and the query tiles of the rest; None where there is nothing. Whether any is known to be
    long."""

    decode: DecodePlan | None
    tiles: _Tiles | None
    long: bool = False


class TritonAttention:
    """Owns the scratch memory of split requests, one for each shape of heads."""

    name = "triton"
    graphs: GraphSupport = "any"

    def __init__(self) -> None:
        self._specs: set[AttentionSpec] = set()
        self._element_size = 2
        self._scratch: dict[tuple[int, int], DecodeScratch] = {}
        self._all: torch.Tensor | None = None  # 0, 1, 2, ...: the requests of a step in which all decode

    def add_layer(self, spec: AttentionSpec) -> None:
        """Remember its heads."""
        self._specs.add(spec)

    def kv_shape(self, spec: KVSpec, num_blocks: int, block_size: int) -> tuple[int, ...]:
        """K pages, then V pages, of each block."""
        self._element_size = spec.dtype.itemsize
        return (num_blocks, 2, spec.num_kv_heads, block_size, spec.head_dim)

    def plan(self, batch: Batch) -> _Plan:
        """Decode items are chosen on the device; which requests decode is known here."""
        device = batch.positions.device
        counts = np.asarray(batch.counts)
        single, longer = np.flatnonzero(counts == 1), np.flatnonzero(counts > 1)
        decode, made, long = None, None, False
        if len(single):
            own = self._first(len(single), device) if not len(longer) else _on_device(single, device)
            decode = self._plan_decode(own, batch)
        if len(longer):
            made = _Tiles(
                *_on_device(np.stack(self.tiles(longer, counts, np.asarray(batch.kv_bounds))), device).unbind()
            )
            long = max(batch.kv_bounds) >= LONG
        return _Plan(decode, made, long)

    def fixed_plan(
        self, batch: Batch, decode: torch.Tensor, tile_requests: torch.Tensor, tile_starts: torch.Tensor
    ) -> _Plan:
        """A plan of fixed size whose contents the device holds: requests that decode, and tiles; -1 is nobody."""
        return _Plan(self._plan_decode(decode, batch), _Tiles(tile_requests, tile_starts))

    def tile_tokens(self) -> int:
        """Query tokens of a tile: what fits one of the largest group, for all layers alike."""
        return PREFILL_TILES[self._element_size].tokens(
            max(spec.num_heads // spec.num_kv_heads for spec in self._specs)
        )

    def tiles(self, longer: np.ndarray, counts: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(request, first query) of the tiles of some requests, those that see most keys first: the short ones fill
        the gaps at the end.

        Args:
            longer: indices of the requests.
            counts, bounds: query tokens and keys of every request of the step.
        """
        size = self.tile_tokens()
        num = -(-counts[longer] // size)
        requests = np.repeat(longer, num)
        starts = (np.arange(len(requests)) - np.repeat(np.cumsum(num) - num, num)) * size
        order = np.argsort(counts[requests] - bounds[requests] - starts, kind="stable")
        return requests[order], starts[order]

    def store(
        self,
        qkv: torch.Tensor,
        norms: HeadNorms | None,
        turn: Turn | None,
        kv: torch.Tensor,
        batch: Batch,
        spec: AttentionSpec,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One kernel; q stays where it is, k and v go to the cache only."""
        norm_turn_store(qkv, norms, turn, kv, batch.slots, spec.num_heads)
        heads = qkv.view(len(qkv), -1, spec.head_dim)
        q, k, v = heads.split((spec.num_heads, spec.num_kv_heads, spec.num_kv_heads), dim=1)
        return q, k, v

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, batch: Batch, spec: AttentionSpec
    ) -> torch.Tensor:
        """At most two kernels, side by side: tiles first, they take few multiprocessors whole, and requests that decode
        fill the others."""
        plan: _Plan = batch.attention_plan
        out = torch.empty(len(q), spec.num_heads * spec.head_dim, dtype=q.dtype, device=q.device)
        where = (batch.block_tables, batch.rows, batch.query_starts, batch.kv_lens)
        how = {"scale": spec.scale, "window": spec.window, "soft_cap": spec.soft_cap}
        if plan.tiles is not None:
            few = len(plan.tiles.starts) * spec.num_kv_heads <= 1.5 * self._num_processors(q.device)
            choice = (PREFILL_TILES_FEW if few else PREFILL_TILES)[q.element_size()]
            tiles = (plan.tiles.requests, plan.tiles.starts, self.tile_tokens())
            if self._fits_hopper(q, kv, spec, plan.long):
                _hopper().prefill_attention_hopper(q, kv, out, *where, *tiles, scale=spec.scale)
            else:
                prefill_attention(q, kv, out, *where, *tiles, choice, **how)
        if plan.decode is not None:
            scratch = self._scratch_for(spec, q.device)
            tiles = self._cut(len(plan.decode.requests), q.device).tiles
            decode_attention(q, kv, out, *where, plan.decode, scratch, tiles, **how, beside=plan.tiles is not None)
        return out

    def _fits_hopper(self, q: torch.Tensor, kv: torch.Tensor, spec: AttentionSpec, long: bool) -> bool:
        """Small heads gain by it only where there is much to see."""
        if spec.window is not None or spec.soft_cap is not None or not (long or spec.head_dim > 64):
            return False
        return HAS_GLUON and _hopper().fits(spec.head_dim, kv.shape[3], q.dtype, q.device)

    def _plan_decode(self, requests: torch.Tensor, batch: Batch) -> DecodePlan:
        cut = self._cut(len(requests), requests.device)
        processors = self._num_processors(requests.device)
        return plan_decode(requests, batch.kv_lens, *cut.plan(processors, self._num_kv_heads()))

    def _cut(self, num_requests: int, device: torch.device) -> Cut:
        fill = self._fill(num_requests, device)
        return next(cut for cut in CUTS[self._element_size] if fill <= cut.fill)

    def _fill(self, num_requests: int, device: torch.device) -> float:
        return num_requests * self._num_kv_heads() / self._num_processors(device)

    def _num_kv_heads(self) -> int:
        return min(spec.num_kv_heads for spec in self._specs)

    def _num_processors(self, device: torch.device) -> int:
        return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2

    def _first(self, count: int, device: torch.device) -> torch.Tensor:
        if self._all is None or len(self._all) < count:
            self._all = torch.arange(max(4096, count), dtype=torch.int32, device=device)
        return self._all[:count]

    def _scratch_for(self, spec: AttentionSpec, device: torch.device) -> DecodeScratch:
        key = (spec.num_heads, spec.head_dim)
        if key not in self._scratch:
            most = max(
                cut.items(self._num_processors(device), self._num_kv_heads()) for cut in CUTS[self._element_size]
            )
            self._scratch[key] = DecodeScratch.make(most, *key, device)
        return self._scratch[key]


def _hopper() -> Any:
    """The kernel's module, which not every Triton can import."""
    return importlib.import_module("quire.worker.kernels.prefill_hopper")


def _on_device(host: np.ndarray, device: torch.device) -> torch.Tensor:
    return upload(torch.from_numpy(host.astype(np.int32)), device)
