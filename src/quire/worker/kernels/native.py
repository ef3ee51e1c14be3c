"""The C++ kernels, called through ctypes: jobs of `native_jobs`, run in order by `run_jobs`.

Tensors are float32 or bfloat16 and contiguous; every call returns when its result is there.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quire.worker.kernels import native_build, native_groups
from quire.worker.kernels.native_build import BuildError
from quire.worker.kernels.native_groups import PackedExperts, PackedGroups
from quire.worker.kernels.native_jobs import NUMBERS, Call, Choose, Gather, Linear, Norm, Pick, Turn
from quire.worker.kernels.plain import PlainKernels
from quire.worker.kernels.weights import AnyWeights

log = logging.getLogger("quire.engine")

FORMATS = (torch.float32, torch.bfloat16)
PANEL = 32
_Pointer, _Int, _Flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight [outs, inputs] in panels. `scales` and `sums` belong to int8 ones; layout 1 has gate and up side by
    side, see `linear.cpp`."""

    panels: torch.Tensor
    scales: torch.Tensor | None
    sums: torch.Tensor | None
    outs: int
    inputs: int
    layout: int


class NativeLibrary:
    """`on_call` is told of every call of a job, where it is set.

    Args:
        path: what `Build` made.

    Raises:
        OSError: it cannot be loaded, for want of torch's OpenMP for one.
    """

    def __init__(self, path: Path) -> None:
        self.on_call: Callable[[Call], None] | None = None
        _share_openmp()
        self._library = ctypes.CDLL(str(path))
        features = self._library.features()
        self.fast_bf16 = bool(features & 1)
        self.fast_int8 = bool(features & 2)
        self.has_tiles = bool(features & 4) and self._tiles_agree()

    @property
    def summary(self) -> str:
        """The instructions in use, for the start's lines."""
        names = (("bf16", self.fast_bf16), ("int8", self.fast_int8), ("AMX", self.has_tiles))
        return " ".join(name for name, there in names if there) or "portable"

    def use_tiles(self, wanted: bool) -> None:
        """Multiply by AMX tiles where there are any, or by vectors."""
        self._library.use_tiles(int(wanted))

    def _tiles_agree(self) -> bool:
        """Whether tiles give what vectors give, on this machine, in milliseconds; they are not used otherwise."""
        generator = torch.Generator().manual_seed(0)
        x, weight = (torch.randn(n, 128, generator=generator).bfloat16() for n in (37, 64))
        for int8 in (False, True):
            packed, results = self.pack(weight, gated=False, int8=int8), []
            for wanted in (False, True):
                self.use_tiles(wanted)
                results.append(self.linear(x, packed, None).float())
            if not torch.allclose(*results, rtol=2e-2, atol=0.1):
                log.warning("AMX products differ from those of vectors here: tiles are not used.")
                self.use_tiles(False)
                return False
        return True

    def advise(self, tensor: torch.Tensor) -> None:
        """Memory that is read again and again, not yet written to: large pages, where the system has them."""
        self._library.advise(_Pointer(tensor.data_ptr()), _Int(tensor.nbytes))

    # ---- calls -----------------------------------------------------------------------------------------------------

    def _call(self, name: str, job: ctypes.Structure, wide: int) -> None:
        self.call(Call(name, job, wide))

    def call(self, call: Call) -> None:
        """Make one, and tell of it."""
        self.sequence([call])()
        if self.on_call is not None:
            self.on_call(call)

    def sequence(self, calls: Sequence[Call]) -> Callable[[], None]:
        """One call that repeats all of these in order; their tensors must stay alive."""
        num = len(calls)
        kinds = (_Flag * num)(*(NUMBERS[call.name] for call in calls))
        jobs = (_Pointer * num)(*(ctypes.addressof(call.job) for call in calls))
        wides = (_Flag * num)(*(call.wide for call in calls))
        kept = tuple(calls)

        def run() -> None:
            self._library.run_jobs(kinds, jobs, wides, _Int(len(kept)))

        return run

    # ---- weights -----------------------------------------------------------------------------------------------

    def pack(self, weight: torch.Tensor, *, gated: bool, int8: bool = False) -> Packed:
        """Panels of a weight [outs, inputs]; int8 ones get a scale per output. Gated: the upper half is gate."""
        outs, inputs = weight.shape
        layout = int(gated and outs % 32 == 0)
        lines = -(-outs // PANEL) * PANEL
        panels = torch.empty(lines * inputs, dtype=torch.int8 if int8 else torch.bfloat16)
        self.advise(panels)
        sizes = (_Int(outs), _Int(inputs), layout)
        if not int8:
            self._library.pack_bf16(_Pointer(weight.data_ptr()), _Pointer(panels.data_ptr()), *sizes)
            return Packed(panels, None, None, outs, inputs, layout)
        scales, sums = torch.empty(lines), torch.empty(lines, dtype=torch.int32)
        places = (_Pointer(tensor.data_ptr()) for tensor in (panels, scales, sums))
        self._library.pack_int8(_Pointer(weight.data_ptr()), int(_wide(weight)), *places, *sizes)
        return Packed(panels, scales, sums, outs, inputs, layout)

    def linear(self, x: torch.Tensor, weight: Packed, bias: torch.Tensor | None, *, gate: bool = False) -> torch.Tensor:
        """x [..., inputs] to [..., outs]; `gate` gives silu(gate) * up, of half the width, if the layout is 1."""
        rows = x.numel() // weight.inputs
        out = torch.empty((*x.shape[:-1], weight.outs >> gate), dtype=x.dtype)
        job = Linear(
            x.data_ptr(),
            weight.panels.data_ptr(),
            weight.scales.data_ptr() if weight.scales is not None else None,
            weight.sums.data_ptr() if weight.sums is not None else None,
            bias.data_ptr() if bias is not None else None,
            out.data_ptr(),
            rows,
            weight.inputs,
            weight.outs,
            weight.layout,
            gate,
        )
        self._call("linear_bf16" if weight.scales is None else "linear_int8", job, _wide(x))
        return out

    # ---- between the products ----------------------------------------------------------------------------------

    def norm(self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """RMSNorm over the last dimension; with a residual, which becomes the sum, of the sum."""
        out = torch.empty_like(x)
        size = x.shape[-1]
        job = Norm(
            x.data_ptr(),
            weight.data_ptr(),
            residual.data_ptr() if residual is not None else None,
            out.data_ptr(),
            x.numel() // size,
            size,
            eps,
        )
        self._call("norm", job, _wide(x))
        return out

    # ---- the begin and the end of a step ------------------------------------------------------------------------

    def gather(
        self,
        rows: torch.Tensor,
        query_starts: torch.Tensor,
        num_tokens: int,
        computed: torch.Tensor,
        tokens: torch.Tensor,
        tables: torch.Tensor,
        block_size: int,
        *,
        advance: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `protocol.Kernels.gather`, of int32 tables; `advance` counts the step's tokens as computed."""
        ids = torch.empty(num_tokens, dtype=torch.int32)
        positions, slots = torch.empty(num_tokens, dtype=torch.int64), torch.empty(num_tokens, dtype=torch.int64)
        kv_lens = torch.empty(len(rows), dtype=torch.int32)
        read = (rows, query_starts, computed, tokens, tables)
        job = Gather(
            *(tensor.data_ptr() for tensor in (*read, ids, positions, slots, kv_lens)),
            computed.data_ptr() if advance else None,
            len(rows),
            tokens.stride(0),
            tables.stride(0),
            block_size,
        )
        self._call("gather", job, 0)
        return ids, positions, slots, kv_lens

    def embed(self, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """ids [tokens] int32, weight [vocab, hidden] -> [tokens, hidden]."""
        out = torch.empty(len(ids), weight.shape[1], dtype=weight.dtype)
        line = weight.shape[1] * weight.element_size()
        self._call("pick", Pick(ids.data_ptr(), weight.data_ptr(), out.data_ptr(), len(ids), line), 0)
        return out

    def turns(
        self, positions: torch.Tensor, frequency: torch.Tensor, scale: float, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """positions [tokens] int64, frequency [half] float32 -> cos and sin [tokens, half]."""
        cos, sin = (torch.empty(len(positions), len(frequency), dtype=dtype) for _ in range(2))
        tensors = (positions, frequency, cos, sin)
        job = Turn(*(tensor.data_ptr() for tensor in tensors), *cos.shape, scale)
        self._call("turn", job, _wide(cos))
        return cos, sin

    def most_likely(self, logits: torch.Tensor) -> torch.Tensor:
        """[rows] int64: the first of the largest of each row."""
        ids = torch.empty(len(logits), dtype=torch.int64)
        self._call(
            "choose", Choose(logits.data_ptr(), ids.data_ptr(), None, None, None, *logits.shape, 0), _wide(logits)
        )
        return ids

    def choice(
        self, logits: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, lens: torch.Tensor
    ) -> Call:
        """The call that finds the most likely ids [rows] int64 and appends them to their rows; it is not made."""
        tensors = (logits, ids, rows, tokens, lens)
        job = Choose(*(tensor.data_ptr() for tensor in tensors), *logits.shape, tokens.stride(0))
        return Call("choose", job, _wide(logits))

    # ---- attention ---------------------------------------------------------------------------------------------

    def store(self, job: ctypes.Structure, *, wide: bool) -> None:
        """Norm, turn and write into the cache."""
        self._call("store_paged", job, int(wide))

    def attend(self, job: ctypes.Structure, *, wide: bool) -> None:
        """Attention over the cache."""
        self._call("attend_paged", job, int(wide))


class NativeKernels(PlainKernels):
    """See `protocol.Kernels`."""

    name = "native"
    wide_norms = False

    def __init__(self, library: NativeLibrary) -> None:
        self._library = library

    def keep(self, weights: AnyWeights, *, gated: bool = False, experts: int = 0) -> Any:
        """Groups of whole numbers in panels; other kinds as they are."""
        made = native_groups.keep(self._library, weights, gated=gated, experts=experts)
        return weights if made is None else made

    def product(self, x: torch.Tensor, kept: Any, bias: torch.Tensor | None) -> torch.Tensor:
        """Whole numbers in C++, group by group."""
        if not isinstance(kept, PackedGroups):
            return super().product(x, kept, bias)
        return native_groups.product(self._library, x, kept, bias)

    def gated_product(self, x: torch.Tensor, kept: Any, bias: torch.Tensor | None, kind: str) -> torch.Tensor:
        """In one pass, where gate and up lie side by side."""
        if not isinstance(kept, PackedGroups) or kind != "silu" or not kept.layout:
            return super().gated_product(x, kept, bias, kind)
        return native_groups.product(self._library, x, kept, bias, gate=True)

    def expert_product(self, x: torch.Tensor, kept: tuple[Any, ...], expert: int, num: int) -> torch.Tensor:
        """Experts in panels are one by one."""
        if len(kept) == 1 and isinstance(kept[0], PackedExperts):
            return self.product(x, kept[0].experts[expert], None)
        return super().expert_product(x, kept, expert, num)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """In one pass."""
        if not _fits(x):
            return super().rms_norm(x, weight, eps)
        return self._library.norm(x, None, weight, eps)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum takes the place of the residual."""
        if not (_fits(x) and _fits(residual)):
            return super().add_rms_norm(x, residual, weight, eps)
        return self._library.norm(x, residual, weight, eps), residual

    def embed(self, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Line by line."""
        if ids.dtype != torch.int32 or ids.dim() != 1 or not (ids.is_contiguous() and weight.is_contiguous()):
            return super().embed(ids, weight)
        return self._library.embed(ids, weight)

    def turns(
        self, positions: torch.Tensor, frequency: torch.Tensor, scale: float, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """In one pass."""
        if dtype not in FORMATS or positions.dtype != torch.int64 or not positions.is_contiguous():
            return super().turns(positions, frequency, scale, dtype)
        return self._library.turns(positions, frequency, scale, dtype)

    def gather(
        self,
        rows: torch.Tensor,
        query_starts: torch.Tensor,
        requests: torch.Tensor,
        computed: torch.Tensor,
        tokens: torch.Tensor,
        tables: torch.Tensor,
        block_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """In one pass."""
        return self._library.gather(rows, query_starts, len(requests), computed, tokens, tables, block_size)

    def most_likely(self, logits: torch.Tensor) -> torch.Tensor:
        """In one pass."""
        return self._library.most_likely(logits) if _fits(logits) else super().most_likely(logits)


@functools.cache
def library() -> NativeLibrary:
    """The library of this process; built now if nobody began.

    Raises:
        BuildError: there is none.
    """
    try:
        return NativeLibrary(native_build.current().wait())
    except OSError as error:
        raise BuildError(f"the C++ kernels could not be loaded: {error}") from error


def _fits(x: torch.Tensor) -> bool:
    return x.dtype in FORMATS and x.is_contiguous()


def _wide(x: torch.Tensor) -> int:
    return int(x.dtype == torch.float32)


def _share_openmp() -> None:
    """Make the OpenMP runtime that torch has loaded visible to libraries loaded later."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if ".so" in path and any(name in Path(path).name for name in ("libgomp", "libiomp5", "libomp")):
            ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
            return
    raise OSError("torch has loaded no OpenMP")
