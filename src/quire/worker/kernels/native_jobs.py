"""Jobs of the C++ kernels: the structures of `cpp/jobs.h`, field by field, and which field is the size of a batch."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_Pointer, _Int, _Flag, _Float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


def _structure(name: str, **fields: type) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


def _pointers(names: str) -> dict[str, type]:
    return dict.fromkeys(names.split(), _Pointer)


def _ints(names: str) -> dict[str, type]:
    return dict.fromkeys(names.split(), _Int)


Linear = _structure(
    "Linear", **_pointers("x weight scales sums bias out"), **_ints("rows inputs outs"), layout=_Flag, gate=_Flag
)
Groups = _structure(
    "Groups",
    **_pointers("x weight scales zeros order bias out"),
    **_ints("rows inputs outs group"),
    layout=_Flag,
    gate=_Flag,
    bits=_Flag,
)
Norm = _structure("Norm", **_pointers("x weight residual out"), **_ints("rows size"), eps=_Float)
Attend = _structure(
    "Attend",
    **_pointers("q kv out tables rows starts kv_lens"),
    **_ints("table_width requests heads kv_heads dim block_size window"),
    scale=_Float,
    soft_cap=_Float,
)
Store = _structure(
    "Store",
    **_pointers("qkv q_norm k_norm cos sin slots kv q_out"),
    **_ints("tokens heads kv_heads dim block_size"),
    eps=_Float,
)
Gather = _structure(
    "Gather",
    **_pointers("rows starts computed tokens tables ids positions slots kv_lens advanced"),
    **_ints("requests tokens_width tables_width block_size"),
)
Pick = _structure("Pick", **_pointers("ids table out"), **_ints("lines bytes"))
Turn = _structure("Turn", **_pointers("positions frequency cos sin"), **_ints("tokens half"), scale=_Float)
Choose = _structure("Choose", **_pointers("logits ids rows tokens lens"), **_ints("lines vocab tokens_width"))


KINDS = {
    "linear_bf16": "rows",
    "linear_int8": "rows",
    "norm": "rows",
    "store_paged": "tokens",
    "attend_paged": "requests",
    "gather": "requests",
    "pick": "lines",
    "turn": "tokens",
    "choose": "lines",
    "linear_groups": "rows",
}
"""Kinds of job, in the order of `run_jobs`, and the field that says how many rows of a batch one has."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was made; `wide` says float32."""

    name: str
    job: ctypes.Structure
    wide: int

    def check_size(self, num: int) -> None:
        """A job of a captured step must be about its rows, one line for each.

        Raises:
            ValueError: it is not.
        """
        found = getattr(self.job, KINDS[self.name])
        if found != num:
            raise ValueError(f"{self.name} of {found} lines in a step of {num} rows")

    def resize(self, num: int) -> None:
        """The next time for so many rows of a batch, no more than the buffers have."""
        setattr(self.job, KINDS[self.name], num)


NUMBERS = {name: number for number, name in enumerate(KINDS)}
