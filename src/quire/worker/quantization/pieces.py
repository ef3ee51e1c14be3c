"""Pieces: the tensors of a checkpoint that together are one layer's weights, as the loader brings them.

    q_proj.qweight, q_proj.scales, ... | k_proj.qweight, ... | v_proj.qweight, ...        parts 0, 1, 2 of qkv_proj

Nothing is allocated before a tensor is read, and everything is dropped when the layer has made its weights of it: a
device never holds a model in two forms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Size = Callable[[int, int], tuple[int | None, ...]]
"""(outs, inputs) of the part to the shape of its tensor; None is any size."""
Read = Mapping[str, torch.Tensor]
"""The tensors of one part by their suffixes."""

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int32, torch.int64)


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor that a format has.

    Args:
        size: its shape.
        dtypes: the number formats it may be stored in, and is kept in.
        optional: there are checkpoints without it.
        flat: any shape of as many elements will do, as [n] and [n, 1]; it arrives in the shape of `size`, if that
            leaves nothing open.
        random: the shape of a random one, where `size` leaves it open or it is optional.
    """

    size: Size
    dtypes: tuple[torch.dtype, ...]
    optional: bool = False
    flat: bool = False
    random: Size | None = None


class Pieces:
    """What one layer waits for. Owned by the layer, filled by the loader.

    Args:
        wanted: of each part, by suffix; a layer that its checkpoint stores whole has them as part None.
        outs: of each part.
        inputs: of all parts.
        device: where tensors go.
        whole: what is wanted of part None.
    """

    def __init__(
        self,
        wanted: list[dict[str, Piece]],
        whole: dict[str, Piece] | None,
        outs: tuple[int, ...],
        inputs: int,
        device: torch.device,
    ) -> None:
        self._wanted, self._whole, self._outs, self._inputs, self._device = wanted, whole, outs, inputs, device
        self.read: dict[int | None, dict[str, torch.Tensor]] = {}

    @property
    def num(self) -> int:
        """Of parts."""
        return len(self._wanted)

    def suffixes(self) -> set[str]:
        """Of all parts."""
        return {suffix for wanted in (*self._wanted, self._whole or {}) for suffix in wanted}

    def outs(self, part: int | None) -> int:
        """Outputs of a part."""
        return sum(self._outs) if part is None else self._outs[part]

    def piece(self, part: int | None, suffix: str) -> Piece | None:
        """What is wanted there, if anything."""
        if part is None:
            return (self._whole or {}).get(suffix)
        return self._wanted[part].get(suffix) if part < len(self._wanted) else None

    def why_not(self, part: int | None, suffix: str, shape: tuple[int, ...], dtype: torch.dtype | None) -> str | None:
        """What is wrong with a tensor of this shape and format in this place; None is nothing."""
        piece = self.piece(part, suffix)
        assert piece is not None
        size = self.shape(part, suffix)
        if not _fits(shape, size, flat=piece.flat):
            shown = ", ".join("any" if n is None else str(n) for n in size)
            return f"has shape {list(shape)}, config.json makes it [{shown}]"
        if dtype not in piece.dtypes:
            found = "an unknown format" if dtype is None else str(dtype).removeprefix("torch.")
            return f"holds {found}, expected {' or '.join(str(known).removeprefix('torch.') for known in piece.dtypes)}"
        return None

    def shape(self, part: int | None, suffix: str) -> tuple[int | None, ...]:
        """The shape that a tensor must have."""
        piece = self.piece(part, suffix)
        assert piece is not None
        return piece.size(self.outs(part), self._inputs)

    def place(self, part: int | None, suffix: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory for a tensor, to be filled."""
        made = torch.empty(shape, dtype=dtype, device=self._device)
        size = self.shape(part, suffix)
        kept = made.view([n if n is not None else -1 for n in size]) if None not in size else made
        self.read.setdefault(part, {})[suffix] = kept
        return made

    def missing(self, seen: set[tuple[int | None, str]]) -> list[tuple[int | None, str]]:
        """What is wanted, not optional and not among these."""
        whole = any(part is None for part, _ in seen) and self._whole is not None
        sets = {None: self._whole} if whole else dict(enumerate(self._wanted))
        return [
            (part, suffix)
            for part, wanted in sets.items()
            for suffix, piece in (wanted or {}).items()
            if not piece.optional and (part, suffix) not in seen
        ]

    def fill_with_random(self, generator: torch.Generator) -> None:
        """Numbers of about the size that weights have, in every tensor that must be there."""
        pieces = [(part, *item) for part, wanted in enumerate(self._wanted) for item in wanted.items()]
        for part, suffix, piece in pieces:
            if piece.optional and piece.random is None:
                continue
            shape = tuple(n or 1 for n in (piece.random or piece.size)(self.outs(part), self._inputs))
            to = self.place(part, suffix, shape, piece.dtypes[0])
            if to.dtype in (torch.int32, torch.int64, torch.int8, torch.uint8):
                low, high = (0, 256) if to.dtype == torch.uint8 else (-127, 128)
                if to.dtype == torch.int32:
                    low, high = -(1 << 31), 1 << 31
                to.copy_(torch.randint(low, high, shape, generator=generator, device=generator.device))
            elif to.dtype == torch.float8_e4m3fn:
                to.copy_(torch.randn(shape, generator=generator, device=generator.device) * 32)
            elif suffix.endswith("weight"):
                to.copy_(torch.randn(shape, generator=generator, device=generator.device) * 0.02)
            else:
                to.copy_(torch.rand(shape, generator=generator, device=generator.device) * 0.002)


def _fits(shape: tuple[int, ...], size: tuple[int | None, ...], *, flat: bool) -> bool:
    if len(shape) == len(size) and all(b in (None, a) for a, b in zip(shape, size, strict=True)):
        return True
    if not flat:
        return False
    if None in size:
        return True
    product = 1
    for n in size:
        product *= n or 0
    elements = 1
    for n in shape:
        elements *= n
    return product == elements
