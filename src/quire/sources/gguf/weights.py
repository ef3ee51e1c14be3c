"""The tensors of a GGUF under the names of a checkpoint, and what must be done to their rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quire.errors import StartupError
from quire.sources.files import Location
from quire.sources.gguf.architectures import NEVER, Architecture, find
from quire.sources.gguf.header import GGUFTensor
from quire.sources.gguf.metadata import Metadata


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor, or one expert's part of it.

    Attributes:
        name: as a checkpoint of transformers calls it.
        location: its file; its bytes are [start, end) of that.
        type: of its blocks (`header.TYPES`).
        heads: its rows are those of so many heads, interleaved; 0 is as they should be.
        groups: its rows are q, k, v of so many groups; a checkpoint has them group by group; 0 is as they should be.
        less: what is taken away from each number.
    """

    name: str
    location: Location
    type: str
    shape: tuple[int, ...]
    start: int
    end: int
    heads: int = 0
    groups: int = 0
    less: float = 0.0


def named_tensors(data: Metadata) -> list[NamedTensor]:
    """All tensors that are weights.

    Raises:
        ConfigError: an unknown architecture.
        StartupError: a tensor of which nothing is known, or that has a shape of another kind.
    """
    row = find(data)
    prefix = data.architecture
    q_heads = data.integer(f"{prefix}.attention.head_count", low=1, high=1 << 16)
    kv_heads = data.integer(f"{prefix}.attention.head_count_kv", q_heads, low=1, high=1 << 16)
    groups = {"attn_qkv": kv_heads} if row.grouped and kv_heads > 1 else {}
    heads = {"attn_q": q_heads, "attn_k": kv_heads} if row.turned else dict.fromkeys(groups, q_heads)
    found: list[NamedTensor] = []
    for header in data.headers:
        for tensor in header.tensors:
            if tensor.name in NEVER:
                continue
            stem, name = _name(row, tensor, data)
            less = float(row.norms_from_one and tensor.name.endswith("norm.weight"))
            more = (heads.get(stem, 0), groups.get(stem, 0), less)
            found.extend(_parts(NamedTensor(name, header.location, tensor.type, tensor.shape, tensor.start, tensor.end,
                                            *more)))  # fmt: skip
    return found


def _name(row: Architecture, tensor: GGUFTensor, data: Metadata) -> tuple[str, str]:
    """The word that names its place in a GGUF's layer, and its whole name in a checkpoint."""
    stem, _, kind = tensor.name.rpartition(".")
    words = stem.split(".")
    if kind in ("weight", "bias"):
        if stem in row.outer:
            return stem, f"{row.outer[stem]}.{kind}"
        if len(words) == 3 and words[0] == "blk" and words[1].isdecimal() and len(words[1]) <= 6:
            layer = _own_norm(row, words[2], data)
            if layer is not None:
                return words[2], f"{row.layers}.{int(words[1])}.{layer}.{kind}"
    raise StartupError(f"{data.where}: tensor {tensor.name[:120]!r} has no place in a model of {data.architecture}.")


def _own_norm(row: Architecture, word: str, data: Metadata) -> str | None:
    """Falcon's second norm, where it has one, is the one of attention."""
    if row.grouped and "blk.0.attn_norm_2.weight" in data.tensors:
        return {**row.layer, "attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"}.get(word)
    return row.layer.get(word)


def _parts(tensor: NamedTensor) -> Iterator[NamedTensor]:
    """Experts lie one after the other in one tensor."""
    if "{}" not in tensor.name:
        if tensor.name.endswith("shared_expert_gate.weight") and len(tensor.shape) == 1:
            tensor = NamedTensor(tensor.name, tensor.location, tensor.type, (1, *tensor.shape), tensor.start,
                                 tensor.end)  # fmt: skip
        yield tensor
        return
    if len(tensor.shape) != 3:
        raise StartupError(f"{tensor.location}: tensor {tensor.name!r} must have three dimensions.")
    size = (tensor.end - tensor.start) // tensor.shape[0]
    for number in range(tensor.shape[0]):
        start = tensor.start + number * size
        name = tensor.name.format(number)
        yield NamedTensor(name, tensor.location, tensor.type, tensor.shape[1:], start, start + size)
