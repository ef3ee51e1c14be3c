"""Choices: which kernel multiplies one line by a weight matrix, by shape; measured once per GPU, then remembered.

Until a shape was measured the rule of `gemv.default_tiles` holds, so nothing waits for measuring: it is done in spare
time, one candidate at a time, on the model's own weights, which together do not fit the L2 cache.
"""

from __future__ import annotations

import logging
import re
import statistics
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import msgspec
import torch
import triton

from quire.worker.kernels import activation, gemv

log = logging.getLogger("quire.engine")

Shape = tuple[int, int, bool]
"""in_features, out_features of one half if gated, whether it is gated."""

ROUNDS = 7
NUM_WEIGHTS = 8
"""Weights of a shape that are multiplied in turn."""


class Choices:
    """Args:
    folder: where the table of each GPU is kept; None keeps it in memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._path: Path | None = None
        self._chosen: dict[Shape, gemv.GemvTiles | None] = {}
        self._weights: dict[Shape, list[torch.Tensor]] = {}
        self._times: dict[Shape, dict[gemv.GemvTiles | None, float]] = {}
        self._loaded = False

    def tiles(self, x: torch.Tensor, weight: torch.Tensor, *, gated: bool = False) -> gemv.GemvTiles | None:
        """For x [1, in] and this weight; None where cuBLAS is to do it."""
        if x.shape[0] != 1 or x.dtype == torch.float32:
            return None
        shape = (x.shape[1], weight.shape[0] // (2 if gated else 1), gated)
        if shape not in self._chosen:
            self._load(x.device)
            self._chosen.setdefault(shape, gemv.default_tiles(*shape[:2]))
        known = self._weights.setdefault(shape, [])
        if len(known) < NUM_WEIGHTS and not any(weight is other for other in known):
            known.append(weight)
        return self._chosen[shape]

    def measure_next(self) -> bool | None:
        """Time one candidate of one shape: whether that changed a choice; None if nothing is left to measure."""
        for shape, weights in self._weights.items():
            times = self._times.setdefault(shape, {})
            for tiles in _candidates(shape):
                if tiles not in times:
                    times[tiles] = _time(shape, weights, tiles)
                    return len(times) == len(_candidates(shape)) and self._settle(shape)
        return None

    def _settle(self, shape: Shape) -> bool:
        best = min(self._times[shape].items(), key=lambda item: item[1])[0]
        before, self._chosen[shape] = self._chosen[shape], best
        self._save()
        return best != before

    def _load(self, device: torch.device) -> None:
        if self._loaded or self._folder is None:
            return
        self._loaded = True
        name = re.sub(r"[^A-Za-z0-9]+", "-", torch.cuda.get_device_name(device))
        self._path = self._folder / f"gemv-{name}-triton-{triton.__version__}.json"
        try:
            rows = msgspec.json.decode(self._path.read_bytes(), type=list[tuple[Shape, tuple[int, int, int] | None]])
        except (OSError, msgspec.MsgspecError):
            return
        for shape, tiles in rows:
            self._chosen[shape] = gemv.GemvTiles(*tiles) if tiles else None
            self._times[shape] = dict.fromkeys(_candidates(shape), 0.0)

    def _save(self) -> None:
        if self._path is None:
            return
        measured = [shape for shape, times in self._times.items() if len(times) == len(_candidates(shape))]
        rows = [(shape, astuple(tiles) if (tiles := self._chosen[shape]) else None) for shape in measured]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_bytes(msgspec.json.encode(rows))
        except OSError as error:
            log.warning("the table of measured kernels could not be kept: %s", error)


def _candidates(shape: Shape) -> tuple[gemv.GemvTiles | None, ...]:
    size, width, _ = shape
    fitting = (tiles for tiles in gemv.CANDIDATES if width % tiles.rows == 0 and tiles.block < 2 * size)
    return (None, *fitting)


def _time(shape: Shape, weights: list[torch.Tensor], tiles: gemv.GemvTiles | None) -> float:
    """Milliseconds per product, from replays of a graph of several."""
    size, _, gated = shape
    x = torch.randn(1, size, dtype=weights[0].dtype, device=weights[0].device)
    call = _product(gated, tiles)
    for weight in weights[:1]:
        call(x, weight)
    torch.cuda.current_stream().synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(capture_error_mode="thread_local")
    for weight in weights:
        call(x, weight)
    graph.capture_end()
    times = []
    for _ in range(ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times) / len(weights)


def _product(gated: bool, tiles: gemv.GemvTiles | None) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    if tiles is None and gated:
        return lambda x, weight: activation.gated(torch.nn.functional.linear(x, weight), "silu")
    if tiles is None:
        return lambda x, weight: torch.nn.functional.linear(x, weight)
    if gated:
        return lambda x, weight: gemv.gated_gemv(x, weight, "silu", tiles)
    return lambda x, weight: gemv.gemv(x, weight, None, tiles)
